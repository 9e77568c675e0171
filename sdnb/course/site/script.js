// The pages' theme and search. The theme is the reader's choice here, or else the system's.
"use strict";
{
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  let chosen = null;
  try { chosen = localStorage.getItem("sdnb-theme"); } catch { /* not kept where storage is forbidden */ }
  const follow = () => root.dataset.theme = chosen ?? (dark.matches ? "dark" : "light");
  follow();
  dark.addEventListener("change", follow);
  addEventListener("DOMContentLoaded", () => {
    document.querySelector(".theme").addEventListener("click", () => {
      chosen = root.dataset.theme === "dark" ? "light" : "dark";
      try { localStorage.setItem("sdnb-theme", chosen); } catch { /* as above */ }
      follow();
    });
    if (innerWidth < 1000) document.querySelector("nav details").open = false;
    search(document.querySelector(".search input"), document.querySelector(".search ol"));
  });
}

function search(input, list) {
  const base = document.body.dataset.root;
  function show() {
    const asked = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    list.replaceChildren();
    list.hidden = !asked.length;
    if (!asked.length) return;
    const found = [];
    for (const [title, heading, address, text] of SEARCH) {
      const head = `${title} ${heading}`.toLowerCase(), all = `${head} ${text.toLowerCase()}`;
      if (!asked.every(word => all.includes(word))) continue;
      const points = asked.reduce((sum, word) => sum + 9 * head.includes(word) + all.split(word).length - 1, 0);
      found.push({title, heading, address, text, points});
    }
    found.sort((a, b) => b.points - a.points);
    for (const row of found.slice(0, 12)) {
      const item = document.createElement("li"), link = document.createElement("a"), words = document.createElement("span");
      link.href = base + row.address;
      link.append(row.heading ? `${row.title} › ${row.heading}` : row.title, words);
      words.append(...excerpt(row.text, asked));
      item.append(link);
      list.append(item);
    }
    if (!found.length) list.append(Object.assign(document.createElement("li"), {textContent: document.body.dataset.none}));
  }
  input.addEventListener("input", show);
  input.addEventListener("focus", show);
  input.addEventListener("keydown", event => {
    if (event.key === "Enter") list.querySelector("a")?.click();
    if (event.key === "Escape") { input.value = ""; show(); }
    if (event.key === "ArrowDown") { list.querySelector("a")?.focus(); event.preventDefault(); }
  });
  list.addEventListener("keydown", event => {
    const step = {ArrowDown: 1, ArrowUp: -1}[event.key];
    if (!step) return;
    const links = [...list.querySelectorAll("a")];
    (links[links.indexOf(document.activeElement) + step] ?? input).focus();
    event.preventDefault();
  });
  document.addEventListener("click", event => { if (!event.target.closest(".search")) list.hidden = true; });
  document.addEventListener("keydown", event => {
    if (event.key === "/" && !event.target.closest("input, textarea")) { input.focus(); event.preventDefault(); }
  });
}

// The words around the first place where an asked word stands, that word marked.
function excerpt(text, asked) {
  const lower = text.toLowerCase(), word = asked.find(word => lower.includes(word));
  if (!word) return [text.slice(0, 120)];
  const place = lower.indexOf(word), start = Math.max(0, place - 50);
  const mark = Object.assign(document.createElement("mark"), {textContent: text.slice(place, place + word.length)});
  return [(start ? "…" : "") + text.slice(start, place), mark, text.slice(place + word.length, place + 90) + "…"];
}

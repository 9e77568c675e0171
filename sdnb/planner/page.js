"use strict";
// What all pages share. All that a page knows is in DATA, which page.py wrote; nothing is fetched.
const DATA = JSON.parse(document.getElementById("data").textContent);
const GIB = 2 ** 30;
const $ = (id) => document.getElementById(id);

let language = DATA.language ?? (navigator.language.startsWith("zh") ? "zh" : "en");

function say(key, values = {}) {
  return DATA.words[key][language].replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

const gib = (bytes) => (bytes / GIB).toFixed(2);

/** Colour and hatch of a category, as CSS. */
const look = (name) => `--fill: ${DATA.looks[name].fill}; --hatch: ${DATA.looks[name].hatch}`;

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "click") made.addEventListener(name, value);
    else if (value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

/** Say everything in the language that is chosen, now and whenever another is; `draw` says what the page has to say itself. */
function speak(draw) {
  const again = () => {
    document.documentElement.lang = say("language.code");
    document.title = say("title");
    for (const part of document.querySelectorAll("[data-say]")) part.textContent = say(part.dataset.say, { version: DATA.version });
    $("language").setAttribute("aria-label", say("language"));
    draw();
  };
  const names = Object.entries(DATA.words["language.name"]);
  $("language").append(...names.map(([code, name]) => element("option", { value: code, lang: DATA.words["language.code"][code] }, name)));
  $("language").value = language;
  $("language").addEventListener("change", () => { language = $("language").value; again(); });
  again();
}

/** In a notebook: be as high as the content, and as dark as JupyterLab. */
function settle() {
  if (!frameElement) return;
  const lab = parent.document.body;
  const follow = () => {
    if (lab.dataset.jpThemeLight) document.documentElement.style.colorScheme = lab.dataset.jpThemeLight === "true" ? "light" : "dark";
  };
  follow();
  new MutationObserver(follow).observe(lab, { attributes: true });
  new ResizeObserver(() => { frameElement.style.height = `${document.documentElement.offsetHeight + 2}px`; }).observe(document.documentElement);
}

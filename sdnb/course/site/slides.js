// Arrow keys, space, page keys, Home, End, a click or a swipe turn the slides; the address names the slide.
"use strict";
const slides = [...document.querySelectorAll("section")], counter = document.body.appendChild(document.createElement("output"));
let now = 0, touched = 0;
function show(number) {
  now = Math.min(Math.max(number, 0), slides.length - 1);
  slides.forEach((slide, index) => slide.classList.toggle("now", index === now));
  counter.textContent = `${now + 1} / ${slides.length}` + (now ? "" : ` · ${document.body.dataset.help}`);
  history.replaceState(null, "", `#${now + 1}`);
}
const steps = {ArrowRight: 1, ArrowDown: 1, PageDown: 1, " ": 1, ArrowLeft: -1, ArrowUp: -1, PageUp: -1, Home: -Infinity, End: Infinity};
addEventListener("keydown", event => {
  if (event.key === "f") document.documentElement.requestFullscreen();
  if (!(event.key in steps)) return;
  event.preventDefault();
  show(now + steps[event.key] * (event.shiftKey && event.key === " " ? -1 : 1));
});
addEventListener("click", event => show(now + (event.clientX < innerWidth / 3 ? -1 : 1)));
addEventListener("touchstart", event => touched = event.touches[0].clientX);
addEventListener("touchend", event => {
  const moved = event.changedTouches[0].clientX - touched;
  if (Math.abs(moved) > 40) { event.preventDefault(); show(now - Math.sign(moved)); }
}, {passive: false});
addEventListener("hashchange", () => show(Number(location.hash.slice(1)) - 1));
show((Number(location.hash.slice(1)) || 1) - 1);

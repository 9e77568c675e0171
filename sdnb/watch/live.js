// The live plot in the browser. It draws the numbers that the kernel sends (an anywidget, in JupyterLab, Colab and others), and the same
// numbers once more in the page that a finished run leaves, where there is no kernel. Nothing is loaded from elsewhere.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = { "-": "", "--": "6 3", "-.": "7 3 1.5 3", ":": "1.5 3" };
// the colours of the course's figures, each a variable of live.css, as a dark page needs lighter ones
const COLOURS = {
  "#0072B2": "blue", "#D55E00": "orange", "#009E73": "green", "#56B4E9": "sky",
  "#CC79A7": "purple", "#8C8C8C": "grey", "#B0B0B0": "pale", "#000000": "ink",
};
const PAUSE = 15_000; // milliseconds between two states of the run that a screen reader is told
const LEFT = 46, RIGHT = 8, TOP = 6, BOTTOM = 20;

// numbers and words

function floats(bytes) {
  if (typeof bytes === "string") bytes = Uint8Array.from(atob(bytes), (letter) => letter.charCodeAt(0));
  const start = bytes.byteOffset || 0;
  return new Float32Array((bytes.buffer || bytes).slice(start, start + bytes.byteLength));
}

// Panels with their curves' x and y; `numbers` holds them one after the other.
function unpacked(frame, numbers) {
  const values = floats(numbers);
  let place = 0;
  const take = (count) => values.subarray(place, (place += count));
  return (frame.panels || []).map((panel) => ({
    ...panel,
    curves: panel.curves.map((curve) => ({ ...curve, x: take(curve.points), y: take(curve.points) })),
  }));
}

function rate(value) {
  const [digits, exponent] = value.toExponential(2).split("e");
  return value === 0 ? "0" : `${Number(digits)}e${Number(exponent)}`;
}

function readable(value, panel) {
  if (panel.title === "Learning rate") return rate(value);
  const size = Math.abs(value);
  return value.toFixed(size >= 100 ? 0 : size >= 10 ? 1 : size >= 1 ? 2 : 3);
}

// Round numbers from `low` to `high`, about `count` of them.
function ticks(low, high, count) {
  const rough = (high - low) / count, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough * 0.999);
  const list = [];
  for (let i = Math.ceil(low / step - 1e-6); i * step <= high + 1e-6 * step; i++) list.push(i * step);
  if (list.length < 2 && count < 20) return ticks(low, high, 2 * count);
  return { list, decimals: Math.max(0, -Math.floor(Math.log10(step) + 1e-9)) };
}

function nearest(x, at) {
  let low = 0, high = x.length - 1;
  while (high - low > 1) {
    const middle = (low + high) >> 1;
    if (x[middle] <= at) low = middle; else high = middle;
  }
  return Math.abs(x[high] - at) < Math.abs(x[low] - at) ? high : low;
}

// elements

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key in element && key !== "style") element[key] = value; else element.setAttribute(key, value);
  }
  element.append(...children);
  return element;
}

function draw(name, attributes, parent) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return parent.appendChild(element);
}

const colour = (curve) => `var(--sdnb-${COLOURS[curve.colour] || "ink"})`;

// one panel

class PanelView {
  constructor(board, title) {
    this.board = board;
    this.title = make("b");
    this.legend = make("span", { className: "sdnb-legend" });
    this.tools = make("span", { className: "sdnb-tools" });
    this.svg = draw("svg", { role: "img", class: "sdnb-panel-svg" }, document.createDocumentFragment());
    this.tip = make("div", { className: "sdnb-tip", hidden: true, ariaHidden: "true" });
    const head = make("div", { className: "sdnb-head" }, this.title, this.legend, this.tools);
    this.element = make("div", { className: "sdnb-panel" }, head, make("div", { className: "sdnb-plot" }, this.svg, this.tip));
    this.element.dataset.panel = title;
    this.svg.addEventListener("pointermove", (event) => this.moved(event));
    this.svg.addEventListener("pointerleave", () => this.drag === undefined && board.read(null));
    this.svg.addEventListener("pointerdown", (event) => this.pressed(event));
    this.svg.addEventListener("pointerup", (event) => this.released(event));
    this.svg.addEventListener("dblclick", () => board.zoom(null));
  }

  step(event) {
    const box = this.svg.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    return this.from + Math.min(1, Math.max(0, share)) * (this.to - this.from);
  }

  moved(event) {
    this.board.read(this.step(event), this);
    if (this.drag !== undefined) this.mark();
  }

  pressed(event) {
    if (event.button !== 0 || event.pointerType === "touch") return;
    this.drag = this.step(event);
    this.svg.setPointerCapture(event.pointerId);
  }

  released(event) {
    const start = this.drag, end = this.step(event);
    this.drag = undefined;
    if (start === undefined) return;
    if (Math.abs(end - start) > 0.02 * (this.to - this.from)) this.board.zoom([Math.min(start, end), Math.max(start, end)]);
    else this.mark();
  }

  // Where the y-axis begins and ends: at 0 and above everything that counts, or, zoomed, around what is in view.
  scale(zoomed) {
    let low = Infinity, high = -Infinity;
    for (const curve of this.panel.curves) {
      const inside = [];
      for (let i = 0; i < curve.x.length; i++) {
        if (Number.isFinite(curve.y[i]) && curve.x[i] >= this.from && curve.x[i] <= this.to) inside.push(curve.y[i]);
      }
      if (!inside.length || curve.name === "no number") continue;
      inside.sort((a, b) => a - b);
      const cut = curve.counts ? 0 : 0.03;
      low = Math.min(low, inside[Math.floor(cut * (inside.length - 1))]);
      high = Math.max(high, inside[Math.ceil((1 - cut) * (inside.length - 1))]);
    }
    if (!(high > -Infinity) || (!zoomed && high <= 0)) return [0, 1];
    // the run before is in view, unless it lies so high that it would flatten this one
    const limit = 2 * high;
    for (const { y, counts } of zoomed || !this.ghost ? [] : this.ghost.curves) {
      if (counts) high = Math.max(high, Math.min(limit, y.reduce((most, value) => (value > most ? value : most), 0)));
    }
    const room = zoomed ? 0.08 * (high - low || Math.abs(high) || 1) : 0;
    return zoomed ? [Math.max(low >= 0 ? 0 : -Infinity, low - room), high + room] : [0, 1.08 * high];
  }

  update(panel, ghost) {
    this.panel = panel;
    this.ghost = ghost;
    this.title.replaceChildren(panel.title, ...(panel.unit ? [make("span", {}, `, ${panel.unit}`)] : []));
    this.svg.setAttribute("aria-label", panel.alt);
    this.drawLegend();
    this.redraw();
  }

  drawLegend() {
    const names = new Map(this.panel.curves.filter((curve) => curve.name).map((curve) => [curve.name, curve]));
    if (this.ghost && this.panel.title === "Loss") names.set("previous run", { colour: "#8C8C8C", style: ":", width: 1 });
    const looks = JSON.stringify([...names].map(([name, { colour, style, marker }]) => [name, colour, style, marker]));
    if (looks === this.looks) return;
    this.looks = looks;
    this.legend.replaceChildren(...[...names].map(([name, curve]) => {
      const swatch = draw("svg", { width: 20, height: 8, "aria-hidden": "true" }, document.createDocumentFragment());
      const look = { x1: 0, x2: 20, y1: 4, y2: 4, stroke: colour(curve), "stroke-width": curve.width, "stroke-dasharray": DASHES[curve.style] || "" };
      if (curve.style) draw("line", look, swatch);
      if (curve.marker) draw("circle", { cx: 10, cy: 4, r: 2.5, fill: colour(curve) }, swatch);
      return make("span", {}, swatch, name);
    }));
  }

  redraw() {
    const width = this.svg.clientWidth, height = this.svg.clientHeight;
    if (!this.panel || width < 80) return;
    const zoomed = this.board.zoomed;
    [this.from, this.to] = zoomed || [0, this.panel.end];
    [this.low, this.high] = this.scale(Boolean(zoomed));
    const right = width - RIGHT, foot = height - BOTTOM;
    this.x = (step) => LEFT + ((step - this.from) / (this.to - this.from)) * (right - LEFT);
    this.y = (value) => foot - ((value - this.low) / (this.high - this.low)) * (foot - TOP);
    this.svg.replaceChildren();
    const rows = ticks(this.low, this.high, Math.max(2, Math.round((foot - TOP) / 38)));
    for (const value of rows.list) {
      const y = this.y(value);
      draw("line", { x1: LEFT, x2: right, y1: y, y2: y, class: "sdnb-grid" }, this.svg);
      const text = this.panel.title === "Learning rate" ? rate(value) : value.toFixed(rows.decimals);
      draw("text", { x: LEFT - 5, y: y + 3.5, "text-anchor": "end" }, this.svg).textContent = text;
    }
    const columns = ticks(this.from, this.to, Math.max(2, Math.round((right - LEFT) / 80)));
    for (const value of columns.list.filter(Number.isInteger)) {
      const anchor = this.x(value) > right - 14 ? "end" : "middle";
      const unit = value === columns.list[0] ? "step " : "";
      draw("text", { x: unit ? Math.max(LEFT + 8, this.x(value)) : this.x(value), y: height - 5, "text-anchor": anchor }, this.svg).textContent = unit + value;
    }
    draw("line", { x1: LEFT, x2: right, y1: foot, y2: foot, class: "sdnb-axis" }, this.svg);
    const paper = draw("svg", { x: LEFT, y: 0, width: right - LEFT, height: foot + 4, class: "sdnb-paper" }, this.svg);
    const inner = draw("g", { transform: `translate(${-LEFT} 0)` }, paper);
    for (const curve of this.ghost ? this.ghost.curves : []) {
      if (curve.counts && curve.style) this.drawCurve({ ...curve, colour: "#8C8C8C", style: ":", width: 1, marker: "" }, inner, "sdnb-ghost");
    }
    for (const curve of this.panel.curves) this.drawCurve(curve, inner, "sdnb-curve");
    this.cross = draw("g", {}, this.svg);
    this.mark();
  }

  drawCurve(curve, parent, kind) {
    let path = "", pen = "M";
    for (let i = 0; i < curve.x.length; i++) {
      if (Number.isFinite(curve.y[i])) {
        path += `${pen}${this.x(curve.x[i]).toFixed(1)} ${this.y(curve.y[i]).toFixed(1)}`;
        pen = "L";
      } else pen = "M";
    }
    const look = { d: path, fill: "none", stroke: colour(curve), "stroke-width": curve.width, "stroke-dasharray": DASHES[curve.style] || "" };
    if (curve.style) draw("path", { ...look, class: kind, "data-name": curve.name }, parent);
    const marked = curve.marker ? (curve.marked < 0 ? curve.x.length : curve.marked) : 0;
    for (let i = 0; i < marked; i++) {
      const x = this.x(curve.x[i]), y = this.y(curve.y[i]);
      if (curve.marker === "x") draw("path", { d: `M${x - 3} ${y - 3}l6 6m0 -6l-6 6`, stroke: colour(curve), "stroke-width": 1.5 }, parent);
      else draw("circle", { cx: x, cy: y, r: 2.6, fill: colour(curve) }, parent);
    }
  }

  // What each curve says at the step that is read.
  values(at) {
    const found = [];
    const ghosts = this.ghost ? this.ghost.curves.filter((curve) => curve.counts && curve.style) : [];
    for (const curve of [...this.panel.curves, ...ghosts.map((curve) => ({ ...curve, name: "previous run", colour: "#8C8C8C" }))]) {
      if (!curve.x.length || curve.name === "no number") continue;
      const i = nearest(curve.x, at);
      if (!Number.isFinite(curve.y[i])) continue;
      let text = readable(curve.y[i], this.panel);
      const twin = curve.x[i + 1] === curve.x[i] ? i + 1 : curve.x[i - 1] === curve.x[i] ? i - 1 : -1;
      if (twin >= 0 && Number.isFinite(curve.y[twin])) {
        const [least, most] = [curve.y[i], curve.y[twin]].sort((a, b) => a - b);
        text = `${readable(least, this.panel)} to ${readable(most, this.panel)}`;
      }
      const constant = curve.x.length === 2 && curve.y[0] === curve.y[1];
      found.push({ name: curve.name, text, curve, step: constant ? at : curve.x[i], value: curve.y[i] });
    }
    return found;
  }

  // The same as lines of text; what was not measured at this step says at which.
  lines(at) {
    const values = this.values(at), lines = values.map(({ name, text }) => `${name} ${text}`.trim());
    const far = values.find(({ step }) => Math.abs(step - at) > Math.max(1, 0.02 * this.panel.end));
    return far ? [...lines, `measured at step ${far.step}`] : lines;
  }

  mark() {
    if (!this.cross) return;
    this.cross.replaceChildren();
    this.tip.hidden = true;
    const at = this.board.at, foot = this.svg.clientHeight - BOTTOM;
    if (this.drag !== undefined && at !== null) {
      const [left, right] = [this.x(this.drag), this.x(at)].sort((a, b) => a - b);
      draw("rect", { x: left, y: TOP, width: right - left, height: foot - TOP, class: "sdnb-selection" }, this.cross);
    }
    if (at === null || at < this.from || at > this.to) return;
    const x = this.x(at);
    draw("line", { x1: x, x2: x, y1: TOP, y2: foot, class: "sdnb-cross" }, this.cross);
    for (const { value, curve, step } of this.values(at)) {
      if (value >= this.low && value <= this.high && step >= this.from && step <= this.to) {
        draw("circle", { cx: this.x(step), cy: this.y(value), r: 3.2, fill: colour(curve), class: "sdnb-dot" }, this.cross);
      }
    }
    if (this.board.pointed !== this) return;
    this.tip.replaceChildren(make("b", {}, `step ${at}`), ...this.lines(at).map((line) => make("div", {}, line)));
    this.tip.hidden = false;
    const room = this.svg.clientWidth - x, width = this.tip.offsetWidth;
    this.tip.style.left = `${room > width + 12 ? x + 8 : x - width - 8}px`;
  }
}

// pictures that the model drew on the way

class Previews {
  constructor(board) {
    this.board = board;
    this.large = make("div", { className: "sdnb-large" });
    this.caption = make("div", { className: "sdnb-caption" });
    this.slider = make("input", { type: "range", min: 0, value: 0 });
    this.slider.setAttribute("aria-label", "Pictures drawn during the run");
    this.film = make("div", { className: "sdnb-film" });
    this.slider.addEventListener("input", () => this.choose(Number(this.slider.value)));
    const strip = make("div", { className: "sdnb-strip" }, this.film, this.slider);
    this.element = make("div", { className: "sdnb-previews", hidden: true }, make("div", {}, this.large, this.caption), strip);
    this.list = [];
  }

  update(list) {
    const last = this.chosen === undefined || this.chosen === this.list.length - 1;
    if (list.length === this.list.length && !list.some((entry, i) => entry.step !== this.list[i].step)) return;
    this.list = list;
    this.element.hidden = !list.length;
    this.slider.hidden = list.length < 2;
    this.slider.max = list.length - 1;
    this.film.replaceChildren(...list.map((entry, i) => {
      const frame = make("button", { type: "button", title: `step ${entry.step}`, tabIndex: -1 }, ...entry.pictures.map((src) => make("img", { src, alt: "" })));
      frame.addEventListener("click", () => this.choose(i));
      frame.addEventListener("pointerenter", () => this.choose(i));
      return frame;
    }));
    if (list.length) this.choose(last ? list.length - 1 : Math.min(this.chosen, list.length - 1));
  }

  // The last picture drawn until that step.
  follow(at) {
    const until = this.list.filter((entry) => entry.step <= at).length;
    if (until) this.choose(until - 1);
  }

  choose(i) {
    this.chosen = i;
    const { step, pictures } = this.list[i];
    this.slider.value = i;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.large.replaceChildren(...pictures.map((src) => make("img", { src, alt: `drawn at step ${step}` })));
    this.caption.textContent = `drawn at step ${step}`;
    [...this.film.children].forEach((frame, k) => frame.classList.toggle("sdnb-chosen", k === i));
  }
}

// all of it

class Board {
  constructor(element, { stop } = {}) {
    this.element = element;
    this.views = new Map();
    this.at = null;
    this.zoomed = null;
    element.classList.add("sdnb-live");
    element.setAttribute("data-lm-suppress-shortcuts", "true"); // or JupyterLab takes the arrow keys
    this.bar = make("progress", { max: 1, value: 0 });
    this.bar.setAttribute("aria-label", "Progress of the run");
    this.progress = make("span", { className: "sdnb-progress" });
    this.button = make("button", { type: "button", className: "sdnb-stop", hidden: true, title: "End the run after this step" }, "■ Stop");
    this.button.addEventListener("click", () => {
      this.button.disabled = true;
      this.button.textContent = "Stopping …";
      stop();
    });
    this.controls = make("div", { className: "sdnb-controls" }, this.bar, this.progress, this.button);
    this.words = make("div", { className: "sdnb-words" });
    this.status = make("div", { className: "sdnb-unseen" }); // the same words for screen readers, less often
    this.status.setAttribute("role", "status");
    this.panels = make("div", { className: "sdnb-board", tabIndex: 0 });
    this.panels.setAttribute("role", "group");
    this.panels.setAttribute("aria-label", "Panels. The left and right arrow keys read a step, plus and minus zoom, Escape shows all.");
    this.panels.addEventListener("keydown", (event) => this.pressed(event));
    this.panels.addEventListener("blur", () => this.read(null));
    this.readout = make("div", { className: "sdnb-readout" });
    this.readout.setAttribute("aria-live", "polite");
    this.previews = new Previews(this);
    this.more = make("details", { className: "sdnb-more", hidden: true }, make("summary", {}, "More"));
    this.others = make("div", { className: "sdnb-board" });
    this.more.append(this.others);
    this.more.addEventListener("toggle", () => this.redraw());
    this.note = make("div", { className: "sdnb-note" });
    element.replaceChildren(this.controls, this.words, this.status, this.panels, this.readout, this.previews.element, this.more, this.note);
    this.say();
    this.observer = new ResizeObserver(() => this.redraw());
    this.observer.observe(this.panels);
    this.theme = new MutationObserver(() => this.shade());
    this.theme.observe(document.body, { attributes: true });
    this.theme.observe(document.documentElement, { attributes: true });
  }

  close() {
    this.observer.disconnect();
    this.theme.disconnect();
  }

  // Dark pages have light letters, whatever front end made them.
  shade() {
    const [red, green, blue] = (getComputedStyle(this.element.parentElement || this.element).color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
    this.element.classList.toggle("sdnb-dark", 0.3 * red + 0.6 * green + 0.1 * blue > 128);
  }

  showProgress({ share, text, hint }) {
    this.bar.value = share;
    this.progress.replaceChildren(text, ...(hint ? [make("small", {}, ` ${hint}`)] : []));
  }

  show(frame, numbers, ghost) {
    this.shade();
    this.frame = frame;
    this.words.textContent = frame.words;
    if (frame.step === null || !(Date.now() < this.told + PAUSE)) {
      this.told = Date.now();
      this.status.textContent = frame.words;
    }
    this.note.textContent = frame.note || "";
    this.steps = new Float32Array(0);
    const panels = unpacked(frame, numbers), before = new Map((ghost || []).map((panel) => [panel.title, panel]));
    for (const panel of panels) {
      let view = this.views.get(panel.title);
      if (!view) {
        this.views.set(panel.title, (view = new PanelView(this, panel.title)));
        if (panel.title === "Loss") this.addTools(view.tools);
      }
      for (const curve of panel.curves) if (curve.x.length > this.steps.length) this.steps = curve.x;
      view.panel = panel;
    }
    for (const [place, more] of [[this.panels, false], [this.others, true]]) {
      const elements = panels.filter((panel) => panel.more === more).map((panel) => this.views.get(panel.title).element);
      if (elements.some((element, i) => place.children[i] !== element)) place.replaceChildren(...elements);
    }
    for (const panel of panels) this.views.get(panel.title).update(panel, before.get(panel.title));
    this.more.hidden = !this.others.children.length;
    this.say();
  }

  addTools(place) {
    const tool = (text, title, act) => {
      const button = make("button", { type: "button", title }, text);
      button.setAttribute("aria-label", title);
      button.addEventListener("click", act);
      place.append(button);
      return button;
    };
    tool("+", "Zoom in", () => this.scaleBy(0.5));
    tool("−", "Zoom out", () => this.scaleBy(2));
    this.whole = tool("all", "Show all steps", () => this.zoom(null));
    this.whole.hidden = true;
  }

  redraw() {
    this.shade();
    for (const view of this.views.values()) view.redraw();
  }

  // Read the step nearest to `at`; null reads none.
  read(at, pointed = null) {
    this.pointed = pointed;
    this.at = at === null || !this.steps.length ? null : this.steps[nearest(this.steps, at)];
    for (const view of this.views.values()) view.mark();
    if (this.at !== null) this.previews.follow(this.at);
    this.say();
  }

  say() {
    const hint = "Point at a curve or press ← → to read a step. Drag to zoom.";
    if (this.at === null) {
      this.readout.replaceChildren(make("span", { className: "sdnb-hint" }, hint));
      return;
    }
    const parts = [];
    for (const view of this.views.values()) {
      if (view.panel.more) continue;
      const lines = view.lines(this.at);
      if (lines.length) parts.push(`${view.title.textContent.replace(/ \(.*\)/, "")}: ${lines.join(", ")}`);
    }
    this.readout.replaceChildren(make("b", {}, `Step ${this.at}`), ` · ${parts.join(" · ")}`);
  }

  pressed(event) {
    const place = this.at === null ? this.steps.length : nearest(this.steps, this.at), last = this.steps.length - 1;
    const next = (by) => {
      let i = place + by;
      while (this.at !== null && i > 0 && i < last && this.steps[i] === this.at) i += Math.sign(by);
      return () => this.read(this.steps[Math.min(last, Math.max(0, i))]);
    };
    const far = Math.max(1, Math.round(last / 10));
    const acts = {
      ArrowLeft: next(-1), ArrowRight: next(1), PageDown: next(-far), PageUp: next(far),
      Home: () => this.read(this.steps[0]), End: () => this.read(this.steps[last]),
      "+": () => this.scaleBy(0.5), "-": () => this.scaleBy(2), Escape: () => this.zoom(null),
    };
    if (!acts[event.key] || event.target !== this.panels || last < 0) return;
    event.preventDefault();
    event.stopPropagation();
    acts[event.key]();
  }

  // Show a part of the steps: [first, last], or null for all of them.
  zoom(part) {
    this.zoomed = part;
    if (this.whole) this.whole.hidden = !part;
    this.redraw();
  }

  scaleBy(factor) {
    const end = this.frame.panels[0].end, [from, to] = this.zoomed || [0, end];
    const reached = this.steps.length ? this.steps[this.steps.length - 1] : end;
    const middle = this.at !== null ? this.at : this.zoomed ? (from + to) / 2 : reached - (factor * (to - from)) / 2;
    const half = (factor * (to - from)) / 2;
    if (2 * half >= end) return this.zoom(null);
    const left = Math.min(Math.max(0, middle - half), end - 2 * half);
    this.zoom([left, left + Math.max(2, 2 * half)]);
  }
}

// the widget

function render({ model, el }) {
  let stopping = false, changes = 0;
  // A kernel may not hear the first message, and another hears none before the cell has ended: so at the 1st, 2nd, 4th, 8th … change.
  const tell = () => {
    changes += 1;
    if (!model.get("can_stop") && !(changes & (changes - 1))) model.send({ here: true });
    if (stopping) model.send({ stop: true });
  };
  const stop = () => {
    stopping = true;
    tell();
  };
  const board = new Board(el.appendChild(make("div")), { stop });
  const get = (name) => model.get(name);
  const ghost = get("ghost").panels ? unpacked(get("ghost"), get("ghost_numbers")) : [];
  const on = {
    frame: () => get("frame").panels && board.show(get("frame"), get("numbers"), ghost),
    progress: () => {
      board.showProgress(get("progress"));
      if (!get("left").data) tell();
    },
    previews: () => board.previews.update(get("previews")),
    can_stop: () => (board.button.hidden = !get("can_stop")),
    left: () => (board.controls.hidden = Boolean(get("left").data)),
  };
  for (const [name, act] of Object.entries(on)) {
    model.on(`change:${name}`, act);
    act();
  }
  return () => {
    for (const [name, act] of Object.entries(on)) model.off(`change:${name}`, act);
    board.close();
  };
}

// JupyterLab forgets where the outputs of a running cell belong when its page is reloaded. The widget is restored from the kernel, so it
// puts itself back into its cell, and at the end leaves there what needs no widget. Other front ends keep their outputs themselves.
function initialize({ model }) {
  const settle = () => {
    try {
      const cells = model.widget_manager.context.model.cells;
      for (let i = 0; i < cells.length; i++) if (cells.get(i).id === model.get("cell")) settleIn(cells.get(i), model);
    } catch {
      // not JupyterLab
    }
  };
  model.on("change:left", settle);
  settle();
}

const VIEW = "application/vnd.jupyter.widget-view+json";

function settleIn(cell, model) {
  const left = model.get("left"), view = model.get("view"), ended = Boolean(left.data);
  const output = { output_type: "display_data", ...(ended ? left : { data: view, metadata: {} }) };
  const places = [...Array(cell.outputs.length).keys()];
  const place = places.find((i) => ((cell.outputs.get(i).toJSON().data || {})[VIEW] || {}).model_id === view[VIEW].model_id);
  const running = cell.executionState !== "idle"; // from this page: its messages do their work
  if (place !== undefined) {
    if (ended) cell.outputs.set(place, output);
  } else if (!running && !model.get("kept") && cell.sharedModel.getSource() === model.get("code")) {
    cell.outputs.clear();
    cell.outputs.add(output);
  }
  if (!running && !cell.trusted) cell.trusted = true; // it ran in this session, so all that it shows was made by its reader
  if (ended && !model.get("kept")) {
    model.set("kept", true); // so that outputs that are cleared stay so
    model.save_changes();
  }
}

// the page that a finished run leaves

export function leave(element, { frame, numbers, previews, ghost, ghost_numbers }) {
  const board = new Board(element.lastElementChild);
  try {
    board.controls.hidden = true;
    board.previews.update(previews);
    board.show(frame, numbers, ghost && ghost.panels ? unpacked(ghost, ghost_numbers) : []);
  } catch (error) {
    element.lastElementChild.remove(); // the picture is enough
    throw error;
  }
  element.querySelector("img").style.display = "none"; // all of it was drawn
  return board;
}

export default { initialize, render };

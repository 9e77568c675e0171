
// The timeline's page: a step of training to drag through. playback.py describes the data.
const SIGNS = { forward: "→", recompute: "↻", backward: "←", optimizer: "✱" };
const LETTERS = { resnets: "R", attentions: "A", downsamplers: "↓", upsamplers: "↑" };
const { categories: CATEGORIES, kinds: KINDS } = DATA;
const { modules: MODULES, operators: OPERATORS, cells: CELLS } = DATA.names;
const REST_MS = 400; // how long the slider rests before a screen reader is told all

let variant = DATA.variant && { ...DATA.variant };
let step = null; // what is played, from `unpack`
let now = 0; // its frame
let before = null; // peak of the step that was played before, in bytes
let playing = 0, telling = 0; // timers

// numbers: the twin of Playback; a test compares them

const blockOf = (cell) => cell.split(".").slice(0, /^[^.]+\.\d/.test(cell) ? 2 : 1).join(".");

function keyOf({ model, optimizer, checkpointing, fused }) {
  return [model, optimizer, ...(checkpointing ? ["checkpointing"] : []), ...(fused ? ["fused"] : [])].join("/");
}

/** A step with its sums: bytes by frame and category, the peak, and the most that a block of the network ever holds. */
function unpack(key) {
  const { frames, changes, tensors } = DATA.steps[key];
  const live = CATEGORIES.map(() => 0), held = new Map(), most = new Map();
  const sums = [], totals = [];
  let fullest = 0;
  for (const row of changes) {
    for (let i = 0; i < row.length; i += 2) {
      live[row[i] % CATEGORIES.length] += row[i + 1];
      const block = blockOf(CELLS[Math.floor(row[i] / CATEGORIES.length)]);
      held.set(block, (held.get(block) ?? 0) + row[i + 1]);
      most.set(block, Math.max(most.get(block) ?? 0, held.get(block)));
      if (block) fullest = Math.max(fullest, held.get(block));
    }
    sums.push([...live]);
    totals.push(live.reduce((sum, size) => sum + size));
  }
  const peak = totals.indexOf(Math.max(...totals));
  const seen = CATEGORIES.filter((_, which) => Math.max(...sums.map((row) => row[which])) > 1e-3 * totals[peak]);
  const blocks = [...most.keys()].filter((block) => most.get(block) > 1e-3 * fullest);
  return { frames, changes, tensors, sums, totals, fullest, peak, seen, blocks };
}

/** Bytes of each block by category in a frame: {block: [bytes, …]}. */
function holds(frame) {
  const held = {};
  for (const row of step.changes.slice(0, frame + 1)) {
    for (let i = 0; i < row.length; i += 2) {
      const block = blockOf(CELLS[Math.floor(row[i] / CATEGORIES.length)]);
      held[block] ??= CATEGORIES.map(() => 0);
      held[block][row[i] % CATEGORIES.length] += row[i + 1];
    }
  }
  return held;
}

/** The largest tensors of a frame, besides those that outlive the step. */
function largest(frame) {
  const alive = step.tensors.filter((row) => row[6] <= frame && frame < row[7]);
  return alive.sort((one, other) => other[0] - one[0]).slice(0, DATA.shown);
}

const bytesOf = (category) => step.sums[now][CATEGORIES.indexOf(category)];
const kindAt = (frame) => KINDS[step.frames[frame][0]];
const moduleAt = (frame) => MODULES[step.frames[frame][1]];

function cellOf(module) {
  const outer = blockOf(module);
  const words = module.slice(outer.length + 1).split(".");
  return outer.includes("_block") && /^\d+$/.test(words[1] ?? "") ? `${outer}.${words[0]}.${words[1]}` : outer;
}

function sized(bytes) {
  const [unit, scale, digits] = bytes >= GIB ? ["GiB", GIB, 2] : bytes >= 2 ** 20 ? ["MiB", 2 ** 20, 1] : ["KiB", 1024, 0];
  return `${(bytes / scale).toFixed(digits)} ${unit}`;
}

// what is drawn once for each step

/** Height of the axis: room for every variant of the model, so that one can see them differ. */
function ceiling() {
  const peaks = Object.keys(DATA.steps).filter((key) => !variant || key.startsWith(`${variant.model}/`)).map((key) => unpack(key));
  return 1.24 * Math.max(...peaks.map(({ totals, peak }) => totals[peak]));
}
const axes = {};
const axis = () => axes[variant?.model ?? ""] ??= ceiling();

const across = (frame) => 100 * frame / Math.max(1, step.frames.length - 1);
const up = (bytes) => 100 * bytes / axis();

function drawCurve() {
  const count = step.frames.length;
  const floor = Array(count).fill(0);
  const areas = CATEGORIES.map((name, which) => {
    const low = floor.map((size, frame) => `${across(frame).toFixed(2)}% ${(100 - up(size)).toFixed(2)}%`);
    for (let frame = 0; frame < count; frame++) floor[frame] += step.sums[frame][which];
    const high = floor.map((size, frame) => `${across(frame).toFixed(2)}% ${(100 - up(size)).toFixed(2)}%`);
    return element("div", { class: "area", style: `${look(name)}; clip-path: polygon(${[...low, ...high.reverse()].join(",")})` });
  });
  $("areas").replaceChildren(...areas);
  const unit = axis() > 2 * GIB ? GIB : 2 ** 20;
  const stride = [1, 2, 4, 5, 10, 20, 25, 50, 100, 200, 250, 500].find((size) => size * unit * 5 > axis()) ?? 1000;
  const ticks = [];
  for (let size = 0; size * unit < axis(); size += stride) {
    ticks.push(element("div", { class: "tick", style: `bottom: ${up(size * unit)}%` }, `${size}${size ? "" : unit === GIB ? " GiB" : " MiB"}`));
  }
  $("ticks").replaceChildren(...ticks);
  const marks = [];
  for (let frame = 0, start = 0; frame < count; frame++) {
    if (frame + 1 < count && kindAt(frame + 1) === kindAt(start)) continue;
    const left = across(Math.max(0, start - 0.5)), right = across(Math.min(count - 1, frame + 0.5));
    marks.push(element("span", { class: `mark ${kindAt(start)}`, style: `left: ${left}%; width: ${right - left}%` }));
    start = frame + 1;
  }
  $("strip").replaceChildren(...marks);
  const peak = step.totals[step.peak], place = across(step.peak);
  $("peak").style.cssText = `left: ${place}%; bottom: ${up(peak)}%; top: auto`;
  $("peak").className = place > 75 ? "late" : place < 25 ? "early" : "";
  $("peak").replaceChildren(element("span", {}, say("peak", { size: sized(peak) })), element("br"), "▼");
  $("peak").style.textAlign = place > 75 ? "right" : place < 25 ? "left" : "center";
  $("before").hidden = before === null || Math.abs(before - peak) < 0.002 * peak;
  $("before").className = place > 50 ? "left" : "";
  $("before").style.bottom = `${up(before ?? 0)}%`;
  $("before").replaceChildren(element("span", {}, say("before", { size: sized(before ?? 0) })));
  $("peak-title").textContent = say(moduleAt(step.peak) ? "title.in" : "title.at", { size: sized(peak), kind: say(`kind.${kindAt(step.peak)}`), block: blockOf(cellOf(moduleAt(step.peak))) });
  $("time").max = count - 1;
  const used = KINDS.filter((kind) => step.frames.some(([number]) => KINDS[number] === kind));
  $("kinds").replaceChildren(...used.map((kind) => element("li", { class: kind }, element("span", { class: "mark" }), element("span", { class: "sign" }, SIGNS[kind]), ` ${say(`kind.${kind}`)}`)));
}

/** Draw the network: a U-Net as a U, anything else as a chain. */
function drawNetwork() {
  const cells = new Map(step.blocks.map((block) => [block, []]));
  for (const [, module] of step.frames) { // in the order of forward
    const cell = cellOf(MODULES[module]), block = blockOf(cell);
    if (cell !== block && !cells.get(block)?.includes(cell)) cells.get(block)?.push(cell);
  }
  const levels = step.blocks.filter((block) => block.startsWith("down_blocks.")).length;
  const isUnet = levels && step.blocks.includes("mid_block");
  const place = (block) => {
    const [stem, number] = block.split(".");
    if (!isUnet) return "";
    if (stem === "down_blocks") return `down ${+number + 2} / 1`;
    if (stem === "up_blocks") return `up ${levels - number + 1} / 2`;
    if (stem === "mid_block") return `middle ${levels + 2} / 1`;
    if (["conv_in", "time_embedding"].includes(stem)) return "in 1 / 1";
    return stem.startsWith("conv_") ? "out 1 / 2" : `below ${levels + 3} / 1`;
  };
  const places = new Map();
  for (const block of step.blocks) {
    const where = place(block) || block;
    if (!places.has(where)) places.set(where, []);
    places.get(where).push(block);
  }
  $("blocks").className = isUnet ? "unet" : "chain";
  const drawn = [...places].map(([where, blocks]) => {
    const [, kind, area] = where.match(/^(down|up|middle|in|out|below) (.*)$/) ?? [];
    const boxes = blocks.map((block) => element("div", { class: "block", "data-block": block },
      element("p", {}, element("span", { class: "name" }, block || say("step")), element("span", { class: "size" })),
      element("div", { class: "cells" }, ...cells.get(block).map((cell) => element("span", { class: "cell", "data-cell": cell }, letter(cell)))),
      element("div", { class: "holds" })));
    return element("div", { class: `place ${kind ?? ""}`, style: area ? `grid-area: ${area}${/middle|below/.test(kind) ? " / auto / 3" : ""}` : undefined }, ...boxes);
  });
  $("blocks").replaceChildren(...drawn);
  for (const row of document.querySelectorAll(".cells:empty")) row.remove();
  $("letters").textContent = say(isUnet ? "letters" : "chain", { size: sized(step.fullest) });
}

function letter(cell) {
  const [kind] = cell.slice(blockOf(cell).length + 1).split(".");
  return LETTERS[kind] ?? kind[0].toUpperCase();
}

// what is drawn for each frame

function draw() {
  const kind = kindAt(now), module = moduleAt(now), cell = cellOf(module);
  $("head").style.left = `${across(now)}%`;
  $("time").value = now;
  const held = holds(now);
  for (const box of document.querySelectorAll(".block")) {
    const block = box.dataset.block, lit = block === blockOf(cell);
    const sizes = held[block] ?? CATEGORIES.map(() => 0);
    const total = sizes.reduce((sum, size) => sum + size);
    box.className = lit ? `block lit ${kind}` : "block";
    const name = element("span", { class: "name" }, block || say("step"));
    if (lit) name.prepend(element("span", { class: "sign" }, `${SIGNS[kind]} `));
    box.querySelector("p").replaceChildren(name, element("span", { class: "size" }, total ? sized(total) : ""));
    const scale = block ? step.fullest : Math.max(step.fullest, total);
    let left = 0;
    box.querySelector(".holds").replaceChildren(...CATEGORIES.flatMap((category, which) => {
      if (sizes[which] <= 0) return [];
      const part = element("span", { class: "part", style: `${look(category)}; left: ${100 * left / scale}%; width: ${100 * sizes[which] / scale}%` });
      left += sizes[which];
      return [part];
    }));
    for (const one of box.querySelectorAll(".cell")) one.className = one.dataset.cell === cell ? "cell lit" : "cell";
  }
  const { work, where } = words();
  $("work").replaceChildren(element("span", { class: `sign ${kind}` }, `${SIGNS[kind]} `), work);
  $("where").textContent = where;
  $("time").setAttribute("aria-valuetext", `${work}. ${sized(step.totals[now])}`);
  const shown = step.seen.map((name) => [name, bytesOf(name)]);
  $("categories").replaceChildren(...shown.map(([name, size]) => element("li", {}, element("i", { class: "look", style: look(name) }), `${say(`category.${name}`)} ${sized(size)}`)));
  const rows = largest(now);
  $("tensors-title").textContent = say(rows.length ? "tensors" : "tensors.none");
  $("tensors").replaceChildren(...rows.map((row) => element("li", { class: row[6] === now && now ? "new" : undefined }, element("b", {}, sized(row[0])), element("span", {},
    element("i", { class: "look", style: look(CATEGORIES[row[1]]) }), describe(row), element("small", {}, owner(row))))));
  clearTimeout(telling);
  telling = setTimeout(tell, REST_MS);
}

/** What happens in the frame, and what is alive: for the eye and for a screen reader. */
function words() {
  const kind = kindAt(now), module = moduleAt(now);
  const text = say(module ? "work.in" : "work", { kind: say(`kind.${kind}`), block: cellOf(module) });
  const work = text[0].toUpperCase() + text.slice(1);
  const operator = OPERATORS[step.frames[now][2]];
  const total = step.totals[now], peak = step.totals[step.peak];
  const alive = now === step.peak ? say("alive.peak", { size: sized(total) }) : say("alive", { size: sized(total), rest: sized(peak - total) });
  const last = operator ? say(module && module !== cellOf(module) ? "last.in" : "last", { operator, module }) : "";
  return { work, where: [alive, last].filter(Boolean).join(" ") };
}

const describe = (row) => `${say(`category.${CATEGORIES[row[1]]}`)} (${row[4].join(", ")}) ${row[5]}`;
const owner = (row) => MODULES[row[2]] ? ` ${MODULES[row[2]]}` : "";

/** Tell a screen reader the frame, once the slider rests. */
function tell() {
  const { work, where } = words();
  const parts = step.seen.map((name) => [name, bytesOf(name)]);
  const first = largest(now)[0];
  const most = first ? say("tell.largest", { size: sized(first[0]), what: describe(first) + owner(first) }) : "";
  $("live").textContent = [`${work}.`, where, `${parts.map(([name, size]) => `${say(`category.${name}`)} ${sized(size)}`).join(", ")}.`, most].join(" ");
}

// moves

function go(frame) {
  now = Math.max(0, Math.min(step.frames.length - 1, Math.round(frame)));
  draw();
}

/** The next frame, in a direction, at which another block or another kind of work begins. */
function nextBlock(direction) {
  const place = (frame) => `${kindAt(frame)} ${blockOf(cellOf(moduleAt(frame)))}`;
  let frame = now;
  while (step.frames[frame + direction] && place(frame + direction) === place(now)) frame += direction;
  return frame + direction;
}

function stop() {
  clearInterval(playing);
  playing = 0;
  $("play").textContent = say("play");
}

function play() {
  if (playing) return stop();
  if (now === step.frames.length - 1) go(0);
  $("play").textContent = say("pause");
  playing = setInterval(() => {
    go(now + Math.max(1, step.frames.length / 600));
    if (now === step.frames.length - 1) stop();
  }, 33);
}

/** Play the step that is chosen; from the peak of one to the peak of the other, or as far along. */
function choose(next) {
  const share = step ? now / (step.frames.length - 1) : 0;
  const stay = step && now !== step.peak;
  before = step && variant.model === next?.model ? step.totals[step.peak] : null;
  variant = next;
  step = unpack(variant ? keyOf(variant) : "");
  now = stay ? Math.round(share * (step.frames.length - 1)) : step.peak;
}

function drawControls() {
  if (!variant) return;
  const label = (field, input, words) => element("label", { class: input.type === "checkbox" ? "switch" : undefined, for: input.id }, ...(input.type === "checkbox" ? [input, words] : [words, input]));
  $("choices").replaceChildren(...Object.entries(DATA.options).map(([field, options]) => {
    const id = `choice-${field}`;
    if (options.includes(true)) {
      const box = element("input", { type: "checkbox", id });
      box.checked = variant[field];
      return label(field, box, element("span", {}, say(`field.${field}`)));
    }
    const select = element("select", { id }, ...options.map((option) => element("option", { value: option }, field === "model" ? say(`step.${option}`, { count: DATA.pictures[option] }) : option)));
    select.value = variant[field];
    return label(field, select, element("span", {}, say(`field.${field}`)));
  }));
}

function drawAll() {
  drawCurve();
  drawNetwork();
  draw();
}

$("choices").addEventListener("input", ({ target }) => {
  const field = target.id.replace("choice-", "");
  stop();
  choose({ ...variant, [field]: target.type === "checkbox" ? target.checked : target.value });
  drawAll();
});
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("time").addEventListener("input", () => { stop(); go(+$("time").value); });
$("time").addEventListener("keydown", (event) => {
  const moves = { PageUp: () => go(nextBlock(1)), PageDown: () => go(nextBlock(-1)), p: () => go(step.peak), " ": play };
  if (!(event.key in moves) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  if (event.key !== " ") stop();
  moves[event.key]();
});
$("back").addEventListener("click", () => { stop(); go(nextBlock(-1)); });
$("on").addEventListener("click", () => { stop(); go(nextBlock(1)); });
$("to-peak").addEventListener("click", () => { stop(); go(step.peak); });
$("play").addEventListener("click", play);
const drag = (event) => {
  const { left, width } = $("plot").getBoundingClientRect();
  stop();
  go((event.clientX - left) / width * (step.frames.length - 1));
};
$("plot").addEventListener("pointerdown", (event) => { $("plot").setPointerCapture(event.pointerId); drag(event); });
$("plot").addEventListener("pointermove", (event) => { if ($("plot").hasPointerCapture(event.pointerId)) drag(event); });

choose(variant);
speak(() => {
  $("time").setAttribute("aria-label", say("time"));
  for (const id of ["back", "on", "to-peak"]) $(id).textContent = say(`button.${id}`);
  $("source").textContent = say(variant ? "source" : "source.own", { version: DATA.version });
  stop();
  drawControls();
  drawAll();
});
settle();

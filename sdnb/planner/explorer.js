
// The explorer's page.
const SIGNS = { fits: "✓", tight: "!", none: "✗" };
const GROUPS = {
  what: ["card", "model", "method", "rank", "resolution", "batch_size"],
  how: ["trainer", "optimizer", "precision", "attention", "recompute"],
};
const FIELDS = [...GROUPS.what, ...GROUPS.how];
const SLIDERS = ["rank", "resolution", "batch_size"];
const ON_WINDOWS = navigator.userAgent.includes("Windows"); // where a command is one line

let choice = { ...DATA.choice };

// words

/** Name of an option. One without words of its own is called as the trainers call it. */
function named(field, option) {
  if (field === "card") return card(option).name;
  if (field === "resolution") return `${option}×${option}`;
  const key = `${field}.${option}`;
  return key in DATA.words ? say(key) : String(option);
}

// numbers: the twins of parts.estimate, Card.verdict and train_command; a test compares them

/** Memory of a choice in bytes: {peak, reserved, categories}, or {refusal}. parts.py describes the data. */
function estimate(from) {
  const { features, categories, workspaces, refusals, steps, optimizers } = DATA.parts;
  const refusal = refusals[optimizerKey(from)];
  if (refusal) return { refusal };
  const area = (from.resolution / DATA.cell) ** 2;
  const values = features.map(([b, a, r, most = Infinity, least = 0]) => {
    const product = from.batch_size ** b * area ** a * from.rank ** r;
    return product >= least ? Math.min(product, most) : 0;
  });
  const step = steps[stepKey(from)][from.batch_size > 1 ? 1 : 0];
  let rows = step.rows;
  if (from.optimizer !== DATA.fused) {
    const { state, calls } = optimizers[optimizerKey(from)];
    rows = [...rows.map((row) => [...row, ...state]), ...calls.map((row) => [...step.mark, ...row])];
  }
  let highest = [], most = -1;
  for (const row of rows) {
    const sizes = categories.map(() => 0);
    for (let i = 0; i < row.length; i += 2) sizes[Math.floor(row[i] / values.length)] += row[i + 1] * values[row[i] % values.length];
    const total = sizes.reduce((sum, size) => sum + size);
    if (total > most) [highest, most] = [sizes, total];
  }
  const byCategory = Object.fromEntries(categories.map((name, i) => [name, Math.round(highest[i])]));
  byCategory.workspaces = workspaces;
  const peak = Object.values(byCategory).reduce((sum, size) => sum + size);
  return { peak, reserved: Math.round(peak * reservedRatio(from, from.batch_size * area)), categories: byCategory };
}

function optimizerKey({ model, method, trainer, precision, optimizer }) {
  return [model, method, trainer, precision, optimizer].join("/");
}

function stepKey({ model, method, trainer, precision, attention, recompute, optimizer }) {
  const words = [model, method, trainer, precision, trainer === "sd-scripts" ? attention : "sdpa", recompute ? "recompute" : "keep"];
  return [...words, ...(optimizer === DATA.fused ? ["fused"] : [])].join("/");
}

function reservedRatio(from, size) {
  const { stops } = DATA.parts;
  const ratios = DATA.parts.ratios[stepKey(from) + (from.method === "lora" ? "" : `/${from.optimizer}`)];
  const after = Math.min(stops.filter((stop) => stop <= size).length, stops.length - 1);
  const share = Math.log(size / stops[after - 1]) / Math.log(stops[after] / stops[after - 1]);
  return 1 + (ratios[after - 1] * (1 - share) + ratios[after] * share) / 1000;
}

const card = (key) => DATA.cards.find((one) => one.key === key);

function verdict(memory, usable) {
  if (memory.peak > usable) return "none";
  return (1 + DATA.margin) * memory.reserved <= usable ? "fits" : "tight";
}

/** Command of a choice, on lines as train_command's. A flag that repeats the default of 1 is left out where the trainer's command does. */
function command(from) {
  const place = DATA.kinds.reduce((sum, kind) => sum * DATA.options[kind].length + DATA.options[kind].indexOf(from[kind]), 0);
  const lines = [];
  for (const flag of DATA.commands[place].map((number) => DATA.flags[number])) {
    const name = flag.match(/\{(\w+)\}/)?.[1];
    if (from[name] === 1 && DATA.omitted[from.trainer].includes(flag)) continue;
    const word = name ? flag.replace(`{${name}}`, from[name]) : flag;
    if (!lines.length) lines.push(word);
    else if (ON_WINDOWS || `${lines.at(-1)} ${word}`.length <= DATA.width - 2) lines.push(`${lines.pop()} ${word}`);
    else lines.push(`  ${word}`);
  }
  return lines.join(" \\\n");
}

/** Whether a setting does anything. Only sd-scripts computes attention in another way without a flag. */
function applies(field, from) {
  if (field === "rank") return from.method === "lora";
  return field !== "attention" || from.trainer === "sd-scripts";
}

/** Whether a card has to emulate a precision. */
const emulates = (one, precision) => !one.bf16 && precision.includes("bf16");

/** What is to be said against a choice, as names of words. */
function warnings(from) {
  const loses = from.precision === "full bf16" && !(from.trainer === "sdnb" && from.optimizer.startsWith("Adafactor"));
  return [...(emulates(card(from.card), from.precision) ? ["warning.slow"] : []), ...(loses ? ["warning.rounded"] : [])];
}

// changes: of one setting, or of two where one is not enough

function different(one, other) {
  return FIELDS.filter((field) => one[field] !== other[field]);
}

/** Choices that differ in one of these fields, of each the nearest first: of numbers the next smaller ones. */
function neighbours(from, fields) {
  return fields.filter((field) => applies(field, from)).flatMap((field) => {
    const options = DATA.options[field].filter((option) => SLIDERS.includes(field) ? option < from[field] : option !== from[field]);
    return (SLIDERS.includes(field) ? options.reverse() : options).map((option) => ({ ...from, [field]: option }));
  });
}

/** The changes with which a run fits, without new warnings: the mildest setting first, and of each the nearest value. */
function savings(from) {
  const { usable } = card(from.card);
  const best = (others) => {
    const byKind = new Map();
    for (const other of others) {
      const memory = estimate(other);
      const kind = different(from, other).join();
      if (byKind.has(kind) || memory.refusal || warnings(other).length > warnings(from).length) continue;
      if (verdict(memory, usable) === "fits") byKind.set(kind, { other, memory });
    }
    return [...byKind.values()].slice(0, 3);
  };
  const one = best(neighbours(from, DATA.levers));
  const two = () => best(DATA.levers.flatMap((lever, place) =>
    neighbours(from, [lever]).flatMap((other) => neighbours(other, DATA.levers.slice(place + 1)))));
  const lora = { ...from, method: "lora" }; // which trains something else
  const last = from.method === "full" ? [...best([lora]), ...best(neighbours(lora, DATA.levers))].slice(0, 1) : [];
  return [...(one.length ? one : two()), ...last];
}

/** The nearest combinations that exist: one for each setting that can be changed, its usual value where that will do. */
function existing(from) {
  const found = DATA.nearest.map((field) => neighbours(from, [field])
    .sort((one, other) => (other[field] === DATA.usual[field]) - (one[field] === DATA.usual[field]))
    .map((other) => ({ other, memory: estimate(other) }))
    .find(({ memory }) => !memory.refusal));
  return found.filter(Boolean).slice(0, 3);
}

// controls

function control(field) {
  const id = `choice-${field}`;
  const label = element("span", {}, say(`field.${field}`));
  if (field === "recompute") {
    const box = element("input", { type: "checkbox", id });
    box.checked = choice[field];
    return element("label", { class: "switch", for: id }, box, label);
  }
  if (SLIDERS.includes(field)) {
    const stops = DATA.options[field];
    const slider = element("input", { type: "range", id, min: 0, max: stops.length - 1, step: 1 });
    slider.value = stops.indexOf(choice[field]);
    label.append(element("b", { "aria-hidden": "true" })); // a screen reader reads aria-valuetext
    return element("label", { for: id }, label, slider);
  }
  const select = element("select", { id });
  const options = field === "card" ? DATA.cards.map((one) => one.key) : DATA.options[field];
  for (const option of options) {
    const words = field === "card" ? say("card.option", { name: card(option).name, size: gib(card(option).usable) }) : named(field, option);
    select.append(element("option", { value: option }, words));
  }
  select.value = choice[field];
  return element("label", { for: id }, label, select);
}

function drawControls() {
  $("choices").replaceChildren(...Object.entries(GROUPS).map(([group, fields]) =>
    element("fieldset", {}, element("legend", {}, say(`group.${group}`)), ...fields.map(control))));
  $("copy").textContent = say("copy");
}

/** Bring the controls in line with the choice. */
function showChoice() {
  for (const field of FIELDS) {
    const input = $(`choice-${field}`);
    if (field === "recompute") input.checked = choice[field];
    else if (SLIDERS.includes(field)) {
      input.value = DATA.options[field].indexOf(choice[field]);
      input.setAttribute("aria-valuetext", named(field, choice[field]));
      input.closest("label").querySelector("b").textContent = named(field, choice[field]);
    } else input.value = choice[field];
  }
  for (const field of FIELDS) $(`choice-${field}`).closest("label").hidden = !applies(field, choice);
}

function read(input) {
  const field = input.id.replace("choice-", "");
  const value = field === "recompute" ? input.checked : SLIDERS.includes(field) ? DATA.options[field][input.value] : input.value;
  const side = DATA.native[choice.model];
  const next = { ...choice, [field]: value };
  if (field === "model" && choice.resolution === side) next.resolution = DATA.native[value]; // who has not moved it wants the model's own
  move(next);
}

function move(next) {
  choice = next;
  draw();
}

// the answer

function draw() {
  showChoice();
  const memory = estimate(choice);
  for (const id of ["memory", "run-it", "copy"]) $(id).hidden = Boolean(memory.refusal);
  if (memory.refusal) drawRefusal(memory.refusal);
  else drawMemory(memory);
  if (location.protocol !== "about:") history.replaceState(null, "", "#" + new URLSearchParams({ ...choice, language })); // not in a notebook
}

function drawVerdict(state, head, ...lines) {
  const rest = lines.map((line) => element("span", {}, `${line} `));
  $("verdict").className = state;
  $("status").replaceChildren(element("strong", {}, `${SIGNS[state]} ${head}`), ...rest);
}

function drawChanges(title, rows) {
  $("changes").hidden = !title;
  const buttons = rows.map(({ other, memory }) => {
    const fields = different(choice, other);
    const words = fields.map((field) => say(`change.${field}`, { value: named(field, other[field]) }));
    const costs = fields.map((field) => say(`cost.${field}`));
    const state = say(`word.${verdict(memory, card(choice.card).usable)}`);
    const then = say("change.then", { reserved: gib(memory.reserved), state, costs: costs.join(say("and")) });
    return element("li", {}, element("button", { type: "button", click: () => { move(other); $("status").focus(); } },
      element("strong", {}, words.join(say("and"))), element("span", {}, then)));
  });
  $("changes").replaceChildren(element("h2", { id: "changes-title" }, title), ...(rows.length ? [element("ul", {}, ...buttons)] : []));
}

function drawRefusal(refusal) {
  drawVerdict("none", say("refused"), refusal[language]);
  drawChanges(say("refused.nearest"), existing(choice));
}

function drawMemory(memory) {
  const mine = card(choice.card);
  const state = verdict(memory, mine.usable);
  const values = { card: mine.name, reserved: gib(memory.reserved), usable: gib(mine.usable), rest: gib(Math.abs(mine.usable - memory.reserved)) };
  const notes = [...warnings(choice), ...(mine.needs ? ["needs"] : [])].map((key) => say(key, { ...values, needs: mine.needs }));
  const batches = DATA.options.batch_size.filter((size) => verdict(estimate({ ...choice, batch_size: size }), mine.usable) === "fits");
  const more = state === "fits" && batches.at(-1) > choice.batch_size ? [say("more", { most: batches.at(-1) })] : [];
  const head = say(`head.${state}`, values) + (emulates(mine, choice.precision) ? say("head.slow") : "");
  drawVerdict(state, head, say(`verdict.${state}`, values), ...more, ...notes);
  const rows = state === "fits" ? [] : savings(choice);
  drawChanges(state === "fits" ? "" : say(rows.length ? "savings" : "savings.none"), rows);
  drawCards(memory);
  drawCommand(state);
}

function drawCards(memory) {
  const mine = card(choice.card);
  const needed = 1.05 * Math.max(memory.reserved, mine.usable) / GIB;
  const axis = (DATA.scales.find((size) => size >= needed) ?? 1000 * Math.ceil(needed / 1000)) * GIB;
  const percent = (bytes) => `${(100 * bytes / axis).toFixed(2)}%`;
  $("memory").style.setProperty("--reserved", percent(memory.reserved));

  const shown = Object.entries(memory.categories).filter(([, bytes]) => bytes > 0);
  $("categories").replaceChildren(...shown.map(([name, bytes]) =>
    element("li", {}, element("i", { class: "look", style: look(name) }), `${say(`category.${name}`)} ${gib(bytes)}`)));
  const ticks = [0, 1, 2, 3, 4].map((quarter) => {
    const at = axis * quarter / 4;
    return element("span", { class: quarter === 4 ? "tick last" : "tick", style: `left: ${25 * quarter}%` }, `${at / GIB}${quarter === 4 ? " GiB" : ""}`);
  });
  let left = 0;
  const parts = shown.map(([name, bytes]) => {
    const part = element("span", { class: "part", style: `${look(name)}; left: ${percent(left)}; width: ${percent(bytes)}` });
    left += bytes;
    return part;
  });
  const whisker = element("span", { class: "whisker", style: `left: ${percent(left)}; width: ${percent(Math.max(0, memory.reserved - left))}` });
  $("run").replaceChildren(element("span", { class: "name" }, say("run")), element("span", { class: "plot" }, ...ticks, ...parts, whisker),
    element("span", { class: "rest" }, say("run.sizes", { peak: gib(memory.peak), reserved: gib(memory.reserved) })));

  const states = DATA.cards.map((one) => verdict(memory, one.usable));
  const smallest = DATA.cards[states.indexOf("fits")];
  const fitting = states.filter((state) => state === "fits").length;
  $("memory-title").textContent = smallest
    ? say("cards", { fitting, all: states.length, smallest: smallest.name })
    : say("cards.none", { all: states.length });
  $("cards").replaceChildren(...DATA.cards.map((one, place) => {
    const state = states[place];
    const rest = one.usable - memory.reserved;
    const room = element("span", { class: one.usable > axis ? "room beyond" : "room", style: `width: ${percent(Math.min(one.usable, axis))}` });
    const row = element("li", { class: `row ${state}`, "aria-current": one === mine ? "true" : undefined, click: () => move({ ...choice, card: one.key }) },
      element("span", { class: "name" }, `${one.name} `, element("span", { class: "size" }, gib(one.usable))),
      element("span", { class: "plot", "aria-hidden": "true" }, room),
      element("span", {}, element("span", { class: "word" }, `${SIGNS[state]} ${say(`word.${state}`)}`),
        element("span", { class: "rest" }, ` ${say(rest < 0 ? "missing" : "spare", { size: gib(Math.abs(rest)) })}${emulates(one, choice.precision) ? say("row.slow") : ""}`)));
    return row;
  }));
}

function drawCommand(state) {
  $("run-it-title").textContent = say(state === "none" ? "command.anyway" : "command", { trainer: named("trainer", choice.trainer) });
  const text = command(choice);
  for (const id of ["run-it", "copy"]) $(id).hidden = !text;
  const words = text.split(/( (?!\\)|\n)/).map((word) => word.trim() ? element("span", {}, word) : word); // a narrow line ends between flags
  $("command").replaceChildren(...words);
  $("places").textContent = say(`places.${choice.trainer}`);
}

async function copy() {
  const text = $("command").textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // an older browser, or a page that may not
    getSelection().selectAllChildren($("command"));
    document.execCommand("copy");
  }
  $("copy").textContent = say("copied");
  setTimeout(() => { $("copy").textContent = say("copy"); }, 2000);
}

// start

/** What the address says after #, as far as there is such an option. */
function readAddress() {
  const asked = new URLSearchParams(location.hash.slice(1));
  for (const field of FIELDS) {
    const options = field === "card" ? DATA.cards.map((one) => one.key) : DATA.options[field];
    const option = options.find((known) => String(known) === asked.get(field));
    if (option !== undefined) choice = { ...choice, [field]: option };
  }
  if (asked.get("language") in DATA.words.language) language = asked.get("language");
}

readAddress();
$("choices").addEventListener("input", (event) => read(event.target));
$("choices").addEventListener("submit", (event) => event.preventDefault());
$("copy").addEventListener("click", copy);
speak(() => { drawControls(); draw(); });
settle();

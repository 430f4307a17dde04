// The trace viewer of notebooks (anywidget) and of the page that `html.to_html` writes.
//
// Python works out what there is to see (`prepare.py`); this file only draws it. Whatever a model
// wrote becomes a text node: no markup is ever read from a string, and nothing is fetched.
//
// The model holds all state: a control sets a value, the value's change redraws. So a click, a
// key, a second view and Python all take the same road.

const MAX_COLUMNS = 4;
const MAX_ZOOM = 8;
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 3", "9 3 2 3"]; // a box's line: told apart in grey as well
const SIGNS = { 1: "true", 0: "false", 2: "open" }; // a step's truth; -1 lies between steps
const KINDS = { aha: "mark", answer: "strong" }; // everything else is a span
const SHADES = { logp: ["surprise", 0, -5], entropy: ["entropy", 1, 3] }; // label, place, full
const STEPS = {
  "": ["any steps", () => true],
  false: ["a false step", (side) => side.steps?.[1] > 0],
  true: ["checked, all true", (side) => side.steps?.[0] > 0 && side.steps[1] === 0],
  lucky: ["right answer, false step", (side) => side.correct && side.steps?.[1] > 0],
  unchecked: ["nothing checkable", (side) => side.steps?.[0] === 0 && side.steps[1] === 0],
};

// --- small helpers

/** Make an element. Strings among the children become text nodes; `on...` are listeners. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "rect"].includes(tag);
  const node = svg ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === undefined || value === false) continue;
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (key.startsWith("--")) node.style.setProperty(key, value);
    else node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

const hidden = (text) => h("span", { class: "sr" }, text);
const own = (table, key) => (Object.hasOwn(table, key) ? table[key] : undefined);
const sideOf = (example, name) => example.sides.find((one) => one.name === name);
const judged = (side) => (side.truthFrom === "judge" ? ", a judge says" : ""); // or the scene
const swatch = (look) => h("i", { class: "swatch", "--c": look.color });
const round = (value, digits = 3) => String(Number(value.toFixed(digits)));
const signed = (value) => (value > 0 ? "+" : "") + round(value, 2);
const share = (value) => Math.min(1, Math.max(0, value));
const within = (value, low, high) =>
  typeof value === "number" && value >= (low ?? -Infinity) && value <= (high ?? Infinity);

function select(options, change) {
  const made = options.map(([key, text]) => h("option", { value: key }, text));
  return h("select", { onchange: (event) => change(event.target.value) }, made);
}

// --- filters

function passes(example, wanted, haystack) {
  if (wanted.source && example.source !== wanted.source) return false;
  if (wanted.wrong && sideOf(example, wanted.wrong)?.correct !== false) return false;
  if (wanted.right && sideOf(example, wanted.right)?.correct !== true) return false;
  const known = (...keys) => keys.some((key) => typeof wanted[key] === "number");
  const steps = own(STEPS, wanted.steps) ?? STEPS[""];
  const fits = (one) =>
    (!wanted.of || one.name === wanted.of) &&
    (!known("low", "high") || within(one.reward, wanted.low, wanted.high)) &&
    (!known("shortest", "longest") || within(one.length, wanted.shortest, wanted.longest)) &&
    steps[1](one);
  const asked = wanted.of || wanted.steps || known("low", "high", "shortest", "longest");
  if (asked && !example.sides.some(fits)) return false;
  return !wanted.search || haystack(example).includes(String(wanted.search).toLowerCase());
}

function searchable(example) {
  const spell = (run) => (typeof run === "string" ? run : run[1]);
  const said = example.sides.flatMap((side) =>
    [...side.body.flatMap(([, runs]) => runs.map(spell)), "\n"]);
  const head = [example.id, example.source, example.question, example.gold].join("\n");
  return `${head}\n${said.join("")}`.toLowerCase();
}

// --- one trace

function drawRun(run, shade) {
  if (typeof run === "string") return document.createTextNode(run);
  const [kind, text, ...shades] = run;
  const [label, at, full] = SHADES[shade] ?? [];
  const value = shades[at];
  const told = label && typeof value === "number";
  return h(
    KINDS[kind] ?? "span",
    {
      class: told ? `${kind} shade` : kind,
      "--shade": told ? `${Math.round(80 * share(value / full))}%` : undefined,
      title: told ? (shade === "logp" ? `log p ${value}` : `entropy ${value}`) : undefined,
    },
    text,
  );
}

function drawBody(side, shade) {
  const parts = side.body.map(([truth, runs]) => {
    const drawn = runs.map((run) => drawRun(run, shade));
    if (!SIGNS[truth]) return drawn;
    const spoken = truth === 2 ? null : hidden(`${SIGNS[truth]} step${judged(side)}: `);
    return h("span", { class: `step ${SIGNS[truth]} ${side.truthFrom}` }, spoken, drawn);
  });
  if (!side.body.length) parts.push(h("em", {}, "(empty trace)"));
  if (side.more > 0) parts.push(h("em", {}, ` (${side.more.toLocaleString()} more characters)`));
  return h("div", { class: "body", tabindex: 0, role: "group", dir: "auto",
    "aria-label": `trace of ${side.name}` }, parts.flat());
}

function drawFacts(side, unit) {
  const facts = [];
  const tell = (text, title) => facts.push(h("li", { title }, text));
  if (side.advantage !== undefined) tell(`advantage ${signed(side.advantage)}`);
  if (side.length !== undefined) tell(`${round(side.length)} ${unit}`);
  if (side.clipped) tell("clipped", "it ran into the length limit and never ended");
  if (side.mean_logp !== undefined) tell(`mean log p ${round(side.mean_logp, 2)}`);
  if (side.entropy !== undefined) tell(`entropy ${round(side.entropy, 2)}`);
  if (side.iou !== undefined) tell(`IoU ${round(side.iou)}`);
  if (side.steps) {
    const first = side.firstFalse ? ` (first: step ${side.firstFalse})` : "";
    tell(`steps${judged(side)}: ${side.steps[0]} true, ${side.steps[1]} false${first}, ` +
      `${side.steps[2]} open`, judged(side) ? "open: the judge does not say" :
      "open: the sentence states no fact that the grammar knows");
  } else tell("steps not checked: no scene is known");
  if (side.shadeProblem) tell(side.shadeProblem);
  return h("ul", { class: "facts" }, facts);
}

function drawReward(side) {
  const rows = [...side.parts];
  if (!rows.length && side.reason) rows.push(["reward", side.reward ?? null, side.reason]);
  return h("div", { class: "parts" }, rows.flatMap(([name, value, reason]) => [
    h("span", {}, name),
    h("span", { class: "bar", "--v": share(value ?? 0), "aria-hidden": "true" }),
    h("b", {}, value === null ? "not scored" : round(value)),
    h("span", { class: "reason" }, reason),
  ]));
}

/** Draw the rollouts of one prompt as small bars; a click shows what one says. */
function drawGroup(group) {
  if (!group.length) return null;
  const said = h("div", { class: "said", hidden: true, tabindex: 0, dir: "auto", role: "group",
    "aria-label": "what a rollout says" });
  const bars = group.map((one, number) => {
    const reward = one.reward ?? null;
    const label = `rollout ${number + 1}: ` +
      (reward === null ? "not scored" : `reward ${round(reward)}`) +
      (one.advantage === null ? "" : `, advantage ${signed(one.advantage)}`) +
      (one.tokens === null ? "" : `, ${one.tokens} tokens`);
    const show = () => {
      const close = bar.getAttribute("aria-pressed") === "true";
      bars.forEach((other) => other.setAttribute("aria-pressed", String(!close && other === bar)));
      said.hidden = close;
      const more = one.more ? ` (${one.more.toLocaleString()} more characters)` : "";
      said.replaceChildren(h("b", {}, label), h("p", {}, (one.text || "(empty)") + more));
    };
    const bar = h("button", { type: "button", class: reward === null ? "none" : "", title: label,
      "aria-label": label, "aria-pressed": "false", "--v": share(reward ?? 0), onclick: show },
      h("i"), h("small", {}, one.advantage === null ? "–" : signed(one.advantage)));
    return bar;
  });
  return h("div", { class: "group" },
    h("div", {}, `group of ${group.length}: reward as bar, advantage below`),
    h("div", { class: "bars" }, bars), said);
}

function drawColumn(look, side, shade, unit) {
  const label = h("span", {}, swatch(look), look.label);
  if (!side) {
    return h("section", { class: "column", "aria-label": look.label },
      h("header", {}, label), h("em", {}, "no trace of this model"));
  }
  const verdict = { true: "✓ right", false: "✗ wrong" }[side.correct] ?? "not scored";
  const reward = side.reward === undefined ? "" : ` · reward ${round(side.reward)}`;
  const answer = side.answer === undefined
    ? h("em", {}, `none (${side.problem})`)
    : h("strong", { class: "answer", dir: "auto" }, side.answer);
  return h("section", { class: "column", "aria-label": look.label },
    h("header", {}, label, h("span", { class: "verdict" }, verdict + reward)),
    h("div", { class: "gives" }, "answer: ", answer),
    drawBody(side, shade), drawReward(side), drawFacts(side, unit), drawGroup(side.group));
}

// --- the picture

/** Draw boxes of fractions over the picture, the later ones thinner: where they agree, all show. */
function drawBoxes(example, looks) {
  const found = looks.map((look, number) => {
    const side = sideOf(example, look.name);
    return { box: side?.box, label: `${look.label} IoU ${round(side?.iou ?? 0)}`, color: look.color,
      dash: DASHES[number] };
  });
  const boxes = [{ box: example.box, label: "gold", color: "#000", dash: "", wide: true }, ...found]
    .filter((one) => one.box);
  const rim = { box: example.box, color: "#fff", dash: "" }; // sets the rest off the picture
  const rectangles = [rim, ...boxes].filter((one) => one.box).map((one, number, all) => {
    const [x, y, right, bottom] = one.box;
    return h("rect", { x, y, width: right - x, height: bottom - y, fill: "none",
      stroke: one.color, "stroke-dasharray": one.dash, "vector-effect": "non-scaling-stroke",
      "stroke-width": 1 + 1.5 * (all.length - number) });
  });
  const legend = boxes.map(({ label, color, dash, wide }) =>
    h("li", {}, h("svg", { class: "line", viewBox: "0 0 24 8", "aria-hidden": "true" },
      h("rect", { x: -9, y: 4, width: 40, height: 40, fill: "none", stroke: color,
        "stroke-width": wide ? 4 : 2.5, "stroke-dasharray": dash })), label));
  return [
    h("svg", { class: "boxes", viewBox: "0 0 1 1", preserveAspectRatio: "none",
      "aria-hidden": "true" }, rectangles),
    h("ul", { class: "legend", "aria-label": "boxes" }, legend),
  ];
}

// --- the whole

export function render({ model, el, signal }) {
  const examples = model.get("examples");
  const byId = new Map(examples.map((example) => [example.id, example]));
  const unit = model.get("unit");
  const names = model.get("names");
  const texts = new Map(); // what the search reads, made when it is first used
  const tiles = new Map(); // of what is shown
  const made = new Map(); // of all that was shown since the columns changed
  const controls = {}; // of the filters, by key
  let [zoom, shade] = [1, ""];

  const put = (key, value) => {
    model.set(key, value);
    queueMicrotask(() => model.save_changes()); // once all that follows from it is set as well
  };
  const haystack = (example) => {
    if (!texts.has(example.id)) texts.set(example.id, searchable(example));
    return texts.get(example.id);
  };
  const looks = () => names.filter((look) => model.get("columns").includes(look.name));
  const place = () => model.get("shown").indexOf(model.get("selected"));

  const filters = h("div", { class: "filters", role: "search", "aria-label": "filters" });
  const count = h("span", { class: "count", role: "status" });
  const overview = h("div", { class: "overview", role: "listbox", "aria-orientation": "horizontal",
    "aria-label": "examples; arrow keys move" });
  filters.hidden = overview.hidden = examples.length === 1; // nothing to search or to choose from
  const status = h("span", { class: "status", "aria-live": "polite" });
  const choose = h("div", { class: "choose", role: "group", "aria-label": "models on view" });
  const asked = h("section", { class: "asked", "aria-label": "question" });
  const columns = h("div", { class: "columns" });
  const main = h("div", { class: "main" }, asked, columns);
  const nothing = h("p", { class: "nothing" });
  const button = (text, label, click) =>
    h("button", { type: "button", "aria-label": label, title: label, onclick: click }, text);
  const root = h("div", { class: "vlaa-traces", tabindex: 0, role: "region",
    "aria-label": "Traces: left and right arrow keys step through the examples, slash searches",
    "data-lm-suppress-shortcuts": "true", onkeydown: press }, // JupyterLab would take the arrows
    filters, overview,
    h("div", { class: "nav" }, button("◀", "previous example", () => go(place() - 1)),
      button("▶", "next example", () => go(place() + 1)), status, count, choose),
    nothing, main);

  function go(to) {
    const shown = model.get("shown");
    if (shown.length) put("selected", shown[Math.min(shown.length - 1, Math.max(0, to))]);
    const isThere = overview.contains(document.activeElement);
    if (isThere) tiles.get(model.get("selected"))?.focus(); // the focus goes along
  }

  function press(event) {
    const typing = event.target.matches("input, select");
    if (event.ctrlKey || event.metaKey || event.altKey || typing) {
      if (event.key === "Escape") root.focus();
      return;
    }
    const act = {
      ArrowRight: () => go(place() + 1), ArrowLeft: () => go(place() - 1),
      Home: () => go(0), End: () => go(Infinity),
      "/": () => filters.querySelector("input").focus(),
      "+": () => enlarge(2), "-": () => enlarge(0.5), 0: () => enlarge(0),
    }[event.key];
    const inText = event.target.matches(".body, .said") && /Home|End/.test(event.key);
    const inPicture = event.target.matches(".frame") && zoom > 1 && event.key.length > 1;
    if (!act || inText || inPicture) return; // what has the focus scrolls with these keys
    event.preventDefault();
    act();
  }

  function enlarge(by) {
    const frame = asked.querySelector(".frame");
    if (!frame) return; // there is no example
    zoom = by ? Math.min(MAX_ZOOM, Math.max(1, zoom * by)) : 1;
    const middle = (scroll, size, whole) => (scroll + size / 2) / whole; // stays where it is
    const x = middle(frame.scrollLeft, frame.clientWidth, frame.scrollWidth);
    const y = middle(frame.scrollTop, frame.clientHeight, frame.scrollHeight);
    main.style.setProperty("--zoom", zoom);
    frame.scrollLeft = x * frame.scrollWidth - frame.clientWidth / 2;
    frame.scrollTop = y * frame.scrollHeight - frame.clientHeight / 2;
  }

  function drawFilters() {
    const set = (key, value) => {
      const next = { ...model.get("filters"), [key]: value };
      if (value === "" || Number.isNaN(value)) delete next[key];
      put("filters", next);
    };
    const labelled = (label, key, control) => {
      controls[key] = control;
      return h("label", { class: control.type }, h("span", {}, label), control);
    };
    const field = (label, key, type, attributes) => {
      const read = () => set(key, type === "number" ? control.valueAsNumber : control.value);
      const control = h("input", { type, oninput: read, ...attributes });
      return labelled(label, key, control);
    };
    const choices = (label, key, options) =>
      labelled(label, key, select(options, (value) => set(key, value)));
    const clear = () => {
      put("filters", {});
      put("shown", [...byId.keys()]); // also what Python chose
    };
    const sources = [...new Set(examples.map((one) => one.source))].filter(Boolean);
    const models = names.map((look) => [look.name, look.label]);
    filters.replaceChildren(
      field("search", "search", "search", { placeholder: "words, id, answer" }),
      choices("source", "source", [["", "all"], ...sources.map((one) => [one, one])]),
      choices("wrong in", "wrong", [["", "–"], ...models]),
      choices("right in", "right", [["", "–"], ...models]),
      choices("a trace of", "of", [["", "any model"], ...models]),
      choices("with", "steps", Object.entries(STEPS).map(([key, [text]]) => [key, text])),
      field("reward from", "low", "number", { step: 0.1 }),
      field("to", "high", "number", { step: 0.1 }),
      field(`${unit} from`, "shortest", "number", { min: 0 }),
      field("to", "longest", "number", { min: 0 }),
      h("button", { type: "button", onclick: clear }, "clear"),
    );
    syncFilters();
  }

  /** Show what is set elsewhere, but never write into the control that someone is typing in. */
  function syncFilters() {
    for (const [key, control] of Object.entries(controls)) {
      if (control !== document.activeElement) control.value = model.get("filters")[key] ?? "";
    }
  }

  function applyFilters() {
    const wanted = model.get("filters");
    const kept = examples.filter((example) => passes(example, wanted, haystack));
    put("shown", kept.map((example) => example.id));
    syncFilters();
  }

  function tile(example) {
    const rewards = looks().map((look) => [look, sideOf(example, look.name)?.reward]);
    const cells = rewards.map(([look, reward]) => h("i", { "--c": look.color,
      class: reward === undefined ? "none" : "", "--v": share(reward ?? 0) }));
    const told = rewards.map(([look, reward]) =>
      `${look.label} ${reward === undefined ? "not scored" : round(reward)}`);
    const label = `${example.id}: ${told.join(", ")}`;
    return h("button", { type: "button", role: "option", title: label, "aria-label": label,
      onclick: () => put("selected", example.id) }, cells);
  }

  function drawOverview() {
    tiles.clear();
    const shown = model.get("shown").filter((id) => byId.has(id));
    for (const id of shown) {
      if (!made.has(id)) made.set(id, tile(byId.get(id)));
      tiles.set(id, made.get(id));
    }
    overview.replaceChildren(...tiles.values());
    const all = shown.length === examples.length ? "" : ` of ${examples.length}`;
    count.textContent = `${shown.length}${all} example${examples.length === 1 ? "" : "s"}`;
    const selected = model.get("selected");
    if (shown.length && !tiles.has(selected)) put("selected", shown[0]);
    else drawSelected();
  }

  function drawChoose() {
    const chosen = model.get("columns");
    const toggle = (name) => {
      const rest = chosen.filter((one) => one !== name);
      put("columns", rest.length < chosen.length ? rest : [...chosen, name]);
    };
    choose.replaceChildren(...names.map((look) => {
      const on = chosen.includes(look.name);
      return h("button", { type: "button", "aria-pressed": String(on),
        disabled: on ? chosen.length === 1 : chosen.length >= MAX_COLUMNS,
        onclick: () => toggle(look.name) }, swatch(look), look.label);
    }));
    if (!examples.some((one) => one.sides.some((side) => side.shaded))) return;
    const kinds = Object.entries(SHADES).map(([key, [text]]) => [key, text]);
    const shading = select([["", "nothing"], ...kinds], (value) => {
      shade = value;
      drawColumns();
    });
    shading.value = shade;
    choose.append(h("label", {}, h("span", {}, "shade"), shading));
  }

  function drawSelected() {
    const example = byId.get(model.get("selected"));
    const at = place();
    for (const [id, one] of tiles) {
      one.setAttribute("aria-selected", String(id === example?.id));
      one.tabIndex = id === example?.id || (at < 0 && one === overview.firstChild) ? 0 : -1;
    }
    const drawn = Boolean(example && tiles.size);
    main.hidden = !drawn;
    nothing.hidden = drawn;
    nothing.textContent = `No example${examples.length ? " passes the filters" : "s to show"}.`;
    const where = [`${at < 0 ? "–" : at + 1} of ${tiles.size}`, example?.id, example?.source];
    status.textContent = drawn ? where.filter(Boolean).join(" · ") : "";
    drawAsked();
    drawColumns();
  }

  function drawColumns() {
    const example = byId.get(model.get("selected"));
    columns.dataset.n = looks().length;
    columns.replaceChildren(...(example ? looks() : []).map((look) =>
      drawColumn(look, sideOf(example, look.name), shade, unit)));
  }

  function drawAsked() {
    const example = byId.get(model.get("selected"));
    if (!example) return asked.replaceChildren();
    const [boxes, legend] = drawBoxes(example, looks());
    const image = own(model.get("pictures"), example.id) ?? "the picture is on its way";
    const picture = image.startsWith("data:image/")
      ? h("div", { class: "sheet" }, h("img", { src: image, alt: "what is asked about" }), boxes)
      : h("p", {}, image);
    return asked.replaceChildren(
      h("div", { class: "frame", tabindex: 0, role: "group",
        "aria-label": "picture; plus and minus zoom" }, picture),
      h("div", { class: "zoom" }, button("−", "zoom out", () => enlarge(0.5)),
        button("+", "zoom in", () => enlarge(2)), button("fit", "fit", () => enlarge(0))),
      example.boxProblem ? h("p", {}, `boxes are not drawn: ${example.boxProblem}`) : legend,
      h("p", { class: "question", dir: "auto" }, example.question),
      h("p", { dir: "auto" }, "gold: ", h("strong", {}, example.gold)));
  }

  const changes = {
    "change:filters": applyFilters, "change:shown": drawOverview, "change:selected": drawSelected,
    "change:pictures": drawAsked, "change:columns": () => {
      made.clear();
      drawChoose();
      drawOverview();
    },
  };
  Object.entries(changes).forEach(([event, draw]) => model.on(event, draw));
  signal?.addEventListener("abort", () =>
    Object.entries(changes).forEach(([event, draw]) => model.off(event, draw)));
  drawFilters();
  drawChoose();
  const set = Object.keys(model.get("filters")).length; // by Python, before anything was drawn
  if (set && model.get("shown").length === examples.length) applyFilters();
  drawOverview();
  el.replaceChildren(root);
}

/** Draw without Jupyter: the state is plain values; the address names the selected example. */
export function mount(el, state, isLinked = false) {
  const ids = state.examples.map((example) => example.id);
  const columns = state.names.slice(0, MAX_COLUMNS).map((look) => look.name);
  const chosen = { selected: ids[0] ?? "", shown: ids, columns, filters: {}, pictures: {} };
  const values = { ...chosen, ...state };
  const listeners = [];
  const model = {
    get: (key) => values[key],
    set(key, value) {
      if (JSON.stringify(values[key]) === JSON.stringify(value)) return;
      values[key] = value;
      for (const [event, draw] of [...listeners]) if (event === `change:${key}`) draw();
    },
    save_changes() {},
    on: (event, draw) => listeners.push([event, draw]),
    off: (event, draw) => {
      const at = listeners.findIndex((one) => one[0] === event && one[1] === draw);
      if (at >= 0) listeners.splice(at, 1);
    },
  };
  const link = (id) => `#${encodeURIComponent(id)}`;
  const follow = () => {
    const id = ids.find((one) => link(one) === location.hash);
    if (id !== undefined) model.set("selected", id);
  };
  if (isLinked) follow();
  render({ model, el });
  if (isLinked) {
    el.firstElementChild.focus({ preventScroll: true }); // it is the page: keys are for it
    model.on("change:selected", () => history.replaceState(null, "", link(model.get("selected"))));
    addEventListener("hashchange", follow);
  }
  return model;
}

export default { render };

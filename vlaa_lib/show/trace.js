// What the trace viewer draws: one trace, the picture with its boxes, and what a filter lets pass.
//
// Python works out what there is to see (`prepare.py`); this only draws it. Whatever a model wrote
// becomes a text node: no markup is ever read from a string, and nothing is fetched.
// `viewer.js` stands behind this file in the same script (see `html.SCRIPT`).

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

// The trace viewer of notebooks (anywidget) and of the page that `html.to_html` writes: its controls.
//
// The model holds all state: a control sets a value, the value's change redraws. So a click, a
// key, a second view and Python all take the same road. What is drawn stands in `trace.js`.

const MAX_COLUMNS = 4;
const MAX_ZOOM = 8;

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

"""The viewer's script alone in a real browser: safe, quick, and doing what its controls say.

`python -m pytest tests/test_viewer_browser.py -k quick -s` prints the times of 200 examples, and
`--junitxml` keeps them.
"""

import re

import pytest

import chromium
import viewer_cases
from vlaa_lib.show import TraceViewer, html, prepare
from vlaa_lib.show.style import picture

pytestmark = pytest.mark.browser
MOUNT = """async (state) => {
  const { mount } = await import("/viewer.js");
  document.body.replaceChildren();
  const start = performance.now();
  window.model = mount(document.body, state);
  document.body.getBoundingClientRect();  // layout counts as well
  return performance.now() - start;
}"""
# select an example and two models, open its groups, and say what there is on the page
LOOK = """([id, columns]) => {
  window.model.set("columns", columns);
  window.model.set("selected", id);
  document.querySelectorAll(".bars button").forEach((bar) => bar.click());
  const all = [...document.body.querySelectorAll("*")];
  return {
    text: document.body.textContent,
    bodies: [...document.querySelectorAll(".body")].map((one) => one.textContent),
    tags: all.map((one) => one.tagName),
    attributes: all.flatMap((one) => one.getAttributeNames()),
  };
}"""
SET = "([key, value]) => window.model.set(key, value)"
TAGS = {"DIV", "SPAN", "BUTTON", "INPUT", "SELECT", "OPTION", "LABEL", "I", "B", "P", "UL", "LI",
        "EM", "STRONG", "MARK", "SMALL", "SECTION", "HEADER", "IMG", "svg", "rect"}


@pytest.fixture(scope="module")
def browser():
    with chromium.launched() as found:
        yield found


@pytest.fixture(scope="module")
def examples():
    return viewer_cases.realistic(2)


@pytest.fixture
def viewer(browser, examples):
    """Return a function that mounts examples in a page without any policy."""
    opened = []

    def mount(given=None, filters=None, **options):
        found = chromium.alone(browser, html.SCRIPT, html.STYLE, **options)
        opened.append(found)
        given = examples if given is None else given
        state = prepare.prepare(given)
        state["filters"] = filters or {}
        state["pictures"] = {  # as in a notebook: the selected example's alone
            made["id"]: picture(first, 384)
            for made, first in zip(state["examples"][:1], given[:1], strict=True)
        }
        found.took_ms = found.page.evaluate(MOUNT, state)
        return found

    yield mount
    for found in opened:
        assert not found.hits()
        found.context.close()


@pytest.fixture
def page_file(browser, tmp_path):
    """Return a function that writes examples as a page and opens it from its file."""
    opened = []

    def write(given, place=""):
        path = html.to_html(given, tmp_path / "page.html")
        opened.append(chromium.Watched(browser, path.as_uri()))
        opened[0].page.goto(path.as_uri() + place)
        return opened[0]

    yield write
    opened[0].context.close()


def value(page, key):
    return page.evaluate("(key) => window.model.get(key)", key)


def control(page, label):
    return page.locator(".filters label").filter(has_text=re.compile(f"^{label}")).locator(
        "input, select"
    ).first


# --- hostile text


def test_nothing_of_a_trace_runs_or_leaves(viewer):
    found = viewer(viewer_cases.hostile())
    page = found.page
    state = prepare.prepare(viewer_cases.hostile())
    for example in state["examples"]:
        seen = page.evaluate(LOOK, [example["id"], [example["sides"][0]["name"], "sft"]])
        for text in (example["id"], example["question"], example["gold"]):
            assert text in seen["text"]
        body = viewer_cases.spoken(example["sides"][0])
        assert (body or "(empty trace)") in seen["bodies"] and len(seen["bodies"]) == 2
        assert set(seen["tags"]) <= TAGS
        assert not [name for name in seen["attributes"] if re.match("on|href|srcdoc", name)]
        assert not found.hits(), example["id"]
    control(page, "search").fill("<script>")
    assert 0 < len(value(page, "shown")) < len(state["examples"])


def test_an_attack_that_did_run_would_be_seen(browser):
    found = chromium.alone(browser, html.SCRIPT, html.STYLE)
    found.page.evaluate("(text) => { document.body.innerHTML = text }", viewer_cases.HOSTILE[1])
    found.page.wait_for_function("'hit' in window")
    assert found.hits()
    found.context.close()


def test_the_page_keeps_to_itself(page_file):
    found = page_file(viewer_cases.hostile())
    found.page.locator(".vlaa-traces .body").first.wait_for()
    assert not found.hits()
    # even where text had become markup, the page's own policy would stop it
    found.page.evaluate(
        "(text) => { const s = document.createElement('script'); s.text = 'window.hit = 1';"
        " document.body.append(s); document.body.insertAdjacentHTML('beforeend', text) }",
        viewer_cases.HOSTILE[1] + viewer_cases.HOSTILE[11],
    )
    found.page.wait_for_timeout(300)
    assert not found.page.evaluate("'hit' in window")
    assert "Content Security Policy" in " ".join(found.trouble)


def test_the_page_is_linked_by_example(page_file, examples):
    found = page_file(examples, f"#{examples[3]['id']}")
    assert examples[3]["id"] in found.page.locator(".status").inner_text()
    found.page.keyboard.press("ArrowRight")  # at once: the page has nothing else for keys
    assert found.page.url.endswith(f"#{examples[4]['id']}")
    assert found.page.locator("img").evaluate("(image) => image.naturalWidth") > 50
    assert not found.hits()


# --- what the controls do


def sides_of(example):
    return prepare.prepare([example])["examples"][0]["sides"]


def test_filters_choose_what_python_would(viewer, examples):
    page = viewer().page
    everything = [example["id"] for example in examples]

    def expect(condition):
        wanted = [example["id"] for example in examples if condition(example)]
        assert 0 < len(wanted) < len(everything), "the case shows nothing"
        assert value(page, "shown") == wanted
        assert page.locator(".overview button").count() == len(wanted)
        assert page.locator(".count").inner_text() == f"{len(wanted)} of {len(everything)} examples"
        assert value(page, "selected") in wanted
        page.get_by_role("button", name="clear").click()
        assert value(page, "shown") == everything and value(page, "filters") == {}
        assert control(page, "source").input_value() == ""

    def side(example, name):
        return next(one for one in sides_of(example) if one["name"] == name)

    control(page, "source").select_option("plot")
    expect(lambda e: e["source"] == "plot")
    control(page, "wrong in").select_option("sft")  # the flips that the paper speaks of
    control(page, "right in").select_option("grpo")
    expect(lambda e: not side(e, "sft")["correct"] and side(e, "grpo")["correct"])
    control(page, "a trace of").select_option("grpo")
    control(page, "reward from").fill("0.5")
    expect(lambda e: side(e, "grpo")["reward"] >= 0.5)
    control(page, "a trace of").select_option("sft")
    control(page, "with").select_option("false")
    expect(lambda e: side(e, "sft")["steps"][1] > 0)
    control(page, "with").select_option("lucky")
    expect(lambda e: any(s["correct"] and s["steps"][1] for s in sides_of(e)))
    middle = sorted(max(s["tokens"] for s in sides_of(e)) for e in examples)[len(examples) // 2]
    control(page, "tokens from").fill(str(middle + 1))
    expect(lambda e: any(s["tokens"] > middle for s in sides_of(e)))
    control(page, "search").fill("BLUE")
    expect(lambda e: "blue" in (e["id"] + e["question"] + e["gold"]
                                + "".join(s["text"] for s in e["sides"])).lower())
    control(page, "search").fill("no such words")
    assert page.get_by_text("No example passes the filters.").is_visible()
    assert not page.locator(".main").is_visible() and value(page, "shown") == []
    page.get_by_role("button", name="clear").click()
    assert page.locator(".main").is_visible()


def test_keys_step_search_and_zoom(viewer, examples):
    page = viewer().page
    ids = [example["id"] for example in examples]
    page.locator(".overview button").nth(2).click()
    keys = ["ArrowRight", "ArrowLeft", "End", "ArrowRight", "Home", "ArrowLeft", "ArrowRight"]
    for key, at in zip(keys, (3, 2, -1, -1, 0, 0, 1), strict=True):
        page.keyboard.press(key)
        assert value(page, "selected") == ids[at], key
        focused = page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert focused.startswith(f"{ids[at]}: "), "the focus goes along"
    page.keyboard.press("Home")  # to the one with a picture
    sheet = page.locator(".sheet")
    before = sheet.bounding_box()["width"]
    for key, times in (("+", 2), ("0", 1)):
        page.keyboard.press(key)
        assert sheet.bounding_box()["width"] == pytest.approx(times * before, rel=0.1)
    page.keyboard.press("/")
    page.keyboard.type("blue+0")
    assert value(page, "filters") == {"search": "blue+0"} and value(page, "shown") == []


def test_without_examples_there_is_nothing_to_act_on(viewer):
    page = viewer([]).page
    assert page.get_by_text("No examples to show.").is_visible()
    page.locator(".vlaa-traces").focus()
    for key in ("+", "-", "0", "ArrowRight", "ArrowLeft", "Home", "End", "/", "Escape"):
        page.keyboard.press(key)
    assert value(page, "selected") == "" and value(page, "shown") == []


def test_python_and_a_second_view_take_the_same_road(viewer, examples):
    page = viewer(filters={"source": "plot"}).page  # set before it is drawn
    assert control(page, "source").input_value() == "plot"
    assert value(page, "shown") == [e["id"] for e in examples if e["source"] == "plot"]
    assert page.locator(".overview button").count() == len(value(page, "shown")) > 0
    ids = [example["id"] for example in examples]
    page.evaluate(SET, ["shown", [ids[5], ids[1]]])  # chosen by Python, in its order
    assert value(page, "selected") == ids[5]
    assert page.locator(".overview button").count() == 2
    page.evaluate(SET, ["selected", ids[1]])
    assert "2 of 2" in page.locator(".status").inner_text()
    page.evaluate(SET, ["filters", {"source": "plot", "low": 0.5}])
    assert control(page, "source").input_value() == "plot"
    assert control(page, "reward from").input_value() == "0.5"
    assert set(value(page, "shown")) <= {e["id"] for e in examples if e["source"] == "plot"}


def test_columns_are_chosen_and_at_most_four(viewer, examples):
    more = [e | {"sides": [*e["sides"], {"name": "base", "text": "3"}]} for e in examples]
    page = viewer(more).page
    choose = page.locator(".choose button")
    assert choose.all_inner_texts() == ["teacher", "SFT", "GRPO", "SFT+GRPO", "base"]
    assert choose.nth(4).is_disabled() and page.locator(".column").count() == 4
    choose.nth(0).click()
    choose.nth(4).click()
    assert value(page, "columns") == ["sft", "grpo", "sft_grpo", "base"]
    assert page.locator(".column header").last.inner_text().startswith("base")
    for _ in range(3):
        page.locator(".choose button[aria-pressed=true]").first.click()
    assert page.locator(".choose button[aria-pressed=true]").is_disabled()  # one stays


def test_group_shading_steps_and_boxes_are_drawn(viewer, examples):
    boxed = [e for e in examples if e["frame"]]
    boxed[0]["sides"][0]["text"] = f"<think>It is there.</think><answer>{boxed[0]['gold']}</answer>"
    page = viewer(boxed).page
    assert page.locator(".legend").inner_text().startswith("gold")
    assert "teacher IoU 1" in page.locator(".legend").inner_text()
    first = page.locator(".boxes rect").first
    x, width = (float(first.get_attribute(key)) for key in ("x", "width"))
    corners = [float(v) for v in boxed[0]["gold"].strip("[]").split(",")]
    assert (x, x + width) == pytest.approx((corners[0], corners[2]))
    column = page.locator(".column").nth(1)
    assert column.locator(".bars button").count() == 8
    column.locator(".bars button").nth(2).click()
    assert "rollout 3: reward 1, advantage +1, 2 tokens" in column.locator(".said").inner_text()
    column.locator(".bars button").nth(2).click()
    assert not column.locator(".said").is_visible()
    assert page.locator(".shade").count() == 0
    page.locator(".choose select").select_option("logp")
    assert page.locator(".shade").count() > 20
    assert page.locator(".shade").first.get_attribute("title").startswith("log p -")
    side = sides_of(boxed[0])[1]
    assert column.locator(".step.true").count() == side["steps"][0]
    assert column.locator(".step.false").count() == side["steps"][1]


def test_who_checked_the_steps_is_said(viewer):
    """A trace that nobody checked is not one in which nothing can be checked."""
    scene = {"kind": "bars", "bars": [{"color": "red", "value": 3}]}
    text = "The red bar reaches 3. Hmm."
    traces = {
        "scene": {"scene": scene, "text": text}, "hmm": {"scene": scene, "text": "Hmm."},
        "real": {"scene": None, "text": text},
        "judged": {"scene": None, "text": text, "verdicts": [False, None]},
        "doubted": {"scene": None, "text": text, "verdicts": [None, None]},
    }
    given = [{"id": name, "scene": made.pop("scene"), "sides": [{"name": "sft", **made}]}
             for name, made in traces.items()]
    page = viewer(given).page
    choice = control(page, "with")
    keys = choice.locator("option").evaluate_all("(all) => all.map((one) => one.value)")
    assert keys == ["", *TraceViewer.STEPS]
    for key, wanted in (("unchecked", ["hmm", "doubted"]), ("false", ["judged"]),
                        ("true", ["scene"]), ("", list(traces))):
        choice.select_option(key)
        assert value(page, "shown") == wanted
    told = {}
    for name in traces:
        page.evaluate(SET, ["selected", name])
        told[name] = page.locator(".facts").inner_text().splitlines()[-1]
    assert told == {
        "scene": "steps: 1 true, 0 false, 1 open", "hmm": "steps: 0 true, 0 false, 1 open",
        "real": "steps not checked: no scene is known",
        "judged": "steps, a judge says: 0 true, 1 false (first: step 1), 1 open",
        "doubted": "steps, a judge says: 0 true, 0 false, 2 open",
    }
    page.evaluate(SET, ["selected", "judged"])
    step = page.locator(".step.false")
    assert step.locator(".sr").text_content() == "false step, a judge says: "
    style = "(node) => getComputedStyle(node).textDecorationStyle"
    assert step.evaluate(style) == "dotted", "other than the scene's"
    page.evaluate(SET, ["selected", "real"])
    assert page.locator(".step").count() == 0


# --- looks


@pytest.mark.parametrize("width", [1280, 800, 420])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_overlaps_and_long_traces_scroll(viewer, examples, width, scheme, tmp_path):
    more = " More to read." * 900
    long = [dict(examples[0], sides=[
        side | {"text": side["text"] + more, "parts": {"format": 1.0, "iou": 0.25}}
        for side in examples[0]["sides"]])]
    page = viewer(long, color_scheme=scheme).page
    page.set_viewport_size({"width": width, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    for part in (".column", ".filters label", ".nav > *", ".choose > *", ".asked > *"):
        boxes = [found.bounding_box() for found in page.locator(part).all() if found.is_visible()]
        for place, a in enumerate(boxes):
            for b in boxes[place + 1 :]:
                across = min(a["x"] + a["width"], b["x"] + b["width"]) - max(a["x"], b["x"])
                down = min(a["y"] + a["height"], b["y"] + b["height"]) - max(a["y"], b["y"])
                assert min(across, down) < 1, (part, a, b)
    bars = [bar.bounding_box() for bar in page.locator(".column").first.locator(".bar").all()]
    assert len(bars) == 3 and len({(bar["x"], bar["width"]) for bar in bars}) == 1, "one scale"
    body = page.locator(".body").first
    assert body.evaluate("(node) => node.scrollHeight > 2 * node.clientHeight")
    assert body.bounding_box()["height"] < 450
    page.screenshot(path=tmp_path / f"{width}-{scheme}.png", full_page=True)


def test_marks_are_told_apart_without_colour(viewer):
    page = viewer().page
    style = "(node) => { const s = getComputedStyle(node); return [s.textDecorationStyle," \
            " s.borderBottomWidth, getComputedStyle(node, '::before').content] }"
    kinds = ("true", "false")
    true, false = (page.locator(f".step.{kind}").first.evaluate(style) for kind in kinds)
    assert true[0] == "solid" and false[0] == "wavy" and true[1] != false[1]
    assert "✓" in true[2] and "✗" in false[2]
    assert page.locator(".step.false .sr").first.text_content() == "false step: "
    verdicts = page.locator(".verdict").all_inner_texts()
    assert all(re.match(r"✓ right|✗ wrong", text) for text in verdicts)


def test_screen_readers_hear_names_of_everything(viewer):
    page = viewer().page
    unnamed = page.evaluate("""[...document.querySelectorAll(`button, input, select, img,
        [role=group], [role=listbox], [role=region], section, [tabindex="0"]`)].filter((node) =>
        !(node.ariaLabel || node.alt || node.closest('label') || node.innerText?.trim()))
        .map((node) => node.outerHTML)""")
    assert unnamed == []
    assert page.locator("[role=option][aria-selected=true]").count() == 1
    assert page.locator("[role=option][tabindex='0']").count() == 1
    assert page.locator("[role=status], [aria-live]").count() >= 2


# --- speed


def test_two_hundred_examples_are_quick(viewer, record_testsuite_property):
    found = viewer(viewer_cases.many(200))
    redraw = """(work) => { const start = performance.now(); eval(work);
        document.body.getBoundingClientRect(); return performance.now() - start }"""
    select = [found.page.evaluate(redraw, f"model.set('selected', 'example-{n}')")
              for n in (7, 50, 199)]
    search = [found.page.evaluate(redraw, f"model.set('filters', {{search: '{word}'}})")
              for word in ("blue", "17", "")]
    times = {"mount": found.took_ms, "select": max(select), "first search": search[0],
             "later search": max(search[1:])}
    for name, took in times.items():
        record_testsuite_property(f"viewer, 200 examples: {name}, ms", round(took))
    print("\n" + "; ".join(f"{name} {took:.0f} ms" for name, took in times.items()))
    # wanted: 2 s to mount, 100 ms to update; ten times that here, since CI machines are busy,
    # and more for the first search, which puts together what all searches read
    limits = {"mount": 20_000, "select": 1_000, "first search": 3_000, "later search": 1_000}
    assert not [name for name, took in times.items() if took > limits[name]]

"""The viewer's Python side: what is sent to the page, how much, and never as markup."""

import base64
import copy
import hashlib
import json
import re
from types import SimpleNamespace

import pytest
import traitlets
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import viewer_cases
from viewer_cases import spoken
from vlaa_lib import traces
from vlaa_lib.escape import visible
from vlaa_lib.pocket import microworld
from vlaa_lib.show import AskAgain, TraceViewer, html, prepare
from vlaa_lib.show.style import picture

SCENE = {"kind": "bars", "bars": [{"color": "red", "value": 3}, {"color": "blue", "value": 5}]}
TEXT = (
    "<think>The red bar reaches 3. Wait, the blue bar reaches 4. Hmm.</think><answer>3</answer>"
)
MB = 1_000_000


def example(text=TEXT, **more):
    """Return one example with one trace; keys of the side start with `side_`."""
    side = {"name": "sft", "text": text} | {
        key.removeprefix("side_"): value for key, value in more.items() if key.startswith("side_")
    }
    rest = {key: value for key, value in more.items() if not key.startswith("side_")}
    return {"id": "a", "source": "panel", "image": None, "question": "How high?", "gold": "3",
            "scene": SCENE, "sides": [side]} | rest


def one(*args, **more) -> dict:
    """Return what is sent of one example's one side."""
    return prepare.prepare([example(*args, **more)])["examples"][0]["sides"][0]


def sent(state) -> str:
    return json.dumps(state, ensure_ascii=False, allow_nan=False)


def page_of(tmp_path, examples) -> str:
    return html.to_html(examples, tmp_path / "page.html").read_text(encoding="utf-8")


# --- the state


def test_a_trace_arrives_whole_with_its_steps_marked():
    side = one()
    assert spoken(side) == TEXT
    marked = [spoken({"body": [step]}) for step in side["body"] if step[0] != -1]
    assert marked == ["The red bar reaches 3.", "Wait, the blue bar reaches 4.", "Hmm.", "3"]
    assert [truth for truth, _ in side["body"] if truth != -1] == [1, 0, 2, 2]
    assert side["steps"] == [1, 1, 2] and side["firstFalse"] == 2 and side["answer"] == "3"
    kinds = {tuple(run) for _truth, runs in side["body"] for run in runs}  # a bare text as well
    assert {("aha", "Wait"), ("aha", "Hmm"), ("tag", "<answer>"), ("answer", "3")} <= kinds


@given(st.text(alphabet=st.sampled_from(".!?; \nwaitTheredbarreaches3<>/think𝒳"), max_size=80))
def test_no_layer_loses_or_repeats_a_character(text):
    side = one(text, side_pieces=[text[k : k + 3] for k in range(0, len(text), 3)])
    assert spoken(side) == text
    truths = [truth for truth, _ in side["body"] if truth != -1]
    told = [step.truth for step in traces.check_steps(text, SCENE)]
    assert truths == [2 if truth is None else int(truth) for truth in told]


NOTHING = {"steps": None, "truthFrom": None, "firstFalse": None}


@pytest.mark.parametrize(("text", "more", "expected"), [
    ("The answer is 3.", {"side_answer": "3"},  # evaluation read it, though tags are missing
     {"answer": "3", "problem": "no think or answer tags"}),
    ("The answer is 3.", {}, {"answer": None}),
    (TEXT, {"side_answer": 0}, {"answer": "0", "truthFrom": "scene"}),
    (TEXT, {"scene": None}, NOTHING),
    (TEXT, {"side_correct": False, "side_reward": 1.0}, {"correct": False}),  # not derived
    (TEXT, {"side_parts": {"digit": 1, "format": 0.5}, "side_reasons": {"digit": "r", "x": "y"}},
     {"parts": [["digit", 1.0, "r"], ["format", 0.5, ""], ["x", None, "y"]]}),
])
def test_what_is_known_of_a_trace_is_sent(text, more, expected):
    given_examples = [example(text, **more)]
    before = copy.deepcopy(given_examples)
    side = prepare.prepare(given_examples)["examples"][0]["sides"][0]
    assert {key: side.get(key) for key in expected} == expected and spoken(side) == text
    assert given_examples == before, "what is given is not changed"
    if expected is NOTHING:
        assert {truth for truth, _ in side["body"]} == {-1}


def test_a_judges_verdicts_count_where_no_scene_is_known():
    side = one(scene=None, side_verdicts=[True, None, False, None])
    assert side["truthFrom"] == "judge" and spoken(side) == TEXT
    assert [truth for truth, _ in side["body"] if truth != -1] == [1, 2, 0, 2]
    assert side["steps"] == [1, 1, 2] and side["firstFalse"] == 3
    known = one(side_verdicts=[False, False, False, False])
    assert known == one(), "the scene knows better"
    for wrong in ([True], [0.6, None, False, None], ["yes", None, False, None]):
        with pytest.raises(ValueError, match=r"examples\[0\]: `verdicts` of side 'sft'.* 4 steps"):
            one(scene=None, side_verdicts=wrong)


def test_steps_are_counted_on_the_whole_trace_however_little_is_sent(monkeypatch):
    text = "The red bar reaches 3. " * 1200 + "The blue bar reaches 4."
    counted = traces.step_counts(text, SCENE)
    assert (counted["checked_steps"], counted["first_false_step"]) == (1201, 1201)
    side = one(text)
    assert side["steps"] == [1200, 1, 0] and side["firstFalse"] == 1201
    assert spoken(side) == text[: prepare.MAX_CHARS] and side["more"] > 7000
    assert side["body"][-1][0] == 1, "the step that the cut goes through"
    monkeypatch.setattr(prepare, "MAX_BYTES", 50_000)  # as among many examples
    short = prepare.prepare([example(text, id=str(n)) for n in range(9)])["examples"][8]["sides"][0]
    assert short["steps"] == [1200, 1, 0] and short["firstFalse"] == 1201
    assert short["more"] > side["more"] and spoken(short) + text[-short["more"] :] == text


def test_numbers_that_are_none_are_left_out():
    for strange in (*viewer_cases.STRANGE_NUMBERS, [1], {}):
        keys = ("reward", "advantage", "tokens", "mean_logp", "entropy")
        side = one(**{f"side_{key}": strange for key in keys}, side_parts={"digit": strange})
        sent(side)  # NaN and infinity would not be JSON
        found = prepare.number(strange)
        assert side.get("reward") == found and side["parts"] == [["digit", found, ""]]
        assert side.get("correct") == (None if found is None else found >= 0.5)


def test_boxes_and_their_overlap():
    def boxes(gold, answer, **more):
        text = f"<think>x</think><answer>{answer}</answer>"
        made = prepare.prepare([example(text, gold=gold, scene=None, **more)])["examples"][0]
        return made["box"], made["sides"][0].get("box"), made["sides"][0].get("iou")

    gold, found, iou = boxes("[0, 0, 1, 1]", "[0, 0, 0.5, 1]", frame="norm01")
    assert gold == (0, 0, 1, 1) and found == (0, 0, 0.5, 1) and iou == 0.5
    assert boxes("[0, 0, 1, 1]", "none", frame="norm01") == ((0, 0, 1, 1), None, None)
    picture = Image.new("RGB", (200, 100))
    pixels = {"frame": "pixel_original", "image": picture}
    assert boxes("[0, 0, 100, 50]", "[0, 0, 100, 50]", **pixels)[0] == (0, 0, 0.5, 0.5)
    made = prepare.prepare([example(gold="[0, 0, 9, 9]", frame="pixel_resized")])["examples"][0]
    assert made["box"] is None and "image_size" in made["boxProblem"]


def test_tokens_are_shaded_only_where_they_spell_the_text():
    side = one("wait 3", side_pieces=["wa", "it ", "3", "<|end|>"], side_logps=[-1, -2.351, 0, 0])
    runs = [run for _truth, runs in side["body"] for run in runs]
    assert [text for _kind, text, *_ in runs] == ["wa", "it", " ", "3"]
    assert [logp for _kind, _text, logp, _entropy in runs] == [-1, -2.35, -2.35, 0]
    assert side["shaded"] and spoken(side) == "wait 3"
    for wrong in ({"side_pieces": ["x"]}, {"side_pieces": ["wait 3"], "side_logps": [1, 2]}):
        side = one("wait 3", **wrong)
        assert not side["shaded"] and "not shaded" in side["shadeProblem"]


def test_unseen_characters_are_spelt_out():
    side = one("3 \u202e4\u202c \x00\ud800", scene=None)
    assert spoken(side) == "3 ‹U+202E›4‹U+202C› ‹U+0000›‹U+D800›"
    assert "\u202e" not in html.render([example("\u202e", question="\u2066")])
    assert visible("a\r\nb\tc 👩‍🔬") == "a\nb\tc 👩‍🔬"


@pytest.mark.parametrize(("wrong", "said"), [
    ([example(), example()], r"examples: id 'a' twice, at 0 and 1"),
    ([example(sides=[{"name": "a"}, {"name": "a"}])], r"examples\[0\]: side named 'a' twice"),
    ([example(sides=None)], r"examples\[0\] is not a dict with a list `sides`"),
    ([example(), "text"], r"examples\[1\] is not a dict"),
    ([example(sides=[{"text": "x"}])], r"sides\[0\] is not a dict with a `name`"),
    ([example(sides=[{"name": float("nan")}])], r"sides\[0\] is not a dict with a `name`"),
    ([example(scene="x")], r"examples\[0\]: `scene` is none of the micro-world's"),
    ([example(scene={"kind": "x"})], r"examples\[0\]: `scene` is none of the micro-world's"),
    ([example(side_parts=[1])], r"`parts` of side 'sft' is of type list; give a dict by part"),
    ([example(side_group="abc")], r"`group` of side 'sft' is of type str; give a list"),
    ([example(side_group=[None])], r"`group` of side 'sft' has more than dicts"),
    ([example(side_logps=3)], r"`logps` of side 'sft' is of type int; give a list"),
])
def test_malformed_examples_are_named(wrong, said, tmp_path):
    (tmp_path / "a.html").write_text("old", encoding="utf-8")
    with pytest.raises(ValueError, match=said):
        prepare.prepare(wrong)
    with pytest.raises(ValueError, match=said):
        html.to_html(wrong, tmp_path / "a.html")
    assert (tmp_path / "a.html").read_text(
        encoding="utf-8") == "old" and len(list(tmp_path.iterdir())) == 1


def test_what_a_table_leaves_out_is_not_known(tmp_path):
    nan = float("nan")
    side = one(image=nan, frame=nan, side_correct=nan, side_reward=nan, side_clipped=nan,
               side_parts=nan, side_group=nan, side_tokens=nan)
    assert side == one(side_reward=None) and not side.keys() & {"correct", "clipped", "reward"}
    given = [example(image=nan)]
    assert picture(given[0], 9) == "no picture"
    assert html.render(given) == html.render([example()])
    assert page_of(tmp_path, given) == page_of(tmp_path, [example()])
    assert "int is neither a path nor a PIL image" in html.render([example(image=5)])
    for frame in (5, "pixel_original"):
        (odd,) = prepare.prepare([example(image=5, frame=frame, scene=None)])["examples"]
        assert odd["box"] is None and odd["boxProblem"]


@pytest.mark.parametrize(("text", "steps"), [
    ("<think>think. So.</think>", ["think.", "So."]), ("<answer>a</answer>", ["a"]),
])
def test_a_step_is_not_found_in_the_tag_that_spells_it(text, steps):
    side = one(text)
    assert [spoken({"body": [step]}) for step in side["body"] if step[0] != -1] == steps
    assert sum(run[0] == "tag" for _, runs in side["body"] for run in runs) == 2
    assert spoken(side) == text


# --- size


def test_two_hundred_examples_stay_under_five_megabytes():
    viewer = TraceViewer(viewer_cases.many(200))
    state = {key: value for key, value in viewer.get_state().items() if key[0] != "_"}
    assert len(state["examples"]) == 200 and len(state["examples"][0]["sides"]) == 4
    assert 2 * MB < len(sent(state).encode()) < 5 * MB
    assert list(state["pictures"]) == ["example-0"]  # the others come when they are asked for
    assert not any(side["more"] for found in state["examples"] for side in found["sides"])


LONG = "wait <b> " * 4_000
OTHERS = ("id", "source", "question", "gold", "side_name", "side_answer", "side_reason")


def test_every_text_is_cut_not_the_traces_alone():
    alone = one(LONG, scene=None)
    assert len(spoken(alone)) == prepare.MAX_CHARS
    sides = [{"name": name, "text": LONG, "group": [{"text": LONG}] * 8}
             for name in viewer_cases.MODELS]
    state = prepare.prepare([example(id=str(n), sides=sides, scene=None) for n in range(25)])
    assert len(sent(state).encode()) <= prepare.MAX_BYTES  # though every second word is a mark
    side = state["examples"][0]["sides"][0]
    assert len(spoken(side)) + side["more"] == len(LONG)
    assert len(side["group"][0]["text"]) + side["group"][0]["more"] == len(LONG)
    more = {key: LONG for key in OTHERS if key != "id"}
    more |= {"side_parts": {LONG: 1}, "side_reasons": {LONG: LONG}, "scene": None}
    more |= {"side_group": [{"text": LONG}]}
    state = prepare.prepare([example(id=f"{n} {LONG}", **more) for n in range(100)])
    assert len(sent(state).encode()) <= prepare.MAX_BYTES
    (made,) = {sent(found | {"id": ""}) for found in state["examples"]}
    assert made.count("more characters") == len(OTHERS) - 1 + 2  # the id; a part: name and reason
    assert all("more characters" in found["id"] for found in state["examples"])
    page = html.render([example(**more)])
    assert len(page) < 60_000 and page.count("more characters") == 4


def test_too_many_examples_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(prepare, "MAX_BYTES", 5000)
    few = prepare.prepare([example(LONG, id=str(n), scene=None) for n in range(5)])
    assert len(sent(few).encode()) <= 5000
    many = [example(LONG, id=str(n), scene=None) for n in range(50)]
    for show in (TraceViewer, lambda given: html.to_html(given, tmp_path / "a.html")):
        with pytest.raises(ValueError, match=r"50 examples are .* show fewer of them at a time"):
            show(many)
    assert not list(tmp_path.iterdir())


# --- the widget


def test_the_selection_is_read_and_set_from_python():
    viewer = TraceViewer([example(), example(id="b", image=Image.new("RGB", (900, 9)))])
    assert (viewer.selected, viewer.shown, viewer.columns) == ("a", ["a", "b"], ["sft"])
    assert viewer.pictures == {"a": "no picture"} and viewer.example["id"] == "a"
    viewer.selected = "b"
    assert viewer.example["id"] == "b"
    assert viewer.pictures["b"].startswith("data:image/jpeg;base64,")
    viewer.shown, viewer.filters = ["b"], {"wrong": "sft"}
    assert TraceViewer([]).selected == "" and TraceViewer([]).example is None


@pytest.mark.parametrize(("trait", "value", "said"), [
    ("selected", "c", r"'c' is not there; there are"),
    ("shown", ["a", "c"], r"'c' is not there; there are"),
    ("columns", ["grpo"], r"'grpo' is not there; there are"),
    ("columns", [], "no model would be on view"),
    ("filters", {"sorce": "x"}, r"'sorce' is not there; there are"),
])
def test_names_that_are_not_there_are_refused(trait, value, said):
    viewer = TraceViewer([example()])
    before = getattr(viewer, trait)
    with pytest.raises(traitlets.TraitError, match=f"{trait}: {said}"):
        setattr(viewer, trait, value)
    assert getattr(viewer, trait) == before and TraceViewer([]).columns == []


@pytest.mark.parametrize(("key", "wrong", "right"), [
    ("wrong", "stf", "sft"), ("right", "SFT", "sft"), ("of", ["sft"], "sft"),
    ("source", "plot", "panel"), ("steps", "wrong", "false"), ("steps", False, "lucky"),
    ("low", "0.5", 0.5), ("high", "1", 1), ("shortest", float("nan"), 0),
    ("longest", float("inf"), 300), ("search", 17, "17"),
])
def test_a_filter_that_no_example_could_pass_is_refused(key, wrong, right):
    viewer = TraceViewer([example()], filters={key: right})
    said = rf"filters\['{key}'\]: .* is not (there; there are \w|text|a finite number)"
    for change in (lambda: setattr(viewer, "filters", {key: wrong}),
                   lambda: TraceViewer([example()], filters={key: wrong})):
        with pytest.raises(traitlets.TraitError, match=said):
            change()
    assert viewer.filters == {key: right}


def test_a_missing_picture_is_said_not_raised(tmp_path):
    (tmp_path / "text.png").write_text("<svg onload=alert(1)>", encoding="utf-8")
    for name, said in (("gone.png", r"no picture: .*gone\.png"), ("text.png", ".*not one of")):
        given_examples = [example(image=tmp_path / name)]
        assert re.match(said, TraceViewer(given_examples).pictures["a"])
        assert "no picture: " in html.render(given_examples)


def test_a_notebook_without_widgets_shows_an_escaped_table():
    viewer = TraceViewer([example("<b>wait</b>", id=str(n)) for n in range(7)])
    data = viewer._repr_mimebundle_()[0]
    assert data["application/vnd.jupyter.widget-view+json"]["model_id"] == viewer.model_id
    page = data["text/html"]
    assert page.count("<table ") == 5 and "2 more in the notebook" in page
    assert "&lt;b&gt;" in page and "<b>" not in page and "<script" not in page


def test_hostile_text_is_inert_in_the_table_as_well():
    """Also where it is the name of a model: nothing unseen, no tag, and UTF-8 can write it."""
    tags = {"table", "thead", "tbody", "tr", "th", "td", "br", "small", "code", "mark", "strong",
            "em", "p"}
    plain = html.render([example("wait <answer>3", question="q")])
    ours = set(re.findall(r"<\w+ ?([^>]*)>", plain)) | {""}
    for found in viewer_cases.hostile():
        bundle = TraceViewer([found])._repr_mimebundle_()[0]
        assert "\u202d" not in json.dumps(bundle, ensure_ascii=False).encode().decode()
        page = bundle["text/html"]
        assert set(re.findall(r"<[!/]?(\w*)", page)) <= tags
        assert set(re.findall(r"<\w+ ?([^>]*)>", page)) <= ours, "no attribute is theirs"
        for text in (found["question"], found["gold"], found["sides"][0]["name"]):
            told = html.escape(visible(text)).replace("\n", "<br>")
            assert f">{told}<" in page or f": {told}<" in page


# --- the page


def test_the_page_is_one_file_that_forbids_itself_the_rest(tmp_path):
    page = page_of(tmp_path, [example(image=Image.new("RGB", (30, 20)))])
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for tag, directive in (('script type="module"', "script-src"), ("style", "style-src")):
        text = re.search(rf"<{tag}>(.*?)</", page, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    bare = page.replace("http://www.w3.org/2000/svg", "")  # a name, never fetched
    assert not re.search(r"https?://|<link|@import|\bsrc=", bare)
    assert "data:image/jpeg;base64," in page


def test_hostile_text_is_inert_in_the_page(tmp_path):
    clean = page_of(tmp_path, [])
    page = page_of(tmp_path, viewer_cases.hostile())
    tags = re.findall(r"<[a-zA-Z!/]+", page)
    assert tags == re.findall(r"<[a-zA-Z!/]+", clean)
    data = re.search(r'id="traces">(.*?)</script>', page, re.DOTALL)[1]
    assert not re.search(r"[<>&\u2028\u2029]", data)
    said = [found["question"] for found in json.loads(data)["examples"]]
    assert said == [visible(text) for text in viewer_cases.HOSTILE]
    titled = html.to_html([], tmp_path / "t.html", "</title><script>\u202e\ud800").read_text(
        encoding="utf-8")
    assert "<script>" not in titled and "\u202e" not in titled


def test_the_script_reads_no_markup_and_asks_for_nothing():
    script, style = html.SCRIPT, html.STYLE
    banned = (r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|createContextual"
              r"|eval\(|Function\(|fetch\(|XMLHttp|WebSocket|import\(|setHTML|\.href")
    assert not re.search(banned, script)
    assert not re.search(r"url\(|@import|expression", style)
    assert len(script.splitlines()) < 520


def test_a_model_answers_the_selected_question_again(tmp_path, monkeypatch):
    records = microworld.write_split(tmp_path, ["closeup", "panel"], "dev", 1, seed=4)
    images = tmp_path / "images"
    taught = {"teacher": [{"record_id": r.id, "completion": TEXT} for r in records]}
    viewer = TraceViewer(traces.examples(records, images, taught))
    asking = AskAgain(viewer, records, images, {"instruct": "data/pocket/instruct"}, 12)
    asking.temperature.value = 0.0
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)

    first = asking.answer()
    assert first == asking.answer(), "greedy, so the same"
    sides = shown[-1].example["sides"]
    assert [side["text"] for side in sides] == [first, first]
    assert [side["name"] for side in sides] == ["1 · instruct, T 0.0", "2 · instruct, T 0.0"]
    for _ in range(3):
        asking.answer()
    assert [side["name"][0] for side in shown[-1].example["sides"]] == ["2", "3", "4", "5"]

    viewer.selected = records[1].id  # another question, other answers
    asking.answer()
    assert shown[-1].example["id"] == records[1].id and len(shown[-1].example["sides"]) == 1
    assert not asking.button.disabled

    with pytest.raises(ValueError, match="is not among the records given"):
        AskAgain(viewer, records[:1], images, {"x": tmp_path}).answer()


def test_what_goes_wrong_in_a_kernel_is_shown_once(tmp_path, monkeypatch):
    """There the output widget shows an error and swallows it; no second one may follow."""
    told = []
    kernel = SimpleNamespace(showtraceback=lambda error, **_options: told.append(error[1]))
    monkeypatch.setattr("ipywidgets.widgets.widget_output.get_ipython", lambda: kernel)
    (record,) = microworld.write_split(tmp_path, ["closeup"], "dev", 1, seed=4)
    taught = {"teacher": [{"record_id": record.id, "completion": TEXT}]}
    viewer = TraceViewer(traces.examples([record], tmp_path / "images", taught))
    asking = AskAgain(viewer, [record], tmp_path / "images", {"gone": tmp_path / "gone"})
    assert asking.answer() is None and not asking.button.disabled
    (error,) = told
    assert "gone" in str(error)

"""The local teacher of the pocket world: its rules, its server, and what it refuses."""

from __future__ import annotations

import base64
import urllib.error
import urllib.request

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fault_server import trace
from vlaa_lib import pocket, prompts
from vlaa_lib.llm import fill
from vlaa_lib.pocket import microworld, teacher


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two micro-world records and their image root."""
    path = tmp_path_factory.mktemp("world")
    return microworld.write_split(path, ["solids"], "train", 2, seed=3), path / "images"


@given(
    st.text(alphabet="ab {}\n\\capt", max_size=40), st.text(alphabet="ab {}\nquest", max_size=40)
)
def test_templates_read_back_what_was_filled_in(caption, question):
    text = fill(prompts.DISTIL_PROMPT, caption=caption, question=question)
    found = teacher.read_back(prompts.DISTIL_PROMPT, text)
    assert found == {"caption": caption, "question": question}


def test_values_are_filled_in_once():
    filled = fill(prompts.VERIFY_PROMPT, question="{gold}", gold="{pred}", pred="3")
    values = teacher.read_back(prompts.VERIFY_PROMPT, filled)
    assert values == {"question": "{gold}", "gold": "{pred}", "pred": "3"}


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("The caption says there are 3.", "The image shows there are 3."),
        ("so this description mentions that\n\n  x", "so the image shows that\n\n  x"),
        ("According to the rationale, yes.", "The image shows yes."),
        ("It is in the caption itself.", "It is in the image itself."),
        ("The text says 5; captions differ.", "The text says 5; captions differ."),
        (trace("The Caption states 3", "3"), trace("The image shows 3", "3")),
    ],
)
def test_rewrite_rules(text, seen):
    assert teacher.rewrite(text) == seen


# gold -> answers that agree with it, answers that do not
VERDICTS = {
    "3": (
        ["3", "3.0", "4 minus 1 leaves 3 objects.", "$\\frac{6}{2}$"],
        ["3 minus 1 leaves 2", "13", "\\frac{1}{3}", "1/3", "three", ""],
    ),
    "1200": (["1,200"], ["200"]),
    "\\frac{1}{2}": (["0.5", "So it is $\\frac{2}{4}$."], ["2", "$\\frac{1}{2}$, no, $1$"]),
    "-2": (["-2"], ["2"]),
    "B": (
        ["B", "(b).", "Option B: red", "Choice A, no, choice B"],
        ["A", "triangle ABC has side B"],
    ),
    "[0.1, 0.1, 0.5, 0.5]": (
        ["[0.1,0.1,0.5,0.6]"],
        ["[0.5, 0.5, 0.9, 0.9]", "[0.1, 0.1, 0.5]", "near the top"],
    ),
    "2x + 1": (["$2x+1$", "1 + 2x"], ["2x - 1"]),
    "|x|": ([], ["x"]),
    "blue": (["It is blue."], ["bluebell"]),
    "There are 2 red cubes.": (
        ["I count 2 red cubes. There is 1 blue ball."],
        ["There are 3 red cubes."],
    ),
}


@pytest.mark.parametrize("gold", VERDICTS)
def test_verify_rules(gold):
    good, bad = VERDICTS[gold]
    assert [pred for pred in (*good, *bad) if teacher.agrees(gold, pred)] == good


def test_the_server_answers_the_official_client(world):
    items, images = world
    picture = base64.b64encode((images / items[0].image).read_bytes()).decode()
    look = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": prompts.CAPTION_PROMPT},
    ]
    think = fill(
        prompts.DISTIL_PROMPT,
        caption="There are 2 red cubes. There is 1 blue ball.",
        question="How many objects are there?",
    )
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)

        def ask(model, content, **options):
            messages = [{"role": "user", "content": content}]
            return client.chat.completions.create(model=model, messages=messages, **options)

        caption = ask("teacher-caption", look)
        assert caption == ask("teacher-caption", look)
        sampled = ask("teacher-caption", look, temperature=0.6, seed=3, stream=False)
        assert caption.choices == sampled.choices, "settings change nothing"
        assert caption.choices[0].finish_reason == "stop"
        assert caption.usage.total_tokens == (
            caption.usage.prompt_tokens + caption.usage.completion_tokens
        )
        thought = ask("teacher-distil", think).choices[0].message.content
        assert prompts.split_think_answer(thought).answer == "3", "from the text alone"

        for model, content, status, said in [
            ("gpt-4o", "hello", 404, "no model 'gpt-4o'"),
            ("teacher-caption", prompts.CAPTION_PROMPT, 422, "only knows micro-world images"),
            ("teacher-caption", "hello", 422, "only understands"),
            ("teacher-distil", "hello", 422, "only understands"),
            ("teacher-distil", think.replace("How many", "Why are"), 422, "."),
            ("teacher-verify", think, 422, "only understands"),
            ("teacher-caption", [look[0] | {"image_url": {"url": ";base64,x"}}], 400, "base64"),
            ("teacher-caption", [{"type": "image_url"}], 400, "expected JSON"),
        ]:
            with pytest.raises(openai.APIStatusError, match=said) as caught:
                ask(model, content)
            assert caught.value.status_code == status
            assert caught.value.body["message"] and caught.value.body["type"]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"null", b"[" * 100_000, b"\xff", b'{"model": 1}',
     b'{"model": "teacher-verify", "messages": "hello"}',
     b'{"model": "teacher-verify", "messages": [{"role": "user", "content": null}]}',
     b'{"model": "teacher-verify", "messages": [{"role": "user", "content": "\\ud800"}]}'],
)  # fmt: skip
def test_a_hostile_body_is_a_bad_request(body, capfd):
    with pocket.serve_teacher({}) as base_url:
        request = urllib.request.Request(base_url + "/chat/completions", data=body)
        with pytest.raises(urllib.error.HTTPError, match="4(00|04|22)"):
            urllib.request.urlopen(request)
    assert "Traceback" not in capfd.readouterr().err

"""The room of the language models: ledger, endpoints, limits, and a client on bad days."""

from __future__ import annotations

import base64
import io
import json
import sqlite3
import threading
import time
import traceback
from collections import Counter
from contextlib import closing
from dataclasses import replace
from itertools import count
from types import SimpleNamespace

import pytest
from PIL import Image

import fault_server
from fault_server import GOOD, KINDS, RETRIED, completion, endpoint, faulty_teacher
from test_construct import NOBODY, num_paid, outputs, run, totals
from vlaa_lib import Halted, VlaaError, construct, llm, pocket, prompts
from vlaa_lib.llm import CallFailed, Ledger, Reply, client, messages

PER_SOURCE = 8  # of the fixture `world`


@pytest.fixture
def one(world):
    """A counting record with caption and image root."""
    items, images = world
    return replace(items[0], caption="There are 3 things.", solution="3", gt="3"), images


def test_retry_after_is_heeded(one, tmp_path):
    record, images = one
    tries = []

    def answer(body):
        if body["model"] == "teacher-distil":
            tries.append(time.monotonic())
            if len(tries) == 1:
                return 429, "slow down", {"Retry-After": "1"}
        return GOOD(body)

    with endpoint(answer) as (base_url, _):
        result = run([record], images, base_url, tmp_path, max_retries=2)
    assert len(result.sft) == 1
    assert len(tries) == 2 and tries[1] - tries[0] >= 0.95


def test_one_silent_call_drops_one_record(world, tmp_path):
    items, images = world
    items = [replace(r, caption="There are 3 things.", solution="3") for r in items]
    silent, over = items[7].question, threading.Event()

    def answer(body):
        if silent in body["messages"][0]["content"] and body["model"] == "teacher-distil":
            over.wait(20)
        return GOOD(body)

    expected = [r.id for r in items if r.question == silent]
    with endpoint(answer) as (base_url, _):
        result = run(items, images, base_url, tmp_path, timeout_s=2.0)
        over.set()
    assert [d.id for d in result.drops] == expected
    assert {d.reason for d in result.drops} == {"no reply from the endpoint (TimeoutError)"}


@pytest.mark.parametrize("count", [1, 20])
def test_an_endpoint_that_is_not_there_is_named(world, tmp_path, count):
    with pytest.raises(VlaaError, match="127.0.0.1:9/v1"):
        run(world[0][:count], world[1], NOBODY, tmp_path)
    assert not (tmp_path / "sft.jsonl").exists()


def test_an_endpoint_that_dies_midway_stops_the_run_and_loses_nothing(world, tmp_path):
    items, images = world
    items = [replace(r, caption=f"There are 3 things {n}.") for n, r in enumerate(items[:20])]
    calls = count(1)  # each call has a number of its own, also beside another

    def answer(body):
        return GOOD(body) if next(calls) <= 10 else (503, "gone", {})

    stops = pytest.raises(VlaaError, match="8 calls in a row")
    with endpoint(answer) as (base_url, _), stops:
        run(items, images, base_url, tmp_path, concurrency=2)
    with endpoint(GOOD) as (base_url, bodies):
        result = run(items, images, base_url, tmp_path, concurrency=2)
    assert len(result.sft) == 20
    assert num_paid(tmp_path) == 10 + len(bodies) and len(bodies) == totals(result, "calls")


def test_the_ledger_tells_every_part_of_a_call_apart():
    base = ("verify", "m", {"temperature": 0.0}, "prompt", "image")
    others = ("rewrite", "n", {"temperature": 0.1}, "prompt ", "")
    calls = [(*base[:i], other, *base[i + 1 :]) for i, other in enumerate(others)]
    assert len({llm.call_key(*base), *(llm.call_key(*call) for call in calls)}) == 6


def test_the_ledger_keeps_the_first_reply(tmp_path):
    first = Reply("one", "m", "because", "", 3, 1, 0.5)
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger.put("k", "verify", first)
        ledger.put("k", "verify", Reply("two"))
    with Ledger(tmp_path / "l.sqlite") as again:
        assert again.get("k") == first and again.get("other") is None


def of_version_0(path):
    with closing(sqlite3.connect(path)) as old:
        old.execute("CREATE TABLE calls (key TEXT PRIMARY KEY)")


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda path: path.write_bytes(b"something else entirely" * 100), "not a ledger"),
        (lambda path: path.mkdir(), "cannot be used .*start again"),  # as if locked
        (of_version_0, "version 0, this library writes 2"),
    ],
)
def test_an_unusable_ledger_is_named(tmp_path, make, match):
    make(tmp_path / "ledger.sqlite")
    with pytest.raises(VlaaError, match=f"ledger.sqlite: .*{match}"):
        run([], tmp_path, NOBODY, tmp_path)


@pytest.mark.parametrize(
    ("bad", "status", "most"),
    [("caption", 401, 2), ("distil", 404, 2), ("rewrite", 400, 9), ("verify", 402, 2)],
)
def test_one_bad_endpoint_of_four_ends_the_run(world, tmp_path, bad, status, most):
    def answer(body):
        return (status, "not you", {}) if body["model"] == f"teacher-{bad}" else GOOD(body)

    stops = pytest.raises(VlaaError, match=f"teacher of {bad} at .*not you")
    with endpoint(answer) as (base_url, bodies), stops:
        run(*world, base_url, tmp_path, concurrency=2)
    asked = Counter(body["model"] == f"teacher-{bad}" for body in bodies)
    assert num_paid(tmp_path) == asked[False]
    assert asked[True] <= most, "nobody goes on asking"


def said(content, **fields):
    """Return the choices of a completion; fields are the message's, or the choice's."""
    return {"choices": completion({"content": content} | fields)["choices"]}


ODD = [
    {"usage": "x"},
    {"usage": {"prompt_tokens": 2**70, "completion_tokens": -1}},
    said("Yes", reasoning={"a": 1}, refusal={"b": 2}),
    said("Yes", reasoning_content="\ud800"),
    said("Yes", finish_reason="EOS"),
    said([{"type": "text", "text": "Y"}, "es"]),
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_but_readable_replies_are_read(odd):
    data = json.dumps(completion("Yes") | odd).encode()
    reply = messages.read_completion(data, construct.ENDPOINTS["verify"], 5)
    assert (reply.text, reply.problem) == ("Yes", "")
    assert 0 <= reply.prompt_tokens < 2**31 and reply.completion_tokens >= 0
    with Ledger(":memory:") as ledger:
        ledger.put("k", "verify", reply)
        assert ledger.get("k") == reply


NO_COMPLETIONS = fault_server.GARBAGE + fault_server.WRONG_SHAPES


@pytest.mark.parametrize("said", NO_COMPLETIONS, ids=range(len(NO_COMPLETIONS)))
def test_what_is_no_completion_is_refused(said):
    with pytest.raises(CallFailed, match="no chat completion"):
        messages.read_completion(said, construct.ENDPOINTS["verify"])


@pytest.mark.parametrize("format", ["MPO", "BMP", "TIFF", "WEBP"])
def test_pictures_go_out_in_a_form_that_teachers_take(tmp_path, format):
    image = Image.new("RGB", (40, 30), "red")
    image.save(tmp_path / "a.x", format, **({"save_all": True} if format == "MPO" else {}))
    data = (tmp_path / "a.x").read_bytes()
    head, _, sent = messages.data_url("a.x", data, tmp_path).partition(",")
    assert head.split(";")[0] in {"data:image/jpeg", "data:image/png", "data:image/webp"}
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (40, 30)


@pytest.mark.parametrize(
    ("base_url", "limits", "match"),
    [
        (NOBODY, {"concurrency": 0}, "concurrency is 0; .* above 0"),
        (NOBODY, {"max_cost": -5}, "max_cost is -5"),
        (NOBODY, {"max_tokens": 0}, "max_tokens is 0"),
        (NOBODY, {"timeout_s": 0}, "timeout_s is 0"),
        (NOBODY, {"timeout_s": float("nan")}, "timeout_s is nan"),
        (NOBODY, {"max_cost": 1.0}, "caption: no price"),
        ("", {}, "caption: no address"),
        ("http://teacher.invalid/v1", {}, "variable OPENAI_API_KEY is not set"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_anything_is_sent(
    world, tmp_path, monkeypatch, base_url, limits, match
):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(VlaaError, match=match):
        run(*world, base_url, tmp_path, **limits)


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(world, tmp_path, monkeypatch):
    free = iter([10**12] * 50)
    with endpoint(GOOD) as (base_url, bodies):
        usage = "disk_usage", lambda _: SimpleNamespace(free=next(free, 0))
        monkeypatch.setattr(client.shutil, *usage)
        with pytest.raises(Halted, match="MiB are free"):
            run(*world, base_url, tmp_path)
        assert num_paid(tmp_path) == len(bodies) == 50
        monkeypatch.undo()
        result = run(*world, base_url, tmp_path)
    assert num_paid(tmp_path) == len(bodies) and len(result.sft) == len(world[0])


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    with Ledger(tmp_path / "l.sqlite") as ledger:
        ledger._db.execute("PRAGMA max_page_count = 12")
        with pytest.raises(VlaaError, match="disk is full.*free space"):
            for n in range(100):
                ledger.put(f"k{n}", "verify", Reply("x" * 2000))
        kept = ledger.models()
    with Ledger(tmp_path / "l.sqlite") as again:
        assert again.models() == kept and kept[0]["replies"] > 0


@pytest.mark.parametrize(
    ("status", "said", "match"),
    [
        (401, "Incorrect API key provided: sk-very-secret", r"provided: \*\*\*"),
        (404, "The model teacher-caption does not exist", "model teacher-caption does not exist"),
        (200, b"<html>hello</html>", "no chat completion.*html"),
        # some servers answer an unknown model with 400, as if the record were at fault
        (400, "no such model", "calls in a row got no reply.*no such model"),
        (400, {"detail": "no such model"}, "calls in a row got no reply.*no such model"),
    ],
)
def test_an_endpoint_that_answers_nobody_is_named_and_no_key_is_told(
    world, tmp_path, monkeypatch, status, said, match
):
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    keyed = {s: replace(e, api_key_env="MY_KEY") for s, e in construct.ENDPOINTS.items()}
    stops = pytest.raises(VlaaError, match=match)
    with endpoint(lambda body: (status, said, {})) as (base_url, _), stops as caught:
        run(*world, base_url, tmp_path, keyed)
    assert "sk-very-secret" not in "".join(traceback.format_exception(caught.value))
    assert not (tmp_path / "sft.jsonl").exists()
    for file in tmp_path.iterdir():
        assert b"sk-very-secret" not in file.read_bytes()


def test_empty_replies_are_asked_for_again_and_paid(world, tmp_path):
    items, images = world
    tries = Counter()

    def answer(body):
        tries[json.dumps(body)] += 1
        is_first = tries[json.dumps(body)] == 1
        return (200, " ", {}) if is_first else GOOD(body)

    with endpoint(answer) as (base_url, bodies):
        result = run(items[:10], images, base_url, tmp_path)
    assert len(result.sft) == 10
    assert len(bodies) == 2 * num_paid(tmp_path)
    assert totals(result, "completion_tokens") == 2 * len(bodies)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("verfy: {model: m}", "'verfy' is no step"),
        ("verify: m", "verify: expected a section with at least 'model'"),
        ("verify: {price: [1, 2]}", "verify.model: Field required"),
        ("verify: {model: 3}", "verify.model: .*valid string"),
        ("verify: {model: m, key: sk}", "verify.key: .*a section has model, base_url"),
        ("verify: {model: m, price: 3}", "verify.price: .*valid tuple.*.prompt, completion"),
        ("verify: {model: m, price: [1]}", "verify.price.1: .*.prompt, completion"),
        ("verify: {model: m, price: [1, -1]}", "verify.price.1: .*greater than or equal to 0"),
        ("verify: {model: m, settings: {top_k: 3}}", "settings.top_k: .*extra_body"),
        ("verify: {model: m, settings: {stream: true}}", "settings.stream: .*not to be set"),
        ("verify: [", "cannot be read as YAML"),
        ("- a", "expected a section or `key: value` lines, found list"),
    ],
)
def test_a_wrong_endpoints_file_is_named(tmp_path, text, match):
    (tmp_path / "e.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(VlaaError, match=f"e.yaml: .*{match}"):
        construct.read_endpoints(tmp_path / "e.yaml")


def ask(base_url, text, folder, **limits):
    """Ask the endpoint to rewrite a text; return its reply, or why there is none."""
    said = [llm.Request("rewrite", llm.fill(prompts.REWRITE_PROMPT, input=text))]
    made = llm.Endpoint("teacher-rewrite", base_url)
    limits = llm.Limits(**{"max_retries": 4, "timeout_s": 20.0} | limits)
    return llm.ask_all(said, made, folder / "l.sqlite", limits=limits)[0]


READ = {"drip": "", "empty": "empty reply", "truncated": "reply cut at the token limit",
        "unfinished": "unfinished reply (error)"}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_that_stays_is_told(tmp_path, kind):
    with faulty_teacher({}, 1.0, (kind,)) as (base_url, outcomes):
        if kind in READ:
            said = ask(base_url, "The caption has 3.", tmp_path)
            problem = said.reason if isinstance(said, CallFailed) else said.problem
            assert problem == READ[kind]
        else:
            # the only call of a run is unanswered: then nobody is there
            with pytest.raises(VlaaError, match="teacher of rewrite at .*no call was answered"):
                ask(base_url, "The caption has 3.", tmp_path, max_retries=1)
    tries = {"drip": 1, "truncated": 1} | dict.fromkeys(RETRIED, 2)
    assert outcomes == {kind: tries.get(kind, client.TRIES)}


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"truncated"}))
def test_a_fault_that_passes_is_not_seen(tmp_path, kind):
    with faulty_teacher({}, 0.5, (kind,)) as (base_url, outcomes):
        for number in range(20):  # until one was hit
            said = ask(base_url, f"The caption has {number}.", tmp_path)
            assert (said.text, said.problem) == (f"The image has {number}.", "")
            if outcomes[kind]:
                break
    assert outcomes[kind]


def test_equal_questions_are_one_call_and_a_failure_is_one_answers(tmp_path):
    def answer(body):
        said = body["messages"][0]["content"]
        return (422, "not that", {}) if said == "bad" else (200, said.upper(), {})

    spent, ledger = llm.Spent(), tmp_path / "l.sqlite"
    asked = [llm.Request("judge", text) for text in ("a", "b", "a", "bad", "c", "d")]
    with endpoint(answer) as (base_url, bodies):
        made = llm.Endpoint("m", base_url, price=(1.0, 1.0))
        found = llm.ask_all(asked[:5], made, ledger, spent=spent)
        assert len(bodies) == 4 and spent.tokens == 3 * 9
        again = llm.ask_all(asked[:3], made, ledger, spent=spent)
        assert again == found[:3] and len(bodies) == 4
        with pytest.raises(Halted, match=r"judge: the budget of 9 tokens .*l\.sqlite"):
            llm.ask_all(asked[5:], made, ledger, limits=llm.Limits(max_tokens=9), spent=spent)
    assert [reply.text for reply in found if isinstance(reply, Reply)] == ["A", "B", "A", "C"]
    assert found[3].reason == "refused by the endpoint (HTTP 422)" and "not that" in found[3].detail
    assert llm.ask_all([], made, ledger) == []


@pytest.fixture(scope="module")
def quiet(world, tmp_path_factory):
    """What a run without faults writes."""
    out = tmp_path_factory.mktemp("quiet")
    with pocket.serve_teacher(pocket.scenes_of(*world)) as base_url:
        run(*world, base_url, out)
    files = outputs(out)
    assert all(text.count(b"\n") >= 4 for text in files.values()), "each file has some"
    return files


def test_faults_that_pass_leave_no_trace(world, quiet, tmp_path):
    with faulty_teacher(pocket.scenes_of(*world), 0.2, RETRIED) as (base_url, outcomes):
        run(*world, base_url, tmp_path, concurrency=16, max_retries=6)
    assert outputs(tmp_path) == quiet
    assert set(outcomes) == {"", *RETRIED} and outcomes.total() - outcomes[""] > 20


def test_faults_that_stay_are_drops_with_a_reason(world, quiet, tmp_path):
    scenes = pocket.scenes_of(*world)
    with faulty_teacher(scenes, 0.2, RETRIED, persistent=True) as (base_url, _):
        result = run(*world, base_url, tmp_path, concurrency=16, max_retries=1)
        files = outputs(tmp_path)
    hit = [drop for drop in result.drops if drop.reason.startswith("no reply from the endpoint")]
    assert len(hit) > 10 and {drop.step for drop in hit} == set(construct.ENDPOINTS)
    said = " ".join(drop.reason for drop in hit)
    assert all(word in said for word in ("HTTP 429", "HTTP 500", "HTTP 503", "ConnectionError"))
    with pocket.serve_teacher(scenes) as base_url:
        run(*world, base_url, tmp_path)
    assert outputs(tmp_path) == quiet != files, "the next run asks what had no reply, and only that"

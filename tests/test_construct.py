"""Construction: the whole pipeline on the local teacher, resume, drops, splits, the server."""

from __future__ import annotations

import asyncio
import base64
import csv
import json
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlaa_lib import construct, pocket, prompts, records
from vlaa_lib.construct import steps, templates
from vlaa_lib.llm import messages
from vlaa_lib.llm.ledger import Ledger, LedgerError, Reply, call_key
from vlaa_lib.pocket import microworld, rules, server
from vlaa_lib.pocket.microworld.narrator import Rates
from vlaa_lib.records import Record

ROOT = Path(__file__).parents[1]
SAMPLES = Path(__file__).parents[2] / "shared/samples/vlaa_thinking"
SOURCES = ["solids", "panel", "plot", "locate", "describe"]
FILES = ("sft.jsonl", "rl.jsonl", "drops.jsonl")
NOBODY = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Twenty micro-world records and their image root."""
    path = tmp_path_factory.mktemp("world")
    return microworld.write_split(path, SOURCES, "train", 4, seed=3), path / "images"


@pytest.fixture
def count_replies(monkeypatch):
    """Count what reaches the local teacher, as it sees it."""
    seen = []
    answer = server.LocalTeacher.reply

    def counted(self, model, messages):
        seen.append(model)
        return answer(self, model, messages)

    monkeypatch.setattr(server.LocalTeacher, "reply", counted)
    return seen


@contextmanager
def endpoint(answer):
    """Serve `answer(body) -> (status, content or error, headers)` as an OpenAI endpoint."""
    bodies = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(length := int(self.headers["Content-Length"]))
            if len(data) < length:
                return  # the client died in the middle
            body = json.loads(data)
            bodies.append(body)
            status, content, headers = answer(body)
            error = content if isinstance(content, dict) else {"error": {"message": content}}
            payload = completion(content) if status == 200 else error
            data = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1", bodies
    finally:
        httpd.shutdown()
        thread.join()
        httpd.server_close()


def completion(content):
    """Build a completion whose message is text, or a dict of message and choice fields."""
    fields = {"content": content} if isinstance(content, str) else dict(content)
    finish = fields.pop("finish_reason", "stop")
    message = {"role": "assistant", "content": None} | fields
    return {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9},
    }


def by_step(**replies):
    """Answer each step with one reply; rewriting gives its input back unless told otherwise."""

    def answer(body):
        step = body["model"].removeprefix("teacher-")
        content = replies.get(step, {"caption": "A thing.", "verify": "Yes"}.get(step))
        if content is None and step == "rewrite":
            prompt = body["messages"][0]["content"]
            content = templates.read(prompts.REWRITE_PROMPT, prompt)["input"]
        return content if isinstance(content, tuple) else (200, content, {})

    return answer


def trace(think="two and one", answer="3"):
    return prompts.join_think_answer(think, answer)


def run(items, images, base_url, out, endpoints=construct.ENDPOINTS, progress=False, **options):
    limits = construct.Limits(**({"max_retries": 0} | options))
    return construct.run(
        items, images, base_url, out, limits=limits, endpoints=endpoints, progress=progress
    )


def outputs(out):
    return {name: (out / name).read_bytes() for name in FILES}


def totals(result, column):
    return sum(row[column] for row in result.counts)


def num_paid(out):
    with closing(Ledger(out / "ledger.sqlite")) as ledger:
        return len(ledger)


def refused(result):
    return sum("HTTP" in drop.reason for drop in result.drops)


def test_twenty_records_go_through_every_step(world, tmp_path):
    items, images = world
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        result = run(items, images, base_url, tmp_path)

    ids = [record.id for record in items]
    kept = result.sft + result.rl
    assert sorted([r.id for r in kept] + [d.id for d in result.drops]) == sorted(ids)
    assert kept and result.drops, "the lossy captions of this seed leave both"
    for split in (result.sft, result.rl, result.drops):
        assert [r.id for r in split] == sorted((r.id for r in split), key=ids.index)
    for record in kept:
        parsed = prompts.split_think_answer(record.answer)
        assert parsed.problem is None and parsed.think
        assert record.caption and record.ds_answer
        assert "caption" not in record.answer and "description" not in record.answer
        assert record.meta["caption_model_id"] == "teacher-caption"
    assert not any(construct.has_aha(r.answer) for r in result.sft)
    assert all(construct.has_aha(r.answer) for r in result.rl)
    assert records.load(tmp_path / "sft.jsonl").records == result.sft
    assert records.load(tmp_path / "rl.jsonl").records == result.rl


def test_counts_add_up_and_are_written(world, tmp_path):
    items, images = world
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        result = run(items, images, base_url, tmp_path)
    table = {(row["step"], row["source"]): row for row in result.counts}
    chain = ("caption", "distil", "rewrite", "verify")
    for source in SOURCES:
        assert table["caption", source]["in"] == 4
        for before, after in pairwise(chain):
            assert table[before, source]["out"] == table[after, source]["in"]
        split = table["split: sft", source]["out"] + table["split: rl", source]["out"]
        assert split == table["verify", source]["out"]
    for row in result.counts:
        assert row["in"] == row["out"] + row["dropped"]
    for step in chain:
        rows = [row for row in result.counts if row["step"] == step]
        unanswered = sum(drop.step == step and "HTTP" in drop.reason for drop in result.drops)
        assert sum(row["calls"] for row in rows) == sum(row["in"] for row in rows) - unanswered
        assert all(row["prompt_tokens"] > 0 and row["seconds"] > 0 for row in rows if row["in"])
    with (tmp_path / "counts.csv").open() as stream:
        written = list(csv.DictReader(stream))
    assert [{k: str(v) for k, v in row.items()} for row in result.counts] == written


def test_a_teacher_that_never_errs_loses_nothing(world, tmp_path):
    items, images = world
    scenes = pocket.scenes_of(items, images)
    with pocket.serve_teacher(scenes, Rates(0.0, 0.0, 0.0, 0.0)) as base_url:
        result = run(items, images, base_url, tmp_path)
    assert result.drops == [] and result.rl == []
    assert [record.id for record in result.sft] == [record.id for record in items]


def test_resume_asks_nothing_twice(world, tmp_path, count_replies):
    items, images = world
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        first = run(items, images, base_url, tmp_path)
        asked, before = len(count_replies), outputs(tmp_path)
        second = run(items, images, base_url, tmp_path)
    assert asked == totals(first, "calls") + refused(first) > 60
    assert outputs(tmp_path) == before
    assert totals(second, "calls") == 0
    # a refusal is no reply: it cost nothing, and the next run may fare better
    assert len(count_replies) - asked == refused(second)
    for column in ("prompt_tokens", "completion_tokens", "seconds"):
        # each of the rows rounds its seconds to a thousandth
        assert totals(first, column) == pytest.approx(totals(second, column), abs=0.02)
    answered = [r for r in items if r.id not in {d.id for d in first.drops if "HTTP" in d.reason}]
    assert len(answered) > 15
    third = run(answered, images, NOBODY, tmp_path)
    assert (third.sft, third.rl) == (first.sft, first.rl)


def test_order_and_result_do_not_depend_on_concurrency(world, tmp_path):
    items, images = world
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        run(items, images, base_url, tmp_path / "one", concurrency=1)
        run(items, images, base_url, tmp_path / "many", concurrency=16)
    assert outputs(tmp_path / "one") == outputs(tmp_path / "many")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_run_resumes_to_the_same_result(world, tmp_path, monkeypatch, how):
    items, images = world
    answer, finished = server.LocalTeacher.reply, []

    def slow(self, model, messages):
        time.sleep(0.03)
        finished.append(model)
        return answer(self, model, messages)

    monkeypatch.setattr(server.LocalTeacher, "reply", slow)
    out, code = (
        tmp_path / "killed",
        (
            "import signal, sys; from vlaa_lib import construct, records\n"
            # a shell's background jobs, and so what they start, ignore Ctrl-C
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            "path, url, out = sys.argv[1:]\n"
            "items = records.load(path + '/records.jsonl').records\n"
            "limits = construct.Limits(concurrency=4)\n"
            "construct.run(items, path + '/images', url, out, limits=limits, progress=False)\n"
        ),
    )
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        child = subprocess.Popen(
            [sys.executable, "-c", code, str(images.parent), base_url, str(out)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + 60
        while len(finished) < 25 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        child.send_signal(how)
        _, stderr = child.communicate(timeout=20)
        assert child.returncode != 0, "the run ended before it was killed"
        if how == signal.SIGINT:
            assert b"KeyboardInterrupt" in stderr and b"never retrieved" not in stderr
        assert not (out / "sft.jsonl").exists()
        paid = num_paid(out)
        time.sleep(0.3)  # what the dead child had still asked is answered to nobody
        in_flight = len(finished) - paid
        assert paid >= 15 and in_flight <= 4 + 1
        finished.clear()
        resumed = run(items, images, base_url, out, concurrency=4)
        asked_again = len(finished)
        whole = run(items, images, base_url, tmp_path / "whole", concurrency=4)
    assert outputs(out) == outputs(tmp_path / "whole")
    assert asked_again == totals(whole, "calls") + refused(whole) - paid
    assert totals(resumed, "calls") == totals(whole, "calls") - paid


@pytest.fixture
def one(world):
    """A counting record with caption and image root."""
    items, images = world
    return replace(items[0], caption="There are 3 things.", solution="3", gt="3"), images


@pytest.mark.parametrize(
    ("replies", "step", "reason"),
    [
        ({"distil": "no tags at all"}, "distil", "malformed trace"),
        ({"distil": "3" + prompts.THINK_CLOSE + " "}, "distil", "malformed trace"),
        ({"distil": trace("a " + prompts.THINK_OPEN + "b")}, "distil", "malformed trace"),
        ({"distil": trace("a", "b" + prompts.THINK_CLOSE)}, "distil", "malformed trace"),
        ({"distil": trace("a") + trace("b")}, "distil", "malformed trace"),
        ({"distil": "Sure! " + trace()}, "distil", "malformed trace"),
        ({"distil": trace("", "3")}, "distil", "malformed trace"),
        ({"distil": trace("a", " ")}, "distil", "malformed trace"),
        ({"distil": " "}, "distil", "unusable reply"),
        ({"distil": {"content": None, "refusal": "I will not."}}, "distil", "unusable reply"),
        (
            {"distil": {"content": trace(), "finish_reason": "length"}},
            "distil",
            "unusable reply",
        ),
        (
            {"distil": {"content": trace(), "finish_reason": "content_filter"}},
            "distil",
            "unusable reply",
        ),
        ({"rewrite": "two and one, 3"}, "rewrite", "rewrite broke the trace"),
        (
            {"rewrite": trace("two and one" + " more" * 16)},
            "rewrite",
            "rewrite changed the length by more than 15 words",
        ),
        ({"verify": "No."}, "verify", "answer is not the gold"),
        ({"verify": "Yes, I think"}, "verify", "verdict is neither Yes nor No"),
        ({"verify": "maybe"}, "verify", "verdict is neither Yes nor No"),
        ({"verify": (422, "what?", {})}, "verify", "refused by the endpoint (HTTP 422)"),
        ({"verify": (400, "too long", {})}, "verify", "refused by the endpoint (HTTP 400)"),
        ({"verify": (500, "oops", {})}, "verify", "no reply from the endpoint (HTTP 500)"),
        ({"verify": (429, "slow", {})}, "verify", "no reply from the endpoint (HTTP 429)"),
    ],
)
def test_each_reason_drops_the_record_and_is_counted(one, tmp_path, replies, step, reason):
    record, images = one
    with endpoint(by_step(**{"distil": trace()} | replies)) as (base_url, _):
        result = run([record], images, base_url, tmp_path)
    assert result.sft == result.rl == []
    (drop,) = result.drops
    assert drop.detail
    assert (drop.id, drop.step, drop.reason) == (record.id, step, reason)
    (row,) = [row for row in result.counts if row["dropped"]]
    assert (row["step"], row["reasons"]) == (step, f"{reason}: 1")
    (line,) = (tmp_path / "drops.jsonl").read_text().splitlines()
    assert json.loads(line)["reason"] == reason


@pytest.mark.parametrize("verdict", ["Yes", "yes", " YES.\n"])
def test_a_good_record_passes_the_same_endpoint(one, tmp_path, verdict):
    record, images = one
    with endpoint(by_step(distil=trace(), verify=verdict)) as (base_url, _):
        result = run([record], images, base_url, tmp_path)
    assert [r.answer for r in result.sft] == [trace()]


@pytest.mark.parametrize("name", ["missing.png", "broken.png"])
def test_a_bad_image_is_never_sent(world, tmp_path, name):
    items, _ = world
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with endpoint(by_step()) as (base_url, bodies):
        result = run([replace(items[0], image=name)], tmp_path, base_url, tmp_path / "out")
    assert bodies == []
    assert [(d.step, d.reason) for d in result.drops] == [("caption", "unusable image")]


def test_an_image_unknown_to_the_local_teacher_is_dropped(world, tmp_path):
    items, images = world
    with pocket.serve_teacher(pocket.scenes_of(items[1:], images)) as base_url:
        result = run(items[:5], images, base_url, tmp_path)
    unknown = [drop for drop in result.drops if drop.step == "caption"]
    assert [drop.id for drop in unknown] == [items[0].id]
    assert unknown[0].reason == "refused by the endpoint (HTTP 422)"
    assert "micro-world images" in unknown[0].detail


@pytest.mark.parametrize(
    ("words", "kept"), [(0, True), (15, True), (16, False), (-15, True), (-16, False)]
)
def test_rewrite_may_change_fifteen_words(one, words, kept):
    record = replace(one[0], answer=trace("word " * 20, "3"))
    outcome = steps.take_rewrite(record, Reply(trace("word " * (20 + words), "3")))
    assert isinstance(outcome, Record) is kept
    if not kept:
        assert outcome.detail == "16 words"


def test_rewrite_counts_no_tags_and_no_line_breaks(one):
    record = replace(one[0], answer=trace("word " * 20, "3"))
    spread = trace("word\n" * 35, "3").replace(prompts.ANSWER_OPEN, "\n\n" + prompts.ANSWER_OPEN)
    assert isinstance(steps.take_rewrite(record, Reply(spread)), Record)


@pytest.mark.parametrize(
    ("text", "aha"),
    [
        *((f"so {word.capitalize()} now", True) for word in construct.AHA_KEYWORDS),
        ("a CHECKERED floor", True),
        ("the waiter", True),
        ("against the wall", True),
        ("I should CONFIRM", True),
        ("I should  confirm", False),
        ("hm, double check is chec", False),
        ("doubled, mistook, alternative", False),
        ("", False),
    ],
)
def test_aha_is_a_plain_substring_test(text, aha):
    assert construct.has_aha(text) is (aha or "check" in text.lower())


def test_aha_keywords_are_the_papers_eight():
    assert sorted(construct.AHA_KEYWORDS) == [
        "again", "alternatively", "check", "double-check", "hmm", "i should confirm", "mistake",
        "wait",
    ]  # fmt: skip


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="the two published records are not here")
def test_the_published_records_reach_the_splits(tmp_path, count_replies):
    items = records.load(SAMPLES / "records.jsonl", SAMPLES / "images").records
    with pocket.serve_teacher({}) as base_url:
        result = run(items, SAMPLES / "images", base_url, tmp_path)
    assert sorted(set(count_replies)) == ["teacher-rewrite", "teacher-verify"]
    assert result.drops == []
    assert [r.id for r in result.rl] == [r.id for r in items], "both traces wait and double-check"
    answers = [prompts.split_think_answer(r.answer).answer for r in result.rl]
    assert answers == ["3", "C"], "closed questions answered in prose take the verified gold"
    assert [r.ds_answer for r in result.rl] == [r.ds_answer for r in items]


@pytest.mark.parametrize(
    ("given", "reward", "answer"),
    [
        ({"ds_answer": "<think>t</think>\nThere are 3."}, "digit", "3"),
        ({"ds_answer": "<think>t</think>\nThere are 3."}, "open", "There are 3."),
        ({"ds_answer": trace("t", "3 things")}, "digit", "3 things"),
        ({"answer": trace("t", "3 things")}, "digit", "3 things"),
    ],
)
def test_final_answer_of_prose_blocks_and_released_traces(one, tmp_path, given, reward, answer):
    record, images = one
    with endpoint(by_step()) as (base_url, bodies):
        result = run([replace(record, reward=reward, **given)], images, base_url, tmp_path)
    assert [body["model"] for body in bodies] == ["teacher-rewrite", "teacher-verify"]
    assert [r.answer for r in result.sft] == [trace("t", answer)]


@pytest.mark.parametrize(
    ("content", "reasoning"),
    [
        ("two and one</think>3", None),  # the prompt held the opening tag
        ("<think></think>3", "two and one"),
        ("3", "two and one"),
    ],
)
def test_a_reasoners_own_ways_to_hand_its_thinking_over(one, tmp_path, content, reasoning):
    record, images = one
    said = {"content": content, "reasoning_content": reasoning}
    with endpoint(by_step(distil=said, rewrite=trace())) as (base_url, bodies):
        run([record], images, base_url, tmp_path)
    rewritten = bodies[1]["messages"][0]["content"]
    assert "<think>two and one</think><answer>3</answer>" in rewritten


def test_thinking_beside_the_text_becomes_the_think_block(one, tmp_path):
    record, images = one
    reply = {"content": "Three.", "reasoning_content": "two and one"}
    with endpoint(by_step(distil=reply)) as (base_url, _):
        result = run([replace(record, reward="open")], images, base_url, tmp_path)
    assert [r.answer for r in result.sft] == [trace("two and one", "Three.")]


def test_the_scene_never_reaches_the_teacher(one, tmp_path):
    record, images = one
    scene = record.meta["scene"] | {"note": "XYZZY"}
    record = replace(record, caption="", meta={"scene": scene}, extra={"more": "XYZZY"})
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        run([record], images, base_url, tmp_path)
    assert len(bodies) == 4
    assert "XYZZY" not in json.dumps(bodies)
    image = bodies[0]["messages"][0]["content"][0]["image_url"]["url"]
    assert image.startswith("data:image/png;base64,")
    assert base64.b64decode(image.partition(",")[2]) == (images / record.image).read_bytes()
    assert all(isinstance(body["messages"][0]["content"], str) for body in bodies[1:])


def test_extra_context_is_the_sources_own(one):
    record = one[0]
    clevr = replace(record, source="CLEVR-Math", meta={"rationale": "RATIONALE", "scene": {}})
    puma = replace(record, source="Math PUMA", caption="", meta={"text_question": "AS TEXT"})
    other = replace(record, source="COCO", meta={"rationale": "RATIONALE"})
    assert "RATIONALE" in steps.ask_distil(clevr).text
    assert "AS TEXT" in steps.ask_distil(puma).text and steps.ask_caption(puma) is None
    assert "RATIONALE" not in steps.ask_distil(other).text
    assert steps.ask_caption(replace(puma, meta={})).image == record.image


def test_equal_requests_are_one_call(world, tmp_path):
    items, images = world
    twins = [replace(items[0], id=f"twin-{n}") for n in range(6)]
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        result = run(twins, images, base_url, tmp_path, concurrency=6)
    assert len(result.sft) == 6
    assert len(bodies) == 4 == totals(result, "calls")
    assert totals(result, "from_ledger") == 4 * 5
    assert totals(result, "prompt_tokens") == 4 * 7


def test_retry_after_is_heeded(one, tmp_path):
    record, images = one
    tries = []

    def answer(body):
        if body["model"] == "teacher-distil":
            tries.append(time.monotonic())
            if len(tries) == 1:
                return 429, "slow down", {"Retry-After": "1"}
        return by_step(distil=trace())(body)

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
        return by_step(distil=trace())(body)

    expected = [r.id for r in items if r.question == silent]
    with endpoint(answer) as (base_url, _):
        result = run(items, images, base_url, tmp_path, timeout_s=2.0)
        over.set()
    assert [d.id for d in result.drops] == expected
    assert {d.reason for d in result.drops} == {"no reply from the endpoint (APITimeoutError)"}


@pytest.mark.parametrize("count", [1, 20])
def test_an_endpoint_that_is_not_there_is_named(world, tmp_path, count):
    items, images = world
    with pytest.raises(construct.TeacherUnreachable, match="127.0.0.1:9/v1"):
        run(items[:count], images, NOBODY, tmp_path)
    assert not (tmp_path / "sft.jsonl").exists()


def test_an_endpoint_that_dies_midway_stops_the_run_and_loses_nothing(world, tmp_path):
    items, images = world
    items = [replace(r, caption=f"There are 3 things {n}.") for n, r in enumerate(items)]
    alive = []

    def answer(body):
        alive.append(1)
        return by_step(distil=trace())(body) if len(alive) <= 10 else (503, "gone", {})

    stops = pytest.raises(construct.TeacherUnreachable, match="8 calls in a row")
    with endpoint(answer) as (base_url, _), stops:
        run(items, images, base_url, tmp_path, concurrency=2)
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        result = run(items, images, base_url, tmp_path, concurrency=2)
    assert len(result.sft) == 20
    assert num_paid(tmp_path) == 10 + len(bodies) and len(bodies) == totals(result, "calls")


def test_a_wrong_key_is_not_a_thousand_drops(world, tmp_path):
    items, images = world
    stops = pytest.raises(construct.TeacherUnreachable, match="bad key")
    with endpoint(lambda body: (401, "bad key", {})) as (base_url, _), stops:
        run(items, images, base_url, tmp_path)


def test_endpoints_by_step_from_a_file(one, tmp_path):
    record, images = one
    (tmp_path / "e.yaml").write_text("verify: {model: judge, settings: {seed: 7}, price: [1, 2]}")
    chosen = construct.read_endpoints(tmp_path / "e.yaml")
    with endpoint(by_step(distil=trace(), judge="Yes")) as (base_url, bodies):
        result = run([record], images, base_url, tmp_path, endpoints=chosen)
    assert [body["model"] for body in bodies] == ["teacher-distil", "teacher-rewrite", "judge"]
    assert bodies[0]["temperature"] == construct.ENDPOINTS["distil"].settings["temperature"]
    assert bodies[2]["seed"] == 7 and "temperature" not in bodies[2]
    assert totals(result, "cost") == pytest.approx((7 * 1 + 2 * 2) / 1e6)


def test_runs_where_a_loop_is_running(one, tmp_path):
    record, images = one

    async def cell():
        with endpoint(by_step(distil=trace())) as (base_url, _):
            return run([record], images, base_url, tmp_path, progress=True)

    assert len(asyncio.run(cell()).sft) == 1


def test_no_records_make_empty_files(tmp_path):
    result = run([], tmp_path, NOBODY, tmp_path)
    assert result.counts == [] and outputs(tmp_path) == dict.fromkeys(FILES, b"")


def test_the_ledger_tells_every_part_of_a_call_apart():
    base = ("verify", "m", {"temperature": 0.0}, "prompt", "image")
    others = [
        ("rewrite", *base[1:]),
        ("verify", "n", *base[2:]),
        (*base[:2], {"temperature": 0.1}, *base[3:]),
        (*base[:3], "prompt ", "image"),
        (*base[:4], ""),
    ]
    assert len({call_key(*base), *(call_key(*other) for other in others)}) == 6


def test_the_ledger_keeps_the_first_reply(tmp_path):
    first = Reply("one", "m", "because", "", 3, 1, 0.5)
    with closing(Ledger(tmp_path / "l.sqlite")) as ledger:
        ledger.put("k", "verify", first)
        ledger.put("k", "verify", Reply("two"))
    with closing(Ledger(tmp_path / "l.sqlite")) as again:
        assert again.get("k") == first and again.get("other") is None and len(again) == 1


def test_a_file_that_is_no_ledger_is_named(tmp_path):
    (tmp_path / "ledger.sqlite").write_bytes(b"something else entirely" * 100)
    with pytest.raises(LedgerError, match="ledger.sqlite: not a ledger"):
        run([], tmp_path, NOBODY, tmp_path)


@given(
    st.text(alphabet="ab {}\n\\capt", max_size=40), st.text(alphabet="ab {}\nquest", max_size=40)
)
def test_templates_read_back_what_was_filled_in(caption, question):
    text = messages.fill(prompts.DISTIL_PROMPT, caption=caption, question=question)
    assert templates.read(prompts.DISTIL_PROMPT, text) == {"caption": caption, "question": question}


def test_values_are_filled_in_once():
    filled = messages.fill(prompts.VERIFY_PROMPT, question="{gold}", gold="{pred}", pred="3")
    values = templates.read(prompts.VERIFY_PROMPT, filled)
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
    assert rules.rewrite(text) == seen


@pytest.mark.parametrize(
    ("gold", "pred", "agree"),
    [
        ("3", "3", True),
        ("3", "3.0", True),
        ("3", "4 minus 1 leaves 3 objects.", True),
        ("3", "3 minus 1 leaves 2", False),
        ("3", "13", False),
        ("3", "\\frac{1}{3}", False),
        ("3", "three", False),
        ("3", "", False),
        ("-2", "-2", True),
        ("-2", "2", False),
        ("B", "B", True),
        ("B", "(b).", True),
        ("B", "Option B: red", True),
        ("B", "Choice A, no, choice B", True),
        ("B", "A", False),
        ("B", "triangle ABC has side B", False),
        ("[0.1, 0.1, 0.5, 0.5]", "[0.1,0.1,0.5,0.6]", True),
        ("[0.1, 0.1, 0.5, 0.5]", "[0.5, 0.5, 0.9, 0.9]", False),
        ("[0.1, 0.1, 0.5, 0.5]", "[0.1, 0.1, 0.5]", False),
        ("[0.1, 0.1, 0.5, 0.5]", "near the top", False),
        ("2x + 1", "$2x+1$", True),
        ("2x + 1", "2x - 1", False),
        ("|x|", "x", False),
        ("blue", "It is blue.", True),
        ("blue", "bluebell", False),
        ("There are 2 red cubes.", "I count 2 red cubes. There is 1 blue ball.", True),
        ("There are 2 red cubes.", "There are 3 red cubes.", False),
    ],
)
def test_verify_rules(gold, pred, agree):
    assert rules.agrees(gold, pred) is agree


def test_the_server_answers_the_official_client(world):
    items, images = world
    picture = base64.b64encode((images / items[0].image).read_bytes()).decode()
    look = [
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{picture}"}},
        {"type": "text", "text": prompts.CAPTION_PROMPT},
    ]
    think = messages.fill(
        prompts.DISTIL_PROMPT,
        caption="There are 2 red cubes. There is 1 blue ball.",
        question="How many objects are there?",
    )
    with pocket.serve_teacher(pocket.scenes_of(items, images)) as base_url:
        client = openai.OpenAI(base_url=base_url, api_key="any", max_retries=0)

        def ask(model, content, **options):
            messages = [{"role": "user", "content": content}]
            return client.chat.completions.create(model=model, messages=messages, **options)

        models = [model.id for model in client.models.list()]
        assert models == [f"teacher-{s}" for s in ("caption", "distil", "rewrite", "verify")]
        caption = ask("teacher-caption", look)
        assert caption == ask("teacher-caption", look)
        assert caption.choices[0].finish_reason == "stop"
        assert caption.usage.total_tokens == (
            caption.usage.prompt_tokens + caption.usage.completion_tokens
        )
        thought = ask("teacher-distil", think).choices[0].message.content
        assert prompts.split_think_answer(thought).answer == "3", "from the text alone"

        for model, content, options, status in [
            ("gpt-4o", "hello", {}, 404),
            ("teacher-caption", prompts.CAPTION_PROMPT, {}, 400),
            ("teacher-caption", "hello", {}, 422),
            ("teacher-distil", "hello", {}, 422),
            ("teacher-distil", think.replace("How many", "Why are"), {}, 422),
            ("teacher-verify", think, {"stream": True}, 422),
            ("teacher-caption", [{"type": "image_url", "image_url": {"url": "x"}}], {}, 400),
            ("teacher-caption", [{"type": "image_url"}], {}, 400),
        ]:
            with pytest.raises(openai.APIStatusError) as caught:
                ask(model, content, **options)
            assert caught.value.status_code == status
            assert caught.value.body["message"] and caught.value.body["type"]
        request = urllib.request.Request(base_url + "/chat/completions", data=b"[1")
        with pytest.raises(urllib.error.HTTPError, match="400"):
            urllib.request.urlopen(request)
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(base_url + "/nowhere")


def test_a_taken_port_is_an_error():
    with pocket.serve_teacher({}) as base_url:
        port = int(base_url.split(":")[2].split("/")[0])
        with pytest.raises(OSError, match="in use"), pocket.serve_teacher({}, port=port):
            pass


def test_serve_forever_serves_until_interrupted(world):
    _, images = world
    code = (
        "import signal, sys; from vlaa_lib import construct\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "pocket.serve_forever(*sys.argv[1:], 0)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(images.parent / "records.jsonl"), str(images)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    said = child.stdout.readline()
    base_url = next(word for word in said.split() if word.startswith("http")).rstrip(",")
    assert json.load(urllib.request.urlopen(base_url + "/models"))["object"] == "list"
    child.send_signal(signal.SIGINT)
    rest, _ = child.communicate(timeout=20)
    assert (child.returncode, rest) == (0, "stopped\n")


def test_serve_forever_refuses_records_without_scenes(one, tmp_path):
    record, images = one
    records.write([replace(record, meta={})], tmp_path / "records.jsonl")
    with pytest.raises(records.RecordError, match="no record with 'meta.scene'"):
        pocket.serve_forever(tmp_path / "records.jsonl", images, 0)

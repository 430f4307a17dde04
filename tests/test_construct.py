"""Construction: the whole pipeline, resume, kills, budgets, drops, splits, plan and card."""

from __future__ import annotations

import asyncio
import base64
import csv
import hashlib
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import replace
from itertools import pairwise

import pytest
from PIL import Image

from fault_server import GOOD, by_step, endpoint, trace
from vlaa_lib import ROOT, Halted, VlaaError, construct, folders, pocket, prompts, records
from vlaa_lib.__main__ import main
from vlaa_lib.construct import card, steps
from vlaa_lib.llm import Ledger, Reply, call_key, client
from vlaa_lib.pocket import microworld
from vlaa_lib.pocket.microworld.narrator import Rates
from vlaa_lib.pocket.teacher import LocalTeacher
from vlaa_lib.records import Record

SAMPLES = ROOT.parent / "shared/samples/vlaa_thinking"
SOURCES = ["solids", "panel", "plot", "locate", "describe"]
FILES = ("sft.jsonl", "rl.jsonl", "drops.jsonl")
NOBODY = "http://127.0.0.1:9/v1"  # the discard port: nothing listens there


@pytest.fixture(scope="module")
def teacher_url(world):
    """The local teacher, who knows the twenty."""
    with pocket.serve_teacher(pocket.scenes_of(*world)) as base_url:
        yield base_url


@pytest.fixture(scope="module")
def sixty(tmp_path_factory):
    """Sixty micro-world records and their image root."""
    path = tmp_path_factory.mktemp("sixty")
    made = microworld.write_split(path, ["solids", "panel", "figure"], "train", 20, seed=5)
    return made, path / "images"


@pytest.fixture
def one(world):
    """A counting record with caption and image root."""
    items, images = world
    return replace(items[0], caption="There are 3 things.", solution="3", gt="3"), images


@pytest.fixture
def count_replies(monkeypatch):
    """Count what reaches the local teacher, as it sees it; each takes a little while."""
    seen, answer = [], LocalTeacher.reply

    def counted(self, model, messages):
        time.sleep(0.03)
        seen.append(model)
        return answer(self, model, messages)

    monkeypatch.setattr(LocalTeacher, "reply", counted)
    return seen


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
    with Ledger(out / "ledger.sqlite") as ledger:
        return sum(row["replies"] for row in ledger.models())


def refused(result):
    return sum("HTTP" in drop.reason for drop in result.drops)


@pytest.fixture(scope="module")
def finished(world, teacher_url, tmp_path_factory):
    """What a run over the twenty records made."""
    return run(*world, teacher_url, tmp_path_factory.mktemp("finished"))


def test_twenty_records_go_through_every_step(world, finished):
    ids = [record.id for record in world[0]]
    kept = finished.sft + finished.rl
    assert sorted([r.id for r in kept] + [d.id for d in finished.drops]) == sorted(ids)
    assert kept and finished.drops, "the lossy captions of this seed leave both"
    for split in (finished.sft, finished.rl, finished.drops):
        assert [r.id for r in split] == sorted((r.id for r in split), key=ids.index)
    for record in kept:
        parsed = prompts.split_think_answer(record.answer)
        assert parsed.problem is None and parsed.think
        assert record.caption and record.ds_answer
        assert "caption" not in record.answer and "description" not in record.answer
        assert record.meta["caption_model_id"] == "teacher-caption"
    assert not any(construct.has_aha(r.answer) for r in finished.sft)
    assert all(construct.has_aha(r.answer) for r in finished.rl)
    assert records.load(finished.out / "sft.jsonl").records == finished.sft
    assert records.load(finished.out / "rl.jsonl").records == finished.rl


def test_counts_add_up_and_are_written(finished):
    table = {(row["step"], row["source"]): row for row in finished.counts}
    chain = ("caption", "distil", "rewrite", "verify")
    for source in SOURCES:
        assert table["caption", source]["in"] == 4
        for before, after in pairwise(chain):
            assert table[before, source]["out"] == table[after, source]["in"]
        split = sum(table[f"split: {name}", source]["out"] for name in ("sft", "rl"))
        assert split == table["verify", source]["out"]
    for row in finished.counts:
        assert row["in"] == row["out"] + row["dropped"]
    for step in chain:
        rows = [row for row in finished.counts if row["step"] == step]
        unanswered = sum(drop.step == step and "HTTP" in drop.reason for drop in finished.drops)
        assert sum(row["calls"] for row in rows) == sum(row["in"] for row in rows) - unanswered
        assert all(row["prompt_tokens"] > 0 and row["seconds"] > 0 for row in rows if row["in"])
    with (finished.out / "counts.csv").open(encoding="utf-8") as stream:
        written = list(csv.DictReader(stream))
    assert [{k: str(v) for k, v in row.items()} for row in finished.counts] == written
    sizes = len(finished.sft), len(finished.rl), len(finished.drops)
    assert finished.summary == "{} for SFT, {} for RL, {} dropped".format(*sizes)


def test_a_teacher_that_never_errs_loses_nothing(world, tmp_path):
    with pocket.serve_teacher(pocket.scenes_of(*world), Rates(0.0, 0.0, 0.0, 0.0)) as base_url:
        result = run(*world, base_url, tmp_path)
    assert result.drops == [] and result.rl == []
    assert [record.id for record in result.sft] == [record.id for record in world[0]]


def test_resume_asks_nothing_twice(world, teacher_url, tmp_path, count_replies):
    items, images = world
    first = run(items, images, teacher_url, tmp_path)
    asked, before = len(count_replies), outputs(tmp_path)
    second = run(items, images, teacher_url, tmp_path)
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


def test_order_and_result_do_not_depend_on_concurrency(world, teacher_url, finished, tmp_path):
    run(*world, teacher_url, tmp_path, concurrency=1)
    assert outputs(tmp_path) == outputs(finished.out)


def test_an_interrupted_run_resumes_to_the_same_result(
    world, teacher_url, finished, tmp_path, count_replies
):
    code = (
        "import signal, sys; from vlaa_lib import construct, records\n"
        # a shell's background jobs, and so what they start, ignore Ctrl-C
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "path, url, out = sys.argv[1:]\n"
        "items = records.load(path + '/records.jsonl').records\n"
        "limits = construct.Limits(concurrency=4)\n"
        "construct.run(items, path + '/images', url, out, limits=limits, progress=False)\n"
    )
    command = [sys.executable, "-c", code, str(world[1].parent), teacher_url, str(tmp_path)]
    child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(count_replies) < 25 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGINT)
    _, stderr = child.communicate(timeout=20)
    assert child.returncode != 0, "the run ended before it was interrupted"
    assert b"KeyboardInterrupt" in stderr and b"never retrieved" not in stderr
    assert not (tmp_path / "sft.jsonl").exists()
    paid = num_paid(tmp_path)
    time.sleep(0.3)  # what the dead child had still asked is count_replies to nobody
    assert paid >= 15 and len(count_replies) - paid <= 4 + 1
    count_replies.clear()
    resumed = run(*world, teacher_url, tmp_path, concurrency=4)
    assert outputs(tmp_path) == outputs(finished.out)
    assert len(count_replies) == totals(finished, "calls") + refused(finished) - paid
    assert totals(resumed, "calls") == totals(finished, "calls") - paid


# step and reason -> what the step's endpoint says: a text, fields of the message, or a status
BAD_REPLIES = {
    ("distil", "malformed trace"): [
        "no tags at all", "3" + prompts.THINK_CLOSE + " ", "Sure! " + trace(), trace("", "3"),
        trace("a", " "), trace("a " + prompts.THINK_OPEN + "b"), trace("a") + trace("b"),
        trace("a", "b" + prompts.THINK_CLOSE),
    ],
    ("distil", "unusable reply"): [
        " ", {"content": None, "refusal": "I will not."},
        {"content": trace(), "finish_reason": "length"},
        {"content": trace(), "finish_reason": "content_filter"},
    ],
    ("rewrite", "rewrite broke the trace"): ["two and one, 3"],
    ("rewrite", "rewrite changed the length by more than 15 words"): [
        trace("two and one" + " more" * 16)
    ],
    ("verify", "answer is not the gold"): ["No."],
    ("verify", "verdict is neither Yes nor No"): ["Yes, I think", "maybe"],
    ("verify", "refused by the endpoint (HTTP 422)"): [(422, "what?", {})],
    ("verify", "refused by the endpoint (HTTP 400)"): [(400, "too long", {})],
    ("verify", "no reply from the endpoint (HTTP 500)"): [(500, "oops", {})],
    ("verify", "no reply from the endpoint (HTTP 429)"): [(429, "slow", {})],
}  # fmt: skip


@pytest.mark.parametrize(
    ("step", "reason", "said"),
    [(*named, said) for named, replies in BAD_REPLIES.items() for said in replies],
)
def test_each_reason_drops_the_record_and_is_counted(one, tmp_path, step, reason, said):
    record, images = one
    with endpoint(by_step(**{step: said})) as (base_url, _):
        result = run([record], images, base_url, tmp_path)
    assert result.sft == result.rl == []
    (drop,) = result.drops
    assert drop.detail
    assert (drop.id, drop.step, drop.reason) == (record.id, step, reason)
    (row,) = [row for row in result.counts if row["dropped"]]
    assert (row["step"], row["reasons"]) == (step, f"{reason}: 1")
    (line,) = (tmp_path / "drops.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["reason"] == reason


PROSE = {"ds_answer": "<think>t</think>\nThere are 3."}
REASONED = {"reasoning_content": "two and one"}


@pytest.mark.parametrize(
    ("given", "said", "answer"),
    [
        ({}, {"verify": "Yes"}, trace()),
        ({}, {"verify": " YES.\n"}, trace()),
        (PROSE | {"reward": "digit"}, {}, trace("t", "3")),
        (PROSE | {"reward": "open"}, {}, trace("t", "There are 3.")),
        ({"ds_answer": trace("t", "3 things")}, {}, trace("t", "3 things")),
        ({"answer": trace("t", "3 things")}, {}, trace("t", "3 things")),
        # a reasoner's own ways to hand its thinking over; first: the prompt held the opening tag
        ({}, {"distil": "two and one</think>3"}, trace()),
        ({}, {"distil": REASONED | {"content": "<think></think>3"}}, trace()),
        ({}, {"distil": REASONED | {"content": "3"}}, trace()),
        ({"reward": "open"}, {"distil": REASONED | {"content": "Three."}},
         trace("two and one", "Three.")),
    ],
)  # fmt: skip
def test_what_passes_has_this_trace_at_the_end(one, tmp_path, given, said, answer):
    record, images = one
    with endpoint(by_step(**said)) as (base_url, bodies):
        result = run([replace(record, **given)], images, base_url, tmp_path)
    paid = ["distil"] if not given.keys() & {"ds_answer", "answer"} else []
    paid = [f"teacher-{step}" for step in (*paid, "rewrite", "verify")]
    assert [body["model"] for body in bodies] == paid
    assert [r.answer for r in result.sft] == [answer]


@pytest.mark.parametrize("name", ["missing.png", "broken.png", "empty.png"])
def test_a_bad_image_is_never_sent(world, tmp_path, name):
    record = replace(world[0][0], image=name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    (tmp_path / "empty.png").touch()
    with endpoint(GOOD) as (base_url, bodies):
        result = run([record], tmp_path, base_url, tmp_path / "out")
    assert bodies == []
    assert [(d.step, d.reason) for d in result.drops] == [("caption", "unusable image")]


@pytest.mark.parametrize(
    ("think", "kept"),
    [
        *[("word " * (20 + more), abs(more) <= 15) for more in (0, 15, 16, -15, -16)],
        ("word\n" * 35, True),
    ],
)
def test_rewrite_may_change_fifteen_words(one, think, kept):
    record = replace(one[0], answer=trace("word " * 20, "3"))
    # neither tags nor line breaks count
    said = trace(think, "3").replace(prompts.ANSWER_OPEN, "\n\n" + prompts.ANSWER_OPEN)
    outcome = steps.take_rewrite(record, Reply(said))
    assert isinstance(outcome, Record) if kept else outcome.detail == "16 words"


PAPERS_EIGHT = ["again", "alternatively", "check", "double-check", "hmm", "i should confirm",
                "mistake", "wait"]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "aha"),
    [
        *((f"so {word.capitalize()} now", True) for word in PAPERS_EIGHT),
        *((text, True) for text in ("a CHECKERED floor", "the waiter", "against the wall")),
        *((text, True) for text in ("hm, double check is chec", "I should CONFIRM")),
        *((text, False) for text in ("I should  confirm", "doubled, mistook, alternative", "")),
    ],
)  # fmt: skip
def test_aha_is_a_plain_substring_test(text, aha):
    assert construct.has_aha(text) is aha
    assert sorted(construct.AHA_KEYWORDS) == PAPERS_EIGHT


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


def test_the_scene_never_reaches_the_teacher(one, tmp_path):
    record, images = one
    scene = record.meta["scene"] | {"note": "XYZZY"}
    record = replace(record, caption="", meta={"scene": scene}, extra={"more": "XYZZY"})
    with endpoint(GOOD) as (base_url, bodies):
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
    twins = [replace(world[0][0], id=f"twin-{n}") for n in range(6)]
    with endpoint(GOOD) as (base_url, bodies):
        result = run(twins, world[1], base_url, tmp_path, concurrency=6)
    assert len(result.sft) == 6
    assert len(bodies) == 4 == totals(result, "calls")
    assert totals(result, "from_ledger") == 4 * 5
    assert totals(result, "prompt_tokens") == 4 * 7


def test_endpoints_by_step_from_a_file(one, tmp_path):
    record, images = one
    (tmp_path / "e.yaml").write_text("verify: {model: judge, settings: {seed: 7}, price: [1, 2]}",
        encoding="utf-8")
    chosen = construct.read_endpoints(tmp_path / "e.yaml")
    with endpoint(by_step(judge="Yes")) as (base_url, bodies):
        result = run([record], images, base_url, tmp_path, endpoints=chosen)
    assert [body["model"] for body in bodies] == ["teacher-distil", "teacher-rewrite", "judge"]
    assert bodies[0]["temperature"] == construct.ENDPOINTS["distil"].settings["temperature"]
    assert bodies[2]["seed"] == 7 and "temperature" not in bodies[2]
    assert totals(result, "cost") == pytest.approx((7 * 1 + 2 * 2) / 1e6)


def test_runs_where_a_loop_is_running(one, tmp_path):
    record, images = one

    async def cell():
        with endpoint(GOOD) as (base_url, _):
            return run([record], images, base_url, tmp_path, progress=True)

    assert len(asyncio.run(cell()).sft) == 1


def test_no_records_make_empty_files(tmp_path):
    result = run([], tmp_path, NOBODY, tmp_path)
    assert result.counts == [] and outputs(tmp_path) == dict.fromkeys(FILES, b"")


def key_in(body):
    """Return the ledger key of a request as the endpoint sees it."""
    step = body["model"].removeprefix("teacher-")
    content, image = body["messages"][0]["content"], ""
    if isinstance(content, list):
        data = content[0]["image_url"]["url"].partition(",")[2]
        image = hashlib.sha256(base64.b64decode(data)).hexdigest()
        content = content[1]["text"]
    settings = {k: v for k, v in body.items() if k not in ("model", "messages")}
    return call_key(step, body["model"], settings, content, image)


FORKS = """
import os, sys
import httpx, openai
from PIL import Image
from vlaa_lib import construct, images, records
path, url, out = sys.argv[1:]
items = records.load(path + "/records.jsonl").records
for line in sys.stdin:
    child = os.fork()
    if not child:
        limits = construct.Limits(concurrency=6)
        construct.run(items, path + "/images", url, out, limits=limits, progress=False)
        os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.parametrize("wanted", [5, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments_it_pays_nothing_twice(sixty, tmp_path, wanted):
    items, images = sixty
    rng, paid, again = random.Random(0), set(), []

    def noting(body):
        if (key := key_in(body)) in paid:
            again.append(key)
        return GOOD(body)

    out, kills = tmp_path / "killed", 0
    with endpoint(noting) as (base_url, bodies):
        command = [sys.executable, "-c", FORKS, str(images.parent), base_url, str(out)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        forks = subprocess.Popen(command, cwd=ROOT, **pipes)
        status = None
        while status != 0:
            print("go", file=forks.stdin, flush=True)
            child, asked = int(forks.stdout.readline()), len(bodies)
            target, deadline = asked + rng.randint(1, 200 // wanted), time.monotonic() + 60
            while len(bodies) < target and time.monotonic() < deadline and kills < wanted:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
            if kills < wanted:
                os.kill(child, signal.SIGKILL)
            status = int(forks.stdout.readline())
            kills += status != 0
            with closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
                assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                paid |= {key for (key,) in ledger.execute("SELECT key FROM calls")}
        forks.stdin.close()
        forks.wait(20)
        assert kills == wanted, "the run ended before it was killed often enough"
        assert not again
        run(items, images, base_url, tmp_path / "whole")
    assert outputs(out) == outputs(tmp_path / "whole")
    assert not list(out.glob(".*.jsonl.*")), "half-written files are cleared away"


def test_the_budget_stops_cleanly_and_more_money_goes_on(sixty, tmp_path):
    items, images = sixty
    dear = {s: replace(e, price=(1000.0, 1000.0)) for s, e in construct.ENDPOINTS.items()}
    with endpoint(GOOD) as (base_url, bodies):
        for options in ({"max_cost": 0.3}, {"max_tokens": 300}):
            before = len(bodies)
            with pytest.raises(Halted, match="budget of .* is spent"):
                run(items, images, base_url, tmp_path, dear, concurrency=4, **options)
            asked = len(bodies) - before
            # a call costs 9 tokens, or 0.009 dollars; up to four are in flight when it ends
            assert 300 / 9 <= asked <= 300 / 9 + 4 + 1
            assert num_paid(tmp_path) == len(bodies), "calls in flight were finished and kept"
            assert not (tmp_path / "sft.jsonl").exists()
        result = run(items, images, base_url, tmp_path, dear)
    assert len(result.sft) == len(items)
    assert num_paid(tmp_path) == len(bodies)
    assert totals(result, "cost") == pytest.approx(0.009 * num_paid(tmp_path))


@pytest.mark.parametrize(
    ("status", "hit", "reason"),
    [
        (422, slice(0, None, 2), "refused by the endpoint (HTTP 422)"),
        (500, slice(7, 8), "no reply from the endpoint (HTTP 500)"),
    ],
)
def test_a_resume_whose_open_calls_all_fail_goes_on(sixty, tmp_path, status, hit, reason):
    """What has no reply is asked again: on a resume these calls come first."""
    unanswered = [f"### Question\n{record.question}" for record in sixty[0][hit]]

    def answer(body):
        said = body["messages"][0]["content"]
        is_distil = body["model"] == "teacher-distil"
        is_hit = is_distil and any(question in said for question in unanswered)
        return (status, "no", {}) if is_hit else GOOD(body)

    with endpoint(answer) as (base_url, bodies):
        first = run(*sixty, base_url, tmp_path)
        assert len(first.drops) >= len(unanswered) and {d.reason for d in first.drops} == {reason}
        before, asked = outputs(tmp_path), len(bodies)
        run(*sixty, base_url, tmp_path)
        assert outputs(tmp_path) == before
        assert len(bodies) - asked == len(first.drops), "these alone are asked again"


def test_a_clean_stop_wakes_those_who_wait_for_the_first_record(sixty, tmp_path, monkeypatch):
    items, images = sixty
    monkeypatch.setattr(client, "WINDOW", 8)
    with endpoint(GOOD) as (base_url, _):
        run(items[1:], images, base_url, tmp_path)

    def slow(body):
        time.sleep(1)
        return GOOD(body)

    with endpoint(slow) as (base_url, bodies), pytest.raises(Halted):
        run(items, images, base_url, tmp_path, concurrency=4, max_tokens=1)
    assert len(bodies) == 1


def test_calls_in_flight_are_kept_when_another_ends_the_run(sixty, tmp_path):
    items, images = sixty
    asked = []

    def answer(body):
        if body["model"] == "teacher-verify":
            return 401, "not you", {}
        if body["model"] == "teacher-distil":
            asked.append(1)
            time.sleep(0 if len(asked) == 1 else 2)
        return GOOD(body)

    with endpoint(answer) as (base_url, bodies):
        with pytest.raises(VlaaError):
            run(items[:4], images, base_url, tmp_path, concurrency=4)
        paid = [body for body in bodies if body["model"] != "teacher-verify"]
    assert num_paid(tmp_path) == len(paid) and len(asked) > 1


def test_two_runs_do_not_share_a_folder(sixty, tmp_path):
    with folders.lock(tmp_path), pytest.raises(VlaaError, match="in use by another process"):
        run(*sixty, NOBODY, tmp_path)


def test_a_disk_full_while_the_splits_are_written_keeps_the_old_ones(sixty, tmp_path, monkeypatch):
    def full(row):
        raise OSError(28, "No space left on device")

    with endpoint(GOOD) as (base_url, bodies):
        run(*sixty, base_url, tmp_path)
        before, asked = outputs(tmp_path), len(bodies)
        monkeypatch.setattr(records, "line_of", full)
        with pytest.raises(OSError, match="No space left"):
            run(*sixty, base_url, tmp_path)
        assert outputs(tmp_path) == before and len(bodies) == asked
    assert not list(tmp_path.glob(".*.jsonl.*"))


def command(path, out, *more):
    arguments = ["--records", path / "records.jsonl", "--images", path / "images", "--out", out]
    return main(["construct", *map(str, [*arguments, *more])])


def test_the_plan_asks_nobody_and_knows_what_is_done(sixty, tmp_path):
    images = sixty[1]
    path = images.parent
    priced = tmp_path / "e.yaml"
    lines = [f"{s}: {{model: teacher-{s}, price: [10, 20]}}\n" for s in construct.ENDPOINTS]
    priced.write_text("".join(lines), encoding="utf-8")
    chosen = construct.read_endpoints(priced)
    made = records.load(path / "records.jsonl").records
    table = construct.plan(made, images, tmp_path, endpoints=chosen)
    assert [row["calls"] for row in table] == [60, 60, 60, 60, 240]
    first = table[0]
    assert first["prompt_tokens"] == 60 * (1000 + len(prompts.CAPTION_PROMPT) // 4)
    assert first["dollars"] == pytest.approx(
        (first["prompt_tokens"] * 10 + first["completion_tokens"] * 20) / 1e6, abs=1e-4
    )
    assert num_paid(tmp_path) == 0
    with endpoint(GOOD) as (base_url, bodies):
        run(made[:30], images, base_url, tmp_path, chosen)
        asked = len(bodies)
        assert command(path, tmp_path, "--endpoints", priced, "--plan") == 0
        assert len(bodies) == asked
        limited = ("--base-url", base_url, "--max-tokens", 1)
        assert command(path, tmp_path / "limited", *limited) == 3, "not at its end"
    table = construct.plan(made, images, tmp_path, endpoints=chosen)
    assert [row["calls"] for row in table] == [30, 30, 30, 30, 120]
    assert table[1]["completion_tokens"] == 30 * 2 and "30 finished" in table[1]["based on"]


def test_own_prompts_are_used_and_checked(sixty, tmp_path):
    items, images = sixty
    (tmp_path / "2.r1cot.txt").write_text("LOOK {caption} ASK {question} {braces}",
        encoding="utf-8")
    own = construct.read_templates(tmp_path)
    record = replace(items[0], caption="There are 3 things.")
    with endpoint(GOOD) as (base_url, bodies):
        construct.run([record], images, base_url, tmp_path / "o", templates=own)
    said = bodies[0]["messages"][0]["content"]
    assert said == f"LOOK There are 3 things. ASK {record.question} {{braces}}"
    for text, match in (("{caption}", "no slot {question}"), ("{caption}{question}{gold}", "gold")):
        (tmp_path / "2.r1cot.txt").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=f"2.r1cot.txt.*{match}"):
            construct.read_templates(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none of 1.captioning.txt"):
        construct.read_templates(tmp_path / "empty")


MANY = """
import asyncio, re, sys
from dataclasses import replace
from vlaa_lib import construct
from vlaa_lib.llm import Reply, client
from vlaa_lib.records import Record

trace = "<think>" + "one two three four " * 30 + "</think><answer>3</answer>"

async def pay(self, key, request, image):
    await asyncio.sleep(0)
    said = "Yes" if request.step == "verify" else request.text.partition("### Text\\n")[2]
    reply = Reply(said, "m", prompt_tokens=1, completion_tokens=1)
    self._ledger.put(key, request.step, reply)
    return reply

client.Client._pay = pay
made = (
    Record(str(n), "x.png", f"How many {n}?", "3", answer=trace, caption="c" * 1000,
           source="s", reward="digit", solution="3")
    for n in range(int(sys.argv[1]))
)
made = (replace(r, answer=trace.replace("one", r.id, 1)) for r in made)
construct.run(made, ".", "http://127.0.0.1:9/v1", sys.argv[2], progress=False,
              limits=construct.Limits(concurrency=64))
# not `ru_maxrss`: that would be the test runner's own peak, which it hands down
print(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
"""


@pytest.mark.parametrize("count", [20_000, pytest.param(200_000, marks=pytest.mark.slow)])
def test_memory_does_not_grow_with_the_records(tmp_path, count):
    child = subprocess.run(
        [sys.executable, "-c", MANY, str(count), str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.returncode == 0
    with (tmp_path / "sft.jsonl").open(encoding="utf-8") as stream:
        assert sum(1 for _ in stream) == count
    assert int(child.stdout) / 1024 < 500, "MiB at the peak"


def test_the_card_and_the_exports_read_back(sixty, tmp_path, capsys):
    import datasets

    items, images = sixty
    copy = shutil.copytree(images, tmp_path / "images")
    with pocket.serve_teacher(pocket.scenes_of(items, copy)) as base_url:
        result = run(items, copy, base_url, tmp_path)
    arguments = ["construct", "card", "--out", str(tmp_path), "--images", str(copy)]
    assert main(arguments) == 0
    splits = {"sft": result.sft, "rl": result.rl}
    shutil.move(copy, tmp_path / "elsewhere")
    assert all(splits.values()), "this seed leaves both splits"
    made = datasets.load_dataset(str(tmp_path / "hub"), cache_dir=str(tmp_path / "cache"))
    for split, kept in splits.items():
        assert [row["id"] for row in made[split]] == [record.id for record in kept]
        assert made[split][0]["image"].size == (112, 112)
        assert json.loads(made[split][0]["meta"]) == kept[0].meta
        (name,) = (tmp_path / "released").glob("SFT*" if split == "sft" else "GRPO*")
        assert [replace(r, ds_answer="") for r in kept] == records.load(name).records
    table = {row["source"]: row for row in construct.table_1(result.counts)}
    solids = [row for row in result.counts if row["source"] == "solids"]
    kept = sum(r["out"] for r in solids if r["step"].startswith("split"))
    clevr = table["CLEVR-Math"]
    assert (clevr["original"], clevr["original (paper)"]) == (20, 35000)
    assert clevr["pipeline"] == clevr["SFT"] + clevr["RL"] == kept
    assert table["DocVQA"]["original"] is None, "not run: no number of ours"
    text = (tmp_path / "hub" / "README.md").read_text(encoding="utf-8")
    assert "35000" in text and "teacher-verify" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["construct", "card", "--out", str(empty)]) == 2
    assert "no finished run here" in capsys.readouterr().err


COUNTS = {"step": "caption", "source": "CLEVR-Math", "in": 2, "out": 1, "dropped": 1,
          "reasons": "<img src=http://evil.invalid/a>|![x](http://evil.invalid/b): 1",
          "prompt_tokens": 0, "completion_tokens": 0, "seconds": 0.0, "cost": 0.0}  # fmt: skip


@pytest.fixture
def small(tmp_path):
    """Return the folder of a finished run of one record, and its image root."""
    root = tmp_path / "images"
    (root / "vg").mkdir(parents=True)
    Image.new("RGB", (30, 30)).save(root / "vg/a.png")
    row = {"id": "1", "image": "vg/a.png", "question": "q", "gt": "g", "answer": trace()}
    records.write([records.from_json(row)], tmp_path / "out/sft.jsonl")
    folders.write_lines(tmp_path / "out/rl.jsonl", [])
    folders.write_csv(tmp_path / "out/counts.csv", [COUNTS])
    return tmp_path / "out", root


def test_a_card_holds_no_markup_of_a_record(small):
    construct.export(*small)
    text = (small[0] / "hub/README.md").read_text(encoding="utf-8")
    assert "<img" not in text and "&lt;img" in text and "](http" not in text.replace("\\]", "")


@pytest.mark.parametrize("way", ["file", "folder", "missing", "no image root"])
def test_a_card_publishes_nothing_from_outside_the_image_root(small, tmp_path, capsys, way):
    out, root = small
    (tmp_path / "secret").mkdir()
    shutil.move(root / "vg/a.png", tmp_path / "secret/a.png")
    if way == "file":
        (root / "vg/a.png").symlink_to(tmp_path / "secret/a.png")
    elif way == "folder":
        (root / "vg").rmdir()
        (root / "vg").symlink_to(tmp_path / "secret")
    arguments = ["construct", "card", "--out", str(out), "--images"]
    assert main([*arguments, str(root / "none" if way == "no image root" else root)]) == 2
    said = capsys.readouterr().err
    assert "image 'vg/a.png' is" in said and said.count("\n") == 1
    assert not list(out.rglob("*.parquet"))


@pytest.mark.parametrize(("name", "text", "said"), [
    ("counts.csv", "a,b\n1,2\n", "counts.csv: not the counts of a construction"),
    ("counts.csv", "\0", "counts.csv: not"), ("sft.jsonl", "{}\n", "sft.jsonl:1: (no id): key"),
    ("ledger.sqlite", "none", "ledger.sqlite"),
])  # fmt: skip
def test_a_damaged_run_has_no_card(small, capsys, name, text, said):
    (small[0] / name).write_text(text, encoding="utf-8")
    assert main(["construct", "card", "--out", str(small[0])]) == 2
    last = capsys.readouterr().err.strip().split("\n")[-1]  # bars of parquet files stand above
    assert last.startswith("error: ") and said in last


def test_released_rows_hold_no_more_than_reading_back_needs(sixty):
    record = records.from_json(
        {"id": 1, "image": "docvqa/a.png", "question": "q", "gt": "g", "answer": trace()}
    )
    assert set(card.released(record)) == {"id", "image", "question", "gt", "answer"}
    micro = sixty[0][0]
    assert {"source", "reward"} <= set(card.released(micro))
    assert records.from_json(card.released(micro)) == micro

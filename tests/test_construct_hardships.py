"""Construction under hardship: kills, budgets, full disks, wrong keys, shards, batches, scale."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import traceback
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from test_construct import (
    NOBODY,
    by_step,
    completion,
    endpoint,
    num_paid,
    outputs,
    run,
    totals,
    trace,
)
from vlaa_lib import construct, pocket, prompts, records
from vlaa_lib.__main__ import main
from vlaa_lib.construct import card, offline, templates
from vlaa_lib.llm import client
from vlaa_lib.llm import messages as wire
from vlaa_lib.llm.ledger import Ledger, LedgerError, Reply, call_key
from vlaa_lib.pocket import microworld

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Sixty micro-world records and their image root."""
    path = tmp_path_factory.mktemp("world")
    return microworld.write_split(path, ["solids", "panel", "figure"], "train", 20, seed=5), path


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


def test_killed_at_twenty_random_moments_it_pays_nothing_twice(world, tmp_path):
    items, path = world
    rng, paid, again = random.Random(0), set(), []
    answer = by_step(distil=trace())

    def noting(body):
        if (key := key_in(body)) in paid:
            again.append(key)
        return answer(body)

    out, kills = tmp_path / "killed", 0
    with endpoint(noting) as (base_url, bodies):
        forks = subprocess.Popen(
            [sys.executable, "-c", FORKS, str(path), base_url, str(out)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        status = None
        while status != 0:
            print("go", file=forks.stdin, flush=True)
            child, asked = int(forks.stdout.readline()), len(bodies)
            target, deadline = asked + rng.randint(1, 10), time.monotonic() + 60
            while len(bodies) < target and time.monotonic() < deadline and kills < 25:
                time.sleep(0.001)
            time.sleep(rng.random() * 0.01)
            if kills < 25:
                os.kill(child, signal.SIGKILL)
            status = int(forks.stdout.readline())
            kills += status != 0
            with closing(sqlite3.connect(out / "ledger.sqlite")) as ledger:
                assert ledger.execute("PRAGMA integrity_check").fetchone() == ("ok",)
                paid |= {key for (key,) in ledger.execute("SELECT key FROM calls")}
        forks.stdin.close()
        forks.wait(20)
        assert kills >= 20, "the run ended before it was killed often enough"
        assert not again
        run(items, path / "images", base_url, tmp_path / "whole")
    assert outputs(out) == outputs(tmp_path / "whole")
    assert not list(out.glob(".*")), "half-written files are cleared away"


def test_the_budget_stops_cleanly_and_more_money_goes_on(world, tmp_path):
    items, path = world
    dear = {
        step: replace(e, price=(1000.0, 1000.0)) for step, e in construct.ENDPOINTS.items()
    }
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        for options in ({"max_cost": 0.3}, {"max_tokens": 300}):
            before = len(bodies)
            with pytest.raises(construct.BudgetSpent, match="budget of .* is spent"):
                run(items, path / "images", base_url, tmp_path, dear, concurrency=4, **options)
            asked = len(bodies) - before
            # a call costs 9 tokens, or 0.009 dollars; up to four are in flight when it ends
            assert 300 / 9 <= asked <= 300 / 9 + 4 + 1
            assert num_paid(tmp_path) == len(bodies), "calls in flight were finished and kept"
            assert not (tmp_path / "sft.jsonl").exists()
        result = run(items, path / "images", base_url, tmp_path, dear)
    assert len(result.sft) == len(items)
    assert num_paid(tmp_path) == len(bodies)
    assert totals(result, "cost") == pytest.approx(0.009 * num_paid(tmp_path))


def test_a_resume_whose_open_calls_are_all_refused_goes_on(world, tmp_path):
    """What is refused is asked again: on a resume these calls come first."""
    items, path = world
    good = by_step(distil=trace())
    refused = {r.question for r in items[::2]}

    def answer(body):
        said = body["messages"][0]["content"]
        is_distil = body["model"] == "teacher-distil"
        if is_distil and any(f"### Question\n{question}" in said for question in refused):
            return 422, "no", {}
        return good(body)

    with endpoint(answer) as (base_url, bodies):
        first = run(items, path / "images", base_url, tmp_path)
        assert len(first.drops) >= 30
        before, asked = outputs(tmp_path), len(bodies)
        run(items, path / "images", base_url, tmp_path)
        assert outputs(tmp_path) == before
        assert len(bodies) - asked == len(first.drops), "refusals alone are asked again"


def test_one_record_that_always_fails_does_not_end_a_resume(world, tmp_path):
    items, path = world
    good = by_step(distil=trace())

    def answer(body):
        is_bad = body["model"] == "teacher-distil" and items[7].question in str(body)
        return (500, "oops", {}) if is_bad else good(body)

    with endpoint(answer) as (base_url, _):
        first = run(items, path / "images", base_url, tmp_path)
        assert {drop.reason for drop in first.drops} == {"no reply from the endpoint (HTTP 500)"}
        before = outputs(tmp_path)
        run(items, path / "images", base_url, tmp_path)
    assert outputs(tmp_path) == before


@pytest.mark.parametrize("status", [401, 404, 400])
@pytest.mark.parametrize("bad", ["caption", "distil", "rewrite", "verify"])
def test_one_bad_endpoint_of_four_ends_the_run(world, tmp_path, bad, status):
    items, path = world
    good = by_step(distil=trace())

    def answer(body):
        return (status, "not you", {}) if body["model"] == f"teacher-{bad}" else good(body)

    stops = pytest.raises(construct.TeacherUnreachable, match=f"teacher of {bad} at .*not you")
    with endpoint(answer) as (base_url, bodies), stops:
        run(items, path / "images", base_url, tmp_path, concurrency=2)
    assert num_paid(tmp_path) == sum(body["model"] != f"teacher-{bad}" for body in bodies)


def test_a_clean_stop_wakes_those_who_wait_for_the_first_record(world, tmp_path, monkeypatch):
    from vlaa_lib.construct import pipeline

    items, path = world
    monkeypatch.setattr(pipeline, "WINDOW", 8)
    good = by_step(distil=trace())
    with endpoint(good) as (base_url, _):
        run(items[1:], path / "images", base_url, tmp_path)

    def slow(body):
        time.sleep(1)
        return good(body)

    with endpoint(slow) as (base_url, bodies), pytest.raises(construct.BudgetSpent):
        run(items, path / "images", base_url, tmp_path, concurrency=4, max_tokens=1)
    assert len(bodies) == 1


def test_calls_in_flight_are_kept_when_another_ends_the_run(world, tmp_path):
    items, path = world
    good, asked = by_step(distil=trace()), []

    def answer(body):
        if body["model"] == "teacher-verify":
            return 401, "not you", {}
        if body["model"] == "teacher-distil":
            asked.append(1)
            time.sleep(0 if len(asked) == 1 else 2)
        return good(body)

    with endpoint(answer) as (base_url, bodies):
        with pytest.raises(construct.TeacherUnreachable):
            run(items[:4], path / "images", base_url, tmp_path, concurrency=4)
        paid = [body for body in bodies if body["model"] != "teacher-verify"]
    assert num_paid(tmp_path) == len(paid) and len(asked) > 1


ODD = [
    {"usage": "x"},
    {"usage": {"prompt_tokens": 2**70, "completion_tokens": -1}},
    {"choices": [{"message": {"content": "Yes"}, "finish_reason": []}]},
    {"choices": [{"message": {"content": "Yes", "reasoning": {"a": 1}, "refusal": {"b": 2}}}]},
    {"choices": [{"message": {"content": "Yes", "reasoning_content": "\ud800"}}]},
]


@pytest.mark.parametrize("odd", ODD)
def test_odd_but_readable_replies_are_read(odd):
    reply = wire.read_completion(completion("Yes") | odd, construct.ENDPOINTS["verify"], 5)
    assert (reply.text, reply.problem) == ("Yes", "")
    assert 0 <= reply.prompt_tokens < 2**31 and reply.completion_tokens >= 0
    with closing(Ledger(":memory:")) as ledger:
        assert ledger.put("k", "verify", reply) and ledger.get("k") == reply


@pytest.mark.parametrize(
    "odd", [{}, [], 3, None, {"choices": []}, {"choices": [{"message": {"content": 42}}]},
            {"choices": [{"message": "text"}]}, {"choices": {"a": 1}}],
)  # fmt: skip
def test_what_is_no_completion_is_refused(odd):
    with pytest.raises(wire.NotACompletion):
        wire.read_completion(odd, construct.ENDPOINTS["verify"])


@pytest.mark.parametrize("format", ["MPO", "BMP", "TIFF", "WEBP"])
def test_pictures_go_out_in_a_form_that_teachers_take(tmp_path, format):
    image = Image.new("RGB", (40, 30), "red")
    image.save(tmp_path / "a.x", format, **({"save_all": True} if format == "MPO" else {}))
    data = (tmp_path / "a.x").read_bytes()
    head, _, sent = wire.data_url("a.x", data, tmp_path).partition(",")
    assert head.split(";")[0] in {"data:image/jpeg", "data:image/png", "data:image/webp"}
    assert Image.open(io.BytesIO(base64.b64decode(sent))).size == (40, 30)


@pytest.mark.parametrize(
    "limits", [{"concurrency": 0}, {"max_cost": -5}, {"max_tokens": 0}, {"timeout_s": 0}]
)
def test_limits_that_cannot_be_meant_are_refused(limits):
    with pytest.raises(ValueError, match=next(iter(limits))):
        construct.Limits(**limits)


def test_a_budget_of_money_needs_prices_and_a_step_needs_an_address(world, tmp_path):
    items, path = world
    with pytest.raises(construct.EndpointError, match="caption: no price"):
        run(items, path / "images", NOBODY, tmp_path, max_cost=1.0)
    with pytest.raises(construct.EndpointError, match="caption: no address"):
        run(items, path / "images", "", tmp_path)


def test_a_locked_or_unusable_ledger_is_not_to_be_thrown_away(tmp_path):
    (tmp_path / "ledger.sqlite").mkdir()
    with pytest.raises(LedgerError, match="cannot be used .*start again"):
        Ledger(tmp_path / "ledger.sqlite")


def test_two_runs_do_not_share_a_folder(world, tmp_path):
    from filelock import FileLock

    items, path = world
    with FileLock(tmp_path / "run.lock"), pytest.raises(OSError, match="another run is at work"):
        run(items, path / "images", NOBODY, tmp_path)


def test_a_disk_that_fills_up_stops_the_run_and_loses_nothing(world, tmp_path, monkeypatch):
    items, path = world
    free = iter([10**12] * 50)

    def usage(_):
        return SimpleNamespace(free=next(free, 0))

    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        monkeypatch.setattr(client.shutil, "disk_usage", usage)
        with pytest.raises(construct.BudgetSpent, match="MiB are free"):
            run(items, path / "images", base_url, tmp_path)
        assert num_paid(tmp_path) == len(bodies) == 50
        monkeypatch.undo()
        result = run(items, path / "images", base_url, tmp_path)
    assert num_paid(tmp_path) == len(bodies) and len(result.sft) == len(items)


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    with closing(Ledger(tmp_path / "l.sqlite")) as ledger:
        ledger._db.execute("PRAGMA max_page_count = 12")
        with pytest.raises(LedgerError, match="disk is full.*free space"):
            for n in range(100):
                ledger.put(f"k{n}", "verify", Reply("x" * 2000))
        kept = len(ledger)
    with closing(Ledger(tmp_path / "l.sqlite")) as again:
        assert len(again) == kept > 0


def test_a_ledger_of_another_version_is_refused(tmp_path):
    with closing(sqlite3.connect(tmp_path / "ledger.sqlite")) as old:
        old.execute("CREATE TABLE calls (key TEXT PRIMARY KEY)")
    with pytest.raises(LedgerError, match="version 0, this library writes 2"):
        run([], tmp_path, NOBODY, tmp_path)


def test_a_disk_full_while_the_splits_are_written_keeps_the_old_ones(world, tmp_path, monkeypatch):
    items, path = world
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        run(items, path / "images", base_url, tmp_path)
        before, asked = outputs(tmp_path), len(bodies)

        def full(row):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(records, "line_of", full)
        with pytest.raises(OSError, match="No space left"):
            run(items, path / "images", base_url, tmp_path)
        assert outputs(tmp_path) == before and len(bodies) == asked
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("status", "said", "match"),
    [
        (401, "Incorrect API key provided: sk-very-secret", r"provided: \*\*\*"),
        (404, "The model teacher-caption does not exist", "model teacher-caption does not exist"),
    ],
)
def test_a_wrong_key_or_model_is_named_and_no_key_is_told(
    world, tmp_path, monkeypatch, status, said, match
):
    items, path = world
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    keyed = {s: replace(e, api_key_env="MY_KEY") for s, e in construct.ENDPOINTS.items()}
    stops = pytest.raises(construct.TeacherUnreachable, match=match)
    with endpoint(lambda body: (status, said, {})) as (base_url, _), stops as caught:
        run(items, path / "images", base_url, tmp_path, keyed)
    assert "sk-very-secret" not in "".join(traceback.format_exception(caught.value))
    for file in tmp_path.iterdir():
        assert b"sk-very-secret" not in file.read_bytes()


def test_a_missing_key_is_asked_for_before_anything_is_sent(world, tmp_path, monkeypatch):
    items, path = world
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(construct.EndpointError, match="OPENAI_API_KEY"):
        run(items, path / "images", "http://teacher.invalid/v1", tmp_path)


def test_an_endpoint_that_returns_html_is_named(world, tmp_path, monkeypatch):
    items, path = world
    monkeypatch.setattr("test_construct.completion", lambda content: "<html>hello</html>")
    stops = pytest.raises(construct.TeacherUnreachable, match="no chat completion.*html")
    with endpoint(lambda body: (200, "", {})) as (base_url, _), stops:
        run(items, path / "images", base_url, tmp_path)
    assert not (tmp_path / "sft.jsonl").exists()


@pytest.mark.parametrize("said", ["no such model", {"detail": "no such model"}])
def test_an_endpoint_that_refuses_everybody_is_not_a_thousand_drops(world, tmp_path, said):
    """Some servers answer an unknown model with 400, as if the record were at fault."""
    items, path = world
    stops = pytest.raises(construct.TeacherUnreachable, match="calls were refused.*no such model")
    with endpoint(lambda body: (400, said, {})) as (base_url, _), stops:
        run(items, path / "images", base_url, tmp_path)


def test_empty_replies_are_asked_for_again_and_paid(world, tmp_path):
    items, path = world
    tries = Counter()

    def answer(body):
        tries[json.dumps(body)] += 1
        is_first = tries[json.dumps(body)] == 1
        return (200, " ", {}) if is_first else by_step(distil=trace())(body)

    with endpoint(answer) as (base_url, bodies):
        result = run(items[:10], path / "images", base_url, tmp_path)
    assert len(result.sft) == 10
    assert len(bodies) == 2 * num_paid(tmp_path)
    assert totals(result, "completion_tokens") == 2 * len(bodies)


def test_a_slow_drip_ends_at_the_time_limit(world, tmp_path):
    items, path = world
    record = replace(items[0], caption="There are 3 things.")

    def answer(body):
        return 200, trace() + " " * 10**7, {}

    started = time.monotonic()
    stops = pytest.raises(construct.TeacherUnreachable, match="no call was answered")
    with slow_server(answer) as base_url, stops:
        run([record], path / "images", base_url, tmp_path, timeout_s=0.5)
    assert time.monotonic() - started < 30, "whole, the reply would take over an hour"


def slow_server(answer):
    """Serve completions byte by byte, each well within any pause that a client would bear."""
    from contextlib import contextmanager
    from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, content, _ = answer(body)
            data = json.dumps(completion(content)).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            try:
                for start in range(0, len(data), 100):
                    self.wfile.write(data[start : start + 100])
                    self.wfile.flush()
                    time.sleep(0.05)
            except OSError:
                return

        def log_message(self, *_):
            pass

    @contextmanager
    def serve():
        httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        httpd.daemon_threads = True
        Thread(target=httpd.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
        httpd.shutdown()

    return serve()


def command(path, out, *more):
    arguments = ["--records", path / "records.jsonl", "--images", path / "images", "--out", out]
    return main(["construct", *map(str, [*arguments, *more])])


def test_shards_merge_into_the_whole(world, tmp_path, capsys):
    items, path = world
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        remote = ("--base-url", base_url)
        for shard in ("1/3", "2/3", "3/3"):
            assert command(path, tmp_path / shard[0], "--shard", shard, *remote) == 0
        asked = len(bodies)
        ledgers = [tmp_path / n / "ledger.sqlite" for n in "123"]
        assert command(path, tmp_path / "all", "--merge", *ledgers, *remote) == 0
        assert len(bodies) == asked, "every reply came with the ledgers"
        run(items, path / "images", base_url, tmp_path / "whole")
    assert outputs(tmp_path / "all") == outputs(tmp_path / "whole")
    parts = "".join((tmp_path / n / "sft.jsonl").read_text() for n in "123")
    whole = (tmp_path / "all" / "sft.jsonl").read_text()
    assert sorted(parts.splitlines()) == sorted(whole.splitlines())
    for bad in ("0/3", "4/3", "1", "a/b"):
        with pytest.raises(SystemExit):
            command(path, tmp_path / "bad", "--shard", bad)
        assert "write i/n with i from 1 to n" in capsys.readouterr().err


def test_the_plan_asks_nobody_and_knows_what_is_done(world, tmp_path):
    path = world[1]
    priced = tmp_path / "e.yaml"
    priced.write_text(
        "".join(f"{s}: {{model: teacher-{s}, price: [10, 20]}}\n" for s in construct.ENDPOINTS)
    )
    chosen = construct.read_endpoints(priced)
    made = records.load(path / "records.jsonl").records
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        table = offline.plan(made, path / "images", ledger, chosen, templates.OURS)
        assert [row["calls"] for row in table] == [60, 60, 60, 60, 240]
        first = table[0]
        text = len(prompts.CAPTION_PROMPT) // 4
        assert first["prompt_tokens"] == 60 * (1000 + text)
        assert first["dollars"] == pytest.approx(
            (first["prompt_tokens"] * 10 + first["completion_tokens"] * 20) / 1e6, abs=1e-4
        )
        assert len(ledger) == 0
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        run(made[:30], path / "images", base_url, tmp_path, chosen)
        assert command(path, tmp_path, "--endpoints", priced, "--plan") == 0
        asked = len(bodies)
    with closing(Ledger(tmp_path / "ledger.sqlite")) as ledger:
        table = offline.plan(made, path / "images", ledger, chosen, templates.OURS)
    assert [row["calls"] for row in table] == [30, 30, 30, 30, 120]
    assert table[1]["completion_tokens"] == 30 * 2 and "30 finished" in table[1]["based on"]
    assert len(bodies) == asked


def answer_batch(path, out, reply):
    """Write the output file that an endpoint would make of a batch file."""
    lines = []
    for line in path.read_text().splitlines():
        row = json.loads(line)
        status, content, _ = reply(row["body"])
        body = completion(content) if status == 200 else {"error": content}
        response = {"status_code": status, "body": body}
        lines.append({"custom_id": row["custom_id"], "response": response, "error": None})
    out.write_text("".join(json.dumps(line) + "\n" for line in lines[::-1]))


def test_batch_files_give_what_calls_give_for_half_the_price(world, tmp_path, monkeypatch):
    items, path = world
    monkeypatch.setattr(offline, "BATCH_ROWS", 25)
    reply = by_step(distil=trace())
    out, rounds = tmp_path / "batch", 0
    assert command(path, out, "--batch", "export") == 0
    while written := sorted((out / "batch").glob("*.jsonl")):
        rounds += 1
        assert all(len(file.read_text().splitlines()) <= 25 for file in written)
        for file in written:
            answer_batch(file, tmp_path / "answers.jsonl", reply)
            replies = ("--files", tmp_path / "answers.jsonl")
            assert command(path, out, "--batch", "import", *replies) == 0
            file.unlink()
        assert command(path, out, "--batch", "export") == 0
    assert rounds == 4
    assert command(path, out, "--batch", "export", "--again") == 0
    assert not list((out / "batch").glob("*.jsonl")), "everything has its reply"
    with endpoint(reply) as (base_url, bodies):
        result = run(items, path / "images", base_url, out)
        assert not bodies and len(result.sft) == len(items)
        run(items, path / "images", base_url, tmp_path / "whole")
    assert outputs(out) == outputs(tmp_path / "whole")


def test_a_second_export_repeats_nothing_unless_told_to(world, tmp_path, capsys):
    path, export = world[1], ("--batch", "export")
    batch = tmp_path / "batch"
    assert command(path, tmp_path, *export) == 0
    (first,) = batch.glob("*.jsonl")
    assert command(path, tmp_path, *export) == 0
    assert list(batch.glob("*.jsonl")) == [first]
    assert "60 calls wait for replies" in capsys.readouterr().out
    assert command(path, tmp_path, *export, "--again") == 0
    assert sorted(f.name for f in batch.glob("*")) == ["caption-001.jsonl", "caption-002.jsonl"]


def test_bad_lines_of_a_batch_file_are_named_and_stay_open(world, tmp_path, capsys):
    path = world[1]
    assert command(path, tmp_path, "--batch", "export") == 0
    (file,) = (tmp_path / "batch").glob("*.jsonl")
    keys = [json.loads(line)["custom_id"] for line in file.read_text().splitlines()]
    rows = [
        "not json",
        json.dumps({"custom_id": "unknown", "response": {"status_code": 200, "body": {}}}),
        json.dumps({"custom_id": keys[0], "error": {"code": "expired"}, "response": None}),
        json.dumps({"custom_id": keys[1], "response": {"status_code": 200, "body": {"a": 1}}}),
    ]
    (tmp_path / "bad.jsonl").write_text("\n".join(rows))
    assert command(path, tmp_path, "--batch", "import", "--files", tmp_path / "bad.jsonl") == 1
    said = capsys.readouterr().err
    for number, reason in enumerate(("not a line", "exported no such", "expired", "no chat"), 1):
        assert f"bad.jsonl:{number}" in said and reason in said
    assert num_paid(tmp_path) == 0


def test_own_prompts_are_used_and_checked(world, tmp_path):
    items, path = world
    (tmp_path / "2.r1cot.txt").write_text("LOOK {caption} ASK {question} {braces}")
    own = construct.read_templates(tmp_path)
    record = replace(items[0], caption="There are 3 things.")
    with endpoint(by_step(distil=trace())) as (base_url, bodies):
        limits = construct.Limits()
        construct.run(
            [record], path / "images", base_url, tmp_path / "o", templates=own, limits=limits
        )
    said = bodies[0]["messages"][0]["content"]
    assert said == f"LOOK There are 3 things. ASK {record.question} {{braces}}"
    for text, match in (("{caption}", "no slot {question}"), ("{caption}{question}{gold}", "gold")):
        (tmp_path / "2.r1cot.txt").write_text(text)
        with pytest.raises(ValueError, match=f"2.r1cot.txt.*{match}"):
            construct.read_templates(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds none of 1.captioning.txt"):
        construct.read_templates(tmp_path / "empty")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("verfy: {model: m}", "'verfy' is no step"),
        ("verify: {modell: m}", "at least 'model'"),
        ("verify: {model: m, key: sk}", "verify.key: unknown key"),
        ("verify: {model: m, price: 3}", "verify.price is int"),
        ("verify: {model: m, price: [1]}", "expected .prompt, completion"),
        ("verify: {model: m, price: [1, -1]}", "expected .prompt, completion"),
        ("verify: {model: m, settings: {top_k: 3}}", "settings.top_k: .*extra_body"),
        ("verify: {model: m, settings: {stream: true}}", "settings.stream: not to be set"),
        ("verify: [", "cannot be read as YAML"),
        ("- a", "expected a section"),
    ],
)
def test_a_wrong_endpoints_file_is_named(tmp_path, text, match):
    (tmp_path / "e.yaml").write_text(text)
    with pytest.raises(construct.EndpointError, match=f"e.yaml: .*{match}"):
        construct.read_endpoints(tmp_path / "e.yaml")


MANY = """
import asyncio, re, sys
from dataclasses import replace
from vlaa_lib import construct
from vlaa_lib.construct import client
from vlaa_lib.construct.ledger import Reply
from vlaa_lib.records import Record

trace = "<think>" + "one two three four " * 30 + "</think><answer>3</answer>"

async def call(self, request, url):
    await asyncio.sleep(0)
    said = "Yes" if request.step == "verify" else request.text.partition("### Text\\n")[2]
    return Reply(said, "m", prompt_tokens=1, completion_tokens=1)

client.Teacher._call = call
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


def test_memory_does_not_grow_with_the_records(tmp_path):
    child = subprocess.run(
        [sys.executable, "-c", MANY, "200000", str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE
    )
    assert child.returncode == 0
    with (tmp_path / "sft.jsonl").open() as stream:
        assert sum(1 for _ in stream) == 200_000
    assert int(child.stdout) / 1024 < 500, "MiB at the peak"


def test_the_card_and_the_exports_read_back(world, tmp_path, capsys):
    import datasets

    items, path = world
    copy = shutil.copytree(path / "images", tmp_path / "images")
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
    table = {row["source"]: row for row in card.table_1(result.counts)}
    solids = [row for row in result.counts if row["source"] == "solids"]
    kept = sum(r["out"] for r in solids if r["step"].startswith("split"))
    clevr = table["CLEVR-Math"]
    assert (clevr["original"], clevr["original (paper)"]) == (20, 35000)
    assert clevr["pipeline"] == clevr["SFT"] + clevr["RL"] == kept
    assert table["DocVQA"]["original"] is None, "not run: no number of ours"
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "35000" in text and "teacher-verify" in text
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main(["construct", "card", "--out", str(empty)]) == 2
    assert "no finished run here" in capsys.readouterr().err


def test_released_rows_hold_no_more_than_reading_back_needs(world):
    record = records.from_json(
        {"id": 1, "image": "docvqa/a.png", "question": "q", "gt": "g", "answer": trace()}
    )
    assert set(card.released(record)) == {"id", "image", "question", "gt", "answer"}
    micro = world[0][0]
    assert {"source", "reward"} <= set(card.released(micro))
    assert records.from_json(card.released(micro)) == micro

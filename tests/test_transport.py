"""The wire, the locks and the end: redirects, proxies, bytes, seconds, disks, signals."""

from __future__ import annotations

import errno
import gzip
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing, contextmanager
from dataclasses import replace

import pytest

import fault_server
from fault_server import GOOD, by_step, completion, endpoint
from scoring import record as open_record
from test_construct import num_paid, run
from vlaa_lib import ROOT, VlaaError, construct, folders, llm, rewards
from vlaa_lib.__main__ import main
from vlaa_lib.llm import Ledger, transport
from vlaa_lib.rewards.reward_models import Judge


def judge_of(url, folder, images, **settings):
    made = llm.Endpoint("judge", url, **settings)
    return Judge(made, folder / "judge.sqlite", images, llm.Limits(max_retries=0))


# --- the wire ------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_no_redirect_is_followed(one, tmp_path, status):
    with endpoint(GOOD) as (other, elsewhere):
        to = {"Location": other.replace("/v1", "/v1/chat/completions")}
        stops = pytest.raises(VlaaError, match=f"HTTP {status} to {other}.*never followed")
        with endpoint(lambda body: (status, b"", to)) as (url, bodies), stops:
            run(*one, url, tmp_path)
        assert len(bodies) == 1 and elsewhere == [] and num_paid(tmp_path) == 0


def test_a_proxy_is_for_other_machines_only(one, tmp_path, monkeypatch):
    with endpoint(GOOD) as (proxy, through), endpoint(GOOD) as (url, bodies):
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.removesuffix("/v1"))
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.delenv(name, raising=False)
        assert len(run(*one, url, tmp_path / "here").sft) == 1
        assert len(run(*one, url.replace("127.0.0.1", "localhost"), tmp_path / "name").sft) == 1
        assert len(bodies) == 8 and through == []
        monkeypatch.setenv("OPENAI_API_KEY", "not-a-key")
        assert len(run(*one, "http://teacher.invalid/v1", tmp_path / "there").sft) == 1
        assert len(through) == 4


@pytest.mark.parametrize(("address", "here"), [
    ("http://127.8.9.1:1/v1", True), ("http://[::1]:1/v1", True), ("http://LOCALHOST/v1", True),
    ("http://localhost.:1/v1", True), ("http://10.0.0.1/v1", False), ("http://127.0.0.1.x", False),
    ("http://localhost@example.com/v1", False), ("nonsense", False),
])  # fmt: skip
def test_loopback(address, here):
    assert transport.is_loopback(address) is here


def bomb():
    return gzip.compress(b" " * 2 * transport.MAX_REPLY_BYTES)


@pytest.mark.parametrize("data", [bomb(), b" " * (transport.MAX_REPLY_BYTES + 100)])
def test_a_reply_has_a_limit_of_bytes_unpacked(one, tmp_path, data):
    coding = {"Content-Encoding": "gzip"} if data[:2] == b"\x1f\x8b" else {}
    stops = pytest.raises(VlaaError, match="more than 16 MiB")
    with endpoint(lambda body: (200, data, coding)) as (url, _), stops:
        run(*one, url, tmp_path)
    if coding:
        assert len(transport.unpacked(data, "gzip")) == transport.MAX_REPLY_BYTES + 1


def test_a_packed_reply_is_read(one, tmp_path):
    def answer(body):
        said = GOOD(body)[1]
        return 200, gzip.compress(json.dumps(completion(said)).encode()), coding

    coding = {"Content-Encoding": "gzip"}
    with endpoint(answer) as (url, _):
        assert len(run(*one, url, tmp_path).sft) == 1


@contextmanager
def dripping(line):
    """Serve one byte every 20 ms, for ever, to whoever connects."""
    server, over = socket.create_server(("127.0.0.1", 0)), threading.Event()

    def drip(client):
        with client:
            for byte in line * 10_000:
                if over.wait(0.02):
                    return
                try:
                    client.send(bytes([byte]))
                except OSError:
                    return

    def accept():
        while not over.is_set():
            try:
                client, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=drip, args=(client,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/v1"
    finally:
        over.set()
        server.close()


@pytest.mark.parametrize("line", [b"HTTP/1.1 200 OK\r\nX-Slow: ", b"HTTP/1.1 100 Continue\r\n\r\n"])
def test_slow_headers_end_at_the_time_limit(one, tmp_path, line):
    started = time.monotonic()
    with dripping(line) as url, pytest.raises(VlaaError, match="no end of the reply within 0.5 s"):
        run(*one, url, tmp_path, timeout_s=0.5)
    assert time.monotonic() - started < 15


def test_a_slow_drip_ends_at_the_time_limit(one, tmp_path):
    """Each piece comes well within any pause that a client would bear."""
    drip = fault_server.Pieces([b" " * 100] * 10_000, 1_000_000, pause_s=0.05)
    started = time.monotonic()
    stops = pytest.raises(VlaaError, match="no call was answered")
    with endpoint(lambda body: (200, drip, {})) as (base_url, _), stops:
        run(*one, base_url, tmp_path, timeout_s=0.5)
    assert time.monotonic() - started < 30, "whole, the reply would take eight minutes"


# --- locks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named_at_once(tmp_path, monkeypatch, number):
    import fcntl

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refuse)
    started = time.monotonic()
    with pytest.raises(VlaaError, match="its disk cannot lock files .*; use a folder on a disk of"):
        Ledger(tmp_path / "l.sqlite")
    assert time.monotonic() - started < 5


def test_a_lock_that_another_program_holds_is_told_as_that(tmp_path, monkeypatch):
    monkeypatch.setattr(llm.ledger, "WAIT_S", 0.1)
    with Ledger(tmp_path / "l.sqlite") as first, closing(sqlite3.connect(first.path)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(VlaaError, match="database is locked.*another program is writing"):
            first.put("k", "s", llm.Reply("r"))


def mode(path):
    with closing(sqlite3.connect(path)) as ledger:
        return ledger.execute("PRAGMA journal_mode").fetchone()[0]


def test_only_a_run_alone_on_its_own_disk_writes_ahead(one, tmp_path, monkeypatch):
    with endpoint(by_step(judge="7")) as (url, _):
        run(*one, url, tmp_path / "a")
        monkeypatch.setattr(folders, "_LOCAL", set())  # as on NFS, or what nobody knows
        run(*one, url, tmp_path / "b")
        monkeypatch.undo()
        made = replace(open_record("open", "gold"), image=one[0][0].image)
        judge = judge_of(url, tmp_path, one[1])
        rewards.Kept(judge, tmp_path / "scores.sqlite").score([made], ["an answer"])
    assert folders.is_on_this_machine("/proc") is False
    local = folders.is_on_this_machine(tmp_path)
    assert mode(tmp_path / "a/ledger.sqlite") == ("wal" if local else "delete")
    for name in ("b/ledger.sqlite", "judge.sqlite", "scores.sqlite"):
        assert mode(tmp_path / name) == "delete"


# --- the end -------------------------------------------------------------------------------------

COMMAND = """
import signal, sys
from vlaa_lib.llm import apart, client
apart.GRACE_S = client.GRACE_S = float(sys.argv.pop(1))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
from vlaa_lib.__main__ import main
sys.exit(main())
"""


@pytest.mark.parametrize(("sent", "slow_s", "grace_s"), [
    (signal.SIGTERM, 1.0, 20.0), (signal.SIGINT, 1.0, 20.0), (signal.SIGTERM, 30.0, 0.5),
])  # fmt: skip
def test_a_signal_finishes_what_is_in_flight_and_stops_cleanly(
    world, tmp_path, sent, slow_s, grace_s
):
    over = threading.Event()

    def answer(body):
        if body["model"] == "teacher-distil":
            over.wait(slow_s)
        return GOOD(body)

    path = world[1].parent
    with endpoint(answer) as (url, bodies):
        words = ["construct", "--records", path / "records.jsonl", "--images", world[1], "--out",
                 tmp_path, "--base-url", url, "--concurrency", 4]  # fmt: skip
        command = [sys.executable, "-c", COMMAND, str(grace_s), *map(str, words)]
        child = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while len(bodies) < 8 and child.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
        started = time.monotonic()
        child.send_signal(sent)
        _, said = child.communicate(timeout=40)
        over.set()
        assert child.returncode == 3 and "Traceback" not in said
        assert "stopping: " in said and "stopped: interrupted" in said
        assert time.monotonic() - started < 15 and not (tmp_path / "sft.jsonl").exists()
        if slow_s > grace_s:
            assert "4 calls had no reply after 0.5 s" in said
            return
        asked = len(bodies)
        assert num_paid(tmp_path) == asked, "all that was asked is kept"
        limits = construct.Limits(concurrency=8, max_retries=0)
        construct.run(world[0], world[1], url, tmp_path, limits=limits, progress=False)
        distinct = {json.dumps(body) for body in bodies}
        assert len(distinct) == len(bodies) > asked, "and nothing is asked twice"


def test_the_local_teacher_says_that_it_is_for_the_micro_world(one, tmp_path, capsys):
    from vlaa_lib import records

    known, images = one
    foreign = replace(known[0], id="real", meta={}, caption="There are 3 balls.")
    for items, warned in ((known, False), ([*known, foreign], True)):
        records.write(items, tmp_path / "r.jsonl")
        words = ["--records", tmp_path / "r.jsonl", "--images", images, "--out", tmp_path / "o"]
        assert main(["construct", *map(str, words)]) == 0
        told = capsys.readouterr().err
        assert ("1 records are not of the micro-world" in told) is warned

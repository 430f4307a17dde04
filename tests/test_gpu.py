"""The GPU script's steps: one that fails or takes too long is named, and the others go on."""

import json
import os
import time

import pytest

from tests.gpu import __main__ as script


def step(name, code, limit_s=60.0, needs=(), figures=dict):
    return script.Step(name, limit_s, ("timeit", "-n1", "-r1", code), figures, needs)


def run(given, tmp_path, left=600.0):
    return script.run(given, tmp_path, time.monotonic() + left)


def test_a_step_says_how_it_ended(tmp_path):
    made = step("good", "pass", figures=lambda: {"n": 1})
    assert run(made, tmp_path)["figures"] == {"n": 1}
    said = run(step("bad", "raise ValueError(7)"), tmp_path)["outcome"]
    assert said == "failed: code 1: ValueError: 7"
    assert run(made, tmp_path, left=1)["outcome"].startswith("not run: the time")
    said = run(step("needy", "pass", needs=("no_such_package",)), tmp_path)["outcome"]
    assert said == "not run: needs no_such_package"
    unread = step("unread", "pass", figures=lambda: json.loads("{"))
    assert run(unread, tmp_path)["outcome"].startswith("failed: its figures")


def test_a_step_that_takes_too_long_ends_with_what_it_started(tmp_path):
    note = tmp_path / "child"
    code = (f"import subprocess; c = subprocess.Popen(['sleep', '60']); "
            f"open({str(note)!r}, 'w').write(str(c.pid)); c.wait()")  # fmt: skip
    row = run(step("slow", code, limit_s=5.0), tmp_path)
    assert row["outcome"] == "failed: stopped after 5 s" and row["seconds"] < 30
    with pytest.raises(ProcessLookupError):
        for _ in range(100):  # until the system has taken it away
            os.kill(int(note.read_text(encoding="utf-8")), 0)
            time.sleep(0.05)


def test_all_steps_are_done_whatever_one_says(tmp_path, monkeypatch):
    made = [step("bad", "raise ValueError(7)"), step("good", "pass", figures=lambda: [{"n": 1}])]
    monkeypatch.setattr(script, "steps", lambda *given: iter(made))
    assert script.main(["--dry", "--out", str(tmp_path)]) == 1
    found = json.loads((tmp_path / "gpu.json").read_text(encoding="utf-8"))["steps"]
    assert [row["outcome"].partition(":")[0] for row in found] == ["failed", "ran"]
    assert "good" in (tmp_path / "gpu.md").read_text(encoding="utf-8")


def test_the_steps_limits(tmp_path):
    made = list(script.steps(tmp_path / "3b", tmp_path, dry=False))
    assert len(made) == 7 and max(s.limit_s for s in made) < script.TOTAL_S < 600

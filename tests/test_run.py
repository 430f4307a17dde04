"""The driver: refuses bad parameters, tells green from red, goes on where it stopped."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from vlaa_lib import ROOT, VlaaError, folders
from vlaa_lib.study import run

PARAMETERS = """profile: str = "laptop"
run_dir: str = None  # folder of the run"""


def notebook(folder: Path, name: str, *cells: str, parameters: str = PARAMETERS) -> Path:
    """Write a toy notebook: the parameters cell, then the given code cells."""
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    made = nbformat.v4.new_notebook(metadata={"kernelspec": kernel})
    made.cells = [nbformat.v4.new_code_cell(source) for source in (parameters, *cells)]
    made.cells[0].metadata["tags"] = ["parameters"] if parameters else []
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.ipynb"
    nbformat.write(made, path)
    return path


def note(folder: Path, word: str) -> str:
    """Return a cell that appends a word to `ran.txt`: what ran, in order, and how often."""
    return f"with open({str(folder / 'ran.txt')!r}, 'a') as f: f.write({word!r} + ' ')"


def ran(folder: Path) -> list[str]:
    path = folder / "ran.txt"
    return path.read_text(encoding="utf-8").split() if path.exists() else []


def status(run_dir: Path) -> dict[str, str]:
    return json.loads((run_dir / "run_card.json").read_text(encoding="utf-8"))["status"]


@pytest.mark.parametrize(("declared", "message"), [
    (("profile: str = 'x'",), r"01_toy.*unknown parameter 'run_dir'; it declares profile"),
    (("profile: int = 3", "run_dir: str = None"), "'profile' is declared int; make it a str"),
    ((), "is a cell tagged 'parameters'"),
])
def test_what_takes_other_parameters_stops_the_run_before_it_starts(tmp_path, declared, message):
    good = notebook(tmp_path, "00_good", note(tmp_path, "good"))
    bad = notebook(tmp_path, "01_toy", parameters="\n".join(declared))
    with pytest.raises(VlaaError, match=message):
        run.run("smoke", [good, bad], tmp_path / "run")
    assert not ran(tmp_path) and not (tmp_path / "run").exists()
    (tmp_path / "bad.ipynb").write_text("{", encoding="utf-8")
    with pytest.raises(VlaaError, match="bad.ipynb: cannot read its parameters"):
        run.check_parameters(tmp_path / "bad.ipynb")


def test_unknown_notebook_and_profile_are_named(tmp_path):
    with pytest.raises(VlaaError, match="'77'"):
        run.find_notebooks(["77"])
    with pytest.raises(ValueError, match="huge"):
        run.run("huge", [notebook(tmp_path, "00_toy")], tmp_path / "run")


def test_numbers_and_names_find_the_repository_notebooks():
    every = run.find_notebooks()
    assert [p.name for p in every] == sorted(p.name for p in (ROOT / "notebooks").glob("*.ipynb"))
    assert run.find_notebooks(["00", every[1].stem]) == every[:2]


def test_a_failed_run_goes_on_in_its_folder_and_no_other_takes_it(tmp_path, capsys):
    """One story, since each kernel costs seconds: red, mended, green, refused."""
    first = notebook(
        tmp_path, "00_first", note(tmp_path, "first"), "print(profile, run_dir)",
        "import os; assert os.getcwd() == " + repr(str(ROOT)),
    )  # fmt: skip
    second = notebook(tmp_path, "01_second", note(tmp_path, "second"), "1 / 0", "print('late')")
    third = notebook(tmp_path, "02_third", note(tmp_path, "third"))
    folder = tmp_path / "run"

    def go() -> int:
        return run.run("smoke", [first, second, third], folder)

    assert go() == 1
    out = capsys.readouterr().out
    assert "ZeroDivisionError" in out and "goes on from 01_second" in out
    assert ran(tmp_path) == ["first", "second"]  # the third waits
    assert status(folder) == {"00_first": "done", "01_second": "failed", "02_third": "waiting"}
    assert (folder / "logs" / "00_first.log").read_text(
        encoding="utf-8").split() == ["smoke", str(folder)]
    assert "failed" in (folder / "report.html").read_text(encoding="utf-8")
    before = json.loads((folder / "run_card.json").read_text(encoding="utf-8"))
    assert before["finished"] is None and set(before["minutes"]) == {"00_first", "01_second"}

    notebook(tmp_path, "01_second", note(tmp_path, "second"))
    assert go() == 0
    assert ran(tmp_path)[2:] == ["first", "second", "third"]
    card = json.loads((folder / "run_card.json").read_text(encoding="utf-8"))
    assert set(card["minutes"]) == {"00_first", "01_second", "02_third"}
    assert card["minutes"]["00_first"] > before["minutes"]["00_first"]  # of all tries
    assert card["finished"] and card["seed"] == 0 and card["versions"]["papermill"]
    assert card["started"] == before["started"]
    executed = nbformat.read(folder / "notebooks" / "02_third.ipynb", 4)
    assert executed.cells[-1].execution_count

    with pytest.raises(VlaaError, match="holds a run already"):
        run.run("smoke", [first], folder, resume=False)
    with pytest.raises(VlaaError, match="other settings"):
        run.run("laptop", [first], folder)
    with folders.lock(folder), pytest.raises(VlaaError, match="in use"):
        run.run("smoke", [first], folder)


@pytest.mark.parametrize(("cells", "reason"), [
    (("import sys; sys.exit(0)", "print('late')"), "never ran"),
    (("import sys; sys.exit(0)",), "last cell ended the notebook"),
    (("import os, signal; os.kill(os.getpid(), signal.SIGKILL)",), "out of memory"),
])
def test_what_papermill_may_call_a_success_is_red(tmp_path, cells, reason, capsys):
    path = notebook(tmp_path, "00_toy", *cells)
    assert run.run("smoke", [path], tmp_path / "run") == 1
    assert reason in capsys.readouterr().out
    assert status(tmp_path / "run") == {"00_toy": "failed"}


def driver(tmp_path: Path, *paths: Path) -> subprocess.Popen:
    """Start a driver process over toy notebooks, its runs below `tmp_path`."""
    code = (
        "import sys; from pathlib import Path; from vlaa_lib.study import run\n"
        f"run.RUNS = Path({str(tmp_path / 'runs')!r})\n"
        f"sys.exit(run.run('smoke', {[str(p) for p in paths]!r}))"
    )
    command = [sys.executable, "-c", code]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def wait_for(path: Path, process: subprocess.Popen, seconds: float = 60) -> str:
    """Return a file's text once there is some, unless the process that writes it has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and process.poll() is None:
        if path.exists() and path.read_text(encoding="utf-8"):
            return path.read_text(encoding="utf-8")
        time.sleep(0.05)
    raise TimeoutError(path)


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")  # a zombie waits for its parent and does nothing more
    return not (stat.exists() and stat.read_text(
        encoding="utf-8").rsplit(")", 1)[1].split()[0] == "Z")


@pytest.mark.slow
def test_killed_driver_takes_its_kernel_along_and_the_next_one_goes_on(tmp_path):
    pid_file = tmp_path / "pid.txt"
    slow = (
        f"import os, time, pathlib; pathlib.Path({str(pid_file)!r}).write_text(str(os.getpid()))\n"
        f"time.sleep(0 if pathlib.Path({str(tmp_path / 'go')!r}).exists() else 120)"
    )
    first = notebook(tmp_path, "00_first", note(tmp_path, "first"))
    second = notebook(tmp_path, "01_second", slow, note(tmp_path, "second"))

    process = driver(tmp_path, first, second)
    kernel = int(wait_for(pid_file, process))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    end = time.monotonic() + 10
    while is_alive(kernel) and time.monotonic() < end:
        time.sleep(0.1)
    assert not is_alive(kernel)

    (tmp_path / "go").write_text("", encoding="utf-8")
    process = driver(tmp_path, first, second)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 0, said
    assert ran(tmp_path) == ["first", "first", "second"]
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_sigterm_ends_cleanly_and_says_how_to_go_on(tmp_path):
    path = notebook(
        tmp_path, "00_slow",
        f"import pathlib, time; pathlib.Path({str(tmp_path / 'on')!r}).write_text('x')",
        "time.sleep(120)",
    )  # fmt: skip
    process = driver(tmp_path, path)
    wait_for(tmp_path / "on", process)
    time.sleep(0.5)
    process.terminate()
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 130 and "goes on from 00_slow" in said
    folder = next((tmp_path / "runs").iterdir())
    assert status(folder) == {"00_slow": "stopped"}


def test_only_the_newest_unfinished_run_of_the_same_settings_is_continued(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "RUNS", tmp_path)
    card = {"profile": "smoke", "settings": {"seed": 0}, "finished": None}
    card["status"] = {"00_toy": "waiting"}
    for name, change in {
        "1-smoke": {},
        "2-smoke": {"status": {"00_toy": "failed"}},
        "3-smoke": {"finished": "yes"},
        "4-smoke": {"status": {"00_toy": "done", "01_toy": "failed"}},
        "5-smoke": {"settings": {"seed": 1}},
        "6-laptop": {},
    }.items():
        folders.write_text(tmp_path / name / "run_card.json", json.dumps(card | change))
    assert run._unfinished(card) == tmp_path / "2-smoke"
    assert run._unfinished(card | {"settings": {"seed": 2}}) is None


def test_errors_are_safe_to_print():
    text = run.explain(RuntimeError("line\n" * 30 + "a\x1b[31mb\x1b]0;title\x07\x00c\x1b[2J\rlast"))
    assert text.endswith("last") and len(text.splitlines()) == 15
    assert not any(ord(c) < 32 and c != "\n" for c in text)

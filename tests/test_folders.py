"""Folders: files whole or not at all, one owner, half lines, fingerprints."""

import json
import os
import subprocess
import sys

import pytest

from vlaa_lib import ROOT, VlaaError, folders


def test_a_folder_belongs_to_the_settings_that_claimed_it(tmp_path):
    folder = tmp_path / "run"
    folders.claim(folder, {"beta": 0.1, "sides": (1, 2), "policy": "here"})
    assert folders.claim(folder, {"beta": 0.1, "sides": [1, 2], "policy": "here"}) == folder
    with pytest.raises(VlaaError, match=r"beta 0.1 instead of 0.2.*give another folder"):
        folders.claim(folder, {"beta": 0.2, "sides": [1, 2], "policy": "here"})
    with pytest.raises(VlaaError, match="more None instead of 1"):  # one setting more is another
        folders.claim(folder, {"beta": 0.1, "sides": [1, 2], "policy": "here", "more": 1})
    moved = {"beta": 0.1, "sides": [1, 2], "policy": "there"}
    with pytest.raises(VlaaError, match="policy"):
        folders.claim(folder, moved)
    folders.claim(folder, moved, names=("policy",))  # a name is for people


@pytest.mark.parametrize("text", ["", "[1]", "{", "null"])
def test_a_broken_marker_is_one_clear_error(tmp_path, text):
    (tmp_path / "settings.json").write_text(text, encoding="utf-8")
    with pytest.raises(VlaaError, match=r"settings.json: not a JSON object; delete"):
        folders.claim(tmp_path, {"beta": 0.1})


def test_one_process_at_a_time_holds_a_folder(tmp_path):
    code = (
        "from vlaa_lib import folders\n"
        f"with folders.lock({str(tmp_path)!r}): print('held', flush=True); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(VlaaError, match="in use by another process"), folders.lock(tmp_path):
            pass
    finally:
        other.kill()
        other.wait()
    with folders.lock(tmp_path):  # a killed process holds nothing
        pass


def test_the_half_line_of_a_killed_process_is_no_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert folders.whole_lines(path) == []
    folders.append_line(path, {"id": "a", "text": "line\nbreak é"})
    with path.open("a", encoding="utf-8") as stream:
        stream.write('{"id": "b"')
    assert [row["id"] for row in folders.whole_lines(path)] == ["a"]
    folders.whole_lines(path, cut=True)
    folders.append_line(path, {"id": "c"})
    assert [row["id"] for row in folders.whole_lines(path)] == ["a", "c"]
    path.write_text('{"id": "a"}\n[1]\n', encoding="utf-8")
    with pytest.raises(VlaaError, match=r"rows.jsonl:2: not a JSON object; delete this line"):
        folders.whole_lines(path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    folders.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), folders.atomic(path) as stream:
        stream.write("new")
        raise KeyboardInterrupt
    assert path.read_text(
        encoding="utf-8") == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


FULL = """
import resource, sys
from vlaa_lib.options import one_line
from vlaa_lib import folders
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
for write in (folders.write_text, lambda path, text: folders.append_line(path, {"a": text})):
    try: write(sys.argv[1], "x" * 5000)
    except OSError as error: print(one_line(error))
"""


def test_a_full_disk_names_the_file_and_keeps_the_old_one(tmp_path):
    path = tmp_path / "rows.jsonl"
    folders.append_line(path, {"a": 1})
    made = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True,
                          encoding="utf-8", check=True, cwd=ROOT)  # fmt: skip
    first, second = made.stdout.strip().split("\n")
    assert first.startswith(f"{path}: file too large; raise") and first == second
    assert folders.whole_lines(path, cut=True) == [{"a": 1}]
    assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_lock_sweeps_the_drafts_of_the_dead_alone(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    with folders.staged(tmp_path / "mine") as mine:
        mine.write_bytes(b"")
        left = folders.draft_of(tmp_path / "sft.jsonl")
        left = left.with_name(left.name.replace(f"-{os.getpid()}.", f"-{dead.pid}."))
        others = [tmp_path / ".bashrc", tmp_path / ".git.1.x", tmp_path / "a.1.0123456789ab"]
        for path in (left, *others):
            path.write_bytes(b"")
        with folders.lock(tmp_path):
            assert not left.exists() and mine.exists() and all(p.exists() for p in others)


@pytest.mark.parametrize(("value", "text"), [
    (float("nan"), "null"), ([1, (float("inf"),)], "[1, [null]]"), ({"a": "é\ud800"}, '{"a": "é'),
])
def test_what_json_does_not_know_is_null(tmp_path, value, text):
    folders.append_line(tmp_path / "a", {"v": value})
    assert text in (tmp_path / "a").read_text(encoding="utf-8")
    assert len(folders.whole_lines(tmp_path / "a")) == 1


@pytest.mark.parametrize(("data", "said"), [
    (b"\xef\xbb\xbfa: 1\n", None), (b"a: [\n", "line 2: "), (b"- a\n", "key: value"),
    (b"\xff\xfe", "not UTF-8 text"), (b"!!python/name:os.system\n", "line 1: "),
    (b"key: sk-123: x\n", "line 1: mapping"),
])
def test_yaml_is_read_safely_and_never_quoted(tmp_path, data, said):
    (tmp_path / "a.yaml").write_bytes(data)
    if said is None:
        assert folders.read_yaml(tmp_path / "a.yaml") == {"a": 1}
        return
    with pytest.raises(VlaaError, match=f"a.yaml: .*{said}") as caught:
        folders.read_yaml(tmp_path / "a.yaml")
    assert "sk-123" not in str(caught.value)


LEAVES = """
import os, signal
from pathlib import Path
from vlaa_lib import folders
folders.draft_of({out!r} + "/start").mkdir()
with folders.staged({out!r} + "/deep/file.txt") as draft:
    draft.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_drafts_of_killed_processes_go_when_the_folder_is_held_again(tmp_path):
    done = subprocess.run([sys.executable, "-c", LEAVES.format(out=str(tmp_path))], cwd=ROOT)
    assert done.returncode < 0 and len(list(tmp_path.rglob(".*"))) == 2
    mine = folders.draft_of(tmp_path / "mine")  # this process runs
    elsewhere = mine.with_name(mine.name.replace(folders._here(), "0" * 8))
    for path in (mine, elsewhere, tmp_path / ".hidden"):
        path.touch()
    with folders.lock(tmp_path):
        left = {path.name for path in tmp_path.rglob(".*")}
        assert left == {".lock", ".hidden", mine.name, elsewhere.name}


def test_a_fingerprint_follows_the_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden": 1}), encoding="utf-8")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\0" * 2**17)
    first = folders.fingerprint(tmp_path)
    assert folders.fingerprint(tmp_path) == first != str(tmp_path)
    for changed in (0, 2**16, 2**17 - 1):  # a frozen part at either end hides no other
        data = bytearray(2**17)
        data[changed] = 1
        weights.write_bytes(data)
        assert folders.fingerprint(tmp_path) != first
    assert folders.fingerprint("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"


def test_the_origin_names_commit_and_changes_only_in_git(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "ROOT", tmp_path)
    found = folders.provenance()
    assert found["commit"] is None and found["dirty"] is None
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "new.txt").write_text("x", encoding="utf-8")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-qm", "one"], check=True)
    found = folders.provenance()
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "new.txt").write_text("y", encoding="utf-8")
    assert folders.provenance()["dirty"] is True
    assert "cores" in found["machine"] and "GiB" in found["machine"]


def test_the_committed_models_have_fingerprints_of_their_own(tmp_path):
    import shutil

    for stage in ("base", "instruct"):  # their weights alone, whose frozen ends are the same
        (tmp_path / stage).mkdir()
        shutil.copy(ROOT / "data" / "pocket" / stage / "model.safetensors", tmp_path / stage)
    assert folders.fingerprint(tmp_path / "base") != folders.fingerprint(tmp_path / "instruct")

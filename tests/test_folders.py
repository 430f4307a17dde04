"""Folders: files whole or not at all, one owner, half lines, fingerprints."""

import json
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
    (tmp_path / "settings.json").write_text(text)
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
    with path.open("a") as stream:
        stream.write('{"id": "b"')
    assert [row["id"] for row in folders.whole_lines(path)] == ["a"]
    folders.whole_lines(path, cut=True)
    folders.append_line(path, {"id": "c"})
    assert [row["id"] for row in folders.whole_lines(path)] == ["a", "c"]
    path.write_text('{"id": "a"}\n[1]\n')
    with pytest.raises(VlaaError, match=r"rows.jsonl:2: not a JSON object; delete this line"):
        folders.whole_lines(path)


def test_a_file_is_there_whole_or_not_at_all(tmp_path):
    path = tmp_path / "deep" / "file.txt"
    folders.write_text(path, "old")
    with pytest.raises(KeyboardInterrupt), folders.atomic(path) as stream:
        stream.write("new")
        raise KeyboardInterrupt
    assert path.read_text() == "old" and [p.name for p in path.parent.iterdir()] == ["file.txt"]


def test_a_fingerprint_follows_the_weights(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"hidden": 1}))
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
    (tmp_path / "new.txt").write_text("x")
    identity = ["-c", "user.name=t", "-c", "user.email=t@example.org"]
    subprocess.run(["git", "-C", tmp_path, "add", "."], check=True)
    subprocess.run(["git", "-C", tmp_path, *identity, "commit", "-qm", "one"], check=True)
    found = folders.provenance()
    assert len(found["commit"]) == 40 and found["dirty"] is False
    (tmp_path / "new.txt").write_text("y")
    assert folders.provenance()["dirty"] is True
    assert "cores" in found["machine"] and "GiB" in found["machine"]


def test_the_committed_models_have_fingerprints_of_their_own(tmp_path):
    import shutil

    for stage in ("base", "instruct"):  # their weights alone, whose frozen ends are the same
        (tmp_path / stage).mkdir()
        shutil.copy(ROOT / "data" / "pocket" / stage / "model.safetensors", tmp_path / stage)
    assert folders.fingerprint(tmp_path / "base") != folders.fingerprint(tmp_path / "instruct")

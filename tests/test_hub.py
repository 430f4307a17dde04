"""The dataset's fetch against a hub on loopback: resume, verify, refuse, pin."""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from huggingface_hub.utils import WeakFileLock

from loopback_hub import COMMIT, OTHER, serve
from vlaa_lib import profiles, records
from vlaa_lib.__main__ import main
from vlaa_lib.sources import hub as fetching
from vlaa_lib.study import stages
from vlaa_lib.train import plan

JSON, TAR = fetching.SPLITS["rl"], "images/clevr_math.tar.gz"
PICTURES = {"clevr_math/a.png": b"picture a" * 5000, "clevr_math/b.png": b"picture b"}


def tar(members: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


RECORDS = "".join(
    json.dumps({"id": str(i), "image": name, "question": "?", "gt": 1}) + "\n"
    for i, name in enumerate(PICTURES)
).encode()


@pytest.fixture
def hub(monkeypatch):
    files = {"README.md": b"# A card\n", JSON: RECORDS * 100, TAR: tar(PICTURES)}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)  # what is kept of a broken download
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with serve(files) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def fetch(root, *options) -> int:
    return main(["data", "fetch", "vlaa-thinking", "--root", str(root), *options])


def files_below(root: Path) -> set[str]:
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith(fetching.STATE)}


def test_fetch_verifies_unpacks_and_pins(hub, tmp_path, capsys):
    root = tmp_path / "deep" / "data"
    assert fetch(root) == 0
    assert files_below(root) == {*hub.files, "REVISION", *(f"images/{n}" for n in PICTURES)}
    assert all((root / name).read_bytes() == data for name, data in hub.files.items())
    assert all((root / "images" / n).read_bytes() == data for n, data in PICTURES.items())
    assert (root / "REVISION").read_text() == COMMIT + "\n"
    assert not list((root / fetching.STATE).glob("*.part"))
    assert COMMIT in capsys.readouterr().out
    assert main(["data", "check", "--root", str(root), "--records", str(root / JSON)]) == 0


def test_what_was_fetched_is_what_a_profile_trains_on(hub, tmp_path, capsys):
    cfg = profiles.load("single", **{"data.folder": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match="VLAA-Thinking-SFT-126K.json: not there; fetch"):
        stages.dataset(cfg, tmp_path / "run")
    hub.files[fetching.SPLITS["sft"]] = b"[" + RECORDS.strip().replace(b"\n", b",") + b"]"
    assert fetch(tmp_path) == 0
    data, images = stages.dataset(cfg, tmp_path / "run"), stages.pictures(cfg, tmp_path / "run")
    for name, method, lines in (("sft", "sft", 2), ("rl", "grpo", 200)):
        found = records.load(stages.split(data, name), images)
        assert [record.id for record in found.records] == ["0", "1"]
        assert plan.number_of_records(cfg, method)[0] == lines
    (tmp_path / "rl.jsonl").write_text("")  # ours come first
    assert stages.split(data, "rl").name == "rl.jsonl"


def test_a_second_fetch_downloads_and_unpacks_nothing(hub, tmp_path, capsys):
    assert fetch(tmp_path) == 0
    (tmp_path / TAR).unlink()  # an unpacked archive may be deleted
    shutil.rmtree(tmp_path / "images/clevr_math")
    hub.log.clear()
    assert fetch(tmp_path) == 0
    assert hub.downloads() == [] and not (tmp_path / "images/clevr_math").exists()
    assert "unpacked" in capsys.readouterr().out
    assert main(["data", "check", "--root", str(tmp_path)]) == 1  # it says how to unpack again
    mark = next((tmp_path / fetching.STATE).glob("*.unpacked"))
    assert f"delete {mark}" in capsys.readouterr().out
    mark.unlink()
    assert fetch(tmp_path) == main(["data", "check", "--root", str(tmp_path)]) == 0


def test_a_broken_download_goes_on_where_it_stopped(hub, tmp_path, capsys):
    hub.faults[JSON] = ["cut", 503]
    assert fetch(tmp_path) == 2
    assert "503" in (message := capsys.readouterr().err) and "goes on where it stopped" in message
    assert not (tmp_path / JSON).exists() and (tmp_path / "README.md").exists()
    hub.log.clear()
    assert fetch(tmp_path) == 0
    kept = len(hub.files[JSON]) // 2 // 1000 * 1000
    asked = {name: wanted for name, wanted, _ in hub.downloads()}
    assert asked[JSON] == f"bytes={kept}-" and "README.md" not in asked
    assert (tmp_path / JSON).read_bytes() == hub.files[JSON]


def test_a_server_that_ignores_the_range_is_survived(hub, tmp_path):
    hub.faults[JSON] = ["cut", 503, "no-range"]
    assert fetch(tmp_path) == 2
    assert fetch(tmp_path) == 0
    assert (tmp_path / JSON).read_bytes() == hub.files[JSON]


@pytest.mark.parametrize(
    ("status", "headers", "message"),
    [
        (403, {"X-Error-Code": "GatedRepo"}, "accept the terms"),
        (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "HF_TOKEN"),
        (401, {}, "the name is not there, is private"),
        (404, {"X-Error-Code": "RepoNotFound"}, "check HF_ENDPOINT"),
        (404, {}, "access refused (404)"),
        (403, {}, "access refused (403)"),
        (500, {}, "answered 500"),
        (200, {}, "no hub answers there"),
    ],
)
def test_a_refusal_says_what_to_do(hub, tmp_path, status, headers, message, capsys):
    hub.listing_fault = (status, headers, b"<html>")
    assert fetch(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


def test_nobody_there(hub, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(tmp_path) == 2
    assert "no connection" in capsys.readouterr().err


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_file_may_be_refused_as_well(hub, tmp_path, status, capsys):
    hub.faults[TAR] = [status]
    assert fetch(tmp_path) == 2
    assert capsys.readouterr().err.startswith(f"error: {TAR}: ")


@pytest.mark.parametrize("name", [JSON, "README.md"])
def test_wrong_bytes_are_deleted_and_named(hub, tmp_path, name, capsys):
    hub.faults[name] = [b"x" * len(hub.files[name])]
    assert fetch(tmp_path) == 2
    assert "digest" in capsys.readouterr().err
    assert not (tmp_path / name).exists() and not list((tmp_path / ".fetch").glob("*.part"))
    assert fetch(tmp_path) == 0


@pytest.mark.parametrize("change", [-9, +9])
def test_a_wrong_size_is_no_success(hub, tmp_path, change, capsys):
    data = hub.files[JSON]
    hub.faults[JSON] = [data[:change] if change < 0 else data + b"x" * change]
    assert fetch(tmp_path) == 2
    assert "size" in capsys.readouterr().err and not (tmp_path / JSON).exists()
    assert fetch(tmp_path) == 0
    assert (tmp_path / JSON).read_bytes() == data


def test_two_revisions_are_not_mixed(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--only", "README.md") == 0
    hub.revisions["main"] = OTHER  # the branch moved: what is pinned stays
    assert fetch(tmp_path) == 0
    assert (tmp_path / "REVISION").read_text() == COMMIT + "\n"
    assert fetch(tmp_path, "--revision", "main") == 2
    assert COMMIT in (message := capsys.readouterr().err) and OTHER in message
    assert fetch(tmp_path, "--revision", "none") == 2
    assert "check --revision" in capsys.readouterr().err


def test_plan_prints_and_writes_nothing(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--plan") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in hub.files) and "to download" in out
    assert not any(tmp_path.iterdir()) and hub.downloads() == []


def test_only_chooses_files(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--only", "*.json") == 0
    assert files_below(tmp_path) == {JSON, "REVISION"}
    assert fetch(tmp_path, "--only", "*.csv") == 2
    assert TAR in capsys.readouterr().err


def test_room_is_looked_for_first(hub, tmp_path, monkeypatch, capsys):
    need = sum(map(len, hub.files.values())) + len(hub.files[TAR])
    room = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=need - 1))
    assert fetch(tmp_path / "new") == 2
    assert "make room" in capsys.readouterr().err
    assert hub.downloads() == [] and not (tmp_path / "new").exists()
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room._replace(free=need))
    assert fetch(tmp_path / "new") == 0


def test_the_token_comes_from_the_environment_and_stays_with_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "token").write_text("hf_file")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    assert fetch(tmp_path / "a") == 0
    assert {token for *_, token in hub.log} == {None}
    hub.log.clear()
    hub.redirect = hub.url.replace("127.0.0.1", "localhost")  # another host, as a CDN is
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    assert fetch(tmp_path / "b") == 0
    tokens = [token for name, _, token in hub.downloads() if name == JSON]
    assert tokens == ["Bearer hf_mine", None]
    assert (tmp_path / "b" / JSON).read_bytes() == hub.files[JSON]


@pytest.mark.parametrize(
    "change",
    [
        {"rfilename": "../evil.json"},
        {"rfilename": "/tmp/evil.json"},
        {"rfilename": ".fetch/lock"},
        {"rfilename": "REVISION"},
        {"lfs": {"size": 1, "sha256": "../../evil", "pointerSize": 1}},
        {"size": -1},
        {"size": None},
    ],
)
def test_a_hostile_listing_is_refused(hub, tmp_path, change, capsys):
    hub.listing_changes[JSON] = change
    assert fetch(tmp_path / "data") == 2
    assert "HF_ENDPOINT" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_hostile_archive_leaves_nothing(hub, tmp_path, capsys):
    hub.files[TAR] = tar({"good.png": b"1", "../../evil.png": b"2"})
    assert fetch(tmp_path / "data") == 2
    assert "'../../evil.png' leaves the folder" in capsys.readouterr().err
    assert files_below(tmp_path / "data") == {*hub.files, "REVISION"}
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_one_fetch_at_a_time(hub, tmp_path, capsys):
    (tmp_path / ".fetch").mkdir()
    with WeakFileLock(tmp_path / ".fetch" / "lock"):
        assert fetch(tmp_path) == 2
    assert "another fetch" in capsys.readouterr().err and hub.downloads() == []


def test_the_dataset_must_be_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["data", "fetch", "--root", str(tmp_path)])
    assert "vlaa-thinking" in capsys.readouterr().err

"""The released dataset: fetched from a hub on loopback, unpacked as what it is, hostile input."""

import gzip
import io
import json
import shutil
import stat
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from huggingface_hub import constants
from PIL import Image

from loopback_hub import COMMIT, OTHER, serve
from vlaa_lib import VlaaError, folders, profiles, records
from vlaa_lib.__main__ import main
from vlaa_lib.sources import fetch as fetching
from vlaa_lib.sources import unpack as unpacking
from vlaa_lib.study import stages
from vlaa_lib.train import plan


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def tar(members, mode="w:gz") -> bytes:
    """Pack (name, data) pairs; instead of data, (type of a tar member,)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, format=tarfile.GNU_FORMAT) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            if isinstance(data, tuple):
                (info.type,), info.linkname = data, "/etc/passwd"
                archive.addfile(info)
            else:
                info.size, info.mode = len(data), 0o4777
                archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def zipped(members, mode=0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


# --- fetch ---------------------------------------------------------------------------------------

JSON, TAR = fetching.SPLITS["rl"], "images/clevr_math.tar.gz"
PICTURES = {"clevr_math/a.png": b"picture a" * 5000, "clevr_math/b.png": b"picture b"}
RECORDS = "".join(
    json.dumps({"id": str(i), "image": name, "question": "?", "gt": 1}) + "\n"
    for i, name in enumerate(PICTURES)
).encode()


@pytest.fixture
def hub(monkeypatch):
    files = {"README.md": b"# A card\n", JSON: RECORDS * 100, TAR: tar(PICTURES.items())}
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    with serve(files) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.url)
        yield running


def fetch(root, *options) -> int:
    return main(["data", "fetch", "vlaa-thinking", "--root", str(root), *options])


def files_below(root: Path) -> set[str]:
    found = {str(p.relative_to(root)) for p in root.rglob("*") if p.is_file()}
    return {name for name in found if not name.startswith((fetching.MARKS, ".cache", ".lock"))}


def test_fetch_verifies_unpacks_and_pins(hub, tmp_path, capsys):
    root = tmp_path / "deep" / "data"
    assert fetch(root) == 0
    assert files_below(root) == {*hub.files, "REVISION", *(f"images/{n}" for n in PICTURES)}
    assert all((root / name).read_bytes() == data for name, data in hub.files.items())
    assert all((root / "images" / n).read_bytes() == data for n, data in PICTURES.items())
    assert (root / "REVISION").read_text(encoding="utf-8") == COMMIT + "\n"
    assert COMMIT in capsys.readouterr().out
    assert main(["data", "check", "--root", str(root), "--records", str(root / JSON)]) == 0


def test_what_was_fetched_is_what_a_profile_trains_on(hub, tmp_path, capsys):
    cfg = profiles.load("single", **{"data.folder": str(tmp_path)})
    with pytest.raises(FileNotFoundError, match=r"VLAA-Thinking-SFT-126K.json: not there; fetch"):
        stages.dataset(cfg, tmp_path / "run")
    hub.files[fetching.SPLITS["sft"]] = b"[" + RECORDS.strip().replace(b"\n", b",") + b"]"
    assert fetch(tmp_path) == 0
    data, images = stages.dataset(cfg, tmp_path / "run"), stages.pictures(cfg, tmp_path / "run")
    for name, method, lines in (("sft", "sft", 2), ("rl", "grpo", 200)):
        found = records.load(stages.split(data, name), images)
        assert [record.id for record in found.records] == ["0", "1"]
        assert plan.number_of_records(cfg, method) == lines
    (tmp_path / "rl.jsonl").write_text("", encoding="utf-8")  # ours come first
    assert stages.split(data, "rl").name == "rl.jsonl"


def test_a_second_fetch_downloads_and_unpacks_nothing(hub, tmp_path, capsys):
    assert fetch(tmp_path) == 0
    (tmp_path / TAR).unlink()  # an unpacked archive may be deleted
    shutil.rmtree(tmp_path / "images/clevr_math")
    hub.downloads.clear()
    assert fetch(tmp_path) == 0
    assert hub.downloads == [] and not (tmp_path / "images/clevr_math").exists()
    assert "unpacked" in capsys.readouterr().out
    assert main(["data", "check", "--root", str(tmp_path)]) == 1  # it says how to unpack again
    mark = next((tmp_path / fetching.MARKS).glob("*.unpacked"))
    assert f"delete {mark}" in capsys.readouterr().out
    mark.unlink()
    assert fetch(tmp_path) == main(["data", "check", "--root", str(tmp_path)]) == 0


def test_a_broken_fetch_goes_on_with_the_files_that_are_missing(hub, tmp_path, capsys):
    hub.faults[JSON] = [403]
    assert fetch(tmp_path) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: {JSON}: the server answered 403")
    assert "finished files are kept" in message and message.count("\n") == 1
    assert not (tmp_path / JSON).exists() and (tmp_path / TAR).exists()
    hub.downloads.clear()
    assert fetch(tmp_path) == 0
    assert hub.downloads == [JSON]
    assert (tmp_path / JSON).read_bytes() == hub.files[JSON]


@pytest.mark.parametrize(("status", "headers", "message"), [
    (403, {"X-Error-Code": "GatedRepo"}, "accept the terms"),
    (401, {}, "the name is private, gated or not there: check HF_ENDPOINT and HF_TOKEN"),
    (404, {"X-Error-Code": "RepoNotFound"}, "check HF_ENDPOINT"),
    (500, {}, "answered 500"),
    (200, {}, "no hub answers there"),
    (None, {}, "no connection"),
])  # fmt: skip
def test_a_refusal_says_what_to_do(hub, tmp_path, monkeypatch, status, headers, message, capsys):
    hub.listing_fault = (status, headers, b"<html>")
    if not status:
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert fetch(tmp_path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and message in error and error.count("\n") == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [JSON, "README.md"])
def test_wrong_bytes_are_deleted_and_named(hub, tmp_path, name, capsys):
    hub.faults[name] = [b"x" * len(hub.files[name])]
    assert fetch(tmp_path) == 2
    assert "digest" in capsys.readouterr().err and not (tmp_path / name).exists()
    assert fetch(tmp_path) == 0
    assert (tmp_path / name).read_bytes() == hub.files[name]


def test_two_revisions_are_not_mixed(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--only", "README.md") == 0
    hub.revisions["main"] = OTHER  # the branch moved: what is pinned stays
    assert fetch(tmp_path, "--only", "README.md") == 0
    assert (tmp_path / "REVISION").read_text(encoding="utf-8") == COMMIT + "\n"
    assert fetch(tmp_path, "--revision", "main") == 2
    assert COMMIT in (message := capsys.readouterr().err) and OTHER in message
    assert fetch(tmp_path, "--revision", "none") == 2
    assert "check --revision" in capsys.readouterr().err


def test_plan_prints_and_writes_nothing_and_only_chooses_files(hub, tmp_path, capsys):
    assert fetch(tmp_path, "--plan") == 0
    out = capsys.readouterr().out
    assert all(name in out for name in hub.files) and "to download" in out
    assert not any(tmp_path.iterdir()) and hub.downloads == []
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
    assert hub.downloads == [] and not (tmp_path / "new").exists()


def test_no_more_bytes_are_written_than_were_promised(hub, tmp_path, capsys):
    hub.chunked, hub.faults[JSON] = True, [hub.files[JSON] + b"x" * 2**23]
    assert fetch(tmp_path) == 2
    assert f"{JSON}: more than the {len(hub.files[JSON]):,} bytes" in capsys.readouterr().err
    written = [p.stat().st_size for p in tmp_path.rglob("*.incomplete")]
    assert not (tmp_path / JSON).exists() and sum(written) <= len(hub.files[JSON])
    hub.chunked = False
    assert fetch(tmp_path) == 0 and (tmp_path / JSON).read_bytes() == hub.files[JSON]


def test_gits_own_file_is_passed_over(hub, tmp_path):
    hub.files[".gitattributes"] = b"*.json filter=lfs"
    assert fetch(tmp_path) == 0 and not (tmp_path / ".gitattributes").exists()


@pytest.mark.parametrize("change", [
    {"rfilename": "../evil.json"}, {"size": None}, {"lfs": 3}, {"rfilename": ".bashrc"},
    {"rfilename": "images/.fetch/x.json"}, {"rfilename": ".fetch/a.tar.unpacked"},
    {"rfilename": "./REVISION"},
])  # fmt: skip
def test_a_hostile_listing_is_refused(hub, tmp_path, change, capsys):
    hub.listing_changes[JSON] = change
    assert fetch(tmp_path / "data") == 2
    assert "HF_ENDPOINT" in capsys.readouterr().err and not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["REVISION", JSON])
def test_no_archive_replaces_what_was_verified(hub, tmp_path, capsys, name):
    hub.files["a.zip"] = zipped([("ok.png", b"1"), (name, b"2")])
    assert fetch(tmp_path / "data") == 2
    assert f"it would replace {tmp_path / 'data' / name}" in capsys.readouterr().err
    assert (tmp_path / "data" / name).read_bytes() != b"2"
    assert not (tmp_path / "data" / "ok.png").exists()


def test_a_hostile_archive_leaves_nothing(hub, tmp_path, capsys):
    hub.files[TAR] = tar([("good.png", b"1"), ("../../evil.png", b"2")])
    assert fetch(tmp_path / "data") == 2
    assert "'../../evil.png' leaves" in capsys.readouterr().err
    assert files_below(tmp_path / "data") == {*hub.files, "REVISION"}
    assert [p.name for p in tmp_path.iterdir()] == ["data"]


def test_one_fetch_at_a_time(hub, tmp_path, capsys):
    with folders.lock(tmp_path):
        assert fetch(tmp_path) == 2
    assert "in use by another process" in capsys.readouterr().err and hub.downloads == []


# --- unpack --------------------------------------------------------------------------------------

GOOD = {"vg/a.png": b"a" * 3000, "./vg/deep/b.png": b"b", "c.txt": b""}


def unpack(folder, data: bytes, name="x.tar.gz", cuts=()) -> None:
    """Write an archive, in parts if it is to be cut, and unpack it into `folder/out`."""
    edges = [0, *cuts, len(data)]
    parts = [folder / f"{name}.{i:03}" if cuts else folder / name for i in range(len(edges) - 1)]
    for part, start, end in zip(parts, edges, edges[1:], strict=False):
        part.write_bytes(data[start:end])
    unpacking.unpack(parts, folder / "out")


def tree(folder) -> dict[str, bytes]:
    found = folder.rglob("*")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.is_file()}


WAYS = {
    "tar.gz": (tar(GOOD.items()), "x.tar.gz", ()),
    "tar": (tar(GOOD.items(), "w"), "x.tar", ()),
    "zip of Unix files": (zipped(GOOD.items(), stat.S_IFREG | 0o4755), "x.zip", ()),
    "split tar.gz": (tar(GOOD.items()), "x.tar.gz", (7, 100)),
    "split zip": (zipped(GOOD.items()), "x.zip", (7, 100)),
}


@pytest.mark.parametrize("way", WAYS)
def test_good_archives_join_what_is_there(tmp_path, way):
    data, name, cuts = WAYS[way]
    (tmp_path / "out/vg").mkdir(parents=True)
    (tmp_path / "out/vg/mine.png").write_bytes(b"mine")
    (tmp_path / "out/vg/a.png").write_bytes(b"older")
    left_by_a_kill = tmp_path / "out" / f".unpacking-{name}{'.000' if cuts else ''}"
    left_by_a_kill.mkdir()
    (left_by_a_kill / "half.png").write_bytes(b"half")
    unpack(tmp_path, data, name, cuts)
    expected = {key.removeprefix("./"): value for key, value in GOOD.items()}
    assert tree(tmp_path / "out") == expected | {"vg/mine.png": b"mine"}
    assert not (tmp_path / "out/vg/a.png").stat().st_mode & 0o7022


NAMES = ("../evil", "a/../../evil", "C:/evil", "..\\evil", ".fetch/mark")
BOMB = [("zeros", bytes(unpacking.MIN_LIMIT_BYTES + 1))]
HOSTILE = {
    **{f"{make.__name__} {n}": (make([("ok", b"1"), (n, b"2")]), n.rpartition("evil")[0])
       for n in NAMES for make in (tar, zipped)},
    **{f"tar type {k}": (tar([("ok", b"1"), ("x", (k,))]), "link or a device")
       for k in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)},
    "zip link": (zipped([("x", b"/etc/passwd")], stat.S_IFLNK | 0o777), "link or a device"),
    "tar bomb": (tar(BOMB), "a bomb"),
    "zip bomb": (zipped(BOMB), "a bomb"),
    "cut tar.gz": (tar(GOOD.items())[:-20], "cut short"),
    "cut tar": (tar([("ok", b"1"), ("b", b"b" * 3000)], "w")[:3000], "cut short"),
    "tar cut before a header": (tar([("ok", b"1"), ("b", b"2")], "w")[:1024], "breaks off"),
    "tar cut in a header": (tar([("ok", b"1"), ("b", b"2")], "w")[:1300], "breaks off"),
    "tar.gz cut before a header": (
        gzip.compress(tar([("ok", b"1"), ("b", b"2")], "w")[:1024]), "breaks off"),
    "rubbish for a header": (tar([("a", b"1")], "w")[:1024] + b"x" * 2048, "breaks off"),
    **{f"{make.__name__}: a name twice as {n}": (make([("x/a", b"1"), (n, b"2")]), "there twice")
       for n in ("x/a", "./x//a") for make in (tar, zipped)},
    "cut zip": (zipped(GOOD.items())[:-30], "cut short"),
    "no archive": (b"<html>not found</html>", "broken"),
    "a file as a folder": (tar([("a", b"1"), ("a/b", b"2")]), "broken"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path, case):
    data, message = HOSTILE[case]
    with pytest.raises(VlaaError) as caught:
        unpack(tmp_path, data)
    assert message in str(caught.value) and "x.tar.gz: " in str(caught.value)
    assert {p.name for p in tmp_path.rglob("*")} == {"out", "x.tar.gz"}


def test_a_folder_may_be_named_twice_and_after_what_is_in_it(tmp_path):
    folder = (tarfile.DIRTYPE,)
    unpack(tmp_path, tar([("x/", folder), ("x/a", b"1"), ("x/", folder), ("./", folder)]))
    assert tree(tmp_path / "out") == {"x/a": b"1"}


@pytest.mark.parametrize("name", ["/tmp/evil-here", "\\evil-here"])
@pytest.mark.parametrize("make", [tar, zipped])
def test_absolute_names_stay_below_the_folder(tmp_path, make, name):
    unpack(tmp_path, make([(name, b"2")]))
    assert list(tree(tmp_path / "out").values()) == [b"2"]
    assert not Path("/tmp/evil-here").exists()


def test_a_bomb_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 10)
    for names in ([str(i) for i in range(11)], ["/".join("abcdefghijk")]):  # folders count as well
        with pytest.raises(VlaaError, match="a bomb"):
            unpack(tmp_path, tar((name, b"") for name in names))
    unpack(tmp_path, tar([("/".join("abcdefghij"), b"")]))


def test_which_names_are_archives():
    others = ["a.tar.xz", "a.zip.json", "zip", "a.gz", "tar.gz", "a.targz"]
    assert unpacking.archives([*others, "a.tar.part-1", "images/a.TGZ"]) == {
        "a.tar": ["a.tar.part-1"], "images/a.TGZ": ["images/a.TGZ"]
    }  # fmt: skip; parts in their order: see the function's example


# --- which pictures are there --------------------------------------------------------------------


def write(root, images, name="records.json", extra=()):
    lines = [json.dumps({"id": str(i), "image": image}) for i, image in enumerate(images)]
    root.joinpath(name).write_text("\n".join([*lines, *extra]), encoding="utf-8")


def place(root, name, data=None):
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def check(root, *options) -> int:
    return main(["data", "check", "--root", str(root), *options])


def test_all_there(tmp_path, capsys):
    place(tmp_path, "clevr_math/a.png")
    write(tmp_path, ["clevr_math/a.png", "/clevr_math/a.png"])
    assert check(tmp_path) == check(tmp_path, "--deep") == 0
    assert "every record has its picture" in capsys.readouterr().out
    assert fetching.check(tmp_path) == ([
        {"folder": "clevr_math", "source": "CLEVR-Math", "records": 2, "there": 2, "missing": 0,
         "unreadable": 0}
    ], [])  # fmt: skip


MISSING = {
    "clevr_math": ("clevr_math/a.png/x.png", "data fetch vlaa-thinking --root"),
    "coco/train2017": ("coco/train2017/1.jpg", "images.cocodataset.org/zips/train2017.zip"),
    "vg/VG_100K": ("vg/VG_100K/1.jpg", "VG_100K_2/images.zip"),
    "vg/VG_100K_2": ("vg/VG_100K_2/1.jpg", "VG_100K_2/images2.zip"),
    "coco": ("coco/val2017/1.jpg", "only coco/train2017"),
    "(other)": ("mine/1.jpg", "no folder of the release"),
}


def test_missing_pictures_have_a_remedy(tmp_path):
    place(tmp_path, "clevr_math/a.png")
    write(tmp_path, ["clevr_math/a.png", *(image for image, _ in MISSING.values())])
    assert check(tmp_path) == 1
    rows, notes = fetching.check(tmp_path)
    assert {row["folder"]: row["missing"] for row in rows} == dict.fromkeys(MISSING, 1)
    said = dict(note.split(": ", 1) for note in notes)
    for folder, (image, remedy) in MISSING.items():
        assert said[folder].startswith(f"{image} is missing") and remedy in said[folder]


def test_unreadable_pictures(tmp_path, capsys):
    names = ["vizwiz/empty.png", "vizwiz/broken.png", "vizwiz/good.png", "vizwiz/folder"]
    for name, data in zip(names, (b"", png()[:-30], None), strict=False):
        place(tmp_path, name, data)
    place(tmp_path, "vizwiz/folder/x.png")
    write(tmp_path, names)
    assert check(tmp_path) == check(tmp_path, "--deep") == 1
    shallow, deep = (fetching.check(tmp_path, deep=deep)[0][0] for deep in (False, True))
    assert (shallow["there"], shallow["unreadable"]) == (2, 2)
    assert (deep["there"], deep["unreadable"]) == (1, 3)


def test_bad_records_are_quoted_and_counted(tmp_path, capsys):
    place(tmp_path, "vizwiz/a.png")
    bad = ['{"id": 1}', '{"image": "../x.png"}', "half {", "[1]", '{"image": 3}', '{"image": ""}']
    write(tmp_path, ["vizwiz/a.png"], "r.jsonl", extra=bad)
    assert check(tmp_path) == 1
    out = capsys.readouterr().out
    assert "r.jsonl:2: key 'image' is" in out and "r.jsonl:3: image '../x.png' leaves" in out
    assert "r.jsonl:4: not valid JSON" in out and "1 more bad records" in out
    assert fetching.check(tmp_path)[0][0]["records"] == 1


@pytest.mark.parametrize(("data", "code", "message"), [
    (b"\x1f\x8b\xff", 2, "not UTF-8"), (None, 2, "no .json or .jsonl here"),
    (b"[]", 1, "no records"),  # is not complete
])  # fmt: skip
def test_a_file_that_is_none(tmp_path, data, code, message, capsys):
    if data:
        (tmp_path / "r.json").write_bytes(data)
    assert check(tmp_path) == code
    assert message in "".join(capsys.readouterr())
    assert check(tmp_path, "--records", str(tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err


def test_memory_does_not_grow_with_the_file(tmp_path):
    row = {"image": "9/7.png", "text": "x" * 2000}
    (tmp_path / "r.json").write_text(json.dumps([row] * 3000), encoding="utf-8")
    tracemalloc.start()
    (row,), _ = fetching.check(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert row["missing"] == 3000 and (tmp_path / "r.json").stat().st_size > 6e6 and peak < 2e6

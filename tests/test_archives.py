"""Archives as attackers pack them: nothing leaves the folder, nothing of a bad one stays."""

import gzip
import io
import stat
import tarfile
import tracemalloc
import zipfile

import pytest

from vlaa_lib.sources import archives

GOOD = {"vg/a.png": b"a" * 3000, "./vg/deep/b.png": b"b", "c.txt": b""}


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


KINDS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)


def zipped(members, mode=0) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members:
            info = zipfile.ZipInfo(name)
            info.create_system, info.external_attr = 3, mode << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, data)
    return out.getvalue()


def unpack(folder, data: bytes, name="x.tar.gz", cuts=()):
    """Write an archive, in parts if it is to be cut, and unpack it into `folder/out`."""
    edges = [0, *cuts, len(data)]
    parts = [folder / f"{name}.{i:03}" if cuts else folder / name for i in range(len(edges) - 1)]
    for part, start, end in zip(parts, edges, edges[1:], strict=False):
        part.write_bytes(data[start:end])
    return archives.unpack(parts, folder / "out")


def tree(folder) -> dict[str, bytes]:
    found = folder.rglob("*")
    return {str(p.relative_to(folder)): p.read_bytes() for p in found if p.is_file()}


WAYS = {
    "tar.gz": (tar(GOOD.items()), "x.tar.gz", ()),
    "tar": (tar(GOOD.items(), "w"), "x.tar", ()),
    "zip": (zipped(GOOD.items()), "x.zip", ()),
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
    assert unpack(tmp_path, data, name, cuts) == len(GOOD)
    expected = {key.removeprefix("./"): value for key, value in GOOD.items()}
    assert tree(tmp_path / "out") == expected | {"vg/mine.png": b"mine"}
    assert not (tmp_path / "out/vg/a.png").stat().st_mode & 0o7111


NAMES = ("../evil", "a/../../evil", "/tmp/evil", "C:/evil", "..\\evil", "\\evil")
LONG = "n" * 2**21  # more than a header may hold
BOMB = [("zeros", bytes(archives.MIN_LIMIT_BYTES + 1))]
HOSTILE = {
    **{f"tar {n}": (tar([("ok", b"1"), (n, b"2")]), "leaves the folder") for n in NAMES},
    **{f"zip {n}": (zipped([("ok", b"1"), (n, b"2")]), "leaves the folder") for n in NAMES},
    **{f"tar type {k}": (tar([("ok", b"1"), ("x", (k,))]), "link or a device") for k in KINDS},
    "zip link": (zipped([("x", b"/etc/passwd")], stat.S_IFLNK | 0o777), "link or a device"),
    "zip device": (zipped([("x", b"")], stat.S_IFCHR | 0o777), "link or a device"),
    "tar bomb": (tar(BOMB), "a bomb"),
    "zip bomb": (zipped(BOMB), "a bomb"),
    "tar header bomb": (tar([(LONG, b"1")]), "a bomb"),
    "cut tar.gz": (tar(GOOD.items())[:-20], "cut short"),
    "cut tar": (tar([("ok", b"1"), ("b", b"b" * 3000)], "w")[:3000], "cut short"),
    "cut zip": (zipped(GOOD.items())[:-30], "cut short"),
    "no archive": (b"<html>not found</html>", "broken"),
    "a file as a folder": (tar([("a", b"1"), ("a/b", b"2")]), "broken"),
    "name too long": (tar([("n" * 300, b"1")]), "broken"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_archives_leave_nothing(tmp_path, case):
    data, message = HOSTILE[case]
    with pytest.raises(archives.ArchiveError, match="nothing was unpacked") as caught:
        unpack(tmp_path, data)
    assert message in str(caught.value) and "x.tar.gz" in str(caught.value)
    assert [p.name for p in tmp_path.rglob("*")] in (["out", "x.tar.gz"], ["x.tar.gz", "out"])


def test_a_bomb_of_many_files(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBERS", 10)
    assert unpack(tmp_path, tar((str(i), b"") for i in range(10))) == 10
    with pytest.raises(archives.ArchiveError, match="a bomb"):
        unpack(tmp_path, tar((str(i), b"") for i in range(11)))


def test_a_header_that_claims_gigabytes_is_not_read_into_memory(tmp_path):
    info = tarfile.TarInfo("././@LongLink")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 2**30
    data = gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(2**24))
    tracemalloc.start()
    with pytest.raises(archives.ArchiveError, match="a bomb"):
        unpack(tmp_path, data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2**23


@pytest.mark.parametrize(
    ("names", "groups"),
    [
        (["a.tar.gz.aa", "a.tar.gz.ab"], {"a.tar.gz": ["a.tar.gz.aa", "a.tar.gz.ab"]}),
        (["a.zip.2", "a.zip.10"], {"a.zip": ["a.zip.2", "a.zip.10"]}),
        (["a.tar.part-1"], {"a.tar": ["a.tar.part-1"]}),
        (["images/a.TGZ"], {"images/a.TGZ": ["images/a.TGZ"]}),
        (["a.tar.xz", "a.zip.json", "zip", "a.gz", "tar.gz", "a.targz"], {}),
    ],
)
def test_which_names_are_archives(names, groups):
    assert archives.group(names) == groups


@pytest.mark.parametrize("name", ["vg", "there.txt/deep.png", ".fetch/mark", ".hidden"])
def test_a_clash_with_what_is_there_changes_nothing(tmp_path, name):
    out = tmp_path / "out"
    (out / "vg").mkdir(parents=True)
    (out / "vg" / "old.png").write_bytes(b"old")
    (out / "there.txt").write_bytes(b"there")
    before = tree(out)
    with pytest.raises(archives.ArchiveError, match="nothing was unpacked"):
        unpack(tmp_path, tar([("a.png", b"a"), (name, b"x")]))
    assert tree(out) == before

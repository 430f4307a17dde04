"""`data check`: which pictures are there, and where to get those that are not."""

import io
import json
import tracemalloc

import pytest
from PIL import Image

from vlaa_lib.__main__ import main
from vlaa_lib.sources import pictures


def png() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (4, 4)).save(out, "PNG")
    return out.getvalue()


def write(root, images, name="records.json", array=False, extra=()):
    rows = [{"id": str(i), "image": image} for i, image in enumerate(images)]
    lines = [json.dumps(row) for row in rows] + list(extra)
    root.joinpath(name).write_text(json.dumps(rows) if array else "\n".join(lines))


def place(root, name, data=None):
    path = root / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png() if data is None else data)


def check(root, *options) -> int:
    return main(["data", "check", "--root", str(root), *options])


@pytest.mark.parametrize("array", [True, False])
def test_all_there(tmp_path, array, capsys):
    place(tmp_path, "clevr_math/a.png")
    write(tmp_path, ["clevr_math/a.png", "/clevr_math/a.png"], array=array)
    assert check(tmp_path) == check(tmp_path, "--deep") == 0
    assert "every record has its picture" in capsys.readouterr().out
    assert pictures.check(tmp_path).rows() == [
        {"folder": "clevr_math", "source": "CLEVR-Math", "records": 2, "there": 2, "missing": 0,
         "unreadable": 0}
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("image", "folder", "remedy"),
    [
        ("clevr_math/x.png", "clevr_math", "data fetch vlaa-thinking --root"),
        ("coco/train2017/1.jpg", "coco/train2017", "images.cocodataset.org/zips/train2017.zip"),
        ("vg/VG_100K/1.jpg", "vg/VG_100K", "VG_100K_2/images.zip"),
        ("vg/VG_100K_2/1.jpg", "vg/VG_100K_2", "VG_100K_2/images2.zip"),
        ("coco/val2017/1.jpg", "coco", "only coco/train2017"),
        ("mine/1.jpg", "(other)", "no folder of the release"),
        ("clevr_math/a.png/x.png", "clevr_math", "data fetch"),
    ],
)
def test_missing_pictures_have_a_remedy(tmp_path, image, folder, remedy, capsys):
    place(tmp_path, "clevr_math/a.png")
    write(tmp_path, ["clevr_math/a.png", image])
    assert check(tmp_path) == 1
    out = capsys.readouterr().out
    assert f"{folder}: {image} is missing" in out and remedy in out
    assert pictures.check(tmp_path).tallies[folder].missing == 1


def test_unreadable_pictures(tmp_path, capsys):
    names = ["vizwiz/empty.png", "vizwiz/broken.png", "vizwiz/good.png", "vizwiz/folder"]
    place(tmp_path, names[0], b"")
    place(tmp_path, names[1], png()[:-30])
    place(tmp_path, names[2])
    place(tmp_path, "vizwiz/folder/x.png")
    write(tmp_path, names)
    assert check(tmp_path) == check(tmp_path, "--deep") == 1
    shallow, deep = (pictures.check(tmp_path, deep=deep).rows()[0] for deep in (False, True))
    assert (shallow["there"], shallow["unreadable"]) == (2, 2)
    assert (deep["there"], deep["unreadable"]) == (1, 3)


def test_bad_records_are_quoted_and_counted(tmp_path, capsys):
    place(tmp_path, "vizwiz/a.png")
    bad = ['{"id": 1}', '{"image": "../x.png"}', "half {", "[1]", '{"image": 3}', '{"image": ""}']
    write(tmp_path, ["vizwiz/a.png"], "r.jsonl", extra=bad)
    assert check(tmp_path) == 1
    out = capsys.readouterr().out
    assert "r.jsonl:2: names no image" in out and "r.jsonl:3: image '../x.png' leaves" in out
    assert "r.jsonl:4: not valid JSON" in out and "1 more bad records" in out
    found = pictures.check(tmp_path)
    assert found.bad == 6 and found.tallies["vizwiz"].records == 1


@pytest.mark.parametrize(
    ("data", "message"), [(b"\x1f\x8b\xff", "not UTF-8"), (None, "no .json or .jsonl here")]
)
def test_a_file_that_is_none(tmp_path, data, message, capsys):
    if data:
        (tmp_path / "r.json").write_bytes(data)
    assert check(tmp_path) == 2
    assert message in capsys.readouterr().err
    assert check(tmp_path, "--records", str(tmp_path / "none.json")) == 2
    assert "none.json" in capsys.readouterr().err


def test_no_records_are_not_complete(tmp_path):
    (tmp_path / "r.json").write_text("[]")
    assert check(tmp_path) == 1


@pytest.mark.parametrize("array", [True, False])
def test_memory_does_not_grow_with_the_file(tmp_path, array):
    rows = [{"id": str(i), "image": f"{i % 9}/{i % 7}.png", "text": "x" * 2000}
            for i in range(3000)]  # fmt: skip
    text = json.dumps(rows) if array else "\n".join(map(json.dumps, rows))
    (tmp_path / "r.json").write_text(text)
    del rows
    tracemalloc.start()
    found = pictures.check(tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tallies["(other)"].missing == 3000 and len(text) > 6e6 and peak < 2e6

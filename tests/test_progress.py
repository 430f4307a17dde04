"""Progress bars: live in a notebook, their last state in the page that stays."""

from types import SimpleNamespace

import nbformat
import pytest

from vlaa_lib import ROOT, progress
from vlaa_lib.progress import progress_bar
from vlaa_lib.study import run
from vlaa_lib.train import callbacks

WAITS = "import time\nfrom vlaa_lib.progress import progress_bar\n"
CELLS = {
    "stays": WAITS + "for _ in progress_bar(range(20), 'work'): time.sleep(0.01)",
    "goes": WAITS + "for _ in progress_bar(range(20), 'work', leave=False): time.sleep(0.01)",
    "stops": WAITS + "bar = progress_bar(total=9)\nbar.update(4)\nbar.refresh();",
    "two at once": WAITS + "one, two = (progress_bar(total=2, desc=name) for name in 'ab')\n"
    "for bar in (one, two, two, one): bar.update(1); bar.refresh()\none.close(), two.close();",
    "loads": "from vlaa_lib import models\n"
    "policy = models.load_policy('data/pocket/instruct')\n"
    "policy.model.save_pretrained({out!r})",
    "launches": "import sys\nfrom pathlib import Path\nfrom vlaa_lib.train import launch\n"
    "launch.run([sys.executable, '-c', '0'], Path({out!r}) / 'quiet' / 'launch.log')",
}


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    """Run the cells through papermill; return what stays of each: text or None, an output."""
    tmp_path = tmp_path_factory.mktemp("bars")
    made = nbformat.v4.new_notebook()
    made.metadata.kernelspec = {"name": "python3", "display_name": "3", "language": "python"}
    sources = [s.format(out=str(tmp_path / "out")) for s in CELLS.values()]
    made.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    nbformat.write(made, tmp_path / "bars.ipynb")
    run.execute(tmp_path / "bars.ipynb", tmp_path / "run", {}, "bars")
    done = nbformat.read(tmp_path / "run" / "notebooks" / "bars.ipynb", 4).cells[-len(CELLS) :]
    for output in (output for cell in done for output in cell.outputs):
        assert output.output_type == "display_data" and output.data.keys() <= {"text/plain"}
    return {
        name: [output.data.get("text/plain") for output in cell.outputs]
        for name, cell in zip(CELLS, done, strict=True)
    }


def test_in_a_page_the_last_state_stays(shown):
    (stays,), (stops,) = shown["stays"], shown["stops"]
    assert stays.startswith("work: 100%|██████████| 20/20") and "\r" not in stays
    assert "44%" in stops and "4/9" in stops
    assert [line[:8] for line in shown["two at once"]] == ["a: 100%|", "b: 100%|"]


def test_what_shall_go_leaves_nothing_to_see(shown):
    assert shown["goes"] == [None]
    assert shown["loads"] == [], "nor do the bars of transformers, nor its libraries' warnings"


def test_a_process_without_steps_shows_its_time(shown):
    assert shown["launches"][0].startswith("quiet: 00:0") and "it" not in shown["launches"][0]


def test_elsewhere_it_writes_to_standard_error(capsys):
    assert sum(progress_bar([1, 2], "sum")) == 3
    out, err = capsys.readouterr()
    assert out == "" and "2/2" in err


def test_every_bar_is_one_of_these():
    for path in (ROOT / "vlaa_lib").rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        text = text.replace("from huggingface_hub.utils import tqdm", "")  # the hub's own
        assert path.name == "progress.py" or "import tqdm" not in text, path
    training = callbacks.OneBar()
    training.on_train_begin(None, SimpleNamespace(is_world_process_zero=True, max_steps=3), None)
    assert type(training.training_bar) is progress.tqdm and training.training_bar.total == 3

"""`make reproduce PROFILE=smoke`, once, for real: all notebooks in order, and what they leave."""

import csv
import json

import pytest

from vlaa_lib import traces
from vlaa_lib.study import run, stages

RESULTS = ("construct_counts", "sft_log", "grpo_grpo", "grpo_sft_grpo", "accuracy", "aha",
           "search", "vilprm", "best_of_n", "process_reward")


@pytest.mark.notebooks
def test_the_smoke_profile_runs_every_notebook(smoke_run):
    home = smoke_run
    notebooks = sorted(path.name for path in (home / "notebooks").glob("*.ipynb"))
    assert notebooks == [path.name for path in run.find_notebooks()]
    for name in RESULTS:
        with (home / "results" / f"{name}.csv").open(encoding="utf-8") as stream:
            assert list(csv.DictReader(stream)), name
    with (home / "results" / "accuracy.csv").open(encoding="utf-8") as stream:
        assert {row["model"] for row in csv.DictReader(stream)} == set(stages.MODELS)
    card = json.loads((home / "run_card.json").read_text(encoding="utf-8"))
    assert card["profile"] == "smoke" and card["settings"]["seed"] == 0
    page = (home / "report.html").read_text(encoding="utf-8")
    assert "04_grpo" in page and "<script src" not in page and 'class="missing"' not in page
    assert traces.load(home / "models" / "grpo" / "traces")
    # again: what took the time is there
    before = {path: path.stat().st_mtime_ns for path in home.rglob("done.json")}
    assert len(before) > 15 and run.run("smoke", ["02", "07"], run_dir=home) == 0
    assert before == {path: path.stat().st_mtime_ns for path in home.rglob("done.json")}

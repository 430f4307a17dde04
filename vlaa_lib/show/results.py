"""What a run left in `results/`, drawn from its CSVs: for the report and for GitHub's pages.

`python -m vlaa_lib.show.results data/results/laptop` draws each `traces_*.csv` again as an SVG.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from pathlib import Path

import plotly.io

from vlaa_lib import VlaaError
from vlaa_lib.records import REWARDS
from vlaa_lib.tables import read

from . import figures, model_figures, process_figures
from .figures import Figure

_curve, _bars = figures.learning_curve, figures.bars


def _by_part(file: str | Path, title: str) -> Figure:
    rows = [{"step": row["step"], "kind": part, "reward": row.get(f"reward_{part}")}
            for part in REWARDS for row in read(file)]
    return _curve(rows, group="kind", title=title)


# file: figures by title; the notebooks draw the same with what they found as the title
RESULTS: dict[str, dict[str, Callable[..., Figure]]] = {
    "construct_counts.csv": {"Records that enter and leave each step": figures.counts},
    "false_steps_by_noise.csv": {"Traces with a false step: all, verified":
                                 model_figures.false_steps},
    "sft_log.csv": {"SFT loss": partial(_curve, y="loss", y_title="nats a token")},
    "grpo_*.csv": {
        "reward": _curve,
        "KL (k3)": partial(_curve, y="kl", y_title="nats a token"),
        "completion tokens": partial(_curve, y="completions/mean_length", y_title="tokens"),
    },
    "watch_*.csv": {
        "Share of completions with a suspicious sign": partial(_curve, y="suspicious"),
        "Reward by kind of question": _by_part,
    },
    "accuracy.csv": {"Accuracy with bootstrap intervals": figures.accuracy_bars},
    "aha.csv": {
        "Share of traces with an aha word": partial(_bars, x="model", y="aha_rate"),
        "Share of a trace's checked steps that the scene contradicts, mean":
            partial(_bars, x="model", y="false_share"),
    },
    "best_of_n.csv": {"Accuracy of the chosen answer, mean of step scores":
                      process_figures.accuracy_by_n},
    "process_reward.csv": {"Share of false steps": partial(_bars, x="reward", y="false_share")},
    "traces_training.csv": {"Reward and length over training": model_figures.training},
    "traces_aha.csv": {"Four phrases in 100 traces": model_figures.aha_map},
    "traces_hesitation.csv": {"Hesitation": partial(model_figures.by_model, measure="hesitation")},
    "traces_truth.csv": {"False steps, mean of a trace": model_figures.by_model},
    "traces_follows.csv": {"Answers that follow from what was stated":
                           partial(model_figures.by_model, measure="follows")},
    "traces_reward_by_truth.csv": {"Reward by false steps": model_figures.reward_by_truth},
    "traces_length.csv": {"Right answers by length": model_figures.length_and_right},
    "traces_second_thoughts.csv": {"Second thoughts": model_figures.self_correction},
}


def drawn(file: str | Path) -> Iterator[tuple[str, Figure | str]]:
    """Draw a file of results: (title, figure) each, or why there is none; nothing if unknown."""
    for pattern, figures_of in RESULTS.items():
        if fnmatch(Path(file).name, pattern):
            for title, draw in figures_of.items():
                try:
                    yield title, draw(file, title=title)
                except (KeyError, ValueError) as error:
                    yield title, str(error)


def export(results: str | Path, pattern: str = "*.csv") -> list[Path]:
    """Write the figures of a run's CSVs as SVG (into the same folder), where plotly draws nothing.

    Raises:
        VlaaError: kaleido or its browser is missing, or there is nothing to draw.
    """
    try:
        import kaleido  # noqa: F401
    except ImportError:
        raise VlaaError(
            'figures as SVG need kaleido and a Chromium: pip install "vlaa_lib[figures]"; set '
            "BROWSER_PATH to a Chromium that is not found by itself"
        ) from None
    pictures = {}
    for file in sorted(Path(results).glob(pattern)):
        for place, (_title, figure) in enumerate(drawn(file)):
            if isinstance(figure, Figure):
                number = f"_{place + 1}" if place else ""
                pictures[file.with_name(f"{file.stem}{number}.svg")] = figure
    if not pictures:
        raise VlaaError(f"{results}: no {pattern} with numbers to draw")
    try:  # at once: each start of the browser takes seconds
        plotly.io.write_images(list(pictures.values()), list(pictures))
    except RuntimeError as error:
        raise VlaaError(f"{error}; set BROWSER_PATH to a Chromium") from error
    return list(pictures)


if __name__ == "__main__":
    print(*export(sys.argv[1], pattern="traces_*.csv"), sep="\n")

"""What a run left in `results/`: on one page, `report.html`, and as pictures for GitHub.

`python -m vlaa_lib.study.report data/results/laptop` draws each `traces_*.csv` again as an SVG.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from functools import partial
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import plotly.io

from vlaa_lib import ROOT, VlaaError, folders
from vlaa_lib.escape import say
from vlaa_lib.records import REWARDS
from vlaa_lib.show import figures, process_figures
from vlaa_lib.show.figures import Figure
from vlaa_lib.show.style import PAPER_COLOR
from vlaa_lib.tables import Rows, html_table, read, thinned

PAPER = ROOT / "data" / "paper" / "vlaa_thinking.json"
_curve, _bars = figures.learning_curve, figures.bars


def _by_part(file: str | Path, title: str) -> Figure:
    rows = [{"step": row["step"], "kind": part, "reward": row.get(f"reward_{part}")}
            for part in REWARDS for row in read(file)]
    return _curve(rows, group="kind", title=title)


class Result(NamedTuple):
    """A file of results, the notebook that writes it, and its figures by title."""

    file: str
    notebook: str
    heading: str
    figures: dict[str, Callable[..., Figure]]


# the notebooks draw the same with what they found as the title
_by_model = partial(_bars, x="model", note="n")
_TRACES: dict[str, tuple[str, Callable[..., Figure]]] = {
    "reward": ("Reward over training", partial(_curve, x="optimizer_step", group="model")),
    "completion_tokens": ("Length over training", partial(
        _curve, x="optimizer_step", y="completion_tokens", group="model")),
    "aha": ("Four phrases", partial(_bars, x="phrase", y="per 100 traces", group="model")),
    "hesitation": ("Aha words per 100 words", partial(_by_model, y="hesitation")),
    "truth": ("False steps, mean of a trace", partial(_by_model, y="false_share")),
    "reward_by_truth": ("Reward by false steps", partial(
        _bars, x="false steps", y="reward", group="model")),
    "length": ("Right answers by length", partial(_curve, x="words", y="right", group="model")),
    "second_thoughts": ("Second thoughts", partial(
        _bars, x="second thought", y="per 100 traces", group="model")),
    "follows": ("Answers that follow from what was stated", partial(_by_model, y="follows")),
}
RESULTS = (
    Result("construct_counts.csv", "01", "Construction",
           {"Records that enter and leave each step": figures.counts}),
    Result("false_steps_by_noise.csv", "01", "Construction: what verification leaves", {
        "Verified traces with a false step": partial(
            _curve, x="noise", y="false_verified", group="source", x_title="caption noise")}),
    Result("sft_log.csv", "02", "SFT", {"Loss": partial(_curve, y="loss", y_title="nats a token")}),
    Result("grpo_*.csv", "04", "GRPO", {
        "Reward": _curve,
        "KL (k3)": partial(_curve, y="kl", y_title="nats a token"),
        "Completion tokens": partial(_curve, y="completions/mean_length", y_title="tokens")}),
    Result("watch_*.csv", "04", "Signs of reward hacking", {
        "Share of completions with a suspicious sign": partial(_curve, y="suspicious"),
        "Reward by kind of question": _by_part}),
    Result("accuracy.csv", "05", "Accuracy on held-out records",
           {"Accuracy with bootstrap intervals": figures.accuracy_bars}),
    Result("aha.csv", "06", "Traces: aha moments",
           {"Share of traces with an aha word": partial(_bars, x="model", y="aha_rate")}),
    *(Result(f"traces_{name}.csv", "06", f"Traces: {title[0].lower()}{title[1:]}", {title: draw})
      for name, (title, draw) in _TRACES.items()),
    Result("best_of_n.csv", "07", "Process rewards: choosing among candidates", {
        "Accuracy of the chosen answer, mean of step scores": process_figures.accuracy_by_n}),
    Result("vilprm.csv", "07", "Process rewards: ViLPRM on held-out questions", {}),
    Result("process_reward.csv", "07", "Process rewards: ViLPRM as a reward in GRPO",
           {"Share of false steps": partial(_bars, x="reward", y="false_share")}),
)


def drawn(file: Path) -> Iterator[tuple[str, Figure | str]]:
    """Draw a file of results: (title, figure) each, or why there is none; nothing if unknown."""
    for result in RESULTS:
        if fnmatch(file.name, result.file):
            for title, draw in result.figures.items():
                try:
                    yield title, draw(file, title=title)
                except (KeyError, ValueError) as error:
                    yield title, str(error)


def export(results: str | Path, pattern: str = "*.csv") -> list[Path]:
    """Write the figures of CSVs beside them as SVG, for pages where plotly draws nothing.

    It takes `pip install "vlaa_lib[figures]"` and a Chromium (`BROWSER_PATH`), which plotly names
    where they are missing.

    Raises:
        VlaaError: there is nothing to draw.
    """
    pictures = {}
    for file in sorted(Path(results).glob(pattern)):
        for place, (_title, figure) in enumerate(drawn(file)):
            if isinstance(figure, Figure):
                number = f"_{place + 1}" if place else ""
                pictures[file.with_name(f"{file.stem}{number}.svg")] = figure
    if not pictures:
        raise VlaaError(f"{results}: no {pattern} with numbers to draw")
    plotly.io.write_images(list(pictures.values()), list(pictures))  # one start of the browser
    return list(pictures)


# --- the page ------------------------------------------------------------------------------------

# the page asks nothing of the network, whatever a file of results holds
_POLICY = (
    '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
    "img-src data: blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'\">"
)
_STYLE = f"""
body {{ font: 15px/1.5 sans-serif; max-width: 60em; margin: 2em auto; padding: 0 1em;
       color: #111; background: #fff }}
table {{ border-collapse: collapse; display: block; overflow-x: auto; margin: .5em 0 }}
th, td {{ border: 1px solid #ccc; padding: 2px 8px; text-align: left; vertical-align: top;
         font-variant-numeric: tabular-nums }}
svg, img {{ max-width: 100%; height: auto; display: block }}
.missing {{ border-left: 4px solid #D55E00; padding-left: .6em }}
.paper {{ border-left: 4px solid {PAPER_COLOR}; padding-left: .8em; color: #666 }}
"""


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` from the run's card, CSVs and executed notebooks; return its path.

    What is not there is named as missing. Every text is escaped: it may come from a model.
    """
    from plotly.offline import get_plotlyjs

    run = Path(run_dir)
    others = sorted((run / "results").glob("*.csv"))
    parts = [f"<h1>Run {escape(run.name)}</h1>", *_card(run)]
    for result in RESULTS:
        files = [file for file in others if fnmatch(file.name, result.file)]
        others = [file for file in others if file not in files]
        parts += [f"<h2>{escape(result.heading)}</h2>", *map(_result, files)]
        if not files:
            said = f"notebook {result.notebook} writes it"
            parts.append(_missing(f"results/{result.file}", said))
    parts += ["<h2>Other results</h2>", *map(_result, others)] if others else []
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">{_POLICY}'
        f"<title>Run {escape(run.name)}</title><style>{_STYLE}</style></head><body>"
        f"<script>{get_plotlyjs()}</script>{''.join(parts)}{_paper()}</body></html>\n"
    )
    folders.write_text(run / "report.html", page)
    return run / "report.html"


def _card(run: Path) -> list[str]:
    """Return what the run was, and its executed notebooks with status and minutes."""
    file = run / "run_card.json"
    if not file.is_file():
        return [_missing("run_card.json", "the driver writes it after each notebook")]
    card: dict[str, Any] = folders.read_json(file)
    keys = ("profile", "seed", "started", "finished", "machine", "python", "commit", "dirty")
    rows = {key: card.get(key) for key in keys} | card.get("versions", {})
    settings = escape(json.dumps(card.get("settings", {}), indent=1, ensure_ascii=False))
    lines = ["<tr><th>notebook</th><th>status</th><th>minutes</th></tr>"]
    for name, status in card.get("status", {}).items():
        label, spent = escape(name), escape(str(card.get("minutes", {}).get(name, "–")))
        if (run / "notebooks" / f"{name}.ipynb").is_file():
            label = f'<a href="notebooks/{label}.ipynb">{label}</a>'
        lines.append(f"<tr><td>{label}</td><td>{escape(status)}</td><td>{spent}</td></tr>")
    return [
        _table({"": key, "value": value} for key, value in rows.items()),
        f"<details><summary>Settings</summary><pre>{settings}</pre></details>",
        f"<h2>Notebooks</h2><table>{''.join(lines)}</table>",
    ]


def _result(file: Path) -> str:
    """Return figures and table of one results file; a figure without numbers says so."""
    rows = read(file)
    if not rows:
        return _missing(f"results/{file.name}", "the file holds no rows")
    pieces = (
        _missing(f"figure {title!r}", made) if isinstance(made, str) else figures.html(made)
        for title, made in drawn(file)
    )
    return f"<h3>{escape(file.name)}</h3>{''.join(pieces)}{_table(rows)}"


def _table(rows: Rows) -> str:
    shown, note = thinned(list(rows))
    return html_table(shown) + (f"<p>{note}</p>" if note else "")


def _missing(what: str, why: str) -> str:
    return f'<p class="missing">missing: {escape(what)}; {escape(why)}</p>'


def _paper() -> str:
    """Return the paper's main results, greyed and named as the paper's."""
    paper = folders.read_json(PAPER)
    averages = paper["table2_sft_only_qwen25vl3b_avg"].items()
    curves = dict(paper["figure5_small_sft_then_grpo_qwen25vl3b"])
    order = curves.pop("order")
    then_grpo = (
        {"Qwen2.5-VL-3B": name, **dict(zip(order, values, strict=True))}
        for name, values in curves.items()
    )
    return (
        '<section class="paper"><h2>The paper\'s numbers, not ours</h2>'
        f"<p>{escape(paper['source'])} Other models, other data, other benchmarks: the direction "
        "may be compared, the values may not.</p>"
        "<h3>Table 2: SFT only, average of six benchmarks</h3>"
        f"{_table({'Qwen2.5-VL-3B': name, 'average': value} for name, value in averages)}"
        f"<h3>Figure 5: GRPO with and without SFT before</h3>{_table(then_grpo)}</section>"
    )


if __name__ == "__main__":
    say(*export(sys.argv[1], pattern="traces_*.csv"))

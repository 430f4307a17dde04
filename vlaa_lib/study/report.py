"""`report.html`: what a run measured, on one page that needs no network."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from html import escape
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, folders
from vlaa_lib.show.style import PAPER_COLOR
from vlaa_lib.tables import Rows, html_table, read, thinned

PAPER = ROOT / "data" / "paper" / "vlaa_thinking.json"

# results of the notebooks: file, heading, the notebook that writes it
RESULTS = (
    ("construct_counts.csv", "Construction: records in and out of each step", "01"),
    ("sft_log.csv", "SFT: loss", "02"),
    ("grpo_*.csv", "GRPO: reward, KL and length", "04"),
    ("watch_*.csv", "Signs of reward hacking", "04"),
    ("accuracy.csv", "Accuracy on held-out records", "05"),
    ("aha.csv", "Traces: aha moments and false steps", "06"),
    ("best_of_n.csv", "Process rewards: choosing among candidates", "07"),
    ("vilprm.csv", "Process rewards: ViLPRM on held-out questions", "07"),
    ("process_reward.csv", "Process rewards: ViLPRM as a reward in GRPO", "07"),
)

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
    for pattern, heading, notebook in RESULTS:
        files = [file for file in others if fnmatch(file.name, pattern)]
        others = [file for file in others if file not in files]
        parts += [f"<h2>{escape(heading)}</h2>", *map(_result, files)]
        if not files:
            parts.append(_missing(f"results/{pattern}", f"notebook {notebook} writes it"))
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
    card: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
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
    from vlaa_lib.show import figures, results

    rows = read(file)
    if not rows:
        return _missing(f"results/{file.name}", "the file holds no rows")
    drawn = (
        _missing(f"figure {title!r}", made) if isinstance(made, str) else figures.html(made)
        for title, made in results.drawn(file)
    )
    return f"<h3>{escape(file.name)}</h3>{''.join(drawn)}{_table(rows)}"


def _table(rows: Rows) -> str:
    shown, note = thinned(list(rows))
    return html_table(shown) + (f"<p>{note}</p>" if note else "")


def _missing(what: str, why: str) -> str:
    return f'<p class="missing">missing: {escape(what)}; {escape(why)}</p>'


def _paper() -> str:
    """Return the paper's main results, greyed and named as the paper's."""
    if not PAPER.is_file():
        return _missing("data/paper/vlaa_thinking.json", "the paper's tables cannot be shown")
    paper = json.loads(PAPER.read_text(encoding="utf-8"))
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

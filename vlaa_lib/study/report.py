"""The run card and `report.html`: what a run measured, on one page that needs no network."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path
from typing import Any

from vlaa_lib import ROOT, folders
from vlaa_lib.folders import provenance
from vlaa_lib.show import figures, results
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


# --- run card --------------------------------------------------------------------------------


def run_card(state: dict[str, Any]) -> dict[str, Any]:
    """Return what a result must travel with: settings, seed, versions, machine, commit, minutes.

    `minutes` holds the notebooks that are done. Commit and dirty flag are None outside git.
    """
    done = {k: v for k, v in state["notebooks"].items() if v["status"] == "done"}
    return {
        "profile": state["profile"],
        "seed": state["settings"]["seed"],
        "started": state["started"],
        "finished": state["finished"],
        "minutes": {name: round(entry["seconds"] / 60, 2) for name, entry in done.items()},
        "status": {name: entry["status"] for name, entry in state["notebooks"].items()},
        **provenance(),
        "settings": state["settings"],
        "overrides": state["overrides"],
    }


# --- report ----------------------------------------------------------------------------------


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` from the run's card, CSVs and executed notebooks; return its path.

    What is not there is named as missing. Every text is escaped: it may come from a model.
    """
    from plotly.offline import get_plotlyjs

    run = Path(run_dir)
    card_file = run / "run_card.json"
    card = json.loads(card_file.read_text()) if card_file.is_file() else {}
    parts = [f"<h1>Run {escape(run.name)}</h1>", _card(card), _notebooks(run, card)]
    for pattern, heading, notebook in RESULTS:
        parts.append(f"<h2>{escape(heading)}</h2>")
        files = sorted((run / "results").glob(pattern))
        if not files:
            parts.append(_missing(f"results/{pattern}", f"notebook {notebook} writes it"))
        parts += [_result(pattern, file) for file in files]
    known = {f for pattern, *_ in RESULTS for f in (run / "results").glob(pattern)}
    others = sorted(set((run / "results").glob("*.csv")) - known)
    if others:
        parts.append("<h2>Other results</h2>")
        parts += [
            f"<h3>{escape(file.name)}</h3>{_figures(file)}{_table(read(file))}" for file in others
        ]
    parts.append(_paper())
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width">{_POLICY}'
        f"<title>Run {escape(run.name)}</title><style>{_STYLE}</style></head><body>"
        f"<script>{get_plotlyjs()}</script>{''.join(parts)}</body></html>\n"
    )
    folders.write_text(run / "report.html", page)
    return run / "report.html"


def _card(card: dict[str, Any]) -> str:
    if not card:
        return _missing("run_card.json", "the driver writes it after each notebook")
    keys = ("profile", "seed", "started", "finished", "machine", "python", "commit", "dirty")
    rows = [{"": key, "value": card.get(key)} for key in keys]
    rows += [{"": name, "value": version} for name, version in card.get("versions", {}).items()]
    shown = escape(json.dumps(card.get("settings", {}), indent=1, ensure_ascii=False))
    return f"{_table(rows)}<details><summary>Settings</summary><pre>{shown}</pre></details>"


def _notebooks(run: Path, card: dict[str, Any]) -> str:
    """Link the executed notebooks, with minutes and status."""
    lines = ["<h2>Notebooks</h2><table><tr><th>notebook</th><th>status</th><th>minutes</th></tr>"]
    for name, status in card.get("status", {}).items():
        label = escape(name)
        if (run / "notebooks" / f"{name}.ipynb").is_file():
            label = f'<a href="notebooks/{escape(name)}.ipynb">{label}</a>'
        spent = escape(str(card.get("minutes", {}).get(name, "–")))
        lines.append(f"<tr><td>{label}</td><td>{escape(status)}</td><td>{spent}</td></tr>")
    return "".join(lines) + "</table>"


def _result(pattern: str, file: Path) -> str:
    """Return figures and table of one results file; a figure without numbers says so."""
    rows = read(file)
    if not rows:
        return _missing(f"results/{file.name}", "the file holds no rows")
    return f"<h3>{escape(file.name)}</h3>{_figures(file)}{_table(rows)}"


def _figures(file: Path) -> str:
    return "".join(
        _missing(f"figure {title!r}", made) if isinstance(made, str) else figures.html(made)
        for title, made in results.drawn(file)
    )


def _table(rows: Rows) -> str:
    shown, note = thinned(list(rows))
    return html_table(shown) + (f"<p>{note}</p>" if note else "")


def _missing(what: str, why: str) -> str:
    return f'<p class="missing">missing: {escape(what)}; {escape(why)}</p>'


def _paper() -> str:
    """Return the paper's main results, greyed and named as the paper's."""
    if not PAPER.is_file():
        return _missing("data/paper/vlaa_thinking.json", "the paper's tables cannot be shown")
    paper = json.loads(PAPER.read_text())
    only_sft = [
        {"Qwen2.5-VL-3B": name, "average": value}
        for name, value in paper["table2_sft_only_qwen25vl3b_avg"].items()
    ]
    then_grpo = paper["figure5_small_sft_then_grpo_qwen25vl3b"]
    curves = [
        {"Qwen2.5-VL-3B": name, **dict(zip(then_grpo["order"], values, strict=True))}
        for name, values in then_grpo.items()
        if name != "order"
    ]
    return (
        '<section class="paper"><h2>The paper\'s numbers, not ours</h2>'
        f"<p>{escape(paper['source'])} Other models, other data, other benchmarks: the direction "
        "may be compared, the values may not.</p>"
        f"<h3>Table 2: SFT only, average of six benchmarks</h3>{_table(only_sft)}"
        f"<h3>Figure 5: GRPO with and without SFT before</h3>{_table(curves)}</section>"
    )

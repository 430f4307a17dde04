"""Several benchmarks at once: answered in one pass, and models' scores set side by side."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import runner
from .compare import Values, paired, quantiles, resampled
from .files import Benchmark, Row, family
from .generate import complete
from .metrics import HEADLINES, Rows, measure, summarise, totals
from .prompting import Settings, asks
from .scoring import score_all

if TYPE_CHECKING:
    from vlaa_lib.models import Policy

AVERAGE = "average"  # table 4's last column: the plain mean of its benchmarks
RULES = ("ours", "strict", "kit-2025-04", "kit-2026-08")


def answer(
    policy: Policy,
    benchmarks: Sequence[Benchmark],
    chosen: Settings,
    out: str | Path,
    model: str,
    batch: int = 16,
) -> Rows:
    """Answer benchmarks that share one folder of pictures, and once more with grey ones; score.

    All in one pass, so that batches are full; resumable as `runner.answer`.

    Args:
        model: what the scored rows name in their column `model`, beside `blank`.
    """
    keys = [f"{one.name}/{index}" for one in benchmarks for index in one.indices]
    asked, images = [ask for one in benchmarks for ask in asks(one, chosen)], benchmarks[0].images
    rows = []
    for blank in (False, True):
        more = chosen.limits() | {"blank": blank}
        answering = partial(complete, policy, images=images, **more)
        part = Path(out) / ("blank" if blank else "seen")
        found = runner.answer(keys, asked, part, lambda made=answering: made, batch)
        for one in benchmarks:
            mine = {index: found[f"{one.name}/{index}"] for index in one.indices}
            rows += [{"model": model, "blank": blank, **row} for row in runner.score(one, mine)]
    return rows


def metrics(rows: Rows, resamples: int = 1000) -> Rows:
    """Return every metric of each benchmark and model, each beside that of blank pictures.

    Args:
        rows: scored rows with the columns model and blank.
    Returns:
        model, then what `metrics.summarise` says, and blank_value (None where none was shown).
    """
    table = []
    for (model, name), mine in _runs(rows).items():
        twin = measure(name, [row for row in mine if row["blank"]]).parts
        seen = [row for row in mine if not row["blank"]]
        for row in summarise(name, seen, resamples):
            blank_value = totals(twin.get(row["metric"], {}))["value"]
            table.append({"model": model, **row, "blank_value": blank_value})
    return table


def is_headline(row: Row) -> bool:
    """Tell whether a row of `metrics` is what the paper reports of its benchmark."""
    return row["metric"] == HEADLINES[family(row["benchmark"])]


def table4(rows: Rows, resamples: int = 1000) -> Rows:
    """Return the paper's table 4 of scored rows: each model's headline of each benchmark.

    A model's last row is the average of its benchmarks; its interval draws rows (seeds, problems)
    of every benchmark anew. None where a benchmark has no value.
    """
    heads = [row for row in metrics(rows, resamples) if is_headline(row)]
    table = []
    for model, found in _headlines(rows).items():
        mine = [row for row in heads if row["model"] == model]
        earned = [paired([values]) for values in found.values()]
        low, high = None, None
        if resamples and all(one.size for one in earned):
            low, high = quantiles(sum(resampled(one, resamples)[0] for one in earned) / len(earned))
        means = {key: _mean([row[key] for row in mine]) for key in ("value", "blank_value")}
        average = dict.fromkeys(mine[0]) | {"model": model, "benchmark": AVERAGE, "metric": AVERAGE}
        table += [*mine, average | {"n": len(mine), **means, "low": low, "high": high}]
    return table


def relative_change(rows: Rows, baseline: str, resamples: int = 1000) -> Rows:
    """Return how far each model's headlines are from a baseline's, as a share (paper figure 3).

    Of each benchmark over the rows (seeds, problems) that both have, drawn anew for both at once;
    None where the baseline has nothing to lose, or, of an interval, in one of the draws.

    Raises:
        ValueError: no such model among the rows.
    """
    found = _headlines(rows)
    if baseline not in found:
        raise ValueError(f"no rows of {baseline!r}; there are {', '.join(found)}")
    table = []
    for model in [model for model in found if model != baseline]:
        pairs = {
            name: paired([values, found[model][name]])
            for name, values in found[baseline].items() if name in found[model]
        }  # fmt: skip
        named = {"model": model, "baseline": baseline}
        for name, pair in pairs.items():
            n = pair.shape[1]
            table.append(named | {"benchmark": name, "n": n, **_change([pair], resamples)})
        change = _change(list(pairs.values()), resamples)
        table.append(named | {"benchmark": AVERAGE, "n": len(pairs), **change})
    return table


def _change(pairs: list[Any], resamples: int) -> Row:
    """Return the relative change of the mean over benchmarks: of each a baseline and a model."""
    if not all(pair.size for pair in pairs):
        return dict.fromkeys(("change", "low", "high"))
    before, after = sum(pair.mean(axis=1) for pair in pairs)
    drawn = sum(resampled(pair, resamples) for pair in pairs)
    low, high = quantiles(drawn[1] / drawn[0] - 1) if drawn[0].all() else (None, None)
    return {"change": float(after / before - 1) if before else None, "low": low, "high": high}


def flips(rows: Rows, first: str, second: str) -> Rows:
    """Return the rows that one of two models has right and the other has not, pictures shown.

    Returns:
        benchmark, index, question, images, gold, gained (the second has it right), and of each
        model its whole reply and its answer (`first`, `first_answer`, `second`, ...). Rows
        without verdict are none.
    """
    mine = {
        model: {
            (row["benchmark"], row["index"]): row
            for row in rows if row["model"] == model and not row["blank"]
        }
        for model in (first, second)
    }  # fmt: skip
    table = []
    for key, row in mine[first].items():
        other = mine[second].get(key)
        if other is None or None in (row["hit"], other["hit"]) or row["hit"] == other["hit"]:
            continue
        table.append(
            {k: row[k] for k in ("benchmark", "index", "question", "images", "gold")}
            | {"gained": other["hit"]}
            | {"first": row["prediction"], "first_answer": row["extracted"]}
            | {"second": other["prediction"], "second_answer": other["extracted"]}
        )
    return table


def by_rule(rows: Rows, rules: Sequence[str] = RULES, resamples: int = 1000) -> Rows:
    """Score the same completions once more under several extraction rules: table 4 of each rule.

    Args:
        rules: of `extract.MODES`. Where the kit would ask its judge it is `undecided`, and counts
            as wrong.
    Returns:
        rule, then what `table4` says.
    """
    table = []
    for rule in rules:
        scored = []
        for (_, name), mine in _runs([row for row in rows if not row["blank"]]).items():
            scored += score_all(name, mine, [row["prediction"] for row in mine], rule)
        table += [{"rule": rule, **row} for row in table4(scored, resamples)]
    return table


def _runs(rows: Rows) -> dict[tuple[str, str], Rows]:
    """Group rows by model and benchmark, in the order in which they come."""
    found: dict[tuple[str, str], Rows] = {}
    for row in rows:
        found.setdefault((row["model"], row["benchmark"]), []).append(row)
    return found


def _headlines(rows: Rows) -> dict[str, dict[str, Values]]:
    """Return what each model earned in each benchmark's headline."""
    found: dict[str, dict[str, Values]] = {}
    for (model, name), mine in _runs([row for row in rows if not row["blank"]]).items():
        found.setdefault(model, {})[name] = measure(name, mine).parts[HEADLINES[family(name)]]
    return found


def _mean(values: list[float | None]) -> float | None:
    return None if None in values or not values else sum(values) / len(values)

"""VLMEvalKit: its extraction rules, rebuilt from their described behaviour for comparison only,
and its prediction files.

`kit-2025-04` is the paper's time, `kit-2026-08` today; `-vlaa` puts the tag rule of the kit's
VLAA-Thinker class in front. Where the kit would ask its judge, nothing is decided here: the path
is `kit-judge` and the verdict None. Left out: its random letter after a failed judge, `eval` of
model text, crashes (they become a verdict with the reason) and its four refusal sentences.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vlaa_lib import VlaaError, folders, records
from vlaa_lib.prompts import ANSWER_CLOSE, ANSWER_OPEN
from vlaa_lib.records import RecordError, Reject
from vlaa_lib.rewards.quantities import worked_out

from .benchmarks import Answers, Benchmark, Row, listed, tsv_rows
from .tasks import Task, text_of

MODES = ("kit-2025-04", "kit-2026-08", "kit-2025-04-vlaa", "kit-2026-08-vlaa")

# --- rules ----------------------------------------------------------------------------------------

_API_FAILURE = "Failed to obtain answer via API"
_TO_BLANKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_ANSWER_IS = re.compile(r"answer is\s{0,9}\*{0,9}\s{0,9}([a-d])", re.IGNORECASE)  # no word boundary
_LAST_TOKENS = 4  # today's kit: a letter counts only among so many
MAX_CELL_CHARS = 32_767  # Excel's limit; the kit's writer cuts what is longer, the answer with it


class Verdict(NamedTuple):
    """What the kit reads and makes of it; `hit` None where it would ask its judge."""

    answer: str
    path: str
    hit: bool | None
    reason: str


_JUDGE = Verdict("", "kit-judge", None, "kit: asks its judge")


def prepared(text: str, mode: str) -> str:
    """Apply the VLAA tag rule where the mode has it: one answer block, else the whole text.

    >>> prepared("<think>x</think><answer> B </answer>", "kit-2025-04-vlaa")
    'B'
    """
    if not mode.endswith("-vlaa"):
        return text
    inside, closing, rest = text.partition(ANSWER_OPEN)[2].partition(ANSWER_CLOSE)
    is_one = closing and ANSWER_CLOSE not in rest.partition(ANSWER_OPEN)[2]
    return inside.strip() if is_one else text


def infer(text: str, choices: dict[str, str], mode: str) -> str:
    """Infer an option as the kit's `can_infer` does: a letter, `Z`, or nothing."""
    if _API_FAILURE in text:
        return ""
    is_today = mode.startswith("kit-2026-08")
    tokens = text.translate(_TO_BLANKS).split()
    present = set(tokens)
    named = [letter for letter in choices if letter in present]
    first = len(tokens) - _LAST_TOKENS if is_today else 0
    if len(named) == 1 and tokens.index(named[0]) >= first:
        return named[0]
    if not named and "Z" in present:
        return "Z"
    if is_today and (match := _ANSWER_IS.search(text)):
        return match[1].upper()
    if is_today and len(text) > 2 * sum(map(len, choices.values())):
        return ""
    named = [letter for letter, option in choices.items() if option.lower() in text.lower()]
    return named[0] if len(named) == 1 else ""


def verdict(name: str, made: Task, row: Row, text: str, mode: str) -> Verdict:
    """Read and judge a completion as the kit would, up to where it asks its judge."""
    text = prepared(text, mode)
    if name in ("MathVerse", "LogicVista"):
        return _JUDGE  # nothing but the judge reads these
    if name == "DynaMath":
        return _dynamath(text_of(row.get("answer_type")), made.gold, text)
    if made.kind != "option":
        return _free(name, row, made.gold, text)
    letter = infer(text, made.choices or {}, mode)
    if not letter:
        return _JUDGE
    return Verdict(letter, "kit-infer", letter == made.gold, f"kit: {letter}, gold {made.gold}")


def _free(name: str, row: Row, gold: str, text: str) -> Verdict:
    """Compare a whole reply with the gold, as the kit does before it asks its judge."""
    kind = {"integer": int, "float": float}.get(text_of(row.get("answer_type")), str)
    if name == "MathVision":
        is_same = text.strip().lower() == gold.lower() or _same_value(text, gold)
    elif listed(gold) is not None:
        return Verdict(text[:200], "kit-list", False, "kit: a list is never right")
    else:
        try:
            is_same = kind(text) == kind(gold)
        except (ValueError, OverflowError):
            is_same = False
    return Verdict(text.strip(), "kit-whole", True, "kit: the whole reply") if is_same else _JUDGE


def _same_value(text: str, gold: str) -> bool:
    """Say whether two texts are one number, as the kit finds by `eval` and by a parser of LaTeX.

    Of what it evaluates, sums of numbers and fractions, percentages and degrees in LaTeX are read
    here; roots and pi are never the same there.
    """
    values = []
    for said in (text, gold):
        said = re.sub(r"\\[dt]?frac\{(\d+)\}\{(\d+)\}", r"\1/\2", said.strip())
        said, percent = re.subn(r"\s?\\?%$", "", re.sub(r"\^\{?\\circ\}?$", "", said))
        said = "0" * said.startswith(("+", "-")) + said + "+0"  # so that one number is a sum
        if len(said) > 80 or (value := worked_out(said)) is None:
            return False
        values.append(value / 100 if percent else value)
    return abs(values[0] - values[1]) < 1e-6


def _dynamath(kind: str, gold: str, text: str) -> Verdict:
    """Read DynaMath's JSON, or what stands between the braces, with the kit's one parser."""
    first, last = text.find("{"), text.rfind("}")
    body = (text[first : last + 1] if 0 <= first < last else text).replace("\\", "")
    try:
        said, path = json.loads(body, strict=False)["short answer"], "kit-json"
    except (ValueError, RecursionError, KeyError, TypeError):
        said = None
    if said is None:
        said, path = body, "kit-whole"
    if not isinstance(said, str):
        if kind in ("float", "multiple choice"):
            return Verdict(str(said), path, False, "kit: a JSON number is no text")
        return Verdict(str(said), path, None, "kit: crashes on a JSON number")
    if kind == "float":
        value, wanted = _float(said), _float(gold)
        hit = None not in (value, wanted) and abs(value - wanted) <= 0.001
        return Verdict("" if value is None else str(value), path, hit, f"kit: {value}, gold {gold}")
    if kind == "multiple choice":
        named = said.upper()
        found = [named] if len(named) == 1 else [c for c in "ABCDE" if c in named]
        letter = found[0] if len(found) == 1 else ""
        hit = letter == gold if letter else gold in body[:3].upper()  # `The answer is E.` for E
        return Verdict(letter, path, hit, f"kit: letter {letter or 'unknown'}, gold {gold}")
    hit = said.lower() in gold.lower()  # the gold contains the prediction
    return Verdict(said.strip(), path, hit, f"kit: found inside the gold: {hit}")


def _float(text: str) -> float | None:
    word, pi, _ = (text.split(" ") or [""])[0].partition("π")
    try:
        return float(word) * (math.pi if pi else 1.0)
    except ValueError:
        return None


# --- prediction files -----------------------------------------------------------------------------


def write(path: str | Path, benchmark: Benchmark, found: Answers) -> None:
    """Write a prediction file that the kit scores: the benchmark's columns and `prediction`."""
    import pandas

    path = Path(path)
    rows = [row | {"prediction": found[row["index"]]["prediction"]}
            for row in benchmark.rows if row["index"] in found]  # fmt: skip
    for row in rows:
        del row["images"]
    if path.suffix == ".json":
        folders.write_json(path, rows)
    elif path.suffix == ".tsv":
        # the kit quotes every cell: so its reader sees line breaks and tabs inside
        quoted = {"quoting": csv.QUOTE_ALL, "lineterminator": "\n"}
        folders.write_text(path, pandas.DataFrame(rows).to_csv(sep="\t", index=False, **quoted))
    else:
        raise VlaaError(
            f"{path}: write .tsv or .json (kit: PRED_FORMAT); a cell of xlsx holds "
            f"{MAX_CELL_CHARS:,} characters, and traces are longer"
        )


def read(path: str | Path, benchmark: Benchmark) -> Answers:
    """Read a prediction file of the kit or of ours; odd rows are added to the rejects."""
    path = Path(path)
    asked, found, reason = {row["index"] for row in benchmark.rows}, {}, ""
    for line, row in _prediction_rows(path):
        index, reason = "", ""
        if isinstance(row, RecordError):
            reason = str(row)
        elif (index := text_of(row.get("index"))) not in asked:
            reason = f"no row of {benchmark.name} has this index"
        elif index in found:
            reason = "this index is there twice; the first one counts"
        else:
            text = row.get("prediction")
            if text is None or text == "" or text != text:  # NaN
                text, reason = "", "no prediction; it counts as an empty one"
            if path.suffix == ".xlsx" and len(str(text)) >= MAX_CELL_CHARS:
                reason = f"{MAX_CELL_CHARS:,} characters, where xlsx cuts; set PRED_FORMAT=tsv"
            found[index] = {"index": index, "prediction": str(text)}
        if reason:
            benchmark.rejects.append(Reject(path.name, line, index, reason))
    if not found:
        raise RecordError(f"{path}: no prediction for a row of {benchmark.name}; {reason}")
    return found


def _prediction_rows(path: Path) -> Iterator[tuple[int, dict[str, Any] | RecordError]]:
    columns = ("index", "prediction")
    if path.suffix == ".tsv":
        yield from tsv_rows(path, columns, "a prediction file")
    elif path.suffix == ".json":
        for line, row in records.iter_file(path):
            is_row = isinstance(row, (dict, RecordError))
            yield line, row if is_row else RecordError("not a JSON object")
    elif path.suffix == ".xlsx":
        import pandas

        try:  # cells as they are; formulas are never computed
            table = pandas.read_excel(path, dtype=object, na_filter=False, engine="openpyxl")
        except FileNotFoundError:
            raise
        except ImportError:
            raise RecordError(
                "xlsx needs openpyxl: `pip install openpyxl`; or take .tsv (kit: PRED_FORMAT=tsv)"
            ) from None
        except Exception as error:  # broken archives make openpyxl raise whatever their parts do
            raise RecordError(f"{path}: not an xlsx file ({error}); write it again") from None
        if missing := [name for name in columns if name not in table]:
            raise RecordError(f"{path.name}:1: no column {missing[0]!r}; is it a prediction file?")
        yield from enumerate(table.to_dict("records"), 2)
    else:
        raise RecordError(f"{path}: not .tsv, .json or .xlsx, the formats of VLMEvalKit")

"""Evaluation: greedy answers, extraction without an LLM, metrics with intervals.

    benchmark = benchmarks.read(name, tsv, cache)        # or benchmarks.held_out(records, images)
    rows = run(policy, [benchmark], prompting.settings(), out, "mine")     # answered and scored
    stats.table4(rows)                                   # of records: summary(rows)
"""

from .extract import extract_answer
from .generate import generate
from .runner import held_out_asker, run
from .scoring import score_rows
from .stats import bootstrap, summary

__all__ = [
    "bootstrap", "extract_answer", "generate", "held_out_asker", "run", "score_rows", "summary",
]  # fmt: skip

"""Traces: the append-only store of rollouts, and what can be measured in a trace."""

from .measures import FIGURE7_PHRASES, Step, check_steps, measure, measured, step_counts, summarise
from .side_by_side import CARD, FOLDER, curated, examples, flipped, is_right
from .store import TraceStore, from_evaluation, load, schema, table

__all__ = [
    "CARD", "FIGURE7_PHRASES", "FOLDER", "Step", "TraceStore", "check_steps", "curated", "examples",
    "flipped", "from_evaluation", "is_right", "load", "measure", "measured", "schema",
    "step_counts", "summarise", "table",
]

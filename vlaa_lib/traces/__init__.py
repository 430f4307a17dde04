"""Traces: the append-only store of rollouts, and what can be measured in a trace."""

from vlaa_lib.prompts import AHA_KEYWORDS, has_aha

from .measures import FIGURE7_PHRASES, measure, measured, summarise
from .side_by_side import CARD, FOLDER, curated, examples, flipped, is_right
from .steps import Step, check_steps, step_counts
from .store import TraceStore, from_evaluation, load, schema, table

__all__ = [
    "AHA_KEYWORDS", "CARD", "FIGURE7_PHRASES", "FOLDER", "Step", "TraceStore", "check_steps",
    "curated", "examples", "flipped", "from_evaluation", "has_aha", "is_right", "load", "measure",
    "measured", "schema", "step_counts", "summarise", "table",
]

"""Traces: the append-only store of rollouts, and what can be measured in a trace."""

from ..construct.split import AHA_KEYWORDS, has_aha
from .curation import curate, curated
from .logic import corrections, follows
from .measures import FIGURE7_PHRASES, measure, measured, summarise
from .pairs import examples, flipped, is_right, pair, to_html
from .steps import Step, check_steps, step_counts
from .store import TraceStore, from_evaluation, load, schema, table
from .teacher import checker_quality, false_steps_by_noise, taught

__all__ = [
    "AHA_KEYWORDS", "FIGURE7_PHRASES", "Step", "TraceStore", "check_steps", "checker_quality",
    "corrections", "curate", "curated", "examples", "false_steps_by_noise", "flipped", "follows",
    "from_evaluation", "has_aha", "is_right", "load", "measure", "measured", "pair", "schema",
    "step_counts", "summarise", "table", "taught", "to_html",
]

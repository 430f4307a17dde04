"""Rewards: strict parsing, one verifier a record, every score with its reason (paper §4)."""

from . import signs
from .boxes import iou, parse_box
from .checkup import Checkup, examine, reasons, tried
from .choices import options
from .mixed import audit, mixed_reward, pictured, score, score_all, start, usable
from .open_ended import Kept, RewardModel, is_as_good
from .verifiers import GoldError, Score

__all__ = [
    "Checkup", "GoldError", "Kept", "RewardModel", "Score", "audit", "examine", "iou",
    "is_as_good", "mixed_reward", "options", "parse_box", "pictured", "reasons", "score",
    "score_all", "signs", "start", "tried", "usable",
]

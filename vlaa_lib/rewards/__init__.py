"""Rewards: strict parsing, one verifier a record, every score with its reason (paper §4)."""

from . import signs
from .answers import GoldError, Score
from .calibration import Candidate, calibration
from .examples import peers, tried, without_format
from .health import Checkup, dead, doctor, examine, reasons
from .mixed import audit, mixed_reward, score, score_all, start, usable
from .open_ended import is_as_good
from .reward_models import Kept, RewardModel
from .verifiers import iou, options, parse_box

__all__ = [
    "Candidate", "Checkup", "GoldError", "Kept", "RewardModel", "Score", "audit",
    "calibration", "dead", "doctor", "examine", "iou", "is_as_good", "mixed_reward", "options",
    "parse_box", "peers", "reasons", "score", "score_all", "signs", "start", "tried",
    "usable", "without_format",
]

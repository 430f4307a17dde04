"""Rewards: strict parsing, one verifier a record, every score with its reason (paper §4)."""

from ..microworld.truth import iou
from . import watch
from .answers import GoldError, Score
from .calibration import Candidate, calibration, scene_candidates
from .examples import peers, tried, without_format
from .health import Checkup, dead, doctor, examine, reasons
from .mixed import audit, mixed_reward, score, score_all, start, usable
from .open_ended import SceneFacts, is_as_good
from .reward_models import Kept, RewardModel
from .verifiers import options, parse_box

__all__ = [
    "Candidate", "Checkup", "GoldError", "Kept", "RewardModel", "SceneFacts", "Score", "audit",
    "calibration", "dead", "doctor", "examine", "iou", "is_as_good", "mixed_reward", "options",
    "parse_box", "peers", "reasons", "scene_candidates", "score", "score_all", "start", "tried",
    "usable", "watch", "without_format",
]

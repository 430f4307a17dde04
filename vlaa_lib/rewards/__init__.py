"""Rewards: strict parsing, one verifier a record, every score with its reason (paper §4)."""

from ..microworld.truth import iou
from .answers import GoldError, Score
from .health import dead, doctor
from .mixed import audit, mixed_reward, score, score_all, usable
from .open_ended import RewardModel, is_as_good, scene_facts
from .verifiers import options, parse_box

__all__ = [
    "GoldError", "RewardModel", "Score", "audit", "dead", "doctor", "iou", "is_as_good",
    "mixed_reward", "options", "parse_box", "scene_facts", "score", "score_all",
    "usable",
]

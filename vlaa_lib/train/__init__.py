"""Training: SFT and GRPO with the mixed reward, thin layers over TRL's trainers."""

from vlaa_lib import TrainingError

from .checkpoints import CheckpointError
from .grpo import grpo
from .sft import sft
from .trainer import DeadReward

__all__ = ["CheckpointError", "DeadReward", "TrainingError", "grpo", "sft"]

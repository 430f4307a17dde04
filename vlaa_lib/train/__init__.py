"""Training: SFT and GRPO with the mixed reward, thin layers over TRL's trainers."""

from .grpo import grpo
from .sft import sft

__all__ = ["grpo", "sft"]

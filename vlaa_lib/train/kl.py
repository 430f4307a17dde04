"""The KL coefficient: fixed, or steered towards a target divergence (paper table 6)."""

from __future__ import annotations

from dataclasses import dataclass

CLIP = 0.2  # OpenRLHF: one update changes the coefficient by this share of n / horizon at most


@dataclass
class AdaptiveKL:
    """Raise the coefficient when policy and reference are further apart than the target.

    The proportional controller of Ziegler et al. 2019, as OpenRLHF applies it, once a sampling
    round: beta *= 1 + clip(kl / target - 1, -0.2, 0.2) * n / horizon. The paper's "1e-3, 5e-4"
    are the first coefficient and this target, not the ends of a schedule.

    Attributes:
        beta: the coefficient, now.
        target: divergence to steer to, in nats a token.
        horizon: completions over which a steady error moves beta by about a fifth.
    """

    beta: float
    target: float
    horizon: int

    def update(self, kl: float, n: int) -> float:
        """Take in a round's mean divergence over n completions; return the new coefficient.

        >>> AdaptiveKL(1e-3, 5e-4, 10000).update(kl=1.0, n=2048)
        0.00104096
        """
        error = min(max(kl / self.target - 1, -CLIP), CLIP)
        self.beta *= 1 + error * n / self.horizon
        return self.beta

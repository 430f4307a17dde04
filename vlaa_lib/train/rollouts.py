"""The rollouts of one sampling round, on their way into the trace store."""

from __future__ import annotations

from typing import Any

from vlaa_lib.traces import TraceStore


class Round:
    """Rows of the trace store that wait until the policy says how likely their tokens are.

    TRL computes that in the loss, so nothing is computed twice: each rollout is seen in the first
    pass over it, and the last one seen writes the round. With one optimizer step a round that pass
    is the policy that sampled; with several, `old_per_token_logps` are, and the entropy is that of
    the policy in its first pass.

    Args:
        pieces: the text of each token, for a store with log-probs token by token.
    """

    def __init__(
        self,
        store: TraceStore | None = None,
        rank: int = 0,
        rows: list[dict[str, Any]] | None = None,
        pieces: list[list[str]] | None = None,
    ):
        self._store, self._rank, self._rows, self._pieces = store, rank, rows or [], pieces
        self._waiting = set(range(len(self._rows)))

    def see(self, inputs: dict[str, Any], logps: Any, entropies: Any) -> None:
        """Take log-probs and entropies [B, T] of the loss's pass over some of the rollouts."""
        from .objective import k3

        old, ref = inputs.get("old_per_token_logps"), inputs.get("ref_per_token_logps")
        logps = (logps if old is None else old).float()
        values = {"mean_logp": logps, "entropy": entropies, "kl": None}
        if ref is not None:
            values["kl"] = k3(logps, ref.float())
        lengths = inputs["completion_mask"].sum(1).tolist()
        for at, (place, length) in enumerate(zip(inputs["rollout"].tolist(), lengths, strict=True)):
            if place not in self._waiting or not length:
                self._waiting.discard(place)  # a later pass over it, or nothing was said
                continue
            self._waiting.remove(place)
            row = self._rows[place]
            for name, found in values.items():
                row[name] = None if found is None else found[at, :length].float().mean().item()
            if self._pieces:
                row["pieces"] = self._pieces[place]
                row["logps"] = logps[at, :length].tolist()
                row["entropies"] = entropies[at, :length].float().tolist()
        if not self._waiting:
            self.write()

    def write(self) -> None:
        """Write the round, once; what was not seen has no log-probs."""
        if self._store is not None and self._rows:
            self._store.append(self._rows, self._rank)
        self._rows, self._waiting = [], set()

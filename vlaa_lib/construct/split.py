"""The aha split: which traces train by imitation and which by reinforcement (paper §2, step 6)."""

from __future__ import annotations

# paper §2, step 6: a plain substring test, so that "checkered" counts as "check"
AHA_KEYWORDS = (
    "wait",
    "again",
    "double-check",
    "hmm",
    "mistake",
    "alternatively",
    "check",
    "i should confirm",
)


def has_aha(text: str) -> bool:
    """Tell whether a trace has an aha moment: any keyword in its lower-cased text (paper §2).

    Without one a record goes to the SFT split, with one to the RL split. The paper also keeps all
    of GeoQA170K in the RL split, since captions of geometry hallucinate; we let the keywords
    decide for every source.

    >>> has_aha("Wait, there are two."), has_aha("There are two.")
    (True, False)
    """
    lowered = text.lower()
    return any(keyword in lowered for keyword in AHA_KEYWORDS)

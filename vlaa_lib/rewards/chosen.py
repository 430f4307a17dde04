"""The reward model of a training by its name in `grpo.reward_model`."""

from __future__ import annotations

from pathlib import Path

from vlaa_lib.profiles import REWARD_MODELS

from .reward_models import Kept, RewardModel


def reward_model(
    name: str,
    images: str | Path,
    out: str | Path,
    trust_remote_code: bool = False,
    endpoints: str | Path | None = None,
) -> RewardModel | None:
    """Return the named reward model, its scores kept in `out`; None for scene-facts.

    Args:
        trust_remote_code: `xcomposer` runs code that its repository brings.
        endpoints: YAML file with the section `judge`, as `construct --endpoints` reads them.
    Raises:
        ValueError: unknown name, or a judge without its endpoint.
    """
    if name == "scene-facts":
        return None
    if name == "xcomposer":
        from .xcomposer import XComposerReward

        return Kept(XComposerReward(images, trust_remote_code=trust_remote_code), _file(out))
    if name != "judge":
        raise ValueError(f"unknown reward model {name!r}; use one of {', '.join(REWARD_MODELS)}")
    if endpoints is None:
        raise ValueError("a judge needs grpo.endpoints, a YAML file with the section `judge`")
    from vlaa_lib.llm import Endpoint, read_endpoints

    from .judge import Judge

    found = read_endpoints(endpoints, {"judge": Endpoint("judge")})["judge"]
    return Judge(found, _file(out), images)


def _file(out: str | Path) -> Path:
    return Path(out) / "scores.sqlite"

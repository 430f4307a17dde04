"""The pocket world: drawn scenes of known truth, a small model, a local teacher.

It imports the core; the core finds it through the entry point `vlaa_lib.worlds`.
"""

from vlaa_lib.worlds import World

from . import logic, microworld
from .logic import corrections, follows
from .scene_reward import SCENE_FACTS, SceneFacts, scene_candidates
from .server import scenes_of, serve_teacher
from .teacher import checker_quality, false_steps_by_noise, taught

WORLD = World(
    sources=microworld.SOURCES,
    check=logic.check,
    scene_problem=microworld.truth.problem_of,
    follows=logic.follows,
    corrections=logic.corrections,
    reward_model=SCENE_FACTS,
)

__all__ = [
    "SCENE_FACTS", "WORLD", "SceneFacts", "checker_quality", "corrections", "false_steps_by_noise",
    "follows", "microworld", "scene_candidates", "scenes_of", "serve_teacher", "taught",
]

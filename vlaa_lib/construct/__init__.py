"""Dataset construction: caption, distil, rewrite, verify, split (paper §2), over a ledger."""

from vlaa_lib.construct.client import TeacherUnreachable
from vlaa_lib.construct.pipeline import MODELS, SETTINGS, Dropped, Result, run
from vlaa_lib.construct.server import scenes_of, serve_forever, serve_teacher
from vlaa_lib.construct.split import AHA_KEYWORDS, has_aha

__all__ = [
    "AHA_KEYWORDS",
    "MODELS",
    "SETTINGS",
    "Dropped",
    "Result",
    "TeacherUnreachable",
    "has_aha",
    "run",
    "scenes_of",
    "serve_forever",
    "serve_teacher",
]

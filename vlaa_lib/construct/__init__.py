"""Dataset construction: caption, distil, rewrite, verify, split (paper §2), over a ledger."""

from vlaa_lib.construct.client import Limits, TeacherUnreachable
from vlaa_lib.construct.endpoints import ENDPOINTS, Endpoint, EndpointError, read_endpoints
from vlaa_lib.construct.pipeline import BudgetSpent, Result, run
from vlaa_lib.construct.server import scenes_of, serve_forever, serve_teacher
from vlaa_lib.construct.split import AHA_KEYWORDS, has_aha
from vlaa_lib.construct.templates import read_templates
from vlaa_lib.construct.walk import Dropped

__all__ = [
    "AHA_KEYWORDS",
    "ENDPOINTS",
    "BudgetSpent",
    "Dropped",
    "Endpoint",
    "EndpointError",
    "Limits",
    "Result",
    "TeacherUnreachable",
    "has_aha",
    "read_endpoints",
    "read_templates",
    "run",
    "scenes_of",
    "serve_forever",
    "serve_teacher",
]

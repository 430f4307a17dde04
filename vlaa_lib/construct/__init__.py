"""Dataset construction: caption, distil, rewrite, verify, split (paper §2), over a ledger."""

from vlaa_lib.llm.client import BudgetSpent, Limits, TeacherUnreachable
from vlaa_lib.llm.endpoints import ENDPOINTS, Endpoint, EndpointError, read_endpoints
from vlaa_lib.prompts import AHA_KEYWORDS, has_aha

from .pipeline import Result, run
from .templates import read_templates
from .walk import Dropped

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
]

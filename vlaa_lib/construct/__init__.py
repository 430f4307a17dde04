"""Dataset construction: caption, distil, rewrite, verify, split (paper §2), over a ledger."""

from vlaa_lib.llm import ENDPOINTS, Endpoint, Limits, read_endpoints
from vlaa_lib.prompts import AHA_KEYWORDS, has_aha

from .card import export, table_1
from .pipeline import Dropped, Result, plan, run
from .steps import Templates, read_templates

__all__ = [
    "AHA_KEYWORDS", "ENDPOINTS", "Dropped", "Endpoint", "Limits", "Result", "Templates", "export",
    "has_aha", "plan", "read_endpoints", "read_templates", "run", "table_1",
]

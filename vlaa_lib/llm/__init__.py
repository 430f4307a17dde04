"""Ask language models behind OpenAI-compatible endpoints, and pay for each question once.

`ask_all` is for whoever has a list of questions, such as a judge of answers:

    requests = [Request("judge", fill(PROMPT, question=..., pred=...), record.image), ...]
    replies = ask_all(requests, endpoint, "ledger.sqlite", images, limits, spent)

A reply comes back for each request, or a `CallFailed` that says why there is none; equal requests
are one call, and what the ledger knows costs nothing. `construct` keeps a `Client` open instead,
since what it asks next depends on the replies.
"""

from .apart import run_apart
from .client import Answered, Client, Limits, Spent, ask_all
from .endpoints import ENDPOINTS, Endpoint, read_endpoints
from .ledger import Ledger, Reply, call_key
from .messages import CUT, EMPTY, NO_TEXT, CallFailed, Request, fill, key_of, quoted, texts_of

__all__ = [
    "CUT", "EMPTY", "ENDPOINTS", "NO_TEXT", "Answered", "CallFailed", "Client", "Endpoint",
    "Ledger", "Limits", "Reply", "Request", "Spent", "ask_all", "call_key", "fill", "key_of",
    "quoted", "read_endpoints", "run_apart", "texts_of",
]

"""Backends: what runs the graphs. A table with one row per backend, one session interface, and the choice."""

from flawscope.runtime.backends.choice import Choice, choose_backend
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.session import Session
from flawscope.runtime.backends.table import BACKENDS, OpenSession, check_cores, open_session, open_together

__all__ = [
    "BACKENDS",
    "OWN_CHOICE",
    "Choice",
    "Cores",
    "OpenSession",
    "Session",
    "check_cores",
    "choose_backend",
    "open_session",
    "open_together",
]

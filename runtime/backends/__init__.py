"""Backends: what runs the graphs. A table with one row per backend, one session interface, and the choice."""

from flawscope.runtime.backends.session import Session
from flawscope.runtime.backends.table import BACKENDS, Choice, OpenSession, choose_backend, open_session

__all__ = ["BACKENDS", "Choice", "OpenSession", "Session", "choose_backend", "open_session"]

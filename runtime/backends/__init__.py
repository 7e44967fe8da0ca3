"""Backends: a row for each, one small interface for a graph made ready, and the choice among them."""

from flawscope.runtime.backends.base import Session
from flawscope.runtime.backends.table import BACKENDS, Choice, choose_backend, open_session

__all__ = ["BACKENDS", "Choice", "Session", "choose_backend", "open_session"]

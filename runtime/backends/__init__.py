"""Backends: one small interface for a thing that infers, and the choice among them."""

from flawscope.runtime.backends.base import BACKENDS, Choice, Session, choose_backend, open_backbone, open_session

__all__ = ["BACKENDS", "Choice", "Session", "choose_backend", "open_backbone", "open_session"]

"""Requests that are refused: a status and one sentence."""

from __future__ import annotations


class Refusal(Exception):
    """A request is refused; the message is one sentence for whoever sent it.

    Args:
        status: Status of the answer.
        message: What is wrong, what was expected, and what to do.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class ClientGone(Exception):
    """The client has left before its request was whole."""

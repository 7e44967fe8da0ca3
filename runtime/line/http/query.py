"""Parameters of requests: each is known, once there, and what it should be."""

from __future__ import annotations

from starlette.requests import Request

from flawscope.runtime.line.http.refusal import Refusal
from flawscope.text import printable

_LONGEST_TEXT = 128


class Query:
    """Parameters of a request; what nobody has asked for by `end` is refused, as it would have no effect.

    Args:
        request: The request.

    Raises:
        Refusal: If a parameter is there twice; each method, if it is not what it should be.
    """

    def __init__(self, request: Request) -> None:
        self._left: dict[str, str] = {}
        for name, value in request.query_params.multi_items():
            if name in self._left:
                raise Refusal(400, f"expected {printable(name)} once, got it again. Leave one out.")
            self._left[name] = value
        self._known: list[str] = []

    def number(self, name: str, default: int, least: int, most: int) -> int:
        """Take a whole number."""
        text = self._take(name)
        if text is None:
            return default
        # Digits of other scripts and thousands of digits are no numbers here.
        number = int(text) if text.isascii() and text.isdecimal() and len(text) < 20 else -1
        if not least <= number <= most:
            raise Refusal(400, f"{name}: expected a whole number from {least} to {most}, got {shown(text)}.")
        return number

    def word(self, name: str, words: tuple[str, ...]) -> str | None:
        """Take one of some words; None where it is not there."""
        text = self._take(name)
        if text is not None and text not in words:
            raise Refusal(400, f"{name}: expected one of {', '.join(words)}, got {shown(text)}.")
        return text

    def text(self, name: str) -> str:
        """Take a short text of one line; empty where it is not there."""
        text = self._take(name) or ""
        if len(text) > _LONGEST_TEXT or printable(text) != text:
            raise Refusal(400, f"{name}: expected at most {_LONGEST_TEXT} characters in one line, got {shown(text)}.")
        return text

    def end(self) -> None:
        """Refuse what is left."""
        for name in self._left:
            raise Refusal(400, f"expected no parameters but {', '.join(self._known) or 'none'}, got {shown(name)}.")

    def _take(self, name: str) -> str | None:
        self._known.append(name)
        return self._left.pop(name, None)


def shown(text: str) -> str:
    """Return a text of a stranger's as a message may show it."""
    return repr(printable(text[:40]))

"""URLs of images, and what of them may be shown: those for one use, and with passwords, hold secrets."""

from __future__ import annotations

import re

_SCHEME = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]*://")
_USER = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]*://)[^/@\s]*@")
_SECRET = re.compile(
    r"([?&;][^=&;]*(?:sig|token|key|secret|credential|passw|pwd|auth|policy)[^=&;]*=)[^&;#\s'\"]*", re.IGNORECASE
)

WEB = ("http", "https")
"""Schemes where nothing lists, and `?` is no pattern."""


def is_url(text: str) -> bool:
    """Return whether a text names something by a URL, and not by a path."""
    return _SCHEME.match(text) is not None


def scheme_of(url: str) -> str:
    """Return the scheme of a URL in lower case: `s3` of `s3://bucket/key`."""
    return url[: url.index("://")].lower()


def local_path(url: str) -> str | None:
    """Return the path of a `file://` URL, None of any other."""
    return url.partition("://")[2] if scheme_of(url) in ("file", "local") else None


def without_query(url: str) -> str:
    """Return a URL of the web without what asks and signs (`?...`); others, where `?` may be in a name, as they are."""
    return re.split("[?#]", url, maxsplit=1)[0] if is_url(url) and scheme_of(url) in WEB else url


def shown(url: str) -> str:
    """Return a URL without user, password, and what signs it."""
    if not any(mark in url for mark in "?;@"):  # nearly all, and there are millions
        return url
    return _SECRET.sub(r"\1...", _USER.sub(r"\1", url))


def without_secrets(message: str, url: str) -> str:
    """Return a message of a library about a URL, without what `shown` leaves out."""
    return shown(message.replace(url, shown(url)))


def reason_of(err: BaseException, url: str) -> str:
    """Return an error of a library in one line, without secrets of the URL."""
    lines = str(err).strip().splitlines()
    return without_secrets(lines[0] if lines else type(err).__name__, url)

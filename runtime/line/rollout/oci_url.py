"""Addresses of repositories: `oci://HOST:PORT/NAME`."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from flawscope.errors import ArgumentError
from flawscope.runtime.line.rollout.table import PLAIN, SECURE
from flawscope.secrets import is_this_machine, without_secrets
from flawscope.text import printable

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")


def check_url(url: str, *, has_secret: bool) -> None:
    """Refuse the address of a repository that cannot be used.

    Args:
        url: The address.
        has_secret: Whether a password or a token goes there.

    Raises:
        ArgumentError: If it is none, or a secret would go through the network in the open.
    """
    is_plain = url.startswith(PLAIN)
    host, _, repository = url.removeprefix(PLAIN).removeprefix(SECURE).partition("/")
    try:
        parts = urlsplit(f"//{host}")
        is_good = bool(parts.hostname) and parts.port != 0 and parts.username is None and "?" not in host
    except ValueError:
        is_good = False
    if not is_good or _NAME.fullmatch(repository) is None:
        raise ArgumentError(
            "registry: expected an address such as oci://HOST:PORT/factory/top, the name in small letters and without "
            f"a tag, got {_shown(url)!r}. Mend it."
        )
    if is_plain and has_secret and not is_this_machine(parts.hostname or ""):
        raise ArgumentError(
            "registry: expected oci:// (TLS) where a password or token is sent, got oci+http://, where anybody on the "
            "way reads it. Change it, or leave them out."
        )


def _shown(url: str) -> str:
    """Return an address without the password that somebody wrote into it."""
    before, at, _ = url.rpartition("@")
    return printable(without_secrets(url, before.partition("://")[2]) if at else url)

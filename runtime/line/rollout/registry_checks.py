"""What a registry is asked with: its address, `oci://HOST:PORT/NAME`, and who asks."""

from __future__ import annotations

import re
from collections.abc import Iterator
from urllib.parse import urlsplit

from flawscope.runtime.line.rollout.table import PLAIN, SECURE, RegistryReleases
from flawscope.secrets import is_this_machine, without_secrets
from flawscope.text import printable

_NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")


def mistakes_of(options: RegistryReleases) -> Iterator[tuple[str, str]]:
    """Yield what cannot be used of a registry's options: the key, empty for several of them, and what is wrong.

    Where its secrets are is not looked at: they may be written later.
    """
    if (options.user is None) != (options.password is None) or (options.user and options.token):
        yield "", "expected user and password, or a token, or neither, got another choice. Leave one out."
    is_plain = options.url.startswith(PLAIN)
    host, _, repository = options.url.removeprefix(PLAIN).removeprefix(SECURE).partition("/")
    try:
        parts = urlsplit(f"//{host}")
        is_good = bool(parts.hostname) and parts.port != 0 and parts.username is None and "?" not in host
    except ValueError:
        is_good = False
    if not is_good or _NAME.fullmatch(repository) is None:
        yield (
            "url",
            "expected an address such as oci://HOST:PORT/factory/top, the name in small letters and without a tag, got "
            f"{_shown(options.url)!r}. Mend it.",
        )
    elif is_plain and (options.user or options.token) and not is_this_machine(parts.hostname or ""):
        yield (
            "url",
            "expected oci:// (TLS) where a password or token is sent, got oci+http://, where anybody on the way reads "
            "it. Change it, or leave them out.",
        )


def _shown(url: str) -> str:
    """Return an address without the password that somebody wrote into it."""
    before, at, _ = url.rpartition("@")
    return printable(without_secrets(url, before.partition("://")[2]) if at else url)

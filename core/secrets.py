"""Passwords and tokens: a configuration names where they are (`env:NAME`, `file:PATH`), and nothing ever shows them."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from urllib.parse import quote

from flawscope.errors import ArgumentError
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.text import printable

_HIDDEN = "***"


def read_secret(place: str) -> str:
    """Return the secret that a configuration names. It is read each time, so that a renewed one is found.

    Args:
        place: `env:NAME` of an environment variable, or `file:PATH` of a file whose text it is; line ends at the end of
            the file are no part of it.

    Raises:
        ArgumentError: If there is none, it is empty, or it is no text in one line. The message never holds it.
    """
    kind, _, name = place.partition(":")
    if kind == "env" and name:
        text = os.environ.get(name)
        if text is None:
            raise ArgumentError(
                f"{printable(place)}: expected an environment variable {printable(name)} with a secret, got none. Set "
                "it for the service, or name a file with file:PATH."
            )
    elif kind == "file" and name:
        text = _text_of(place, Path(name))
    else:
        # What stands here may be the secret itself.
        raise ArgumentError("expected where a secret is, env:NAME or file:PATH, got something else.")
    if not text:
        raise ArgumentError(f"{printable(place)}: expected a secret, got an empty text. Write it there.")
    if not text.isprintable():
        raise ArgumentError(
            f"{printable(place)}: expected a secret of one line, got line ends or control characters. Write the secret "
            "alone there."
        )
    return text


def _text_of(place: str, path: Path) -> str:
    try:
        return read_regular(path, SETTINGS_BYTES).decode().rstrip("\r\n")
    except OSError as err:
        raise ArgumentError(
            f"{printable(place)}: expected a file with a secret, got: {err.strerror or err}. Check its "
            "name and permissions."
        ) from None
    except UnicodeDecodeError:
        # Not `from err`: the error holds the bytes.
        raise ArgumentError(f"{printable(place)}: expected a secret in UTF-8, got other bytes.") from None


def without_secrets(text: str, *secrets: str | None) -> str:
    """Return a text, such as the message of a library, in which each secret is `***`, also as addresses write it.

    Args:
        text: The text.
        secrets: The secrets; None and empty ones are passed over.
    """
    forms = {form for secret in secrets if secret for form in (secret, quote(secret), quote(secret, safe=""))}
    # The longest first: a secret may be part of another.
    for form in sorted(forms, key=len, reverse=True):
        text = text.replace(form, _HIDDEN)
    return text


def read_token(place: str) -> str:
    """Return a token as a header may hold it; as `read_secret`.

    Raises:
        ArgumentError: If it has other characters than those of ASCII, or spaces.
    """
    token = read_secret(place)
    if not token.isascii() or " " in token:
        raise ArgumentError(f"{printable(place)}: expected a token of ASCII characters without spaces, got others.")
    return token


def is_this_machine(host: str) -> bool:
    """Return whether an address is that of this machine: nobody else reads what goes there without TLS."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"

"""The name that was probably meant, for messages about names that are not known."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: object, names: Iterable[str]) -> str | None:
    """Return the known name that is most like one that was typed, in any case; None where none is like it."""
    by_fold = {known.casefold(): known for known in names}
    typed = str(name).casefold()  # keys of YAML may be numbers
    close = difflib.get_close_matches(typed, by_fold, 1)
    if not close:
        # difflib takes a short beginning of a long name for another word.
        close = [known for known in by_fold if len(typed) >= 3 and known.startswith(typed)][:1]
    return by_fold[close[0]] if close else None


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """Return ` Did you mean NAME?`, with a space before it, or nothing where no name is like the one that was typed."""
    near = nearest(name, names)
    return f" Did you mean {near}?" if near else ""

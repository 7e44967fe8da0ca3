"""Where the workers of one machine keep what they have in common: packed banks, mapped by all."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flawscope.files import temporary_folder
from flawscope.user_folders import cache_folder


def shared_folder(name: str | None = None) -> contextlib.AbstractContextManager[Path]:
    """Return a block with a private folder of this machine; see `flawscope.files.temporary_folder`.

    Args:
        name: Of a run, where each worker goes there by itself; None where one process makes it for all.

    Raises:
        StorageError: If it cannot be made.
    """
    base = cache_folder()
    return temporary_folder(None if base is None else base / "flawscope" / "shared", name)

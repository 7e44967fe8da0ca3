"""`Problem`: what is wrong with a dataset, or is taken otherwise than it lies."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Severity = Literal["fatal", "error", "note"]


class Problem(msgspec.Struct, frozen=True):
    """A problem or remark about a file or folder.

    Attributes:
        kind: A fixed word for scripts, such as "unreadable_image".
        path: The file or folder.
        message: One sentence for people, without the path.
        severity: "fatal": the dataset cannot be used; "error": training or metrics suffer; "note": for information.
    """

    kind: str
    path: Path
    message: str
    severity: Severity = "error"

    @property
    def is_fatal(self) -> bool:
        """Whether the dataset cannot be used because of this."""
        return self.severity == "fatal"

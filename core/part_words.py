"""What folders and tables call normal and anomalous parts, in the languages of those who sort them."""

from __future__ import annotations

import re

GOOD = "good"
GOOD_NAMES = frozenset({GOOD, "normal", "ok", "io", "i.o.", "gut", "bon", "pass", "passed"})
"""Names of normal images, in lower case; they are taken in any case."""
BAD_NAMES = frozenset(
    {
        *("ng", "nok", "ko", "nio", "n.i.o.", "schlecht", "mauvais", "fail", "failed", "bad", "scrap"),
        *("defect", "defects", "defective", "reject", "rejected", "anomaly", "anomalous"),
    }
)
"""Names that say no more than that something is wrong, in lower case. Any other name is a type of defect too."""
_IN_FILE_NAMES = frozenset({"ng", "nok", "nio"})  # no word such as defect, for the sake of no_defect_001.png
_WORD = re.compile(r"[^\W\d_]+")


def is_named_bad(stem: str) -> bool:
    """Return whether a file's name has a word by which a line marks anomalous parts, as `NG_0012`."""
    return not _IN_FILE_NAMES.isdisjoint(_words(stem))


def is_like_good(name: str) -> bool:
    """Return whether a name holds a word for normal parts among others, as `01_OK` does."""
    return not GOOD_NAMES.isdisjoint(_words(name))


def _words(name: str) -> list[str]:
    return _WORD.findall(name.lower())

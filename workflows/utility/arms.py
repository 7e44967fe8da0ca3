"""Arms of the downstream benchmark: what each training learns from beside the real defects, which all have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flawscope.config import LabelledConfig, change_settings
from flawscope.errors import ArgumentError

REAL = "real"
"""Name of the arm that learns from the support set alone."""


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: Its name: `real`, the folders' names joined by `+`, and `@` with the number where there is one.
        folders: Folders of drawn defects; none for the arm `real`.
        number: Most drawn images that are taken, or None for all.
    """

    name: str
    folders: tuple[Path, ...] = ()
    number: int | None = None


def read_arms(generated: Sequence[str], numbers: Sequence[int] = ()) -> tuple[Arm, ...]:
    """Return the arms of a benchmark, `real` first.

    Args:
        generated: Folders of drawn defects, an arm each; folders joined by `+` are a mixture.
        numbers: Numbers of drawn images, for an arm of each folder or mixture with each number, beside that with all.

    Raises:
        ArgumentError: If there is no folder, one is named twice, or a number is below 1.
    """
    if not generated:
        raise ArgumentError("GENERATED: expected a folder of drawn defects, got none. Name one or more.")
    if len(set(numbers)) != len(numbers) or any(number < 1 for number in numbers):
        raise ArgumentError(f"--numbers: expected different numbers of at least 1, got {list(numbers)}.")
    mixtures = [_folders(text) for text in generated]
    if len({frozenset(folders) for folders in mixtures}) != len(mixtures) or any(
        len(set(folders)) != len(folders) for folders in mixtures
    ):
        raise ArgumentError("GENERATED: expected different folders and mixtures, got one twice. Name each once.")
    names = _names(mixtures)
    arms = [Arm(REAL)]
    for folders, name in zip(mixtures, names, strict=True):
        arms += [Arm(f"{name}@{number}", folders, number) for number in sorted(numbers)]
        arms.append(Arm(name, folders))
    return tuple(arms)


def _folders(text: str) -> tuple[Path, ...]:
    whole = Path(text)
    # A folder may have a plus in its name.
    return (whole,) if whole.is_dir() or "+" not in text else tuple(Path(part) for part in text.split("+"))


def _names(mixtures: Sequence[tuple[Path, ...]]) -> list[str]:
    """Return a name for each mixture that a folder can have; with a number where two would have the same."""
    plain = ["+".join(folder.resolve().name or "drawn" for folder in folders) for folders in mixtures]
    counts = Counter(plain)
    # `real` is taken by the arm without drawn images.
    return [f"{name}-{number}" if counts[name] > 1 or name == REAL else name for number, name in enumerate(plain, 1)]


def settings_of(config: LabelledConfig, arm: Arm, support: Path, share: float, seed: int) -> LabelledConfig:
    """Return the settings of an arm's training.

    Args:
        config: Settings of the benchmark.
        arm: The arm.
        support: Support set that all arms learn from.
        share: Share of drawn images among the anomalous ones that are not procedural; at 1 support images are left out.
        seed: Seed of the training.
    """
    labelled: dict[str, object] = {"support": str(support), "support_share": None, "drawn": (), "drawn_share": None}
    if arm.folders:
        labelled |= {"drawn": tuple(map(str, arm.folders)), "drawn_number": arm.number, "drawn_share": share}
        labelled |= {"support_share": 1.0 - share} if share < 1.0 else {"support": None}
    else:
        labelled["weak_tau"] = None  # of the boxes of drawn images
    return change_settings(config, {**labelled, "seed": seed})


TAKEN = (
    *("support", "support_share", "drawn", "drawn_share", "drawn_number", "train_defects", "train_share"),
    "weak_tau",
)
"""Settings of labelled defects that the benchmark sets by itself or by an option of its own."""

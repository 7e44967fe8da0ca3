"""What plans of each kind must hold beside their common fields: a plan is a file, which anybody may have edited.

Each struct names what workers and merges read of `asked` and `fixed`; what else a plan has, as of options that only a
command compares, is left alone.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

_Count = Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
_Threads = Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | None


class _ScoreAsked(msgspec.Struct):
    images: list[str] | None
    backend: str
    path: str
    precision: str
    product: str | None
    strict: bool
    streams: int | None
    threads: int | None
    threshold_overlay: str | None
    use_overlay: bool
    batch: _Count
    maps: bool
    hash: bool
    column: str | None = None


class _ScoreFixed(msgspec.Struct):
    backend: str
    threads: _Threads
    folder: str
    path: str
    thresholds: str
    threshold_revision: int
    threshold_source: str
    image_threshold: float | None
    pixel_threshold: float | None
    name: str
    method: str
    masks_passed_over: list[str]


class _Score(msgspec.Struct):
    asked: _ScoreAsked
    fixed: _ScoreFixed


class _GenerateAsked(msgspec.Struct):
    settings: dict[str, Any]
    precision: str
    backend: str
    lines: dict[str, str]
    lpips: dict[str, str]


class GenerateFixed(msgspec.Struct, frozen=True):
    """What a plan fixes for all workers of a round of `synth generate`.

    Attributes:
        turn: Number of the round, from 0.
        records: Records of the whole run.
        batch: Records that are drawn at once.
        backend: Backend, not `auto`.
        backend_reason: Why it was chosen.
        threads: Threads of the graphs of a worker.
        replaces: Whether the set may take the place of an earlier one.
        bundle: Path of the bundle, absolute, for `flawscope merge`; workers have their own.
        data: Root and categories of the dataset, likewise; None without one.
    """

    turn: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)]
    records: _Count
    batch: _Count
    backend: str
    backend_reason: str
    threads: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)]
    replaces: bool = False
    bundle: str = ""
    data: tuple[str, tuple[str, ...]] | None = None


class _Generate(msgspec.Struct):
    asked: _GenerateAsked
    fixed: GenerateFixed


class DatasetSources(msgspec.Struct, frozen=True):
    """What a dataset of `synth dataset` is made of, as its command named it; paths are absolute.

    Attributes:
        generated: Folders of drawn images.
        data: Root of the real dataset.
        category: Its category; None for the only one.
        support: The support set; None without.
    """

    generated: list[str]
    data: str
    category: str | None
    support: str | None


class _DatasetFixed(msgspec.Struct):
    replaces: bool
    threads: _Threads
    sources: DatasetSources | None = None


class _Dataset(msgspec.Struct):
    fixed: _DatasetFixed


class _EvaluateAsked(msgspec.Struct):
    precision: str
    product: str
    by_product: bool
    threshold_overlay: str
    use_overlay: bool


class _EvaluateFixed(msgspec.Struct):
    backend: str
    path: str
    thresholds: str
    threads: _Threads


class _Evaluate(msgspec.Struct):
    asked: _EvaluateAsked
    fixed: _EvaluateFixed


_FORMS: dict[str, type[msgspec.Struct]] = {
    "score": _Score,
    "generate": _Generate,
    "dataset": _Dataset,
    "evaluate": _Evaluate,
}
"""Kind of a plan -> what it must hold."""


def form_problem(kind: str, asked: dict[str, Any], fixed: dict[str, Any]) -> str | None:
    """Return what is wrong with what a plan of a kind holds, in words; None if nothing is, or the kind is not known."""
    if kind not in _FORMS:
        return None
    try:
        msgspec.convert({"asked": asked, "fixed": fixed}, _FORMS[kind])
    except msgspec.ValidationError as err:
        return str(err)
    return None

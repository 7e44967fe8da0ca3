"""The plans of `synth generate` in shards: of the first round, and of each that draws again what is not accepted."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from flawscope.bundle import Manifest, SynthHead, trusted_bundle
from flawscope.datasets import Dataset, open_categories
from flawscope.datasets.defects.set_files import read_json
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, locked, storage_errors
from flawscope.open_files import list_folder
from flawscope.runtime.backends import choose_backend
from flawscope.runtime.scale.executors import Placement, make_executor
from flawscope.runtime.scale.generate_shards import RecordItem, read_records
from flawscope.runtime.scale.generate_work import GenerateWork, fixed_of, read_judged, settings_of
from flawscope.runtime.scale.placement import threads_of_worker
from flawscope.runtime.scale.plan import (
    DEFAULT_SHARD,
    PLAN,
    SHARDS,
    Plan,
    check_overwrite,
    check_same,
    read_plan,
    write_plan,
)
from flawscope.runtime.scale.plan_forms import GenerateFixed
from flawscope.runtime.scale.plan_items import write_item_lines
from flawscope.runtime.scale.work import encode_work
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import MARKER, GenerateRecord, RecordedSettings
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips
from flawscope.runtime.synthesis.record_drawing import check_distance, check_seeds, sites_of_records
from flawscope.runtime.synthesis.sites import Site
from flawscope.runtime.synthesis.synthesizer import defect_named, head_of
from flawscope.stored_paths import path_from, stored_path
from flawscope.text import encode_json, name_bytes

GENERATE = "generate"


@dataclass(frozen=True, kw_only=True)
class Request:
    """What is to be drawn.

    Attributes:
        bundle: Path of the bundle.
        manifest: Its manifest.
        head: Its description of how it draws.
        sites: Where to draw.
        settings: How many images, and how.
        backend: Backend, or `auto`.
        precision: Precision of the graphs.
        lpips: Two files of weights that candidates are compared with; None without.
        dataset: Dataset whose test split is searched for support images.
        data: Its root and categories, by which it is opened again; None without one.
        lines: File of lines that the sites come from -> SHA-256.
    """

    bundle: Path
    manifest: Manifest
    head: SynthHead
    sites: Sequence[Site]
    settings: GenerateSettings
    backend: str
    precision: str
    lpips: tuple[Path, Path] | None
    dataset: Dataset | None
    data: tuple[Path, tuple[str, ...]] | None
    lines: Mapping[str, str]


@dataclass(frozen=True)
class Planned:
    """The first round of a set.

    Attributes:
        folder: Folder of its plan.
        plan: The plan.
        is_new: Whether it was made now.
    """

    folder: Path
    plan: Plan
    is_new: bool


def parts_of(out: Path) -> Path:
    """Return the folder in which the rounds of an unfinished set lie."""
    return out.parent / f"{out.name}.parts"


def first_round(out: Path) -> Path:
    """Return the folder of the first round of an unfinished set."""
    return parts_of(out) / "round-001"


def round_folder(first: Path, number: int) -> Path:
    """Return the folder of a round, counted from 1, beside that of the first one."""
    return first.with_name(f"round-{number:03d}")


def request_of(first: Path, plan: Plan) -> Request:
    """Return what was asked for, from the plan of the first round alone: enough to join rounds, and not to draw.

    Raises:
        DataError: If the dataset cannot be read, or another bundle lies where that of the plan lay.
        BundleError: If the bundle cannot be opened.
    """
    fixed = fixed_of(plan)
    with trusted_bundle(path_from(fixed.bundle)) as opened:
        manifest, head = opened.manifest, head_of(opened)
    if manifest.digest != plan.bundle:
        raise DataError(
            f"{fixed.bundle}: expected the bundle of the plan in {first} ({plan.bundle[:12]}…), got another one "
            f"({manifest.digest[:12]}…). Put it back."
        )
    root, categories = (None, ()) if fixed.data is None else fixed.data
    return Request(
        bundle=path_from(fixed.bundle),
        manifest=manifest,
        head=head,
        sites=(),
        settings=settings_of(plan),
        backend=plan.asked["backend"],
        precision=plan.asked["precision"],
        lpips=None,
        dataset=None if root is None else open_categories(path_from(root), categories),
        data=None if root is None else (path_from(root), categories),
        lines=plan.asked["lines"],
    )


def finished_before(request: Request, out: Path) -> GenerateRecord | None:
    """Return the record of a set that lies there finished, if it is what is asked for; None where none does.

    Rounds that it was made of are removed, where whoever made it was killed before that.

    Raises:
        ArgumentError: If another set lies there.
    """
    if not (out / MARKER).is_file():
        return None
    first = first_round(out)
    # What lies there is then the earlier set, or the new one whose rounds are still there: written again, it is equal.
    if (first / PLAN).is_file() and fixed_of(read_plan(first, GENERATE)).replaces:
        return None
    record = read_json(out / MARKER, GenerateRecord, "the record of drawn images")
    wanted = (request.manifest.digest, request.precision, RecordedSettings.of(request.settings), dict(request.lines))
    if (record.digest, record.precision, record.settings, record.lines) != wanted:
        raise ArgumentError(
            f"{out}: expected the set of this command to go on with, got one of another bundle, lines or options. "
            "Choose another name for --out."
        )
    remove_parts_of(out)
    return record


def remove_parts_of(out: Path) -> None:
    """Remove the rounds of a set that is finished."""
    parts = parts_of(out)
    if (first_round(out) / PLAN).is_file():
        with storage_errors(parts):
            # The first plan last: without it nobody would know whose folder this is.
            for folder in sorted(list_folder(parts), reverse=True):
                if (folder / SHARDS).is_dir():  # else whoever removed them was killed, or nobody ever drew
                    shutil.rmtree(folder / SHARDS)
                shutil.rmtree(folder)
            parts.rmdir()


def plan_generate(
    request: Request,
    out: Path,
    placement: Placement,
    *,
    shard_size: int | None = None,
    is_resumed: bool = False,
    is_shared: bool = False,
    overwrite: bool = False,
) -> Planned:
    """Make the plan of the first round of a set, or go on with the one that lies there.

    Args:
        request: What is drawn.
        out: The folder to make; what is not finished lies in `out`.parts beside it.
        placement: Where, and by how many workers.
        shard_size: Records of a shard, rounded down to whole batches; None for 256.
        is_resumed: Whether to go on with what lies there.
        is_shared: Whether jobs share the plan: the first makes it, and the others take it.
        overwrite: Whether an earlier set, or an unfinished one, may be replaced.

    Raises:
        ArgumentError: If a setting is out of range, `out` is taken, or another run lies in `out`.parts.
        BackendError: If the backend is not there.
    """
    check_overwrite(overwrite, goes_on=is_resumed or is_shared)
    folder = first_round(out)
    may_go_on = (is_resumed or is_shared) and (folder / PLAN).is_file()
    check_replaceable(out, MARKER, overwrite=fixed_of(read_plan(folder, GENERATE)).replaces if may_go_on else overwrite)
    _check_parts(out, may_go_on=is_resumed or is_shared, overwrite=overwrite)
    batch = _batch_of(request)
    if shard_size is not None and shard_size < 1:
        raise ArgumentError(f"--shard-size: expected at least 1, got {shard_size}.")
    size = max((DEFAULT_SHARD if shard_size is None else shard_size) // batch, 1) * batch
    # Made, and not started: it refuses a placement that cannot be before anything is written.
    make_executor(encode_work(work_of(request, folder)), placement)
    # Of jobs that begin together one makes the plan; the others find it.
    with locked(folder):
        if (folder / PLAN).is_file():
            plan = read_plan(folder, GENERATE)
            size = plan.shard_size if shard_size is None else size
            check_same(folder, plan, _first_plan(None, request, placement, batch, size))
            return Planned(folder, plan, is_new=False)
        plan = write_plan(folder, lambda where: _first_plan(where, request, placement, batch, size, replaces=overwrite))
        return Planned(folder, plan, is_new=True)


def _check_parts(out: Path, *, may_go_on: bool, overwrite: bool) -> None:
    """Refuse what lies where rounds go, or remove it, unless it may go on."""
    parts = parts_of(out)
    if not parts.exists() or (may_go_on and (first_round(out) / PLAN).is_file()):
        return
    if not (first_round(out) / PLAN).is_file():
        # Empty: left by a plan that was refused.
        if not list_folder(parts):
            return
        raise ArgumentError(
            f"{parts}: expected a free name for what is not finished, got a folder with other files. Choose another "
            "name for --out."
        )
    if not overwrite:
        raise ArgumentError(
            f"{parts}: expected a free name for what is not finished, got an earlier run. Go on with it by --resume, "
            "or replace it with --overwrite."
        )
    remove_parts_of(out)


def _batch_of(request: Request) -> int:
    most = request.manifest.max_batch // 2
    batch = most if request.settings.batch is None else request.settings.batch
    if not 1 <= batch <= most:
        raise ArgumentError(f"batch: expected 1 to {most}, half of the bundle's largest batch, got {batch}.")
    return batch


def _first_plan(
    where: Path | None, request: Request, placement: Placement, batch: int, size: int, *, replaces: bool = False
) -> Plan:
    """Return the plan of all records, and write these where that is asked for."""
    settings = request.settings
    check_distance(settings, is_given=request.lpips is not None)
    settings.options.sampling(request.head)  # only to raise, before a worker is started
    sites = sites_of_records(request.sites, settings)
    check_seeds(settings, len(sites))
    for site in dict.fromkeys(request.sites):
        defect_named(request.manifest, request.head, site.key)
        for path in (site.good, site.mask):
            if name_bytes(str(path.absolute())) is not None:
                raise DataError(f"{path}: expected a name in UTF-8 for work in shards, got other bytes. Rename it.")
    choice = choose_backend(request.backend)
    threads = threads_of_worker(placement)
    lines = (encode_json(RecordItem.of(number, site)) for number, site in enumerate(sites))
    written = write_item_lines(where, lines, size)
    data = None if request.data is None else (stored_path(request.data[0]), request.data[1])
    fixed = GenerateFixed(
        0,
        len(sites),
        batch,
        choice.name,
        choice.reason,
        threads,
        replaces,
        stored_path(request.bundle),
        data,
    )
    return Plan(
        kind=GENERATE,
        bundle=request.manifest.digest,
        asked={
            "settings": msgspec.to_builtins(settings),
            "precision": request.precision,
            "backend": request.backend,
            "lines": dict(request.lines),
            "lpips": {} if request.lpips is None else dict(MaskedLpips.load(*request.lpips).files),
        },
        fixed=msgspec.to_builtins(fixed),
        items=written.items,
        items_sha256=written.sha256,
        shard_size=size,
    )


def next_plan(folder: Path, before: Path, plan: Plan) -> Plan:
    """Return the plan of the records of which the round before accepted no drawing."""

    def plan_of(where: Path) -> Plan:
        fixed = msgspec.structs.replace(fixed_of(plan), turn=fixed_of(plan).turn + 1)
        written = write_item_lines(where, map(encode_json, pending_records(before, plan)), plan.shard_size)
        return msgspec.structs.replace(
            plan, fixed=msgspec.to_builtins(fixed), items=written.items, items_sha256=written.sha256
        )

    with locked(folder):
        return read_plan(folder, GENERATE) if (folder / PLAN).is_file() else write_plan(folder, plan_of)


def pending_records(folder: Path, plan: Plan) -> Iterator[RecordItem]:
    """Yield the records of a round that have no accepted drawing, in order; the round must be whole."""
    for task in plan.tasks():
        for record, judged in zip(read_records(folder, plan, task), read_judged(folder, plan, task), strict=True):
            if not judged.accepted:
                yield record


def work_of(request: Request, folder: Path, plan: Plan | None = None) -> GenerateWork:
    """Return the work of a round; without its plan one that nobody can do."""
    weights = request.lpips
    return GenerateWork(
        out=stored_path(folder),
        plan="" if plan is None else plan.digest,
        bundle=stored_path(request.bundle),
        lpips=None if weights is None else (stored_path(weights[0]), stored_path(weights[1])),
    )

"""The plan of `score` in shards: made once from what is asked for, or found and compared with it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from flawscope import __version__
from flawscope.bundle import Bundle, InForce, thresholds_in_force, trusted_bundle
from flawscope.errors import ArgumentError
from flawscope.files import check_replaceable, locked
from flawscope.runtime.backends.cores import Cores
from flawscope.runtime.backends.table import backend_problem, backend_row, check_cores
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.judge import Judge
from flawscope.runtime.scale.executors import Placement, make_executor
from flawscope.runtime.scale.inputs import Found, Item, Reader, list_items
from flawscope.runtime.scale.inputs.hashes import hashed
from flawscope.runtime.scale.inputs.urls import shown
from flawscope.runtime.scale.placement import threads_of_worker
from flawscope.runtime.scale.plan import (
    DEFAULT_SHARD,
    ITEMS,
    PLAN,
    REPORT,
    Plan,
    check_overwrite,
    check_same,
    read_plan,
    write_plan,
)
from flawscope.runtime.scale.plan_items import Written, write_items
from flawscope.runtime.scale.score_work import ScoreWork, fingerprint
from flawscope.runtime.scale.work import encode_work
from flawscope.stored_paths import path_from, stored_path
from flawscope.text import storable

SCORE = "score"


@dataclass(frozen=True, kw_only=True)
class ScoreRequest:
    """What is asked for.

    Attributes:
        bundle: The bundle.
        images: Images, folders and what else `flawscope.runtime.scale.inputs` lists; empty for those of the plan that
            lies there.
        out: Folder of plan and results.
        placement: Where, and by how many workers.
        backend: As in `Inspector.load`, as all up to `use_overlay`.
        path: How maps are made.
        precision: Precision of the graphs.
        product: Product whose own thresholds hold.
        strict: Whether an image unlike those learned from is a fault.
        streams: Images that `openvino` infers at once.
        threads: Threads of a worker; None for the cores by the workers, where the number of workers is stated and they
            are on this machine, else 1.
        threshold_overlay: Threshold overlay in place of the one beside the bundle.
        use_overlay: Whether an overlay counts.
        batch: Images per inference.
        maps: Whether each shard has an archive of heat maps.
        shard_size: Images of a shard, a multiple of `batch`; None for 256 or the multiple below.
        listing: What else `list_items` takes.
        has_hashes: Whether the plan has the SHA-256 of every image: one that is another when it is scored is a fault.
        is_resumed: Whether a plan that lies there goes on.
        is_shared: Whether jobs share the plan: the first makes it, and the others take it as it is.
        overwrite: Whether an earlier run may be replaced.
        left_open: Which of these were not stated: a plan that goes on has its own.
    """

    bundle: Path
    images: Sequence[str | Path]
    out: Path
    placement: Placement = field(default_factory=Placement)
    backend: str = "auto"
    path: str = "auto"
    precision: str = "fp32"
    product: str | None = None
    strict: bool = False
    streams: int | None = None
    threads: int | None = None
    threshold_overlay: Path | None = None
    use_overlay: bool = True
    batch: int = 1
    maps: bool = False
    shard_size: int | None = None
    listing: dict[str, Any] = field(default_factory=dict)
    has_hashes: bool = False
    is_resumed: bool = False
    is_shared: bool = False
    overwrite: bool = False
    left_open: frozenset[str] = frozenset()

    def asked(self) -> dict[str, Any]:
        """Return what of it a plan states. None leaves open what the plan says."""
        overlay = self.threshold_overlay
        return {
            "images": [storable(shown(str(name))) for name in self.images] or None,
            **_stated(self.listing),
            "backend": self.backend,
            "path": self.path,
            "precision": self.precision,
            "product": self.product,
            "strict": self.strict,
            "streams": self.streams,
            "threads": self.threads,
            "threshold_overlay": None if overlay is None else stored_path(overlay),
            "use_overlay": self.use_overlay,
            "batch": self.batch,
            "maps": self.maps,
            "hash": self.has_hashes,
        }


def _stated(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


@dataclass(frozen=True)
class Planned:
    """A plan that lies in its folder.

    Attributes:
        plan: The plan.
        work: Its work.
        is_new: Whether it was made now.
    """

    plan: Plan
    work: ScoreWork
    is_new: bool


def plan_score(request: ScoreRequest) -> Planned:
    """Make the plan of a request, or go on with the one that lies there.

    Raises:
        ArgumentError: If the request is wrong, an earlier run lies there and shall not go on, or it is of another plan.
        BundleError: If the bundle is broken, or not signed by a trusted key.
        BackendError: If the backend is not there.
        DataError: If the plan that lies there cannot be read.
        StorageError: If the folder cannot be written.
    """
    check_overwrite(request.overwrite, goes_on=request.is_resumed or request.is_shared)
    if _has_plan(request):
        return _found(request)
    shard_size = _shard_size(request, request.batch)
    if not request.images:
        raise ArgumentError(
            f"{request.out}: expected images, or the plan of an earlier run to go on with, got neither. Name images."
        )
    _check_free(request)
    # Made, and not started: it refuses a placement that cannot be before anything is written.
    make_executor(encode_work(ScoreWork(str(request.out), "")), request.placement)
    digest, fixed = _fix(request)
    with ExitStack() as stack:
        if request.is_shared:
            # Of jobs that begin together one makes the plan; the others find it.
            stack.enter_context(locked(request.out))
            if _has_plan(request):
                return _found(request)

        def make(folder: Path) -> Plan:
            found = Found()
            listed = list_items(request.images, found=found, **request.listing)
            items, sha256 = _write(folder, listed, shard_size, has_hashes=request.has_hashes)
            fixed["masks_passed_over"] = [storable(name) for name in found.masks]
            return Plan(
                kind=SCORE,
                bundle=digest,
                asked=request.asked(),
                fixed=fixed,
                items=items,
                items_sha256=sha256,
                shard_size=shard_size,
            )

        try:
            plan = write_plan(request.out, make, overwrite=request.overwrite)
        except ArgumentError:
            # A job on another machine was first, whose lock does not show here on some shared disks.
            if not (request.is_shared and _has_plan(request)):
                raise
            return _found(request)
    return Planned(plan, _work(request, plan), is_new=True)


def _shard_size(request: ScoreRequest, batch: int) -> int:
    size = request.shard_size
    if not isinstance(batch, int) or batch < 1:
        raise ArgumentError(f"batch: expected at least 1 image, got {batch!r}.")
    if size is None:
        return max(DEFAULT_SHARD // batch, 1) * batch
    # Batches of a shard would otherwise be others than those of a single process, which may round in another way.
    if isinstance(size, bool) or not isinstance(size, int) or size < 1 or size % batch:
        raise ArgumentError(f"shard_size: expected a multiple of the batch, {batch}, got {size!r}. Choose another.")
    return size


def _has_plan(request: ScoreRequest) -> bool:
    return (request.out / PLAN).is_file() and not request.overwrite


def _check_free(request: ScoreRequest) -> None:
    """Check, before the work, that the folder can be written."""
    marker = PLAN if (request.out / PLAN).is_file() else REPORT
    check_replaceable(request.out, marker, overwrite=request.overwrite)


def _found(request: ScoreRequest) -> Planned:
    """Return the plan that lies there, if it is the one that is asked for."""
    out = request.out
    if not (request.is_resumed or request.is_shared):
        raise ArgumentError(
            f"{out}: expected a new folder, got the run of an earlier plan. Go on with it by --resume, choose another "
            "name, or replace it with --overwrite."
        )
    plan = read_plan(out)
    # Kind and version first: a plan of another has other options.
    check_same(out, plan, msgspec.structs.replace(plan, kind=SCORE, flawscope=__version__, asked={}))
    with trusted_bundle(request.bundle) as bundle:
        digest = bundle.manifest.digest
        # Of another bundle nobody asks for them: that is said first.
        thresholds = fingerprint(_in_force(bundle, plan.asked)) if digest == plan.bundle else None
    items, sha256 = plan.items, plan.items_sha256
    # Jobs of an array take the list as it is: it is the same for all of them, whatever comes into a folder meanwhile.
    if request.images and not request.is_shared:
        listing = {"column": plan.asked.get("column")} | _stated(request.listing)
        listed = list_items(request.images, **listing)
        items, sha256 = _write(None, listed, plan.shard_size, has_hashes=plan.asked["hash"])
    wanted = Plan(
        kind=SCORE,
        bundle=digest,
        asked={name: value for name, value in request.asked().items() if name not in request.left_open},
        items=items,
        items_sha256=sha256,
        shard_size=plan.shard_size if request.shard_size is None else request.shard_size,
    )
    if (items, sha256) != (plan.items, plan.items_sha256) and request.asked()["images"] == plan.asked["images"]:
        raise ArgumentError(
            f"{out}: expected the {plan.items} images of its plan ({ITEMS}), got {items} others: images came, went or "
            "changed since. Name no images to go on with those of the plan, or choose another name for --out."
        )
    check_same(out, plan, wanted)
    if thresholds != plan.fixed["thresholds"]:
        raise ArgumentError(
            f"{request.bundle}: expected the thresholds of the plan in {out}, {plan.fixed['threshold_source']}, got "
            "others: they were changed since. Put them back, or choose another name for --out."
        )
    return Planned(plan, _work(request, plan), is_new=False)


def _write(folder: Path | None, items: Iterator[Item], shard_size: int, *, has_hashes: bool) -> Written:
    with Reader() as reader:
        return write_items(folder, hashed(items, reader.read) if has_hashes else items, shard_size)


def _in_force(bundle: Bundle, asked: dict[str, Any]) -> InForce:
    return thresholds_in_force(
        bundle.path,
        bundle.manifest,
        asked["precision"],
        threshold_overlay=None if asked["threshold_overlay"] is None else path_from(asked["threshold_overlay"]),
        use_overlay=asked["use_overlay"],
    )


def _work(request: ScoreRequest, plan: Plan) -> ScoreWork:
    out, bundle = (stored_path(os.path.abspath(path)) for path in (request.out, request.bundle))  # noqa: PTH100
    return ScoreWork(out, plan.digest, bundle)


def _fix(request: ScoreRequest) -> tuple[str, dict[str, Any]]:
    """Return the digest of the bundle, and what all workers must agree on."""
    is_elsewhere = request.placement.on != "local"
    # A machine that only places work may lack the GPU of the workers.
    if is_elsewhere and request.backend != "auto" and (problem := backend_problem(request.backend, request.precision)):
        if request.path == "auto":
            raise ArgumentError(
                f"path: expected graph or kernel, as the backend {request.backend} is not on this machine, where the "
                f"plan is made ({problem.rstrip('.')}), got auto. Name --path, too."
            )
        return _fixed_without_loading(request)
    with Inspector.load(
        request.bundle,
        request.backend,
        request.path,
        request.precision,
        strict=request.strict,
        threshold_overlay=request.threshold_overlay,
        use_overlay=request.use_overlay,
        product=request.product,
        threads=request.threads,
        streams=request.streams,
    ) as inspector:
        inspector.check_batch(request.batch)
        thresholds = inspector.thresholds
        return inspector.manifest.digest, {
            **_of_machine(request, inspector.backend),
            "path": inspector.path,
            **_of_thresholds(inspector.in_force),
            "image_threshold": None if thresholds is None else thresholds.image.value,
            "pixel_threshold": None if thresholds is None else thresholds.pixel.value,
            "name": inspector.manifest.name,
            "method": inspector.manifest.method,
        }


def _fixed_without_loading(request: ScoreRequest) -> tuple[str, dict[str, Any]]:
    """As `_fix`, for a backend that this machine lacks: the workers find what else is wrong."""
    with trusted_bundle(request.bundle) as bundle:
        manifest = bundle.manifest
        if manifest.kind != "score" or not 1 <= request.batch <= manifest.max_batch:
            raise ArgumentError(
                f"{request.bundle}: expected a bundle that scores batches of {request.batch}, got one of the kind "
                f"{manifest.kind} with at most {manifest.max_batch}."
            )
        in_force = _in_force(bundle, request.asked())
        judge = Judge(manifest, in_force, request.product, bundle.path)
        thresholds = judge.thresholds_for(request.product)
        return manifest.digest, {
            **_of_machine(request, backend_row(request.backend).name),
            "path": request.path,
            **_of_thresholds(in_force),
            "image_threshold": None if thresholds is None else thresholds.image.value,
            "pixel_threshold": None if thresholds is None else thresholds.pixel.value,
            "name": manifest.name,
            "method": manifest.method,
        }


def _of_thresholds(in_force: InForce) -> dict[str, Any]:
    return {
        "thresholds": fingerprint(in_force),
        "threshold_revision": in_force.revision,
        "threshold_source": storable(in_force.source),
    }


def _of_machine(request: ScoreRequest, backend: str) -> dict[str, Any]:
    """Return backend, threads of a worker, and the folder that images are named from."""
    threads = request.threads
    if threads is None and "threads" in backend_row(backend).cores:
        threads = threads_of_worker(request.placement)
    if request.placement.on == "local":
        check_cores(backend, Cores(threads, request.streams))
    return {"backend": backend, "threads": threads, "folder": stored_path(Path.cwd())}

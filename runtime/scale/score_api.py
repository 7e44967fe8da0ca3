"""`flawscope.scale.score`: decide on many images, by several processes or machines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from flawscope.errors import ArgumentError
from flawscope.path_kinds import path_of
from flawscope.progress import Progress, no_progress
from flawscope.runtime.scale.placement import make_placement
from flawscope.runtime.scale.run_shards import Ran, run_shards
from flawscope.runtime.scale.score_plan import Planned, ScoreRequest, plan_score
from flawscope.runtime.scale.score_report import ShardedReport, read_report


def score(
    bundle: Path | str,
    images: Path | str | Sequence[Path | str],
    *,
    out: Path | str,
    on: str = "local",
    workers: int | None = None,
    gpus_per_worker: float = 0.0,
    shard_size: int | None = None,
    resume: bool = False,
    maps: bool = False,
    column: str | None = None,
    hash_images: bool = False,
    backend: str = "auto",
    path: str = "auto",
    precision: str = "fp32",
    product: str | None = None,
    batch: int = 1,
    threads: int | None = None,
    strict: bool = False,
    threshold_overlay: Path | str | None = None,
    use_overlay: bool = True,
    overwrite: bool = False,
    progress: Progress = no_progress,
) -> ShardedReport:
    """Decide on images in shards, as `flawscope score --on` does, and return the report.

    Whatever goes wrong with an image is a fault of that image: look at `fault` of the report. Ctrl-C leaves what is
    whole; the same call with `resume=True` goes on.

    Args:
        bundle: The bundle, where every worker finds it.
        images: Images, folders of them, and what else `flawscope score` takes; one or several.
        out: Folder for `results.jsonl` and `report.json`, where every worker finds it; it must not exist, or be empty.
        on: `local`, `ray`, or `ray://HOST:PORT`.
        workers: Worker processes, each with the bundle opened once; None for the choice of `on`.
        gpus_per_worker: GPUs of a worker, perhaps a part of one.
        shard_size: Images of a shard, a multiple of `batch`; None for 256 or the multiple below.
        resume: Go on with the plan that lies in `out`, or begin where none does.
        maps: Write an archive of heat maps for each shard.
        column: Column of images in Parquet tables; None: by type and name.
        hash_images: Note the SHA-256 of every image in the plan: one that is changed when it is scored is a fault.
        backend: As in `Inspector.load`, as are the next ones.
        path: How maps are made.
        precision: Precision of the graphs.
        product: Product whose own thresholds hold.
        batch: Images per inference.
        threads: Threads of a worker; None for the cores by `workers` where these are given and local, else 1.
        strict: Whether an image unlike all those that the bundle learned from is a fault.
        threshold_overlay: Threshold overlay in place of the one beside the bundle.
        use_overlay: Whether an overlay counts.
        overwrite: Whether an earlier run in `out` may be replaced.
        progress: Called with (task, completed, total).

    Raises:
        ArgumentError: If an argument is wrong, an earlier run lies in `out` and shall not go on, or it is of another
            plan.
        BundleError: If the bundle is broken, or another one than planned.
        BackendError: If the backend is not there.
        MissingExtra: If what `on` or an image needs is not installed.
        DataError: If plan or shards cannot be read.
        StorageError: If something cannot be written.
        FlawscopeError: If no worker can be started, or workers die of everything.
    """
    named = _named(images)
    overlay = None if threshold_overlay is None else path_of(threshold_overlay, "threshold_overlay")
    request = ScoreRequest(
        bundle=path_of(bundle, "bundle"),
        images=named,
        out=path_of(out, "out"),
        placement=make_placement(on, workers, gpus_per_worker),
        backend=backend,
        path=path,
        precision=precision,
        product=product,
        batch=batch,
        threads=threads,
        strict=strict,
        threshold_overlay=overlay,
        use_overlay=use_overlay,
        maps=maps,
        listing={"column": column},
        has_hashes=hash_images,
        shard_size=shard_size,
        is_resumed=resume,
        overwrite=overwrite,
    )
    planned = plan_score(request)
    if planned.is_new or read_report(request.out) is None:
        run_planned(request, planned, progress)
    report = read_report(request.out)
    assert report is not None
    return report


def _named(images: object) -> list[str | Path]:
    named = [images] if isinstance(images, str | Path) else list(images) if isinstance(images, Iterable) else None
    if named is None or not all(isinstance(name, str | Path) for name in named):
        raise ArgumentError(
            f"images: expected a path, pattern or URL, or several of them, got {images!r:.100}. Name images."
        )
    return named


def run_planned(
    request: ScoreRequest,
    planned: Planned,
    progress: Progress,
    *,
    part: tuple[int, int] = (0, 1),
    command: str = "",
) -> Ran:
    """Do what is planned; see `run_shards`."""
    return run_shards(
        request.out,
        planned.plan,
        planned.work,
        request.placement,
        part=part,
        show=lambda done, total: progress("images", done, total),
        command=command,
    )

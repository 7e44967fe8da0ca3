"""The set that becomes of the rounds of `synth generate` in shards: what one process writes, file by file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from flawscope.files import atomic_folder, locked
from flawscope.imaging.images import decode_image, read_image
from flawscope.imaging.masks import decode_mask
from flawscope.progress import Progress
from flawscope.runtime.scale.generate_plan import Request, finished_before, remove_parts_of, work_of
from flawscope.runtime.scale.generate_shards import ArchiveReader, read_records
from flawscope.runtime.scale.generate_work import RESIZED, fixed_of, settings_of
from flawscope.runtime.scale.plan import Plan
from flawscope.runtime.scale.task import Task
from flawscope.runtime.synthesis.generated_set import MARKER, GeneratedImage, GenerateRecord
from flawscope.runtime.synthesis.generation import support_in_test
from flawscope.runtime.synthesis.set_lines import Files
from flawscope.runtime.synthesis.set_writer import DrawnBy, SetFacts, SetWriter, Shown


def merge_rounds(
    request: Request, plans: Sequence[tuple[Path, Plan]], out: Path, *, report: Progress
) -> GenerateRecord:
    """Write the set of rounds that are whole, and remove these.

    Args:
        request: What was drawn.
        plans: Folder and plan of each round.
        out: The folder to make.
        report: Called with the progress.

    Raises:
        DataError: If a shard is gone or was changed.
        StorageError: If the system refuses to write; the rounds stay.
    """
    first = plans[0][1]
    in_test = 0 if request.dataset is None else support_in_test(request.dataset, request.head, report)
    # Two jobs may end at once.
    with locked(out):
        if (record := finished_before(request, out)) is not None:
            return record
        wanted, resized = _count_records(request, *plans[0])
        with (
            atomic_folder(out, replace_if=MARKER, overwrite=fixed_of(first).replaces) as unfinished,
            SetWriter(unfinished) as writer,
        ):
            seconds, peak_kib = _write_all(writer, plans, request.manifest.input.bits, report)
            facts = SetFacts(
                wanted=wanted,
                seconds=seconds,
                peak_kib=peak_kib or None,
                in_test=in_test,
                lines=request.lines,
                weights=first.asked["lpips"],
                resized=resized,
            )
            record = writer.finish(_drawn_by(request, first), facts)
        remove_parts_of(out)
    return record


def _count_records(request: Request, folder: Path, plan: Plan) -> tuple[Counter[str], int]:
    """Return how many images of each defect type are wanted, and how many masks were resized."""
    wanted, resized = Counter[str](), 0
    work = work_of(request, folder, plan)
    for task in plan.tasks():
        wanted.update(record.site.key for record in read_records(folder, plan, task))
        done = work.whole(task)
        resized += 0 if done is None else done.more.get(RESIZED, 0)
    return wanted, resized


def _drawn_by(request: Request, plan: Plan) -> DrawnBy:
    fixed = fixed_of(plan)
    return DrawnBy(
        request.manifest, request.head, fixed.backend, fixed.backend_reason, request.precision, settings_of(plan)
    )


def _write_all(
    writer: SetWriter, plans: Sequence[tuple[Path, Plan]], bits: int | None, report: Progress
) -> tuple[float, int]:
    """Write the drawings of all rounds; return the seconds that they took, and the largest memory of a worker."""
    seconds, peak_kib, merged = 0.0, 0, 0
    total = sum(plan.shards for _, plan in plans)
    for folder, plan in plans:
        for task in plan.tasks():
            with ArchiveReader(folder, plan, task) as archive:
                seconds += archive.cost.seconds
                peak_kib = max(peak_kib, archive.cost.peak_kib or 0)
                _add(writer, archive, partial(_goods, folder, plan, task), bits)
            merged += 1
            report("writing the set", merged, total)
    return seconds, peak_kib


def _add(writer: SetWriter, archive: ArchiveReader, goods: Callable[[], dict[int, Path]], bits: int | None) -> None:
    sites: dict[int, Path] = {}

    def show(line: GeneratedImage, files: Files) -> Shown:
        if not sites:  # of few shards anything is shown
            sites.update(goods())
        good = sites[line.number]
        mask, region = decode_mask(files.mask, line.good), decode_mask(files.box_mask, line.good)
        image = decode_image(files.image, line.good)
        return Shown(good.name, read_image(good, bits), image, mask, region)

    for line, files in archive.drawings():
        writer.add(line, files, partial(show, line, files))


def _goods(folder: Path, plan: Plan, task: Task) -> dict[int, Path]:
    return {record.number: Path(record.good) for record in read_records(folder, plan, task)}

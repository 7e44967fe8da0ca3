"""Cells of an accuracy table: one method on one category with one seed, run as `flawscope pipeline` in a process.

A process of its own for each, so that one that is killed for its memory ends no other, peaks of memory are its own, and
every figure has the command line that made it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from flawscope.calibration.evaluation.figures import Figures
from flawscope.calibration.evaluation.intervals import Interval
from flawscope.datasets import list_categories
from flawscope.datasets.defects.file_names import check_name
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, storage_errors, write_bytes
from flawscope.open_files import RECORD_BYTES, read_regular
from flawscope.text import NOT_JSON, encode_json
from flawscope.unfinished import find_unfinished

FIGURES = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC", "pixel_ap": "pixel AP", "aupro": "AU-PRO"}
"""Key of a figure -> what tables call it."""
RESULT = "result.json"
LOG = "log.txt"
CELLS = "cells"
_LOCK = ".lock"
_MEGABYTE_OF_KIB = 1024
_REPORTING = ("FLAWSCOPE_QUIET", "FLAWSCOPE_LOG_FORMAT")


class Cell(msgspec.Struct, frozen=True):
    """One entry of the tables.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category.
        method: Name of the method.
        seed: Seed of the training.
        folder: Folder of the run, bundle and result of the cell.
        arguments: Arguments of `flawscope` that make it, without --out.
    """

    dataset: str
    category: str
    method: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command line, as a shell takes it."""
        return shlex.join(["flawscope", *self.arguments])

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"{self.dataset}/{self.category} {self.method} seed {self.seed}"


class CellResult(msgspec.Struct, frozen=True, kw_only=True):
    """What a cell measured, or why it did not.

    Attributes:
        dataset: Name of the dataset.
        category: Name of the category.
        method: Name of the method.
        seed: Seed of the training.
        command: Command line that made it, without --out.
        error: Last message of the process where it failed; None otherwise.
        figures: Figure -> value; None where it is undefined, as pixel figures without masks.
        intervals: Figure -> 95 % bootstrap interval over the test images.
        images: Test images.
        anomalous: Anomalous ones among them.
        faults: Test images that could not be scored.
        latency_ms: Median milliseconds from file to decision of one image; None where no image was scored.
        seconds: Seconds of the whole process: training, export, thresholds and evaluation.
        peak_mb: Largest resident memory of the process in MB (2**20 bytes).
        backend: Backend, path and precision that scored.
        when: UTC time of the evaluation; empty for a failure.
        versions: Package versions.
    """

    dataset: str
    category: str
    method: str
    seed: int
    command: str
    error: str | None = None
    figures: dict[str, float | None] = {}
    intervals: dict[str, Interval] = {}
    images: int = 0
    anomalous: int = 0
    faults: int = 0
    latency_ms: float | None = None
    seconds: float = 0.0
    peak_mb: float = 0.0
    backend: str = ""
    when: str = ""
    versions: dict[str, str] = {}


def plan_cells(
    out: Path,
    datasets: Mapping[str, Path],
    categories: Sequence[str],
    methods: Sequence[str],
    seeds: Sequence[int],
    options: Mapping[str, Sequence[str]],
) -> list[Cell]:
    """Return the cells in the order of the tables: by dataset, category, method and seed.

    Args:
        out: Folder of the results.
        datasets: Name -> folder.
        categories: The only categories that are taken; empty for all.
        methods: Names of methods.
        seeds: Seeds.
        options: Method -> further arguments of `flawscope pipeline METHOD`.

    Raises:
        DataError: If a dataset cannot be read, or a category cannot be the name of a folder.
        ArgumentError: If a category is in none of the datasets.
    """
    cells = []
    missing = set(categories)
    for name, root in datasets.items():
        below = list_categories(root)
        chosen = [category for category in below if not categories or category in categories]
        missing -= set(chosen)
        # A root that is a category itself, or holds images alone, has one cell a method.
        # The category is a folder below `out`: a table may call it anything.
        places = (
            [(check_name(category, f"{root}: category"), ["--category", category]) for category in chosen]
            if below
            else [(name, [])]
        )
        for category, named in places:
            for method in methods:
                for seed in seeds:
                    folder = out / CELLS / name / category / f"{method}-seed{seed}"
                    arguments = ("pipeline", method, "--data", str(root), *named, "--seed", str(seed), *options[method])
                    cells.append(Cell(name, category, method, seed, folder, arguments))
    if missing:
        raise ArgumentError(
            f"--category: expected categories of {', '.join(str(root) for root in datasets.values())}, got "
            f"{', '.join(sorted(missing))}. flawscope data inspect lists them."
        )
    return cells


def read_result(cell: Cell) -> CellResult | None:
    """Return what an earlier benchmark measured for a cell, or None if it was not finished or failed.

    Raises:
        ArgumentError: If it was measured by another command.
        DataError: If its file is broken.
    """
    path = cell.folder / RESULT
    if not path.is_file():
        return None
    try:
        result = msgspec.json.decode(read_regular(path, RECORD_BYTES), type=CellResult)
    except (OSError, *NOT_JSON) as err:
        raise DataError(
            f"{path}: expected the result of a benchmark, got: {err}. Remove it; --resume measures it anew."
        ) from err
    if result.command != cell.command:
        raise ArgumentError(
            f"{path}: expected a result of: {cell.command}; got one of: {result.command}. Name another --out, or "
            "--overwrite to measure all anew."
        )
    return result if result.error is None else None


@contextlib.contextmanager
def alone_in(out: Path) -> Iterator[int]:
    """Yield the descriptor of a lock on the folder of a benchmark, which the processes of its cells hold too.

    So that of a benchmark that was killed counts as at work there until it has ended.

    Raises:
        ArgumentError: If another benchmark is at work there.
        StorageError: If the folder cannot be made.
    """
    with storage_errors(out):
        (out / CELLS).mkdir(parents=True, exist_ok=True)
        file = (out / CELLS / _LOCK).open("ab")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as err:
            raise ArgumentError(
                f"{out}: expected no other benchmark at work there, got one, or a cell of one that was killed. Wait "
                "for its end, or name another --out."
            ) from err
        yield file.fileno()


def run_cell(cell: Cell, *, keeps: bool, lock: int) -> CellResult:
    """Run one cell in a process and write its result; a training that was interrupted there goes on.

    Args:
        cell: The cell.
        keeps: Whether run, bundle and report stay; else only the result and the log do.
        lock: Descriptor that its process inherits; see `alone_in`.

    Raises:
        ArgumentError: If its folder holds something else.
        KeyboardInterrupt: If the user interrupts it; the process has ended then, and its checkpoints stay.
    """
    work, log, path = cell.folder / "work", cell.folder / LOG, cell.folder / "work" / "evaluation.json"
    check_replaceable(cell.folder, LOG, overwrite=True)
    with storage_errors(cell.folder):
        cell.folder.mkdir(parents=True, exist_ok=True)
        # What is there when the process has ended is of that process.
        path.unlink(missing_ok=True)
    # Methods that are fitted in one pass have nothing to go on with, and refuse to.
    goes_on = ["--resume", "latest"] if find_unfinished(work / "run") else ["--overwrite"]
    command = [sys.executable, "-m", "flawscope", *cell.arguments, "--out", str(work), *goes_on]
    started = time.perf_counter()
    status, peak_kib = _run(command, log, lock)
    seconds, peak_mb = time.perf_counter() - started, peak_kib / _MEGABYTE_OF_KIB
    base = CellResult(
        dataset=cell.dataset,
        category=cell.category,
        method=cell.method,
        seed=cell.seed,
        command=cell.command,
        seconds=round(seconds, 2),
        peak_mb=round(peak_mb, 1),
    )
    # 1: a test image could not be scored, which the figures count.
    if status in (0, 1) and path.is_file():
        result = _with_figures(base, msgspec.json.decode(read_regular(path, RECORD_BYTES), type=Figures))
    else:
        result = msgspec.structs.replace(base, error=_why(status, log))
    write_bytes(cell.folder / RESULT, msgspec.json.format(encode_json(result), indent=1) + b"\n")
    if not keeps and result.error is None:
        shutil.rmtree(work)
    return result


def forget(cell: Cell) -> None:
    """Remove what an earlier benchmark left of a cell, an interrupted training included.

    Raises:
        ArgumentError: If its folder holds something else.
    """
    check_replaceable(cell.folder, LOG, overwrite=True)
    if cell.folder.is_dir():
        shutil.rmtree(cell.folder)


def _run(command: list[str], log: Path, lock: int) -> tuple[int, int]:
    """Run a process, its output in a file; return its exit status, negative for a signal, and peak memory in KiB."""
    # The log is for people, and its last error is read: how this command reports is not how that one does.
    environment = {key: value for key, value in os.environ.items() if key not in _REPORTING}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command,
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=environment,
            pass_fds=(lock,),
        )
        try:
            # wait4 gives the peak of this child; RUSAGE_CHILDREN has the largest of all children that ended before.
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            # Ctrl-C reaches it too, from the terminal; SIGTERM to us alone does not.
            if process.poll() is None:
                process.terminate()
                process.wait()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss


def _why(status: int, log: Path) -> str:
    lines = read_regular(log, RECORD_BYTES).decode("utf-8", errors="replace").splitlines()
    if status < 0:
        name = signal.Signals(-status).name
        hint = " (the system ends processes so when memory is short)" if name == "SIGKILL" else ""
        return f"ended by {name}{hint}; see {log}"
    told = next((line for line in reversed(lines) if line.startswith("error: ")), None)
    if told is not None:
        return told.removeprefix("error: ")
    if status == 0:
        skipped = next((line for line in reversed(lines) if line.startswith("evaluation") and "skipped" in line), "")
        return " ".join(skipped.split()) or f"the evaluation left no figures; see {log}"
    return f"ended with status {status}; see {log}"


def _with_figures(base: CellResult, figures: Figures) -> CellResult:
    return msgspec.structs.replace(
        base,
        figures={key: getattr(figures, key) for key in FIGURES},
        intervals={key: figures.intervals[key] for key in FIGURES if key in figures.intervals},
        images=figures.images,
        anomalous=figures.anomalous,
        faults=len(figures.faults),
        latency_ms=None if figures.latency_ms is None else figures.latency_ms.p50,
        backend=f"{figures.backend} ({figures.path}, {figures.precision})",
        when=figures.when,
        versions=figures.versions,
    )

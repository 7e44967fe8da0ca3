"""The stages of `tools/gpu_check.py` without a GPU: through the kernels in emulation and stand-ins."""

from __future__ import annotations

import ctypes
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gpu_stage_kernels import Liar, add_one, built_kernels
from gpu_stages import correctness, other_kernels, sanitizer, small_run, timing
from gpu_stages.card import Card, CudaError, HostCard
from gpu_stages.driver import SIGNATURES, Driver
from gpu_stages.here import program, toolkit
from gpu_stages.kernels import slack
from gpu_stages.report import Absent, Report
from project_paths import ROOT

from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.errors import ArgumentError, DeviceError

pytestmark = pytest.mark.long

HEADER = (toolkit() or Path("/nowhere")) / "include" / "cuda.h"


@pytest.fixture
def report(tmp_path: Path) -> Report:
    return Report(tmp_path / "result.json", 600, tmp_path)


@pytest.fixture
def kernels(tmp_path_factory: pytest.TempPathFactory, tmp_path: Path) -> CudaKernels:
    """The kernels in emulation; their library lies where the build stage would have put it."""
    return built_kernels(tmp_path_factory, tmp_path)


# --- correctness


def test_sound_kernels_pass_every_check(kernels: CudaKernels, report: Report) -> None:
    correctness.on_cpu(report)
    assert report.failures == []
    assert report.checks > 60
    assert {row["name"] for row in report.figures("parts")} == {check.__name__ for check in correctness.CHECKS}
    assert all(row["recall_at_1"] == 1 for row in report.figures("floats"))


@pytest.mark.parametrize(
    ("check", "name", "change"),
    [
        (correctness.check_floats, "nearest", add_one("found", ctypes.c_int64)),
        (correctness.check_floats, "nearest", add_one("squared", ctypes.c_float)),
        (correctness.check_edges, "nearest", add_one("found", ctypes.c_int64)),
        (correctness.check_scales, "nearest", add_one("found", ctypes.c_int64)),
        (correctness.check_ties, "nearest", add_one("squared", ctypes.c_float)),
        (correctness.check_not_finite, "nearest", add_one("found", ctypes.c_int64)),
        (other_kernels.check_gaussians, "mahalanobis_triangles", add_one("squared", ctypes.c_float)),
        (other_kernels.check_windows, "windows_nearest", add_one("found", ctypes.c_int64)),
        (other_kernels.check_diffusion, "diffusion_step", add_one("x", ctypes.c_float)),
        (other_kernels.check_centres, "kcenter_greedy", add_one("chosen", ctypes.c_int64)),
    ],
)
def test_a_wrong_result_is_found(
    kernels: CudaKernels, report: Report, check: Any, name: str, change: Callable[[dict[str, Any]], None]
) -> None:
    check(correctness.Bench(report, HostCard(), Liar(kernels, name, change), np.random.default_rng(0)))
    assert report.failures != []


def test_results_that_change_from_run_to_run_are_found(kernels: CudaKernels, report: Report) -> None:
    calls = iter(range(1000))

    def change(arguments: dict[str, Any]) -> None:
        ctypes.c_float.from_address(arguments["squared"]).value += next(calls)

    liar = Liar(kernels, "nearest", change)
    correctness.check_repeats(correctness.Bench(report, HostCard(), liar, np.random.default_rng(0)))
    assert "two runs, k 1" in report.failures


def test_the_small_run_of_the_tools_runs_and_says_so(
    kernels: CudaKernels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small_run.main([str(tmp_path)], on_gpu=False) == 0
    assert sanitizer.WHOLE in capsys.readouterr().out
    assert small_run.main([str(tmp_path), "9", "40", "5", "2"], on_gpu=False) == 0


def test_an_error_of_one_check_is_recorded_and_the_next_goes_on(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: Any) -> None:
        raise DeviceError("CUDA kernels: nearest: the launch failed")

    monkeypatch.setattr(correctness, "CHECKS", (breaks, correctness.check_scales))
    correctness.on_cpu(report)
    assert report.failures == ["breaks: CUDA kernels: nearest: the launch failed"]
    assert report.checks == 6


def test_nothing_more_is_asked_of_a_device_that_is_lost(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(bench: Any) -> None:
        raise CudaError("cuStreamSynchronize failed with CUDA error 700 (ILLEGAL_ADDRESS)", 700)

    def wait(self: HostCard) -> None:
        raise CudaError("the same again", 700)

    monkeypatch.setattr(correctness, "CHECKS", (breaks, correctness.check_scales))
    monkeypatch.setattr(HostCard, "wait", wait)
    correctness.on_cpu(report)
    assert report.checks == len(report.failures) == 1


def test_times_of_every_kernel_are_kept_with_what_they_mean(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timing, "open_card", lambda *_, **__: (HostCard(), kernels))
    monkeypatch.setattr(timing, "shapes", lambda: iter([(9, 40, 5, 1), (1 << 20, 1 << 20, 1, 1), (5, 30, 8, 2)]))
    monkeypatch.setattr(timing, "GAUSSIANS", ((3, 5, 2),))
    monkeypatch.setattr(timing, "CENTRES", (70, 4, 3))
    monkeypatch.setattr(timing, "TURNS", 5)
    timing.on_card(report)
    searches = report.figures("search")
    assert [(row["n"], row["m"], row["d"], row["k"]) for row in searches] == [(9, 40, 5, 1), (5, 30, 8, 2)]
    for row in searches:
        assert row["tflops"] == pytest.approx(2e-9 * row["n"] * row["m"] * row["d"] / row["whole"]["median_ms"])
        assert row["pack_ms"] > 0
    factors = [row["gb_per_s"] * row["median_ms"] * 1e6 for row in report.figures("mahalanobis")]
    assert factors == [pytest.approx(3 * 15 * 4), pytest.approx(3 * 15 * 2)]
    (centres,) = report.figures("kcenter")
    assert centres["gb_per_s"] * centres["median_ms"] * 1e6 == pytest.approx(3 * 70 * 4 * 4)
    found = json.loads((report.work / "result.json").read_text())
    assert "search 1048576 x 1048576 x 1 x 1: not enough memory is free" in found["left_out"]


def test_without_what_the_build_leaves_a_stage_is_absent(report: Report) -> None:
    with pytest.raises(Absent, match="the stage build has left no emulation here"):
        correctness.on_cpu(report)
    with pytest.raises(Absent, match="the stage build has left no kernels for Python here"):
        correctness.on_card(report)


def test_the_checks_on_a_card_give_twins_to_every_function_that_takes_arrays() -> None:
    header = (ROOT / "cpp_ext" / "include" / "flawscope" / "patch_distance.h").read_text(encoding="utf-8")
    declared = re.findall(r"FLAWSCOPE_API int (flawscope_cuda_\w+)\(([^;]*)\);", header)
    with_arrays = {name for name, arguments in declared if "void* stream" in arguments}
    given = (ROOT / "tests" / "cpp_ext" / "cuda_on_card.h").read_text(encoding="utf-8")
    assert with_arrays == set(re.findall(r"#define (flawscope_cuda_\w+)\(\.\.\.\)", given))


# --- the driver


@pytest.mark.skipif(not HEADER.is_file(), reason="no CUDA toolkit with cuda.h")
@pytest.mark.parametrize("name", SIGNATURES)
def test_arguments_are_those_that_cuda_h_declares(name: str) -> None:
    text = HEADER.read_text(encoding="utf-8")
    plain = "cuGraphInstantiate" if name == "cuGraphInstantiateWithFlags" else name.removesuffix("_v2")
    if name != plain:
        assert re.search(rf"#define {plain}\s+(__CUDA_API_PTSZ\()?{name}\b", text), "another version is the current one"
    declared = re.search(rf"CUresult CUDAAPI {plain}\(([^;]*)\);", text)
    assert declared is not None
    arguments = [part.strip() for part in declared[1].split(",") if part.strip() != "void"]
    assert [kind_of(argument) for argument in arguments] == [kind_of_ctypes(kind) for kind in SIGNATURES[name]]


def kind_of(argument: str) -> str:
    words = argument.replace("*", " * ").replace("const ", "").split()
    stars, words = words.count("*"), [word for word in words if word != "*"][:-1]
    kind = " ".join(words)
    sizes = {"CUdeviceptr": "8", "size_t": "8", "unsigned long long": "8", "unsigned char": "1", "float": "float"}
    sizes |= dict.fromkeys(("CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec", "void"), "handle")
    if stars and kind in ("char", "void"):
        return {"char": "text", "void": "handle"}[kind] if stars == 1 else "pointer to text"
    return ("pointer to " if stars else "") + sizes.get(kind, "4")


def kind_of_ctypes(kind: Any) -> str:
    if hasattr(kind, "contents"):
        return "pointer to " + kind_of_ctypes(kind._type_)
    named = {ctypes.c_char_p: "text", ctypes.c_void_p: "handle", ctypes.c_float: "float"}
    return named.get(kind, str(ctypes.sizeof(kind)))


class HostLibrary:
    """A driver in host memory, by the names of the C interface; a stream records while it is captured."""

    def __init__(self) -> None:
        self.memory: dict[int, Any] = {}
        self.recording: list[Callable[[], object]] | None = None
        self.graphs: dict[int, list[Callable[[], object]]] = {}
        self.streams = 0
        self.fail: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        if name not in SIGNATURES:
            raise AttributeError(name)

        def function(*arguments: Any) -> int:
            assert len(arguments) == len(SIGNATURES[name])
            if name in self.fail:
                return self.fail[name]
            handler = getattr(type(self), f"_{name}", None)
            if handler is not None:
                handler(self, *arguments)
            return 0

        self.__dict__[name] = function
        return function

    def _cuMemGetInfo_v2(self, free: Any, whole: Any) -> None:
        free._obj.value = whole._obj.value = 1 << 30

    def _put(self, work: Callable[[], object]) -> None:
        work() if self.recording is None else self.recording.append(work)

    def _cuMemAlloc_v2(self, out: Any, size: int) -> None:
        buffer = ctypes.create_string_buffer(size)
        out._obj.value = ctypes.addressof(buffer)
        self.memory[out._obj.value] = buffer

    def _cuMemFree_v2(self, address: int) -> None:
        del self.memory[address]

    def _cuMemcpyHtoDAsync_v2(self, target: int, source: int, size: int, stream: int) -> None:
        self._put(lambda: ctypes.memmove(target, source, size))

    _cuMemcpyDtoHAsync_v2 = _cuMemcpyDtoDAsync_v2 = _cuMemcpyHtoDAsync_v2

    def _cuMemsetD8Async(self, target: int, byte: int, size: int, stream: int) -> None:
        self._put(lambda: ctypes.memset(target, byte, size))

    def _cuStreamCreate(self, out: Any, flags: int) -> None:
        assert flags == 1, "a stream that waits for the default one"
        out._obj.value, self.streams = 77, self.streams + 1

    def _cuStreamDestroy_v2(self, stream: int) -> None:
        self.streams -= 1

    def _cuStreamBeginCapture_v2(self, stream: int, mode: int) -> None:
        assert (stream, mode) == (77, 1)
        self.recording = []

    def _cuStreamEndCapture(self, stream: int, out: Any) -> None:
        out._obj.value = 1000 + len(self.graphs)
        self.graphs[out._obj.value], self.recording = self.recording or [], None

    def _cuGraphInstantiateWithFlags(self, out: Any, graph: Any, flags: int) -> None:
        out._obj.value = graph.value

    def _cuGraphExecDestroy(self, executable: int) -> None:
        del self.graphs[executable]

    def _cuGraphLaunch(self, executable: int, stream: int) -> None:
        for work in self.graphs[executable]:
            work()

    def _cuEventElapsedTime(self, out: Any, begin: object, end: object) -> None:
        out._obj.value = 1.5

    def _cuGetErrorName(self, status: int, out: Any) -> None:
        out._obj.value = b"CUDA_ERROR_OUT_OF_MEMORY"


def test_a_card_copies_captures_and_gives_everything_back() -> None:
    library = HostLibrary()
    card = Card(driver=Driver(library))
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    source, target = card.allocate(array.nbytes), card.allocate(array.nbytes)
    card.copy_in(source, array)
    graph = card.capture(lambda: card.copy(target, source, array.nbytes))
    card.fill(target, 0, array.nbytes)
    np.testing.assert_array_equal(card.fetch(target, (4, 6), np.float32), 0)
    graph()
    np.testing.assert_array_equal(card.fetch(target, (4, 6), np.float32), array)
    assert card.milliseconds(graph) == 1.5
    card.close()
    assert (library.memory, library.graphs, library.streams) == ({}, {}, 0)


def test_what_needs_a_card_in_the_checks_finds_what_is_sound_and_what_is_not(
    kernels: CudaKernels, report: Report, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(correctness, "LARGE", (1000, 8))
    monkeypatch.setattr(correctness, "BLOCK", 150)
    for check in (correctness.check_large, correctness.check_other_streams):
        # The emulation takes no stream but 0, and works at once: the driver of host memory has nothing to wait for.
        for wrong in (False, True):
            liar = Liar(kernels, "nearest", add_one("found", ctypes.c_int64) if wrong else lambda arguments: None)
            card = Card(driver=Driver(HostLibrary()))
            before = len(report.failures)
            check(correctness.Bench(report, card, liar, np.random.default_rng(0)))
            card.close()
            # Two equal lies agree with each other: the streams are compared with each other alone.
            assert (len(report.failures) > before) == (wrong and check is correctness.check_large), report.failures
    assert report.checks == 4


@pytest.mark.parametrize("reads", [True, False])
def test_memory_of_the_host_that_a_device_cannot_read_must_be_refused(
    kernels: CudaKernels, report: Report, reads: bool
) -> None:
    class Library(HostLibrary):
        def _cuDeviceGetAttribute(self, out: Any, which: int, device: int) -> None:
            out._obj.value = int(reads and which == 88)

    def run(kernels: Any) -> list[str]:
        before = len(report.failures)
        card = Card(driver=Driver(Library()))
        correctness.check_host_memory(correctness.Bench(report, card, kernels, np.random.default_rng(0)))
        card.close()
        return report.failures[before:]

    # The emulation takes all memory for the device's.
    assert run(kernels) == ([] if reads else ["memory of the host was not refused"])
    calls = iter(range(9))

    def refuse_second(arguments: dict[str, Any]) -> None:
        if next(calls) == 1:
            raise ArgumentError("an array is on another device")

    found = run(Liar(kernels, "nearest", refuse_second))
    assert [text.partition(":")[0] for text in found] == ["memory of the host, on a device that reads it"] * reads


def test_a_refusal_of_the_driver_has_its_name_and_ends_a_capture() -> None:
    library = HostLibrary()
    card = Card(driver=Driver(library))
    library.fail = {"cuMemAlloc_v2": 2}
    with pytest.raises(CudaError, match=r"^cuMemAlloc_v2 failed with CUDA error 2 \(OUT_OF_MEMORY\)$") as caught:
        card.capture(lambda: card.allocate(8))
    assert caught.value.code == 2
    assert library.recording is None


# --- times


def test_what_tells_most_is_measured_first_and_nothing_twice() -> None:
    found = list(timing.shapes())
    assert found[: len(timing.FIRST)] == list(timing.FIRST)
    assert len(set(found)) == len(found) >= 96
    rest = [n * m * d for n, m, d, _ in found[len(timing.FIRST) :]]
    assert rest == sorted(rest)


def test_a_median_is_that_of_calls_made_in_turn() -> None:
    made: list[int] = []
    calls = [lambda number=number: made.append(number) for number in range(3)]
    lengths = iter([0.0] * 3 + [float(x) for x in range(1, 31)])

    def measure(call: Callable[[], object]) -> float:
        call()
        return next(lengths)

    found = timing.replayed(measure, calls)  # type: ignore[arg-type]
    assert (found["median_ms"], found["turns"]) == (15.5, 30)
    assert made == [0, 1, 2] * 11


def test_the_bound_is_that_of_what_is_left_without_the_mean() -> None:
    rng = np.random.default_rng(0)
    rows, queries = (rng.integers(-4, 5, (size, 24)).astype(np.float32) for size in (400, 30))
    near, far = slack(queries, rows), slack(queries + 1024, rows + 1024)
    np.testing.assert_array_less(near, 0.2)
    np.testing.assert_allclose(far, near, rtol=0.05)  # the mean is rounded differently there


# --- whole


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulation with")
def test_on_this_machine_every_stage_ends_well_on_the_cpu_or_absent(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    command = [sys.executable, "tools/gpu_check.py", "--twins", "--out", out, "--work", tmp_path / "work"]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    stages = json.loads(out.read_text())["stages"]
    states = {name: (entry["state"], entry.get("on")) for name, entry in stages.items()}
    twins = {name: state for name, state in states.items() if state[0] != "absent"}
    assert set(twins.values()) == {("passed", "cpu twin")}
    assert [name for name in twins if name not in ("device", "drawing")] == [
        "facts",
        "build",
        "checks",
        "correctness",
        "kernels",
    ]
    assert all(stages[name]["reason"] for name in states.keys() - twins.keys())


@pytest.mark.slow
@pytest.mark.skipif("FLAWSCOPE_SANITIZED" in os.environ, reason="nvcc does not run under AddressSanitizer")
@pytest.mark.skipif(program("nvcc") is None or program("cmake") is None, reason="no nvcc and cmake to compile with")
def test_the_checks_compile_for_a_card(tmp_path: Path) -> None:
    options = ["-DFLAWSCOPE_CUDA=ON", "-DFLAWSCOPE_CUDA_CHECKS=ON", "-DFLAWSCOPE_PYTHON=OFF"]
    options += ["-DCMAKE_CUDA_ARCHITECTURES=80", f"-DCMAKE_CUDA_COMPILER={program('nvcc')}"]
    for command in (["-S", ROOT / "cpp_ext", "-B", tmp_path, *options], ["--build", tmp_path, "--parallel", 2]):
        parts = [str(part) for part in (program("cmake"), *command)]
        done = subprocess.run(parts, capture_output=True, text=True, timeout=1200)
        assert done.returncode == 0, done.stdout + done.stderr
    programs = {path.name for path in tmp_path.glob("card_cuda_emulated*")}
    assert programs == {f"card_{path.stem}" for path in (ROOT / "tests" / "cpp_ext").glob("cuda_emulated*.cpp")}

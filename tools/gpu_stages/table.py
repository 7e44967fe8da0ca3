"""Which stages there are, in the order in which they tell most; --minutes leaves out the last ones."""

from __future__ import annotations

from typing import NamedTuple


class Stage(NamedTuple):
    """A row of the table.

    Attributes:
        name: What --stage names it.
        does: A line for people.
        place: `MODULE:FUNCTION`, which takes a `Report`.
        limit_s: Seconds after which it is stopped.
        least_s: Fewer seconds than these are not worth a start.
        needs: What it cannot do without, by the names of `here`; the first that is missing is the reason. A twin needs
            those of `TWINS_NEED` that are among them.
        twin: The same on a CPU, or None where there is nothing to be learned.
        twin_limit_s: Seconds of the twin.
    """

    name: str
    does: str
    place: str
    limit_s: int
    least_s: int
    needs: tuple[str, ...]
    twin: str | None = None
    twin_limit_s: int = 60


TWINS_NEED = ("numpy",)

STAGES = (
    Stage(
        "facts",
        "driver, GPU, clocks, versions; copy bandwidth, and the rate of a float16 product in torch",
        "gpu_stages.facts:on_card",
        40,
        5,
        ("driver", "numpy"),
        "gpu_stages.facts:on_cpu",
    ),
    Stage(
        "build",
        "the kernels for this GPU and the programs that check them; on a CPU the emulation",
        "gpu_stages.build:on_card",
        180,
        30,
        ("driver", "nvcc", "cmake", "ninja"),
        "gpu_stages.build:on_cpu",
        100,
    ),
    Stage(
        "checks",
        "the checks of tests/cpp_ext/cuda_emulated*.cpp, with guard zones around every array",
        "gpu_stages.checks:on_card",
        120,
        5,
        ("driver", "nvcc"),
        "gpu_stages.checks:on_cpu",
        100,
    ),
    Stage(
        "correctness",
        "every kernel against float64: edges, ties, scales, NaN, graphs cold and warm, streams, large banks",
        "gpu_stages.correctness:on_card",
        90,
        10,
        ("driver", "nvcc", "numpy"),
        "gpu_stages.correctness:on_cpu",
    ),
    Stage(
        "kernels",
        "times of graph replays beside torch, and bytes beside the copy bandwidth; on a CPU the CPU's kernels",
        "gpu_stages.timing:on_card",
        240,
        20,
        ("driver", "nvcc", "numpy"),
        "gpu_stages.timing:on_cpu",
    ),
    Stage(
        "pycuda",
        "PyCUDA: compiled where --wheels has its source, imported, and a kernel of its own compiled and run",
        "gpu_stages.pycuda_stage:on_card",
        240,
        20,
        ("driver", "pycuda"),
    ),
    Stage(
        "device",
        "sessions on the device with a stand-in for the engine: every batch size, threads, failures",
        "gpu_stages.device_stage:on_card",
        90,
        15,
        ("driver", "nvcc", "numpy", "pycuda", "cuda-bindings"),
        "gpu_stages.device_stage:on_cpu",
    ),
    Stage(
        "drawing",
        "the sampling loop on the device with stand-ins for its engines: each step, graphs, memory",
        "gpu_stages.drawing_stage:on_card",
        60,
        15,
        ("driver", "nvcc", "numpy", "pycuda", "cuda-bindings"),
        "gpu_stages.drawing_stage:on_cpu",
    ),
    Stage(
        "tests",
        "the tests that need a GPU (`pytest -m gpu`)",
        "gpu_stages.checks:marked_tests",
        120,
        15,
        ("driver", "nvcc", "numpy", "pytest"),
    ),
    Stage(
        "sanitizer",
        "compute-sanitizer's memcheck, racecheck, synccheck and initcheck on small sizes",
        "gpu_stages.sanitizer:on_card",
        120,
        30,
        ("driver", "nvcc", "numpy", "compute-sanitizer"),
    ),
    Stage(
        "ncu",
        "Nsight Compute on two shapes: tensor cores, caches, conflicts of banks, stalls",
        "gpu_stages.ncu:on_card",
        90,
        20,
        ("driver", "nvcc", "numpy", "ncu"),
    ),
    Stage(
        "onnxruntime",
        "a bundle on the backend cuda: golden scores, doctor, bench",
        "gpu_stages.bundles:onnxruntime",
        300,
        30,
        ("driver", "onnxruntime-gpu", "flawscope"),
    ),
    Stage(
        "tensorrt",
        "a bundle on the backend tensorrt: engine, golden scores, doctor, bench",
        "gpu_stages.bundles:tensorrt",
        900,
        60,
        ("driver", "tensorrt", "pycuda", "cuda-bindings", "flawscope"),
    ),
)


def stage_named(name: str) -> Stage:
    """Return a row by its name; KeyError where there is none."""
    return {stage.name: stage for stage in STAGES}[name]

"""Write docs/support-matrix.md: what runs where, how that was tested, and the reason for each no.

    python tools/support_matrix.py [--check]

The names come from the code (backends, precisions, runtimes, methods, CUDA architectures), the statuses from the
tables below. A name without a status, or a status without a name, is an error: nothing is supported by omission. With
--check nothing is written, and the exit status is 1 if the page is out of date.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import click
from cuda_resources import ARCHITECTURES

from flawscope import methods
from flawscope.bundle import PRECISIONS
from flawscope.export.export_command import export
from flawscope.files import write_text
from flawscope.runtime.backends.table import ROWS
from flawscope.runtime.engines import RUNTIMES
from flawscope.runtime.line.outputs.table import OUTPUTS
from flawscope.runtime.line.sinks.table import SINKS
from flawscope.runtime.line.sources.table import SOURCES

PAGE = Path(__file__).resolve().parent.parent / "docs" / "support-matrix.md"

TESTED = "yes, tested"
STAND_IN = "written, not run"
COMPILED = "compiled, not run"
NO = "no"

NO_GPU = "no GPU was at hand"
LOOP = " with `tensorrt` and the CUDA kernels on the device: written, not run"
NEEDS_MODELOPT = "made by ModelOpt in an environment of its own"
STOOD_IN = "PyCUDA, driver and TensorRT by stand-ins, the CUDA kernels in emulation; no GPU was at hand"
NOT_ROUNDED = "the graph is that of FP32, which it would compute in FP32"
SERVED = "its client against a stand-in of the KServe v2 protocol; no server was at hand"
NO_DEVICE = "the session of the CPU with another name of the device; none was at hand"
BACKEND_STATUS = {
    ("cpu", "fp32"): (TESTED, "ONNX Runtime and native kernels"),
    ("cpu", "fp16"): (TESTED, f"gated at export, {NEEDS_MODELOPT}; on a CPU slower than FP32"),
    ("cpu", "bf16"): (NO, "ONNX Runtime computes no BF16 on a CPU"),
    ("cpu", "int8"): (TESTED, "gated at export; on the processors measured so far slower than FP32"),
    ("cuda", "fp32"): (
        STAND_IN,
        f"ONNX Runtime with I/O binding, checked on its CPU provider; the bank beside it by stand-ins; {NO_GPU}",
    ),
    ("cuda", "fp16"): (STAND_IN, f"the same session with the other graph; {NO_GPU}"),
    ("cuda", "bf16"): (NO, NOT_ROUNDED),
    ("cuda", "int8"): (STAND_IN, f"the same session with the other graph; {NO_GPU}"),
    ("tensorrt", "fp32"): (STAND_IN, STOOD_IN),
    ("tensorrt", "fp16"): (STAND_IN, STOOD_IN),
    ("tensorrt", "bf16"): (NO, NOT_ROUNDED),
    ("tensorrt", "int8"): (STAND_IN, STOOD_IN),
    ("openvino", "fp32"): (TESTED, "OpenVINO on the CPU and native kernels"),
    ("openvino", "fp16"): (NO, "refused where the processor does not compute in FP16; none that does was at hand"),
    ("openvino", "bf16"): (TESTED, "gated at export, on CPUs with AVX-512 BF16 or AMX; refused on others"),
    ("openvino", "int8"): (
        TESTED,
        "where the golden images agree: OpenVINO 2026.4 computes some graphs wrong",
    ),
    ("openvino:gpu", "fp32"): (STAND_IN, NO_DEVICE),
    ("openvino:gpu", "fp16"): (STAND_IN, NO_DEVICE),
    ("openvino:gpu", "bf16"): (NO, NOT_ROUNDED),
    ("openvino:gpu", "int8"): (STAND_IN, NO_DEVICE),
    ("openvino:npu", "fp32"): (STAND_IN, NO_DEVICE),
    ("openvino:npu", "fp16"): (STAND_IN, NO_DEVICE),
    ("openvino:npu", "bf16"): (NO, NOT_ROUNDED),
    ("openvino:npu", "int8"): (STAND_IN, NO_DEVICE),
    ("triton", "fp32"): (STAND_IN, SERVED),
    ("triton", "fp16"): (STAND_IN, SERVED),
    ("triton", "bf16"): (NO, NOT_ROUNDED),
    ("triton", "int8"): (STAND_IN, SERVED),
}
ENGINE_STATUS = {
    ("tensorrt", "fp32"): (STAND_IN, "the module cannot be installed where the tests run"),
    ("tensorrt", "fp16"): (STAND_IN, "the module cannot be installed where the tests run"),
    ("tensorrt", "bf16"): (NO, NOT_ROUNDED),
    ("tensorrt", "int8"): (STAND_IN, "the module cannot be installed where the tests run"),
    ("tensorrt-rtx", "fp32"): (TESTED, "built without a GPU; loading an engine needs one"),
    ("tensorrt-rtx", "fp16"): (TESTED, "built without a GPU; loading an engine needs one"),
    ("tensorrt-rtx", "bf16"): (NO, NOT_ROUNDED),
    ("tensorrt-rtx", "int8"): (TESTED, "built without a GPU; loading an engine needs one"),
}
RTX_STATUS = {
    "7.5": (TESTED, "built"),
    "8.0": (TESTED, "built"),
    "8.6": (TESTED, "built"),
    "8.7": (NO, "TensorRT-RTX 1.7 does not know it (Jetson Orin): take `tensorrt`"),
    "8.9": (TESTED, "built"),
    "9.0": (NO, "TensorRT-RTX 1.7 does not know it (H100, H200): take `tensorrt`"),
    "10.0": (NO, "TensorRT-RTX 1.7 does not know it (B200): take `tensorrt`"),
    "12.0": (TESTED, "built"),
}
LEVEL_STATUS = {
    "avx512amx": (TESTED, "Linux 5.16 or newer"),
    "avx512vnni": (TESTED, ""),
    "avx512": (TESTED, ""),
    "avx2": (TESTED, ""),
    "neon": (TESTED, "in emulation (qemu); speed unknown"),
    "scalar": (TESTED, "any processor with a C++17 compiler"),
}
METHOD_STATUS = {
    ("patchcore", "score graph"): (TESTED, ""),
    ("patchcore", "features and kernel"): (TESTED, ""),
    ("patchcore", "FP16"): (TESTED, ""),
    ("patchcore", "BF16"): (TESTED, "of the features; distances in FP32"),
    ("patchcore", "INT8"): (TESTED, ""),
    ("patchcore", "engine"): (TESTED, "FP32, FP16 and INT8 built by TensorRT-RTX"),
    ("patchcore", "Triton"): (STAND_IN, SERVED),
    ("padim", "score graph"): (TESTED, ""),
    ("padim", "features and kernel"): (TESTED, ""),
    ("padim", "FP16"): (TESTED, ""),
    ("padim", "BF16"): (TESTED, "of the features; distances in FP32"),
    ("padim", "INT8"): (TESTED, ""),
    ("padim", "engine"): (TESTED, "FP32, FP16 and INT8 built by TensorRT-RTX"),
    ("padim", "Triton"): (STAND_IN, SERVED),
    ("stfpm", "score graph"): (TESTED, ""),
    ("stfpm", "features and kernel"): (NO, "there are no patches and no bank"),
    ("stfpm", "FP16"): (TESTED, "of its networks; map and score in FP32"),
    ("stfpm", "BF16"): (TESTED, "the whole graph, except for what follows the last product"),
    ("stfpm", "INT8"): (TESTED, "of its networks; map and score in FP32"),
    ("stfpm", "engine"): (TESTED, "FP32 built by TensorRT-RTX"),
    ("stfpm", "Triton"): (STAND_IN, SERVED),
    ("segmenter", "score graph"): (TESTED, ""),
    ("segmenter", "features and kernel"): (NO, "there are no patches and no bank"),
    ("segmenter", "FP16"): (TESTED, "of its networks; map and score in FP32"),
    ("segmenter", "BF16"): (TESTED, "the whole graph, except for what follows the last product"),
    ("segmenter", "INT8"): (TESTED, "of its networks; map and score in FP32"),
    ("segmenter", "engine"): (TESTED, "FP32 and INT8 built by TensorRT-RTX"),
    ("segmenter", "Triton"): (STAND_IN, SERVED),
    ("draem", "score graph"): (TESTED, ""),
    ("draem", "features and kernel"): (NO, "there are no patches and no bank"),
    ("draem", "FP16"): (TESTED, "of its networks; map and score in FP32"),
    ("draem", "BF16"): (TESTED, "the whole graph, except for what follows the last product"),
    ("draem", "INT8"): (TESTED, "of its networks; map and score in FP32"),
    ("draem", "engine"): (TESTED, "FP32 built by TensorRT-RTX"),
    ("draem", "Triton"): (STAND_IN, SERVED),
    ("destseg", "score graph"): (TESTED, ""),
    ("destseg", "features and kernel"): (NO, "there are no patches and no bank"),
    ("destseg", "FP16"): (TESTED, "of its networks; map and score in FP32"),
    ("destseg", "BF16"): (TESTED, "the whole graph, except for what follows the last product"),
    ("destseg", "INT8"): (TESTED, "of its networks; map and score in FP32"),
    ("destseg", "engine"): (TESTED, "FP32 built by TensorRT-RTX"),
    ("destseg", "Triton"): (STAND_IN, SERVED),
    ("ddad", "score graph"): (NO, f"two graphs and a sampling loop on the host, tested;{LOOP}"),
    ("ddad", "features and kernel"): (NO, "there are no patches and no bank"),
    ("ddad", "FP16"): (TESTED, "of the denoiser"),
    ("ddad", "BF16"): (TESTED, "of every network"),
    ("ddad", "INT8"): (NO, "the denoiser is not quantised"),
    ("ddad", "engine"): (TESTED, "FP32, every network, built by TensorRT-RTX"),
    ("ddad", "Triton"): (NO, "its networks are called many times an image"),
    ("dsad", "score graph"): (
        NO,
        f"several graphs and a sampling loop on the host, tested: encode, denoise, decode and compare;{LOOP}",
    ),
    ("dsad", "features and kernel"): (NO, "there are no patches and no bank"),
    ("dsad", "FP16"): (TESTED, "of the denoiser, as for ddad"),
    ("dsad", "BF16"): (TESTED, "of every network"),
    ("dsad", "INT8"): (NO, "the denoiser is not quantised"),
    ("dsad", "engine"): (TESTED, "FP32, every network, built by TensorRT-RTX"),
    ("dsad", "Triton"): (NO, "its networks are called many times an image"),
    ("lafite", "score graph"): (
        NO,
        f"two graphs, a search of the bank and a sampling loop on the host, tested; the loop{LOOP}",
    ),
    ("lafite", "features and kernel"): (NO, "its one path takes the kernels for the editing"),
    ("lafite", "FP16"): (NO, "FP32 alone so far"),
    ("lafite", "BF16"): (STAND_IN, "of both graphs"),
    ("lafite", "INT8"): (NO, "FP32 alone so far"),
    ("lafite", "engine"): (TESTED, "FP32, every network, built by TensorRT-RTX"),
    ("lafite", "Triton"): (NO, "its networks are called many times an image"),
    ("ensemble", "score graph"): (NO, "each member has its own"),
    ("ensemble", "features and kernel"): (TESTED, "members take theirs"),
    ("ensemble", "FP16"): (NO, "FP32 alone"),
    ("ensemble", "BF16"): (NO, "FP32 alone"),
    ("ensemble", "INT8"): (NO, "FP32 alone"),
    ("ensemble", "engine"): (TESTED, "those of its members"),
    ("ensemble", "Triton"): (STAND_IN, "its members; the client adds them"),
    ("synth", "score graph"): (NO, f"it draws and does not score: text, encode, denoise, decode, tested;{LOOP}"),
    ("synth", "features and kernel"): (NO, "there are no patches and no bank"),
    ("synth", "FP16"): (TESTED, f"{NEEDS_MODELOPT}, gated by the images drawn"),
    ("synth", "BF16"): (NO, "not made: no gate on what is drawn"),
    ("synth", "INT8"): (NO, "not made"),
    ("synth", "engine"): (TESTED, "FP32, every network, built by TensorRT-RTX"),
    ("synth", "Triton"): (NO, "a drawing is not one graph"),
}
SYSTEM_STATUS = {
    "Linux, x86-64, Python 3.11": (TESTED, ""),
    "Linux, x86-64, Python 3.10": (TESTED, "with pins of its own in constraints.txt, not at every change"),
    "Linux, x86-64, Python 3.12 and newer": (NO, "not tested; the metadata allows it"),
    "Linux, 64-bit Arm": (STAND_IN, "kernels in emulation; the Python packages were not run there"),
    "Windows, macOS": (NO, "not tested"),
}
# Of the line: by the kind that its configuration names. A kind of the code without a status is an error.
SOURCE_STATUS = {
    "folder": (TESTED, ""),
    "push": (TESTED, "over HTTP"),
    "genicam": (TESTED, "Aravis with its fake camera on loopback; no real camera was at hand"),
    "gentl": (STAND_IN, "the simulated cameras of the package genicam; no driver of a maker was at hand"),
    "rtsp": (TESTED, "with GStreamer's server on loopback; no network camera was at hand"),
    "video": (TESTED, ""),
    "v4l2": (STAND_IN, "a stand-in for the device; none was at hand"),
}
OUTPUT_STATUS = {
    "modbus": (TESTED, "with pymodbus' client; no PLC was at hand"),
    "gpio": (STAND_IN, "a stand-in for libgpiod; no pins were at hand"),
}
SINK_STATUS = {
    "jsonl": (TESTED, ""),
    "webhook": (TESTED, "with a server on loopback, over TLS too"),
    "mqtt": (TESTED, "with mosquitto"),
}
SERVICE_STATUS = {
    "`flawscope line demo`": (TESTED, "generated parts, no hardware"),
    "`deploy/flawscope-line.service`": (STAND_IN, "systemd-analyze finds nothing wrong; its protocol with a socket"),
    "`deploy/Dockerfile`, `deploy/compose.yaml`": (STAND_IN, "held to the code by a test; no Docker was at hand"),
}
METHODS = (
    "patchcore",
    "padim",
    "stfpm",
    "segmenter",
    "draem",
    "destseg",
    "ddad",
    "dsad",
    "lafite",
    "ensemble",
    "synth",
)
WAYS = ("score graph", "features and kernel", "FP16", "BF16", "INT8", "engine", "Triton")


LINE_TABLES: tuple[tuple[str, dict[str, tuple[str, str]], dict[type[Any], Any]], ...] = (
    ("source", SOURCE_STATUS, SOURCES),
    ("output", OUTPUT_STATUS, OUTPUTS),
    ("sink", SINK_STATUS, SINKS),
)


def kinds(rows: dict[type[Any], Any]) -> set[str]:
    """Return the kinds that a table of the line has, as its configuration names them."""
    return {str(options.__struct_config__.tag) for options in rows}


def check_complete() -> None:
    """Exit with an error if the tables and the code have different names."""
    # Methods without a head are parts of others (autoencoder, base model), and never in a bundle by themselves.
    tags = {row.bundle_tag for row in methods.METHODS.values() if row.head is not None}
    offered = next(option for option in export.params if option.name == "precisions").type
    assert isinstance(offered, click.Choice)
    exported = set(offered.choices)
    named = {precision for _, precision in BACKEND_STATUS}
    pairs = (
        ("backends", {name for name, _ in BACKEND_STATUS}, set(ROWS)),
        ("precisions", {name for _, name in BACKEND_STATUS}, set(PRECISIONS)),
        ("precisions that export makes", named, exported),
        ("runtimes", {name for name, _ in ENGINE_STATUS}, set(RUNTIMES) - {"auto"}),
        ("methods", set(METHODS), tags),
        ("architectures", set(RTX_STATUS), set(ARCHITECTURES)),
        *((f"{subject} of a line", set(table), kinds(rows)) for subject, table, rows in LINE_TABLES),
    )
    for subject, declared, real in pairs:
        if declared != real:
            sys.exit(
                f"{subject}: expected a status for {sorted(real)}, got one for {sorted(declared)}. Edit {__file__}."
            )


def cell(status: tuple[str, str]) -> str:
    """Return a status with its reason."""
    return f"{status[0]}: {status[1]}" if status[1] else status[0]


def grid(
    corner: str, rows: tuple[str, ...], columns: tuple[str, ...], table: dict[tuple[str, str], tuple[str, str]]
) -> str:
    """Return a Markdown table with a status for every row and column."""
    lines = [f"| {corner} | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    lines += [f"| `{row}` | " + " | ".join(cell(table[row, column]) for column in columns) + " |" for row in rows]
    return "\n".join(lines)


def listing(corner: str, table: dict[str, tuple[str, str]], quote: str = "") -> str:
    """Return a Markdown table with one status for every row."""
    lines = [f"| {corner} | status |", "|---|---|"]
    lines += [f"| {quote}{name}{quote} | {cell(status)} |" for name, status in table.items()]
    return "\n".join(lines)


def page() -> str:
    """Return the page as Markdown."""
    cuda = dict.fromkeys(ARCHITECTURES, (COMPILED, "the kernels' sources also run in emulation on the CPU"))
    line_tables = "\n\n".join(listing(subject, table, "`") for subject, table, rows in LINE_TABLES)
    return f"""# Support matrix

Written by `python tools/support_matrix.py`; a test compares it with the code.

**{TESTED}**: by `make test`, on a machine without a GPU. **{STAND_IN}**: written against the interface and tested with
stand-ins or on another provider. **{COMPILED}**: the compiler and the assembler take it. **{NO}**: with the reason.

## Backends
{grid("backend", tuple(ROWS), PRECISIONS, BACKEND_STATUS)}

## Engines
{grid("runtime", RUNTIMES[1:], PRECISIONS, ENGINE_STATUS)}

| compute capability | TensorRT-RTX engines | CUDA kernels |
|---|---|---|
{chr(10).join(f"| {name} | {cell(RTX_STATUS[name])} | {cell(cuda[name])} |" for name in ARCHITECTURES)}

## Methods
{grid("method", METHODS, WAYS, METHOD_STATUS)}

## Native kernels on the CPU
{listing("SIMD level", LEVEL_STATUS, "`")}

## A production line
{line_tables}

{listing("service", SERVICE_STATUS)}

## Systems
{listing("system", SYSTEM_STATUS)}
"""


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    options = parser.parse_args()
    check_complete()
    text = page()
    if options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.name} is out of date. Write it with: python tools/support_matrix.py")
        return
    write_text(PAGE, text)


if __name__ == "__main__":
    main()

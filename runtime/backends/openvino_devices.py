"""OpenVINO itself: the module, its devices, and what a compiled model says of itself."""

from __future__ import annotations

import contextlib
import functools
import importlib
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np

from flawscope.errors import BackendError, MissingExtra

# Of what a device says that it can do; the rest is no type of numbers.
_PRECISIONS = ("FP32", "FP16", "BF16", "INT8")

_ROUNDED = {"fp16": "f16", "bf16": "bf16"}
"""Precision that a processor may lack -> OpenVINO's word for it."""


@functools.cache
def import_openvino() -> Any:
    """Return the module `openvino`.

    Raises:
        MissingExtra: If it is not installed.
        BackendError: If it is and cannot be loaded.
    """
    try:
        with _without(_CONVERTER):
            module = importlib.import_module("openvino")
    except Exception as err:
        if isinstance(err, ModuleNotFoundError) and err.name == "openvino":
            raise MissingExtra("the backend openvino", "openvino", "openvino") from err
        raise _broken(err) from err  # a library of it is missing, or what it runs when it is imported fails
    if not hasattr(module, "convert_model") and not hasattr(module, "__getattr__"):
        module.__getattr__ = _convert_model  # type: ignore[method-assign]
    return module


_CONVERTER = "openvino.tools.ovc"


@contextlib.contextmanager
def _without(name: str) -> Iterator[None]:
    """Let a module be missing for imports within, unless it is there already.

    `import openvino` takes its converter of models along where it can: with readers of TensorFlow and PyTorch, 40 of
    the 65 ms of the import. Graphs here are ONNX, which OpenVINO reads by itself.
    """
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[name]


def _convert_model(name: str) -> Any:
    """Return what the import left out, for other code in this process that asks for it: the module's `__getattr__`."""
    if name != "convert_model":
        raise AttributeError(f"module 'openvino' has no attribute {name!r}")
    return importlib.import_module(_CONVERTER).convert_model


@functools.cache
def openvino_core() -> Any:
    """Return OpenVINO's `Core`, which holds its plugins: one for all sessions.

    Raises:
        MissingExtra: If OpenVINO is not installed.
        BackendError: If it is and cannot be loaded.
    """
    module = import_openvino()
    try:
        return module.Core()
    except Exception as err:  # AttributeError too: an empty folder of that name can be imported
        raise _broken(err) from err


def _broken(err: Exception) -> BackendError:
    return BackendError(
        f"OpenVINO is there and cannot be loaded: {reason_of(err).rstrip('.')}. Install it again: pip install "
        "--force-reinstall openvino"
    )


def cpu_problem() -> str | None:
    """Return why OpenVINO cannot run on the CPU here, as a sentence, or None if it can."""
    return _problem("CPU")


def gpu_problem() -> str | None:
    """Return why OpenVINO cannot run on a GPU here, as a sentence, or None if it can."""
    return _problem("GPU")


def npu_problem() -> str | None:
    """Return why OpenVINO cannot run on an NPU here, as a sentence, or None if it can."""
    return _problem("NPU")


def _problem(device: str) -> str | None:
    try:
        devices = openvino_core().available_devices
    except (BackendError, MissingExtra) as err:
        return f"{err}."  # a sentence: others follow it
    # Several GPUs are GPU.0, GPU.1; the name without a number is the first of them.
    if any(name.partition(".")[0] == device for name in devices):
        return None
    return f"this OpenVINO lists {', '.join(devices) or 'no device'}, no {device}; is its driver installed?"


def cpu_precision_problem(precision: str) -> str | None:
    """Return why OpenVINO cannot compute in a precision on this CPU, as a sentence, or None if it can."""
    if precision in _ROUNDED and not rounds_to(precision):
        return (
            f"OpenVINO does not compute in {precision.upper()} on this CPU (on x86 BF16 needs AVX-512 BF16 or AMX, "
            "FP16 AVX-512 FP16 or AMX FP16, and ONEDNN_MAX_CPU_ISA must not keep it from them)."
        )
    if precision != "int8" or not cuts_int8():
        return None
    return (
        "INT8 in OpenVINO is wrong on this CPU: it adds two products in 16 bits and cuts what does not fit (AVX-512 "
        "VNNI, AVX-VNNI and AMX do not, unless ONEDNN_MAX_CPU_ISA keeps it from them)."
    )


@functools.cache
def rounds_to(precision: str) -> bool:
    """Return whether OpenVINO runs a convolution in a precision on this CPU: one that it lists, and then tries."""
    openvino, core = import_openvino(), openvino_core()
    if precision.upper() not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        return False
    ops = importlib.import_module("openvino.opset13")
    image = ops.parameter([1, 16, 4, 4], np.float32)
    # Between two neighbours in both precisions: the result says whether it was rounded.
    weights = ops.constant(np.eye(16, dtype=np.float32)[:, :, None, None])
    result = ops.convolution(image, weights, [1, 1], [0, 0], [0, 0], [1, 1])
    number = np.float32(1 + 2**-16)
    try:
        # What it lists is what the processor has. An environment variable may keep oneDNN from it, and then it fails.
        config = {"INFERENCE_PRECISION_HINT": _ROUNDED[precision]}
        compiled = core.compile_model(openvino.Model([result], [image]), "CPU", config)
        got = compiled(np.full((1, 16, 4, 4), number, np.float32))[0]
    except RuntimeError:
        return False
    return (
        bool((got == 1.0).all())
        and compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == (_ROUNDED[precision])
    )


@functools.cache
def cuts_int8() -> bool:
    """Return whether sums of INT8 products are cut at 16 bits, by one convolution whose result is known.

    Before VNNI, x86 multiplies unsigned by signed bytes with `pmaddubsw`, whose sums of two products saturate. What a
    processor can do is not what is used: an environment variable may hold oneDNN back.

    Raises:
        MissingExtra: If OpenVINO is not installed.
    """
    openvino = import_openvino()
    ops = importlib.import_module("openvino.opset13")
    channels, largest, weight = 16, 255, 127
    image = ops.parameter([1, channels, 4, 4], np.float32)
    rounded = ops.fake_quantize(image, *(np.float32(edge) for edge in (0, largest, 0, largest)), largest + 1)
    weights = ops.constant(np.full((channels, channels, 1, 1), weight, np.int8))
    scaled = ops.multiply(ops.convert(weights, np.float32), np.float32(1 / weight))
    result = ops.convolution(rounded, scaled, [1, 1], [0, 0], [0, 0], [1, 1])
    config = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino_core().compile_model(openvino.Model([result], [image]), "CPU", config)
    got = compiled(np.full((1, channels, 4, 4), largest, np.float32))[0]
    return not np.allclose(got, channels * largest, rtol=0.01)


def listed_devices() -> dict[str, dict[str, Any]]:
    """Return OpenVINO's devices here: name -> what it is, and the precisions that it computes in, and right.

    Raises:
        MissingExtra: If OpenVINO is not installed.
    """
    core = openvino_core()
    return {
        name: {
            "what": str(core.get_property(name, "FULL_DEVICE_NAME")),
            "precisions": [
                word
                for word in core.get_property(name, "OPTIMIZATION_CAPABILITIES")
                if word in _PRECISIONS and not (name == "CPU" and cpu_precision_problem(word.lower()))
            ],
        }
        for name in core.available_devices
    }


def reason_of(err: Exception) -> str:
    """Return the line of OpenVINO's message that says something: places in its sources come before it."""
    lines = [line.strip() for line in str(err).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return (said or [line for line in lines if line] or [type(err).__name__])[0]


def check_executed(backend: str, file: str, compiled: Any, device: str, hint: str) -> None:
    """Raise BackendError unless a compiled model says that it runs on this device, in this precision.

    Args:
        backend: What the backend is called in messages.
        file: What the graph is called in messages.
        compiled: OpenVINO's `CompiledModel`.
        device: The device that was asked for.
        hint: The precision that was asked for, in OpenVINO's words.
    """
    devices = [str(name).partition(".")[0] for name in compiled.get_property("EXECUTION_DEVICES")]
    if devices != [device]:
        raise BackendError(
            f"backend {backend}: expected {device} for {file}, OpenVINO took {', '.join(devices)}. "
            "See flawscope doctor."
        )
    got = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if got != hint:
        raise BackendError(
            f"backend {backend}: expected {file} to run in {hint}, OpenVINO took {got}: this {device} has no other "
            "arithmetic for it. Choose another --precision, or --backend cpu."
        )

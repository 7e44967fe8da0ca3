"""The seam over `tensorrt` (10.x and 11.x) and `tensorrt_rtx`: which of them is here, and where they differ.

All three build strongly typed networks: precision is a property of the graph, not of the builder. What differs is the
name of a flag that has become the default, where code for a GPU is made (TensorRT when the engine is built,
TensorRT-RTX partly when it is loaded) and whether an engine can be built for a GPU that is not there (RTX alone).
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from flawscope.errors import ArgumentError, BackendError

RUNTIMES = ("auto", "tensorrt", "tensorrt-rtx")
"""Names that `import_tensorrt` takes."""

_MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
_PACKAGES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt-rtx"}
_OLDEST_MAJOR = {"tensorrt": 10, "tensorrt-rtx": 1}


@dataclass(frozen=True)
class TensorRT:
    """One of the modules.

    Attributes:
        name: `tensorrt` or `tensorrt-rtx`.
        version: Its version, for example `1.7.1.116`.
        module: The module itself.
    """

    name: str
    version: str
    module: Any

    @property
    def builds_for_absent_gpus(self) -> bool:
        """Whether an engine can be built for a GPU that this machine does not have."""
        return self.name == "tensorrt-rtx"

    def network_flags(self) -> int:
        """Return the flags of a strongly typed network; where there is no other kind any more, none."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def compute_capabilities(self) -> tuple[tuple[int, int], ...]:
        """Return the compute capabilities that can be named as a target, ascending; none where only the GPU here is."""
        if not self.builds_for_absent_gpus:
            return ()
        found = []
        for name in dir(self.module.ComputeCapability):
            digits = name.removeprefix("SM")
            if digits != name and digits.isdigit():
                found.append((int(digits[:-1]), int(digits[-1])))
        return tuple(sorted(found))


def import_tensorrt(runtime: str = "auto") -> TensorRT:
    """Return one of the TensorRT modules; `auto` takes `tensorrt` before `tensorrt-rtx`.

    Raises:
        ArgumentError: If the name is not known.
        BackendError: If it is not installed, cannot be loaded, or is too old.
    """
    if runtime not in RUNTIMES:
        raise ArgumentError(f"runtime: expected one of {', '.join(RUNTIMES)}, got {runtime!r}.")
    problems = []
    for name in _MODULES if runtime == "auto" else (runtime,):
        try:
            return _load(name)
        except BackendError as err:
            problems.append(str(err))
    raise BackendError(" ".join(problems))


@functools.cache
def _load(name: str) -> TensorRT:
    try:
        module: Any = importlib.import_module(_MODULES[name])
    except ModuleNotFoundError as err:
        raise BackendError(
            f'{name}: is not installed (no module {err.name}). Install it with: pip install "flawscope[{name}]".'
        ) from err
    except (ImportError, OSError, RuntimeError) as err:  # a library of it is missing or of another version
        raise BackendError(f"{name}: is installed but cannot be loaded: {_first_line(err)}.") from err
    version = str(getattr(module, "__version__", "0"))
    major = version.partition(".")[0]
    if not major.isdigit() or int(major) < _OLDEST_MAJOR[name]:
        raise BackendError(
            f"{name}: expected version {_OLDEST_MAJOR[name]} or newer, got {version}. "
            f"Update it with: pip install --upgrade {_PACKAGES[name]}."
        )
    return TensorRT(name, version, module)


def _first_line(err: BaseException) -> str:
    return (str(err).strip() or type(err).__name__).splitlines()[0].rstrip(".")

"""One interface for `tensorrt` (10.x and 11.x) and `tensorrt_rtx`: which of them is installed, and where they differ.

All three build strongly typed networks: precision is a property of the graph, not of the builder. They differ in a
flag (which became the default), in the time at which code for a GPU is compiled (TensorRT when the engine is built,
TensorRT-RTX partly when it is loaded) and in building for a GPU of another machine (TensorRT-RTX only).
"""

from __future__ import annotations

import functools
import importlib
from dataclasses import dataclass
from typing import Any

from flawscope.errors import ArgumentError, BackendError

RUNTIMES = ("auto", "tensorrt", "tensorrt-rtx")
"""Names that `import_tensorrt` accepts."""

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
        """Return the flags of a strongly typed network; 0 in versions that know no other kind of network."""
        flag = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)  # the enum counts bits

    def compute_capabilities(self) -> tuple[tuple[int, int], ...]:
        """Return the compute capabilities that can be built for, ascending; none if only the GPU here can."""
        if not self.builds_for_absent_gpus:
            return ()
        capabilities = []
        for name in dir(self.module.ComputeCapability):
            digits = name.removeprefix("SM")
            if digits != name and digits.isdigit():
                # The last digit is the minor version: SM89 is 8.9, SM120 is 12.0.
                capabilities.append((int(digits[:-1]), int(digits[-1])))
        return tuple(sorted(capabilities))


def import_tensorrt(runtime: str = "auto") -> TensorRT:
    """Return one of the TensorRT modules; `auto` takes `tensorrt` before `tensorrt-rtx`.

    Raises:
        ArgumentError: If the name is unknown.
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
    except (ImportError, OSError, RuntimeError) as err:  # a shared library is missing or of another version
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

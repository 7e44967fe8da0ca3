"""The backend on which a reduced precision is calibrated: one that computes in it, where it has passed its gate."""

from __future__ import annotations

from pathlib import Path

from flawscope.bundle import Manifest, open_bundle

_OWN = "cpu"
"""The CPU's own backend, which is there everywhere and which `auto` takes, or something that it finds better."""


def backend_for(path: Path, precision: str, asked: str) -> str:
    """Return the backend to score on: what was asked for or, in place of `auto`, one that has passed the gate.

    Args:
        path: The bundle.
        precision: The precision whose thresholds are set.
        asked: A backend, or `auto`.

    Returns:
        `auto` as it was for FP32, where the CPU's own backend has passed, and where nothing is known that would be
        better.

    Raises:
        ArgumentError: If the bundle lacks the precision.
    """
    if asked != "auto" or precision == "fp32":
        return asked
    # Lazy: it loads ONNX Runtime, which thresholds set by hand do without.
    from flawscope.runtime.backends.table import ROWS, is_there

    with open_bundle(path) as bundle:
        passed = _passed(bundle.manifest, precision)
    # Of a bundle whose bank was changed no gate is left: then one that computes in the precision has to do.
    candidates = () if _OWN in passed else (*passed, _OWN, *ROWS)
    taken = next((name for name in candidates if is_there(name, precision)), _OWN)
    return asked if taken == _OWN else taken


def gate_notes(manifest: Manifest, precision: str, backend: str) -> tuple[str, ...]:
    """Return a sentence if a precision has passed its gate on other backends than the one it was scored on."""
    passed = _passed(manifest, precision)
    if not passed or backend in passed:
        return ()
    return (
        f"{precision.upper()} has passed its gate on {' and '.join(passed)}, not on {backend}: how far its scores "
        "there are from those of FP32 was not measured.",
    )


def _passed(manifest: Manifest, precision: str) -> tuple[str, ...]:
    """Return the backends of a precision's gates; none for FP32."""
    if precision == "fp32":
        return ()
    manifest.graphs_of(precision)  # raises where the bundle lacks it
    return tuple(gate.backend for gate in manifest.precisions[precision].all_gates)

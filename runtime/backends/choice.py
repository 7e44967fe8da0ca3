"""The choice of a backend: the one that was asked for, or an error; with `auto` one that may be taken, and why.

`auto` takes CUDA where it is there. On a CPU it may take the CPU's own backend and its rivals in the table, whichever
is measured to be faster with the bundle. What may be taken is the bundle's word: thresholds hold for scores of the
backend that they were set on, and a reduced precision only where it has passed its gate.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from importlib.util import find_spec

from flawscope import methods
from flawscope.bundle import Manifest, Thresholds
from flawscope.errors import ArgumentError, BackendError
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.table import ALIASES, ROWS, backend_problem

AUTO_VARIABLE = "FLAWSCOPE_AUTO"
"""Environment variable with the names of the backends that `auto` may take, commas between them."""
REFERENCE = "cpu"
"""The backend that golden scores come from; it is there wherever a bundle can be opened."""

_FIRST = "cuda"


@dataclass(frozen=True)
class Choice:
    """The chosen backend, and why.

    Attributes:
        name: Its name; with rivals the one that is kept unless another is clearly faster.
        reason: Why.
        rivals: All that may be taken, `name` first, where a measurement has to decide; else empty.
        may_fall_back: Whether `REFERENCE` may take its place if it does not start.
        why_rivals: With rivals: why those, a clause.
    """

    name: str
    reason: str
    rivals: tuple[str, ...] = ()
    may_fall_back: bool = False
    why_rivals: str = ""


@dataclass(frozen=True)
class Allowed:
    """The backends that may compute a bundle's scores in a precision unless one is asked for by name.

    Attributes:
        names: Their names, that which thresholds were set on first; None for all.
        why: Why, a clause.
    """

    names: tuple[str, ...] | None
    why: str

    def has(self, name: str) -> bool:
        """Return whether a backend is one of them."""
        return self.names is None or name in self.names


def choose_backend(name: str) -> Choice:
    """Resolve a backend name where nothing is measured; `auto` takes CUDA where it is there, else the CPU's own.

    This is for what has no golden scores, such as bundles that draw; see `choose_for_bundle` for the others.

    Raises:
        ArgumentError: If the name is unknown, or one in `FLAWSCOPE_AUTO`.
        BackendError: If the backend was asked for by name and is not available, or none that `auto` may take is.
        MissingExtra: If ONNX Runtime is not installed.
    """
    if name == "auto":
        return _choose_auto(Allowed((_FIRST, REFERENCE), "only bundles with golden scores are measured"), "fp32")
    if problem := backend_problem(name):
        raise BackendError(f"backend {name}: is not there: {problem} There is no fall-back; use --backend cpu or auto.")
    return Choice(ALIASES.get(name, name), "asked for")


def offered_by_auto() -> Choice:
    """Return what `auto` would do with a bundle that allows every backend; raises as `choose_backend`."""
    return _choose_auto(Allowed(None, "no thresholds are set"), "fp32")


def choose_for_bundle(name: str, manifest: Manifest, precision: str, cores: Cores = OWN_CHOICE) -> Choice:
    """Resolve a backend name for a bundle.

    Args:
        name: The name; `auto` takes CUDA where ONNX Runtime has it and no threads or streams are set, which CUDA lacks,
            else what is allowed and there on the CPU.
        manifest: The bundle's manifest; its thresholds and gates say what `auto` may take.
        precision: Precision of the graphs.
        cores: Threads and streams; of rivals only those that have what is set are left.

    Raises:
        ArgumentError: As `choose_backend`, and if the bundle lacks the precision.
        BackendError: As `choose_backend`.
        MissingExtra: As `choose_backend`.
    """
    if name != "auto":
        return choose_backend(name)
    choice = _choose_auto(allowed_backends(manifest, precision), precision, cores)
    able = tuple(rival for rival in choice.rivals if cores.given().keys() <= set(ROWS[rival].cores))
    if len(able) == 1 and able != choice.rivals:
        # Without the reason of the choice: it says that a measurement decides.
        reason = f"auto: of {' and '.join(choice.rivals)} the only one with {' and '.join(cores.given())} to choose"
        return Choice(able[0], reason, (), choice.may_fall_back and able[0] == REFERENCE)
    # A bundle that is being made: nothing to measure with, and nothing that would refuse wrong scores.
    if choice.rivals and not manifest.golden_of(precision):
        return Choice(choice.name, "auto: no golden images to measure with", (), choice.may_fall_back)
    return choice


def allowed_backends(manifest: Manifest, precision: str) -> Allowed:
    """Return the backends that may compute a bundle's scores in a precision, by its thresholds and gates.

    Raises:
        ArgumentError: If the bundle lacks the precision.
    """
    thresholds = manifest.thresholds_of(precision)
    gates = () if precision == "fp32" else manifest.precisions[precision].all_gates
    gated = tuple(dict.fromkeys(gate.backend for gate in gates))
    passed = f"{precision.upper()} has passed its gate on {' and '.join(gated)}"
    if thresholds is not None:
        place, why = _set_on(thresholds)
        return Allowed(tuple(dict.fromkeys((place, *gated))), f"{why}, and {passed}" if gated else why)
    if gated:
        return Allowed(gated, passed)
    if precision == "fp32":
        return Allowed(None, "no thresholds are set")
    # Gates go when a bank is changed. Then one that computes in the precision has to do.
    able = (REFERENCE,) if precision in ROWS[REFERENCE].tolerances else _on_cpus(precision)
    return Allowed(able, f"the gate of {precision.upper()} has not run")


def _set_on(thresholds: Thresholds) -> tuple[str, str]:
    """Return the backend that thresholds were set on, and a clause that says so."""
    of_zones = (threshold for zone in thresholds.of_zones for threshold in (zone.image, zone.pixel))
    said = next((row.backend for row in (thresholds.image, thresholds.pixel, *of_zones) if row.backend), None)
    if said is None:  # by hand, or by a flawscope that did not record it and had no other backend on CPUs
        return REFERENCE, f"thresholds name no backend, which stands for {REFERENCE}"
    if said == "torch":
        return REFERENCE, f"thresholds come from scores of the training, which stands for {REFERENCE}"
    place = ALIASES.get(said, said)
    return place, f"thresholds were set on {place}"


def _choose_auto(allowed: Allowed, precision: str, cores: Cores = OWN_CHOICE) -> Choice:
    may = _may_take()
    methods.load(ROWS[REFERENCE].problem)()  # raises where ONNX Runtime is missing, which everything needs
    no_cuda, why_rivals = f"{AUTO_VARIABLE} leaves CUDA out", allowed.why
    if _FIRST in may:
        problem = backend_problem(_FIRST, precision)
        lacks = [name for name in cores.given() if name not in ROWS[_FIRST].cores]
        if problem is not None:
            no_cuda = f"{ROWS[REFERENCE].auto}: {problem.rstrip('.')}"
        elif lacks:
            no_cuda = f"not CUDA, which has no {' and no '.join(lacks)} to choose"
            why_rivals += f"; {no_cuda}"
        else:
            elsewhere = "" if allowed.has(_FIRST) else f"; {allowed.why}"
            return Choice(_FIRST, f"auto: {ROWS[_FIRST].auto}{elsewhere}", may_fall_back=REFERENCE in may)
    here = [name for name in _on_cpus() if name in may and _is_installed(name)]
    fitting = [name for name in here if allowed.has(name)]
    if allowed.names is not None:  # where thresholds were set comes first, and is kept in doubt
        fitting.sort(key=allowed.names.index)
    may_fall_back = REFERENCE in may and (precision == "fp32" or allowed.has(REFERENCE))
    if len(fitting) > 1:
        reason = f"auto: {no_cuda}; of {' and '.join(fitting)} the one that is measured to be faster with the bundle"
        return Choice(fitting[0], reason, tuple(fitting), may_fall_back, why_rivals)
    if fitting == [REFERENCE]:
        others = [name for name in here if name != REFERENCE]
        kept = f"; not {' or '.join(others)}: {allowed.why}" if others else ""
        return Choice(REFERENCE, f"auto: {no_cuda}{kept}")
    problem = backend_problem(fitting[0], precision) if fitting else _why_none(allowed, may, no_cuda)
    if problem is None:
        return Choice(fitting[0], f"auto: {allowed.why}", may_fall_back=may_fall_back)
    return _without_allowed(allowed, problem, precision, may_fall_back=may_fall_back)


def _without_allowed(allowed: Allowed, problem: str, precision: str, *, may_fall_back: bool) -> Choice:
    """Return what is taken where no backend that is allowed is there, or raise BackendError."""
    # In FP32 backends on CPUs differ by rounding, as two processors do, and golden images hold them to it. What a
    # reduced precision does on a backend where it never passed a gate is not known.
    if may_fall_back:
        return Choice(REFERENCE, f"auto: {allowed.why}; {REFERENCE} takes its place: {problem}")
    advice = "Use --precision fp32."  # the reference would refuse it too
    if precision in ROWS[REFERENCE].tolerances:
        advice = (
            f"To run it elsewhere all the same, name a backend (--backend {REFERENCE}), and set thresholds there first "
            "(flawscope calibrate)."
        )
    raise BackendError(
        f"backend auto: expected a backend that may be taken, got none: {allowed.why}; {problem} {advice}"
    )


def _why_none(allowed: Allowed, may: tuple[str, ...], no_cuda: str) -> str:
    """Return why no backend that is allowed is there, a sentence."""
    if may == (_FIRST,):
        return f"{AUTO_VARIABLE} leaves all but {_FIRST} out; {no_cuda}."
    known = [name for name in _on_cpus() if allowed.has(name)]
    out = [name for name in known if name not in may]
    if out:
        return f"{AUTO_VARIABLE} leaves {' and '.join(out)} out."
    missing = [name for name in known if not _is_installed(name)]
    if missing:
        extra = ROWS[missing[0]].rival
        return f'{missing[0]} is not installed. Install it with: pip install "flawscope[{extra}]".'
    return "auto takes no such backend here."


def _on_cpus(precision: str = "fp32") -> tuple[str, ...]:
    """Return the backends that `auto` may take on a CPU and that compute in a precision, the reference first."""
    names = (REFERENCE, *(row.name for row in ROWS.values() if row.rival is not None))
    return tuple(name for name in names if precision in ROWS[name].tolerances)


def _is_installed(name: str) -> bool:
    # Found and not imported: OpenVINO takes half a second, and most bundles stay where their thresholds were set.
    package = ROWS[name].rival
    return package is None or find_spec(package) is not None


def _may_take() -> tuple[str, ...]:
    """Return the backends that `auto` may take on this machine: all, or those of `FLAWSCOPE_AUTO`."""
    everything = (_FIRST, *_on_cpus())
    text = os.environ.get(AUTO_VARIABLE, "")
    if not text.strip():
        return everything
    names = tuple(ALIASES.get(name.strip(), name.strip()) for name in text.split(","))
    if not set(names) <= set(everything):
        raise ArgumentError(
            f"{AUTO_VARIABLE}: expected some of {', '.join(everything)} with commas between them, got {text!r}."
        )
    return names

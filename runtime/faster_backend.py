"""`auto` on a CPU: of the backends that may be taken, the one that a short measurement finds faster with the bundle.

The first of them, the CPU's own, is kept unless another is faster by a clear margin. Golden images are what is timed:
they come with every bundle, and both must give their scores before a time of theirs counts.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from flawscope.bundle import Bundle
from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime.backends.choice import Choice
from flawscope.runtime.backends.kept_times import KeptTimes, Times, forget_model, now, times_key
from flawscope.runtime.backends.table import backend_problem, is_there
from flawscope.runtime.scorers.golden import check_golden
from flawscope.runtime.scorers.scorer import PATHS, Scorer, ScorerOptions, open_scorer

MOST_OF_FIRST = 0.9
"""Share of the first backend's time that another must stay below to be taken. Medians of a busy machine differ by some
percent from one measurement to the next, and what is gained by less is not worth another rounding of scores."""

_TURNS, _SETTLE, _TIMED = 5, 2, 5
"""Turns of each backend, and its inferences in one: those that are left out, as the threads of the other still spin and
the caches are as it left them, and those that are timed."""
_ENOUGH_S, _BLOCK_S = 1.0, 0.1
"""Seconds after which no other turn begins, and no other inference of one part of a turn."""
_MOST_SPREAD = 1.5
"""Largest ratio of the median to the shortest time of one backend for a measurement to be kept. On a busy machine
backends that wait for all their threads lose most, and which one is faster may be another matter by the next load."""
_SLOW_S = 2.0
"""Seconds of a check of the golden images from which on it is the measurement itself."""


@dataclass(frozen=True)
class Settled:
    """The outcome of a measurement, or of one that was kept.

    Attributes:
        choice: The backend to take, and why.
        scorer: Its scorer, which has reproduced the golden scores; None where it is still to be opened.
    """

    choice: Choice
    scorer: Scorer | None


def settle(bundle: Bundle, options: ScorerOptions, choice: Choice) -> Settled:
    """Decide between the rivals of a choice.

    Args:
        bundle: The opened bundle; it has golden images.
        options: Path and precision.
        choice: One with rivals.

    Raises:
        BackendError: If the first of them cannot run the bundle.
        BundleError: If the first of them does not reproduce the golden scores.
    """
    kept = KeptTimes(times_key(bundle.manifest, options.precision, options.path, choice.rivals, options.cores))
    times = kept.read()
    if times is not None:
        return Settled(_decided(choice, times, kept), None)
    with kept.measuring():
        times = kept.read()  # whoever measured before has kept it
        if times is not None:
            return Settled(_decided(choice, times, kept), None)
        rivals: dict[str, _Rival] = {}
        taken: _Rival | None = None
        try:
            left_out = _open_all(bundle, options, choice.rivals, rivals)
            measured = _measure(bundle, rivals, left_out)
            milliseconds = {name: statistics.median(values) for name, values in measured.items()}
            times = Times(kept.key, bundle.manifest.name, now(), milliseconds, left_out)
            absent = [name for name in left_out if not is_there(name)]
            if absent:  # installed or mended, it has the same version
                kept.problem = kept.problem or f"{' and '.join(absent)} may be there by the next load"
            elif is_steady(measured):
                kept.write(times)
            else:
                kept.problem = kept.problem or "the machine was busy"
            decided = _decided(choice, times, kept)
            taken = rivals[decided.name]
        finally:  # KeyboardInterrupt too: memory must not stay behind
            for rival in rivals.values():
                if rival is not taken:
                    rival.scorer.close()
    return Settled(decided, taken.scorer)


def forget_times(bundle: Bundle, precision: str, rivals: tuple[str, ...]) -> None:
    """Remove the times that are kept of a bundle, with any number of threads, so that the next `auto` measures.

    Raises:
        StorageError: If the system refuses.
    """
    forget_model(bundle.manifest, precision)
    for path in PATHS:  # by name too: a file in that place that nobody believes would never be replaced
        KeptTimes(times_key(bundle.manifest, precision, path, rivals)).forget()


def fastest(milliseconds: Mapping[str, float], rivals: Sequence[str]) -> str:
    """Return the backend to take: the first rival, or the fastest if its time is below `MOST_OF_FIRST` of that."""
    first = rivals[0]
    best = min((name for name in rivals if name in milliseconds), key=lambda name: milliseconds[name])
    return best if milliseconds[best] < MOST_OF_FIRST * milliseconds[first] else first


def in_turns(
    runs: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Return the milliseconds of each run, several times, all in turns, so that what else the machine does meets all.

    Args:
        runs: Name -> what is timed.
        clock: Gives seconds.

    Raises what a run raises.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    begin = clock()
    for turn in range(_TURNS):
        # Backwards every other time: what drifts, such as the clock of the processor, meets all alike.
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            _block(runs[name], _SETTLE, clock)
            seconds[name] += _block(runs[name], _TIMED, clock)
        if clock() - begin > _ENOUGH_S:
            break
    return {name: [1e3 * value for value in values] for name, values in seconds.items()}


def is_steady(milliseconds: Mapping[str, Sequence[float]]) -> bool:
    """Return whether the times of each backend are alike: those of a busy machine are not."""
    return all(statistics.median(values) <= _MOST_SPREAD * min(values) for values in milliseconds.values())


def _block(run: Callable[[], object], most: int, clock: Callable[[], float]) -> list[float]:
    """Return the seconds of each of at most `most` runs, fewer where they take long."""
    seconds: list[float] = []
    while len(seconds) < most and sum(seconds) <= _BLOCK_S:
        start = clock()
        run()
        seconds.append(clock() - start)
    return seconds


@dataclass(frozen=True)
class _Rival:
    """A scorer that has reproduced the golden scores, and the seconds that it took for them."""

    scorer: Scorer
    seconds: float


def _open_all(
    bundle: Bundle, options: ScorerOptions, names: Sequence[str], rivals: dict[str, _Rival]
) -> dict[str, str]:
    """Open all that can run the bundle into `rivals`, the first one in any case; return why the others cannot."""
    left_out: dict[str, str] = {}
    for name in names:
        problem = backend_problem(name, options.precision) if rivals else None
        if problem is not None:
            left_out[name] = problem
            continue
        try:
            rivals[name] = _opened(bundle, replace(options, backend=name))
        except (BackendError, BundleError) as err:
            if not rivals:
                raise
            # Wrong scores too: nobody asked for this backend, and another has just given the right ones.
            left_out[name] = str(err)
    return left_out


def _opened(bundle: Bundle, options: ScorerOptions) -> _Rival:
    scorer = open_scorer(bundle, options)
    try:
        start = time.perf_counter()
        check_golden(bundle, scorer, options)
        return _Rival(scorer, time.perf_counter() - start)
    except BaseException:
        scorer.close()
        raise


def _measure(bundle: Bundle, rivals: Mapping[str, _Rival], left_out: dict[str, str]) -> dict[str, list[float]]:
    """Return the milliseconds of each rival; one that fails meanwhile goes to `left_out`, unless it is the first."""
    slowest = max(rival.seconds for rival in rivals.values())
    if len(rivals) == 1 or slowest > _SLOW_S:
        return {name: [1e3 * rival.seconds] for name, rival in rivals.items()}
    golden = bundle.manifest.golden[0].file
    image = prepare(decode_image(bundle.read(golden), golden), bundle.manifest.input)[None]
    failed = []

    def run(name: str) -> None:
        try:
            rivals[name].scorer.score(image)
        except DeviceError:
            failed.append(name)
            raise

    try:
        return in_turns({name: partial(run, name) for name in rivals})
    except DeviceError as err:
        if failed[0] == next(iter(rivals)):
            raise
        left_out[failed[0]] = str(err)
        return _measure(bundle, {name: rival for name, rival in rivals.items() if name != failed[0]}, left_out)


def _decided(choice: Choice, times: Times, kept: KeptTimes) -> Choice:
    """Return the choice that times decide, with all that was measured in its reason."""
    first = choice.rivals[0]
    name = fastest(times.milliseconds, choice.rivals)
    told = []
    for rival in choice.rivals[1:]:
        if rival in times.left_out:
            told.append(f"{rival} is left out: {times.left_out[rival].rstrip('.')}")
            continue
        mine, its = times.milliseconds[rival], times.milliseconds[first]
        told.append(
            f"{rival} takes {mine / its:.2f} of the time of {first} ({mine:.3g} and {its:.3g} ms, below "
            f"{MOST_OF_FIRST:.2f} is taken)"
        )
    told.append(choice.why_rivals)
    place = f"{'kept for a day' if times.left_out else 'kept'} in {kept.path}"
    if kept.problem:
        place = f"not kept: {kept.problem}"
    when = times.measured.isoformat(timespec="seconds")
    return Choice(name, f"auto: {'; '.join(told)}; measured {when}, {place}", (), choice.may_fall_back)

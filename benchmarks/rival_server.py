"""Contestants in a process of their own, which measures when it is asked: one line of JSON in, one line out.

Stand-alone: it runs in flawscope's environment and in those of its rivals, and imports nothing of any of them. The
driver (`edge_rivals.py`) asks one process after the other, so that contestants of different environments take turns
while the others wait.

Requests: `{"do": "open", "name": ..., ...}` makes a contestant ready; `{"do": "time", "name": ..., "paths": [...],
"batch": 1, "seconds": 0.3, "least": 3}` takes one turn; `{"do": "score", "name": ..., "paths": [...], "out": FILE}`
writes `score` float32 [N] and `anomaly_map` float32 [N, H, W] as a NumPy archive; `{"do": "end"}` ends the process. The
answer to a request that failed is `{"failed": REASON}`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

QUIET_S, LONGEST_REST_S = 0.02, 1.0
"""A turn ends when the process has used no processor for so long: worker threads spin for a while after a call, and
would take a core from the next contestant."""


class Contestant:
    """What can be timed: from the files of images to decisions."""

    facts: Mapping[str, Any] = MappingProxyType({})
    """What is recorded about it, such as the rows of its bank."""

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """Decide on a batch of images.

        Returns:
            Scores [N], anomaly maps [N, H, W], both empty for a network alone; and the seconds of the model alone, from
            the prepared image to map and score.
        """
        raise TypeError(f"{type(self).__name__}: expected a contestant with `decide`, got one without.")

    def close(self) -> None:
        """Release what it holds."""


def serve(open_contestant: Callable[[dict[str, Any]], Contestant]) -> None:
    """Answer requests on standard input until it ends; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # a library that prints would break the protocol
    contestants: dict[str, Contestant] = {}
    for line in sys.stdin:
        request = json.loads(line)
        if request["do"] == "end":
            break
        try:
            answer = _answer(contestants, open_contestant, request)
        except Exception as err:  # what a rival cannot do is a result
            answer = {"failed": f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"}
        print(json.dumps(answer), file=answers, flush=True)


def _answer(
    contestants: dict[str, Contestant], open_contestant: Callable[[dict[str, Any]], Contestant], request: dict[str, Any]
) -> dict[str, Any]:
    name = request["name"]
    if request["do"] == "open":
        contestants[name] = open_contestant(request)
        return {"facts": dict(contestants[name].facts)}
    if request["do"] == "close":
        contestants.pop(name).close()
        return {}
    if request["do"] == "score":
        return score_all(contestants[name], request["paths"], request["out"])
    return take_turn(contestants[name], request["paths"], request["batch"], request["seconds"], request["least"])


def take_turn(contestant: Contestant, paths: list[str], batch: int, seconds: float, least: int) -> dict[str, Any]:
    """Decide on batches, one after the other, for so many seconds and at least so often; one more first, untimed.

    Returns:
        Milliseconds of every call: `whole`, from the files to the decisions, and `model`, the model alone.
    """
    groups = [[paths[(start + k) % len(paths)] for k in range(batch)] for start in range(0, len(paths), batch)]
    contestant.decide(groups[-1])
    whole: list[float] = []
    model: list[float] = []
    started = time.perf_counter()
    while len(whole) < least or time.perf_counter() - started < seconds:
        begun = time.perf_counter()
        _, _, model_s = contestant.decide(groups[len(whole) % len(groups)])
        whole.append(1e3 * (time.perf_counter() - begun))
        model.append(1e3 * model_s)
    rest()
    return {"whole": whole, "model": model}


def rest() -> None:
    """Return when this process has used no processor for a while."""
    end = time.perf_counter() + LONGEST_REST_S
    while time.perf_counter() < end:
        used = time.process_time()
        time.sleep(QUIET_S)
        if time.process_time() - used < QUIET_S / 20:
            return


def score_all(contestant: Contestant, paths: list[str], out: str) -> dict[str, Any]:
    """Write scores and maps of all images, one image at a time."""
    import numpy as np

    scores, maps = [], []
    for path in paths:
        score, anomaly_map, _ = contestant.decide([path])
        scores.append(float(score[0]))
        maps.append(np.asarray(anomaly_map[0], np.float32))
    np.savez(out, score=np.array(scores, np.float32), anomaly_map=np.stack(maps))
    return {"images": len(paths)}


def memory_kib() -> dict[str, int]:
    """Return the process's own memory (USS) and its peak resident memory in KiB; empty where Linux does not tell."""
    figures = {}
    try:
        rollup = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]
        parts = dict(line.split(":", 1) for line in rollup)
        figures["uss_kib"] = sum(int(parts[name].split()[0]) for name in ("Private_Clean", "Private_Dirty"))
        status = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        figures["peak_kib"] = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    except OSError:
        pass
    return figures


def first_decision(open_contestant: Callable[[dict[str, Any]], Contestant], request: dict[str, Any]) -> None:
    """Print the seconds at which a fresh process had its contestant ready and had decided, and its memory.

    `request` has `started_ns`, the time at which the process was started, and `path`, the image.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    contestant = open_contestant(request)
    ready = time.time_ns()
    contestant.decide([request["path"]])
    decided = time.time_ns()
    seconds = {"ready_s": ready, "decided_s": decided}
    answer = {name: (at - request["started_ns"]) / 1e9 for name, at in seconds.items()} | memory_kib()
    print(json.dumps(answer), file=answers, flush=True)


def main(open_contestant: Callable[[dict[str, Any]], Contestant]) -> None:
    """Serve; or, with `--once JSON`, make the contestant ready, decide once and end."""
    if sys.argv[1:2] == ["--once"]:
        first_decision(open_contestant, json.loads(sys.argv[2]))
    else:
        serve(open_contestant)

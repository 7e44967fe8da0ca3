"""Kill commands at the worst moments, and look at what they leave.

    python tools/kill_harness.py [--kills 500] [--jobs N] [--seed S] [--only NAME]... [--out FOLDER]

Every command is first run twice to its end, and every event in which it changes a file is counted. Then it is killed: a
third of the times before one of these events, in turn; a third at a random time close to one; a third at any time. A
tenth of the signals are SIGTERM, the others SIGKILL. Afterwards every artefact must be as before or as after, and open.
Then the same command runs again: it must succeed, leave what it always leaves, and nothing else, in the folder or among
the temporary files. The exit status is 1 if anything was found; the folder of such a kill is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from killing import commands, states
from killing.child import Kill, end_with_parent, ended, fork
from killing.commands import COMMANDS, Command

_TERM_STATUSES = (0, 128 + signal.SIGTERM, -signal.SIGTERM)


@dataclass
class Row:
    """Figures of one command."""

    name: str
    events: int = 0
    seconds: float = 0.0
    kills: int = 0
    ended_before: int = 0
    left_before: int = 0
    left_after: int = 0
    findings: list[str] = field(default_factory=list)


class Harness:
    """Kills one command, again and again.

    Args:
        base: Folder with the artefacts that commands need, and the dataset.
        room: Folder for everything that is made.
        out: Folder that findings are kept in.
        name: Name of the command.
    """

    def __init__(self, base: Path, room: Path, out: Path, name: str) -> None:
        self._base, self._room, self._out = base, room, out
        self._command: Command = COMMANDS[name]
        self.row = Row(name)
        self._number = 0

    def _fresh(self) -> tuple[Path, Path, Path]:
        """Return a new folder with the artefacts before, one for temporary files, and the name of a log."""
        self._number += 1
        place = self._room / str(self._number)
        for name in ("work", "tmp"):
            (place / name).mkdir(parents=True)
        for name in self._command.needs:
            source, target = self._base / name, place / "work" / name
            if source.is_dir():
                shutil.copytree(source, target)
            else:
                shutil.copyfile(source, target)
        return place / "work", place / "tmp", place / "log"

    def _run(self, work: Path, tmp: Path, log: Path, kill: Kill | None = None, more: tuple[str, ...] = ()) -> int:
        arguments = (*self._command.arguments, *more)
        number = fork(arguments, self._base / "data", work, tmp, log, kill)
        if kill is not None and not kill.event:
            time.sleep(kill.after_s)
            # It has not been waited for: the number is still its own.
            os.kill(number, kill.signal)
        return ended(number)

    def learn(self) -> list[float]:
        """Run the command twice to its end; return the times of its events."""
        runs, times = [], list[float]()
        for _ in range(2):
            work, tmp, log = self._fresh()
            before = states.artefacts(work)
            time.sleep(1.1)  # records have the time in seconds: what holds it must differ
            started = time.monotonic()
            if status := self._run(work, tmp, log):
                raise RuntimeError(f"{self.row.name}: exit status {status}: {log.read_text()[-2000:]}")
            self.row.seconds = time.monotonic() - started
            times = [when for when, _ in json.loads(log.with_suffix(".events").read_bytes())]
            runs.append(states.artefacts(work))
            if left := _left(work, tmp):
                self.row.findings.append(f"left behind without a kill: {left[:5]}")
            shutil.rmtree(work.parent)
        self.row.events = len(times)
        self._expected = states.Expected(before, *runs)
        return times

    def try_kill(self, kill: Kill) -> None:
        """Kill the command once, look, run it again, and look again."""
        work, tmp, log = self._fresh()
        status = self._run(work, tmp, log, kill)
        self.row.kills += 1
        self.row.ended_before += status >= 0 and kill.signal == signal.SIGKILL
        left = _left(work, tmp)
        self.row.left_before += bool(left)
        found = []
        if kill.signal == signal.SIGTERM:
            if status not in _TERM_STATUSES:
                found.append(f"exit status {status}: {log.read_text()[-500:]}")
            # Before Python runs, or once the command is done, there is no handler that could clean up.
            elif left and status != -signal.SIGTERM:
                found.append(f"left behind by SIGTERM: {left[:5]}")
        found += [f"after the kill: {problem}" for problem in self._expected.problems(work, is_done=False)]
        again = log.with_name("again")
        status = self._run(work, tmp, again)
        if status and "--overwrite" in again.read_text():
            status = self._run(work, tmp, again, more=("--overwrite",))
        if status:
            found.append(f"the next command ended with {status}: {again.read_text()[-1000:]}")
        found += [f"after the next command: {problem}" for problem in self._expected.problems(work, is_done=True)]
        if left := _left(work, tmp):
            self.row.left_after += 1
            found.append(f"left behind after the next command: {left[:5]}")
        if found:
            self.row.findings += [f"{kill}: {text}" for text in found]
            kept = self._out / f"{self.row.name.replace(' ', '-')}-{self._number}"
            shutil.copytree(work.parent, kept, dirs_exist_ok=True)
            (kept / "finding.txt").write_text("\n".join([str(kill), *found]))
        shutil.rmtree(work.parent)


def _left(work: Path, tmp: Path) -> list[str]:
    """Return scratch in the folder, and everything among the temporary files."""
    # An empty folder that torch makes when it is imported, for a compiler that is not used.
    return states.scratch(work) + [path.name for path in tmp.iterdir() if not path.name.startswith("torchinductor_")]


def draw_kills(count: int, times: list[float], seconds: float, rng: random.Random) -> Iterator[Kill]:
    """Yield kills: before events in turn, at times close to events, and at any time."""
    order = list(range(1, len(times) + 1))
    rng.shuffle(order)
    for index in range(count):
        number = signal.SIGTERM if index % 10 == 9 else signal.SIGKILL
        if index % 3 == 0:
            yield Kill(number, event=order[(index // 3) % len(order)])
        elif index % 3 == 1:
            yield Kill(number, after_s=max(0.0, rng.choice(times) + rng.gauss(0.0, 0.005)))
        else:
            yield Kill(number, after_s=rng.uniform(0.0, seconds))


def divided(kills: int, names: list[str]) -> list[tuple[str, int]]:
    """Return the kills of each command by their weights, the quick commands first."""
    total = sum(COMMANDS[name].weight for name in names)
    shares = {name: kills * COMMANDS[name].weight // total for name in names}
    for name in names[: kills - sum(shares.values())]:
        shares[name] += 1
    return sorted(shares.items(), key=lambda item: -COMMANDS[item[0]].weight)


def prepare(names: list[str], base: Path, room: Path) -> None:
    """Make the dataset and the artefacts that commands need, in processes of their own."""
    number = os.fork()
    if number == 0:
        try:
            commands.write_inputs(base)
            os._exit(0)
        finally:
            os._exit(1)
    if ended(number):
        raise RuntimeError("the inputs could not be made")
    (room / "tmp").mkdir()
    for arguments in commands.setup(names):
        log = room / "log"
        if status := ended(fork(arguments, base / "data", base, room / "tmp", log, None)):
            raise RuntimeError(f"{' '.join(arguments)}: exit status {status}: {log.read_text()[-2000:]}")


def kill_command(name: str, count: int, base: Path, out: Path, seed: int) -> Row:
    """Kill one command `count` times; return the figures."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="kills-", dir=memory if os.access(memory, os.W_OK) else None) as room:
        harness = Harness(base, Path(room), out, name)
        times = harness.learn()
        for kill in draw_kills(count, times, harness.row.seconds, random.Random(f"{seed} {name}")):
            harness.try_kill(kill)
        return harness.row


def run(names: list[str], kills: int, jobs: int, seed: int, out: Path) -> list[Row]:
    """Kill several commands, some at a time, the kills divided among them; return the figures."""
    # Small arrays gain nothing from threads, and threads do not survive a fork.
    os.environ.update(OMP_NUM_THREADS="1", ORT_DISABLE_TELEMETRY="1")
    sys.path.append(str(Path(__file__).parents[1] / "tests" / "helpers"))
    commands.preload()
    out.mkdir(parents=True, exist_ok=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="kills-") as place:
        base, room = Path(place, "base"), Path(place, "room")
        base.mkdir()
        room.mkdir()
        prepare(names, base, room)
        waiting = divided(kills, names)
        running: dict[int, str] = {}
        while waiting or running:
            while waiting and len(running) < jobs:
                name, count = waiting.pop(0)
                # Forked before any thread begins; each lane tells its figures in a file.
                if number := os.fork():
                    running[number] = name
                    continue
                end_with_parent()
                try:
                    row = kill_command(name, count, base, out, seed)
                except BaseException as err:
                    row = Row(name, findings=[f"the harness failed: {type(err).__name__}: {err}"])
                finally:
                    (room / f"{name}.json").write_text(json.dumps(vars(row)))
                    os._exit(0)
            number, _ = os.wait()
            name = running.pop(number)
            row = Row(**json.loads((room / f"{name}.json").read_bytes()))
            rows.append(row)
            print(_line(row), flush=True)
    return rows


_HEADINGS = ("command", "events", "seconds", "kills", "ended before", "left at kill", "left after next", "findings")


def _line(row: Row) -> str:
    figures = (row.events, f"{row.seconds:.2f}", row.kills, row.ended_before, row.left_before, row.left_after)
    return " | ".join((f"{row.name:18}", *(f"{figure!s:>8}" for figure in figures), f"{len(row.findings):>8}"))


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=500, help="kills in all, divided among the commands")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="commands killed at a time")
    parser.add_argument("--seed", type=int, default=0, help="seed of the moments")
    parser.add_argument("--only", action="append", choices=list(COMMANDS), help="only this command; may be repeated")
    parser.add_argument("--out", type=Path, default=Path("build/kills"), help="folder for findings and summary.json")
    options = parser.parse_args()
    names = options.only or list(COMMANDS)
    if "engine build" in names and not commands.has_tensorrt():
        print("engine build is left out: TensorRT-RTX is not installed; engine put drives the cache")
        names.remove("engine build")
    print(" | ".join(_HEADINGS))
    started = time.monotonic()
    rows = run(names, options.kills, options.jobs, options.seed, options.out)
    (options.out / "summary.json").write_text(json.dumps([vars(row) for row in rows], indent=1) + "\n")
    findings = [f"{row.name}: {finding}" for row in rows for finding in row.findings]
    print(f"{sum(row.kills for row in rows)} kills in {time.monotonic() - started:.0f} s, {len(findings)} findings")
    print("\n".join(findings[:50]))
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())

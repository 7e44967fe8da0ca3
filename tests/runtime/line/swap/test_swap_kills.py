"""A line is killed in each step of a swap: what a restart finds is whole, and no part is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from line_project import png, read_line
from line_stand_ins import wait_until
from swapped_lines import check_generations, running, top, verdict_of, write_bundle_at

from flawscope.bundle import open_bundle
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.swap.active import active_file, read_active
from flawscope.runtime.line.swap.run import STEPS

# Forks a line again and again, so that the imports are paid for once; nothing has a thread when it forks.
_KILLER = """
import os, signal, sys, threading, time
from pathlib import Path
from line_project import png, read_config, without_http
from flawscope.runtime.line import line as line_module
from flawscope.runtime.line.swap import station_bundles
from flawscope.runtime.line.swap.run import SwapRun

folder = Path(sys.argv[1])
image = png(120)

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

def die_at(point):
    before, _, step = point.partition(" ")
    if step == "write":
        write = station_bundles.write_active
        def wrapped(*arguments):
            if before == "before":
                kill()
            write(*arguments)
            kill()
        station_bundles.write_active = wrapped
        return
    original = SwapRun.step
    from contextlib import contextmanager
    @contextmanager
    def wrapped(self, name):
        with original(self, name) as found:
            if (name, before) == (step, "in"):
                kill()
            yield found
        if (name, before) == (step, "after"):
            kill()
    SwapRun.step = wrapped

def live(point):
    die_at(point)
    line = line_module.Line(without_http(read_config(folder / "line.yml")), lambda text: None)
    line.start()
    station, swaps = line.stations["top"], line.swaps
    digest = swaps.add(folder / "other.flaw")
    in_force = station.measures["cam0"].bundle
    if digest == in_force:
        digest = swaps.add(folder / "tiny.flaw")
    stops = point.endswith("dropped")
    swaps.begin("top", None, digest, None if stops else 3, stop=stops)
    while True:
        station.push({"cam0": image})
        time.sleep(0.01)

for point in sys.argv[2:]:
    child = os.fork()
    if child == 0:
        try:
            live(point)
        finally:
            os._exit(1)
    end = time.monotonic() + 60
    while not (done := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(child, signal.SIGKILL)
            sys.exit("was not killed: " + point)
        time.sleep(0.005)
    if done[1] != signal.SIGKILL:
        sys.exit("the line ended by itself: " + point)
    print(point, flush=True)
"""

_LATE = ["before write", "after write", "after flip"]
_POINTS = [*(f"in {step}" for step in (*STEPS, "dropped")), "after dropped", *_LATE]


@pytest.mark.long
def test_killed_in_any_step_a_restart_finds_one_whole_bundle_and_every_part(tmp_path: Path) -> None:
    digests = {
        write_bundle_at(tmp_path / "tiny.flaw", 150.0): "accept",
        write_bundle_at(tmp_path / "other.flaw", 100.0): "reject",
    }
    (tmp_path / "state" / "challenge" / "top" / "must_reject").mkdir(parents=True)
    (tmp_path / "state" / "challenge" / "top" / "must_reject" / "scratch.png").write_bytes(png(180))
    read = read_line(tmp_path, depth=8)
    environment = {"PYTHONPATH": str(Path(__file__).parents[3] / "helpers"), "PATH": "/usr/bin:/bin"}
    in_force = []
    for point in _POINTS:
        command = [sys.executable, "-c", _KILLER, str(tmp_path), point]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120, check=False)
        assert done.returncode == 0, (point, done.stderr[-3000:])
        active = read_active(active_file(tmp_path / "state", "top"))
        assert active is not None
        (row,) = active.views
        with open_bundle(tmp_path / "state" / "bundles" / f"{row.digest}.flaw") as bundle:
            assert bundle.manifest.digest == row.digest, point
        in_force.append(row.digest)
    # Until the active file is written the old bundle is in force, and from then on the new one.
    assert len(set(in_force[: _POINTS.index("after write")])) == 1
    assert in_force[_POINTS.index("after write")] != in_force[0]
    assert in_force[_POINTS.index("after flip")] == in_force[0]
    with running(tmp_path, read=read) as line:
        station = top(line)
        assert station.measures["cam0"].bundle == in_force[-1]
        assert verdict_of(line, 120).verdict == digests[in_force[-1]]
        wait_until(lambda: station.counters.now().unrecorded == 0)
    check_generations(tmp_path)
    reader = JournalReader(tmp_path / "state")
    try:
        records = reader.parts(limit=10**6)
    finally:
        reader.close()
    assert [record.seq for record in records] == list(range(1, len(records) + 1))
    assert len(records) > len(_POINTS)
    for record in records:
        bundle_of = {view.bundle for view in record.views if view.bundle}
        assert record.verdict == "fault" or {record.verdict} == {digests[digest] for digest in bundle_of}
    verified = verify(tmp_path / "state")
    assert verified.is_whole, verified.lines()
    assert not verified.missing

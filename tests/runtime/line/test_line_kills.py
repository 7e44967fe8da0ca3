"""A line that is killed at any point: no accept was given out without its record, and no part is without one."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from line_project import read_line

from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.verify import verify
from flawscope.runtime.line.line import Line

# Forks a line again and again, so that the imports are paid for once; nothing has a thread when it forks.
_KILLER = """
import os, random, signal, sys, time
from pathlib import Path
from line_project import FileOutput, png, read_config, without_http
from flawscope.runtime.line import line as line_module

folder, kills, seed = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
line_module.open_output = lambda options, station: FileOutput(folder / "signals.jsonl")
images = [png(50), png(100), png(200), b"no image"]
chance = random.Random(seed)

def live(seed):
    chance = random.Random(seed)
    line = line_module.Line(without_http(read_config(folder / "line.yml")), lambda text: None)
    line.start()
    (folder / "started").touch()
    station = line.stations["top"]
    while True:
        station.push({"cam0": chance.choice(images)})
        time.sleep(chance.choice([0.0, 0.0, 0.001, 0.003]))

started = 0
for kill in range(kills):
    (folder / "started").unlink(missing_ok=True)
    child = os.fork()
    if child == 0:
        try:
            live(seed * 1000 + kill)
        finally:
            os._exit(1)
    if chance.random() < 0.8:
        # Most are killed while parts come, the others while the line starts.
        end = time.monotonic() + 60
        while not (folder / "started").exists() and time.monotonic() < end:
            time.sleep(0.001)
            if os.waitpid(child, os.WNOHANG)[0]:
                sys.exit("the line ended by itself")
    time.sleep(chance.uniform(0.0, 0.15))
    started += (folder / "started").exists()
    os.kill(child, signal.SIGKILL)
    if os.waitpid(child, 0)[1] != signal.SIGKILL:
        sys.exit("the line ended by itself")
print(started)
"""


@pytest.mark.parametrize("kills", [pytest.param(20, marks=pytest.mark.long), pytest.param(200, marks=pytest.mark.slow)])
def test_no_accept_without_a_record_and_no_part_without_one(tmp_path: Path, kills: int) -> None:
    read = read_line(tmp_path, depth=8, outputs=[{"kind": "modbus"}])
    command = [sys.executable, "-c", _KILLER, str(tmp_path), str(kills), "7"]
    environment = {"PYTHONPATH": str(Path(__file__).parents[2] / "helpers"), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout) > kills // 2
    said: list[str] = []
    last_line = Line(dataclasses.replace(read, config=_without_outputs(read.config)), said.append)
    last_line.start()
    last_line.stop()
    assert last_line.status().account_holds

    lines = (tmp_path / "signals.jsonl").read_bytes().splitlines()
    signals = {signal["seq"]: signal for signal in map(msgspec.json.decode, lines)}
    assert len(signals) == len(lines), "two signals of one part"
    reader = JournalReader(tmp_path / "state")
    try:
        records = reader.parts(limit=10**6)
        entries = reader.entries(0, 10**6)
    finally:
        reader.close()
    assert [record.seq for record in records] == list(range(1, last_line.status().last_seq + 1))
    assert len(records) > kills
    verdicts = {record.seq: record.verdict for record in records}
    for seq, signal in signals.items():
        # What was given out as an accept stays one, and nothing else becomes one.
        assert (signal["verdict"] == "accept") == (verdicts[seq] == "accept"), (signal, records[seq - 1])
    unheard = {entry["object"] for entry in entries if entry.get("action") == "maybe_not_heard"}
    for seq, verdict in verdicts.items():
        assert verdict != "accept" or seq in signals or f"part {seq}" in unheard
    assert {"accept", "reject", "fault"} <= set(verdicts.values())
    verified = verify(tmp_path / "state")
    assert verified.is_whole, verified.lines()
    assert not verified.missing


def _without_outputs(config):  # type: ignore[no-untyped-def]
    (station,) = config.stations
    return msgspec.structs.replace(config, stations=(msgspec.structs.replace(station, outputs=()),))

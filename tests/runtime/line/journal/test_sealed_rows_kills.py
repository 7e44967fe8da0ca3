"""A process that is killed at any moment while it records, seals and drops: nothing is lost, and nothing double."""

from __future__ import annotations

import gzip
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from line_journals import WAIT_S, SetClock, a_part, opened

from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.journal.sealed import SEALED, links_of
from flawscope.runtime.line.journal.verify import verify

# A process that forks one that records and keeps, and one that waits for it: the imports are made once. Each part is an
# hour younger than the one before it, so that each day of 24 parts becomes old while it runs.
_KEEPS = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from line_journals import SetClock, a_part
import msgspec
from flawscope.runtime.line.clock import iso
from flawscope.runtime.line.journal import keeping
from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.keeping import Bounds, RowKeeper

keeping.PERIOD_S, keeping.DROP_ROWS, keeping.READ_ROWS = 0.002, 5, 7
HOUR = 3600 * 10**9

def work():
    folder = Path(sys.argv[1])
    clock = SetClock()
    journal = Journal.open(folder, "press", clock)
    seq = journal.last_seq
    clock.wall_ns += seq * HOUR
    clock.now_ns += seq * HOUR
    keeper = RowKeeper(folder, journal, clock, 2, Bounds(required=("mes",)), most_rows=60, load=1.0, settle_s=0.0)
    keeper.start()
    room = threading.Semaphore(16)
    def answer(seq):
        def done(error):
            os.write(1, b"%d\\n" % (seq if error is None else -seq))
            room.release()
        return done
    while True:
        seq += 1
        clock.wall_ns += HOUR
        clock.now_ns += HOUR
        room.acquire()
        part = a_part(seq, ("accept", "accept", "reject", "fault")[seq % 4])
        journal.record(msgspec.structs.replace(part, utc=iso(clock.wall_ns)), answer(seq))
        if seq % 3 == 0:
            journal.set_cursor("mes", journal.last_link)

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        work()
    os.write(1, b"pid %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


def killed(process: subprocess.Popen[bytes], number: int, pause_s: float) -> list[int]:
    """Let it work, kill it after so many records and a pause, and return the numbers that it said are on record."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"go\n")
    process.stdin.flush()
    said: list[int] = []
    child = None
    while (word := process.stdout.readline().decode().strip()) != "dead":
        assert word
        if word.startswith("pid"):
            child = int(word[4:])
        else:
            said.append(int(word))
        if child is not None and len(said) >= number:
            time.sleep(pause_s)
            os.kill(child, signal.SIGKILL)
            child = None
    return said


def entries(folder: Path) -> tuple[Counter[int], Counter[int]]:
    """Return the places of the entries in sealed files that the journal names, and of the rows behind them."""
    in_files: Counter[int] = Counter()
    with sqlite3.connect(folder / FILE) as connection:
        floor = connection.execute("SELECT MAX(last_link) FROM sealed").fetchone()[0] or 0
        names = [name for (name,) in connection.execute("SELECT file FROM sealed")]
        rows: Counter[int] = Counter()
        for table in ("part_record", "event", "head"):
            rows.update(link for (link,) in connection.execute(f"SELECT link FROM {table} WHERE link > {floor}"))
    connection.close()
    for name in names:
        lines = map(json.loads, gzip.decompress((folder / SEALED / name).read_bytes()).splitlines())
        in_files.update(line["link"] for line in lines if "link" in line)
    return in_files, rows


def has_dropped(folder: Path) -> bool:
    """Return whether there are sealed files, and rows of theirs are gone."""
    with opened(folder, SetClock()) as journal:
        is_first_there = journal.entries(0, 1)[0]["link"] == 1
    return not is_first_there and len([path for path in (folder / SEALED).iterdir() if links_of(path.name)]) > 1


def check_kills(folder: Path, kills: int) -> None:
    generator = random.Random(20)
    helpers = Path(__file__).parents[3] / "helpers"
    command = [sys.executable, "-u", "-c", _KEEPS, str(folder), str(helpers)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    last = number = 0
    try:
        # More of them where none came while rows were dropped.
        while number < kills or not has_dropped(folder):
            number += 1
            assert number <= 10 * kills
            said = killed(process, generator.randrange(1, 200), generator.random() * 0.03)
            assert all(seq > 0 for seq in said), said
            found = verify(folder)
            assert found.is_whole, found
            assert found.missing == ()
            assert found.parts >= max(said, default=last)
            last = found.parts
            in_files, rows = entries(folder)
            assert set((in_files + rows).values()) <= {1}
            assert sorted(in_files + rows) == list(range(1, found.last_link + 1))
    finally:
        process.stdin.close()
        process.wait(WAIT_S)
        process.stdout.close()
    with opened(folder, SetClock()) as journal:
        assert journal.problem == ""
        assert journal.last_seq == last
        assert sum(journal.counts().values()) == last
        expected = Counter(("accept", "accept", "reject", "fault")[seq % 4] for seq in range(1, last + 1))
        assert journal.counts() == {("top", verdict): number for verdict, number in expected.items()}
        journal.record(a_part(last + 1))
    assert verify(folder).is_whole


@pytest.mark.long
def test_eight_kills_while_rows_are_sealed_and_dropped(tmp_path: Path) -> None:
    check_kills(tmp_path / "state", 8)


@pytest.mark.slow
def test_sixty_kills_while_rows_are_sealed_and_dropped(tmp_path: Path) -> None:
    check_kills(tmp_path / "state", 60)

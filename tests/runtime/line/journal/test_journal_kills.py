"""A process that is killed, and a disk that loses its last writes: what was said to be on record is there."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
from line_journals import WAIT_S, SetClock, a_part, opened

from flawscope.runtime.line.journal.journal import Journal
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.journal.schema import FILE
from flawscope.runtime.line.journal.verify import verify

# A process that forks one that records: the imports, which take most of the time, are made once.
_RECORDS = """
import os, sys, threading
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from line_journals import SetClock, a_part
from flawscope.runtime.line.journal.journal import Journal

def record():
    journal = Journal.open(Path(sys.argv[1]), "press", SetClock())
    room = threading.Semaphore(64)
    def answer(seq):
        def done(error):
            if error is not None:
                os.write(1, b"error %r\\n" % (str(error),))
            os.write(1, b"%d\\n" % seq)
            room.release()
        return done
    seq = journal.last_seq
    while True:
        seq += 1
        room.acquire()
        journal.record(a_part(seq, ("accept", "accept", "reject", "fault")[seq % 4]), answer(seq))
        if seq % 7 == 0:
            journal.event("seventh", object=str(seq))

for _ in sys.stdin:
    child = os.fork()
    if child == 0:
        record()
    os.write(1, b"pid %d\\n" % child)
    os.waitpid(child, 0)
    os.write(1, b"dead\\n")
"""


class Recorders:
    """Starts processes that record as fast as they can, one after the other, and kills each."""

    def __init__(self, folder: Path) -> None:
        helpers = Path(__file__).parents[3] / "helpers"
        command = [sys.executable, "-u", "-c", _RECORDS, str(folder), str(helpers)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._stdin: IO[bytes] = self._process.stdin
        self._stdout: IO[bytes] = self._process.stdout

    def killed_after(self, number: int, pause_s: float) -> list[int]:
        """Start one, kill it after so many records and a pause, and return the numbers that it said are on record."""
        self._stdin.write(b"go\n")
        self._stdin.flush()
        said: list[int] = []
        child = None
        while True:
            word = self._stdout.readline().decode().strip()
            assert word
            assert not word.startswith("error"), word
            if word.startswith("pid"):
                child = int(word[4:])
            elif word == "dead":
                return said
            else:
                said.append(int(word))
            if child is not None and len(said) >= number:
                time.sleep(pause_s)
                os.kill(child, signal.SIGKILL)
                child = None

    def close(self) -> None:
        self._stdin.close()
        self._process.wait(WAIT_S)
        self._stdout.close()


def check_kills(folder: Path, kills: int) -> None:
    generator = random.Random(19)
    recorders = Recorders(folder)
    try:
        last = 0
        for _ in range(kills):
            # A third of them while it opens the journal.
            number = generator.choice((0, generator.randrange(1, 50), generator.randrange(50, 400)))
            said = recorders.killed_after(number, generator.random() * 0.02)
            found = verify(folder) if (folder / FILE).exists() else None
            if found is None or found.last_link == 0:
                assert said == []
                continue
            assert found.is_whole, found
            assert found.missing == ()
            reader = JournalReader(folder)
            parts = reader.parts(after_seq=last, limit=100_000)
            reader.close()
            # Recorded in order: those that were not answered for are at the end.
            assert [part.seq for part in parts] == list(range(last + 1, last + 1 + len(parts)))
            assert said == list(range(last + 1, last + 1 + len(said)))
            assert len(parts) >= len(said)
            for part in parts:
                assert part == a_part(part.seq, ("accept", "accept", "reject", "fault")[part.seq % 4])  # type: ignore[arg-type]
            last += len(parts)
        assert last > 10 * kills
    finally:
        recorders.close()
    with opened(folder) as journal:
        assert journal.problem == ""
        assert journal.last_seq == last
        assert sum(journal.counts().values()) == last
    assert verify(folder).is_whole


@pytest.mark.long
def test_twenty_kills_lose_no_record_that_was_answered_for(tmp_path: Path) -> None:
    check_kills(tmp_path, 20)


@pytest.mark.slow
def test_two_hundred_kills_lose_no_record_that_was_answered_for(tmp_path: Path) -> None:
    check_kills(tmp_path, 200)


@pytest.fixture(scope="module")
def hot_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a journal that is being written, as a power cut leaves them; two heads are signed."""
    folder = tmp_path_factory.mktemp("hot") / "state"
    with opened(folder) as journal:
        journal.record(a_part(1))
    journal = Journal.open(folder, "press", SetClock())
    try:
        for seq in range(2, 60):
            journal.record(a_part(seq))
            journal.flush(WAIT_S)
        copied = folder.with_name("copied")
        shutil.copytree(folder, copied)
    finally:
        journal.close()
    return copied


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.5, 0.77, 0.9, 0.999])
@pytest.mark.parametrize("filler", [b"", b"\0" * 5000, b"\xa5" * 5000])
def test_a_disk_that_lies_about_its_last_writes_leaves_a_shorter_chain(
    hot_files: Path, tmp_path: Path, share: float, filler: bytes
) -> None:
    """What a power cut may lose where the disk ignores FULL: the end, and nothing in the middle."""
    folder = tmp_path / "state"
    shutil.copytree(hot_files, folder)
    wal = folder / (FILE + "-wal")
    data = wal.read_bytes()
    wal.write_bytes(data[: int(len(data) * share)] + filler)
    (folder / (FILE + "-shm")).unlink(missing_ok=True)
    with opened(folder) as journal:
        # Either it goes on with what is there, or, before a signed head, it says what is lost.
        is_cut = "ends before entry" in journal.problem
        assert is_cut or journal.problem == ""
        last = journal.last_seq
        if is_cut:
            assert last > 59
        else:
            assert [part.seq for part in journal.parts()] == list(range(1, last + 1))
        journal.record(a_part(last + 1))
    assert verify(folder).is_whole

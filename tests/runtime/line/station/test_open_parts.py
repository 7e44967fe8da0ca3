"""Numbers of parts outlive the process that gave them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import StorageError
from flawscope.runtime.line.station.open_parts import _SIZE, MOST_ID_BYTES, OpenParts


def test_numbers_have_no_gap_and_open_parts_are_found_again(tmp_path: Path) -> None:
    path = tmp_path / "open_parts.bin"
    first = OpenParts(path, 0)
    assert first.left_open == []
    assert [first.begin("top", f"part {n}", 10 + n, 20 + n) for n in range(4)] == [1, 2, 3, 4]
    first.recorded(2)
    first.giving(3)
    first.close()
    second = OpenParts(path, 2)
    # 1 has no record although a later part has: both are told by its slot, and 2 is not.
    assert [(part.seq, part.is_given) for part in second.left_open] == [(1, False), (3, True), (4, False)]
    assert second.left_open[0]._replace(is_given=False)[1:] == ("top", "part 0", 10, 20, False)
    assert second.begin("top", "", 0, 0) == 5
    second.recorded(1)
    second.close()
    third = OpenParts(path, 2)
    assert [part.seq for part in third.left_open] == [3, 4, 5]
    third.close()


def test_numbers_go_on_after_the_journal(tmp_path: Path) -> None:
    parts = OpenParts(tmp_path / "open_parts.bin", 1000)
    assert parts.begin("top", "", 0, 0) == 1001
    parts.close()


def test_more_than_there_are_slots(tmp_path: Path) -> None:
    path = tmp_path / "open_parts.bin"
    parts = OpenParts(path, 0)
    for seq in range(1, 5001):
        assert parts.begin("top", "x", 1, 1) == seq
    parts.recorded(5000)  # it has no slot
    parts.close()
    again = OpenParts(path, 0)
    assert [part.seq for part in again.left_open] == list(range(1, 5001))
    assert [part.station for part in again.left_open[4095:4097]] == ["top", ""]
    again.close()


@settings(max_examples=30, deadline=None)
@given(names=st.lists(st.text(max_size=300), min_size=1, max_size=8))
def test_names_are_cut_and_never_break_it(tmp_path_factory: pytest.TempPathFactory, names: list[str]) -> None:
    path = tmp_path_factory.mktemp("parts") / "open_parts.bin"
    parts = OpenParts(path, 0)
    for name in names:
        parts.begin("top", name, 0, 0)
    parts.close()
    again = OpenParts(path, 0)
    for part, name in zip(again.left_open, names, strict=True):
        assert len(part.part_id.encode()) <= MOST_ID_BYTES
        assert name.encode(errors="replace").decode().startswith(part.part_id)
    again.close()


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 10, b"\0" * _SIZE, b"something else", b"flawscope parts\x02" + b"\0" * 2000]
)
def test_another_file_is_refused_and_an_empty_one_is_begun(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "open_parts.bin"
    path.write_bytes(content)
    if content.strip(b"\0"):
        with pytest.raises(StorageError, match="expected the parts that are open"):
            OpenParts(path, 0)
        assert path.read_bytes() == content
    else:
        parts = OpenParts(path, 7)
        assert parts.begin("top", "", 0, 0) == 8
        parts.close()


_KILLED = """
import os, signal, sys
from pathlib import Path
from flawscope.runtime.line.station.open_parts import OpenParts
parts = OpenParts(Path(sys.argv[1]), 0)
for seq in range(1, int(sys.argv[2]) + 1):
    parts.begin("top", str(seq), seq, seq)
    print(seq, flush=True)
    if seq % 2 == 0:
        parts.recorded(seq)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_noted_stays_when_the_process_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "open_parts.bin"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path), "7"], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    parts = OpenParts(path, 6)
    assert [part.seq for part in parts.left_open] == [1, 3, 5, 7]
    assert parts.begin("top", "", 0, 0) == 8
    parts.close()

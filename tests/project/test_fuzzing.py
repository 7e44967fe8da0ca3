"""Fuzzing of what opens strangers' files: a share of the long campaigns, and proof that each kind of finding is found.

The long ones are `make fuzz`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fuzzing import campaign
from fuzzing.targets import BUNDLES

# Each cases and what is done with them; the content of a case is a number.
PLANTED = '''
import ctypes, os, pathlib, socket, subprocess, tempfile, time
from hypothesis import strategies as st
from fuzzing.cases import INPUT, Case
from fuzzing.guard import Finding
from fuzzing.targets import Target
from flawscope.errors import BundleError

def at_seven(do):
    """Do something in the case of the number 7; all others are refused."""
    def work(folder):
        if (folder / INPUT).read_bytes() == b"7":
            return do(folder)
        raise BundleError(f"{folder}: expected 7, got another number. Choose 7.")
    numbers = st.integers(0, 12).map(lambda number: Case(str(number).encode()))
    return Target(lambda seeds, bait: numbers, work)

def c_open(folder):
    """Open a file outside where Python does not see it, as a library does."""
    path = str(folder.parent / "bait" / "secret").encode()
    os.close(ctypes.CDLL(None).open(path, 0))

begun = []

def busy():
    """Return whether 1.4 s of work are done since the first call."""
    begun.append(time.process_time())
    return begun[-1] > begun[0] + 1.4

crash = at_seven(lambda folder: ctypes.string_at(0))
abort = at_seven(lambda folder: os.abort())
hang = at_seven(lambda folder: [None for _ in iter(int, 1)])
wait = at_seven(lambda folder: time.sleep(600))
slow = at_seven(lambda folder: [None for _ in iter(busy, True)])
exception = at_seven(lambda folder: {}["missing"])
memory = at_seven(lambda folder: bytearray(b"x") * (1200 << 20))
read = at_seven(lambda folder: open("/etc/passwd").close())
write = at_seven(lambda folder: open(folder / "more", "w").close())
library = at_seven(c_open)
connect = at_seven(lambda folder: socket.socket().connect(("127.0.0.1", 9)))
start = at_seven(lambda folder: subprocess.run(["true"]))
remove = at_seven(lambda folder: os.remove(folder.parent / "bait" / "secret"))
leave = at_seven(lambda folder: tempfile.mkdtemp())
speak = at_seven(lambda folder: os.write(2, b"a warning"))
empty = at_seven(lambda folder: (_ for _ in ()).throw(BundleError("")))
said = at_seven(lambda folder: (_ for _ in ()).throw(Finding("inconsistent", "two sizes")))
fine = at_seven(lambda folder: None)
'''
KINDS = {
    "crash": "crash",
    "abort": "crash",
    "hang": "hang",
    "wait": "hang",
    "slow": "slow",
    "exception": "exception",
    "memory": "memory",
    "read": "escape",
    "write": "escape",
    "library": "escape",
    "connect": "escape",
    "start": "escape",
    "remove": "escape",
    "leave": "leftover",
    "speak": "noise",
    "empty": "message",
    "said": "inconsistent",
}


@pytest.mark.parametrize(
    "number", [pytest.param(350, marks=pytest.mark.long), pytest.param(4000, marks=pytest.mark.slow)]
)
def test_many_changed_bundles_open_or_are_refused(tmp_path: Path, number: int) -> None:
    jobs = min(os.cpu_count() or 1, 4)
    summary = campaign.run(dict.fromkeys(BUNDLES, number), tmp_path / "found", seed=16, jobs=jobs)
    assert summary.found == {}, list((tmp_path / "found").iterdir())
    assert summary.cases == dict.fromkeys(BUNDLES, number)
    # Changes that are refused at the first check would try nothing behind it.
    assert min(summary.succeeded.values()) >= number // 40


@pytest.mark.long
def test_thousands_of_changed_images_are_decoded_or_refused(tmp_path: Path) -> None:
    summary = campaign.run({"image": 4000}, tmp_path / "found", seed=16)
    assert summary.found == {}, list((tmp_path / "found").iterdir())
    assert summary.cases == {"image": 4000}
    assert summary.succeeded["image"] >= 400


@pytest.mark.slow
def test_every_kind_of_fault_is_found_and_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(PLANTED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    found = tmp_path / "found"
    # 13 numbers: all of them are drawn, and the cases after the seventh are tried as well.
    counts = {f"planted:{name}": 13 for name in (*KINDS, "fine")}
    # A second: the memory of a case takes a good part of one where the system is slow to give it.
    summary = campaign.run(counts, found, jobs=min(os.cpu_count() or 1, 4), case_limit_s=1.0)
    kinds: dict[str, set[str]] = {}
    for key in summary.found:
        target, finding = key.removeprefix("planted:").split(": ", 1)
        kinds.setdefault(target, set()).add(finding.split()[0])
    assert kinds.keys() == KINDS.keys()
    for target, kind in KINDS.items():
        # On a busy computer any case may also take too long.
        assert kind in kinds[target] <= {kind, "slow", "hang"}, sorted(summary.found)
    assert summary.succeeded["planted:fine"] == 1
    kept = sorted(found.iterdir())
    assert len(kept) >= len(KINDS)
    for folder in kept:
        assert (folder / "input").read_bytes() == b"7"
        if "planted:leave" in folder.name:
            assert [key.split()[0] for key in campaign.replay(folder, tmp_path / "again")] == ["leftover"]

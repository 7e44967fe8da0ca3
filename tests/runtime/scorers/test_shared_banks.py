"""Banks that processes have in common: one file, mapped by all, and written anew where it is not what it should be."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from flawscope.bundle import PatchcoreHead
from flawscope.cpp_ext import HAVE_NATIVE, Bank, WindowBank, native
from flawscope.cpp_ext.window import windows_simd_level
from flawscope.runtime.scorers import patchcore_scorer
from flawscope.runtime.scorers.bank_scorer import packed_bank, packed_window_bank, share_banks

pytestmark = pytest.mark.skipif(not HAVE_NATIVE, reason=f"no native kernels: {native.MISSING_BECAUSE}")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "shared"
    place.mkdir()
    share_banks(place)
    yield place
    share_banks(None)


def rows_of(count: int = 300, channels: int = 33, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(count, channels)).astype(np.float32)


def the_file(folder: Path) -> Path:
    (path,) = folder.iterdir()
    return path


def is_mapped(bank: Bank) -> bool:
    """Whether a bank lies in a file: what this process has for itself could be written to."""
    assert bank.rows is not None
    return not bank.rows.flags.writeable


def assert_searches(bank: Bank, rows: npt.NDArray[np.float32]) -> None:
    queries = rows_of(40, rows.shape[1], seed=9)
    for one, other in zip(bank.nearest(queries, 5), Bank(rows).nearest(queries, 5), strict=True):
        np.testing.assert_array_equal(one, other)


def test_the_second_maps_what_the_first_has_written(folder: Path) -> None:
    rows = rows_of()
    first = packed_bank(rows)
    before = the_file(folder).stat()
    assert stat.S_IMODE(before.st_mode) == 0o600
    second = packed_bank(rows.copy())
    after = the_file(folder).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    for bank in (first, second):
        assert is_mapped(bank)
        assert_searches(bank, rows)


def test_without_a_folder_nothing_is_written(folder: Path) -> None:
    share_banks(None)
    rows = rows_of()
    bank = packed_bank(rows)
    assert bank.rows is rows
    assert list(folder.iterdir()) == []


def test_other_rows_of_one_shape_and_other_levels_have_files_of_their_own(folder: Path) -> None:
    levels = list(native.MODULE.simd_levels())
    level = native.MODULE.simd_level()
    try:
        for name in levels:
            native.MODULE.set_simd_level(name)
            for seed in (0, 1):
                assert_searches(packed_bank(rows_of(seed=seed)), rows_of(seed=seed))
    finally:
        native.MODULE.set_simd_level(level)
    assert len(list(folder.iterdir())) == 2 * len(levels)


def _flip(data: bytes) -> bytes:
    place = 3 * len(data) // 4
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    "harm",
    [
        _flip,
        lambda data: data[: len(data) // 2],
        lambda data: b"",
        lambda data: b"no bank at all",
        lambda data: data[:8] + b"\x02" + data[9:],
        lambda data: bytes(len(data)),
        lambda data: Bank(rows_of(seed=5)).to_block().tobytes(),
    ],
    ids=["a bit", "cut off", "empty", "another kind", "another version", "zeros", "other rows"],
)
def test_what_is_damaged_or_foreign_is_never_searched_but_written_anew(
    folder: Path, harm: Any, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of()
    packed_bank(rows)
    path = the_file(folder)
    good = path.read_bytes()
    path.unlink()  # the first bank still maps the file: it must not change under it
    path.write_bytes(harm(good))
    with caplog.at_level(logging.WARNING):
        bank = packed_bank(rows)
    assert "packed anew" in caplog.text
    assert is_mapped(bank)
    assert_searches(bank, rows)
    assert the_file(folder).read_bytes() == good


def test_a_pipe_in_its_place_is_not_waited_for(folder: Path) -> None:
    rows = rows_of()
    packed_bank(rows)
    path = the_file(folder)
    path.unlink()
    os.mkfifo(path)
    assert_searches(packed_bank(rows), rows)
    assert path.is_file()


def test_where_nothing_can_be_written_the_bank_is_its_own_and_a_line_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rmdir()
    folder.write_bytes(b"")
    rows = rows_of()
    bank = packed_bank(rows)
    assert "takes more memory" in caplog.text
    assert not is_mapped(bank)
    assert_searches(bank, rows)


def test_one_that_changes_while_it_is_written_is_not_believed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Bank, "to_block", lambda bank: np.zeros(8192, np.uint8))
    rows = rows_of()
    bank = packed_bank(rows)
    assert "that was just written" in caplog.text
    assert not is_mapped(bank)
    assert_searches(bank, rows)


GRID = (3, 2)


def places_of(count: int) -> npt.NDArray[np.int64]:
    """Places of a grid for so many rows, in order."""
    cells = np.arange(count) * GRID[0] * GRID[1] // count
    return np.stack(np.divmod(cells, GRID[1]), axis=1)


def assert_searches_within(bank: WindowBank, rows: npt.NDArray[np.float32], radius: int) -> None:
    queries = rows_of(12, rows.shape[1], seed=9)
    wanted = WindowBank(rows, places_of(len(rows)), GRID, radius).nearest(queries)
    for one, other in zip(bank.nearest(queries), wanted, strict=True):
        np.testing.assert_array_equal(one, other)


def test_banks_with_windows_map_one_file_whatever_their_places(folder: Path) -> None:
    rows = rows_of()
    first = packed_window_bank(rows, places_of(300), GRID, 0)
    before = the_file(folder).stat()
    second = packed_window_bank(rows.copy(), places_of(300), GRID, 1)
    after = the_file(folder).stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    for bank, radius in ((first, 0), (second, 1)):
        assert not bank.rows.flags.writeable
        assert_searches_within(bank, rows, radius)
    # The whole bank of these rows, as a re-weighting searches it: the same file, where windows take that level, too.
    packed_bank(rows)
    assert len(list(folder.iterdir())) == (1 if windows_simd_level() == native.MODULE.simd_level() else 2)


def test_a_damaged_file_is_never_searched_within_windows_but_written_anew(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = rows_of()
    packed_window_bank(rows, places_of(300), GRID, 1)
    path = the_file(folder)
    good = path.read_bytes()
    path.unlink()
    path.write_bytes(_flip(good))
    bank = packed_window_bank(rows, places_of(300), GRID, 1)
    assert "packed anew" in caplog.text
    assert_searches_within(bank, rows, 1)
    assert the_file(folder).read_bytes() == good


def test_where_nothing_can_be_written_windows_are_their_own_and_a_line_says_so(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder.rmdir()
    folder.write_bytes(b"")
    rows = rows_of()
    bank = packed_window_bank(rows, places_of(300), GRID, 1)
    assert "takes more memory" in caplog.text
    assert bank.rows.flags.writeable
    assert_searches_within(bank, rows, 1)


@pytest.mark.parametrize("window", [None, 1])
@pytest.mark.parametrize("reweight", ["paper", "seed", "none"])
def test_a_head_keeps_no_rows_beside_the_shared_ones(
    folder: Path, reweight: Any, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(60, 7)
    squared = ((rows[:, None] - rows[None]) ** 2).sum(axis=2)
    tensors = {
        "bank": rows,
        "neighbours": np.argsort(squared, axis=1)[:, :3].astype(np.int64),
        "places": places_of(60),
    }
    head = PatchcoreHead(GRID, 3, reweight, 1.0, window=window)
    patches = rows_of(12, 7, seed=3).reshape(2, 6, 7)
    kept: list[Any] = []

    class Finish(patchcore_scorer.PatchcoreFinish):
        def __init__(self, head: Any, tensors: Any, *others: Any) -> None:
            kept.append(tensors)
            super().__init__(head, tensors, *others)

    monkeypatch.setattr(patchcore_scorer, "PatchcoreFinish", Finish)
    shared = patchcore_scorer.native_head(head, tensors, (12, 10))(patches)
    share_banks(None)
    own = patchcore_scorer.native_head(head, tensors, (12, 10))(patches)
    for one, other in zip(shared, own, strict=True):
        np.testing.assert_array_equal(one, other)
    assert [given["bank"].flags.writeable for given in kept] == [False, True]

from __future__ import annotations

from pathlib import Path

import pytest

from flawscope.errors import DataError
from flawscope.runtime.scale.inputs import Item, Reader, list_items
from flawscope.runtime.scale.inputs.hashes import hashed


def test_an_image_that_could_not_be_hashed_stays_a_fault(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "b")
    with Reader() as reader:
        (item,) = hashed(list_items([tmp_path / "a.png"]), reader.read)
        assert (item.sha256, "No such file" in item.fault) == ("", True)
        (tmp_path / "b").write_bytes(b"another image than any that was listed")
        with pytest.raises(DataError, match="No such file"):
            reader.read(item)


def test_an_error_of_a_library_is_a_fault_of_its_image_alone() -> None:
    def read(item: Item) -> bytes:
        if item.name == "b":
            raise TypeError("of a library")
        return b"1"

    first, second = hashed([Item("a", "a"), Item("b", "b")], read)
    assert (first.fault, second.fault) == ("", "b: unexpected TypeError: of a library")
    assert len(first.sha256) == 64

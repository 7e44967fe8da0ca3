from __future__ import annotations

import errno
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import StorageError
from flawscope.files import free_name
from flawscope.runtime.scale.inputs import Item, taken
from flawscope.runtime.scale.inputs.places import safe_place
from flawscope.runtime.scale.inputs.sorting import sorted_names
from flawscope.runtime.scale.inputs.taken import each_once, own_places

TEXTS = st.lists(st.sampled_from(["a", "a_2", "a_3", "b", "a_2_2", "\udcff", "é"]), max_size=60)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let few texts go all the ways that millions go."""
    monkeypatch.setattr(taken, "_BLOCK", 5)
    monkeypatch.setattr(taken, "_YOUNG", 3)


@given(TEXTS)
def test_places_are_those_of_free_name(places: list[str]) -> None:
    names = set[str]()
    items = [Item(str(number), place) for number, place in enumerate(places)]
    own = list(own_places(items))
    assert [item.place for item in own] == [free_name(place, names) for place in places]
    assert [msgspec.structs.replace(item, place="") for item in own] == [Item(str(n), "") for n in range(len(places))]


@given(TEXTS)
def test_each_is_there_once_in_the_order_of_the_first(names: list[str]) -> None:
    items = [Item(name, "place", number) for number, name in enumerate(names)]
    assert [item.name for item in each_once(items)] == list(dict.fromkeys(names))


def test_members_of_one_name_are_two_images() -> None:
    items = [Item("a.tar::x.png", "x", 1, "tar", ("a.tar", offset, 99)) for offset in (512, 2048, 512)]
    assert list(each_once(items)) == items[:2]


@settings(max_examples=30)
@given(st.sets(st.text(st.characters(blacklist_characters="/\0", blacklist_categories=("Cs",)), min_size=1)))
def test_names_are_sorted_with_files_as_without(names: set[str]) -> None:
    names |= {"line\nend", "line", "\udcff", "line\n"}
    assert list(sorted_names(iter(names), at_once=3)) == sorted(names)


@given(st.lists(st.text(st.characters(), max_size=300), min_size=1, max_size=4))
def test_a_place_never_leads_out(names: list[str]) -> None:
    place = safe_place(*names)
    assert not place.startswith("/")
    parts = place.split("/")
    assert all(part not in ("", ".", "..") and len(part.encode()) < 220 for part in parts)
    assert not set(place) & set("\\:\0\n")
    root = Path("/maps")
    assert (root / f"{place}.png").resolve().is_relative_to(root)


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("../../etc/passwd.png", "etc/passwd"),
        ("/abs/a.png", "abs/a"),
        ("..\\..\\a.png", "a"),
        ("C:\\x\\a.png", "C_/x/a"),
        ("./a/./b.png", "a/b"),
        ("a\x1b[2J.png", "a_x1b[2J"),
        ("..", "image"),
        ("", "image"),
    ],
)
def test_places_of_odd_names(name: str, place: str) -> None:
    assert safe_place(name) == place


def test_two_long_names_keep_two_places() -> None:
    one, two = (safe_place("x" * 400 + end + ".png") for end in "ab")
    assert one != two


def test_a_name_of_many_folders_fits_a_path() -> None:
    first, second = (safe_place("/".join(["d" * 100] * 100) + f"/{name}/x.png") for name in "ab")
    assert first != second
    assert len(first) < 1000
    assert first.endswith("/x")


def test_a_full_disk_of_temporary_files_ends_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(StorageError, match="the disk is full"):
        list(sorted_names(map(str, range(10)), at_once=3))

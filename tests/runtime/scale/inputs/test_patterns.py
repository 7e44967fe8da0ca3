from __future__ import annotations

import glob
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.runtime.scale.inputs import Found, list_items
from flawscope.runtime.scale.inputs.patterns import Pattern, has_magic


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [
        ("*.png", "a.png", True),
        ("*.png", "a/b.png", False),
        ("**.png", "a/b.png", True),
        ("**/*.png", "a.png", True),
        ("**/*.png", "a/b/c.png", True),
        ("a/**/b.png", "a/b.png", True),
        ("a/**/b.png", "a/x/y/b.png", True),
        ("a/**/b.png", "ab.png", False),
        ("a**/*.png", "ax/y/z.png", True),
        ("**", "a/b.png", True),
        ("a?.png", "ab.png", True),
        ("a?b.png", "a/b.png", False),
        ("[ab].png", "b.png", True),
        ("[!ab].png", "b.png", False),
        ("[!a]b.png", "/b.png", False),
        ("[]x].png", "].png", True),
        ("[^]x].png", "].png", False),
        ("[a-c].png", "b.png", True),
        ("[*].png", "*.png", True),
        ("[*].png", "a.png", False),
        ("[a.png", "[a.png", True),
        ("a[&&b].png", "a&.png", True),
        ("line?end.png", "line\nend.png", True),
        ("part*", "parts/good/1.png", True),
        ("part*/good", "parts/bad/1.png", False),
    ],
)
def test_what_a_pattern_matches(pattern: str, path: str, fits: bool) -> None:
    assert Pattern(pattern).matches(path) is fits


@pytest.mark.parametrize(
    ("text", "root", "parts", "literal"),
    [
        ("data/lot*/x.png", "data", ["lot*", "x.png"], "data/lot"),
        ("/data//./a/**", "/data/a", ["**"], "/data/a/"),
        ("*.png", "", ["*.png"], ""),
        ("/*.png", "/", ["*.png"], "/"),
        ("s3://bucket/a/b*.png", "s3://bucket/a", ["b*.png"], "s3://bucket/a/b"),
    ],
)
def test_where_a_pattern_begins(text: str, root: str, parts: list[str], literal: str) -> None:
    pattern = Pattern(text)
    assert (pattern.root, pattern.parts, pattern.literal) == (root, parts, literal)


def test_a_pattern_that_means_nothing_is_refused() -> None:
    with pytest.raises(ArgumentError, match="expected a pattern, got one that means nothing"):
        Pattern("[z-a].png")


_PARTS = st.sampled_from(["a", "b", "*", "?", "a*", "*b", "[ab]", "[!a]", "*.png", "a.png", "?.png"])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(_PARTS, st.just("**")), min_size=1, max_size=4))
def test_patterns_match_as_those_of_python_do(tmp_path_factory: pytest.TempPathFactory, parts: list[str]) -> None:
    root = tmp_path_factory.getbasetemp() / "globbed"
    if not root.exists():
        for folder in (".", "a", "b", "ab", "a/a", "a/b", "b/ab/a"):
            (root / folder).mkdir(parents=True, exist_ok=True)
            for name in ("a.png", "b.png", "ab.png", "note.txt"):
                (root / folder / name).touch()
    pattern = "/".join(parts)
    if not has_magic(pattern):
        return
    wanted = set[str]()
    # Not that of Path, which has another meaning of `**` in older versions of Python.
    for found in glob.glob(f"{root}/{pattern}", recursive=True):  # noqa: PTH207
        below = [found] if Path(found).is_file() else glob.glob(f"{found}/**", recursive=True)  # noqa: PTH207
        wanted.update(os.path.normpath(path) for path in below if path.endswith(".png"))
    if not wanted:
        with pytest.raises(ArgumentError):
            list(list_items([f"{root}/{pattern}"]))
        return
    assert {item.name for item in list_items([f"{root}/{pattern}"])} == wanted


def test_a_pattern_lists_no_folder_in_which_nothing_can_match(tmp_path: Path) -> None:
    for name in ("lot1/good/a.png", "lot1/bad/b.png", "lot2/good/c.png", "other/good/d.png", "lot1/good/deep/e.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Found()
    items = list(list_items([f"{tmp_path}/lot*/good/*.png"], found=found))
    assert [item.place for item in items] == ["lot1/good/a", "lot2/good/c"]
    listed = {Path(path).relative_to(tmp_path.resolve()).as_posix() for path in found.folders}
    assert listed == {".", "lot1", "lot1/good", "lot2", "lot2/good"}


def test_masks_are_passed_over_unless_a_pattern_names_them(tmp_path: Path) -> None:
    for name in ("bottle/test/a.png", "bottle/ground_truth/a_mask.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = Found()
    assert [item.place for item in list_items([f"{tmp_path}/**"], found=found)] == ["bottle/test/a"]
    assert found.masks == [f"{tmp_path}/bottle/ground_truth"]
    named = list(list_items([f"{tmp_path}/*/ground_truth/*.png"]))
    assert [item.place for item in named] == ["bottle/ground_truth/a_mask"]


def test_two_patterns_of_one_folder_give_all_images_once(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg", "c.bmp"):
        (tmp_path / name).touch()
    named = [f"{tmp_path}/*.png", f"{tmp_path}/*.jpg", f"{tmp_path}/[ab].*", tmp_path]
    assert [Path(item.name).name for item in list_items(named)] == ["a.png", "b.jpg", "c.bmp"]


def test_a_file_that_is_called_like_a_pattern_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].png").touch()
    (tmp_path / "a1.png").touch()
    assert [Path(item.name).name for item in list_items([f"{tmp_path}/a[1].png"])] == ["a[1].png"]
    assert [Path(item.name).name for item in list_items([tmp_path / "a*.png"])] == ["a*.png"]  # a Path is no pattern


def test_a_pattern_of_nothing_is_refused(tmp_path: Path) -> None:
    (tmp_path / "note.txt").touch()
    for pattern in ("*.png", "*", "none*/**"):
        with pytest.raises(ArgumentError, match="expected images there, got none"):
            list(list_items([f"{tmp_path}/{pattern}"]))
    with pytest.raises(ArgumentError, match=r"expected the folder .*missing, got none of that name"):
        list(list_items([f"{tmp_path}/missing/*.png"]))

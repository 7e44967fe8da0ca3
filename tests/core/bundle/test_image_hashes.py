"""`images.json`: the bytes that every bundle has had, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_bundles import write_fake_bundle

from flawscope.bundle import IMAGE_HASHES, ImageHashes, open_bundle, read_image_hashes, write_bundle
from flawscope.cross_scores import CrossScores
from flawscope.errors import BundleError


def test_the_bytes_stay_as_they_are() -> None:
    """A bundle's digest covers them: other bytes would make an export of the same run another bundle."""
    assert IMAGE_HASHES == "images.json"
    assert ImageHashes(("ab", "cd"), held_out=()).encode() == b'{"training":["ab","cd"],"held_out":[]}'


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    with open_bundle(write_fake_bundle(tmp_path / "part.flaw", training=["ab"], held_out=["cd", "ef"])) as bundle:
        assert read_image_hashes(bundle) == ImageHashes(("ab",), ("cd", "ef"))


def test_cross_fitted_scores_lie_beside_the_hashes(tmp_path: Path) -> None:
    cross = CrossScores(2, ("ab", "cd"), (1.5, 2.25), (1.0, 2.0))
    with open_bundle(write_fake_bundle(tmp_path / "part.flaw", training=["cd", "ab"], cross=cross)) as bundle:
        assert read_image_hashes(bundle) == ImageHashes(("cd", "ab"), (), cross)


@pytest.mark.parametrize(
    "text",
    [b"", b"\xff\xfe", b"{}", b'{"training": [], "held_out": [], "test": []}', b'{"training": [1]}', b"[" * 9999]
    + [
        b'{"training":["ab","cd"],"held_out":[],"cross":' + cross + b"}"
        for cross in (
            b'{"folds":2,"images":["ab","ef"],"scores":[1,2],"map_max":[1,2]}',  # of an image that was not learned
            b'{"folds":2,"images":["ab","ab"],"scores":[1,2],"map_max":[1,2]}',
            b'{"folds":2,"images":["ab","cd"],"scores":[1],"map_max":[1,2]}',
            b'{"folds":3,"images":["ab","cd"],"scores":[1,2],"map_max":[1,2]}',
            b'{"folds":1,"images":["ab","cd"],"scores":[1,2],"map_max":[1,2]}',
            b'{"folds":2,"images":["ab","cd"],"scores":[1,1e999],"map_max":[1,2]}',
            b'{"folds":2,"images":["ab","cd"],"scores":[1,null],"map_max":[1,2]}',
        )
    ],
)
def test_a_broken_file_is_one_line_that_names_it(tmp_path: Path, text: bytes) -> None:
    with open_bundle(write_fake_bundle(tmp_path / "part.flaw")) as whole:
        manifest = whole.manifest
    files: dict[str, Path | bytes] = {"score.onnx": b"graph", "bank.safetensors": b"bank", IMAGE_HASHES: text}
    write_bundle(tmp_path / "broken.flaw", manifest, files)
    with (
        open_bundle(tmp_path / "broken.flaw") as bundle,
        pytest.raises(BundleError, match=r"images\.json: expected the hashes") as raised,
    ):
        read_image_hashes(bundle)
    assert "\n" not in str(raised.value)

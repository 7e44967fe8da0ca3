"""Images of the gate of a reduced precision: what a detector has learned is no evidence of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from fake_bundles import write_fake_bundle
from tiny_judged import Place, write_place

from flawscope.bundle import open_bundle
from flawscope.calibration.quantization.gate_limits import Limits
from flawscope.datasets import image_hash, open_dataset
from flawscope.errors import DataError
from flawscope.export.precisions import Wanted, read_images
from flawscope.progress import no_progress

WANTED_IMAGES = Limits(1.0, 1.0, -1.0, 1.0, 0.5, images=5)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    return write_place(tmp_path_factory.mktemp("gate"))


def test_test_images_that_were_learned_from_are_not_among_the_labelled_ones(place: Place, tmp_path: Path) -> None:
    dataset = open_dataset(place.root)
    with open_bundle(write_fake_bundle(tmp_path / "part.flaw")) as bundle:
        manifest = bundle.manifest
    wanted = Wanted(("int8",), dataset, dataset, limits={"int8": WANTED_IMAGES})
    learned = [*place.seen, image_hash(dataset.test[0].path)]
    labelled = read_images(wanted, manifest, learned, no_progress).labelled
    assert {sample.path for sample in dataset.test} - {sample.path for sample in labelled} == {
        dataset.test[0].path,
        place.root / place.spot,
    }
    with pytest.raises(DataError, match="expected test images that the detector has not learned from, for the gate"):
        read_images(wanted, manifest, [image_hash(sample.path) for sample in dataset.test], no_progress)

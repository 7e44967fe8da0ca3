"""Random changes of images: anew at every access, from the generator alone, within their limits."""

from __future__ import annotations

import pytest
import torch

from flawscope.training.loop.augment import augment

NONE = {"flip": False, "rotate": 0.0, "color_jitter": 0.0}


def images(count: int = 4, height: int = 16, width: int = 24) -> torch.Tensor:
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(7)) * 2 - 1


def changed(seed: int = 0, **settings: object) -> torch.Tensor:
    return augment(images(), torch.Generator().manual_seed(seed), **{**NONE, **settings})  # type: ignore[arg-type]


def test_nothing_is_changed_unless_it_is_asked_for() -> None:
    torch.testing.assert_close(changed(), images(), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{"flip": True}, {"rotate": 20.0}, {"color_jitter": 0.3}])
def test_every_access_is_changed_anew_and_the_seed_repeats_it(settings: dict[str, object]) -> None:
    assert torch.equal(changed(3, **settings), changed(3, **settings))
    assert any(not torch.equal(changed(3, **settings), changed(seed, **settings)) for seed in range(4, 12))
    augmented = changed(3, **settings)
    assert augmented.shape == images().shape
    assert float(augmented.abs().max()) <= 1.0 + 1e-6


def test_about_half_of_the_images_are_mirrored_and_the_others_are_as_they_were() -> None:
    many = images(64)
    augmented = augment(many, torch.Generator().manual_seed(0), flip=True, rotate=0.0, color_jitter=0.0)
    mirrored = [torch.equal(image, original.flip(2)) for image, original in zip(augmented, many, strict=True)]
    unchanged = [torch.equal(image, original) for image, original in zip(augmented, many, strict=True)]
    assert all(image != original for image, original in zip(mirrored, unchanged, strict=True))
    assert 16 < sum(mirrored) < 48


def test_a_turn_keeps_lengths_on_images_that_are_not_square() -> None:
    """A disc in the middle stays one whatever the angle; shearing would make it an ellipse."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(80.0), indexing="ij")
    disc = (((rows - 19.5) ** 2 + (columns - 39.5) ** 2) < 12**2).float() * 2 - 1
    rotated = augment(
        disc.expand(3, 3, 40, 80), torch.Generator().manual_seed(1), flip=False, rotate=90.0, color_jitter=0.0
    )
    near = ((rows - 19.5) ** 2 + (columns - 39.5) ** 2) < 19**2  # farther away other parts are reflected in
    assert float((rotated - disc).abs()[:, :, near].mean()) < 0.06


def test_colours_change_only_within_the_limit() -> None:
    grey = torch.zeros((8, 3, 4, 4))  # in the middle of the range: saturation and contrast do not touch it
    augmented = augment(grey, torch.Generator().manual_seed(0), flip=False, rotate=0.0, color_jitter=0.2)
    share = (augmented + 1.0) / 2.0 / 0.5
    assert float(share.min()) >= 0.8 - 1e-6
    assert float(share.max()) <= 1.2 + 1e-6
    assert float(share.std()) > 0.01

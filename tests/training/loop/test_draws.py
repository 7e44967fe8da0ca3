"""An image gets the random numbers that it gets in one process, whichever process has it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.errors import ArgumentError
from flawscope.training.diffusion.noise import draw_noise, noise_levels
from flawscope.training.loop import draws
from flawscope.training.loop.augment import augment
from flawscope.training.loop.schedule import check_batch

CPU = torch.device("cpu")


def drawn(generator: torch.Generator, images: torch.Tensor) -> list[torch.Tensor]:
    """Draw all that trainings draw for a batch, one after the other."""
    count = len(images)
    changed = augment(images, generator, flip=True, rotate=20.0, color_jitter=0.3)
    return [
        changed,
        noise_levels(count, 1000, generator),
        draw_noise("simplex", (count, 3, 8, 8), generator),
        draw_noise("gaussian", (count, 3, 8, 8), generator),
        draws.uniform((4, count), generator, dim=1).T,
        draws.normal((count, 2), generator, dtype=torch.float64),
    ]


@given(count=st.integers(1, 7), world=st.integers(2, 4), seed=st.integers(0, 1000))
@settings(max_examples=15, deadline=None)
def test_the_parts_of_a_batch_are_those_of_the_whole(count: int, world: int, seed: int) -> None:
    images = torch.rand((count, 3, 8, 8), generator=torch.Generator().manual_seed(seed)) * 2 - 1
    whole = drawn(draws.batch_generator(CPU, seed, count, np.arange(count)), images)
    for rank in range(min(world, count)):
        rows = np.arange(rank, count, world)
        generator = draws.batch_generator(CPU, seed, count, rows)
        for part, of_whole in zip(drawn(generator, images[rows]), whole, strict=True):
            torch.testing.assert_close(part, of_whole[rows], rtol=1e-5, atol=1e-5)


def test_a_whole_batch_has_a_plain_generator_and_its_numbers() -> None:
    generator = draws.batch_generator(CPU, 5, 3, np.arange(3))
    assert type(generator) is torch.Generator
    assert draws.rows_here(generator) is None
    expected = torch.randn((3, 2), generator=torch.Generator().manual_seed(5))
    assert torch.equal(draws.normal((3, 2), generator), expected)


def test_rows_of_something_else_than_the_batch_are_a_mistake() -> None:
    generator = draws.batch_generator(CPU, 5, 4, np.array([1, 3]))
    with pytest.raises(AssertionError, match="expected one row for each of 2 images, got 3"):
        draws.uniform((3,), generator)


@pytest.mark.parametrize(("batch", "processes"), [(8, 1), (8, 2), (8, 8), (1, 1)])
def test_a_batch_that_divides_is_taken(batch: int, processes: int) -> None:
    check_batch(batch, processes)


@pytest.mark.parametrize(
    ("batch", "processes", "said"),
    [
        (8, 3, "Set batch_size=6 or 9, or start 2 processes"),
        (2, 4, "Set batch_size=4, or start 2 processes"),
        (7, 2, "Set batch_size=6 or 8, or start 1 process."),
    ],
)
def test_a_batch_that_does_not_divide_is_refused_with_those_that_do(batch: int, processes: int, said: str) -> None:
    with pytest.raises(ArgumentError, match=f"multiple of {processes}.*got {batch}. {said}"):
        check_batch(batch, processes)

"""How varied images are: scores that are known exactly, groups worked out by hand, and what changes neither."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from published_weights import Held, inception_state
from torch import Tensor

from flawscope.errors import DataError
from flawscope.training.loop.image_batches import Numbers
from flawscope.training.segmentation.variety import (
    INCEPTION_SIDE_PX,
    LEAST_IN_SPLIT,
    SPLITS,
    Groups,
    build_inception,
    class_probabilities,
    group_by_nearest,
    inception_score,
)

# ---- Inception score -------------------------------------------------------------------------------------------------


def random_probabilities(count: int, classes: int = 7) -> npt.NDArray[np.float64]:
    return np.random.default_rng(2).dirichlet(np.full(classes, 0.3), count)


def test_images_of_one_kind_score_one() -> None:
    score = inception_score(np.tile(random_probabilities(1), (6, 1)))
    assert score.mean == pytest.approx(1.0, abs=1e-12)
    assert (score.deviation, score.splits, score.pictures) == (None, 1, 6)


@pytest.mark.parametrize("kinds", [1, 2, 5])
def test_images_of_k_certain_kinds_in_equal_parts_score_k(kinds: int) -> None:
    assert inception_score(np.tile(np.eye(kinds), (4, 1))).mean == pytest.approx(kinds, rel=1e-12)


def test_the_score_is_that_of_the_paper() -> None:
    rows = random_probabilities(9)
    marginal = [sum(row[k] for row in rows) / 9 for k in range(7)]
    divergences = [sum(row[k] * (np.log(row[k]) - np.log(marginal[k])) for k in range(7)) for row in rows]
    assert inception_score(rows).mean == pytest.approx(float(np.exp(sum(divergences) / 9)), rel=1e-12)


def test_from_a_hundred_images_on_there_are_ten_splits_that_take_turns() -> None:
    assert SPLITS * LEAST_IN_SPLIT == 100
    assert inception_score(random_probabilities(99)).splits == 1
    rows = random_probabilities(103)
    score = inception_score(rows)
    alone = [inception_score(rows[first::10]).mean for first in range(10)]
    assert score.splits == 10
    assert score.pictures == 103
    assert score.mean == pytest.approx(np.mean(alone), rel=1e-12)
    assert score.deviation == pytest.approx(np.std(alone), rel=1e-12)
    # In order, each split would have one kind, and the score would be 1.
    assert inception_score(np.repeat(np.eye(2), 100, axis=0)).mean == pytest.approx(2.0, rel=1e-12)


@given(
    rows=st.lists(st.lists(st.floats(1e-3, 1.0), min_size=4, max_size=4), min_size=1, max_size=12),
    order=st.randoms(use_true_random=False),
)
def test_a_score_lies_between_one_and_the_number_of_kinds_and_knows_no_order(
    rows: list[list[float]], order: Any
) -> None:
    probabilities = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    score = inception_score(probabilities).mean
    assert 1.0 - 1e-9 <= score <= min(4, len(rows)) + 1e-9
    order.shuffle(rows)
    again = np.array(rows) / np.sum(rows, axis=1, keepdims=True)
    assert inception_score(again).mean == pytest.approx(score, rel=1e-9)


class Shown:
    """Images in memory."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)

    def batches(self, order: Sequence[int] | npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.uint8]]:
        numbers = np.asarray(order)
        for start in range(0, len(numbers), size):
            yield self._images[numbers[start : start + size]]


@pytest.mark.long
def test_probabilities_are_those_of_torchvision_with_its_own_preparation() -> None:
    state = inception_state()
    images = np.random.default_rng(0).integers(0, 256, (2, INCEPTION_SIDE_PX, INCEPTION_SIDE_PX, 3)).astype(np.uint8)
    progressed: list[tuple[str, int, int]] = []
    probabilities = class_probabilities(
        build_inception(Held("inception.pth", state)),
        Shown(images),
        batch=1,
        device="cpu",
        progress=lambda *call: progressed.append(call),
    )
    theirs = torchvision.models.inception_v3(weights=None, init_weights=False, transform_input=True)
    theirs.load_state_dict(state)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    normalised = ((torch.from_numpy(images) / 255.0 - mean) / std).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs.eval()(normalised).double().softmax(1).numpy()
    np.testing.assert_allclose(probabilities, expected, rtol=1e-3)
    assert np.abs(probabilities[0] - probabilities[1]).max() > 1e-6
    assert probabilities.sum(1) == pytest.approx(1.0, abs=1e-12)
    assert progressed == [("Inception score", 1, 2), ("Inception score", 2, 2)]


def test_files_that_are_not_inception_v3_are_refused_and_counters_are_not_missed() -> None:
    small = {"fc.weight": torch.zeros(10, 2048)}
    with pytest.raises(
        DataError, match=r"^i\.pth: expected the tensors of torchvision's inception_v3, got none named "
    ):
        build_inception(Held("i.pth", small))
    with torch.device("meta"):
        shapes = torchvision.models.inception_v3(weights=None, init_weights=False, aux_logits=False).state_dict()
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in shapes.items()}
    with pytest.raises(DataError, match=r"got fc\.bias \[10\] in place of \[1000\]"):
        build_inception(Held("i.pth", {**state, "fc.bias": torch.zeros(10)}))
    older = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    assert len(older) < len(state)
    assert not build_inception(Held("i.pth", older)).training


def test_logits_that_are_not_finite_are_refused() -> None:
    def broken(values: Tensor) -> Tensor:
        return values.mean((2, 3)) * torch.nan

    images = np.zeros((1, 8, 8, 3), np.uint8)
    with pytest.raises(DataError, match="inception_v3: expected finite logits"):
        class_probabilities(broken, Shown(images), batch=1, device="cpu")  # type: ignore[arg-type]


# ---- IC-LPIPS --------------------------------------------------------------------------------------------------------


class Vectors:
    """Drawn images and support images that are numbers, and their vectors; looks are counted."""

    def __init__(self, support: Any, drawn: Any) -> None:
        support, drawn = np.atleast_2d(support), np.atleast_2d(drawn)
        self.support, self.drawn = Numbers(len(support)), _Later(Numbers(len(drawn)), len(support))
        self._all = torch.from_numpy(np.concatenate([support, drawn]).astype(np.float32))
        self.looks = 0

    def embed(self, numbers: npt.NDArray[np.int64]) -> Tensor:
        self.looks += int((numbers >= len(self.support)).sum())
        return self._all[torch.from_numpy(numbers)]

    def groups(self, *, batch: int = 3, budget: int = 1 << 20, progress: Any = lambda *_: None) -> Groups:
        return group_by_nearest(self.embed, self.support, self.drawn, batch=batch, budget=budget, progress=progress)


class _Later:
    """The same items, whose numbers begin later."""

    def __init__(self, items: Numbers, first: int) -> None:
        self._items, self._first = items, first

    def __len__(self) -> int:
        return len(self._items)

    def batches(self, order: Any, size: int) -> Iterator[npt.NDArray[np.int64]]:
        for numbers in self._items.batches(order, size):
            yield numbers + self._first


def test_groups_and_means_are_those_worked_out_by_hand() -> None:
    # Around 0: 1, 2 and -1, with squared distances 1, 4 and 9. Around 10: 11 and 9, with 4. Around 100: one alone.
    groups = Vectors([[0.0], [10.0], [100.0], [1000.0]], [[1.0], [11.0], [2.0], [-1.0], [9.0], [99.0]]).groups()
    assert groups.sizes == (3, 2, 1, 0)
    assert groups.means == (pytest.approx(14 / 3, rel=1e-12), 4.0, None, None)
    assert groups.mean == pytest.approx((14 / 3 + 4) / 2, rel=1e-12)


def test_without_a_group_of_two_there_is_no_figure() -> None:
    groups = Vectors([[0.0], [10.0]], [[1.0], [9.0]]).groups()
    assert groups.sizes == (1, 1)
    assert groups.mean is None


def test_copies_of_support_images_have_no_variety() -> None:
    groups = Vectors([[0.3, 5.1], [7.7, 0.1]], [[0.3, 5.1], [7.7, 0.1]] * 4).groups()
    assert groups.means == (0.0, 0.0)
    same = Vectors([[0.0, 0.0]], [[0.1, 0.7]] * 7).groups()
    assert same.mean == pytest.approx(0.0, abs=1e-12)


def test_of_equally_near_support_images_the_first_is_taken() -> None:
    assert Vectors([[0.0], [2.0]], [[1.0], [1.0]]).groups().sizes == (2, 0)


@pytest.mark.parametrize("batch", [1, 4, 50])
@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
def test_batches_and_memory_change_nothing_and_all_pairs_are_taken(batch: int, at_once: int) -> None:
    chance = np.random.default_rng(4)
    support, drawn = chance.random((5, 6), np.float32), chance.random((23, 6), np.float32)
    progressed: list[tuple[str, int, int]] = []
    vectors = Vectors(support, drawn)
    groups = vectors.groups(batch=batch, budget=at_once * 6 * 4, progress=lambda *call: progressed.append(call))
    nearest = ((drawn[:, None].astype(np.float64) - support[None]) ** 2).sum(2).argmin(1)
    expected = []
    for number in range(5):
        pairs = list(combinations(drawn[nearest == number].astype(np.float64), 2))
        expected.append(float(np.mean([((a - b) ** 2).sum() for a, b in pairs])) if pairs else None)
    assert groups.sizes == tuple(np.bincount(nearest, minlength=5).tolist())
    assert [mean is None for mean in groups.means] == [mean is None for mean in expected]
    for mean, by_pairs in zip(groups.means, expected, strict=True):
        assert mean is None or mean == pytest.approx(by_pairs, rel=1e-6)
    looks = 23 * (-(-5 // at_once) + 1)
    assert progressed[-1] == ("IC-LPIPS", looks, looks)
    assert vectors.looks <= looks


def test_distances_that_are_not_finite_are_refused() -> None:
    with pytest.raises(DataError, match="LPIPS: expected finite distances"):
        Vectors([[0.0]], [[np.inf], [1.0]]).groups()

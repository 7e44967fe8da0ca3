"""LPIPS: the distance of its paper from vectors, of alexnet and vgg16 with published weights, and of nothing else."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from published_weights import CHANNELS, Held, features_state, heads_state
from torch import Tensor

from flawscope.errors import DataError
from flawscope.training.segmentation.lpips import MIN_SIDE_PX, Lpips, build_lpips

NETWORKS = pytest.mark.parametrize("name", ["alexnet", "vgg16"])
features = functools.cache(features_state)


def lpips(name: str) -> Lpips:
    return build_lpips(Held("net.pth", features(name)), Held("heads.pth", heads_state(name)))


def images(count: int, height: int = MIN_SIDE_PX, width: int = MIN_SIDE_PX) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(7).integers(0, 256, (count, height, width, 3)).astype(np.uint8)


def distance(network: Lpips, first: npt.NDArray[np.uint8], second: npt.NDArray[np.uint8]) -> float:
    with torch.no_grad():
        vectors = [network(torch.from_numpy(image)[None])[0] for image in (first, second)]
    return float((vectors[0] - vectors[1]).square().sum(dtype=torch.float64))


def by_the_paper(network: Lpips, heads: dict[str, Tensor], first: Any, second: Any) -> float:
    """The distance in float64 NumPy, stage by stage; only the convolutions are the network's."""
    stages: list[list[npt.NDArray[np.float64]]] = []
    for image in (first, second):
        signed = image.astype(np.float64) / 127.5 - 1.0
        values = ((signed - [-0.030, -0.088, -0.188]) / [0.458, 0.448, 0.450]).transpose(2, 0, 1)[None]
        tensor = torch.from_numpy(values).float()
        features = []
        for number, layer in enumerate(network.features):
            tensor = layer(tensor)
            is_relu = isinstance(layer, torch.nn.ReLU)
            # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 of vgg16; every relu of alexnet.
            if is_relu and (network.name == "alexnet" or number in (3, 8, 15, 22, 29)):
                features.append(tensor[0].detach().double().numpy().copy())
        stages.append(features)
    total = 0.0
    for number, (of_first, of_second) in enumerate(zip(*stages, strict=True)):
        units = [values / (np.sqrt((values**2).sum(0, keepdims=True)) + 1e-10) for values in (of_first, of_second)]
        weights = heads[f"lin{number}.model.1.weight"].double().numpy()[0]
        total += float((weights * (units[0] - units[1]) ** 2).sum(0).mean())
    return total


@NETWORKS
def test_the_distance_is_that_of_the_paper(name: str) -> None:
    network = lpips(name)
    first, second = images(2, MIN_SIDE_PX, MIN_SIDE_PX + 16)
    expected = by_the_paper(network, heads_state(name), first, second)
    assert expected > 0.01
    assert distance(network, first, second) == pytest.approx(expected, rel=1e-4)


@NETWORKS
def test_equal_images_have_distance_zero_and_order_does_not_matter(name: str) -> None:
    network = lpips(name)
    first, second = images(2)
    assert distance(network, first, first) == 0.0
    assert distance(network, first, second) == distance(network, second, first) > 0.0


def test_an_image_that_differs_more_is_further_away() -> None:
    network = lpips("alexnet")
    (image,) = images(1)
    near, far = image.copy(), image.copy()
    near[:8, :8] = 255
    far[:40, :40] = 255
    assert 0.0 < distance(network, image, near) < distance(network, image, far)


def test_which_network_it_is_is_found_and_a_classifier_is_left_aside() -> None:
    for name in CHANNELS:
        whole = {**features(name), "classifier.1.weight": torch.zeros(2, 2)}
        network = build_lpips(Held("net.pth", whole), Held("heads.pth", heads_state(name)))
        assert network.name == name
        assert not any("classifier" in key for key in network.state_dict())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_stage_without_any_feature_counts_nothing() -> None:
    dark = {
        key: torch.full_like(value, -1.0) if key.endswith("bias") else value * 0
        for key, value in features("alexnet").items()
    }
    network = build_lpips(Held("net.pth", dark), Held("heads.pth", heads_state("alexnet")))
    first, second = images(2)
    assert distance(network, first, second) == 0.0


def test_loading_leaves_the_random_numbers_of_a_training_as_they_are() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    lpips("alexnet")
    assert torch.equal(torch.rand(4), expected)


# ---- Wrong files -----------------------------------------------------------------------------------------------------


def changed(state: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    rest = {name: tensor for name, tensor in state.items() if name != key}
    return rest if value is None else {**rest, key: value}


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        (
            "features.0.weight",
            None,
            r"alexnet or vgg16, with features\.0\.weight .*, got 9 tensors \(features\.0\.bias,",
        ),
        ("features.0.weight", torch.zeros(64, 3, 7, 7), r"with features\.0\.weight \[64, 3, 11, 11\] or"),
        ("features.10.bias", None, r"of torchvision's alexnet, got none named features\.10\.bias among its 9 tensors"),
        ("features.10.bias", torch.zeros(3), r"got features\.10\.bias \[3\] in place of \[256\]"),
        ("features.11.weight", torch.zeros(3), r"got features\.11\.weight, which it does not have"),
        ("features.10.bias", torch.full((256,), torch.nan), r"expected finite numbers, got others in features\.10"),
        ("features.10.bias", torch.full((256,), 1e300, dtype=torch.float64), r"expected finite numbers"),
        ("features.10.bias", torch.zeros(256, dtype=torch.int32), r"expected floating-point tensors, got int32"),
    ],
)
def test_features_of_another_network_are_refused(key: str, value: Tensor | None, text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        build_lpips(
            Held("net.pth", changed(features("alexnet"), key, value)), Held("heads.pth", heads_state("alexnet"))
        )
    assert str(caught.value).startswith("net.pth: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("heads", "text"),
    [
        (
            heads_state("vgg16"),
            r"of LPIPS for alexnet, got lin1\.model\.1\.weight \[1, 128, 1, 1\] in place of \[1, 192",
        ),
        (changed(heads_state("alexnet"), "lin4.model.1.weight", None), r"got none named lin4\.model\.1\.weight among"),
        ({**heads_state("alexnet"), "lin5.model.1.weight": torch.zeros(1)}, r"got lin5\.model\.1\.weight, which"),
        (
            changed(heads_state("alexnet"), "lin0.model.1.weight", torch.full((1, 64, 1, 1), -0.1)),
            r"expected weights of at least 0",
        ),
    ],
)
def test_heads_of_another_network_are_refused(heads: dict[str, Tensor], text: str) -> None:
    with pytest.raises(DataError, match=text) as caught:
        build_lpips(Held("net.pth", features("alexnet")), Held("heads.pth", heads))
    assert str(caught.value).startswith("heads.pth: ")


def test_the_channels_of_the_heads_are_those_of_the_stages() -> None:
    for name, counts in CHANNELS.items():
        network = lpips(name)
        assert tuple(network.get_buffer(f"head{stage}").shape[1] for stage in range(5)) == counts

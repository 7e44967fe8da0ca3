"""LPIPS inside a mask: that of torch where the mask covers all, and nothing of what lies far outside."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import safetensors.torch
import torch
from published_weights import Held, features_state, heads_state

from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.masked_lpips import MIN_SIDE_PX, MaskedLpips
from flawscope.training.segmentation.lpips import build_lpips

NETWORKS = pytest.mark.parametrize("name", ["alexnet", "vgg16"])
state_of = functools.cache(features_state)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Files of weights by network: alexnet as safetensors, vgg16 as torch.save writes them."""
    folder = tmp_path_factory.mktemp("weights")
    safetensors.torch.save_file(state_of("alexnet"), folder / "alexnet.safetensors")
    safetensors.torch.save_file(heads_state("alexnet"), folder / "alexnet_heads.safetensors")
    torch.save(state_of("vgg16"), folder / "vgg16.pth")
    torch.save(heads_state("vgg16"), folder / "vgg16_heads.pth")
    return {
        "alexnet": (folder / "alexnet.safetensors", folder / "alexnet_heads.safetensors"),
        "vgg16": (folder / "vgg16.pth", folder / "vgg16_heads.pth"),
    }


@pytest.fixture(scope="module")
def alexnet(files):
    return MaskedLpips.load(*files["alexnet"])


def images(height=MIN_SIDE_PX, width=MIN_SIDE_PX):
    return np.random.default_rng(7).integers(0, 256, (2, height, width, 3)).astype(np.uint8)


@NETWORKS
def test_with_a_mask_of_everything_it_is_the_distance_of_torch(files, name):
    measured = MaskedLpips.load(*files[name])
    reference = build_lpips(Held("net", state_of(name)), Held("heads", heads_state(name)))
    for size in ((MIN_SIDE_PX, MIN_SIDE_PX), (70, 101)):
        first, second = images(*size)
        with torch.no_grad():
            vectors = [reference(torch.from_numpy(image)[None])[0] for image in (first, second)]
        expected = float((vectors[0] - vectors[1]).square().sum(dtype=torch.float64))
        assert measured.measure(first, second, np.ones(size, np.bool_)) == pytest.approx(expected, rel=1e-4)
    assert measured.name == name
    assert measured.files == {path.name: sha256_file(path) for path in files[name]}


def test_only_what_lies_in_the_mask_counts_and_more_change_is_more(alexnet):
    normal = np.clip(np.random.default_rng(1).normal(128, 10, (128, 128, 3)), 0, 255).astype(np.uint8)
    left, right = np.zeros((2, 128, 128), np.bool_)
    left[40:60, 8:24], right[40:60, 104:120] = True, True
    distances = []
    for depth in (10, 40, 90):
        drawn = normal.copy()
        drawn[left] -= np.minimum(drawn[left], np.uint8(depth))
        distances.append(alexnet.measure(drawn, normal, left))
        assert alexnet.measure(drawn, normal, right) < 0.02 * distances[-1]
    assert 0 < distances[0] < distances[1] < distances[2]
    assert alexnet.measure(normal, normal, left) == 0.0
    speck = np.zeros_like(left)
    speck[50, 16] = True
    assert alexnet.measure(drawn, normal, speck) > 0


def test_what_cannot_be_measured_is_one_line(alexnet):
    first, second = images()
    with pytest.raises(ArgumentError, match="mask: expected at least one white pixel"):
        alexnet.measure(first, second, np.zeros((64, 64), np.bool_))
    with pytest.raises(ArgumentError, match="second: expected uint8"):
        alexnet.measure(first, second[:32], np.ones((64, 64), np.bool_))
    with pytest.raises(ArgumentError, match="first: expected sides of at least 64 pixels, got 64x63"):
        alexnet.measure(first[:63], second[:63], np.ones((63, 64), np.bool_))


@pytest.mark.parametrize(
    ("which", "changes", "message"),
    [
        ("features", {"features.0.weight": None}, "expected the tensors of torchvision's alexnet or vgg16"),
        ("features", {"features.6.weight": torch.zeros(384, 192, 5, 5)}, r"expected features.6.weight .*3, 3\], got"),
        ("features", {"features.8.bias": None}, r"expected features.8.bias \[256\], got none"),
        ("features", {"features.8.bias": torch.full((256,), torch.nan)}, "expected finite numbers, got others in"),
        ("features", {"features.8.bias": torch.zeros(256, dtype=torch.int32)}, "expected floating-point tensors, got"),
        (
            "features",
            {"features.8.bias": torch.zeros(256, dtype=torch.bfloat16)},
            "expected float32 or float16, got bfloat16",
        ),
        ("heads", {"lin2.model.1.weight": torch.full((1, 384, 1, 1), -1.0)}, "expected weights of at least 0"),
        ("heads", {"lin4.model.1.weight": None}, r"expected lin4.model.1.weight \[1, 256, 1, 1\], got none"),
    ],
)
def test_weights_of_another_network_are_one_line(files, tmp_path, which, changes, message):
    states = {"features": dict(state_of("alexnet")), "heads": heads_state("alexnet")}
    for name, value in changes.items():
        states[which].pop(name)
        if value is not None:
            states[which][name] = value
    paths = []
    for kind, state in states.items():
        paths.append(tmp_path / f"{kind}.safetensors")
        safetensors.torch.save_file(state, paths[-1])
    with pytest.raises(DataError, match=message) as caught:
        MaskedLpips.load(*paths)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_none_is_one_line(files, tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    for path in (tmp_path / "torn.safetensors", tmp_path / "none.safetensors", tmp_path / "none.pth"):
        with pytest.raises(DataError, match=path.name):
            MaskedLpips.load(path, files["alexnet"][1])

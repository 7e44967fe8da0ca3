"""Backbones of timm with weights from a file or the hub: what fits is loaded, what does not is one sentence."""

from __future__ import annotations

import pickle
import socket
import time
from pathlib import Path

import pytest
import safetensors.torch
import torch

from flawscope.config import FeatureSettings, PadimConfig, from_flat
from flawscope.errors import ArgumentError, FlawscopeError, RunError
from flawscope.training.features.backbone import SCATTERING, build_backbone, restore_backbone

State = dict[str, torch.Tensor]


def resnet_config(**settings: object) -> PadimConfig:
    return from_flat(PadimConfig, {"backbone": "resnet18", "stages": (1, 2), "resize": (64, 64), **settings})


def fresh_state(name: str = "resnet18") -> State:
    import timm

    torch.manual_seed(0)
    state = timm.create_model(name, pretrained=False).state_dict()
    return {key: value.clone().contiguous() for key, value in state.items()}


@pytest.fixture(scope="module")
def resnet_state() -> State:
    """Weights of a whole resnet18, classifier included, as timm names them; random and seeded."""
    return fresh_state()


@pytest.fixture(scope="module")
def resnet_file(tmp_path_factory: pytest.TempPathFactory, resnet_state: State) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    safetensors.torch.save_file(resnet_state, path)
    return path


def assert_one_sentence(error: FlawscopeError) -> None:
    """A message that fits on one line once its white space is, and does not run on for pages."""
    text = " ".join(str(error).split())
    assert 20 < len(text) < 600
    assert "Traceback" not in text


def test_weights_from_a_file_are_the_networks_weights(resnet_file: Path, resnet_state: State) -> None:
    backbone, source = build_backbone(resnet_config().features, resnet_file)
    loaded = backbone.network.state_dict()
    assert len(loaded) > 50
    for key, value in loaded.items():
        assert torch.equal(value, resnet_state[key]), key
    assert source.name == "resnet18"
    assert source.weights.startswith("file sha256:")


def test_stages_of_timm_have_the_strides_the_settings_promise(resnet_file: Path) -> None:
    backbone, _ = build_backbone(resnet_config().features, resnet_file)
    stages = backbone(torch.zeros((2, 64, 64, 3), dtype=torch.uint8))
    assert [tuple(stage.shape) for stage in stages] == [(2, 64, 16, 16), (2, 128, 8, 8)]
    assert backbone.mean == (0.485, 0.456, 0.406)
    assert not any(parameter.requires_grad for parameter in backbone.parameters())
    assert not backbone.training


def test_mean_and_deviation_of_the_settings_win_over_the_models(resnet_file: Path) -> None:
    config = resnet_config(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    backbone, _ = build_backbone(config.features, resnet_file)
    assert (backbone.mean, backbone.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_a_restored_backbone_gives_the_same_features(resnet_file: Path) -> None:
    backbone, _ = build_backbone(resnet_config().features, resnet_file)
    restored = restore_backbone(resnet_config().features, backbone.network.state_dict())
    image = torch.randint(0, 256, (1, 64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    for first, second in zip(backbone(image), restored(image), strict=True):
        assert torch.equal(first, second)


def test_counters_of_batch_norm_may_be_missing(tmp_path: Path, resnet_state: State) -> None:
    path = tmp_path / "w.safetensors"
    state = {key: value for key, value in resnet_state.items() if not key.endswith("num_batches_tracked")}
    safetensors.torch.save_file(state, path)
    backbone, _ = build_backbone(resnet_config().features, path)
    assert torch.equal(backbone.network.state_dict()["conv1.weight"], resnet_state["conv1.weight"])


def test_options_reach_timm(resnet_file: Path) -> None:
    build_backbone(resnet_config(backbone_options={"drop_rate": 0.5}).features, resnet_file)
    with pytest.raises(ArgumentError, match=r"timm could not build resnet18 .*TypeError: .*'no_such_option'"):
        build_backbone(resnet_config(backbone_options={"no_such_option": 1}).features, resnet_file)


def other_architecture(path: Path) -> None:
    safetensors.torch.save_file(fresh_state("mobilenetv2_035"), path)


def other_width(path: Path) -> None:
    state = fresh_state()
    state["layer1.0.conv1.weight"] = torch.zeros((32, 64, 3, 3))
    safetensors.torch.save_file(state, path)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv1.weight": [1.0]}))


def torch_archive(path: Path) -> None:
    torch.save({"conv1.weight": torch.zeros(1)}, path)


def nan_inside(path: Path) -> None:
    state = fresh_state()
    state["layer2.1.bn2.weight"][3] = float("nan")
    safetensors.torch.save_file(state, path)


def truncated(path: Path) -> None:
    safetensors.torch.save_file(fresh_state(), path)
    path.write_bytes(path.read_bytes()[:100_000])


def nothing(path: Path) -> None:
    assert not path.exists()


def folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (other_architecture, r"expected weights of resnet18, got a file without \d+ .* another architecture\?"),
        (other_width, r"layer1\.0\.conv1\.weight: expected \[64, 64, 3, 3\] for resnet18, got \[32, 64, 3, 3\]"),
        (pickled, r"expected a safetensors file .* need unpickling"),
        (torch_archive, r"expected a safetensors file .* need unpickling"),
        (truncated, r"expected a safetensors file"),
        (nan_inside, r"expected finite weights, got NaN"),
        (nothing, r"expected a weights file for resnet18, got no such file\. Check --weights"),
        (folder, r"expected a weights file for resnet18, got a folder"),
    ],
)
def test_weights_that_do_not_fit_are_one_sentence(tmp_path: Path, make: object, match: str) -> None:
    path = tmp_path / "weights.safetensors"
    make(path)  # type: ignore[operator]
    with pytest.raises(RunError, match=match) as caught:
        build_backbone(resnet_config().features, path)
    assert str(path) in str(caught.value)
    assert_one_sentence(caught.value)


def test_a_pickle_is_never_executed(tmp_path: Path) -> None:
    mark = tmp_path / "executed"

    class Trap:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (mark,))

    path = tmp_path / "weights.pth"
    path.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(RunError, match="need unpickling"):
        build_backbone(resnet_config().features, path)
    assert not mark.exists()


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        (
            FeatureSettings(backbone="resnet19"),
            r"backbone: expected scattering or .* got 'resnet19'\. Similar names: .*resnet18",
        ),
        (FeatureSettings(backbone="no-such-net"), r"backbone: expected scattering or the name of a timm model"),
        (FeatureSettings(backbone="[*"), r"backbone: expected scattering or the name of a timm model"),
        (FeatureSettings(backbone="resnet18", stages=(1, 9)), r"resnet18 has the stages 0 to 4 .*, got \[1, 9\]"),
        (
            FeatureSettings(backbone="scattering", stages=(0, 1)),
            r"stages: scattering has the stages 1,2,3,4, got \[0, 1\]",
        ),
        (FeatureSettings(backbone="scattering", stages=(5,)), r"stages: scattering has the stages 1,2,3,4, got \[5\]"),
    ],
)
def test_an_unknown_backbone_or_stage_is_one_sentence(settings: FeatureSettings, match: str) -> None:
    with pytest.raises(ArgumentError, match=match) as caught:
        build_backbone(settings, None)
    assert_one_sentence(caught.value)


def test_scattering_takes_no_weights_file(resnet_file: Path) -> None:
    with pytest.raises(ArgumentError, match=r"weights: the backbone scattering has fixed filters and takes no file"):
        build_backbone(FeatureSettings(backbone=SCATTERING), resnet_file)


def test_a_runs_weights_of_another_architecture_are_refused(resnet_state: State) -> None:
    with pytest.raises(RunError, match=r"the run's weights are not those of resnet34") as caught:
        restore_backbone(FeatureSettings(backbone="resnet34", stages=(1, 2)), resnet_state)
    assert_one_sentence(caught.value)


@pytest.mark.serial
def test_without_a_network_the_hub_is_one_sentence_and_soon(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def no_name(*_: object, **__: object) -> list[object]:
        raise socket.gaierror(-2, "Name or service not known")

    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(socket, "getaddrinfo", no_name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))  # nothing was downloaded before
    started = time.monotonic()
    with pytest.raises(RunError, match=r"weights of resnet18 could not be downloaded from .* --weights FILE") as caught:
        build_backbone(resnet_config().features, None)
    assert time.monotonic() - started < 5
    assert "scattering" in str(caught.value)
    assert_one_sentence(caught.value)


def test_a_model_without_published_weights_says_so() -> None:
    with pytest.raises(RunError, match=r"timm publishes no weights for darknet17\. Give a safetensors file"):
        build_backbone(FeatureSettings(backbone="darknet17", stages=(1,)), None)

"""Weights files of many families: timm's names, wrapped names, other sizes; and files that are of something else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_networks import SMALL, State, plain_network, save, small_settings, small_state

from flawscope.config import FeatureSettings
from flawscope.errors import RunError
from flawscope.training.features.backbone import prepare_backbone, restore_backbone
from flawscope.training.features.weights_file import load_network, read_state

SIZES = {name: (112, 112) if "patch14" in name else (128, 128) for name in SMALL}
BLACK = torch.zeros((1, 128, 128, 3), dtype=torch.uint8)


def picture(size: tuple[int, int]) -> torch.Tensor:
    return torch.randint(0, 256, (1, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))


def write(folder: Path, name: str, state: State | None = None) -> Path:
    """Write a file in timm's own names with a JSON beside it, as weights should have."""
    file = save(small_state(name) if state is None else state, folder / "weights.safetensors")
    file.with_suffix(".json").write_text('{"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]}')
    return file


def features_of_plain(name: str, state: State, settings: FeatureSettings, size: tuple[int, int]) -> list[torch.Tensor]:
    """Stages of the whole network, loaded strictly and read by timm's own `forward_intermediates`."""
    options = {"img_size": size} if "img_size" in settings.backbone_options else {}
    network = plain_network(name, **options)
    network.load_state_dict(state)
    image = ((picture(size).float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    norm = {"norm": True} if settings.final_norm else {}
    with torch.inference_mode():
        found = network.forward_intermediates(  # type: ignore[operator]
            image, indices=list(settings.stages or ()), output_fmt="NCHW", intermediates_only=True, **norm
        )
    return list(found)


@pytest.mark.parametrize("name", SMALL)
def test_a_whole_file_in_timms_names_gives_the_stages_of_the_plain_network(name: str, tmp_path: Path) -> None:
    size = SIZES[name]
    # At the size that it is used at, so that the plain network can be loaded strictly.
    state = small_state(name, **({} if name in ("convnext_atto", "mobilenetv2_035") else {"img_size": size}))
    resolved, backbone, _ = prepare_backbone(small_settings(name), write(tmp_path, name, state), size)
    expected = features_of_plain(name, state, resolved, size)
    with torch.inference_mode():
        stages = backbone(picture(size))
    assert len(stages) == len(expected)
    for ours, theirs in zip(stages, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)
    restored = restore_backbone(resolved, backbone.network.state_dict())
    for first, second in zip(stages, restored(picture(size)), strict=True):
        torch.testing.assert_close(first, second, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        "vit_small_patch14_reg4_dinov2",
        "swin_tiny_patch4_window7_224",
        "swinv2_tiny_window8_256",
        "hiera_tiny_224",
    ],
)
def test_tables_of_positions_are_brought_to_the_size_of_the_images(name: str, tmp_path: Path) -> None:
    state = small_state(name)
    resolved, backbone, _ = prepare_backbone(small_settings(name), write(tmp_path, name, state), SIZES[name])
    loaded = backbone.network.state_dict()
    tables = [key for key in loaded if "pos_embed" in key or "relative_position_bias_table" in key]
    assert tables or name == "swinv2_tiny_window8_256"  # whose table is computed from coordinates
    for key in tables:
        # A mean survives resampling, and no random start has it.
        before = state[key.removeprefix("model.").replace("layers_", "layers.")]
        assert loaded[key].mean().item() == pytest.approx(before.mean().item(), abs=0.02)
    assert resolved.backbone_options["img_size"] == list(SIZES[name])


@pytest.mark.long
@settings(max_examples=5, deadline=None)
@given(
    name=st.sampled_from(["vit_tiny_patch16_224", "convnext_atto", "mobilenetv2_035"]),
    prefix=st.sampled_from(["", "model.", "module.", "backbone.", "module.backbone.", "module.model."]),
    has_classifier=st.booleans(),
    is_half=st.booleans(),
    extra=st.sampled_from([None, "ema_decay", "head_dist.weight"]),
)
def test_prefixes_classifiers_and_half_precision_change_nothing(
    name: str,
    prefix: str,
    has_classifier: bool,
    is_half: bool,
    extra: str | None,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folder = tmp_path_factory.mktemp("weights")
    # Numbers that half precision holds too.
    state = {
        key: value.half().float() if value.is_floating_point() else value for key, value in small_state(name).items()
    }
    _, expected, _ = prepare_backbone(small_settings(name), write(folder, name, state), (64, 64))
    kept = {
        key: value.half() if is_half and value.is_floating_point() else value
        for key, value in state.items()
        if has_classifier or not key.startswith(("head.fc", "classifier", "head.weight", "head.bias"))
    }
    renamed = {f"{prefix}{key}": value for key, value in kept.items()}
    if extra is not None:
        renamed[extra] = torch.ones(3)
    _, backbone, _ = prepare_backbone(small_settings(name), write(folder, name, renamed), (64, 64))
    for key, value in expected.network.state_dict().items():
        assert torch.equal(backbone.network.state_dict()[key], value), key


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "convnext_atto"])
def test_a_file_in_the_names_of_timms_feature_network_loads_too(name: str, tmp_path: Path) -> None:
    resolved, backbone, _ = prepare_backbone(small_settings(name), write(tmp_path, name), SIZES[name])
    state = {key: value.contiguous() for key, value in backbone.network.state_dict().items()}
    again = load_network(resolved, save(state, tmp_path / "wrapped.safetensors"), SIZES[name]).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) for key in state)


def other_family(name: str) -> State:
    return small_state("mobilenetv2_035" if name != "mobilenetv2_035" else "convnext_atto")


def deeper(name: str) -> State:
    changes = {"vit_tiny_patch16_224": {"depth": 6}, "convnext_atto": {"depths": [1, 1, 3, 1]}}
    return small_state(name, **changes[name])


def shallower(name: str) -> State:
    changes = {"vit_tiny_patch16_224": {"depth": 3}, "convnext_atto": {"depths": [1, 1, 1, 1], "dims": [8, 16, 24, 32]}}
    state = small_state(name, **changes[name])
    return {key: value for key, value in state.items() if not key.startswith("stages.2.blocks.0")}


def wider(name: str) -> State:
    changes = {"vit_tiny_patch16_224": {"embed_dim": 48}, "convnext_atto": {"dims": [8, 16, 32, 64]}}
    return small_state(name, **changes[name])


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "convnext_atto"])
@pytest.mark.parametrize(
    ("make", "match"),
    [
        (other_family, r"expected weights of .*, got a file without \d+ of its \d+ tensors"),
        (deeper, r"got a file with \d+ tensors of further layers \(the first is .*Are they of a deeper network\?"),
        (shallower, r"got a file without \d+ of its \d+ tensors"),
        (wider, r"expected \[.*\] for .*, got \[.*\]"),
    ],
)
def test_a_file_of_another_network_is_one_line_that_says_how_it_differs(
    name: str, make: object, match: str, tmp_path: Path
) -> None:
    file = write(tmp_path, name, make(name))  # type: ignore[operator]
    with pytest.raises(RunError, match=match) as caught:
        prepare_backbone(small_settings(name), file, (64, 64))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_deeper_network_of_the_same_names_is_refused(tmp_path: Path) -> None:
    import timm

    state = {key: value.contiguous() for key, value in timm.create_model("resnet34").state_dict().items()}
    with pytest.raises(RunError, match=r"further layers \(the first is layer1\.2\.\w+\.\w+\)"):
        prepare_backbone(FeatureSettings(backbone="resnet18"), save(state, tmp_path / "w.safetensors"), None)


@settings(max_examples=10, deadline=None)
@given(share=st.floats(0.0, 0.999))
def test_a_file_that_is_cut_off_anywhere_is_one_line(share: float, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.mktemp("half") / "weights.safetensors"
    save({"conv_stem.weight": torch.ones(16, 3, 3, 3), "blocks.0.bn.weight": torch.ones(16)}, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(share * len(data))])
    with pytest.raises(RunError, match=r"expected a safetensors file") as caught:
        read_state(file, "mobilenetv2_035")
    assert "\n" not in str(caught.value)


def test_a_table_that_timm_cannot_resample_says_so(tmp_path: Path) -> None:
    import timm

    state = {key: value.contiguous() for key, value in timm.create_model("levit_128s").state_dict().items()}
    file = save(state, tmp_path / "levit.safetensors")
    with pytest.raises(RunError, match=r"attention_biases: expected .* timm cannot bring this table to another image"):
        prepare_backbone(FeatureSettings(backbone="levit_128s"), file, (256, 256))


def test_an_empty_file_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"got a file without tensors"):
        prepare_backbone(small_settings("mobilenetv2_035"), save({}, tmp_path / "w.safetensors"), None)

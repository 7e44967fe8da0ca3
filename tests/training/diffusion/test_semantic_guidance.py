"""The guided denoiser: it starts as the UNet, all of it learns, and it is diffusers' ControlNet where it should be."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_guided import LATENT, TINY, inputs, predict, randomise, tiny_guided, unet_alone
from torch import Tensor, nn
from torch.nn import functional

from flawscope.config import DsadConfig, from_flat
from flawscope.errors import ArgumentError
from flawscope.training.diffusion.diffusers_networks import group_count
from flawscope.training.diffusion.semantic_guidance import GuidedDenoiser, build_guided_denoiser


def gradients_of_steps(model: GuidedDenoiser, steps: int, train_decoder: bool = True) -> list[dict[str, float]]:
    """Return the largest absolute gradient of every learning parameter before each of some steps of AdamW."""
    learning = model.trainable(train_decoder)
    optimizer = torch.optim.AdamW(learning, lr=1e-3)
    target = torch.randn(inputs()[0].shape, generator=torch.Generator().manual_seed(1))
    largest = []
    for _ in range(steps):
        optimizer.zero_grad()
        functional.mse_loss(predict(model), target).backward()
        # One without a gradient at all has no entry.
        largest.append(
            {
                name: float(parameter.grad.abs().max())
                for name, parameter in model.named_parameters()
                if parameter.grad is not None
            }
        )
        optimizer.step()
    return largest


def parameters_below(model: GuidedDenoiser, *prefixes: str) -> set[str]:
    return {name for name, _ in model.named_parameters() if name.startswith(prefixes)}


# ---- The start -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sketch", ["sobel", "none"])
@pytest.mark.parametrize("fusion", ["live", "diad"])
@pytest.mark.parametrize("control", ["coarse", "full"])
def test_at_the_start_the_prediction_is_the_unets_own(sketch: str, fusion: str, control: str) -> None:
    model = tiny_guided(sketch=sketch, fusion=fusion, control=control)
    with torch.inference_mode():
        assert torch.equal(predict(model), unet_alone(model))


@pytest.mark.parametrize(
    ("settings", "latent"),
    [
        ({"widths": (8, 12, 16), "layers": 2, "heads": 4, "control": "full"}, 8),
        ({"widths": (8, 8, 16, 16), "resize": (24, 24)}, 12),
    ],
    ids=["three levels of two layers", "four levels of odd sides"],
)
def test_any_number_of_levels_and_layers_is_guided(settings: dict[str, Any], latent: int) -> None:
    model = build_guided_denoiser(from_flat(DsadConfig, {**TINY, **settings}), 4, (latent, latent))
    with torch.inference_mode():
        assert torch.equal(predict(model, latent=latent), unet_alone(model, latent=latent))
        randomise(model)
        assert not torch.allclose(predict(model, latent=latent), unet_alone(model, latent=latent), atol=1e-3)


def test_the_same_seed_builds_the_same_and_leaves_the_global_one_alone() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    states = [tiny_guided(seed=seed).state_dict() for seed in (3, 3, 4)]
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert not all(torch.equal(states[0][name], states[2][name]) for name in states[0])


def test_the_guidance_starts_as_a_copy_of_the_unets_encoder() -> None:
    model = tiny_guided()
    unet, guidance = model.unet.state_dict(), model.guidance.state_dict()
    shared = [name for name in guidance if name.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block"))]
    assert shared
    assert all(torch.equal(guidance[name], unet[name]) for name in shared)


# ---- Learning ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("control", ["coarse", "full"])
@pytest.mark.parametrize("train_decoder", [True, False])
def test_live_fusions_and_the_sketch_get_gradients_within_two_steps(control: str, train_decoder: bool) -> None:
    model = tiny_guided(control=control)
    expected = parameters_below(model, "fusion.", "sketch_fusion.", "sketch_encoder.")
    assert {name.split(".")[0] for name in expected} == {"fusion", "sketch_fusion", "sketch_encoder"}
    first, second = gradients_of_steps(model, 2, train_decoder)
    assert {name for name in expected if first[name] > 0.0 or second[name] > 0.0} == expected


def test_where_the_public_wiring_guides_the_coarse_alone_its_fusion_never_gets_a_gradient() -> None:
    model = tiny_guided(fusion="diad", control="coarse", sketch="none")
    dead = parameters_below(model, "fusion.")
    # What feeds the fusion and nothing else dies with it.
    dead |= {f"guidance.controlnet_down_blocks.{index}.{kind}" for index in range(2) for kind in ("weight", "bias")}
    assert len(dead) == 4 + 4
    for gradients in gradients_of_steps(model, 4):
        assert {name: gradients[name] for name in dead} == dict.fromkeys(dead, 0.0)
        assert max(gradients.values()) > 0.0
    state = model.state_dict()
    assert all(float(state[name].abs().max()) == 0.0 for name in dead)


def test_the_public_fusion_comes_alive_where_all_skips_are_guided() -> None:
    model = tiny_guided(fusion="diad", control="full", sketch="none")
    expected = parameters_below(model, "fusion.")
    gradients = gradients_of_steps(model, 2)
    assert {name for name in expected if gradients[1][name] > 0.0} == expected


@pytest.mark.parametrize("fusion", ["live", "diad"])
@pytest.mark.parametrize("control", ["coarse", "full"])
@pytest.mark.parametrize("train_decoder", [True, False])
def test_what_learns_is_the_guidance_and_if_asked_the_decoder(fusion: str, control: str, train_decoder: bool) -> None:
    model = tiny_guided(fusion=fusion, control=control)
    learning = model.trainable(train_decoder)
    names = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(learning) == len(names)
    decoder = parameters_below(model, "unet.up_blocks.", "unet.conv_norm_out.", "unet.conv_out.")
    assert {name for name in names if name.startswith("unet.")} == (decoder if train_decoder else set())
    # The encoder has four outputs, two per level.
    frozen = parameters_below(model, "guidance.", "fusion.", "sketch") - names
    unused = range(2) if (fusion, control) == ("live", "coarse") else range(0)
    assert {int(name.split(".")[2]) for name in frozen} == set(unused)
    assert all(name.startswith("guidance.controlnet_down_blocks.") for name in frozen)


def test_every_parameter_that_learns_takes_part_in_the_loss() -> None:
    for fusion in ("live", "diad"):
        model = tiny_guided(fusion=fusion)
        (gradients,) = gradients_of_steps(model, 1)
        assert set(gradients) == {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def test_the_unets_encoder_and_middle_stay_as_they_are() -> None:
    model = tiny_guided()
    before = copy.deepcopy(model.unet.state_dict())
    gradients_of_steps(model, 2)
    after = model.unet.state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"up_blocks", "conv_norm_out", "conv_out"}


# ---- The public network, exactly -----------------------------------------------------------------------------------


def fused_by_hand(model: GuidedDenoiser, finer: list[Tensor], coarser: list[Tensor]) -> list[Tensor]:
    fused = []
    for k, state in enumerate(coarser):
        for j, source in enumerate(finer):
            weight = model.state_dict()[f"fusion.convolutions.{k}.{j}.weight"]
            moved = functional.conv2d(source, weight, stride=2, padding=1)
            deviation = (moved.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
            moved = (moved - moved.mean((2, 3), keepdim=True)) / deviation
            state = state + moved * torch.sigmoid(moved)
        fused.append(state * torch.sigmoid(state))
    return fused


def reference(model: GuidedDenoiser, fusion: str, control: str) -> Tensor:
    """Return what diffusers' own forward passes of its two networks predict, with the fusion written out."""
    x, t, image, _ = inputs()
    unet: Any = model.unet
    context = model.get_buffer("context").expand(len(x), -1, -1)
    features: list[Tensor] = []
    zeros = list(model.guidance.controlnet_down_blocks)
    hooks = [one.register_forward_pre_hook(lambda _, given: features.append(given[0])) for one in zeros]
    residuals, middle = model.guidance(x, t, context, image, return_dict=False)
    for hook in hooks:
        hook.remove()
    if fusion == "diad":
        coarse = fused_by_hand(model, residuals[:2], residuals[2:])
    else:
        fused = fused_by_hand(model, features[:2], features[2:])
        coarse = [convolution(one) for convolution, one in zip(zeros[2:], fused, strict=True)]
    fine = [torch.zeros_like(one) if control == "coarse" else one for one in residuals[:2]]
    predicted: Tensor = unet(
        x, t, context, down_block_additional_residuals=[*fine, *coarse], mid_block_additional_residual=middle
    ).sample
    return predicted


@pytest.mark.parametrize("fusion", ["diad", "live"])
@pytest.mark.parametrize("control", ["coarse", "full"])
def test_without_sketch_it_is_diffusers_controlnet_and_unet_with_a_fusion(fusion: str, control: str) -> None:
    model = tiny_guided(sketch="none", fusion=fusion, control=control)
    randomise(model.guidance)
    with torch.inference_mode():
        # While the public fusion is at its start, zero, all it does is the last SiLU.
        for _ in ("at the start of the fusion", "later"):
            predicted = predict(model)
            torch.testing.assert_close(predicted, reference(model, fusion, control), atol=1e-6, rtol=1e-5)
            assert not torch.allclose(predicted, unet_alone(model), atol=1e-3)
            randomise(model.fusion)


# ---- The hint ------------------------------------------------------------------------------------------------------


def test_the_hint_is_of_the_latents_size_and_depends_on_image_and_sketch() -> None:
    model = tiny_guided()
    randomise(model)
    _, _, image, sketch = inputs()
    assert model.sketch_fusion is not None
    with torch.inference_mode():
        # It starts so near zero that what a sketch changes is hardly more than rounding: 2e-5 of hints up to 1.
        model.sketch_fusion.out.weight.mul_(300.0)
        hint = model.encode_hint(image, sketch)
        assert hint.shape == (2, 8, LATENT, LATENT)
        assert not torch.allclose(hint, model.encode_hint(image, torch.zeros_like(sketch)), atol=1e-3)
        assert not torch.allclose(hint, model.encode_hint(torch.zeros_like(image), sketch), atol=1e-3)


def test_the_hint_is_the_images_and_a_gated_mix_of_both() -> None:
    model = tiny_guided()
    randomise(model)
    _, _, image, sketch = inputs()
    assert model.sketch_encoder is not None
    assert model.sketch_fusion is not None
    with torch.no_grad():
        model.sketch_fusion.out.weight.mul_(300.0)  # starts so near zero that no fault would be seen
    state = model.state_dict()

    def convolved(name: str, values: Tensor) -> Tensor:
        weight, bias = state[f"sketch_fusion.{name}.weight"][:, :, 0, 0], state[f"sketch_fusion.{name}.bias"]
        return torch.einsum("oi,nihw->nohw", weight, values) + bias[:, None, None]

    with torch.inference_mode():
        a, s = model.guidance.controlnet_cond_embedding(image), model.sketch_encoder(sketch)
        means = torch.cat([a.mean((2, 3), keepdim=True), s.mean((2, 3), keepdim=True)], dim=1)
        gate = torch.sigmoid(convolved("gate", means))
        expected = a + convolved("out", convolved("mix", torch.cat([a, gate * s], dim=1)))
        torch.testing.assert_close(model.encode_hint(image, sketch), expected, atol=1e-6, rtol=1e-5)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    model = tiny_guided(control="full")
    randomise(model)
    x, t, image, sketch = inputs(3)
    with torch.inference_mode():
        whole = model(x, t, model.encode_hint(image, sketch))
        alone = [
            model(x[i : i + 1], t[i : i + 1], model.encode_hint(image[i : i + 1], sketch[i : i + 1])) for i in range(3)
        ]
    torch.testing.assert_close(whole, torch.cat(alone), atol=1e-5, rtol=1e-5)


def test_a_sketch_is_given_where_there_is_a_branch_for_it_and_only_there() -> None:
    _, _, image, sketch = inputs()
    with pytest.raises(ArgumentError, match="sketch: expected none"):
        tiny_guided(sketch="none").encode_hint(image, sketch)
    with pytest.raises(ArgumentError, match="sketch: expected one"):
        tiny_guided().encode_hint(image)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"hint_widths: expected one more .* bring \[32, 32\] to .* \[8, 8\]"):
        tiny_guided(hint_widths=(4, 6, 8))
    with pytest.raises(ArgumentError, match=r"widths: expected a coarsest level of more than one .* 4 levels"):
        tiny_guided(widths=(8, 8, 8, 8))
    with pytest.raises(ArgumentError, match=r"widths: expected multiples of heads=8"):
        tiny_guided(heads=8, widths=(8, 12))
    x, t, image, sketch = inputs()
    model = tiny_guided()
    with pytest.raises(ArgumentError, match=r"hint: expected the latents' size \[8, 8\], got \[4, 4\]"):
        model(x, t, model.encode_hint(image[:, :, :8, :8], sketch[:, :, :8, :8]))


@given(st.lists(st.integers(1, 400), min_size=1, max_size=5))
def test_the_groups_are_the_most_up_to_32_that_divide_all_widths(widths: list[int]) -> None:
    groups = group_count(widths)
    divisors = [count for count in range(1, 33) if all(width % count == 0 for width in widths)]
    assert groups == max(divisors)
    # The decoder joins levels: their sums can be divided too.
    assert sum(widths) % groups == 0


# ---- Export --------------------------------------------------------------------------------------------------------


class Both(nn.Module):
    """Hint and prediction in one graph, for tracing takes long."""

    def __init__(self, model: GuidedDenoiser) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, t: Tensor, image: Tensor, sketch: Tensor) -> tuple[Tensor, Tensor]:
        hint = self.model.encode_hint(image, sketch)
        return hint, self.model(x, t, hint)


@pytest.mark.slow
def test_hint_and_prediction_export_with_a_batch_of_any_size() -> None:
    model = tiny_guided()
    randomise(model)
    both = Both(model).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own dependencies
        program = torch.onnx.export(
            both,
            inputs(2),
            dynamo=True,
            opset_version=18,
            dynamic_shapes=tuple({0: torch.export.Dim("N", min=1, max=4)} for _ in range(4)),
            verbose=False,
        )
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [value.name for value in session.get_inputs()]
    for count in (1, 3):
        values = inputs(count)
        outputs = session.run(None, {name: value.numpy() for name, value in zip(names, values, strict=True)})
        with torch.inference_mode():
            expected = both(*values)
        for output, reference_output in zip(outputs, expected, strict=True):
            torch.testing.assert_close(torch.from_numpy(output), reference_output, atol=1e-5, rtol=1e-4)


def test_the_sizes_of_stable_diffusion_are_those_of_the_defaults() -> None:
    config = DsadConfig()
    assert math.prod(config.input.resize) == 64 * 32 * 32
    with torch.device("meta"):
        model = build_guided_denoiser(config, 4, (32, 32))
    shapes = [tuple(convolution.weight.shape) for level in model.fusion.convolutions for convolution in level]
    assert shapes == [(1280, 640, 3, 3), (1280, 1280, 3, 3), (1280, 1280, 3, 3)] * 3
    assert len(model.guidance.controlnet_down_blocks) == 12

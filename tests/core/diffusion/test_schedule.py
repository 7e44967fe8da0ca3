"""Sampling in NumPy: the papers' numbers, and diffusers' DDIM step by step."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.diffusion.schedule import (
    Denoise,
    Sampling,
    noises_needed,
    plan_steps,
    reconstruct,
    signal_shares,
    start_share,
)
from flawscope.errors import ArgumentError

SHAPE = (2, 3, 8, 8)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def noise(sampling: Sampling, seed: int = 1) -> np.ndarray:
    return rng(seed).standard_normal((noises_needed(sampling), *SHAPE[1:]), np.float32)


def images() -> np.ndarray:
    return rng(2).uniform(-1, 1, SHAPE).astype(np.float32)


def predict(x: np.ndarray, timestep: int) -> np.ndarray:
    """Stand for a network: smooth, bounded, of x and the timestep, the same in NumPy and torch."""
    return np.sin(3.0 * x + 0.01 * timestep).astype(np.float32)


def test_half_of_the_variance_is_left_at_level_250_of_the_linear_schedule() -> None:
    shares = signal_shares(Sampling())
    assert shares[250] == pytest.approx(0.521, abs=5e-4)
    assert math.sqrt(shares[250]) == pytest.approx(0.72, abs=5e-3)
    assert shares[0] == pytest.approx(1 - 1e-4, abs=1e-12)


def test_seven_percent_of_the_amplitude_is_left_at_the_last_level_of_latent_diffusion() -> None:
    shares = signal_shares(Sampling(betas="scaled_linear", beta_start=0.00085, beta_end=0.012))
    assert math.sqrt(shares[999]) == pytest.approx(0.07, abs=5e-3)


def test_the_cosine_schedule_is_that_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    shares = signal_shares(Sampling(betas="cosine"))
    expected = diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2").alphas_cumprod.numpy()
    # diffusers multiplies a thousand factors in float32, each rounded; the last ones are rounded differences.
    np.testing.assert_allclose(shares, expected, rtol=1000 * 2.0**-23, atol=1e-7)
    first, half = (math.cos((part + 0.008) / 1.008 * math.pi / 2) ** 2 for part in (0.0, 0.5))
    assert shares[499] == pytest.approx(half / first, abs=1e-12)


@pytest.mark.parametrize(
    ("start", "steps", "offset", "expected"),
    [
        (250, 25, 0, list(range(240, -1, -10))),
        (250, 10, 0, list(range(225, -1, -25))),
        (1000, 10, 1, list(range(901, 0, -100))),
        (1000, 50, 1, list(range(981, 0, -20))),
        (1, 1, 0, [0]),
        (1000, 1000, 1, [999, *range(999, 0, -1)]),
    ],
)
def test_timesteps_are_those_of_the_references(start: int, steps: int, offset: int, expected: list[int]) -> None:
    planned = plan_steps(Sampling(start=start, steps=steps, offset=offset))
    assert [step.timestep for step in planned] == expected


@pytest.mark.parametrize(
    ("spacing", "start", "steps", "expected"),
    [
        ("trailing", 250, 1, [249]),
        ("trailing", 1000, 4, [999, 749, 499, 249]),
        ("trailing", 250, 3, [249, 166, 82]),
        ("linspace", 1000, 3, [999, 500, 0]),
        ("linspace", 250, 1, [0]),
    ],
)
def test_other_spacings_begin_at_the_start(spacing: str, start: int, steps: int, expected: list[int]) -> None:
    sampling = Sampling(start=start, steps=steps, spacing=spacing)  # type: ignore[arg-type]
    assert [step.timestep for step in plan_steps(sampling)] == expected


def test_what_lies_behind_the_last_step_is_the_clean_image_or_the_first_level() -> None:
    assert plan_steps(Sampling())[-1].next_share == 1.0
    sampling = Sampling(final="first", offset=1, start=1000, steps=10)
    assert plan_steps(sampling)[-1].next_share == signal_shares(sampling)[0]


def test_the_image_gets_the_noise_of_the_first_call_unless_that_of_the_start_is_asked_for() -> None:
    shares = signal_shares(Sampling())
    assert start_share(Sampling()) == shares[240]
    assert start_share(Sampling(level="start")) == shares[250]
    assert start_share(Sampling(level="start", start=1000, steps=10)) == shares[999]


@pytest.mark.parametrize(("weight", "left"), [(1.0, 0.04), (0.1, 0.74)])
def test_a_blend_of_one_copies_the_input_and_a_tenth_does_not(weight: float, left: float) -> None:
    shares = [1.0 - step.blend for step in plan_steps(Sampling(conditioning="blend", weight=weight))]
    assert np.prod(shares) == pytest.approx(left, abs=0.01)


def diffusers_sampling(sampling: Sampling, denoise: Denoise) -> np.ndarray:
    """Sample with diffusers' scheduler of DDIM, told to take the last of its timesteps."""
    torch = pytest.importorskip("torch")
    diffusers = pytest.importorskip("diffusers")
    stride = sampling.start // sampling.steps if sampling.spacing == "leading" else 1000 // sampling.steps
    scheduler = diffusers.DDIMScheduler(
        beta_start=sampling.beta_start,
        beta_end=sampling.beta_end,
        beta_schedule="squaredcos_cap_v2" if sampling.betas == "cosine" else sampling.betas,
        clip_sample=sampling.clip,
        set_alpha_to_one=sampling.final == "clean",
        steps_offset=sampling.offset,
        timestep_spacing=sampling.spacing,
    )
    scheduler.set_timesteps(1000 // stride)
    timesteps = scheduler.timesteps[-sampling.steps :]
    assert [int(t) for t in timesteps] == [step.timestep for step in plan_steps(sampling)]
    clean, drawn = torch.from_numpy(images()), list(torch.from_numpy(noise(sampling)))
    x = scheduler.add_noise(clean, drawn.pop(0)[None].expand(SHAPE), timesteps[:1])
    for timestep in timesteps:
        predicted = torch.from_numpy(denoise(x.numpy(), int(timestep)))
        fresh = drawn.pop(0)[None].expand(SHAPE) if drawn else torch.zeros(SHAPE)
        x = scheduler.step(predicted, timestep, x, eta=sampling.eta, variance_noise=fresh).prev_sample
    return np.asarray(x.numpy())


LIBRARY = [
    Sampling(),
    Sampling(start=1000, steps=4, spacing="trailing"),
    Sampling(start=1000, steps=10, spacing="trailing", eta=1.0),
    Sampling(clip=False),
    Sampling(eta=0.1),
    Sampling(eta=1.0, steps=10, clip=False),
    Sampling(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, start=1000, steps=10, offset=1, final="first",
             clip=False),
    Sampling(betas="scaled_linear", beta_start=0.00085, beta_end=0.012, start=1000, steps=50, offset=1, final="first",
             clip=False, eta=0.5),
    Sampling(betas="cosine", start=500, steps=10, clip=False),
]  # fmt: skip


@pytest.mark.parametrize("sampling", LIBRARY)
def test_every_step_is_that_of_diffusers(sampling: Sampling) -> None:
    ours: list[np.ndarray] = []
    theirs: list[np.ndarray] = []

    def noting(seen: list[np.ndarray]) -> Denoise:
        return lambda x, timestep: predict(seen.append(np.array(x)) or x, timestep)  # type: ignore[func-returns-value]

    # Step by step: what the network is given in every call, and the result.
    expected = diffusers_sampling(sampling, noting(theirs))
    ours.append(reconstruct(images(), noise(sampling), sampling, noting(ours)))
    assert len(ours) == len(theirs) + 1 == sampling.steps + 1
    for mine, other in zip(ours, [*theirs, expected], strict=True):
        np.testing.assert_allclose(mine, other, rtol=0, atol=3e-5 * max(1.0, float(np.abs(other).max())))


@pytest.mark.parametrize("conditioning", ["blend", "ddad"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_conditioning_of_weight_zero_is_plain_ddim_to_the_bit(conditioning: str, eta: float) -> None:
    plain = Sampling(eta=eta)
    conditioned = Sampling(eta=eta, conditioning=conditioning, weight=0.0)  # type: ignore[arg-type]
    drawn = noise(plain)
    expected = reconstruct(images(), drawn, plain, predict)
    np.testing.assert_array_equal(reconstruct(images(), drawn, conditioned, predict), expected)


def test_blending_mixes_the_clean_image_in_after_each_step() -> None:
    sampling = Sampling(start=500, steps=1, conditioning="blend", weight=1.0)
    assert plan_steps(sampling)[0].blend == 0.0  # the only step is told timestep 0
    sampling = Sampling(start=1000, steps=2, conditioning="blend", weight=1.0, clip=False)
    first, last = plan_steps(sampling)
    assert (first.blend, last.blend) == (0.5, 0.0)
    unblended = Sampling(start=1000, steps=2, clip=False)
    seen: list[np.ndarray] = []
    for variant in (sampling, unblended):
        reconstruct(images(), noise(variant), variant, lambda x, t: seen.append(x.copy()) or predict(x, t))  # type: ignore[func-returns-value]
    np.testing.assert_allclose(seen[1], 0.5 * seen[3] + 0.5 * images(), atol=1e-6)


def test_the_correction_of_ddad_is_the_papers_formula() -> None:
    sampling = Sampling(start=400, steps=1, offset=1, conditioning="ddad", weight=2.0, clip=False)
    step = plan_steps(sampling)[0]
    y, drawn = images().astype(np.float64), noise(sampling).astype(np.float64)
    x = math.sqrt(step.share) * y + math.sqrt(1 - step.share) * drawn[0]
    predicted = predict(x.astype(np.float32), step.timestep).astype(np.float64)
    aimed = math.sqrt(step.share) * y + math.sqrt(1 - step.share) * predicted
    corrected = predicted - 2.0 * math.sqrt(1 - step.share) * (aimed - x)
    clean = (x - math.sqrt(1 - step.share) * corrected) / math.sqrt(step.share)
    assert step.next_share == 1.0
    np.testing.assert_allclose(reconstruct(images(), noise(sampling), sampling, predict), clean, atol=1e-5)


def test_a_network_that_knows_the_noise_gives_the_image_back() -> None:
    sampling = Sampling(clip=False)
    drawn = noise(sampling)
    reconstruction = reconstruct(images(), drawn, sampling, lambda x, t: np.broadcast_to(drawn[:1], x.shape))
    np.testing.assert_allclose(reconstruction, images(), atol=1e-5)


def test_what_is_hidden_at_the_start_may_be_another_image_than_what_is_aimed_at() -> None:
    sampling = Sampling(conditioning="ddad", weight=3.0, clip=False)
    aimed, hidden = images(), rng(5).uniform(-1, 1, SHAPE).astype(np.float32)
    drawn = noise(sampling)
    from_image = reconstruct(aimed, drawn, sampling, predict)
    from_hidden = reconstruct(aimed, drawn, sampling, predict, hidden)
    assert np.abs(from_image - from_hidden).max() > 1e-3
    np.testing.assert_array_equal(reconstruct(aimed, drawn, sampling, predict, aimed), from_image)


@given(
    start=st.integers(1, 1000),
    share=st.floats(0.001, 1.0),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    offset=st.sampled_from([0, 1]),
    spacing=st.sampled_from(["leading", "trailing", "linspace"]),
    final=st.sampled_from(["clean", "first"]),
    count=st.integers(1, 4),
)
def test_every_plan_gets_cleaner_and_images_do_not_depend_on_their_neighbours(
    start: int, share: float, eta: float, offset: int, spacing: str, final: str, count: int
) -> None:
    steps = min(max(1, round(share * start)), 40, start)
    sampling = Sampling(start=start, steps=steps, spacing=spacing, eta=eta, offset=offset, final=final)  # type: ignore[arg-type]
    planned = plan_steps(sampling)
    assert len(planned) == steps
    assert all(step.next_share >= step.share or step.timestep == 0 for step in planned)
    assert all(0.0 <= step.sigma**2 <= 1.0 - step.next_share + 1e-12 for step in planned)
    batch = rng(count).uniform(-1, 1, (count, *SHAPE[1:])).astype(np.float32)
    drawn = noise(sampling)
    together = reconstruct(batch, drawn, sampling, predict)
    alone = np.concatenate([reconstruct(image[None], drawn, sampling, predict) for image in batch])
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"start": 0}, "start: expected a noise level from 1 to 1000, got 0"),
        ({"start": 1001}, "start: expected"),
        ({"steps": 0}, "steps: expected 1 to 250"),
        ({"steps": 251}, "steps: expected 1 to 250"),
        ({"eta": 1.1}, "eta: expected 0 to 1"),
        ({"eta": math.nan}, "eta: expected 0 to 1"),
        ({"weight": -1.0}, "weight: expected"),
        ({"offset": 2}, "offset: expected"),
        ({"beta_start": 0.0}, "betas: expected"),
        ({"beta_end": 1.0}, "betas: expected"),
        ({"beta_start": 0.03}, "betas: expected"),
    ],
)
def test_a_sampling_that_cannot_be_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Sampling(**changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(1, 3, 8, 8), (30, 3, 8, 4), (30, 1, 8, 8)])
def test_noise_that_is_short_or_of_another_shape_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ArgumentError, match="noise: expected 25 arrays of"):
        reconstruct(images(), np.zeros(shape, np.float32), Sampling(eta=1.0), predict)

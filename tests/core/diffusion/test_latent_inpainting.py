"""Drawing in a box: AnoGen's numbers, what is kept, and both solvers of diffusers step by step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flawscope.diffusion.latent_inpainting import (
    Mode,
    Solver,
    classifier_free_guidance,
    draw_latents,
    draw_noise,
    keep_of,
    noises_of_drawing,
    plan_drawing,
)
from flawscope.diffusion.schedule import Sampling, plan_steps, signal_shares
from flawscope.errors import ArgumentError

LATENTS = (4, 6, 6)
LEVELS: dict[str, Any] = {
    "betas": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "start": 1000,
    "offset": 1,
    "final": "first",
    "clip": False,
}
ANOGEN = Sampling(**LEVELS, steps=50)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def clean(count: int = 2) -> np.ndarray:
    return rng(2).standard_normal((count, *LATENTS), np.float32)


def noise(mode: Mode, sampling: Sampling, count: int = 2, strength: float = 1.0) -> np.ndarray:
    return np.stack([draw_noise(seed, mode, sampling, LATENTS, strength) for seed in range(count)])


def predict(x: np.ndarray, timestep: int) -> np.ndarray:
    """Stand for a network: smooth, bounded, of x and the timestep, the same in NumPy and torch."""
    return np.sin(x + 0.01 * timestep).astype(np.float32)


def half() -> np.ndarray:
    keep = np.zeros((2, 1, *LATENTS[1:]), np.float32)
    keep[..., :3] = 1.0
    return keep


def test_fifty_steps_of_anogen_are_981_to_1_and_end_at_the_first_level() -> None:
    steps = plan_steps(ANOGEN)
    assert [step.timestep for step in steps] == list(range(981, 0, -20))
    assert steps[-1].next_share == pytest.approx(float(signal_shares(ANOGEN)[0]), abs=0)


@given(st.integers(0, 1000))
def test_where_everything_is_kept_the_image_comes_back_within_the_noise_of_the_first_level(seed: int) -> None:
    drawn = draw_latents("blend", clean(), np.ones((2, 1, 6, 6), np.float32), noise("blend", ANOGEN), ANOGEN, predict)
    # The last step starts from the image with the noise of t = 1 and can remove no more than it.
    level = (1.0 - plan_steps(ANOGEN)[-1].share) ** 0.5
    strongest = np.abs(noise("blend", ANOGEN)).max() + 1.0
    assert np.abs(drawn - clean()).max() < level * strongest + 0.01 * np.abs(clean()).max()


def test_what_is_kept_does_not_depend_on_what_is_drawn_beside_it() -> None:
    """Of a network that looks at each cell alone, so that nothing else connects the halves."""
    whole = draw_latents("blend", clean(), np.ones((2, 1, 6, 6), np.float32), noise("blend", ANOGEN), ANOGEN, predict)
    drawn = draw_latents("blend", clean(), half(), noise("blend", ANOGEN), ANOGEN, predict)
    np.testing.assert_array_equal(drawn[..., :3], whole[..., :3])
    assert np.abs(drawn[..., 3:] - whole[..., 3:]).min() > 0


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_in_mode_inpaint_is_that_of_diffusers_step_by_step(eta: float) -> None:
    import torch
    from diffusers_reference import latent_ddim

    sampling = Sampling(**LEVELS, steps=20, eta=eta)
    drawn = noise("inpaint", sampling)
    scheduler = latent_ddim()
    scheduler.set_timesteps(20)
    x, expected = torch.from_numpy(drawn[:, 0]), []
    for number, timestep in enumerate(scheduler.timesteps):
        predicted = torch.from_numpy(predict(x.numpy(), int(timestep)))
        added = torch.from_numpy(drawn[:, 1 + number]) if eta else None
        x = scheduler.step(predicted, timestep, x, eta=eta, variance_noise=added).prev_sample
        expected.append(x.numpy())
    states: list[np.ndarray] = []
    draw_latents(
        "inpaint", clean(), half(), drawn, sampling, predict, told=lambda number, state: states.append(state.copy())
    )
    assert len(states) == 20
    for state, reference in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, reference, rtol=5e-5, atol=5e-5)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("steps", [4, 10, 25])
def test_dpm_solver_is_that_of_diffusers_step_by_step(steps: int) -> None:
    import torch
    from diffusers import DPMSolverMultistepScheduler

    sampling = Sampling(**{**LEVELS, "offset": 0}, steps=steps, spacing="trailing")
    drawn = noise("inpaint", sampling)
    scheduler = DPMSolverMultistepScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        timestep_spacing="trailing",
        final_sigmas_type="sigma_min",
        euler_at_final=True,
    )
    scheduler.set_timesteps(steps)
    assert [int(state) for state in scheduler.timesteps] == [step.timestep for step in plan_steps(sampling)]
    x, expected = torch.from_numpy(drawn[:, 0]), []
    for timestep in scheduler.timesteps:
        predicted = torch.from_numpy(predict(x.numpy(), int(timestep)))
        x = scheduler.step(predicted, timestep, x).prev_sample
        expected.append(x.numpy())
    states: list[np.ndarray] = []
    draw_latents(
        "inpaint",
        clean(),
        half(),
        drawn,
        sampling,
        predict,
        solver="dpm++",
        told=lambda number, state: states.append(state.copy()),
    )
    for state, reference in zip(states, expected, strict=True):
        np.testing.assert_allclose(state, reference, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
@pytest.mark.parametrize("final", ["clean", "first"])
def test_a_network_that_knows_the_noise_gives_the_image_it_hides(solver: Solver, final: str) -> None:
    hidden = rng(9).standard_normal((2, *LATENTS), np.float32)
    sampling = Sampling(**{**LEVELS, "final": final}, steps=12, spacing="trailing")
    shares = signal_shares(sampling)

    def knows(x: np.ndarray, timestep: int) -> np.ndarray:
        share = shares[timestep]
        return np.asarray((x - hidden * share**0.5) / (1.0 - share) ** 0.5, np.float32)

    drawn = draw_latents("inpaint", clean(), half(), noise("inpaint", sampling), sampling, knows, solver=solver)
    left = 0.0 if final == "clean" else (1.0 - shares[0]) ** 0.5 * 5.0
    np.testing.assert_allclose(drawn, hidden, atol=1e-4 + left)


@st.composite
def restorings(draw: st.DrawFn) -> tuple[Sampling, np.ndarray, float, Solver]:
    solver: Solver = draw(st.sampled_from(["ddim", "dpm++"]))
    sampling = Sampling(
        **{**LEVELS, "final": draw(st.sampled_from(["clean", "first"])), "offset": 0},
        steps=draw(st.integers(1, 12)),
        spacing=draw(st.sampled_from(["leading", "trailing"])),
        eta=0.0 if solver == "dpm++" else draw(st.sampled_from([0.0, 0.7])),
    )
    keep = rng(draw(st.integers(0, 99))).random((2, 1, *LATENTS[1:])) < draw(st.sampled_from([0.0, 0.5, 1.0]))
    return sampling, keep.astype(np.float32), draw(st.sampled_from([1.0, 0.6])), solver


@given(restorings(), st.sampled_from([1.0, 50.0, np.nan, np.inf]))
def test_outside_the_box_restored_latents_are_those_of_the_image_at_every_step(
    drawing: tuple[Sampling, np.ndarray, float, Solver], wrong: float
) -> None:
    """Bit for bit, whatever the network says; NaN too, which a product with 0 would carry over."""
    sampling, keep, strength, solver = drawing
    if int(sampling.steps * strength) < 1:
        strength = 1.0
    steps, outside = plan_drawing(sampling, strength), np.broadcast_to(keep > 0, (2, *LATENTS))
    drawn, seen = noise("inpaint", sampling, strength=strength), []

    def network(x: np.ndarray, timestep: int) -> np.ndarray:
        seen.append(x.copy())
        return predict(x, timestep) * np.float32(wrong)

    with np.errstate(invalid="ignore", over="ignore"):
        result = draw_latents(
            "inpaint", clean(), keep, drawn, sampling, network, strength=strength, solver=solver, restore=True
        )
    for x, step in zip(seen, steps, strict=True):
        known = clean() * np.float32(step.share**0.5) + drawn[:, 0] * np.float32((1.0 - step.share) ** 0.5)
        np.testing.assert_array_equal(x[outside], known[outside])
    np.testing.assert_array_equal(result[outside], clean()[outside])


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_restoring_changes_what_the_network_sees_and_nothing_where_all_is_drawn(solver: Solver) -> None:
    sampling, drawn = Sampling(**LEVELS, steps=6), noise("inpaint", Sampling(**LEVELS, steps=6))
    nothing_kept = np.zeros_like(half())
    for keep, is_same in ((nothing_kept, True), (half(), False)):
        free, held = (
            draw_latents("inpaint", clean(), keep, drawn, sampling, predict, solver=solver, restore=restore)
            for restore in (False, True)
        )
        assert np.array_equal(free, held) == is_same


def test_less_strength_takes_the_last_steps_and_starts_from_the_image() -> None:
    sampling = Sampling(**LEVELS, steps=20)
    assert [step.timestep for step in plan_drawing(sampling, 0.5)] == [
        step.timestep for step in plan_steps(sampling)[10:]
    ]
    drawn = noise("inpaint", sampling, strength=0.05)
    seen: list[np.ndarray] = []

    def sees(x: np.ndarray, timestep: int) -> np.ndarray:
        seen.append(x)
        return np.zeros_like(x)

    draw_latents("inpaint", clean(), half(), drawn, sampling, sees, strength=0.05)
    share = plan_steps(sampling)[-1].share
    expected = clean() * np.float32(share**0.5) + drawn[:, 0] * np.float32((1.0 - share) ** 0.5)
    np.testing.assert_array_equal(seen[0], expected)
    assert len(seen) == 1


@pytest.mark.parametrize(("mode", "eta", "expected"), [("blend", 0.0, 51), ("inpaint", 0.0, 1), ("blend", 1.0, 101)])
def test_noise_is_counted_by_mode_and_eta(mode: Mode, eta: float, expected: int) -> None:
    sampling = Sampling(**LEVELS, steps=50, eta=eta)
    assert noises_of_drawing(mode, sampling) == expected
    assert draw_noise(3, mode, sampling, LATENTS).shape == (expected, *LATENTS)


@given(st.integers(0, 2**31), st.integers(0, 2**31))
def test_seeds_tell_images_noise_apart(seed_a: int, seed_b: int) -> None:
    first, second = (draw_noise(seed, "inpaint", ANOGEN, LATENTS) for seed in (seed_a, seed_b))
    assert np.array_equal(first, second) == (seed_a == seed_b)


def test_an_image_is_drawn_alike_alone_and_beside_others() -> None:
    drawn = noise("blend", ANOGEN, 2)
    both = draw_latents("blend", clean(), half(), drawn, ANOGEN, predict)
    alone = draw_latents("blend", clean()[1:], half()[1:], drawn[1:], ANOGEN, predict)
    np.testing.assert_array_equal(both[1:], alone)


def test_a_cell_is_drawn_where_any_of_its_pixels_is_white() -> None:
    mask = np.zeros((6, 8), bool)
    mask[2, 5] = True
    expected = np.ones((1, 3, 4), np.float32)
    expected[0, 1, 2] = 0.0
    np.testing.assert_array_equal(keep_of(mask, (3, 4)), expected)
    with pytest.raises(ArgumentError, match="multiples of 4 and 4"):
        keep_of(mask, (4, 4))


def test_guidance_of_one_is_the_text_alone_and_more_leads_away_from_the_empty_text() -> None:
    text, empty = np.full((1, 1), 3.0, np.float32), np.full((1, 1), 1.0, np.float32)
    assert classifier_free_guidance(text, empty, 1.0)[0, 0] == 3.0
    assert classifier_free_guidance(text, empty, 10.0)[0, 0] == 21.0


@pytest.mark.parametrize("strength", [0.0, -1.0, 1.5, 0.001, float("nan")])
def test_a_strength_that_leaves_no_step_is_refused(strength: float) -> None:
    with pytest.raises(ArgumentError, match="strength"):
        plan_drawing(ANOGEN, strength)


def test_what_does_not_fit_is_refused() -> None:
    drawn = noise("blend", ANOGEN)
    with pytest.raises(ArgumentError, match="noise"):
        draw_latents("blend", clean(), half(), drawn[:, :5], ANOGEN, predict)
    with pytest.raises(ArgumentError, match="keep"):
        draw_latents("blend", clean(), half()[..., :2], drawn, ANOGEN, predict)
    with pytest.raises(ArgumentError, match="seed"):
        draw_noise(-1, "blend", ANOGEN, LATENTS)
    noisy = Sampling(**LEVELS, steps=5, eta=1.0)
    with pytest.raises(ArgumentError, match=r"eta: expected 0 with the solver dpm\+\+"):
        draw_latents("inpaint", clean(), half(), noise("inpaint", noisy), noisy, predict, solver="dpm++")
    with pytest.raises(ArgumentError, match="solver"):
        draw_latents("inpaint", clean(), half(), noise("inpaint", ANOGEN), ANOGEN, predict, solver="euler")  # type: ignore[arg-type]

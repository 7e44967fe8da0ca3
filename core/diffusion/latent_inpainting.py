"""Latent inpainting: drawing a defect in a box by denoising diffusion, in NumPy.

Two modes. `blend` (AnoGen, arXiv:2505.09263) takes a text-to-image network: before every step the latents outside the
box are replaced by those of the normal image at that step's noise level. `inpaint` (MvP-Diff, Stable Diffusion
inpainting) takes a network that is given the mask and the masked image as further channels. Nothing but the network
holds the surroundings there, and with a small one the tone of the whole window drifts; `restore` puts them back.

Previews of a training and the runtime run this same loop; only the noise predictor differs, a torch network or an ONNX
session.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, check_array
from flawscope.diffusion.schedule import Sampling, Step, plan_steps
from flawscope.errors import ArgumentError

Mode = Literal["blend", "inpaint"]
Solver = Literal["ddim", "dpm++"]
SOLVERS: tuple[Solver, ...] = get_args(Solver)

Predict = Callable[[Float32Array, int], Float32Array]
"""Noisy latents float32 [N, C, h, w] and a timestep → the predicted noise, guided, of the same shape."""


def plan_drawing(sampling: Sampling, strength: float = 1.0) -> tuple[Step, ...]:
    """Return the steps of a drawing, noisiest first.

    Args:
        sampling: Noise levels and steps; its conditioning is ignored.
        strength: Share of the steps that are taken, above 0 up to 1. Below 1 the drawing starts from the noised normal
            image and keeps more of it.

    Raises:
        ArgumentError: If `strength` is out of range or leaves no step.
    """
    if not 0.0 < strength <= 1.0:
        raise ArgumentError(f"strength: expected a share above 0 up to 1, got {strength}.")
    count = int(sampling.steps * strength)
    if count < 1:
        raise ArgumentError(
            f"strength: expected at least one of {sampling.steps} steps to be left, got none with {strength}. Take "
            f"{1 / sampling.steps:g} or more."
        )
    return plan_steps(sampling)[sampling.steps - count :]


def noises_of_drawing(mode: Mode, sampling: Sampling, strength: float = 1.0) -> int:
    """Return K, the noise arrays per image: one for the start, in `blend` one per step for the kept part, and η's."""
    steps = plan_drawing(sampling, strength)
    return 1 + (len(steps) if mode == "blend" else 0) + sum(step.sigma > 0.0 for step in steps)


def draw_noise(
    seed: int, mode: Mode, sampling: Sampling, latents: tuple[int, int, int], strength: float = 1.0
) -> Float32Array:
    """Return all noise of one image, float32 [K, C, h, w]; it depends on the seed alone, not on other images.

    Raises:
        ArgumentError: If the seed is negative.
    """
    if seed < 0:
        raise ArgumentError(f"seed: expected a number of at least 0, got {seed}.")
    count = noises_of_drawing(mode, sampling, strength)
    # All in one call: its order is that in which `draw_latents` takes it, and the seed of old images has to give them
    # again.
    return np.random.default_rng(seed).standard_normal((count, *latents), np.float32)


def keep_of(mask: BoolArray, size: tuple[int, int]) -> Float32Array:
    """Return which latent cells are kept, float32 [1, h, w]: 0 where any pixel of the cell is to be drawn, else 1.

    By any pixel of the cell, so that a box thinner than a cell survives; nearest-neighbour resizing could miss it.

    Args:
        mask: White (true) where something is drawn, bool [H, W].
        size: Height and width of the latents, which divide those of the mask.

    Raises:
        ArgumentError: If the size does not divide that of the mask.
    """
    check_array(mask, "mask", ("H", "W"), np.bool_)
    (height, width), (rows, columns) = mask.shape, size
    if height % rows or width % columns:
        raise ArgumentError(f"mask: expected sides that are multiples of {rows} and {columns}, got {list(mask.shape)}.")
    drawn = mask.reshape(rows, height // rows, columns, width // columns).max(axis=(1, 3))
    return np.asarray(~drawn, np.float32)[None]


def classifier_free_guidance(conditional: Float32Array, unconditional: Float32Array, scale: float) -> Float32Array:
    """Return classifier-free guidance: ε_u + scale · (ε_c − ε_u) (arXiv:2207.12598)."""
    mixed: Float32Array = unconditional + (conditional - unconditional) * np.float32(scale)
    return mixed


def draw_latents(
    mode: Mode,
    clean: Float32Array,
    keep: Float32Array,
    noise: Float32Array,
    sampling: Sampling,
    predict: Predict,
    *,
    strength: float = 1.0,
    solver: Solver = "ddim",
    restore: bool = False,
    told: Callable[[int, Float32Array], None] | None = None,
) -> Float32Array:
    """Return the latents of normal images with their boxes inpainted.

    Args:
        mode: `blend` or `inpaint`; see the module.
        clean: Latents of the normal images, float32 [N, C, h, w].
        keep: From `keep_of`, float32 [N, 1, h, w]; in mode `inpaint` used with `restore` alone.
        noise: From `draw_noise`, image by image, float32 [N, K, C, h, w].
        sampling: Noise levels, steps, η.
        predict: Predicts noise, guided by the text.
        strength: As of `plan_drawing`.
        solver: `ddim` (arXiv:2010.02502), or `dpm++`, the second-order multistep solver (arXiv:2211.01095), which
            needs fewer steps; its first and last steps are first-order.
        restore: In mode `inpaint`, put the known outside back at every step: the normal image with the start's noise at
            that step's level, and after the last step the normal image itself. It takes no further noise, so that a
            seed starts from the same noise with and without it. Mode `blend` has its own way, with new noise.
        told: Called after every step with its number, from 1, and x.

    Raises:
        ArgumentError: If shapes do not fit, or the solver cannot do the sampling.
    """
    steps = plan_drawing(sampling, strength)
    count, latents = len(clean), clean.shape[1:]
    check_array(clean, "latents", ("N", "C", "h", "w"), np.float32)
    check_array(keep, "keep", (count, 1, *latents[1:]), np.float32)
    check_array(noise, "noise", (count, noises_of_drawing(mode, sampling, strength), *latents), np.float32)
    check_solver(solver, sampling)
    # Taken in the order of `noises_of_drawing`: start, then per step blend and η.
    drawn = iter(np.moveaxis(noise, 1, 0))
    start: Float32Array = next(drawn)
    x = start if strength == 1.0 else _noised(steps[0].share, clean, start)
    restores = restore and mode == "inpaint"
    if restores:
        x = _restored(x, keep, _noised(steps[0].share, clean, start))
    history: list[Float32Array] = []
    for number, step in enumerate(steps, 1):
        if mode == "blend":
            # Before the network call, so that it sees the real surroundings at the noise level it expects.
            x = keep * _noised(step.share, clean, next(drawn)) + (np.float32(1.0) - keep) * x
        predicted = predict(x, step.timestep)
        if solver == "ddim":
            x = _ddim(x, predicted, step)
            if step.sigma > 0.0:
                x = x + next(drawn) * np.float32(step.sigma)
        else:
            # Clean images without clipping: latents are not bounded.
            history.append(_clean_part(x, predicted, step.share))
            x = _dpm(x, history, steps, number - 1)
        if restores:
            # Behind the last step the clean latents themselves, not those of `next_share`: nothing is left to remove.
            x = _restored(x, keep, _noised(step.next_share, clean, start) if number < len(steps) else clean)
        if told is not None:
            told(number, x)
    return x


def check_solver(solver: Solver, sampling: Sampling) -> None:
    """Raise ArgumentError unless a solver can do a sampling."""
    if solver not in SOLVERS:
        raise ArgumentError(f"solver: expected one of {', '.join(SOLVERS)}, got {solver!r}.")
    # This form of DPM-Solver++ is the ODE solver: it has no place for the noise of η.
    if solver == "dpm++" and sampling.eta > 0.0:
        raise ArgumentError(
            f"eta: expected 0 with the solver dpm++, got {sampling.eta:g}. Take ddim, or leave eta out."
        )


def _restored(x: Float32Array, keep: Float32Array, known: Float32Array) -> Float32Array:
    """Return x with the known latents where they are kept, bit for bit: chosen, since NaN times 0 would be NaN."""
    return np.where(keep > 0, known, x)


def _noised(share: float, clean: Float32Array, noise: Float32Array) -> Float32Array:
    """Return √ᾱ·clean + √(1−ᾱ)·noise."""
    noised: Float32Array = clean * np.float32(share**0.5) + noise * np.float32((1.0 - share) ** 0.5)
    return noised


def _clean_part(x: Float32Array, predicted: Float32Array, share: float) -> Float32Array:
    """Return what x would be without the predicted noise."""
    clean: Float32Array = (x - predicted * np.float32((1.0 - share) ** 0.5)) * np.float32(share**-0.5)
    return clean


def _ddim(x: Float32Array, predicted: Float32Array, step: Step) -> Float32Array:
    """Return the next x without the noise that the step may add (arXiv:2010.02502, equation 12)."""
    following: Float32Array = _clean_part(x, predicted, step.share) * np.float32(step.next_share**0.5)
    return following + predicted * np.float32(step.direction)


@dataclass(frozen=True)
class DpmFactors:
    """What a step of DPM-Solver++ multiplies with.

    Attributes:
        x: Factor of x.
        clean: Factor of the clean image.
        change: Share of the change since the clean image of the step before that is added first; None at first order.
    """

    x: float
    clean: float
    change: float | None


def dpm_factors(steps: Sequence[Step], index: int) -> DpmFactors:
    """Return the factors of one step (arXiv:2211.01095, algorithm 2)."""
    step = steps[index]
    signal, spread = step.next_share**0.5, (1.0 - step.next_share) ** 0.5
    ratio = spread / (1.0 - step.share) ** 0.5
    shrink = ratio * (step.share / step.next_share) ** 0.5  # e^-h, for h the change of the half log of signal to noise
    share = None
    # Second order from the second step on. Not the last: its next ratio may be infinite (ᾱ = 1), as lower_order_final
    # of diffusers.
    if 0 < index < len(steps) - 1:
        change, before = _log_ratio(step.next_share) - _log_ratio(step.share), steps[index - 1]
        past = _log_ratio(before.next_share) - _log_ratio(before.share)
        share = 0.5 * change / past
    return DpmFactors(ratio, signal * (1.0 - shrink), share)


def _dpm(x: Float32Array, history: Sequence[Float32Array], steps: Sequence[Step], index: int) -> Float32Array:
    """Return the next x from the clean images that were predicted so far."""
    factors, clean = dpm_factors(steps, index), history[index]
    if factors.change is not None:
        clean = clean + (clean - history[index - 1]) * np.float32(factors.change)
    following: Float32Array = x * np.float32(factors.x) + clean * np.float32(factors.clean)
    return following


def _log_ratio(share: float) -> float:
    """Return λ, half the logarithm of signal to noise."""
    return float(0.5 * np.log(share / (1.0 - share)))

"""Denoising diffusion in NumPy: noise schedule, sampling steps, and reconstruction with conditioning.

Training and the runtime run this same loop; only the noise predictor differs, a torch network or an ONNX session.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from flawscope.arrays import Float32Array
from flawscope.errors import ArgumentError

TRAINED_STEPS = 1000
"""Noise levels (timesteps) of the training."""

Spacing = Literal["leading", "trailing", "linspace"]
"""Timestep spacing; see `Sampling`."""

Denoise = Callable[[Float32Array, int], Float32Array]
"""Noisy images float32 [N, C, h, w] and a timestep → the predicted noise, of the same shape."""


class Sampling(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How an image is reconstructed: noise schedule, steps and conditioning.

    Attributes:
        betas: `linear` from `beta_start` to `beta_end` (arXiv:2006.11239); `scaled_linear`, in which the square
            roots are linear (latent diffusion); or `cosine`, in which the signal falls as a squared cosine
            (arXiv:2102.09672, equation 17) and the next two have no part.
        beta_start: Variance of the first noise level.
        beta_end: Variance of the last.
        start: Noise level at which sampling starts, 1 to 1000; more hides more of the image.
        steps: Denoising steps from there, one network call each.
        spacing: Timestep spacing: `leading` at multiples of `start // steps` from 0 on, so the first step is a stride
            below the start; `trailing` at the ends of `steps` equal parts, so the first is the start, which matters
            with few steps (arXiv:2305.08891); `linspace` evenly from 0 to the start.
        offset: Added to every timestep; 1 for Stable Diffusion.
        eta: 0 is DDIM, 1 is DDPM (arXiv:2010.02502, equation 16).
        level: Noise added to the image: that of the `first` timestep, or that of `start`.
        final: Noise level after the last step: none (`clean`), or that of timestep 0 (`first`).
        clip: Clip predictions of the clean image to [-1, 1].
        conditioning: `none`; `ddad`, which corrects the noise towards the image (arXiv:2305.15956); or `blend`, which
            mixes the image in after each step.
        weight: Weight of the conditioning.
        noise: Kind of noise, `gaussian` or `simplex`.
        seed: Seed of the noise, which is the same for every image.
    """

    betas: Literal["linear", "scaled_linear", "cosine"] = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    start: int = 250
    steps: int = 25
    spacing: Spacing = "leading"
    offset: int = 0
    eta: float = 0.0
    level: Literal["first", "start"] = "first"
    final: Literal["clean", "first"] = "clean"
    clip: bool = True
    conditioning: Literal["none", "blend", "ddad"] = "none"
    weight: float = 0.0
    noise: Literal["gaussian", "simplex"] = "gaussian"
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 < self.beta_start <= self.beta_end < 1.0:
            raise ArgumentError(f"betas: expected 0 < start ≤ end < 1, got {self.beta_start} and {self.beta_end}.")
        if not 1 <= self.start <= TRAINED_STEPS:
            raise ArgumentError(f"start: expected a noise level from 1 to {TRAINED_STEPS}, got {self.start}.")
        if not 1 <= self.steps <= self.start:
            raise ArgumentError(f"steps: expected 1 to {self.start}, the noise level of the start, got {self.steps}.")
        if not 0.0 <= self.eta <= 1.0:
            raise ArgumentError(f"eta: expected 0 to 1, got {self.eta}.")
        if not 0.0 <= self.weight <= 1000.0:
            raise ArgumentError(f"weight: expected 0 to 1000, got {self.weight}.")
        if self.offset not in (0, 1):
            raise ArgumentError(f"offset: expected 0 or 1, got {self.offset}.")


def signal_shares(sampling: Sampling) -> npt.NDArray[np.float64]:
    """Return ᾱ, the share of signal variance left at every noise level, float64 [1000], falling."""
    if sampling.betas == "linear":
        betas = np.linspace(sampling.beta_start, sampling.beta_end, TRAINED_STEPS)
    elif sampling.betas == "cosine":
        betas = _cosine_betas()
    else:
        betas = np.linspace(sampling.beta_start**0.5, sampling.beta_end**0.5, TRAINED_STEPS) ** 2
    # In float64, so that the rounding of a thousand factors does not add up.
    shares: npt.NDArray[np.float64] = np.cumprod(1.0 - betas, dtype=np.float64)
    return shares


def _cosine_betas() -> npt.NDArray[np.float64]:
    """Return the variances of the cosine schedule, float64 [1000]."""
    # The shift of 0.008 keeps the first levels from having almost no noise.
    parts = (np.arange(TRAINED_STEPS + 1) / TRAINED_STEPS + 0.008) / 1.008
    shares = np.cos(parts * (math.pi / 2.0)) ** 2
    # Capped as in the paper: the last share is 0, and a step to it would lose the signal.
    betas: npt.NDArray[np.float64] = np.minimum(1.0 - shares[1:] / shares[:-1], 0.999)
    return betas


@dataclass(frozen=True)
class Step:
    """One step of the sampling.

    Attributes:
        timestep: The timestep given to the network.
        share: ᾱ at this timestep.
        next_share: ᾱ after the step, nearer to 1.
        sigma: Standard deviation of the noise that the step adds.
        blend: Share of the input image that is mixed in after it.
    """

    timestep: int
    share: float
    next_share: float
    sigma: float
    blend: float

    @property
    def noise_part(self) -> float:
        """√(1−ᾱ): what the noise in x is multiplied with at this timestep."""
        return (1.0 - self.share) ** 0.5  # type: ignore[no-any-return]

    @property
    def direction(self) -> float:
        """Factor of the predicted noise in the next x (arXiv:2010.02502, equation 12)."""
        # max: rounding may leave a tiny negative number under the root at the last step.
        return max(1.0 - self.next_share - self.sigma**2, 0.0) ** 0.5  # type: ignore[no-any-return]


def plan_steps(sampling: Sampling) -> tuple[Step, ...]:
    """Return the steps of a sampling, noisiest first (arXiv:2010.02502, equations 12 and 16)."""
    shares = signal_shares(sampling)
    behind = 1.0 if sampling.final == "clean" else float(shares[0])
    timesteps = _timesteps(sampling)
    steps = []
    for timestep, following in itertools.zip_longest(timesteps, timesteps[1:]):
        # zip_longest: behind the last timestep there is none, but a share.
        share, next_share = float(shares[timestep]), behind if following is None else float(shares[following])
        # Equation 16 with η = 1; max() below guards against rounding.
        variance = (1.0 - next_share) / (1.0 - share) * (1.0 - share / next_share)
        steps.append(
            Step(
                timestep=timestep,
                share=share,
                next_share=next_share,
                sigma=sampling.eta * max(variance, 0.0) ** 0.5,
                blend=sampling.weight * timestep / TRAINED_STEPS if sampling.conditioning == "blend" else 0.0,
            )
        )
    return tuple(steps)


def _timesteps(sampling: Sampling) -> list[int]:
    """Return the timestep of every network call, noisiest first."""
    start, steps = sampling.start, sampling.steps
    if sampling.spacing == "leading":
        numbers = [number * (start // steps) for number in reversed(range(steps))]
    elif sampling.spacing == "trailing":
        # - 1, as the trailing spacing of diffusers: a start of 1000 begins at timestep 999, the noisiest.
        numbers = [round(start * part / steps) - 1 for part in range(steps, 0, -1)]
    else:
        numbers = [round(float(number)) for number in np.linspace(0, start - 1, steps)][::-1]
    # An offset of 1 at timestep 999 would be one the network was never trained on.
    return [min(number + sampling.offset, TRAINED_STEPS - 1) for number in numbers]


def start_share(sampling: Sampling) -> float:
    """Return ᾱ of the noise that is added to the image before the first step."""
    if sampling.level == "start":
        return float(signal_shares(sampling)[min(sampling.start, TRAINED_STEPS - 1)])
    return plan_steps(sampling)[0].share


def noises_needed(sampling: Sampling) -> int:
    """Return how many noise arrays a sampling takes: one for the start, and one per step that adds noise."""
    return 1 + sum(step.sigma > 0.0 for step in plan_steps(sampling))


def reconstruct(
    images: Float32Array,
    noise: Float32Array,
    sampling: Sampling,
    denoise: Denoise,
    hidden: Float32Array | None = None,
) -> Float32Array:
    """Return reconstructions by a denoiser that was trained on normal images only.

    Args:
        images: Images or latents, float32 [N, C, h, w]; images in [-1, 1].
        noise: Float32 [K, C, h, w], K at least `noises_needed`; the same for every image, so that a score does not
            depend on the other images of a batch.
        sampling: Levels, steps and conditioning.
        denoise: Predicts the noise.
        hidden: Start of the sampling, to be noised, if not the images themselves; the conditioning then pulls it
            towards them.

    Returns:
        Float32 [N, C, h, w], in the range of the images.

    Raises:
        ArgumentError: If there is too little noise, or of another shape.
    """
    steps = plan_steps(sampling)
    needed = noises_needed(sampling)
    if noise.shape[1:] != images.shape[1:] or len(noise) < needed:
        raise ArgumentError(
            f"noise: expected {needed} arrays of {list(images.shape[1:])}, got {list(noise.shape)}. Export again."
        )
    # One for the start, then one for each step with σ > 0, in this order.
    drawn = iter(noise)
    share = start_share(sampling)
    x = _mixed(share, images if hidden is None else hidden, next(drawn))
    for step in steps:
        predicted = denoise(x, step.timestep)
        if sampling.conditioning == "ddad":
            predicted = _corrected(x, predicted, images, step, sampling.weight)
        x = _step(x, predicted, step, sampling.clip)
        if step.blend > 0.0:
            # Before the noise of η is added: blending would damp it.
            x = (x * np.float32(1.0 - step.blend)) + images * np.float32(step.blend)
        if step.sigma > 0.0:
            x = x + next(drawn) * np.float32(step.sigma)
    return x


def _mixed(share: float, clean: Float32Array, noise: Float32Array) -> Float32Array:
    """Return √ᾱ·clean + √(1−ᾱ)·noise."""
    # Factors as float32 scalars: with NumPy 2 one float64 scalar would turn the whole array into float64.
    mixed: Float32Array = clean * np.float32(share**0.5) + noise * np.float32((1.0 - share) ** 0.5)
    return mixed


def _corrected(
    x: Float32Array, predicted: Float32Array, images: Float32Array, step: Step, weight: float
) -> Float32Array:
    """Return the predicted noise as DDAD corrects it: by the distance from x to the image with that same noise."""
    aimed = _mixed(step.share, images, predicted)
    corrected: Float32Array = predicted - (aimed - x) * np.float32(weight * step.noise_part)
    return corrected


def _step(x: Float32Array, predicted: Float32Array, step: Step, clip: bool) -> Float32Array:
    """Return the next, less noisy x without the noise that the step may add (arXiv:2010.02502, equation 12)."""
    clean = (x - predicted * np.float32(step.noise_part)) * np.float32(step.share**-0.5)
    if clip:
        clean = np.clip(clean, np.float32(-1.0), np.float32(1.0))
    following: Float32Array = clean * np.float32(step.next_share**0.5) + predicted * np.float32(step.direction)
    return following

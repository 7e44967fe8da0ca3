"""Samplings that the stage `drawing` runs, and what the NumPy loops give for them with the stand-in for the network."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpu_stages.kernels import Array

GUIDANCE = 4.5


class Kind(NamedTuple):
    """A kind of loop.

    Attributes:
        name: `blend`, `inpaint` or `reconstruction`.
        guided: Whether the network runs every image twice.
        masked: Whether it is given the mask and the masked image.
    """

    name: str
    guided: bool
    masked: bool

    @property
    def halves(self) -> int:
        """Runs of the network for an image."""
        return 1 + self.guided


KINDS = (Kind("blend", True, False), Kind("inpaint", True, True), Kind("reconstruction", False, False))


class Case(NamedTuple):
    """A sampling.

    Attributes:
        name: For messages.
        sampling: Noise levels, steps, eta.
        solver: Of a drawing.
        restore: Whether a drawing of kind `inpaint` puts the surroundings back.
    """

    name: str
    sampling: Any
    solver: Any = "ddim"
    restore: bool = False


class Given(NamedTuple):
    """What a run takes from the host.

    Attributes:
        clean: Float32 [N, C, h, w].
        masked: Likewise.
        keep: Float32 [N, 1, h, w], 0 or 1.
        noise: Float32 [N, K, C, h, w]; of a reconstruction [K, C, h, w].
    """

    clean: Array
    masked: Array
    keep: Array
    noise: Array


def cases(kind: Kind) -> tuple[Case, ...]:
    """Return the samplings of a kind; each takes no less noise than those before, and the last one the most."""
    from flawscope.diffusion.schedule import Sampling

    if kind.name == "reconstruction":
        return (
            Case("4 steps", Sampling(steps=4)),
            Case("4 steps, conditioned", Sampling(steps=4, conditioning="ddad", weight=3.0, eta=1.0)),
            Case("9 steps, conditioned", Sampling(steps=9, conditioning="blend", weight=2.0, eta=0.4)),
        )

    def latent(steps: int, eta: float = 0.0) -> Any:
        return Sampling(
            betas="scaled_linear", beta_start=0.00085, beta_end=0.012, start=1000, steps=steps, eta=eta, offset=1,
            final="first", clip=False,
        )  # fmt: skip

    return (
        Case("4 steps", latent(4)),
        Case("4 steps, dpm++", latent(4), "dpm++", restore=True),
        Case("9 steps, eta", latent(9, eta=0.7), restore=True),
    )


def noises_of(kind: Kind, case: Case) -> int:
    """Return the arrays of noise that a case takes."""
    from flawscope.diffusion.step_table import noises_of_table

    return noises_of_table(table_of(kind, case))


def table_of(kind: Kind, case: Case) -> Array:
    """Return the table of a case, as `flawscope.diffusion.step_table` makes it."""
    from flawscope.diffusion.step_table import drawing_table, reconstruction_table

    if kind.name == "reconstruction":
        return reconstruction_table(case.sampling)
    mode: Any = kind.name
    return drawing_table(mode, case.sampling, GUIDANCE, solver=case.solver, restore=case.restore)


def draw_given(rng: np.random.Generator, kind: Kind, case: Case, count: int, latents: tuple[int, int, int]) -> Given:
    """Return drawn inputs of a run."""
    clean, masked = (np.tanh(rng.standard_normal((count, *latents), np.float32)) for _ in range(2))
    keep = (rng.standard_normal((count, 1, *latents[1:]), np.float32) > 0).astype(np.float32)
    shape = (noises_of(kind, case), *latents)
    own = shape if kind.name == "reconstruction" else (count, *shape)
    return Given(clean, masked, keep, rng.standard_normal(own, np.float32))


def expected(kind: Kind, case: Case, given: Given) -> tuple[Array, Array]:
    """Return what the network is given at each step, float32 [steps, B, channels, h, w], and the last x."""
    from flawscope.diffusion.latent_inpainting import classifier_free_guidance, draw_latents
    from flawscope.diffusion.schedule import reconstruct

    seen: list[Array] = []
    count, channels = given.clean.shape[:2]

    def predict(x: Array, timestep: int) -> Array:
        conditions = [np.float32(1) - given.keep, given.masked] if kind.masked else []
        inputs = np.concatenate([x, *conditions], axis=1)
        seen.append(np.concatenate([inputs] * kind.halves))
        found = shifted(seen[-1], channels)
        return classifier_free_guidance(found[count:], found[:count], GUIDANCE) if kind.guided else found

    if kind.name == "reconstruction":
        last = reconstruct(given.clean, given.noise, case.sampling, predict)
    else:
        mode: Any = kind.name
        last = draw_latents(
            mode, given.clean, given.keep, given.noise, case.sampling, predict, solver=case.solver, restore=case.restore
        )
    return np.stack(seen), last


def shift_of(row: int, size: int) -> int:
    """Return by how many numbers the stand-in for the network shifts a row of a batch: each by others."""
    return (row + 1) * (size // 3 + 1) % size


def shifted(inputs: Array, channels: int) -> Array:
    """Return what the stand-in for the network predicts for [B, any, h, w]: each row shifted round, the beginning."""
    count, _, *cells = inputs.shape
    flat = inputs.reshape(count, -1)
    taken = channels * int(np.prod(cells))
    rows = [np.roll(row, -shift_of(number, row.size))[:taken] for number, row in enumerate(flat)]
    return np.stack(rows).reshape(count, channels, *cells)

"""The sampling loops as tables of coefficients, for a kernel that takes their steps on a device.

`flawscope.diffusion.schedule.reconstruct` and `flawscope.diffusion.latent_inpainting.draw_latents` say what is
computed and in which order; the kernel (`flawscope_cuda_diffusion_step`) rounds as they do, operation by operation.
With the same predictions it gives the same x at every step, bit for bit.

A loop of S steps has S + 1 rows: the first makes x from noise, each of the others takes the step that follows a call of
the network. All but the last also make the network's next input.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from flawscope.diffusion.latent_inpainting import Mode, Solver, check_solver, dpm_factors, plan_drawing
from flawscope.diffusion.schedule import Sampling, Step, plan_steps, start_share

ROW = np.dtype(
    [
        ("timestep", np.int64),
        *((name, np.int32) for name in ("rule", "flags", "added", "around")),
        *(
            (name, np.float32)
            for name in (
                *("guidance", "noise_part", "inverse_signal", "next_x", "next_clean", "next_noise", "change", "sigma"),
                *("known_clean", "known_noise", "around_clean", "around_noise"),
                *("aim_clean", "aim_noise", "aim", "mix_x", "mix_clean"),
            )
        ),
    ],
    align=True,
)
"""A row, as `flawscope_diffusion_row` in `flawscope/patch_distance.h`, which documents the fields."""

StepTable = npt.NDArray[np.void]
"""Rows of type `ROW`."""

_START, _DDIM, _DPM = 0, 1, 2
_MIXED, _SECOND, _CLIP, _AIM, _MIX, _RESTORE, _CLEAN, _BOUND, _LAST = (1 << bit for bit in range(9))
_NO_NOISE = -1


def drawing_table(
    mode: Mode,
    sampling: Sampling,
    guidance: float,
    *,
    strength: float = 1.0,
    solver: Solver = "ddim",
    restore: bool = False,
) -> StepTable:
    """Return the table of `draw_latents` with these arguments and `classifier_free_guidance` at a scale.

    Raises:
        ArgumentError: As `draw_latents`.
    """
    check_solver(solver, sampling)
    steps = plan_drawing(sampling, strength)
    rows = _rows(steps)
    rows["guidance"] = guidance
    restores = restore and mode == "inpaint"
    first = rows[0]
    if strength != 1.0:
        first["flags"] |= _MIXED
        first["next_clean"], first["next_noise"] = steps[0].share ** 0.5, steps[0].noise_part
    if restores:
        _set_known(first, steps[0].share)
    taken = 1  # arrays of noise, in the order of `noises_of_drawing`
    for index, step in enumerate(steps):
        row = rows[index + 1]
        if mode == "blend":
            before = rows[index]  # the surroundings are put back before the call of the network
            before["around"], taken = taken, taken + 1
            before["around_clean"], before["around_noise"] = step.share**0.5, step.noise_part
        if solver == "ddim":
            _set_ddim(row, step)
            if step.sigma > 0.0:
                row["added"], row["sigma"], taken = taken, step.sigma, taken + 1
        else:
            factors = dpm_factors(steps, index)
            row["rule"], row["next_x"], row["next_clean"] = _DPM, factors.x, factors.clean
            if factors.change is not None:
                row["flags"] |= _SECOND
                row["change"] = factors.change
        if restores:
            _set_known(row, step.next_share)
    if restores:
        rows[-1]["flags"] |= _CLEAN
    return rows


def reconstruction_table(sampling: Sampling, *, bounded: bool = False) -> StepTable:
    """Return the table of `reconstruct`.

    Args:
        sampling: Levels, steps and conditioning.
        bounded: Whether the reconstructions are clipped to [-1, 1], as images.
    """
    steps = plan_steps(sampling)
    rows = _rows(steps)
    share = start_share(sampling)
    rows[0]["flags"] |= _MIXED
    rows[0]["next_clean"], rows[0]["next_noise"] = share**0.5, (1.0 - share) ** 0.5
    taken = 1
    for row, step in zip(rows[1:], steps, strict=True):
        _set_ddim(row, step)
        if sampling.clip:
            row["flags"] |= _CLIP
        if sampling.conditioning == "ddad":
            row["flags"] |= _AIM
            row["aim_clean"], row["aim_noise"] = step.share**0.5, step.noise_part
            row["aim"] = sampling.weight * step.noise_part
        if step.blend > 0.0:
            row["flags"] |= _MIX
            row["mix_x"], row["mix_clean"] = 1.0 - step.blend, step.blend
        if step.sigma > 0.0:
            row["added"], row["sigma"], taken = taken, step.sigma, taken + 1
    if bounded:
        rows[-1]["flags"] |= _BOUND
    return rows


def noises_of_table(rows: StepTable) -> int:
    """Return the arrays of noise that a table takes."""
    return 1 + int(max(rows["added"].max(), rows["around"].max(), 0))


def _rows(steps: tuple[Step, ...]) -> StepTable:
    """Return rows that know their timesteps and clean parts alone."""
    rows = np.zeros(len(steps) + 1, ROW)
    rows["rule"][0] = _START
    rows["added"] = rows["around"] = _NO_NOISE
    rows["timestep"][:-1] = [step.timestep for step in steps]
    rows["flags"][-1] = _LAST
    rows["noise_part"][1:] = [step.noise_part for step in steps]
    rows["inverse_signal"][1:] = [step.share**-0.5 for step in steps]
    return rows


def _set_ddim(row: Any, step: Step) -> None:
    row["rule"], row["next_clean"], row["next_noise"] = _DDIM, step.next_share**0.5, step.direction


def _set_known(row: Any, share: float) -> None:
    row["flags"] |= _RESTORE
    row["known_clean"], row["known_noise"] = share**0.5, (1.0 - share) ** 0.5

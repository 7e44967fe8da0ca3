"""The kernel of a sampling's steps, in emulation: with the same predictions x is that of the NumPy loops."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
from cuda_emulation import emulated_kernels
from project_paths import ROOT

from flawscope.arrays import Float32Array
from flawscope.cpp_ext.cuda_kernels import CudaKernels
from flawscope.diffusion.latent_inpainting import (
    Mode,
    Solver,
    classifier_free_guidance,
    draw_latents,
    noises_of_drawing,
    plan_drawing,
)
from flawscope.diffusion.schedule import Sampling, noises_needed, plan_steps, reconstruct
from flawscope.diffusion.step_table import (
    ROW,
    StepTable,
    drawing_table,
    noises_of_table,
    reconstruction_table,
)
from flawscope.errors import ArgumentError

pytestmark = pytest.mark.long

HEADER = ROOT / "cpp_ext" / "include" / "flawscope" / "patch_distance.h"
SHAPE = (3, 5, 7)  # no multiple of a warp or a block
LATENT = Sampling(
    betas="scaled_linear", beta_start=0.00085, beta_end=0.012, start=1000, steps=6, offset=1, final="first", clip=False
)
Predict = Callable[[Float32Array, int], Float32Array]


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> CudaKernels:
    return emulated_kernels(tmp_path_factory)


def normals(*shape: int, seed: int = 0) -> Float32Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def address(array: npt.NDArray[Any] | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def sampled(
    kernels: CudaKernels,
    table: StepTable,
    predict: Predict,
    clean: Float32Array,
    noise: Float32Array,
    *,
    keep: Float32Array | None = None,
    masked: Float32Array | None = None,
    hidden: Float32Array | None = None,
    guided: bool = True,
) -> tuple[list[Float32Array], Float32Array]:
    """Return what the network was given at each step, and the last x; `predict` takes and gives whole batches."""
    count, channels, *cells = clean.shape
    batch, wide = count * (1 + guided), channels if masked is None else 2 * channels + 1
    # Never zero: nobody may count on that.
    given = np.full((batch, wide, *cells), np.nan, np.float32)
    x, past = (np.full(clean.shape, np.nan, np.float32) for _ in range(2))
    predicted = np.full((batch, channels, *cells), np.nan, np.float32)
    timesteps = np.full(batch, -9, np.int64)
    seen = []
    for number in range(len(table)):
        kernels.diffusion_step(
            row=address(table) + number * ROW.itemsize,
            n=count,
            c=channels,
            cells=int(np.prod(cells)),
            guided=int(guided),
            predicted=address(predicted),
            clean=address(clean),
            hidden=address(hidden),
            keep=address(keep),
            masked=address(masked),
            noise=address(noise),
            arrays=noise.shape[1] if noise.ndim == 5 else 0,
            x=address(x),
            past=address(past),
            input=address(given),
            timesteps=address(timesteps),
            stream=0,
        )
        if number + 1 == len(table):
            break
        seen.append(given.copy())
        assert set(timesteps) == {table["timestep"][number]}
        predicted[...] = predict(given, int(timesteps[0]))
    return seen, x


def network(x: Float32Array, timestep: int) -> Float32Array:
    """A network that is none: its prediction depends on all that it is given, and differs between the two halves."""
    scale = np.linspace(0.2, 1.1, len(x), dtype=np.float32).reshape(-1, 1, 1, 1)
    tail = x.mean(axis=1, keepdims=True, dtype=np.float32)
    return np.tanh(x[:, : SHAPE[0]] * scale + tail - np.float32(timestep / 2000))


@pytest.mark.parametrize("strength", [1.0, 0.6])
@pytest.mark.parametrize(("mode", "restore"), [("blend", False), ("inpaint", False), ("inpaint", True)])
@pytest.mark.parametrize(("solver", "eta"), [("ddim", 0.0), ("ddim", 0.7), ("dpm++", 0.0)])
@pytest.mark.parametrize("count", [1, 3])
def test_a_drawing_is_that_of_the_numpy_loop_at_each_step(
    kernels: CudaKernels, mode: str, restore: bool, solver: str, eta: float, strength: float, count: int
) -> None:
    chosen, how = cast("Mode", mode), cast("Solver", solver)
    sampling = Sampling(**{**{name: getattr(LATENT, name) for name in LATENT.__struct_fields__}, "eta": eta})
    clean, masked = normals(count, *SHAPE, seed=1), normals(count, *SHAPE, seed=2)
    keep = (normals(count, 1, *SHAPE[1:], seed=3) > 0).astype(np.float32)
    noise = normals(count, noises_of_drawing(chosen, sampling, strength), *SHAPE, seed=4)
    expected: list[Float32Array] = []

    def predict(x: Float32Array, timestep: int) -> Float32Array:
        conditions = [] if mode == "blend" else [np.float32(1) - keep, masked]
        channels = np.concatenate([x, *conditions], axis=1)
        expected.append(np.concatenate([channels, channels]))
        predicted = network(expected[-1], timestep)
        return classifier_free_guidance(predicted[count:], predicted[:count], 4.5)

    last = draw_latents(chosen, clean, keep, noise, sampling, predict, strength=strength, solver=how, restore=restore)
    table = drawing_table(chosen, sampling, 4.5, strength=strength, solver=how, restore=restore)
    assert noises_of_table(table) == noise.shape[1]
    assert len(table) == len(plan_drawing(sampling, strength)) + 1 == len(expected) + 1
    seen, x = sampled(kernels, table, network, clean, noise, keep=keep, masked=None if mode == "blend" else masked)
    for number, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
        np.testing.assert_array_equal(ours, theirs, f"step {number}")
    np.testing.assert_array_equal(x, last)


@pytest.mark.parametrize("has_hidden", [False, True])
@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(steps=5, conditioning="ddad", weight=3.0, eta=1.0),
        Sampling(steps=5, conditioning="blend", weight=2.0, eta=0.4, level="start"),
        Sampling(steps=4, start=900, spacing="trailing", final="first", clip=False),
        Sampling(steps=1, betas="cosine"),
    ],
)
def test_a_reconstruction_is_that_of_the_numpy_loop_at_each_step(
    kernels: CudaKernels, sampling: Sampling, has_hidden: bool
) -> None:
    images, hidden = np.tanh(normals(2, *SHAPE, seed=5)), normals(2, *SHAPE, seed=6) if has_hidden else None
    noise = normals(noises_needed(sampling), *SHAPE, seed=7)
    expected: list[Float32Array] = []

    def predict(x: Float32Array, timestep: int) -> Float32Array:
        expected.append(x)
        return network(x, timestep)

    last = reconstruct(images, noise, sampling, predict, hidden)
    table = reconstruction_table(sampling)
    assert noises_of_table(table) == len(noise)
    seen, x = sampled(kernels, table, network, images, noise, hidden=hidden, guided=False)
    assert len(seen) == len(plan_steps(sampling))
    for number, (ours, theirs) in enumerate(zip(seen, expected, strict=True)):
        np.testing.assert_array_equal(ours, theirs, f"step {number}")
    np.testing.assert_array_equal(x, last)
    _, x = sampled(
        kernels, reconstruction_table(sampling, bounded=True), network, images, noise, hidden=hidden, guided=False
    )
    np.testing.assert_array_equal(x, np.clip(last, -1, 1))


def test_a_prediction_that_is_no_number_stays_one_and_does_not_reach_what_is_kept(kernels: CudaKernels) -> None:
    clean, keep = normals(2, *SHAPE, seed=1), np.zeros((2, 1, *SHAPE[1:]), np.float32)
    keep[..., 2:] = 1
    noise = normals(2, 1, *SHAPE, seed=4)
    table = drawing_table("inpaint", LATENT, 2.0, restore=True)
    _, x = sampled(
        kernels, table, lambda given, _: given[:, :3] * np.float32(np.nan), clean, noise, keep=keep, masked=clean
    )
    assert np.isnan(x[..., :2]).all()
    np.testing.assert_array_equal(x[..., 2:], clean[..., 2:])


def test_a_row_is_that_of_the_header() -> None:
    text = re.sub(r"/\*.*?\*/", "", HEADER.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.search(r"typedef struct flawscope_diffusion_row \{(.*?)\}", text, re.DOTALL)
    assert found is not None
    types = {"int64_t": np.int64, "int32_t": np.int32, "float": np.float32}
    fields = [
        (name.strip(), types[kind])
        for kind, names in re.findall(r"(\w+) ([\w, ]+);", found.group(1))
        for name in names.split(",")
    ]
    assert np.dtype(fields, align=True) == ROW


def test_what_the_kernel_cannot_do_is_refused(kernels: CudaKernels) -> None:
    memory = np.zeros(4096, np.uint8)
    names = ("row", "predicted", "clean", "noise", "x", "past", "input", "timesteps")
    sound: dict[str, Any] = {name: address(memory) for name in names}
    sound |= {"n": 0, "c": 1, "cells": 1, "guided": 0, "hidden": 0, "keep": 0, "masked": 0, "arrays": 0, "stream": 0}
    kernels.diffusion_step(**sound)
    wrong = [{name: 0} for name in names]
    wrong += [{"guided": 2}, {"c": 0}, {"cells": 0}, {"masked": address(memory)}, {"n": 1 << 62}, {"cells": 1 << 62}]
    for change in wrong:
        with pytest.raises(ArgumentError, match=r"^CUDA kernels: diffusion_step: "):
            kernels.diffusion_step(**{**sound, "n": 1, **change})


def test_a_table_of_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"^eta: expected 0 with the solver dpm\+\+"):
        drawing_table("blend", Sampling(eta=0.5), 2.0, solver="dpm++")
    with pytest.raises(ArgumentError, match=r"^strength: "):
        drawing_table("blend", Sampling(), 2.0, strength=0.0)

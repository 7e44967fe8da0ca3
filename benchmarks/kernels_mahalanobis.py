"""Part `mahalanobis` of the kernel benchmark: bytes of matrices per second against the bandwidth of a copy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from kernels_measure import Elsewhere, Float32Array, copy_contestants, fastest, present, race, read_contestants, target

from flawscope.cpp_ext import Gaussians, reference
from flawscope.errors import FlawscopeError
from flawscope.triangles import pack_triangles

COPY_SHARE = 0.7
TOLERANCE = 1e-4
"""Of a squared distance: sums of at most 550 squares of sums of at most 550 products, in float32."""

SHAPES = ((784, 100), (3136, 100), (784, 550))
BATCHES = (1, 8, 32)
FACTORS = ("triangular", "triangular float16", "full")
"""Upper triangles as PaDiM's bundles have them, in float32 and float16, and whole matrices. Rivals multiply whole
float32 matrices of the same values in all three."""


def matrices(positions: int, channels: int, factor: str, seed: int) -> Float32Array:
    """Return float32 [P, D, D]: upper triangular, as PaDiM's inverse Cholesky factors are, rounded or not, or full."""
    generator = np.random.default_rng([seed, positions, channels])
    whitening = np.empty((positions, channels, channels), np.float32)
    diagonal = np.arange(channels)
    for matrix in whitening:
        generator.standard_normal(out=matrix, dtype=np.float32)
        matrix /= np.float32(channels)  # well conditioned with the ones on the diagonal, at any number of channels
        if factor != "full":
            matrix[:] = np.triu(matrix)
        matrix[diagonal, diagonal] += 1
        if factor == "triangular float16":
            matrix[:] = matrix.astype(np.float16)
    return whitening


def packed(mean: Float32Array, whitening: Float32Array, factor: str, threads: int) -> Gaussians:
    """Return the Gaussians whose calls are timed."""
    if factor == "full":
        return Gaussians(mean, whitening, threads=threads)
    dtype = np.float16 if factor == "triangular float16" else np.float32
    return Gaussians.of_triangles(mean, pack_triangles(whitening).astype(dtype), threads=threads)


def measure_shape(
    shape: tuple[int, int], factor: str, batches: tuple[int, ...], seed: int, threads: int, seconds: float, least: int
) -> list[dict[str, Any]]:
    """Return a row for each batch of one shape.

    Raises:
        FlawscopeError: If a contestant found other distances.
    """
    import torch

    positions, channels = shape
    whitening = matrices(positions, channels, factor, seed)
    generator = np.random.default_rng([seed, channels])
    mean = generator.standard_normal((positions, channels), dtype=np.float32)
    gaussians = packed(mean, whitening, factor, threads)
    torch_mean, torch_whitening = torch.from_numpy(mean), torch.from_numpy(whitening)
    traffic = copy_contestants(whitening, threads) | read_contestants(whitening, threads)
    rows = []
    for batch in batches:
        features = generator.standard_normal((batch, positions, channels), dtype=np.float32)
        x = torch.from_numpy(features)

        # `x` as a default: a closure would see the batch of the last turn of this loop.
        def bmm(x: Any = x) -> Any:
            white = torch.bmm((x - torch_mean).transpose(0, 1), torch_whitening)
            return white.square().sum(2).T

        def einsum(x: Any = x) -> Any:
            return torch.einsum("npd,pde->npe", x - torch_mean, torch_whitening).square().sum(2)

        calls: dict[str, Callable[[], Any]] = {
            "flawscope": lambda x=features: gaussians.mahalanobis(x, threads=threads),
            "numpy": lambda x=features: reference.mahalanobis(x, mean, whitening),
            "torch_bmm": bmm,
            "torch_einsum": einsum,
        }
        ours = calls["flawscope"]()
        for name, call in calls.items():
            error = float((np.abs(np.asarray(call()) - ours) / np.maximum(ours, 1e-6)).max())
            if not error <= TOLERANCE:
                raise FlawscopeError(
                    f"mahalanobis, {name}: expected our distances within a share of {TOLERANCE:g}, got a difference "
                    f"of {error:.3g}. One of the two is wrong; its speed says nothing."
                )
        elsewhere = Elsewhere()
        timings = race(calls | traffic, seconds, least)
        row = describe(shape, factor, batch, timings, gaussians.nbytes)
        rows.append(row | {"share_of_cores_elsewhere": elsewhere.share()})
    return rows


def describe(
    shape: tuple[int, int], factor: str, batch: int, timings: dict[str, dict[str, Any]], held: int
) -> dict[str, Any]:
    """Return the row of one case."""
    positions, channels = shape
    size = 4 * positions * channels**2
    copy, read = fastest(timings, "copy"), fastest(timings, "read")
    ours = timings["flawscope"]["median_s"]
    # A copy moves every byte twice, once read and once written.
    copy_rate, read_rate = 2 * size / timings[copy]["median_s"], size / timings[read]["median_s"]
    for name, timing in timings.items():
        timing["gbytes_per_s"] = (2 if name.startswith("copy") else 1) * 1e-9 * size / timing["median_s"]
    rivals = [name for name in timings if not name.startswith(("flawscope", "copy", "read"))]
    return {
        "P": positions,
        "D": channels,
        "batch": batch,
        "factor": factor,
        "bytes": size,
        "bytes_read": held,
        "contestants": timings,
        "copy": copy,
        "read": read,
        "share_of_copy": size / ours / copy_rate,
        "share_of_copy_bytes_read": held / ours / copy_rate,
        "share_of_read_bytes_read": held / ours / read_rate,
        "gflops": 2e-9 * batch * positions * channels**2 / ours,
        "ratios": {name: timings[name]["median_s"] / ours for name in rivals},
    }


def measure(quick: bool, seed: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the rows of all shapes, factors and batches."""
    rows: list[dict[str, Any]] = []
    for shape in SHAPES[:1] if quick else SHAPES:
        for factor in FACTORS:
            batches, seconds, least = (BATCHES[:1], 0.1, 2) if quick else (BATCHES, 2.0, 5)
            rows += measure_shape(shape, factor, batches, seed, threads, seconds, least)
            say(f"mahalanobis {shape} {factor}")
    return {"rows": rows}


def targets(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of this part, with the bytes of [P, D, D] and, stricter, with the bytes really read."""
    figures = (
        ("share_of_copy", "copy bandwidth, [P, D, D]", COPY_SHARE),
        ("share_of_copy_bytes_read", "copy bandwidth, bytes read", COPY_SHARE),
        ("share_of_read_bytes_read", "read bandwidth, bytes read", None),
    )
    results = []
    for batch in BATCHES:
        rows = [row for row in part["rows"] if row["batch"] == batch]
        for figure, reference_rate, required in figures:
            values = {f"P {row['P']}, D {row['D']}, {row['factor']}": row[figure] for row in rows}
            claim = f"mahalanobis batch {batch}: share of the {reference_rate}"
            results += present(target(claim, required, values))
    return results

"""The kernels beside the search: Mahalanobis distance, windows, k-centre and steps of samplings, against float64."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_stages.card import Memory
from gpu_stages.kernels import Array


class Arrays:
    """Arrays on a card for one call, given back together."""

    def __init__(self, card: Memory) -> None:
        self._card, self._memory = card, list[int]()

    def put(self, array: Array) -> int:
        """Return the address of a copy."""
        address = self.room(array.nbytes)
        self._card.copy_in(address, array)
        return address

    def room(self, size: int) -> int:
        """Return the address of memory full of rubbish."""
        address = self._card.allocate(size)
        self._memory.append(address)
        self._card.fill(address, 0xA5, size)
        self._card.wait()
        return address

    def close(self) -> None:
        """Give them back; waits."""
        self._card.wait()
        for address in self._memory:
            self._card.free(address)


def check_gaussians(bench: Any) -> None:
    """Mahalanobis distances by whole matrices and by triangles, float32 and float16."""
    cases = ((1, 3, 1), (17, 3, 100), (33, 1, 257), (8, 784, 100)) if bench.card.is_gpu else ((17, 3, 40),)
    for n, p, d in cases:
        features = bench.rng.integers(-2, 3, (n, p, d)).astype(np.float32)
        mean = bench.rng.integers(-1, 2, (p, d)).astype(np.float32)
        # float16 holds these exactly, so all three ways have the same sums up to their order.
        whole = np.triu(bench.rng.integers(-1, 2, (p, d, d))).astype(np.float32)
        whitened = np.einsum("npr,prc->npc", (features - mean).astype(np.float64), whole.astype(np.float64))
        wanted = (whitened**2).sum(2)
        upper = np.triu_indices(d)
        triangles = np.ascontiguousarray(whole[:, upper[0], upper[1]])
        arrays = Arrays(bench.card)
        given: dict[str, Any] = {"mean": arrays.put(mean), "features": arrays.put(features), "p": p, "d": d, "n": n}
        for kind, matrices in (("whole", whole), ("float32", triangles), ("float16", triangles.astype(np.float16))):
            squared, factors = arrays.room(4 * n * p), arrays.put(matrices)
            given |= {"squared": squared, "stream": bench.card.stream}
            if kind == "whole":
                bench.kernels.mahalanobis(whitening=factors, **given)
            else:
                bench.kernels.mahalanobis_triangles(triangles=factors, dtype=kind, **given)
            got = bench.card.fetch(squared, (n, p), np.float32)
            holds = bool((np.abs(got - wanted) <= 1e-5 * wanted).all())
            bench.report.check(holds, f"mahalanobis, {kind}, n {n}, p {p}, d {d}")
        arrays.close()


def check_windows(bench: Any) -> None:
    """The nearest row within its window, for integers to the last bit."""
    height, width, m, d, radius, images = (28, 28, 3000, 64, 3, 2) if bench.card.is_gpu else (5, 6, 60, 9, 1, 1)
    places = np.sort(bench.rng.integers(0, height * width, m))
    starts = np.searchsorted(places, np.arange(height * width + 1)).astype(np.int64)
    rows = bench.rng.integers(-1, 2, (m, d)).astype(np.float32)
    queries = bench.rng.integers(-1, 2, (images, height * width, d)).astype(np.float32)
    arrays = Arrays(bench.card)
    count = images * height * width
    squared, found = arrays.room(4 * count), arrays.room(8 * count)
    bench.kernels.windows_nearest(
        rows=arrays.put(rows), m=m, d=d, starts=arrays.put(starts), height=height, width=width,
        reach=arrays.put(np.full(height * width, radius, np.int32)), queries=arrays.put(queries), dtype="float32",
        n=images, squared=squared, found=found, stream=bench.card.stream,
    )  # fmt: skip
    got = bench.card.fetch(squared, (images, height * width), np.float32)
    got_rows = bench.card.fetch(found, (images, height * width), np.int64)
    away_y = np.abs(np.arange(height * width)[:, None] // width - places[None] // width)
    away_x = np.abs(np.arange(height * width)[:, None] % width - places[None] % width)
    outside = np.maximum(away_y, away_x) > radius
    for image in range(images):
        products = queries[image].astype(np.float64) @ rows.astype(np.float64).T
        all_squared = (queries[image] ** 2).sum(1)[:, None] + (rows**2).sum(1)[None] - 2 * products
        all_squared[outside] = np.inf
        best, nearest = all_squared.min(1), all_squared.argmin(1)
        there = np.isfinite(best)
        holds = (got[image][there] == best[there]).all() and (got_rows[image][there] == nearest[there]).all()
        holds = holds and np.isnan(got[image][~there]).all() and (got_rows[image][~there] == -1).all()
        bench.report.check(bool(holds), f"windows of radius {radius} on {height} x {width}, m {m}, d {d}")
    arrays.close()


def check_diffusion(bench: Any) -> None:
    """A step of a sampling by the rule of DDIM; all rules and flags are among the programs of checks."""
    from flawscope.diffusion.step_table import ROW

    n, c, cells = (2, 4, 4096) if bench.card.is_gpu else (2, 3, 35)
    row = np.zeros(1, ROW)
    values = {"timestep": 7, "rule": 1, "added": -1, "around": -1, "noise_part": 0.6, "inverse_signal": 1.25}
    for name, value in (values | {"next_clean": 0.9, "next_noise": 0.43}).items():
        row[name] = value
    x, predicted, clean = (bench.rng.standard_normal((n, c, cells), np.float32) for _ in range(3))
    part = (x.astype(np.float64) - predicted * 0.6) * 1.25
    wanted = part * 0.9 + predicted * 0.43
    arrays = Arrays(bench.card)
    given, timesteps, at = arrays.room(x.nbytes), arrays.room(8 * n), arrays.put(x)
    bench.kernels.diffusion_step(
        row=arrays.put(row), n=n, c=c, cells=cells, guided=0, predicted=arrays.put(predicted), clean=arrays.put(clean),
        hidden=0, keep=0, masked=0, noise=arrays.put(x), arrays=0, x=at, past=arrays.room(x.nbytes), input=given,
        timesteps=timesteps, stream=bench.card.stream,
    )  # fmt: skip
    for name, address in (("x", at), ("the network's input", given)):
        close = np.allclose(bench.card.fetch(address, x.shape, np.float32), wanted, rtol=1e-5, atol=1e-5)
        bench.report.check(bool(close), f"a step of a sampling: {name}")
    bench.report.check(bool((bench.card.fetch(timesteps, (n,), np.int64) == 7).all()), "a step of a sampling: times")
    arrays.close()


def check_centres(bench: Any) -> None:
    """Greedy k-centre on integers: the same rows in the same order."""
    cases = ((5000, 36, 60), (65, 5, 65)) if bench.card.is_gpu else ((65, 5, 20),)
    for n, d, count in cases:
        features = bench.rng.integers(-4, 5, (n, d)).astype(np.float32)
        closest, wanted = np.full(n, np.inf), [3]
        while len(wanted) < count:
            centre = features[wanted[-1]].astype(np.float64)
            closest = np.minimum(closest, ((features - centre) ** 2).sum(1))
            closest[wanted[-1]] = -1
            wanted.append(int(closest.argmax()))
        arrays = Arrays(bench.card)
        size = bench.kernels.kcenter_bytes(n=n, count=count)
        chosen = arrays.room(8 * count)
        bench.kernels.kcenter_greedy(
            features=arrays.put(features), n=n, d=d, count=count, first=3, workspace=arrays.room(size),
            workspace_bytes=size, chosen=chosen, stream=bench.card.stream,
        )  # fmt: skip
        got = bench.card.fetch(chosen, (count,), np.int64)
        bench.report.check(bool((got == wanted).all()), f"greedy k-centre, n {n}, d {d}, {count} centres")
        arrays.close()

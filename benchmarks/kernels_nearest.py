"""Part `nearest` of the kernel benchmark: our search, faiss, torch and the matrix product alone, on every shape."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from kernels_measure import Elsewhere, fastest, multiply_contestants, patches, present, race, rest, target

from flawscope.cpp_ext import Bank, nearest
from flawscope.errors import FlawscopeError

FAISS_RATIO, TORCH_RATIO, SGEMM_SHARE, SGEMM_FROM_CHANNELS = 2.5, 1.5, 0.8, 384
TOLERANCE = 2e-6
"""Of a squared distance, in units of (‖q‖ + ‖m‖)²: rivals use the product form, whose rounding grows with the norms."""

CDIST_ELEMENTS, CDIST_PRODUCTS = 1 << 28, 10**11
NINE_QUERIES = 1 << 27
"""k = 9 is left out where N·M is larger: the run would be much longer, and smaller shapes show the same."""

LONG_ROUND_S = 4.0
VARIANTS = (
    ("bank", 1, ""),
    ("unscreened", 1, ", no screen"),
    ("independent", 1, ", independent rows"),
    ("bank", 9, ""),
    ("unscreened", 9, ", no screen"),
    ("independent", 9, ", independent rows"),
)
"""Our contestant, k, and its name in the claims."""

RERANKED = {"float16": 4, "int8": 8}


def shapes(quick: bool) -> list[tuple[int, int, int]]:
    """Return (N, M, D) of all cases, small ones first."""
    if quick:
        return [(784, 1024, 128)]
    return sorted(
        itertools.product((784, 6272), (1024, 16384, 65536), (128, 384, 1024, 1536)), key=lambda s: s[0] * s[1] * s[2]
    )


def storage_shapes(quick: bool) -> list[tuple[int, int, int]]:
    """Return (N, M, D) of the cases in which the narrower storages are compared."""
    return [(784, 1024, 128)] if quick else list(itertools.product((784,), (16384, 65536), (128, 384, 1024, 1536)))


class Contestants:
    """All contestants on one shape. Packing, indexing and norms are computed before, outside the timing.

    How much the int8 screen of a bank saves depends on the data, so the bank also runs without it (`unscreened`), and
    with it on rows without structure (`independent`). The time of the rivals does not depend on the data.

    Attributes:
        calls: Name (with `/k`) -> call that is timed.
        banks: Our banks that may have a screen, by name with `/k`. One for each k: a bank stops using its screen when
            too many of its queries had no proof.
    """

    def __init__(self, shape: tuple[int, int, int], seed: int, threads: int) -> None:
        import faiss
        import torch

        count, size, channels = shape
        queries = patches("clustered", count, channels, seed, stream=1)
        rows = patches("clustered", size, channels, seed)
        gaussian_queries = patches("gaussian", count, channels, seed, stream=1)
        unstructured = patches("gaussian", size, channels, seed)
        unscreened = Bank(rows, screen=False, threads=threads)
        self.banks: dict[str, Bank] = {}
        index = faiss.IndexFlatL2(channels)
        index.add(rows)
        # Written to, so that no contestant pays for pages that were never touched.
        product = np.zeros((count, size), np.float32)
        q, transposed = torch.from_numpy(queries), torch.from_numpy(rows).T
        norms, buffer = torch.from_numpy(np.einsum("md,md->m", rows, rows)), torch.from_numpy(product)
        self._query_norms = np.einsum("nd,nd->n", queries, queries)[:, None]
        self._scale = float((np.sqrt(self._query_norms.max()) + norms.max().sqrt().item()) ** 2)

        def distances(out: Any = None) -> Any:
            return torch.addmm(norms, q, transposed, alpha=-2, out=out)

        self.calls: dict[str, Callable[[], Any]] = {}
        for k in (1, 9) if count * size <= NINE_QUERIES else (1,):
            bank, independent = Bank(rows, threads=threads), Bank(unstructured, threads=threads)
            self.banks |= {f"bank/{k}": bank, f"independent/{k}": independent}
            self.calls |= {
                f"bank/{k}": lambda k=k, bank=bank: bank.nearest(queries, k, threads=threads),
                f"rows/{k}": lambda k=k: nearest(queries, rows, k, threads=threads),
                f"faiss/{k}": lambda k=k: index.search(queries, k),
                f"unscreened/{k}": lambda k=k: unscreened.nearest(queries, k, threads=threads),
                f"independent/{k}": lambda k=k, bank=independent: bank.nearest(gaussian_queries, k, threads=threads),
            }
        self.calls["torch/1"] = lambda: distances().amin(1)
        self.calls["torch_kept/1"] = lambda: distances(buffer).amin(1)
        if "bank/9" in self.calls:
            self.calls["torch/9"] = lambda: distances().topk(9, 1, largest=False)
            self.calls["torch_kept/9"] = lambda: distances(buffer).topk(9, 1, largest=False)
        if count * size < CDIST_ELEMENTS and count * size * channels <= CDIST_PRODUCTS:
            stacked = transposed.T
            self.calls["cdist/1"] = lambda: torch.cdist(q, stacked).amin(1)
        self.calls |= multiply_contestants(queries, rows, product)

    def largest_error(self, name: str, result: Any, ours: npt.NDArray[Any]) -> float:
        """Return how far a contestant's squared distances are from ours, in units of (‖q‖ + ‖m‖)²."""
        system, _, k = name.partition("/")
        if system in ("bank", "rows", "unscreened", "faiss"):
            squared = result[0]
        else:
            values = result.numpy() if k == "1" else result.values.numpy()
            values = values.reshape(len(ours), int(k))
            # torch leaves out the queries' norms, which change no order; cdist returns roots.
            squared = values**2 if system == "cdist" else values + self._query_norms
        return float(np.abs(squared - ours).max()) / self._scale


def first_round(contestants: Contestants) -> tuple[dict[str, float], dict[str, float]]:
    """Call every contestant once, as a warm-up, and compare its distances with ours.

    Returns:
        Name -> seconds; name -> largest error.

    Raises:
        FlawscopeError: If a contestant found other distances.
    """
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    ours: dict[str, npt.NDArray[Any]] = {}
    for name, call in contestants.calls.items():
        rest()
        started = time.perf_counter()
        result = call()
        seconds[name] = time.perf_counter() - started
        if name.startswith(("sgemm", "independent")):
            continue  # a product has no distances, and independent rows have other ones
        k = name.partition("/")[2]
        ours.setdefault(k, result[0])  # `bank` is the first
        errors[name] = contestants.largest_error(name, result, ours[k])
        if not errors[name] <= TOLERANCE:
            raise FlawscopeError(
                f"nearest, {name}: expected the distances of bank/{k} within {TOLERANCE:g} of (‖q‖ + ‖m‖)², got a "
                f"difference of {errors[name]:.3g}. One of the two is wrong; its speed says nothing."
            )
    return seconds, errors


def measure_shape(
    shape: tuple[int, int, int], seed: int, threads: int, seconds: float, least: int
) -> list[dict[str, Any]]:
    """Return a row for each k of one shape."""
    count, size, channels = shape
    contestants, elsewhere = Contestants(shape, seed, threads), Elsewhere()
    expected_s, errors = first_round(contestants)
    least = min(least, 3) if sum(expected_s.values()) > LONG_ROUND_S else least
    timings = race(contestants.calls, seconds, least, expected_s)
    busy, work = elsewhere.share(), 2e-9 * count * size * channels
    unproved = {name: bank.unproved_share for name, bank in contestants.banks.items()}
    sgemm = fastest(timings, "sgemm")
    rows = []
    for k in (1, 9):
        names = [name for name in timings if name.endswith(f"/{k}")]
        if not names:
            continue
        of_k = {name.partition("/")[0]: timings[name] for name in names}
        of_k |= {name: timings[name] for name in timings if name.startswith("sgemm")}
        for timing in of_k.values():
            timing["gflops"] = work / timing["median_s"]
        ours = of_k["bank"]["median_s"]
        rivals = [name for name in of_k if name != "bank" and not name.startswith("sgemm")]
        ratios = {name: of_k[name]["median_s"] / ours for name in rivals}
        rows.append(
            {
                "N": count,
                "M": size,
                "D": channels,
                "k": k,
                "contestants": of_k,
                "sgemm": sgemm,
                "ratios": ratios | {"sgemm": timings[sgemm]["median_s"] / ours},
                "largest_error": max(errors[name] for name in names if name in errors),
                "unproved_share": {name: unproved[f"{name}/{k}"] for name in ("bank", "independent")},
                "share_of_cores_elsewhere": busy,
            }
        )
    return rows


def measure_storages(
    shape: tuple[int, int, int], seed: int, threads: int, seconds: float, least: int
) -> list[dict[str, Any]]:
    """Return a row for each storage of a bank, with and without re-ranking, on one shape, k = 1."""
    count, size, channels = shape
    queries = patches("clustered", count, channels, seed, stream=1)
    rows = patches("clustered", size, channels, seed)
    banks = {storage: Bank(rows, storage, threads=threads) for storage in ("float32", "float16", "int8")}
    options = [("float32", 0), *((storage, rerank) for storage, most in RERANKED.items() for rerank in (0, most))]
    calls = {
        f"{storage}/{rerank}": lambda storage=storage, rerank=rerank: banks[storage].nearest(
            queries, 1, rerank=rerank, threads=threads
        )
        for storage, rerank in options
    }
    timings = race(calls, seconds, least)
    # float64 from here on: an excess far below the distance would be lost in float32.
    true = np.sqrt(calls["float32/0"]()[0][:, 0].astype(np.float64))
    results = []
    for storage, rerank in options:
        places = calls[f"{storage}/{rerank}"]()[1][:, 0]
        reached = np.linalg.norm(queries.astype(np.float64) - rows[places], axis=1)
        timing = timings[f"{storage}/{rerank}"]
        results.append(
            {
                "N": count,
                "M": size,
                "D": channels,
                "storage": storage,
                "rerank": rerank,
                "timing": timing | {"gflops": 2e-9 * count * size * channels / timing["median_s"]},
                "ratio_to_float32": timings["float32/0"]["median_s"] / timing["median_s"],
                "error_bound": banks[storage].error_bound,
                "bank_bytes": banks[storage].nbytes,
                # Rows at the same distance up to rounding are the same answer.
                "recall": float((reached <= true * (1 + 1e-6)).mean()),
                "largest_excess": float((reached - true).max()),
                "median_distance": float(np.median(true)),
            }
        )
    return results


def measure(quick: bool, seed: int, threads: int, say: Callable[[str], None]) -> dict[str, Any]:
    """Return the rows of all shapes and of all storages."""
    seconds, least = (0.1, 2) if quick else (3.0, 5)
    rows: list[dict[str, Any]] = []
    for shape in shapes(quick):
        rows += (measured := measure_shape(shape, seed, threads, seconds, least))
        say(f"nearest {shape}: " + ", ".join(f"{n} x{r:.2f}" for n, r in measured[0]["ratios"].items()))
    storages: list[dict[str, Any]] = []
    for shape in storage_shapes(quick):
        storages += measure_storages(shape, seed, threads, seconds, least)
        say(f"storages {shape}")
    return {"rows": rows, "storages": storages}


def targets(part: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the targets of this part."""

    def values(ours: str, rival: str, k: int, least_channels: int = 0) -> dict[str, float]:
        ratios = {}
        for row in part["rows"]:
            if row["k"] == k and row["D"] >= least_channels and rival in row["ratios"]:
                name = f"N {row['N']}, M {row['M']}, D {row['D']}"
                ratios[name] = row["ratios"][rival] / row["ratios"].get(ours, 1)
        return ratios

    results = []
    for ours, k, how in VARIANTS:
        case, last = f"nearest k={k}{how}", "amin" if k == 1 else "topk"
        # The target was set for k = 1 with amin; the figure of topk is only shown.
        torch_ratio = TORCH_RATIO if k == 1 else None
        results += present(
            target(f"{case}: times faiss IndexFlatL2", FAISS_RATIO, values(ours, "faiss", k)),
            target(f"{case}: times torch addmm + {last}", torch_ratio, values(ours, "torch", k)),
            target(f"{case}: times torch, buffer kept", torch_ratio, values(ours, "torch_kept", k)),
            target(
                f"{case}: share of the sgemm rate, D ≥ {SGEMM_FROM_CHANNELS}",
                SGEMM_SHARE,
                values(ours, "sgemm", k, SGEMM_FROM_CHANNELS),
            ),
        )
    return results

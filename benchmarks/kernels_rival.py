"""Time anomalib's KCenterGreedy on rows from a file, and write the seconds, the selection and the peak memory.

Stand-alone: it runs in an environment with anomalib (`anomalib_env.py` makes one) and imports nothing of flawscope.
`shipped` is the call of anomalib's PatchCore: rows [N, D] go through its sparse random projection first. `unprojected`
passes the rows as [N, D, 1], for which anomalib leaves the projection out and selects among the rows themselves, as
flawscope does.

    python kernels_rival.py --features ROWS.npy --count 500 --threads 2 --out RESULT.json
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

WARM_UP_ROWS, WARM_UP_COUNT = 2000, 20


def select(rows: Any, count: int, seed: int) -> tuple[float, list[int], int]:
    """Return the seconds of one selection, the rows that were selected, and the channels that anomalib worked on."""
    import torch
    from anomalib.models.components.sampling import KCenterGreedy

    torch.manual_seed(seed)
    # anomalib takes a share of the rows; half a row more keeps the count through the rounding.
    sampler = KCenterGreedy(embedding=rows, sampling_ratio=(count + 0.5) / len(rows))
    started = time.perf_counter()
    chosen = sampler.select_coreset_idxs()
    return time.perf_counter() - started, [int(row) for row in chosen], int(sampler.features.shape[1])


def main() -> int:
    """Run the command line; return 0 when done and 2 when the request was wrong, with one line on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True, help=".npy file, float32 [N, D]")
    parser.add_argument("--count", type=int, required=True, help="number of centres")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="JSON file")
    options = parser.parse_args()
    os.environ["TQDM_DISABLE"] = "1"  # before tqdm is imported; a progress bar would cost time
    try:
        import anomalib
        import numpy as np
        import torch
    except ImportError as err:
        print(
            f"error: {sys.executable}: expected an environment with anomalib, got one without {err.name}; "
            "make one with benchmarks/anomalib_env.py.",
            file=sys.stderr,
        )
        return 2
    torch.set_num_threads(options.threads)
    rows = torch.from_numpy(np.load(options.features))
    result: dict[str, Any] = {"versions": {"anomalib": anomalib.__version__, "torch": torch.__version__}}
    # In turn, so that a change of clocks or load meets both alike.
    kinds = {"shipped": rows, "unprojected": rows.unsqueeze(2)}
    for embedding in kinds.values():
        select(embedding[:WARM_UP_ROWS], min(WARM_UP_COUNT, options.count), options.seed)
    result |= {kind: {"seconds": []} for kind in kinds}
    for _ in range(options.rounds):
        for kind, embedding in kinds.items():
            seconds, chosen, channels = select(embedding, options.count, options.seed)
            result[kind]["seconds"].append(seconds)
            result[kind] |= {"chosen": chosen, "channels": channels}
    result["peak_kib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    options.out.write_text(json.dumps(result) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Do the backends agree? Every image of a data set through each way to compute a bundle, beside the kernels on `cpu`.

    python benchmarks/backend_agreement.py part.flaw other.flaw --data CATEGORY_FOLDER --out FILE.json

For each bundle and each way, over all images, normal and anomalous, learned from or not: the largest difference of a
score, relative to its size; the largest difference of a map value, relative to the largest value of that map; and the
images whose decision differs, at the thresholds in the bundle (calibrate it first).
"""

from __future__ import annotations

import argparse
import contextlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from result_file import machine

from flawscope.datasets import open_dataset
from flawscope.files import write_text
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector
from flawscope.runtime.bench.alternation import parse_configuration
from flawscope.runtime.decision import decide
from flawscope.versions import package_versions

WAYS = ("cpu:auto", "cpu:graph", "openvino:auto", "openvino:graph")
"""The first is what the others are compared with."""


def agreement(bundle: Path, ways: list[str], paths: list[Path]) -> list[dict[str, Any]]:
    """Return a row for every way but the first."""
    with contextlib.ExitStack() as stack:
        opened: dict[str, Inspector] = {}
        for way in ways:
            chosen = parse_configuration(way)
            inspector = stack.enter_context(Inspector.load(bundle, chosen.backend, chosen.path, chosen.precision))
            # Methods without a bank have one path: asked for twice, it is compared once.
            opened.setdefault(f"{inspector.backend}:{inspector.path}:{inspector.precision}", inspector)
        first_way, *others = opened
        first = opened[first_way]
        if first.thresholds is None:
            raise SystemExit(f"{bundle}: expected a calibrated bundle, got one without thresholds. Calibrate it.")
        errors: dict[str, list[tuple[float, float]]] = {way: [] for way in others}
        decisions: dict[str, list[str]] = {way: [] for way in opened}
        for path in paths:
            image = prepare(read_image(path), first.manifest.input)[None]
            (reference,), (score,) = (values.copy() for values in first.infer(image))
            decisions[first_way].append(decide(float(score), reference, first.thresholds)[0])
            for way in others:
                (got_map,), (got,) = opened[way].infer(image)
                error = abs(got - score) / max(abs(score), first.scorer.least_score)
                errors[way].append((float(error), float(np.abs(got_map - reference).max() / np.abs(reference).max())))
                decisions[way].append(decide(float(got), got_map, first.thresholds)[0])
        rows = []
        for way, found in errors.items():
            pairs = list(zip(decisions[first_way], decisions[way], strict=True))
            rows.append(
                {
                    "bundle": first.manifest.name,
                    "method": first.manifest.method,
                    "input": list(first.manifest.input.size),
                    "way": way,
                    "beside": first_way,
                    "images": len(paths),
                    "score_max_relative": max(score for score, _ in found),
                    "map_max_relative": max(value for _, value in found),
                    "rejects": decisions[way].count("reject"),
                    "decisions_that_differ": sum(before != after for before, after in pairs),
                }
            )
        return rows


def main() -> None:
    """Compare the ways of each bundle and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="a category folder")
    parser.add_argument("--ways", nargs="+", default=list(WAYS), metavar="BACKEND[:PATH[:PRECISION]]")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    paths = [sample.path for sample in open_dataset(options.data).samples]
    rows = []
    for bundle in options.bundles:
        for row in agreement(bundle, options.ways, paths):
            rows.append(row)
            print(json.dumps(row), flush=True)
    document = {
        "suite": "backend_agreement",
        "settings": {"data": options.data.name, "ways": options.ways},
        "machine": machine(),
        "versions": package_versions(),
        "rows": rows,
    }
    write_text(options.out, json.dumps(document, indent=1) + "\n")


if __name__ == "__main__":
    main()

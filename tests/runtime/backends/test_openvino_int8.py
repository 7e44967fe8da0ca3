"""INT8 that OpenVINO computes wrong, in silence: a graph that the golden images find, and processors that cut sums."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from pooled_int8 import SIZE, pooled_model

from flawscope.bundle import FileEntry, OnnxModel, open_bundle, rewrite_manifest
from flawscope.bundle.manifest import Precision
from flawscope.errors import BundleError
from flawscope.files import sha256_file
from flawscope.imaging.images import decode_image, prepare
from flawscope.runtime import Inspector
from flawscope.runtime.backends.openvino import OpenvinoSession
from flawscope.runtime.backends.openvino_devices import cuts_int8
from flawscope.runtime.backends.openvino_graph import Place
from flawscope.runtime.backends.ort import OrtSession

pytest.importorskip("openvino", reason="the extra openvino is not installed")
right_in_int8 = pytest.mark.skipif(cuts_int8(), reason="OpenVINO cuts sums of INT8 products on this processor")

CPU = Place("openvino", "CPU", "int8")


def with_int8(bundle: Path, folder: Path, model: onnx.ModelProto) -> Path:
    """A copy of a bundle whose score in INT8 is that of a graph, as ONNX Runtime computes it on the CPU."""
    changed = Path(shutil.copytree(bundle, folder / bundle.name))
    onnx.save(model, changed / "score.int8.onnx")
    session = OrtSession(OnnxModel.of_file(changed / "score.int8.onnx"), "cpu")
    with open_bundle(bundle) as opened:
        manifest, golden = opened.manifest, []
        for entry in opened.manifest.golden:
            image = prepare(decode_image(opened.read(entry.file), entry.file), manifest.input)
            found = session.infer(image[None])
            score, peak = float(found["score"][0]), float(found["anomaly_map"].max())
            golden.append(msgspec.structs.replace(entry, score=score, map_max=peak))
    session.close()
    # Every precision has all graphs; this one is never asked for its features.
    shutil.copyfile(changed / "features.onnx", changed / "features.int8.onnx")
    graphs = {name: msgspec.structs.replace(g, file=f"{name}.int8.onnx") for name, g in manifest.graphs.items()}
    precision = Precision(graphs, tuple(golden), "by hand", 1, 2, ())
    made = [changed / graph.file for graph in graphs.values()]
    entries = {file.name: FileEntry(sha256_file(file), file.stat().st_size) for file in made}
    rewrite_manifest(
        changed, msgspec.structs.replace(manifest, precisions={"int8": precision}, files=manifest.files | entries)
    )
    return changed


@right_in_int8
def test_a_graph_that_is_computed_wrong_is_refused_by_its_golden_images(padim_bundle: Path, tmp_path: Path) -> None:
    model = pooled_model(is_read_twice=True)
    bundle = with_int8(padim_bundle, tmp_path, model)
    read = OnnxModel("pooled.onnx", model.SerializeToString(), {})
    image = np.random.default_rng(1).integers(0, 256, (1, SIZE, SIZE, 3)).astype(np.uint8)
    right, got = (
        session.infer(image)["anomaly_map"][0] for session in (OrtSession(read, "cpu"), OpenvinoSession(read, CPU))
    )
    near = 0.05 * right.max()  # pooled in INT8 it is rounded once more
    np.testing.assert_allclose(got[2:-2, 2:-2], right[2:-2, 2:-2], rtol=0, atol=near)
    if np.allclose(got, right, rtol=0, atol=near):
        pytest.skip("this OpenVINO computes the pooling of INT8 right at the border")
    Inspector.load(bundle, "cpu", "graph", "int8").close()
    with pytest.raises(BundleError, match=r"golden image .*: expected .* as at export, got .* on openvino\."):
        Inspector.load(bundle, "openvino", "graph", "int8")


@right_in_int8
def test_a_graph_that_is_computed_right_is_taken(padim_bundle: Path, tmp_path: Path) -> None:
    bundle = with_int8(padim_bundle, tmp_path, pooled_model(is_read_twice=False))
    with Inspector.load(bundle, "openvino", "graph", "int8") as inspector:
        assert inspector.backend == "openvino"


REFUSAL = """
import sys
from flawscope.errors import BackendError
from flawscope.runtime.backends.openvino_devices import cuts_int8, listed_devices
from flawscope.runtime.backends.table import is_there
from flawscope.runtime import Inspector
assert is_there("openvino") and is_there("openvino", "fp32")
assert cuts_int8() and not is_there("openvino", "int8")
assert "INT8" not in listed_devices()["CPU"]["precisions"]
Inspector.load(sys.argv[1], "openvino", "graph").close()
try:
    Inspector.load(sys.argv[1], "openvino", "graph", "int8")
except BackendError as err:
    print(err)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="sums are cut on x86 alone")
def test_a_processor_that_cuts_sums_of_products_runs_no_int8(padim_bundle: Path, tmp_path: Path) -> None:
    bundle = with_int8(padim_bundle, tmp_path, pooled_model(is_read_twice=False))
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}  # as on a processor without VNNI
    command = [sys.executable, "-c", REFUSAL, str(bundle)]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("backend openvino: INT8 in OpenVINO is wrong on this CPU: ")
    assert run.stdout.endswith("Use --precision fp32, or --backend cpu.\n")
    assert run.stdout.count("\n") == 1

"""Bundles that draw in FP16: the same images, but for a little, and engines."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest
from modelopt_here import needs_modelopt
from tiny_base import tiny_images
from tiny_dataset import DEFECTS
from tiny_drawers import write_drawers

from flawscope import cli
from flawscope.bundle import SynthHead, open_bundle
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.export.synthesis.generator_graphs import GRAPHS
from flawscope.export.synthesis.image_parity import measure_images
from flawscope.runtime.synthesis import DrawOptions, DrawOrder, Synthesizer

pytestmark = pytest.mark.long

MAX_BATCH = 6


@needs_modelopt
@pytest.mark.slow
def test_fp16_draws_what_fp32_draws_and_builds_as_engines(
    tmp_path: Path, tiny_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, path = write_drawers(tmp_path, tiny_root)["inpainting"], tmp_path / "drawer.flaw"
    export_synthesis(run, path, max_batch=MAX_BATCH, precisions=("fp16",))
    with open_bundle(path) as bundle:
        head, precision = bundle.manifest.head, bundle.manifest.precisions["fp16"]
        assert set(precision.graphs) == set(GRAPHS)
        assert precision.quantised > 0
        assert isinstance(head, SynthHead)
        assert [row.candidate for row in head.parity][1] == "the graphs in fp16, cpu"
        assert 30.0 <= head.parity[1].psnr_db < 100.0, "others, but hardly"
        half = onnx.load(bundle.path / bundle.graph_file("denoise", "fp16"))
    assert {tensor.data_type for tensor in half.graph.initializer} >= {onnx.TensorProto.FLOAT16}
    image = tiny_images(1)[0]
    mask = np.zeros(image.shape[:2], np.bool_)
    mask[4:12, 4:12] = True
    order = DrawOrder(image, mask, DEFECTS[0], None, seed=1)
    with Synthesizer.load(path, "cpu", "fp16") as low, Synthesizer.load(path, "cpu") as high:
        (first,), (second,) = (synthesizer.draw([order], DrawOptions(steps=4)) for synthesizer in (low, high))
    assert measure_images(second.image[None], first.image[None]) >= 30.0
    if importlib.util.find_spec("tensorrt_rtx"):
        build = ["engine", "build", str(path), "--target", "8.9", "--precision", "fp16", "--cache", str(tmp_path / "c")]
        assert cli.run([*build, "--graph", "denoise"]) == 0
        assert "graph denoise, fp16" in capsys.readouterr().out

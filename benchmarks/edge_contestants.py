"""flawscope, and the networks of its bundles in ONNX Runtime and OpenVINO as they are, as contestants.

python benchmarks/edge_contestants.py          # asked by edge_rivals.py; see rival_server.py for the requests
"""

from __future__ import annotations

import time
from typing import Any

from rival_server import Contestant, main

# What a contestant does not use is not imported: a cold start is measured with this file too.


class Whole(Contestant):
    """A bundle, from the files to the decisions; the model alone is the stage `infer`."""

    def __init__(self, request: dict[str, Any]) -> None:
        from flawscope.runtime import Inspector

        self.inspector = Inspector.load(
            request["bundle"], request["backend"], precision=request["precision"], use_overlay=False
        )
        self.facts = {"path": self.inspector.path, "method": self.inspector.manifest.method}

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`.

        Raises:
            RuntimeError: If an image is a fault.
        """
        results = list(self.inspector.stream(paths, len(paths)))
        for result in results:
            if result.score is None:
                raise RuntimeError(result.reason)
        model_s = sum(result.timings_ms["infer"] for result in results) / 1e3
        return [result.score for result in results], [result.anomaly_map for result in results], model_s

    def close(self) -> None:
        """Release the session."""
        self.inspector.close()


class OurGraph(Whole):
    """The feature graph of a bundle in flawscope's session: prepared images in, patches out."""

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy as np

        super().__init__(request)
        height, width = self.inspector.manifest.input.size
        shape = (request["batch"], height, width, 3)
        self.images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`; the images are made up."""
        started = time.perf_counter()
        self.inspector.scorer.outputs(self.images)
        return [], [], time.perf_counter() - started


class RawNetwork(Contestant):
    """A network in ONNX Runtime or OpenVINO as benchmark_app runs it: images in memory, outputs in memory.

    Images are float [N, 3, H, W]; for the graph of a bundle of ours (`is_ours`) uint8 [N, H, W, 3].
    """

    def __init__(self, request: dict[str, Any]) -> None:
        import numpy as np

        draw, batch, size = np.random.default_rng(0), request["batch"], request["size"]
        images = draw.standard_normal((batch, 3, *size), np.float32)
        if request.get("is_ours"):
            images = draw.integers(0, 256, (batch, *size, 3), np.uint8)
        if request["library"] == "onnxruntime":
            import onnxruntime

            session = onnxruntime.InferenceSession(request["graph"], providers=["CPUExecutionProvider"])
            feeds = {session.get_inputs()[0].name: images}
            self.infer = lambda: session.run(None, feeds)
            return
        import openvino

        core = openvino.Core()
        model = core.read_model(request["graph"])
        model.reshape(images.shape)
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}
        if request["precision"] != "default":
            config["INFERENCE_PRECISION_HINT"] = {"fp32": "f32", "int8": "f32", "bf16": "bf16"}[request["precision"]]
        compiled = core.compile_model(model, "CPU", config)
        call = compiled.create_infer_request()
        tensor = openvino.Tensor(images, shared_memory=True)
        self.facts = {"computes_in": str(compiled.get_property("INFERENCE_PRECISION_HINT").to_string())}
        call.set_input_tensor(tensor)
        self.infer = call.infer

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`; the images are made up."""
        started = time.perf_counter()
        self.infer()
        return [], [], time.perf_counter() - started


KINDS = {"whole": Whole, "graph": OurGraph, "raw": RawNetwork}


def open_contestant(request: dict[str, Any]) -> Contestant:
    """Return the contestant of a request, by its `kind`."""
    return KINDS[request["kind"]](request)


if __name__ == "__main__":
    main(open_contestant)

"""What stands in Triton's place in tests: it answers from the files of a model folder, and checks what it is asked.

The configuration decides names, shapes and types, ONNX Runtime computes.
"""

from __future__ import annotations

import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from text_format import read_model_config

from flawscope.export.triton import graph_place


class StandIn:
    """Answers as Triton would: what the configuration names, in the shapes it gives."""

    def __init__(self, folder: Path) -> None:
        self.config = read_model_config((folder / "config.pbtxt").read_text(encoding="utf-8"))
        (number,) = self.config["version_policy"]["specific"]["versions"]
        self.version = str(number)
        graph = folder / graph_place(self.version)
        self.session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
        self.replies: dict[str, np.ndarray] = {}

    def infer(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Check the request against the configuration, run the graph, reshape what it gives."""
        batch = len(inputs["image"])
        assert batch <= self.config["max_batch_size"]
        for entry in self.config["input"]:
            assert inputs[entry["name"]].shape == (batch, *entry["dims"])
            assert inputs[entry["name"]].dtype == {"TYPE_UINT8": np.uint8}[entry["data_type"]]
        names = [entry["name"] for entry in self.config["output"]]
        answers = dict(zip(names, self.session.run(names, inputs), strict=True))
        for entry in self.config["output"]:
            graph_shape = entry.get("reshape", {"shape": entry["dims"]})["shape"]
            assert answers[entry["name"]].shape == (batch, *graph_shape)
            answers[entry["name"]] = answers[entry["name"]].reshape(batch, *entry["dims"])
        return answers | self.replies


class _Input:
    def __init__(self, name: str, shape: list[int], datatype: str) -> None:
        assert datatype == "UINT8"
        self.name, self.shape = name, shape

    def set_data_from_numpy(self, data: np.ndarray) -> None:
        assert data.dtype == np.uint8
        assert list(data.shape) == self.shape
        self.data = data


def client_module(server: StandIn) -> dict[str, types.ModuleType]:
    """Return stand-ins for the modules of `tritonclient.http`, by name, whose client asks `server`."""

    class Client:
        def __init__(self, url: str, network_timeout: float) -> None:
            assert url == "localhost:8000"

        def get_model_config(self, name: str) -> dict[str, Any]:
            assert name == server.config["name"]
            return {"parameters": {entry["key"]: entry["value"] for entry in server.config["parameters"]}}

        def infer(self, name: str, inputs: list[_Input], model_version: str) -> Any:
            assert (name, model_version) == (server.config["name"], server.version)
            answers = server.infer({item.name: item.data for item in inputs})
            return types.SimpleNamespace(as_numpy=answers.get)

    module = types.ModuleType("tritonclient.http")
    vars(module).update(InferInput=_Input, InferenceServerClient=Client)
    package = types.ModuleType("tritonclient")
    vars(package)["http"] = module
    return {"tritonclient": package, "tritonclient.http": module}

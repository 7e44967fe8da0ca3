"""AnomaVision's detectors, exported by AnomaVision and run by its own wrapper, in ONNX Runtime and in OpenVINO.

Stand-alone: it runs in an environment with `anomavision` and torch, and imports nothing of flawscope.

    python rival_anomavision.py --prepare JSON     # fit and export; JSON: see `prepare`
    python rival_anomavision.py                    # contestants; see rival_server.py

Its own are the models `PatchCore` and `Padim`, their fitting, `ModelExporter`, `ModelWrapper`, and the transform of
images. What is not: the network gets the given weights in place of those that it would load from a hub, and PatchCore
keeps all positions (`patch_grid=None`; its default of 14 would search a quarter of them) and the given share of all
patches.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

from rival_server import Contestant, main

NAMES = {"resnet18": "resnet18", "wide_resnet50_2": "wide_resnet50"}


def prepare(options: dict[str, Any]) -> None:
    """Fit a detector on `data`/train/good and export it for every batch; `done.json` in `out` says what there is.

    Args:
        options: `method`, `data`, `backbone` (timm's name), `weights`, `size`, `coreset`, `channels`, `batches`, `out`.
    """
    import torch
    import torchvision
    from anomavision.algorithm.common import feature_extraction
    from anomavision.export import ModelExporter
    from safetensors.torch import load_file

    name, out, size = NAMES[options["backbone"]], Path(options["out"]), options["size"]

    def network(weights: Any = None, progress: bool = True) -> Any:
        built = getattr(torchvision.models, options["backbone"])(weights=None)
        built.load_state_dict(load_file(options["weights"]))
        return built

    # The extractor asks a hub for weights; there is no option to give it some.
    feature_extraction.BACKBONES[name] = (network, None)
    images = [read(path, size) for path in sorted(Path(options["data"], "train", "good").iterdir())]
    if options["method"] == "patchcore":
        from anomavision.algorithm.patchcore import PatchCore

        share = {"coreset_ratio": options["coreset"], "max_memory_patches": None, "patch_grid": None}
        model = PatchCore(backbone=name, layer_indices=[1, 2], **share)
        model.fit(list(torch.stack(images).split(8)))
        model.save_statistics(str(out / "model.pth"))
    else:
        from anomavision.algorithm.padim.padim import Padim

        model = Padim(backbone=name, layer_indices=[0, 1, 2], feat_dim=options["channels"])
        model.fit(list(torch.stack(images).split(8)))
        model.save_statistics(str(out / "model.pth"), half=False)
    exporter = ModelExporter(out / "model.pth", out, logging.getLogger("export"), "cpu")
    made: dict[str, str] = {}
    for batch in options["batches"]:
        shape = (batch, 3, size, size)
        paths = {
            "onnx": exporter.export_onnx(input_shape=shape, output_name=f"model-{batch}.onnx", dynamic_batch=False),
            "openvino": exporter.export_openvino(input_shape=shape, output_name=f"openvino-{batch}"),
        }
        made |= {f"{kind}-{batch}": str(path) for kind, path in paths.items() if path is not None}
    (out / "done.json").write_text(json.dumps(made))


def read(path: Path | str, size: int) -> Any:
    """Return a file as its own transform gives it: float32 [3, size, size], a tensor."""
    from anomavision.utils import create_image_transform
    from PIL import Image

    transform = create_image_transform(resize=(size, size), crop_size=None, normalize=True)
    return transform(Image.open(path).convert("RGB"))


class Wrapper(Contestant):
    """AnomaVision's wrapper around one of its exports."""

    def __init__(self, request: dict[str, Any]) -> None:
        from anomavision.inference.model.wrapper import ModelWrapper

        self.size = request["size"]
        self.wrapper = ModelWrapper(request["path"], "cpu")

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`."""
        import torch

        images = torch.stack([read(path, self.size) for path in paths])
        started = time.perf_counter()
        scores, maps = self.wrapper.predict(images)
        return scores, maps, time.perf_counter() - started


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(json.loads(sys.argv[2]))
    else:
        main(Wrapper)

"""anomalib's detectors as its users ship them: exported by anomalib to OpenVINO and run by its own inferencers.

Stand-alone: it runs in an environment with anomalib, OpenVINO and NNCF (`anomalib_env.py` makes one) and imports
nothing of flawscope.

    python rival_inferencer.py --prepare JSON      # train and export; JSON: see `prepare`
    python rival_inferencer.py                     # contestants; see rival_server.py

Training is that of `rival_anomalib.py`. What is exported is anomalib's Lightning module, with its pre-processor in the
graph and without its post-processor (thresholds and normalisation to [0, 1]): scores and maps are raw, so that figures
of accuracy suffer no clamping, and the graph is smaller. The inferencer is `anomalib.deploy.OpenVINOInferencer`.

anomalib 2.7 exports PatchCore, by default, fixed at two images, and its inferencer fails on one. What works is
`onnx_kwargs={"dynamic_shapes": ...}`, and that is used here, for each form of the input a graph of its own:

    file    `({2: Dim("height"), 3: Dim("width")},)`: one image of any size, resized in the graph, so that
            `predict(PATH)` works as in anomalib's documentation
    array   None: one image of the network's size, resized by the caller (Pillow, bilinear with antialiasing)
    batch   `({0: 8},)`: eight of them
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from rival_anomalib import Settings, bank_size, build_model, load_backbone, train
from rival_server import Contestant, main

FORMS = ("file", "array", "batch")


def prepare(options: dict[str, Any]) -> dict[str, Any]:
    """Train a detector and export it in all forms, and the array forms in INT8.

    Args:
        options: Fields of `rival_anomalib.Settings`, and `batch`. `out` is the folder for FORM and FORM-int8, and for
            torch.

    Returns:
        Milliseconds and what failed, also written to `done.json` there.
    """
    from lightning import seed_everything

    batch = options.pop("batch")
    paths = {name: Path(options[name]) for name in ("data", "weights", "out")}
    settings = Settings(**{**options, **paths})
    network = load_backbone(settings)
    seed_everything(settings.seed, workers=True)
    model = build_model(settings, network)
    seconds, images = train(model, settings)
    model.eval()
    done: dict[str, Any] = {"train_s": seconds["total"], "images": images, "bank": bank_size(model, settings.method)}
    failed: dict[str, str] = {}
    for name in ("on_train_epoch_start", "fit"):
        model.__dict__.pop(name, None)  # `train` put its marks there, which no pickle takes
    model.to_torch(settings.out)
    for form in FORMS:
        for precision in ("fp32", "int8") if form != "file" else ("fp32",):
            name = form if precision == "fp32" else f"{form}-int8"
            try:
                export(model, settings, form, batch, precision, settings.out / name)
            except Exception as err:  # what a rival cannot do is a result
                failed[name] = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"
    quantized_backbone(settings, options_batch=batch, failed=failed)
    done["failed"] = failed
    (settings.out / "done.json").write_text(json.dumps(done))
    return done


def export(model: Any, settings: Settings, form: str, batch: int, precision: str, out: Path) -> None:
    """Export one form by anomalib."""
    from anomalib.deploy import CompressionType
    from torch.export import Dim

    shapes = {"file": ({2: Dim("height"), 3: Dim("width")},), "array": None, "batch": ({0: batch},)}[form]
    # 18 is what the exporter of torch writes; anomalib asks for 14, which it then fails to convert to, after a while.
    options: dict[str, Any] = {"onnx_kwargs": {"dynamic_shapes": shapes, "opset_version": 18}}
    if form != "file":
        options["input_size"] = (settings.size, settings.size)
    if precision == "int8":
        images = calibration_images(settings, batch if form == "batch" else 1)
        options |= {"compression_type": CompressionType.INT8_PTQ, "datamodule": images}
    model.to_openvino(out, **options)


def calibration_images(settings: Settings, batch: int) -> Any:
    """Return a data module whose validation images are the normal training images, which anomalib calibrates on."""
    from anomalib.data import Folder
    from torchvision.transforms.v2 import Resize

    resize = Resize((settings.size, settings.size), antialias=True)
    data = Folder(
        name=settings.data.name,
        root=settings.data,
        normal_dir="train/good",
        num_workers=0,
        test_split_mode="none",
        val_split_mode="none",
        eval_batch_size=batch,
        train_augmentations=resize,
        val_augmentations=resize,
        seed=settings.seed,
    )
    data.setup()
    data.val_data = data.train_data
    if len(data.val_data) % batch:
        # NNCF would give the fixed graph a last batch that is too small.
        data.val_data.samples = data.val_data.samples.iloc[: len(data.val_data) // batch * batch]
    data.setup = lambda *_: None  # a second time would take the validation images away
    return data


def quantized_backbone(settings: Settings, options_batch: int, failed: dict[str, str]) -> None:
    """Write the network alone, as OpenVINO's own tools quantize it: float images in, its stages out."""
    try:
        import nncf
        import openvino
        import torch

        network = load_backbone(settings).eval()
        example = torch.zeros(1, 3, settings.size, settings.size)
        model = openvino.convert_model(network, example_input=example, input=[1, 3, settings.size, settings.size])
        images = [item["image"].numpy() for item in calibration_images(settings, 1).val_dataloader()][:60]
        mean, std = (torch.tensor(value).reshape(1, 3, 1, 1).numpy() for value in (settings.mean, settings.std))
        quantized = nncf.quantize(model, nncf.Dataset([(image - mean) / std for image in images]))
        openvino.save_model(quantized, settings.out / "backbone-int8.xml", compress_to_fp16=False)
    except Exception as err:  # what a rival cannot do is a result
        failed["backbone-int8"] = f"{type(err).__name__}: {' '.join(str(err).split())[:300]}"


# ---- The contestants -------------------------------------------------------------------------------------------------


class OpenVinoInferencer(Contestant):
    """anomalib's OpenVINO inferencer, in OpenVINO's own choice of precision unless FP32 is asked for."""

    def __init__(self, request: dict[str, Any]) -> None:
        from anomalib.deploy import OpenVINOInferencer

        self.form, self.size = request["form"], request["size"]
        name = self.form + ("-int8" if request["precision"] == "int8" else "")
        path = Path(request["folder"]) / name / "weights" / "openvino" / "model.xml"
        config = {"INFERENCE_PRECISION_HINT": "f32"} if request["precision"] == "fp32" else None
        self.inferencer = OpenVINOInferencer(path, device="CPU", config=config)
        self.facts = {"computes_in": self.inferencer.model.get_property("INFERENCE_PRECISION_HINT").to_string()}
        self.model_s = 0.0
        compiled = self.inferencer.model

        def timed(inputs: Any) -> Any:
            started = time.perf_counter()
            outputs = compiled(inputs)
            self.model_s = time.perf_counter() - started
            return outputs

        self.inferencer.model = timed

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`."""
        if self.form == "file":
            result = self.inferencer.predict(paths[0])
        else:
            import numpy as np

            images = [self.read(path) for path in paths]
            result = self.inferencer.predict(images[0] if len(images) == 1 else np.stack(images))
        return result.pred_score.ravel(), result.anomaly_map.reshape(len(paths), self.size, self.size), self.model_s

    def read(self, path: str) -> Any:
        """Return an image uint8 [H, W, 3] of the network's size."""
        import numpy as np
        from PIL import Image

        return np.array(Image.open(path).convert("RGB").resize((self.size, self.size), Image.Resampling.BILINEAR))


class TorchInferencer(Contestant):
    """anomalib's torch inferencer; its file is a pickle, which it only opens where `TRUST_REMOTE_CODE` is set."""

    def __init__(self, request: dict[str, Any]) -> None:
        import os

        os.environ["TRUST_REMOTE_CODE"] = "1"  # the file was written by `prepare`
        from anomalib.deploy import TorchInferencer as Inferencer

        self.inferencer = Inferencer(Path(request["folder"]) / "weights" / "torch" / "model.pt", device="cpu")

    def decide(self, paths: list[str]) -> tuple[Any, Any, float]:
        """See `Contestant`."""
        import torch

        with torch.inference_mode():
            result = self.inferencer.predict(paths[0])
        return result.pred_score.ravel().tolist(), result.anomaly_map[:, 0].numpy(), 0.0


def open_contestant(request: dict[str, Any]) -> Contestant:
    """Return the contestant of a request, by its `kind`."""
    return {"openvino": OpenVinoInferencer, "torch": TorchInferencer}[request["kind"]](request)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--prepare"]:
        prepare(json.loads(sys.argv[2]))
    else:
        main(open_contestant)

"""Trainings of every method that a training in several processes takes, small enough to run one after the other.

`python process_trainings.py FOLDER OUT NAME...` runs some of them in this process, which may be one of several, and
leaves OUT/NAME; FOLDER holds what `prepare` wrote.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PARTS: dict[str, Any] = {
    "resize": 32,
    "batch_size": 8,
    "epochs": 2,
    "preview_every": 1,
    "device": "cpu",
}
_DETECTOR = {**_PARTS, "held_out_minimum": 5, "num_workers": 1}
_DIFFUSION = {**_DETECTOR, "learning_rate": 1e-3, "layers": 1}
_LABELLED = {**_DETECTOR, "epoch_batches": 3, "validation": 0.3, "held_out": 0.25, "held_out_minimum": 3}
# Rounding grows with every step; the defaults are meant for longer trainings.
_ADAPTED = {**_PARTS, "resize": 16, "batch_size": 4, "repeats": 3}
# Clipping, averages, warm-up and accumulation lie on some of them; no figure depends on how many processes there are.
TRAININGS: dict[str, tuple[str, dict[str, Any]]] = {
    "stfpm": ("stfpm", {**_DETECTOR, "backbone": "mobilenetv2_035", "learning_rate": 0.01}),
    "ddad": (
        "ddad",
        {
            **_DIFFUSION,
            "backbone": "scattering",
            "stages": [1, 2],
            "widths": [8, 16],
            "attention": [16],
            "steps": 3,
            "warmup_steps": 2,
            "ema": 0.9,
            "clip_norm": 1.0,
            "accumulate": 2,
        },
    ),
    "ddad-noise": (
        "ddad",
        {
            **_DIFFUSION,
            "backbone": "scattering",
            "stages": [1, 2],
            "widths": [8, 16],
            "attention": [],
            "steps": 3,
            "noise": "simplex",
            "flip": True,
            "rotate": 10,
            "color_jitter": 0.1,
        },
    ),
    "dsad": (
        "dsad",
        {
            **_DIFFUSION,
            "backbone": "scattering",
            "stages": [1, 2],
            "widths": [16, 32],
            "heads": 2,
            "context": 8,
            "hint_widths": [4, 8, 16],
            "sketch_size": 16,
            "steps": 3,
            "autoencoder": "{folder}/autoencoder",
            "sketch_corrupt": 0.0,
        },
    ),
    "lafite": (
        "lafite",
        {
            **_DIFFUSION,
            "backbone": "scattering",
            "stages": [1, 2],
            "grid": [8, 8],
            "widths": [16, 16],
            "attention": [4],
            "head_width": 8,
            "steps": 3,
        },
    ),
    "autoencoder": ("autoencoder", {**_DIFFUSION, "backbone": "scattering", "widths": [8, 16, 16]}),
    "segmenter": ("segmenter", {**_LABELLED, "stages": [1, 2], "width": 16, "top": 20, "learning_rate": 0.02}),
    "draem": (
        "draem",
        {**_LABELLED, "width": 4, "depth": 3, "segmentation_width": 8, "segmentation_depth": 2, "score_window": 5},
    ),
    "destseg": (
        "destseg",
        {
            **_LABELLED,
            "backbone": "scattering",
            "stages": [1, 2],
            "width": 8,
            "blocks": 1,
            "head_width": 16,
            "learning_rate": 0.1,
            "residual_rate": 0.2,
            "head_rate": 0.2,
            "top": 20,
        },
    ),
    "base": (
        "base",
        {
            **_PARTS,
            "learning_rate": 1e-3,
            "widths": [8, 16],
            "layers": 1,
            "heads": 2,
            "context": 8,
            "text_layers": 1,
            "autoencoder": "{folder}/autoencoder",
        },
    ),
    "embedding": ("embedding", {**_ADAPTED, "base": "{folder}/base", "support": "{folder}/support"}),
    "inpainting": ("inpainting", {**_ADAPTED, "base": "{folder}/inpainting-base", "support": "{folder}/support"}),
}


def train_line(folder: Path, *, resume: bool = False, killed_at: int | None = None) -> dict[str, Any]:
    """Train on nine numbers, in batches of four: in two processes, the last batch has none for one of them."""
    import torch
    from interrupted import killing_progress
    from torch import Tensor, nn

    from flawscope.config import StfpmConfig, from_flat
    from flawscope.progress import no_progress
    from flawscope.training.loop import draws
    from flawscope.training.loop.image_batches import Numbers
    from flawscope.training.loop.loop import run_loop

    class Line:
        def __init__(self) -> None:
            torch.manual_seed(3)
            self.network: nn.Module = nn.Sequential(nn.Linear(1, 2), nn.LayerNorm(2), nn.Linear(2, 1)).double()

        def optimizer(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters(), lr=0.01)

        def loss(self, network: nn.Module, images: Tensor, generator: torch.Generator) -> Tensor:
            values = images[:, None].double() + draws.normal((len(images), 1), generator, dtype=torch.float64)
            error: Tensor = (network(values) - 0.5 * values).square().mean()
            return error

        def validate(self) -> dict[str, float]:
            numbers = torch.arange(5.0, dtype=torch.float64)[:, None]
            with torch.inference_mode():
                return {"error": float((self.network(numbers) - 0.5 * numbers).square().mean())}

        def preview(self, path: Path) -> None:
            path.write_bytes(b"preview")

    settings = {"epochs": 4, "batch_size": 4, "ema": 0.5, "clip_norm": 1.0, "schedule": "cosine", "device": "cpu"}
    settings |= {"preview_every": 1, "accumulate": 2}
    line = Line()
    progress = no_progress if killed_at is None else killing_progress(killed_at)
    trained = run_loop(line, Numbers(9), from_flat(StfpmConfig, settings), folder, resume=resume, progress=progress)
    return {
        "losses": trained.losses,
        "error": trained.error,
        "epoch": trained.epoch,
        "state": {name: value.tolist() for name, value in trained.state.items()},
        "last": {name: value.tolist() for name, value in line.network.state_dict().items()},
        "processes": trained.processes,
    }


def prepare(folder: Path) -> None:
    """Write data set, labelled defects, weights and bases for all trainings."""
    from published_weights import write_backbone_weights
    from tiny_base import write_tiny_base_run
    from tiny_dataset import CATEGORY, write_tiny_dataset
    from tiny_judged import write_place

    from flawscope.config import build_config
    from flawscope.datasets import open_dataset
    from flawscope.datasets.defects.support_set import write_support
    from flawscope.training.detectors.detector_training import train_detector

    write_tiny_dataset(folder / "parts")
    dataset = open_dataset(folder / "parts", CATEGORY)
    write_support(dataset, folder / "support", shots=2, split="test")
    place = write_place(folder / "labelled")
    (folder / "places.json").write_text(json.dumps({"root": str(place.root), "support": str(place.support)}))
    write_backbone_weights(folder / "weights.safetensors", "mobilenetv2_035")
    write_tiny_base_run(folder / "base")
    write_tiny_base_run(folder / "inpainting-base", inpainting=True)
    train_detector(build_config("autoencoder", TRAININGS["autoencoder"][1])[0], dataset, folder / "autoencoder")


def run_trainings(folder: Path, out: Path, names: Sequence[str]) -> None:
    """Run trainings, as one process or one of several."""
    from flawscope import methods
    from flawscope.config import build_config
    from flawscope.datasets import open_dataset
    from flawscope.training.detectors.detector_training import train_detector
    from flawscope.training.loop.ranks import leave
    from flawscope.training.synthesis.generator_training import train_synthesis

    place = json.loads((folder / "places.json").read_text())
    for name in names:
        method, settings = TRAININGS[name]
        settings = {
            key: value.format(folder=folder) if isinstance(value, str) else value for key, value in settings.items()
        }
        is_labelled = "epoch_batches" in settings
        if is_labelled:
            settings["support"] = place["support"]
        config = build_config(method, settings)[0]
        root, category = (Path(place["root"]), None) if is_labelled else (folder / "parts", "steel")
        dataset = open_dataset(root, category)
        if methods.METHODS[method].kind == "generator":
            train_synthesis(config, dataset, out / name)
        else:
            weights = folder / "weights.safetensors" if settings.get("backbone") == "mobilenetv2_035" else None
            train_detector(config, dataset, out / name, weights=weights, drawn_check=False)
    leave()


if __name__ == "__main__":
    run_trainings(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:])

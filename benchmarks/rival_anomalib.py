"""Run PatchCore, PaDiM or STFPM of anomalib on one category and write its scores, maps and timings.

Stand-alone: it runs inside an environment that has anomalib (`anomalib_env.py` makes one) and imports nothing of
flawscope, so the two systems share images, backbone and weights but no code.

What is anomalib's own: the Lightning models `Patchcore`, `Padim` and `Stfpm`, trained by anomalib's `Engine` from its
`Folder` data module (batches of 32, shuffled, its read, resize and pre-processor), with its embedding, coreset
sampling, Gaussian fit, optimizer and loss, anomaly map and scoring. What is not:

    * The network inside anomalib's `TimmFeatureExtractor` is replaced by the same timm network built with
      --backbone-options and filled from --weights: anomalib passes no options to timm and loads weights from a hub.
    * STFPM's student is the same network from a random start; epochs are those of --epochs (anomalib's own number
      comes with early stopping on test figures, which are off).
    * Mean and deviation are the given ones, in place of ImageNet's.
    * Validation, thresholds, normalisation of the scores, checkpoints and figures are off: scores and maps are the raw
      ones of the torch model, and no test image is seen before it is timed.
    * Testing calls the torch model image by image under `torch.inference_mode`, without the Lightning loop, whose
      overhead would count against anomalib.

Written to --out: `scores.safetensors` (`score` float32 [N], `anomaly_map` float32 [N, size, size]), `images.json` (the
N test images in that order, relative to the category folder), and last `result.json`. Times are wall-clock:

    train_s     `features` (read, resize, backbone over train/good), `fitting` (coreset or Gaussians), `total` (with
                the start of Lightning)
    latency_ms  one image at a time after a warm-up, `p50` and `p90`: `model` (from the normalised tensor to map and
                score), `from_decoded` (and resize, normalise), `from_file` (and read, decode)
    peak_rss_mb of this process, the loader's workers not counted: `train`, and `total` at the end
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import os
import platform
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

# torch, timm, anomalib and NumPy are imported where they are used: a wrong argument is an error at once, and arguments
# can be tested where anomalib is not installed.

EXTENSIONS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
WARM_UP_IMAGES = 20
PACKAGES = ("anomalib", "torch", "torchvision", "timm", "lightning", "numpy")


class RivalError(Exception):
    """The request cannot be met; the message is for the user."""


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings of a run, named as the options.

    Attributes:
        data: Category folder in MVTec layout.
        mean: Per channel, on [0, 1].
        std: Per channel, on [0, 1].
        stages: 1-based, ascending: timm's `out_indices`.
        size: Height and width in pixels.
        coreset: PatchCore: fraction of the training patches that is kept.
        neighbors: PatchCore: neighbours in the weight of the image score.
        channels: PaDiM: channels drawn at random.
        epochs: STFPM: passes over the normal images.
        workers: Processes that read training images.
    """

    method: str
    data: Path
    backbone: str
    weights: Path
    backbone_options: dict[str, Any]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    stages: tuple[int, ...]
    size: int
    seed: int
    coreset: float
    neighbors: int
    channels: int
    epochs: int
    workers: int
    out: Path


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise RivalError(f"{message}; see --help.")


def parse_stages(text: str) -> tuple[int, ...]:
    """Return ascending 1-based stages from text such as `2,3`."""
    try:
        stages = tuple(int(part) for part in text.split(","))
    except ValueError:
        stages = ()
    # anomalib takes the first layer as the finest grid and brings the others to it.
    if not stages or stages[0] < 1 or list(stages) != sorted(set(stages)):
        raise argparse.ArgumentTypeError(f"expected ascending stages from 1 such as 2,3, got {text!r}")
    return stages


def parse_channels(text: str) -> tuple[float, ...]:
    """Return three numbers from `0.5` (all channels alike) or `0.485,0.456,0.406`."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) not in (1, 3):
        raise argparse.ArgumentTypeError(f"expected one number or three with commas, got {text!r}")
    return values * 3 if len(values) == 1 else values


def parse_options(text: str) -> dict[str, Any]:
    """Return the keyword arguments for timm from a JSON object."""
    try:
        options = json.loads(text)
    except json.JSONDecodeError as err:
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r} ({err})") from err
    if not isinstance(options, dict):
        raise argparse.ArgumentTypeError(f"expected a JSON object, got {text!r}")
    return options


def parse_fraction(text: str) -> float:
    """Return a fraction above 0 and up to 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"expected a fraction above 0 and up to 1, got {text!r}")
    return value


def parse_count(text: str) -> int:
    """Return a whole number of at least 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def parse_arguments(arguments: Sequence[str] | None = None) -> Settings:
    """Return the settings from the command line.

    Raises:
        RivalError: If an option is unknown, missing or has a value that cannot be used.
    """
    parser = _Parser(prog="rival_anomalib.py", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--method", required=True, choices=["patchcore", "padim", "stfpm"])
    parser.add_argument("--data", required=True, type=Path, help="category folder in MVTec layout")
    parser.add_argument("--backbone", required=True, help="timm name")
    parser.add_argument("--weights", required=True, type=Path, help="safetensors file with timm's names")
    parser.add_argument("--backbone-options", type=parse_options, default={}, help="JSON object for timm.create_model")
    parser.add_argument("--mean", type=parse_channels, default=(0.485, 0.456, 0.406), help="one number or three")
    parser.add_argument("--std", type=parse_channels, default=(0.229, 0.224, 0.225), help="one number or three")
    parser.add_argument("--stages", required=True, type=parse_stages, help="1-based feature stages, such as 2,3")
    parser.add_argument("--size", type=parse_count, default=224, help="height and width in pixels")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--coreset", type=parse_fraction, default=0.1, help="patchcore: fraction of patches kept")
    parser.add_argument("--neighbors", type=parse_count, default=9, help="patchcore: neighbours in the score's weight")
    parser.add_argument("--channels", type=parse_count, default=100, help="padim: channels kept")
    parser.add_argument("--epochs", type=parse_count, default=100, help="stfpm: passes over the normal images")
    parser.add_argument(
        # anomalib's own default is 8, which only costs memory where there are fewer cores.
        "--workers",
        type=parse_count,
        default=min(8, os.cpu_count() or 1),
        help="processes that read training images",
    )
    parser.add_argument("--out", required=True, type=Path, help="folder for the results")
    settings = Settings(**vars(parser.parse_args(arguments)))
    if not settings.weights.is_file():
        raise RivalError(f"--weights: expected a safetensors file, got {settings.weights}, which is not there.")
    if min(settings.std) <= 0:
        raise RivalError(f"--std: expected numbers above 0, got {list(settings.std)}.")
    if settings.out.exists() and not settings.out.is_dir():
        raise RivalError(f"--out: expected a folder, got the file {settings.out}.")
    return settings


def _images(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.suffix.lower() in EXTENSIONS and path.is_file())


def list_images(data: Path) -> tuple[list[Path], list[Path]]:
    """Return the training and the test images of a category, each sorted by path.

    Raises:
        RivalError: If the folder is not there or holds no images where MVTec's layout has them.
    """
    if not data.is_dir():
        raise RivalError(f"--data: expected a category folder, got {data}, which is not there.")
    train, test = _images(data, "train/good/*"), _images(data, "test/*/*")
    if len(train) < 2 or not test:
        raise RivalError(
            f"--data: expected two or more images in {data}/train/good and one or more in {data}/test/*, "
            f"got {len(train)} and {len(test)}."
        )
    return train, test


def load_backbone(settings: Settings, trained: bool = True) -> Any:
    """Return the timm feature network, built as anomalib builds it, with the options and weights of the settings.

    Without `trained` its weights are left as timm draws them.

    Raises:
        RivalError: If the network cannot be built so, or the file lacks a weight that it needs.
    """
    import timm
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        network = timm.create_model(
            settings.backbone,
            pretrained=False,
            features_only=True,
            exportable=True,
            out_indices=settings.stages,
            **settings.backbone_options,
        )
        if not trained:
            return network
        report = network.load_state_dict(load_file(settings.weights), strict=False)
    except (SafetensorError, RuntimeError, ValueError, TypeError, AssertionError, IndexError) as err:
        raise RivalError(
            f"--backbone {settings.backbone} with stages {list(settings.stages)} and {settings.weights}: "
            f"could not be built: {err}"
        ) from err
    # Unexpected names are the stages and the classifier behind the last stage that is used.
    if report.missing_keys:
        raise RivalError(
            f"--weights: expected every weight of {settings.backbone}, got a file that lacks "
            f"{len(report.missing_keys)} of them, first {report.missing_keys[0]}."
        )
    return network


def build_model(settings: Settings, network: Any) -> Any:
    """Return anomalib's Lightning model around the given timm feature network.

    Raises:
        RivalError: If backbone and channels do not fit.
    """
    from anomalib.models import Padim, Patchcore, Stfpm
    from anomalib.models.image.stfpm import torch_model as stfpm
    from anomalib.pre_processing import PreProcessor
    from torchvision.transforms.v2 import Compose, Normalize, Resize

    common: dict[str, Any] = {
        "backbone": settings.backbone,
        "layers": list(settings.stages),
        "pre_trained": False,
        # anomalib's default transform for this size, but for the two numbers.
        "pre_processor": PreProcessor(
            Compose([Resize((settings.size, settings.size), antialias=True), Normalize(settings.mean, settings.std)])
        ),
        "post_processor": False,
        "evaluator": False,
        "visualizer": False,
    }
    try:
        if settings.method == "stfpm":
            del common["pre_trained"]
            extractor = stfpm.TimmFeatureExtractor
            # It asks the hub for the teacher's weights; the network is replaced right below.
            stfpm.TimmFeatureExtractor = lambda **options: extractor(**{**options, "pre_trained": False})
            model = Stfpm(**common)
            model.model.teacher_model.feature_extractor = network.eval().requires_grad_(False)
            model.model.student_model.feature_extractor = load_backbone(settings, trained=False)
            return model
        if settings.method == "padim":
            model = Padim(n_features=settings.channels, **common)
        else:
            model = Patchcore(coreset_sampling_ratio=settings.coreset, num_neighbors=settings.neighbors, **common)
    except ValueError as err:
        raise RivalError(f"{settings.method}: refused by anomalib: {err}") from err
    model.model.feature_extractor.feature_extractor = network.eval()
    return model


def train(model: Any, settings: Settings) -> tuple[dict[str, float], int]:
    """Train with anomalib's engine on the CPU.

    Returns:
        The seconds, as in `train_s`, and the number of images that anomalib took.

    Raises:
        RivalError: If anomalib refuses the settings or cannot read an image.
    """
    from anomalib.data import Folder
    from anomalib.engine import Engine

    data = Folder(
        name=settings.data.name,
        root=settings.data,
        normal_dir="train/good",
        num_workers=settings.workers,
        test_split_mode="none",
        val_split_mode="none",
        seed=settings.seed,
    )
    marks: dict[str, float] = {}
    # A method with epochs has no `fit`: for it, the end of the last epoch is marked below.
    fit, begin_epoch = getattr(model, "fit", lambda: None), model.on_train_epoch_start

    def marked_begin() -> None:
        marks.setdefault("epoch", time.perf_counter())
        begin_epoch()

    def marked_fit() -> None:
        marks["fit"] = time.perf_counter()
        fit()
        marks["fitted"] = time.perf_counter()

    model.on_train_epoch_start, model.fit = marked_begin, marked_fit
    epochs = {"max_epochs": settings.epochs} if settings.method == "stfpm" else {}
    start = time.perf_counter()
    try:
        with tempfile.TemporaryDirectory(prefix="rival_") as folder:
            engine = Engine(default_root_dir=folder, accelerator="cpu", barebones=True, limit_val_batches=0, **epochs)
            engine.fit(model=model, datamodule=data)
            if settings.method == "stfpm":
                marked_fit()
    except ValueError as err:
        raise RivalError(f"{settings.method}: refused by anomalib: {err}") from err
    except OSError as err:
        # The message of a loader process is its whole traceback; the reason is the last line.
        raise RivalError(f"{settings.data}: training failed: {str(err).strip().splitlines()[-1]}") from err
    seconds = {
        "features": marks["fit"] - marks["epoch"],
        "fitting": marks["fitted"] - marks["fit"],
        "total": time.perf_counter() - start,
    }
    return seconds, len(data.train_data)


def score_images(model: Any, images: Sequence[Path], size: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Score images one by one.

    Returns:
        Arrays `score` float32 [N] and `anomaly_map` float32 [N, size, size]; and the times, as in `latency_ms`.

    Raises:
        RivalError: If an image cannot be read.
    """
    import numpy as np
    import torch
    from anomalib.data.utils import read_image

    transform: Callable[[Any], Any] = model.pre_processor.transform
    network = model.model.eval()
    score = np.empty(len(images), np.float32)
    maps = np.empty((len(images), size, size), np.float32)
    times = np.empty((len(images), 4))
    warm_up = [*images[:WARM_UP_IMAGES]]
    with torch.inference_mode():
        for turn, path in enumerate([*warm_up, *images], start=-len(warm_up)):
            clock = [time.perf_counter()]
            try:
                image = read_image(path, as_tensor=True)
            except OSError as err:
                raise RivalError(f"{path}: could not be read: {err}") from err
            clock.append(time.perf_counter())
            batch = transform(image[None])
            clock.append(time.perf_counter())
            result = network(batch)
            clock.append(time.perf_counter())
            if turn < 0:
                continue
            score[turn], maps[turn] = result.pred_score.item(), result.anomaly_map[0, 0].numpy()
            times[turn] = clock
            if turn % 50 == 49 or turn + 1 == len(images):
                print(f"scored {turn + 1} of {len(images)} images", file=sys.stderr, flush=True)
    starts = {"model": 2, "from_decoded": 1, "from_file": 0}
    spans = {name: (times[:, 3] - times[:, start]) * 1000 for name, start in starts.items()}
    latency = {
        name: {"p50": float(np.percentile(span, 50)), "p90": float(np.percentile(span, 90))}
        for name, span in spans.items()
    }
    return {"score": score, "anomaly_map": maps}, latency


def bank_size(model: Any, method: str) -> dict[str, int]:
    """Return rows M and channels D of the fitted arrays: bank rows, or positions with a Gaussian each."""
    if method == "stfpm":
        return {}
    if method == "padim":
        channels, positions = model.model.gaussian.mean.shape
        return {"M": int(positions), "D": int(channels)}
    rows, channels = model.model.memory_bank.shape
    return {"M": int(rows), "D": int(channels)}


def _peak_rss_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # macOS counts bytes, Linux KiB.
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def _settings_json(settings: Settings) -> dict[str, Any]:
    values = dataclasses.asdict(settings)
    del values["method"], values["out"]
    return {name: str(value) if isinstance(value, Path) else value for name, value in values.items()}


def run(settings: Settings) -> dict[str, Any]:
    """Train, score, write the three files, and return what `result.json` holds.

    Raises:
        RivalError: If data, weights or settings cannot be used, or anomalib is not installed.
    """
    train_images, test_images = list_images(settings.data)
    try:
        versions = {name: str(importlib.import_module(name).__version__) for name in PACKAGES}
    except ImportError as err:
        raise RivalError(
            f"{sys.executable}: expected an environment with anomalib, got one without {err.name}; "
            "make one with benchmarks/anomalib_env.py."
        ) from err
    import torch
    from lightning import seed_everything
    from safetensors.numpy import save

    settings.out.mkdir(parents=True, exist_ok=True)
    # A result.json stands for a finished run: an older one must not be taken for that of the new scores.
    (settings.out / "result.json").unlink(missing_ok=True)
    network = load_backbone(settings)
    # After the network is built, whose random start would shift the draws: the rest is drawn as in anomalib alone.
    seed_everything(settings.seed, workers=True)
    print(f"{settings.method}: training on {len(train_images)} images", file=sys.stderr, flush=True)
    model = build_model(settings, network)
    train_s, train_count = train(model, settings)
    peak_train_mb = _peak_rss_mb()
    arrays, latency_ms = score_images(model, test_images, settings.size)
    result = {
        "method": settings.method,
        "settings": _settings_json(settings),
        "versions": {**versions, "python": platform.python_version()},
        "device": "cpu",
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "images": {"train": train_count, "test": len(test_images), "warm_up": WARM_UP_IMAGES},
        "bank": bank_size(model, settings.method),
        "train_s": train_s,
        "latency_ms": latency_ms,
        "peak_rss_mb": {"train": peak_train_mb, "total": _peak_rss_mb()},
    }
    (settings.out / "scores.safetensors").write_bytes(save(arrays))
    names = [path.relative_to(settings.data).as_posix() for path in test_images]
    (settings.out / "images.json").write_text(json.dumps(names, indent=1) + "\n", encoding="utf-8")
    part = settings.out / ".result.json.tmp"
    part.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    part.replace(settings.out / "result.json")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0 when done and 2 when the request was wrong, with one line on stderr."""
    try:
        run(parse_arguments(arguments))
    except (RivalError, OSError) as err:
        print(f"error: {' '.join(str(err).split())}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

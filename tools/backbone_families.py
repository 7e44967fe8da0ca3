"""Try the families of timm: a whole file in timm's own names, training, export, parity, and what the stages are.

    python tools/backbone_families.py [--only NAME] [--out FILE.json] [--page docs/backbones.md]

For each network a state dict with random values is written in timm's own names, classifier included; a small PatchCore
is trained from the file and exported, which checks torch, graph and native path against each other. Independently of
this, the plain network is run on the same image (`forward_intermediates`, or hooks on the modules that `feature_info`
names) and every stage is compared with that of the trained run: values, channels and strides. The exit status is 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import safetensors.torch
import timm
import torch
from torch import Tensor, nn

from flawscope.config import PatchcoreConfig, from_flat
from flawscope.datasets import open_dataset
from flawscope.datasets.parts import render
from flawscope.errors import FlawscopeError
from flawscope.export.detectors.detector_export import export_run
from flawscope.files import write_text
from flawscope.training.detectors.detector_run import read_run
from flawscope.training.detectors.detector_training import train_detector
from flawscope.training.features.timm_network import is_channels_last

NETWORKS: dict[str, tuple[str, int]] = {
    "resnet18": ("ResNet", 64),
    "wide_resnet50_2": ("Wide ResNet", 64),
    "res2net50_26w_4s": ("Res2Net", 64),
    "regnety_002": ("RegNet", 64),
    "efficientnet_lite0": ("EfficientNet", 64),
    "mobilenetv2_035": ("MobileNetV2", 64),
    "mobilenetv3_small_050": ("MobileNetV3", 64),
    "mobilenetv4_conv_small_035": ("MobileNetV4", 64),
    "densenet121": ("DenseNet", 64),
    "vgg11": ("VGG", 64),
    "convnext_atto": ("ConvNeXt", 64),
    "convnextv2_atto": ("ConvNeXt V2", 64),
    "vit_tiny_patch16_224": ("ViT", 96),
    "deit_tiny_distilled_patch16_224": ("DeiT", 96),
    "vit_small_patch14_dinov2": ("DINOv2", 84),
    "vit_small_patch14_reg4_dinov2": ("DINOv2 with registers", 84),
    "vit_small_patch16_dinov3": ("DINOv3", 96),
    "eva02_tiny_patch14_224": ("EVA-02", 84),
    "swin_tiny_patch4_window7_224": ("Swin", 128),
    "swinv2_tiny_window8_256": ("Swin V2", 128),
    "hiera_tiny_224": ("Hiera", 224),  # timm does not resample its table: the plain network could not be loaded
    "maxvit_rmlp_pico_rw_256": ("MaxViT", 128),
    "coatnet_nano_rw_224": ("CoAtNet", 128),
    "repvit_m0_9": ("RepViT", 64),
    "fastvit_t8": ("FastViT", 64),
    "edgenext_xx_small": ("EdgeNeXt", 64),
    "efficientvit_b0": ("EfficientViT (MIT)", 64),
    "efficientvit_m0": ("EfficientViT (MSRA)", 224),
    "mobilevit_xxs": ("MobileViT", 64),
    "repghostnet_050": ("RepGhostNet", 64),
    "ghostnet_050": ("GhostNet", 64),
    "xception41": ("Xception", 64),
    "cspresnet50": ("CSPNet", 64),
    "mambaout_femto": ("MambaOut", 64),
    "poolformer_s12": ("MetaFormer", 64),
    "pvt_v2_b0": ("PVT v2", 64),
    "levit_128s": ("LeViT", 224),
}
"""Network -> its family, and a size in pixels of its images; the smallest network of each family."""
_OPEN, _CLOSE = "<!-- families: written by `python tools/backbone_families.py --page` -->", "<!-- end of families -->"
_TOLERANCE = 1e-4  # of the largest value of a stage: two ways through one network round differently


@dataclass
class Row:
    """What was found of one network; an empty `problem` means that all of it is right.

    Attributes:
        family: Its family.
        name: Its name.
        size: Sides in pixels.
        stages: Stages that were chosen for it.
        channels: Channels of these stages.
        strides: Strides of these stages.
        layout: Layout in which the network gives them.
        difference: Largest difference from the plain network, as a share of a stage's largest value.
        parity: Largest relative difference of scores between torch, graph and native path at export.
        seconds: Time that it took.
        problem: What is wrong.
    """

    family: str
    name: str
    size: int
    stages: tuple[int, ...] = ()
    channels: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()
    layout: str = ""
    difference: float = float("nan")
    parity: float = float("nan")
    seconds: float = 0.0
    problem: str = ""


def draw_state(name: str, options: Mapping[str, Any], seed: int = 0) -> dict[str, Tensor]:
    """Return a whole state dict in timm's own names; its random values are not those that a network starts with."""
    torch.manual_seed(seed)
    with torch.random.fork_rng():
        state = timm.create_model(name, pretrained=False, **options).state_dict()
    drawn = {}
    for key, value in state.items():
        if value.is_floating_point():
            value = value + 0.02 * torch.randn(value.shape)
            value = value.abs() + 0.1 if key.endswith("running_var") else value
        drawn[key] = value.clone().contiguous()
    return drawn


def write_images(root: Path, size: int, count: int = 3) -> Path:
    """Write ROOT/steel with a few normal images to learn from; return ROOT."""
    folder = root / "steel" / "train" / "good"
    folder.mkdir(parents=True)
    for index in range(count):
        cv2.imwrite(str(folder / f"{index}.png"), render("steel", 0, index, size)[0])
    return root


def plain_stages(
    name: str,
    options: Mapping[str, Any],
    state: Mapping[str, Tensor],
    image: Tensor,
    stages: Sequence[int],
    *,
    norm: bool,
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """Return stages of the plain network for a normalised image [1, 3, H, W], and what `feature_info` says of them.

    Neither flawscope nor timm's feature networks take part.
    """
    size = tuple(image.shape[-2:])
    configuration = timm.get_pretrained_cfg(name)
    if configuration.fixed_input_size:
        options = {**options, "img_size": size}
    network: nn.Module = timm.create_model(name, pretrained=False, **options)
    if all(network.state_dict()[key].shape == value.shape for key, value in state.items()):
        network.load_state_dict(dict(state))
    else:  # tables of positions for another size: timm's own way resamples them
        overlay = {"state_dict": dict(state), "custom_load": False, "source": None}
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **options)
    network.eval()
    information: Any = network.feature_info
    described = [dict(information[stage]) for stage in stages]
    with torch.inference_mode():
        if hasattr(network, "forward_intermediates"):
            keywords = {"norm": norm} if norm else {}
            found = network.forward_intermediates(
                image, indices=list(stages), output_fmt="NCHW", intermediates_only=True, **keywords
            )
            return list(found), described
        hooked: dict[str, Tensor] = {}
        modules = dict(network.named_modules())
        for entry in described:
            modules[entry["module"]].register_forward_hook(
                lambda module, inputs, output, place=entry["module"]: hooked.__setitem__(place, output)
            )
        network.forward_features(image)
        return [hooked[entry["module"]] for entry in described], described


def try_network(name: str, folder: Path, options: Mapping[str, Any] | None = None) -> Row:
    """Train, export and compare one network of the table.

    Args:
        name: The network.
        folder: Everything is written below it.
        options: Further arguments of `timm.create_model`, which make a network small.
    """
    family, size = NETWORKS[name]
    row = Row(family, name, size)
    started = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch, on how timm's networks are written
            _try(row, folder, options or {})
    except FlawscopeError as err:
        row.problem = " ".join(str(err).split())
    except Exception as err:  # the table says of every network what became of it
        row.problem = f"{type(err).__name__}: {' '.join(str(err).split())[:200]}"
    row.seconds = round(time.perf_counter() - started, 1)
    return row


def _try(row: Row, folder: Path, options: Mapping[str, Any]) -> None:
    state = draw_state(row.name, options)
    file = folder / f"{row.name}.safetensors"
    safetensors.torch.save_file(state, file)
    # So that no line of the training has to assume anything.
    conditions = {
        "architecture": row.name,
        "mean": [0.5, 0.5, 0.5],
        "std": [0.25, 0.25, 0.25],
        "options": dict(options),
    }
    file.with_suffix(".json").write_text(json.dumps(conditions))
    settings = {"backbone": row.name, "resize": (row.size, row.size), "held_out": 0.0, "coreset": 20, "neighbors": 2}
    run_folder = folder / f"{row.name}.run"
    dataset = open_dataset(write_images(folder / row.name, row.size), None)
    train_detector(from_flat(PatchcoreConfig, settings), dataset, run_folder, weights=file)
    manifest = export_run(run_folder, folder / f"{row.name}.flaw")
    row.parity = max(entry.score_max_relative for entry in manifest.evidence.parity)
    run = read_run(run_folder)
    features, backbone = run.record.config.features, run.module.backbone
    row.stages = features.stages
    row.layout = "NHWC" if is_channels_last(backbone.network) else "NCHW"
    generator = np.random.default_rng(0)
    image = torch.from_numpy(generator.integers(0, 256, (1, row.size, row.size, 3), np.uint8))
    with torch.inference_mode():
        ours = backbone(image)
    normalised = ((image.float() / 255 - 0.5) / 0.25).permute(0, 3, 1, 2)
    theirs, described = plain_stages(row.name, options, state, normalised, row.stages, norm=bool(features.final_norm))
    row.channels = tuple(int(stage.shape[1]) for stage in ours)
    row.strides = tuple(round(row.size / stage.shape[-1]) for stage in ours)
    expected = tuple((int(entry["num_chs"]), int(entry["reduction"])) for entry in described)
    if tuple(zip(row.channels, row.strides, strict=True)) != expected:
        row.problem = f"channels and strides: expected {expected}, got {row.channels} and {row.strides}"
        return
    if [tuple(stage.shape) for stage in theirs] != [tuple(stage.shape) for stage in ours]:
        row.problem = f"shapes: the plain network gives {[tuple(stage.shape) for stage in theirs]}"
        return
    row.difference = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(ours, theirs, strict=True))
    if not row.difference <= _TOLERANCE:
        row.problem = f"values: the plain network differs by {row.difference:.1e}"


def table(rows: Sequence[Row]) -> str:
    """Return the rows as a table in Markdown."""
    lines = [
        "| family | network | px | stages | channels | strides | layout | from the plain network | parity |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        numbers = [", ".join(map(str, values)) for values in (row.stages, row.channels, row.strides)]
        result = row.problem or f"{row.difference:.0e} | {row.parity:.0e}"
        lines.append(f"| {row.family} | `{row.name}` | {row.size} | {' | '.join(numbers)} | {row.layout} | {result} |")
    return "\n".join(lines)


def _with_table(page: str, text: str) -> str:
    before, _, rest = page.partition(_OPEN)
    return f"{before}{_OPEN}\n\n{text}\n\n{_CLOSE}{rest.partition(_CLOSE)[2]}"


def main() -> int:
    """Try the networks; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=NETWORKS, help="one network; may be repeated")
    parser.add_argument("--out", type=Path, help="write the rows as JSON")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    options = parser.parse_args()
    rows = []
    for name in options.only or NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(try_network(name, Path(folder)))
        print(f"{name}: {rows[-1].problem or 'right'} ({rows[-1].seconds} s)", file=sys.stderr, flush=True)
        if options.out is not None:  # after each, as all of them take minutes
            write_text(options.out, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(table(rows))
    families = {row.family for row in rows if not row.problem}
    print(f"\n{len(families)} of {len({row.family for row in rows})} families right.")
    if options.page is not None:
        write_text(options.page, _with_table(options.page.read_text(encoding="utf-8"), table(rows)))
    return 1 if any(row.problem for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())

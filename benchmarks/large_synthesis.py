"""Measure export and drawing of a model of the size of Stable Diffusion 1.5 inpainting: memory and time.

    python benchmarks/large_synthesis.py --work DIR [--steps N] [--backend NAME] [--precision fp16] [--out FILE]

The weights are random, so the images mean nothing. DIR takes about 14 GB. Every part runs in a process of its own, and
its peak resident set is recorded, that of its children included: writing the folder in diffusers' form, `flawscope
export`, and drawing two images of 512 px with guidance, one after the other. The first drawing also pays for what is
made once. FP16 needs ModelOpt (`FLAWSCOPE_MODELOPT_PYTHON`).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from result_file import machine

from flawscope.versions import package_versions

SIDE = 512
LIMIT_GB = 24


def write_folder(folder: Path) -> None:
    """Write a randomly initialised Stable Diffusion 1.5 for inpainting, as diffusers and transformers write it."""
    import diffusers
    import torch
    import transformers

    torch.manual_seed(0)
    unet = diffusers.UNet2DConditionModel(
        sample_size=SIDE // 8,
        in_channels=9,
        out_channels=4,
        block_out_channels=(320, 640, 1280, 1280),
        layers_per_block=2,
        cross_attention_dim=768,
        attention_head_dim=8,
    )
    unet.save_pretrained(folder / "unet")
    del unet  # 3.4 GB that would count in the peak of this part
    vae = diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=SIDE,
        scaling_factor=0.18215,
    )
    vae.save_pretrained(folder / "vae")
    settings = transformers.CLIPTextConfig(
        vocab_size=49408,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=12,
        num_attention_heads=12,
        max_position_embeddings=77,
        bos_token_id=49406,
        eos_token_id=49407,
        pad_token_id=49407,
    )
    transformers.CLIPTextModel(settings).save_pretrained(folder / "text_encoder")
    letters = [chr(number) for number in range(33, 127)]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    # Filled up to the size of CLIP's vocabulary: the end token is then 49407, which the text encoder looks for.
    tokens += [f"<{number}>" for number in range(len(tokens), 49406)]
    vocabulary = {token: index for index, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}
    written = folder / "words"
    written.mkdir()
    (written / "vocab.json").write_text(json.dumps(vocabulary), "utf-8")
    (written / "merges.txt").write_text("#version: 0.2\n", "utf-8")
    tokenizer = transformers.CLIPTokenizer.from_pretrained(written, local_files_only=True, model_max_length=77)
    tokenizer.save_pretrained(folder / "tokenizer")
    shutil.rmtree(written)


def draw(bundle: Path, steps: int, backend: str, precision: str) -> dict[str, Any]:
    """Draw two images; return the seconds of loading and of each, and the verdict of the filter on the second."""
    import numpy as np

    from flawscope.runtime.synthesis import DrawOptions, DrawOrder, Synthesizer

    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), bool)
    mask[192:320, 192:320] = True
    started = time.perf_counter()
    with Synthesizer.load(bundle, backend, precision) as synthesizer:
        loaded = time.perf_counter()
        order = DrawOrder(image, mask, "crack", "a crack", seed=0)
        synthesizer.draw([order], DrawOptions(steps=steps))
        first = time.perf_counter()
        (drawn,) = synthesizer.draw([order], DrawOptions(steps=steps))
        return {
            "load_s": round(loaded - started, 1),
            "first_s": round(first - loaded, 1),
            "draw_s": round(time.perf_counter() - first, 1),
            "outside_is_identical": bool((drawn.image[~mask_grown(mask)] == image[~mask_grown(mask)]).all()),
            "verdict": drawn.verdict.sentence(),
        }


def mask_grown(mask: Any) -> Any:
    """Return the mask with the feather of a paste around it."""
    import cv2
    import numpy as np

    return cv2.dilate(mask.astype(np.uint8), np.ones((11, 11), np.uint8)) > 0


def measured(*command: object) -> dict[str, Any]:
    """Run a command; return its seconds, and its peak resident set in GB."""
    started = time.perf_counter()
    process = subprocess.Popen([str(part) for part in command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()  # to its end first: wait4 would wait for ever for a process whose pipe is full
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"failed: {' '.join(map(str, command))}\n{output}")
    figures = {"seconds": round(time.perf_counter() - started, 1), "peak_gb": round(usage.ru_maxrss / 1e6, 2)}
    last = output.strip().splitlines()[-1] if output.strip() else ""
    return {**figures, **(json.loads(last) if last.startswith("{") else {})}


def main() -> None:
    """Measure, print, and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--backend", default="cpu")
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=["folder", "draw"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder, bundle = options.work / "stable_diffusion", options.work / "large.flaw"
    if options.part == "folder":
        write_folder(folder)
        return
    if options.part == "draw":
        print(json.dumps(draw(bundle, options.steps, options.backend, options.precision)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    this = (sys.executable, __file__, "--work", options.work, "--steps", options.steps)
    this += ("--backend", options.backend, "--precision", options.precision)
    precision = ("--precision", "fp16") if options.precision == "fp16" else ()
    export = (sys.executable, "-m", "flawscope", "export")
    parts = {
        "folder": measured(*this, "--part", "folder"),
        "export": measured(*export, folder, "--out", bundle, "--overwrite", *precision),
    }
    parts["draw"] = measured(*this, "--part", "draw")
    peak_gb = max(figures["peak_gb"] for figures in parts.values())
    result = {
        "suite": "large_synthesis",
        "what": "randomly initialised model of Stable-Diffusion-1.5-inpainting size, "
        f"{options.precision.upper()}, backend {options.backend}",
        "settings": {"side_px": SIDE, "steps": options.steps, "guidance": "as exported", "images": 1},
        "parts": parts,
        "bytes": {path.name: path.stat().st_size for path in sorted(bundle.glob("*.onnx*"))},
        "peak_gb": peak_gb,
        "limit_gb": LIMIT_GB,
        "fits": peak_gb <= LIMIT_GB,
        "machine": machine(),
        "versions": package_versions(),
    }
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()

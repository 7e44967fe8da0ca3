"""Bundles of a few kilobytes that draw defects: graphs made by hand, without torch and without training.

The networks are chosen so that what they draw is known. A latent cell is the mean colour of 4 x 4 pixels, and decoding
fills the cell with that colour. The denoiser believes that the clean cells of the left half have the colour that the
text's embeddings say, and those of the right half that of the tiny dataset's steel, and takes `share` of the noise that
follows from it: with a share of 1 all cells are drawn in just those colours, and below 1 the noise shows through, so
that another seed draws another image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import onnx
import safetensors.numpy
from onnx import TensorProto, helper, numpy_helper
from tiny_bundle import tiny_manifest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from flawscope.bundle import Graph, Manifest, SynthDefect, SynthHead, SynthSupport, write_bundle
from flawscope.diffusion.prompts import PromptRules
from flawscope.diffusion.schedule import Sampling, signal_shares
from flawscope.imaging.images import Preprocessing

SIDE, CELL = 16, 4
"""Height and width of the model's images in pixels, and of a latent cell."""
LATENTS = (4, SIDE // CELL, SIDE // CELL)
WIDTH, LENGTH = 4, 8
MAX_BATCH = 8
CATEGORY = "steel"
GROUND = (0.36, 0.37, 0.38, 0.37)
"""The steel of the tiny dataset, as latents."""
WORDS = ("[PAD]", "[BEGIN]", "[END]", "[UNK]", "*", "a", "defect", "pitting", "stain", "in", "the", "upper", "left")
SAMPLING = Sampling(
    betas="scaled_linear",
    beta_start=0.00085,
    beta_end=0.012,
    start=1000,
    steps=4,
    offset=1,
    final="first",
    clip=False,
)
DEFECTS = (
    SynthDefect(CATEGORY, "pitting", ("a * defect {location}", "* {location}"), "vectors.steel/pitting"),
    SynthDefect(CATEGORY, "stain", ("a stain {location}",)),
)

Mode = Literal["blend", "inpaint"]


def tiny_tokenizer() -> bytes:
    """Return a `tokenizer.json` of whole words, a beginning and an end."""
    numbers = {word: number for number, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(word, numbers[word]) for word in ("[BEGIN]", "[END]")]
    tokenizer.post_processor = processors.TemplateProcessing("[BEGIN] $A [END]", special_tokens=ends)
    return tokenizer.to_str().encode()


def word_table() -> npt.NDArray[np.float32]:
    """Return the embeddings of the words, float32 [V, 4]: all zero but that of `stain`, which is a brown."""
    table = np.zeros((len(WORDS), WIDTH), np.float32)
    table[WORDS.index("stain")] = LENGTH * np.array([0.2, -0.1, -0.4, 0.0], np.float32)
    return table


def word_vectors() -> dict[str, npt.NDArray[np.float32]]:
    """Return the learned word of `pitting`, float32 [1, 4]: a dark grey."""
    return {"vectors.steel/pitting": LENGTH * np.array([[-0.3, -0.3, -0.35, 0.0]], np.float32)}


def tiny_graphs(mode: Mode = "blend", share: float = 1.0, gain: float = 1.0) -> dict[str, bytes]:
    """Return the four graphs.

    Args:
        mode: Of `inpaint` the denoiser takes the box and the masked latents too, and adds a hundredth of their mean.
        share: Of the noise that the colour asks for.
        gain: What the decoder multiplies latents with before it clips; NaN is a decoder that has failed.
    """
    rgb = np.concatenate([np.eye(3), np.full((1, 3), 1 / 3)]).astype(np.float32)
    shares = signal_shares(SAMPLING)
    channels = LATENTS[0] if mode == "blend" else 2 * LATENTS[0] + 1
    text = _graph(
        [
            ("Gather", ["table", "tokens"], "words", {}),
            ("Unsqueeze", ["placed", "last"], "placed3", {}),
            ("Sub", ["one", "placed3"], "kept", {}),
            ("Mul", ["words", "kept"], "kept_words", {}),
            ("Mul", ["vectors", "placed3"], "learned", {}),
            ("Add", ["kept_words", "learned"], "context", {}),
        ],
        {"tokens": ("int64", ["N", LENGTH]), "vectors": ["N", LENGTH, WIDTH], "placed": ["N", LENGTH]},
        {"context": ["N", LENGTH, WIDTH]},
        {"table": word_table(), "last": np.array([2]), "one": np.float32(1)},
    )
    encode = _graph(
        [
            ("AveragePool", ["image"], "means", {"kernel_shape": [CELL, CELL], "strides": [CELL, CELL]}),
            ("Conv", ["means", "weights"], "latents", {}),
        ],
        {"image": ["N", 3, SIDE, SIDE]},
        {"latents": ["N", *LATENTS]},
        {"weights": rgb[:, :, None, None]},
    )
    left = np.zeros((1, 1, *LATENTS[1:]), np.float32)
    left[..., : LATENTS[2] // 2] = 1.0
    ground = np.array(GROUND, np.float32).reshape(1, -1, 1, 1) * (1 - left)
    # noise = share * (x - sqrt(a) * clean) / sqrt(1 - a): what is in x if this is the clean image.
    denoise = _graph(
        [
            ("ReduceMean", ["context", "tokens_axis"], "mean", {"keepdims": 0}),
            ("Reshape", ["mean", "cells"], "colour", {}),
            ("Gather", ["signal", "timestep"], "signals", {}),
            ("Gather", ["inverse", "timestep"], "inverses", {}),
            ("Slice", ["x", "first", "latent_channels", "channel_axis"], "own", {}),
            ("Mul", ["colour", "left"], "defect", {}),
            ("Add", ["defect", "ground"], "clean", {}),
            ("Mul", ["clean", "signals"], "expected", {}),
            ("Sub", ["own", "expected"], "rest", {}),
            ("Mul", ["rest", "inverses"], "found", {}),
            ("ReduceMean", ["x", "channel_axis"], "all", {"keepdims": 1}),
            ("Mul", ["all", "little"], "beside", {}),
            ("Add", ["found", "beside"], "noise", {}),
        ],
        {"x": ["N", channels, *LATENTS[1:]], "timestep": ("int64", ["N"]), "context": ["N", LENGTH, WIDTH]},
        {"noise": ["N", *LATENTS]},
        {
            "tokens_axis": np.array([1]),
            "cells": np.array([-1, WIDTH, 1, 1]),
            "signal": (shares**0.5).astype(np.float32).reshape(-1, 1, 1, 1),
            "inverse": (share * (1 - shares) ** -0.5).astype(np.float32).reshape(-1, 1, 1, 1),
            "left": left,
            "ground": ground,
            "first": np.array([0]),
            "latent_channels": np.array([LATENTS[0]]),
            "channel_axis": np.array([1]),
            "little": np.float32(0.0 if mode == "blend" else 0.01),
        },
    )
    decode = _graph(
        [
            ("Slice", ["latents", "first", "colours", "channel_axis"], "cells", {}),
            ("Mul", ["cells", "gain"], "scaled", {}),
            ("Clip", ["scaled", "low", "high"], "clipped", {}),
            ("Resize", ["clipped", "", "scales"], "picture", {"mode": "nearest"}),
        ],
        {"latents": ["N", *LATENTS]},
        {"picture": ["N", 3, SIDE, SIDE]},
        {
            "first": np.array([0]),
            "colours": np.array([3]),
            "channel_axis": np.array([1]),
            "gain": np.float32(gain),
            "low": np.float32(-1),
            "high": np.float32(1),
            "scales": np.array([1, 1, CELL, CELL], np.float32),
        },
    )
    return {"text.onnx": text, "encode.onnx": encode, "denoise.onnx": denoise, "decode.onnx": decode}


def _graph(
    nodes: Sequence[tuple[str, list[str], str, dict[str, Any]]],
    inputs: Mapping[str, Any],
    outputs: Mapping[str, Any],
    constants: Mapping[str, Any],
) -> bytes:
    def infos(values: Mapping[str, Any]) -> list[onnx.ValueInfoProto]:
        kinds = {"int64": TensorProto.INT64, "float": TensorProto.FLOAT}
        typed = {name: value if isinstance(value, tuple) else ("float", value) for name, value in values.items()}
        return [helper.make_tensor_value_info(name, kinds[kind], shape) for name, (kind, shape) in typed.items()]

    made = [helper.make_node(kind, given, [result], **more) for kind, given, result, more in nodes]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(made, "hand", infos(inputs), infos(outputs), held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


def tiny_head(mode: Mode = "blend", **changes: Any) -> SynthHead:
    """Return the head of the tiny bundle.

    Args:
        mode: How it draws.
        **changes: Fields to set differently.
    """
    head = SynthHead(
        mode=mode,
        sampling=SAMPLING,
        guidance=2.0,
        latents=LATENTS,
        prompts=PromptRules(LENGTH, WORDS.index("[PAD]")),
        text_width=WIDTH,
        crop=True,
        crop_fill=0.5,
        defects=DEFECTS,
        support=(),
        licence="none",
    )
    return msgspec.structs.replace(head, **changes)


def support_sources(
    images: Mapping[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], str]],
) -> tuple[tuple[SynthSupport, ...], dict[str, bytes]]:
    """Return the entries and the files of support images.

    Args:
        images: Defect type → image uint8 [H, W, 3], its mask bool [H, W], and the SHA-256 of the original.
    """
    entries, files = [], {}
    for number, (defect, (image, mask, content)) in enumerate(images.items()):
        names = f"support/{number:03d}.png", f"support/{number:03d}_mask.png"
        for name, pixels in zip(names, (image[..., ::-1], mask.astype(np.uint8) * np.uint8(255)), strict=True):
            files[name] = cv2.imencode(".png", pixels)[1].tobytes()
        entries.append(SynthSupport(CATEGORY, defect, *names, content))
    return tuple(entries), files


def write_tiny_synth(
    path: Path,
    mode: Mode = "blend",
    *,
    share: float = 1.0,
    gain: float = 1.0,
    supports: Mapping[str, tuple[npt.NDArray[np.uint8], npt.NDArray[np.bool_], str]] | None = None,
    without: Sequence[str] = (),
    head: Mapping[str, Any] | None = None,
    **changes: Any,
) -> Manifest:
    """Write a bundle folder that draws, and return its manifest.

    Args:
        path: Folder to make.
        mode: How it draws.
        share: As of `tiny_graphs`.
        gain: As of `tiny_graphs`.
        supports: As of `support_sources`.
        without: Files to leave out.
        head: Fields of the head to set differently.
        **changes: Fields of the manifest to set differently.
    """
    entries, files = support_sources(supports or {})
    graphs = tiny_graphs(mode, share, gain)
    sources: dict[str, Path | bytes] = {
        **graphs,
        **files,
        "vectors.safetensors": safetensors.numpy.save(word_vectors()),
        "tokenizer.json": tiny_tokenizer(),
        "images.json": b'{"training": [], "held_out": []}\n',
    }
    outputs = {"text": "context", "encode": "latents", "denoise": "noise", "decode": "picture"}
    manifest = msgspec.structs.replace(
        tiny_manifest(),
        name="drawer",
        kind="synth",
        method="embedding" if mode == "blend" else "inpainting",
        input=Preprocessing(resize=(SIDE, SIDE)),
        max_batch=MAX_BATCH,
        graphs={name: Graph(f"{name}.onnx", (output,), output, 1, 1) for name, output in outputs.items()},
        bank="vectors.safetensors",
        head=tiny_head(mode, **{"support": entries, **(head or {})}),
        golden=(),
    )
    kept = {name: source for name, source in sources.items() if name not in without}
    return write_bundle(path, msgspec.structs.replace(manifest, **changes), kept)

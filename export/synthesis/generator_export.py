"""Export pipeline of defect generators: networks → graphs → parity gate on drawn images → bundle of kind `synth`."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import safetensors.numpy
from torch import nn

import flawscope
from flawscope.arrays import UInt8Array
from flawscope.bundle import (
    IMAGE_HASHES,
    Graph,
    ImageHashes,
    ImageParity,
    Manifest,
    Precision,
    Provenance,
    external_data,
    write_bundle,
)
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.config import flatten
from flawscope.diffusion.location_words import LOCATION, LOCATIONS
from flawscope.diffusion.prompts import Prompts
from flawscope.errors import ArgumentError, RunError
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.synthesis.generator_graphs import (
    example_inputs,
    release_weights,
    synthesis_graph,
    synthesis_modules,
)
from flawscope.export.synthesis.generator_precision import reduce_generator
from flawscope.export.synthesis.generator_source import (
    GeneratorContent,
    GeneratorExporter,
    GeneratorSource,
    open_source,
    read_content,
)
from flawscope.export.synthesis.image_parity import Drawing, GraphCalls, check_images, draw_checked, torch_call
from flawscope.files import check_replaceable, storage_errors, temporary_folder
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.progress import Progress, no_progress
from flawscope.training.synthesis.learned_text import restore_text
from flawscope.training.synthesis.lora import restore_unet
from flawscope.versions import package_versions

BASE = EMBEDDING = GeneratorExporter(takes_words=True, unet=lambda base, run: base.unet)
INPAINTING = GeneratorExporter(takes_words=False, unet=restore_unet, text=restore_text)

_ORDER = ("text", "encode", "decode", "denoise")
"""Order of export: the UNet comes last, when the other networks have been released, since it needs most memory."""

_LARGE_SIDE_PX, _LARGE_BATCH, _USUAL_BATCH = 512, 2, 16
"""Default largest batch by the longer side. At 512 px, batch 16 and 8 heads attention has 16 · 8 · 4096² = 2³¹ entries,
which the size check refuses."""

_LARGE_BYTES, _IMAGES = 10**9, 2
"""Above so many bytes of UNet weights the gate draws one image instead of two: each step takes minutes on a CPU."""

_VECTORS = "vectors.safetensors"


def export_synthesis(
    path: Path,
    out: Path,
    *,
    base: Path | None = None,
    embeddings: Sequence[tuple[str, Path]] = (),
    max_batch: int | None = None,
    precisions: Sequence[str] = (),
    modelopt_python: Path | None = None,
    command: str = "",
    progress: Progress = no_progress,
    overwrite: bool = False,
) -> Manifest:
    """Export a generator as a bundle folder; nothing is written unless the graphs draw the same images as torch.

    Networks are exported one after the other, each released once its graph is written. The peak for Stable Diffusion 1
    is its weights, one graph with those of the UNet, and the activations of one image.

    Args:
        path: A run of `train embedding`, `inpainting` or `base`, or a folder of Stable Diffusion or LDM text-to-image.
        out: Bundle folder to write.
        base: Where the base of a run is now, or None where it has not moved since the training.
        embeddings: Defect names, DEFECT or CATEGORY/DEFECT, and the files of learned embeddings to add.
        max_batch: Largest batch the graphs take, from 2 on, because guidance runs every image twice. Default: 2 for
            images with a side of 512 pixels or more, else 16.
        precisions: Beside FP32: `fp16`, or none.
        modelopt_python: Interpreter with ModelOpt, for FP16; see `find_python` in
            `flawscope.calibration.quantization.modelopt`.
        command: Command line for the record.
        progress: Told what is being done.
        overwrite: Whether an earlier bundle there may be replaced.

    Returns:
        The manifest as written.

    Raises:
        ArgumentError: If an option does not fit the run, or `out` is taken.
        DataError: If the file of an embedding cannot be read.
        GateError: If torch and the graphs, or FP32 and FP16, draw different images.
        MissingExtra: If a package is not installed.
        RunError: If run or base is broken, they do not belong together, or a tensor would be too large.
        StorageError: If the bundle cannot be written.
    """
    if max_batch is not None and not 2 <= max_batch <= 256:
        raise ArgumentError(f"max_batch: expected 2 to 256, since guidance takes two of it, got {max_batch}.")
    if foreign := [name for name in precisions if name != "fp16"]:
        # bf16 has no gate on what is drawn, and each step of drawing would add to its rounding.
        raise ArgumentError(f"precision: expected fp32 or fp16 for a generator, got {foreign[0]}. Leave it out.")
    # Before any network is opened: without ModelOpt the FP16 export would fail after minutes of work.
    python = find_python(modelopt_python) if precisions else None
    check_replaceable(out, "manifest.json", overwrite=overwrite)
    progress("exporting", 0, len(_ORDER) + 2)
    source, opened, unet = open_source(path, base)
    content = read_content(source, opened, embeddings)
    most = max_batch or (_LARGE_BATCH if max(opened.size) >= _LARGE_SIDE_PX else _USUAL_BATCH)
    modules, examples = synthesis_modules(opened, unet), example_inputs(opened)
    drawing = _drawing(source, content, opened.prompts, modules, most)
    # Now `modules` alone refers to the networks: `_export_graph` pops and so releases them one by one.
    del opened, unet
    with temporary_folder(out.parent) as scratch, storage_errors(out):
        # Torch draws first: afterwards its modules are gone.
        expected = draw_checked(torch_call(modules), drawing)
        progress("exporting", 1, len(_ORDER) + 2)
        graphs = {}
        for number, name in enumerate(_ORDER, 2):
            graphs[name] = _export_graph(name, modules, examples, most, scratch)
            progress("exporting", number, len(_ORDER) + 2)
        parity = [_compare(graphs, scratch, drawing, expected)]
        reduced = {}
        if python is not None:
            reduced["fp16"], fp16_parity = reduce_generator(graphs, scratch, drawing, most, python, progress)
            parity.append(fp16_parity)
        written = _write(out, source, content, graphs, reduced, scratch, most, parity, command, overwrite)
        progress("exporting", len(_ORDER) + 2, len(_ORDER) + 2)
        return written


# ---- Graphs and gate -------------------------------------------------------------------------------------------------


def _drawing(
    source: GeneratorSource,
    content: GeneratorContent,
    prompts: Prompts,
    modules: Mapping[str, nn.Module],
    max_batch: int,
) -> Drawing:
    """Return what the gate draws: the defects in turn, on normal images of the run."""
    count = 1 if _bytes_of(modules["denoise"]) > _LARGE_BYTES else _IMAGES
    images = _normal_images(source, content.size, count)
    head = content.head
    defects = [head.defects[index % len(head.defects)] if head.defects else None for index in range(len(images))]
    # LOCATIONS[1][1] is the centre of the 3 x 3 grid, where the gate's box is.
    texts = ["a photo" if defect is None else defect.texts[0].replace(LOCATION, LOCATIONS[1][1]) for defect in defects]
    vectors = [
        None if defect is None or defect.vectors is None else content.vectors[defect.vectors] for defect in defects
    ]
    return Drawing(
        head=head,
        images=images,
        texts=prompts.tokens(texts, head.text_width, vectors),
        empty=prompts.tokens([""], head.text_width),
        max_batch=max_batch,
    )


def _normal_images(source: GeneratorSource, size: tuple[int, int], count: int) -> UInt8Array:
    """Return images uint8 [N, H, W, 3]: samples of the run, or smooth random colours for a folder without any."""
    if source.run is None:
        # Enlarged from 8 x 8: white noise is no image to an autoencoder, and parity on it would say little.
        colours = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        smooth = [cv2.resize(grid, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) for grid in colours]
        return np.stack(smooth).astype(np.uint8)
    samples = source.run.samples[:count]
    if not samples:
        raise RunError(f"{source.path}: expected sample images in samples/, got none. Train again.")
    return np.stack([prepare(read_image(sample), Preprocessing(resize=size)) for sample in samples])


def _export_graph(
    name: str, modules: dict[str, nn.Module], examples: Mapping[str, Any], max_batch: int, scratch: Path
) -> Graph:
    """Write the graph of a network, and release the network."""
    is_large = _bytes_of(modules[name]) > _LARGE_BYTES // 10
    # One expression on purpose: a local variable for module or graph would keep its weights in memory, the module's
    # beside those of its graph, and the graph's after they have been written.
    graph = write_graph(
        max_batch, name, synthesis_graph(name, modules.pop(name), examples[name], max_batch), scratch, INLINE_LIMIT
    )
    if is_large:
        release_weights()
    return graph


def _bytes_of(module: nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in module.parameters())


def _compare(graphs: Mapping[str, Graph], folder: Path, drawing: Drawing, expected: UInt8Array) -> ImageParity:
    calls = GraphCalls(graphs, folder)
    try:
        return check_images(expected, draw_checked(calls, drawing))
    finally:
        calls.close()


# ---- The bundle ------------------------------------------------------------------------------------------------------


def _write(
    out: Path,
    source: GeneratorSource,
    content: GeneratorContent,
    graphs: Mapping[str, Graph],
    reduced: Mapping[str, Precision],
    scratch: Path,
    max_batch: int,
    parity: Sequence[ImageParity],
    command: str,
    overwrite: bool,
) -> Manifest:
    training = () if source.run is None else source.run.record.training
    files: dict[str, Path | bytes] = {
        **{
            graph.file: scratch / graph.file
            for graphs_of_precision in (graphs, *(precision.graphs for precision in reduced.values()))
            for graph in graphs_of_precision.values()
        },
        # Large weights lie beside their graph, whose entry in the manifest names the .onnx alone.
        **{path.name: path for path in scratch.glob(external_data("*.onnx"))},
        **content.files,
        IMAGE_HASHES: ImageHashes(training, held_out=()).encode(),
    }
    if content.vectors:
        files[_VECTORS] = safetensors.numpy.save(content.vectors)
    manifest = Manifest(
        name=out.name.removesuffix(".flaw"),
        kind="synth",
        method=source.method,
        flawscope=flawscope.__version__,
        input=Preprocessing(content.size, bits=source.run.record.config.preprocessing.bits if source.run else None),
        max_batch=max_batch,
        graphs=dict(graphs),
        bank=_VECTORS if content.vectors else None,
        head=msgspec.structs.replace(content.head, parity=tuple(parity)),
        golden=(),
        provenance=_provenance(source, content, command),
        files={},
        precisions=dict(reduced),
    )
    return write_bundle(out, manifest, files, overwrite=overwrite)


def _provenance(source: GeneratorSource, content: GeneratorContent, command: str) -> Provenance:
    record = None if source.run is None else source.run.record
    return Provenance(
        created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        command=command,
        run=source.identity,
        dataset="" if record is None else record.dataset,
        category="" if record is None else record.category,
        seed=0 if record is None else record.config.seed,
        versions=package_versions(),
        config={} if record is None else flatten(record.config),
        weights=f"base {content.base}; licence: {content.head.licence}",
        images=IMAGE_HASHES,
    )

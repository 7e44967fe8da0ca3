"""Export of defect generators (base model, embeddings, inpainting) as a bundle of kind `synth`."""

from __future__ import annotations

import datetime
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import safetensors.numpy
from torch import nn

import flawscope
from flawscope import methods
from flawscope.arrays import Float32Array, UInt8Array
from flawscope.bundle import (
    IMAGE_HASHES,
    Graph,
    ImageHashes,
    ImageParity,
    Manifest,
    Precision,
    Provenance,
    SynthDefect,
    SynthHead,
    SynthSupport,
    external_data,
    write_bundle,
)
from flawscope.calibration.quantization.modelopt import find_python
from flawscope.config import AdaptationSettings, find_part, flatten
from flawscope.datasets.defects import read_support
from flawscope.diffusion.latent_inpainting import Mode
from flawscope.diffusion.location_words import LOCATION, LOCATIONS, without_location
from flawscope.diffusion.prompts import Prompts
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.export.graph_files import INLINE_LIMIT, write_graph
from flawscope.export.synthesis.generator_graphs import (
    example_inputs,
    release_weights,
    synthesis_graph,
    synthesis_modules,
)
from flawscope.export.synthesis.generator_precision import reduce_generator
from flawscope.export.synthesis.image_parity import Drawing, GraphCalls, check_images, draw_checked, torch_call
from flawscope.files import check_replaceable, storage_errors
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD
from flawscope.runtime.synthesis.embedding_files import read_embedding
from flawscope.training.synthesis.base_model import SynthesisBase, open_base, restore_base
from flawscope.training.synthesis.generator_run import (
    SUPPORT,
    SynthesisRun,
    read_synthesis_run,
)
from flawscope.training.synthesis.generator_trainer import generator_trainer_of
from flawscope.training.synthesis.lora import restore_unet
from flawscope.versions import package_versions

_STEPS: dict[Mode, int] = {"blend": 50, "inpaint": 20}
_GUIDANCE: dict[Mode, float] = {"blend": 10.0, "inpaint": 3.5}
"""Of AnoGen and of MvP-Diff."""

_ORDER = ("text", "encode", "decode", "denoise")  # the largest network comes when the others are gone
_LARGE_SIDE_PX, _LARGE_BATCH, _USUAL_BATCH = 512, 2, 16
_LARGE_BYTES, _IMAGES = 10**9, 2
_VECTORS, _TOKENIZER = "vectors.safetensors", "tokenizer.json"


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
) -> Manifest:
    """Export what draws defects as a bundle folder; nothing is written unless the graphs draw as torch does.

    Networks are turned into graphs one after the other, and given up once they are one. What Stable Diffusion 1 needs
    at most is its weights, a graph with those of the UNet, and the activations of one image.

    Args:
        path: A run of `train embedding`, `inpainting` or `base`, or a folder of Stable Diffusion or LDM text-to-image.
        out: Bundle folder to write; an earlier bundle there is replaced.
        base: Where the base of a run lies, if it is not where it was when the run was trained.
        embeddings: Names of defects, DEFECT or CATEGORY/DEFECT, and the files of their learned words, which are added.
        max_batch: Largest batch the graphs take, from 2 on: guidance takes two places of it for an image. Without, 2
            where images have sides of 512 pixels or more, else 16.
        precisions: Beside FP32: `fp16`, or none.
        modelopt_python: Interpreter with ModelOpt, for FP16; see `find_python` in
            `flawscope.calibration.quantization.modelopt`.
        command: Command line for the record.
        progress: Told what is being done.

    Returns:
        The manifest as written.

    Raises:
        ArgumentError: If an option does not fit the run.
        DataError: If a learned word cannot be read.
        GateError: If torch and the graphs draw different images, or FP16 draws others than FP32.
        MissingExtra: If a package is not installed.
        RunError: If run or base is broken, they do not belong together, or a tensor would be too large.
        StorageError: If the bundle cannot be written.
    """
    if max_batch is not None and not 2 <= max_batch <= 256:
        raise ArgumentError(f"max_batch: expected 2 to 256, since guidance takes two of it, got {max_batch}.")
    if foreign := [name for name in precisions if name != "fp16"]:
        raise ArgumentError(f"precision: expected fp32 or fp16 for what draws defects, got {foreign[0]}. Leave it out.")
    python = find_python(modelopt_python) if precisions else None
    check_replaceable(out, "manifest.json")
    progress("exporting", 0, len(_ORDER) + 2)
    source, opened, unet = _open(path, base)
    drawer = _drawer(source, opened, embeddings)
    most = max_batch or (_LARGE_BATCH if max(opened.size) >= _LARGE_SIDE_PX else _USUAL_BATCH)
    modules, examples = synthesis_modules(opened, unet), example_inputs(opened)
    drawing = _drawing(source, drawer, opened.prompts, modules, most)
    del opened, unet  # only the modules refer to the networks now, and each is released after its export
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".tmp", dir=out.parent))
    try:
        with storage_errors(out):
            expected = draw_checked(torch_call(modules), drawing)
            progress("exporting", 1, len(_ORDER) + 2)
            graphs = {}
            for number, name in enumerate(_ORDER, 2):
                graphs[name] = _written(name, modules, examples, most, scratch)
                progress("exporting", number, len(_ORDER) + 2)
            parity = [_compare(graphs, scratch, drawing, expected)]
            lowered = {}
            if python is not None:
                lowered["fp16"], agreement = reduce_generator(graphs, scratch, drawing, most, python, progress)
                parity.append(agreement)
            written = _write(out, source, drawer, graphs, lowered, scratch, most, parity, command)
            progress("exporting", len(_ORDER) + 2, len(_ORDER) + 2)
            return written
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


# ---- What is exported ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GeneratorExporter:
    """What is a method's own in the export of generators.

    Attributes:
        takes_words: Whether learned words can be added: it draws what texts say.
        unet: `(base, run) -> UNet` that denoises.
    """

    takes_words: bool
    unet: Callable[[SynthesisBase, SynthesisRun], nn.Module]


BASE = EMBEDDING = GeneratorExporter(takes_words=True, unet=lambda base, run: base.unet)
INPAINTING = GeneratorExporter(takes_words=False, unet=restore_unet)


@dataclass(frozen=True)
class _Source:
    """A run, or the folder of a base that somebody else trained.

    Attributes:
        path: Where it lies.
        run: The run, without its weights; None for a folder.
        identity: SHA-256 of the run's record, or over the folder's files.
    """

    path: Path
    run: SynthesisRun | None
    identity: str

    @property
    def method(self) -> str:
        return "base" if self.run is None else self.run.record.kind

    @property
    def exporter(self) -> GeneratorExporter:
        """What the table of methods names."""
        exporter: GeneratorExporter = methods.load(methods.method(self.method).exporter or "")
        return exporter

    @property
    def adaptation(self) -> AdaptationSettings | None:
        """Settings of a run that has learned defects, or None for a base."""
        return None if self.run is None else find_part(self.run.record.config, AdaptationSettings)


@dataclass(frozen=True)
class _Drawer:
    """What draws, without its networks.

    Attributes:
        head: How it draws, without parity.
        size: Height and width of its images.
        vectors: Tensors of learned words by name.
        files: Place in the bundle → what is written there.
        base: Identity of the base.
    """

    head: SynthHead
    size: tuple[int, int]
    vectors: dict[str, Float32Array]
    files: dict[str, Path | bytes]
    base: str


def _open(path: Path, base: Path | None) -> tuple[_Source, SynthesisBase, nn.Module]:
    """Return what is exported, its base, and the UNet that denoises."""
    if not (path / RECORD).is_file():
        _check_no_base(base, path)
        opened = open_base(path)
        return _Source(path, None, opened.identity), opened, opened.unet
    run = read_synthesis_run(path)
    config = run.record.config
    # Of the weights the words alone stay: the source lives as long as the export, networks until they are graphs.
    words = {name: run.tensors[name] for name in ("vectors",) if name in run.tensors}
    source = _Source(path, SynthesisRun(run.path, run.record, run.digest, words), run.digest)
    if source.adaptation is None:
        _check_no_base(base, path)
        opened = restore_base(run)
    else:
        placeholder = generator_trainer_of(config).placeholder(config)
        opened = _open_base_of(run, base or Path(source.adaptation.base or ""), placeholder)
    return source, opened, source.exporter.unet(opened, run)


def _check_no_base(base: Path | None, path: Path) -> None:
    if base is not None:
        raise ArgumentError(f"--base: expected it with a run that has one, got it with the base {path}. Leave it out.")


def _open_base_of(run: SynthesisRun, base: Path, placeholder: str) -> SynthesisBase:
    if not base.is_dir():
        raise RunError(
            f"{run.path}: expected its base in {base}, as when it was trained, got no such folder. Name the place of "
            "the base with --base DIR."
        )
    opened = open_base(base, placeholder)
    if opened.identity != run.record.base:
        raise RunError(
            f"{run.path}: expected the base that it was trained on ({run.record.base[:12]}), got {base} with another "
            f"({opened.identity[:12]}). Name the place of that base with --base DIR."
        )
    return opened


def _drawer(source: _Source, base: SynthesisBase, embeddings: Sequence[tuple[str, Path]]) -> _Drawer:
    if embeddings and not source.exporter.takes_words:
        raise ArgumentError(
            f"--embedding: expected it with a base or a run of train embedding, got it with {source.path}, which draws "
            "its defects without words. Leave it out."
        )
    mode: Mode = "inpaint" if base.is_inpainting else "blend"
    rules, width = base.prompts.rules, base.text.width
    vectors: dict[str, Float32Array] = {}
    learned = _learned_defects(source, rules.placeholder, vectors)
    learned += _added_defects(source, base.prompts, width, embeddings, learned, vectors)
    supports, files = _supports(source)
    adaptation = source.adaptation
    head = SynthHead(
        mode=mode,
        sampling=_sampling(base.sampling, mode),
        guidance=_GUIDANCE[mode],
        latents=base.latents,
        prompts=rules,
        text_width=width,
        crop=adaptation is not None and adaptation.crop_defects,  # a base has seen whole images
        crop_fill=(adaptation or AdaptationSettings()).crop_fill,
        defects=learned,
        support=supports,
        licence=base.licence,
    )
    files[_TOKENIZER] = base.tokenizer
    return _Drawer(head, base.size, vectors, files, base.identity)


def _sampling(sampling: Sampling, mode: Mode) -> Sampling:
    return msgspec.structs.replace(sampling, steps=_STEPS[mode])


def _learned_defects(source: _Source, placeholder: str, vectors: dict[str, Float32Array]) -> tuple[SynthDefect, ...]:
    """Return what a run has learned; its words are put into `vectors`."""
    if source.run is None:
        return ()
    found = []
    for defect in source.run.record.defects:
        texts, name = tuple(dict.fromkeys(map(without_location, defect.texts))), None
        if defect.vectors:
            place = f"{defect.category}/{defect.name}"
            tensor = source.run.tensors.get("vectors", {}).get(place)
            if tensor is None:
                raise RunError(f"{source.path}: expected vectors of {place}, got none. Train again.")
            # What it was trained with are photos of the word; drawing takes the word alone, as AnoGen does.
            texts, name = (placeholder,), f"vectors.{place}"
            vectors[name] = np.ascontiguousarray(tensor.float().numpy())
        found.append(SynthDefect(defect.category, defect.name, texts, name))
    return tuple(found)


def _added_defects(
    source: _Source,
    prompts: Prompts,
    width: int,
    embeddings: Sequence[tuple[str, Path]],
    learned: Sequence[SynthDefect],
    vectors: dict[str, Float32Array],
) -> tuple[SynthDefect, ...]:
    """Return defects of learned words from files; the words are put into `vectors`."""
    found: list[SynthDefect] = []
    for given, file in embeddings:
        word = read_embedding(file)
        first, has_category, second = given.partition("/")
        of_run = "" if source.run is None else source.run.record.category
        category = first if has_category else word.metadata.get("category", of_run)
        name = second if has_category else first
        if not category or not name or "/" in name:
            raise ArgumentError(
                f"--embedding: expected CATEGORY/DEFECT=FILE, since {file} does not say its category, got {given!r}."
            )
        if any((one.category, one.name) == (category, name) for one in (*learned, *found)):
            raise ArgumentError(f"--embedding: expected a defect that is new, got {category}/{name} twice. Rename it.")
        if word.vectors.shape[1] != width:
            raise ArgumentError(
                f"{file}: expected a word of width {width}, as the base has it, got {word.vectors.shape[1]}. Was it "
                "learned on another base?"
            )
        prompts.word(prompts.rules.placeholder)  # a base without the word could not take it
        tensor = f"vectors.{category}/{name}"
        vectors[tensor] = word.vectors
        found.append(SynthDefect(category, name, (prompts.rules.placeholder,), tensor))
    return tuple(found)


def _supports(source: _Source) -> tuple[tuple[SynthSupport, ...], dict[str, Path | bytes]]:
    """Return what a run has learned from, as entries and files."""
    if source.run is None or not source.run.record.defects:
        return (), {}
    try:
        record = read_support(source.path)
    except DataError as err:
        raise RunError(f"{err} Or train again.") from err
    types = {(defect.category, defect.name) for defect in source.run.record.defects}
    entries: list[SynthSupport] = []
    files: dict[str, Path | bytes] = {}
    for one in record.pictures:
        if (one.category, one.defect) not in types:
            continue
        names = f"support/{len(entries):03d}.png", f"support/{len(entries):03d}_mask.png"
        place = source.path / SUPPORT / one.category / one.defect
        stem = Path(one.picture).stem
        copies = place / f"{stem}.png", place.with_name(f"{one.defect}_mask") / f"{stem}_mask.png"
        for name, file in zip(names, copies, strict=True):
            if not file.is_file():
                raise RunError(f"{file}: expected a support image of the run, got none. Train again.")
            files[name] = file
        entries.append(SynthSupport(one.category, one.defect, *names, one.content))
    return tuple(entries), files


# ---- Graphs and gate -------------------------------------------------------------------------------------------------


def _drawing(
    source: _Source, drawer: _Drawer, prompts: Prompts, modules: Mapping[str, nn.Module], max_batch: int
) -> Drawing:
    """Return what the gate draws: defects in turn, on normal images of the run."""
    count = 1 if _bytes_of(modules["denoise"]) > _LARGE_BYTES else _IMAGES
    images = _normal_images(source, drawer.size, count)
    head = drawer.head
    defects = [head.defects[index % len(head.defects)] if head.defects else None for index in range(len(images))]
    texts = ["a photo" if one is None else one.texts[0].replace(LOCATION, LOCATIONS[1][1]) for one in defects]
    words = [None if one is None or one.vectors is None else drawer.vectors[one.vectors] for one in defects]
    return Drawing(
        head=head,
        images=images,
        texts=prompts.tokens(texts, head.text_width, words),
        empty=prompts.tokens([""], head.text_width),
        max_batch=max_batch,
    )


def _normal_images(source: _Source, size: tuple[int, int], count: int) -> UInt8Array:
    """Return images uint8 [N, H, W, 3]: those of the run; smooth colours where there is none."""
    if source.run is None:
        colours = np.random.default_rng(0).integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
        smooth = [cv2.resize(one, (size[1], size[0]), interpolation=cv2.INTER_CUBIC) for one in colours]
        return np.stack(smooth).astype(np.uint8)
    samples = source.run.samples[:count]
    if not samples:
        raise RunError(f"{source.path}: expected sample images in samples/, got none. Train again.")
    return np.stack([prepare(read_image(sample), Preprocessing(resize=size)) for sample in samples])


def _written(
    name: str, modules: dict[str, nn.Module], examples: Mapping[str, Any], max_batch: int, scratch: Path
) -> Graph:
    """Write a graph, and release its torch module."""
    is_large = _bytes_of(modules[name]) > _LARGE_BYTES // 10
    # Without names for module and graph nothing holds on to the one when it is traced, nor to the other when its
    # weights have been written.
    graph = write_graph(
        max_batch, name, synthesis_graph(name, modules.pop(name), examples[name], max_batch), scratch, INLINE_LIMIT
    )
    if is_large:
        release_weights()
    return graph


def _bytes_of(module: nn.Module) -> int:
    return sum(one.numel() * one.element_size() for one in module.parameters())


def _compare(graphs: Mapping[str, Graph], folder: Path, drawing: Drawing, expected: UInt8Array) -> ImageParity:
    calls = GraphCalls(graphs, folder)
    try:
        return check_images(expected, draw_checked(calls, drawing))
    finally:
        calls.close()


# ---- The bundle ------------------------------------------------------------------------------------------------------


def _write(
    out: Path,
    source: _Source,
    drawer: _Drawer,
    graphs: Mapping[str, Graph],
    lowered: Mapping[str, Precision],
    scratch: Path,
    max_batch: int,
    parity: Sequence[ImageParity],
    command: str,
) -> Manifest:
    training = () if source.run is None else source.run.record.training
    files: dict[str, Path | bytes] = {
        **{
            graph.file: scratch / graph.file
            for own in (graphs, *(one.graphs for one in lowered.values()))
            for graph in own.values()
        },
        **{path.name: path for path in scratch.glob(external_data("*.onnx"))},
        **drawer.files,
        IMAGE_HASHES: ImageHashes(training, held_out=()).encode(),
    }
    if drawer.vectors:
        files[_VECTORS] = safetensors.numpy.save(drawer.vectors)
    manifest = Manifest(
        name=out.name.removesuffix(".flaw"),
        kind="synth",
        method=source.method,
        flawscope=flawscope.__version__,
        input=Preprocessing(resize=drawer.size),
        max_batch=max_batch,
        graphs=dict(graphs),
        bank=_VECTORS if drawer.vectors else None,
        head=msgspec.structs.replace(drawer.head, parity=tuple(parity)),
        golden=(),
        provenance=_provenance(source, drawer, command),
        files={},
        precisions=dict(lowered),
    )
    return write_bundle(out, manifest, files)


def _provenance(source: _Source, drawer: _Drawer, command: str) -> Provenance:
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
        weights=f"base {drawer.base}; licence: {drawer.head.licence}",
        images=IMAGE_HASHES,
    )

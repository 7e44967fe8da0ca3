"""Source of a generator bundle: run or diffusers folder, base model, learned defects, and support images."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
from torch import nn

from flawscope import methods
from flawscope.arrays import Float32Array
from flawscope.bundle import SynthDefect, SynthHead, SynthSupport
from flawscope.config import AdaptationSettings, find_part
from flawscope.datasets.defects import read_support
from flawscope.diffusion.latent_inpainting import Mode
from flawscope.diffusion.location_words import without_location
from flawscope.diffusion.prompts import Prompts
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, DataError, RunError
from flawscope.runs import RECORD
from flawscope.runtime.synthesis.embedding_files import read_embedding
from flawscope.training.diffusion.autoencoder_network import refuse_file
from flawscope.training.synthesis.base_model import SynthesisBase, open_base, restore_base
from flawscope.training.synthesis.generator_run import SUPPORT, SynthesisRun, read_synthesis_run
from flawscope.training.synthesis.generator_trainer import generator_trainer_of
from flawscope.training.synthesis.text_encoder import TextEncoder

TOKENIZER = "tokenizer.json"

_STEPS: dict[Mode, int] = {"blend": 50, "inpaint": 20}
_GUIDANCE: dict[Mode, float] = {"blend": 10.0, "inpaint": 3.5}
"""Sampling steps and guidance scale by mode: blend as AnoGen (arXiv:2505.09263), inpaint as MvP-Diff."""


@dataclass(frozen=True)
class GeneratorExporter:
    """How the export of one generator method differs from the others.

    Attributes:
        takes_words: Whether learned embeddings can be added, because it draws what its prompt says.
        unet: `(base, run) -> UNet` that denoises.
        text: `(base, run) -> text encoder`.
    """

    takes_words: bool
    unet: Callable[[SynthesisBase, SynthesisRun], nn.Module]
    text: Callable[[SynthesisBase, SynthesisRun], TextEncoder] = lambda base, run: base.text


@dataclass(frozen=True)
class GeneratorSource:
    """A run, or a diffusers folder with a base model that was trained elsewhere.

    Attributes:
        path: Its folder.
        run: The run, without its weights; None for a folder.
        identity: SHA-256 of the run's record, or over the folder's files.
    """

    path: Path
    run: SynthesisRun | None
    identity: str

    @property
    def method(self) -> str:
        """Method in the table of methods; a folder counts as a base."""
        return "base" if self.run is None else self.run.record.kind

    @property
    def exporter(self) -> GeneratorExporter:
        """The exporter that the table of methods names."""
        # By name: the table's rows lie in generator_export, and an import of it from here would be a cycle.
        exporter: GeneratorExporter = methods.load(methods.method(self.method).exporter or "")
        return exporter

    @property
    def adaptation(self) -> AdaptationSettings | None:
        """Settings of a run that has learned defects, or None for a base."""
        return None if self.run is None else find_part(self.run.record.config, AdaptationSettings)


@dataclass(frozen=True)
class GeneratorContent:
    """What a generator bundle holds beside its graphs.

    Attributes:
        head: Head of the manifest; its parity is filled in after the gate.
        size: Height and width in pixels of the generated images.
        vectors: Tensor name → vectors of a learned embedding, float32 [V, W].
        files: Path in the bundle → the file or bytes to write there.
        base: Identity of the base model.
    """

    head: SynthHead
    size: tuple[int, int]
    vectors: dict[str, Float32Array]
    files: dict[str, Path | bytes]
    base: str


def open_source(path: Path, base: Path | None) -> tuple[GeneratorSource, SynthesisBase, nn.Module]:
    """Open a run, or a diffusers folder, with its base model; return both and the UNet that denoises.

    Args:
        path: The run or folder.
        base: Where the base of a run is now, or None where it has not moved.

    Raises:
        ArgumentError: If `base` is given for something that has no base of its own.
        MissingExtra: If a package is not installed.
        RunError: If run or base is broken, or they do not belong together.
    """
    if not (path / RECORD).is_file():
        _check_no_base(base, path)
        opened = open_base(path)
        return GeneratorSource(path, None, opened.identity), opened, opened.unet
    run = read_synthesis_run(path)
    config = run.record.config
    # Only the embeddings are kept: `source` lives as long as the export, and a UNet that it refers to could not be
    # released after its graph is written.
    embeddings = {name: run.tensors[name] for name in ("vectors",) if name in run.tensors}
    source = GeneratorSource(path, SynthesisRun(run.path, run.record, run.digest, embeddings), run.digest)
    if source.adaptation is None:
        _check_no_base(base, path)
        opened = restore_base(run)
    else:
        placeholder = generator_trainer_of(config).placeholder(config)
        opened = _open_base_of(run, base or Path(source.adaptation.base or ""), placeholder)
    denoiser = source.exporter.unet(opened, run)
    return source, dataclasses.replace(opened, text=source.exporter.text(opened, run)), denoiser


def _check_no_base(base: Path | None, path: Path) -> None:
    if base is not None:
        raise ArgumentError(f"--base: expected it with a run that has one, got it with the base {path}. Leave it out.")


def _open_base_of(run: SynthesisRun, base: Path, placeholder: str) -> SynthesisBase:
    refuse_file(base)
    if not base.is_dir():
        raise RunError(
            f"{run.path}: expected its base in {base}, as when it was trained, got no such folder. Name the folder of "
            "the base with --base DIR."
        )
    opened = open_base(base, placeholder)
    # By content, not by path: LoRA weights or an embedding on another base would still draw, only badly.
    if opened.identity != run.record.base:
        raise RunError(
            f"{run.path}: expected the base that it was trained on ({run.record.base[:12]}), got {base} with another "
            f"({opened.identity[:12]}). Name the folder of that base with --base DIR."
        )
    return opened


def read_content(
    source: GeneratorSource, base: SynthesisBase, embeddings: Sequence[tuple[str, Path]]
) -> GeneratorContent:
    """Return what the bundle holds beside its graphs.

    Args:
        source: The run or folder.
        base: Its base model.
        embeddings: Defect names, DEFECT or CATEGORY/DEFECT, and the files of learned embeddings to add.

    Raises:
        ArgumentError: If an embedding does not fit the base or the method, or its defect is there already.
        DataError: If the file of an embedding cannot be read.
        RunError: If the run lacks embeddings or support images.
    """
    if embeddings and not source.exporter.takes_words:
        raise ArgumentError(
            f"--embedding: expected it with a base or a run of train embedding, got it with {source.path}, which draws "
            "its defects without learned embeddings. Leave it out."
        )
    mode: Mode = "inpaint" if base.is_inpainting else "blend"
    rules, width = base.prompts.rules, base.text.width
    vectors: dict[str, Float32Array] = {}
    learned = _learned_defects(source, vectors)
    learned += _added_defects(source, base.prompts, width, embeddings, learned, vectors)
    support, files = _support_images(source)
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
        support=support,
        licence=base.licence,
        text_noise=_text_noise(source),
    )
    files[TOKENIZER] = base.tokenizer
    return GeneratorContent(head, base.size, vectors, files, base.identity)


def _text_noise(source: GeneratorSource) -> float | msgspec.UnsetType:
    """Return the noise on texts that a run was trained with, unset for none."""
    # By name: of all settings those of inpainting alone have it.
    trained = 0.0 if source.run is None else getattr(source.run.record.config, "text_noise", 0.0)
    return trained or msgspec.UNSET


def _sampling(sampling: Sampling, mode: Mode) -> Sampling:
    return msgspec.structs.replace(sampling, steps=_STEPS[mode])


def _learned_defects(source: GeneratorSource, vectors: dict[str, Float32Array]) -> tuple[SynthDefect, ...]:
    """Return the defects that a run has learned; their embeddings are added to `vectors`."""
    if source.run is None:
        return ()
    defects = []
    for defect in source.run.record.defects:
        # A dict and not a set: the first text is the one that the gate draws with, so the order counts.
        texts, tensor_name = tuple(dict.fromkeys(map(without_location, defect.texts))), None
        if defect.vectors:
            defect_type = f"{defect.category}/{defect.name}"
            tensor = source.run.tensors.get("vectors", {}).get(defect_type)
            if tensor is None:
                raise RunError(f"{source.path}: expected vectors of {defect_type}, got none. Train again.")
            tensor_name = f"vectors.{defect_type}"
            vectors[tensor_name] = np.ascontiguousarray(tensor.float().numpy())
        defects.append(SynthDefect(defect.category, defect.name, texts, tensor_name))
    return tuple(defects)


def _added_defects(
    source: GeneratorSource,
    prompts: Prompts,
    width: int,
    embeddings: Sequence[tuple[str, Path]],
    learned: Sequence[SynthDefect],
    vectors: dict[str, Float32Array],
) -> tuple[SynthDefect, ...]:
    """Return the defects of embedding files; the embeddings are added to `vectors`."""
    added: list[SynthDefect] = []
    for defect_type, file in embeddings:
        embedding = read_embedding(file)
        first, has_category, second = defect_type.partition("/")
        of_run = "" if source.run is None else source.run.record.category
        category = first if has_category else embedding.metadata.get("category", of_run)
        name = second if has_category else first
        if not category or not name or "/" in name:
            raise ArgumentError(
                f"--embedding: expected CATEGORY/DEFECT=FILE, since {file} does not say its category, got "
                f"{defect_type!r}."
            )
        if any((defect.category, defect.name) == (category, name) for defect in (*learned, *added)):
            raise ArgumentError(f"--embedding: expected a defect that is new, got {category}/{name} twice. Rename it.")
        if embedding.vectors.shape[1] != width:
            raise ArgumentError(
                f"{file}: expected an embedding of width {width}, as the base has it, got "
                f"{embedding.vectors.shape[1]}. Was it learned on another base?"
            )
        prompts.word(prompts.rules.placeholder)  # raises where the tokenizer splits the placeholder into several tokens
        tensor_name = f"vectors.{category}/{name}"
        vectors[tensor_name] = embedding.vectors
        added.append(SynthDefect(category, name, (prompts.rules.placeholder,), tensor_name))
    return tuple(added)


def _support_images(source: GeneratorSource) -> tuple[tuple[SynthSupport, ...], dict[str, Path | bytes]]:
    """Return the support images of a run: entries of the head, and the files to write."""
    if source.run is None or not source.run.record.defects:
        return (), {}
    try:
        record = read_support(source.path)
    except DataError as err:
        raise RunError(f"{err} Or train again.") from err
    types = {(defect.category, defect.name) for defect in source.run.record.defects}
    entries: list[SynthSupport] = []
    files: dict[str, Path | bytes] = {}
    for image in record.pictures:
        # The record is that of the whole support set; the run may have learned some of its defect types alone.
        if (image.category, image.defect) not in types:
            continue
        names = f"support/{len(entries):03d}.png", f"support/{len(entries):03d}_mask.png"
        folder = source.path / SUPPORT / image.category / image.defect
        stem = Path(image.picture).stem
        copies = folder / f"{stem}.png", folder.with_name(f"{image.defect}_mask") / f"{stem}_mask.png"
        for name, file in zip(names, copies, strict=True):
            if not file.is_file():
                raise RunError(f"{file}: expected a support image of the run, got none. Train again.")
            files[name] = file
        entries.append(SynthSupport(image.category, image.defect, *names, image.content))
    return tuple(entries), files

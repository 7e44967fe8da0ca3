"""Run of a generator: base model, learned embeddings, or inpainting network; a folder with `run.json` and weights.

    run.json               the record
    weights.safetensors    unet.*, text.*, autoencoder.* of a base; vectors.CATEGORY/DEFECT; lora.*
    tokenizer.json         of a base
    samples/NNN.png        normal images
    support/               what embeddings and inpainting networks learned from, as in the support set
    support.json           the record of the support set
    metrics.jsonl          of the training, and `previews`; in folders of their own where there were several trainings

Nothing in it is pickled.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from flawscope.errors import RunError
from flawscope.files import atomic_folder
from flawscope.imaging.tiles import ImageSource, read_source
from flawscope.runs import (
    RECORD,
    SAMPLES,
    WEIGHTS,
    LearnedDefect,
    SynthesisRecord,
    encode_record,
    read_synthesis_record,
)
from flawscope.training.detectors.detector_run import encode_sample
from flawscope.training.loop.loop import METRICS, PREVIEWS

TOKENIZER = "tokenizer.json"
SUPPORT = "support"
"""Folder of a run with the images and masks of its support set; its record lies beside it as in the support set."""


@dataclass(frozen=True)
class GeneratorFitResult:
    """What a training of `train base`, `train embedding` or `train inpainting` gave.

    Attributes:
        networks: Group (`unet`, `text`, `autoencoder`; `vectors`; `lora`) -> name -> tensor.
        facts: Figures for the record.
        settings: Of networks that have to be built before the weights fit.
        defects: What can be drawn.
        tokenizer: Content of `tokenizer.json`; empty where there is none of the run's own.
    """

    networks: dict[str, dict[str, Tensor]]
    facts: dict[str, int | float | str]
    settings: dict[str, Any] = field(default_factory=dict)
    defects: tuple[LearnedDefect, ...] = ()
    tokenizer: bytes = b""


@dataclass(frozen=True)
class SynthesisRun:
    """A run that was read back.

    Attributes:
        path: Its folder.
        record: What `run.json` says.
        digest: SHA-256 of `run.json`.
        tensors: Group -> name -> tensor; see `GeneratorFitResult.networks`.
    """

    path: Path
    record: SynthesisRecord
    digest: str
    tensors: dict[str, dict[str, Tensor]]

    @property
    def samples(self) -> tuple[Path, ...]:
        """The normal images in it."""
        return tuple(sorted((self.path / SAMPLES).glob("*.png")))


def write_synthesis_run(
    path: Path,
    record: SynthesisRecord,
    fitted: GeneratorFitResult,
    samples: Sequence[ImageSource],
    notes: Path | None = None,
    support: Mapping[str, Path] | None = None,
) -> None:
    """Write a run whole, or not at all.

    Args:
        path: The folder; an earlier run there is replaced.
        record: What `run.json` will say.
        fitted: Weights and tokenizer.
        samples: Normal images that come along.
        notes: Folder of the training; its metrics and previews come along, those of its sub-folders too.
        support: Place in the run -> file that is copied there.

    Raises:
        ArgumentError: If the folder holds something else.
        StorageError: If the system refuses to write.
    """
    tensors = {
        f"{group}.{name}": value.detach().cpu().contiguous()
        for group, state in fitted.networks.items()
        for name, value in state.items()
    }
    with atomic_folder(path, replace_if=RECORD) as folder:
        try:
            safetensors.torch.save_file(tensors, folder / WEIGHTS)
        except SafetensorError as err:  # its writer reports a full disk in its own type
            raise OSError(str(err)) from err
        if fitted.tokenizer:
            (folder / TOKENIZER).write_bytes(fitted.tokenizer)
        (folder / SAMPLES).mkdir()
        for index, sample in enumerate(samples):
            (folder / SAMPLES / f"{index:03d}.png").write_bytes(encode_sample(read_source(sample)))
        for place, source in (support or {}).items():
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, folder / place)
        if notes is not None:
            for metrics in sorted(notes.rglob(METRICS)):
                part = folder / metrics.parent.relative_to(notes)
                part.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(metrics, part / METRICS)
                shutil.copytree(metrics.parent / PREVIEWS, part / PREVIEWS, dirs_exist_ok=True)
        (folder / RECORD).write_bytes(encode_record(record))


def read_synthesis_run(path: Path) -> SynthesisRun:
    """Read a run back.

    Raises:
        RunError: If it is missing, of another kind, broken, or written by a newer version.
    """
    record, data = read_synthesis_record(path)
    try:
        stored = safetensors.torch.load_file(path / WEIGHTS)
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path / WEIGHTS}: expected the weights of the run, got {err}. Train again.") from err
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RunError(f"{path}: {name}: expected finite numbers, got NaN or infinity. Train again.")
        group, _, rest = name.partition(".")
        tensors.setdefault(group, {})[rest] = value
    return SynthesisRun(path, record, hashlib.sha256(data).hexdigest(), tensors)

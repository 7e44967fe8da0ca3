"""Run of a generator (base model, learned embeddings, or inpainting network): a folder with `run.json` and weights.

    run.json               the record
    weights.safetensors    unet.*, text.*, autoencoder.* of a base; vectors.CATEGORY/DEFECT; lora.*
    tokenizer.json         of a base
    samples/NNN.png        normal images
    support/               what embeddings and inpainting networks learned from, as in the support set
    support.json           the record of the support set
    metrics.jsonl          of the training, and `previews`; in a folder for each defect type of embeddings

No file is a pickle.
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
from flawscope.open_files import regular_folder, regular_path, walk_folder
from flawscope.runs import (
    RECORD,
    RUN_ENTRIES,
    SAMPLES,
    WEIGHTS,
    LearnedDefect,
    SynthesisRecord,
    encode_record,
    read_synthesis_record,
)
from flawscope.training.detectors.detector_run import encode_sample, sample_files
from flawscope.training.loop.loop import METRICS, PREVIEWS

TOKENIZER = "tokenizer.json"
SUPPORT = "support"
"""Folder of a run with the images and masks of its support set; its record lies beside it as in the support set."""


@dataclass(frozen=True)
class GeneratorFitResult:
    """Result of a training of `train base`, `train embedding` or `train inpainting`.

    Attributes:
        networks: Group (`unet`, `text`, `autoencoder`; `vectors`; `lora`) -> name -> tensor.
        facts: Figures for the record.
        settings: Settings from which the networks are built before their weights are loaded.
        defects: The defects that it can draw.
        tokenizer: Content of `tokenizer.json`; empty where the run has none of its own.
    """

    networks: dict[str, dict[str, Tensor]]
    facts: dict[str, int | float | str]
    settings: dict[str, Any] = field(default_factory=dict)
    defects: tuple[LearnedDefect, ...] = ()
    tokenizer: bytes = b""


@dataclass(frozen=True)
class SynthesisRun:
    """A run read from its folder.

    Attributes:
        path: Its folder.
        record: Content of `run.json`.
        digest: SHA-256 of `run.json`.
        tensors: Group -> name -> tensor; see `GeneratorFitResult.networks`.
    """

    path: Path
    record: SynthesisRecord
    digest: str
    tensors: dict[str, dict[str, Tensor]]

    @property
    def samples(self) -> tuple[Path, ...]:
        """Its normal sample images."""
        return sample_files(self.path)


def write_synthesis_run(
    path: Path,
    record: SynthesisRecord,
    fit_result: GeneratorFitResult,
    samples: Sequence[ImageSource],
    workspace: Path | None = None,
    support: Mapping[str, Path | bytes] | None = None,
    *,
    overwrite: bool = False,
) -> None:
    """Write a run atomically.

    Args:
        path: The folder.
        record: Content of `run.json`.
        fit_result: Weights and tokenizer.
        samples: Normal images to store.
        workspace: Folder of the training; its metrics and previews are copied, those of its sub-folders too.
        support: Path in the run -> file to copy there, or its content.
        overwrite: Whether an earlier run there may be replaced.

    Raises:
        ArgumentError: If the folder is taken.
        StorageError: If the system refuses to write.
    """
    tensors = {
        f"{group}.{name}": value.detach().cpu().contiguous()  # safetensors refuses views with strides
        for group, state in fit_result.networks.items()
        for name, value in state.items()
    }
    with atomic_folder(path, replace_if=RECORD, overwrite=overwrite, own=RUN_ENTRIES, durable=True) as folder:
        try:
            safetensors.torch.save_file(tensors, folder / WEIGHTS)
        except SafetensorError as err:  # also a full disk, which `atomic_folder` reports only for OSError
            raise OSError(str(err)) from err
        if fit_result.tokenizer:
            (folder / TOKENIZER).write_bytes(fit_result.tokenizer)
        (folder / SAMPLES).mkdir()
        bits = record.config.preprocessing.bits
        for index, sample in enumerate(samples):
            (folder / SAMPLES / f"{index:03d}.png").write_bytes(encode_sample(read_source(sample, bits)))
        for target, source in (support or {}).items():
            (folder / target).parent.mkdir(parents=True, exist_ok=True)
            if isinstance(source, bytes):
                (folder / target).write_bytes(source)
            else:
                shutil.copyfile(regular_path(source), folder / target)
        if workspace is not None:
            for metrics in [path for path in walk_folder(workspace) if path.name == METRICS]:
                part = folder / metrics.parent.relative_to(workspace)
                part.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(regular_path(metrics), part / METRICS)
                shutil.copytree(regular_folder(metrics.parent / PREVIEWS), part / PREVIEWS, dirs_exist_ok=True)
        (folder / RECORD).write_bytes(encode_record(record))


def read_synthesis_run(path: Path) -> SynthesisRun:
    """Read a run.

    Raises:
        RunError: If it is missing, of another kind, broken, or written by a newer version.
    """
    record, data = read_synthesis_record(path)
    try:
        stored = safetensors.torch.load_file(regular_path(path / WEIGHTS))
    except (SafetensorError, OSError) as err:
        raise RunError(f"{path / WEIGHTS}: expected the weights of the run, got {err}. Train again.") from err
    tensors: dict[str, dict[str, Tensor]] = {}
    for name, value in stored.items():
        if value.is_floating_point() and not bool(value.isfinite().all()):
            raise RunError(f"{path}: {name}: expected finite numbers, got NaN or infinity. Train again.")
        # At the first dot alone: names of tensors have dots of their own.
        group, _, rest = name.partition(".")
        tensors.setdefault(group, {})[rest] = value
    return SynthesisRun(path, record, hashlib.sha256(data).hexdigest(), tensors)

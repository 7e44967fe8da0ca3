"""The training pipeline of what draws defects, top to bottom: dataset, base and support set → training → run folder."""

from __future__ import annotations

import datetime
import hashlib
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec

import flawscope
from flawscope.config import AdaptedConfig, BaseConfig, EmbeddingConfig, InpaintingConfig, MethodConfig
from flawscope.datasets import Dataset, fingerprint, hash_contents
from flawscope.datasets.defects import SUPPORT_RECORD
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, sha256_file
from flawscope.imaging.tiles import Picture
from flawscope.progress import Progress, no_progress
from flawscope.runs import RECORD, Kind, SynthesisConfig, SynthesisRecord, read_autoencoder_record
from flawscope.training.loop.image_batches import pictures_of
from flawscope.training.loop.workspace import unfinished
from flawscope.training.synthesis.base_model import SynthesisBase, open_base
from flawscope.training.synthesis.base_training import autoencoder_identity, train_base
from flawscope.training.synthesis.diffusers_folder import licence_of
from flawscope.training.synthesis.embedding import train_embedding
from flawscope.training.synthesis.generator_run import (
    SUPPORT,
    SynthesisFitted,
    write_synthesis_run,
)
from flawscope.training.synthesis.inpainting import train_inpainting
from flawscope.training.synthesis.latent_cache import check_base
from flawscope.training.synthesis.support_examples import (
    Described,
    SupportExamples,
    describe,
    read_support_examples,
)
from flawscope.versions import package_versions

_SAMPLES = 8
"""Good pictures stored in the run: what is drawn on when a bundle is checked."""


@dataclass(frozen=True)
class _Given:
    """What an adaptation starts from."""

    base: SynthesisBase
    support: SupportExamples
    described: tuple[Described, ...] = ()

    @property
    def descriptions(self) -> str:
        """The hash of boxes and sentences; empty where there are none."""
        if not self.described:
            return ""
        digest = hashlib.sha256()
        for one in self.described:
            digest.update(msgspec.json.encode((one.texts, one.box.shape)))
            digest.update(one.box.tobytes())
        return f"sha256:{digest.hexdigest()}"

    @property
    def identity(self) -> str:
        record = sha256_file(self.support.path / SUPPORT_RECORD)
        return f"base sha256:{self.base.identity}; support sha256:{record}"

    @property
    def files(self) -> dict[str, Path]:
        """Place in the run -> file that is copied there."""
        found = {SUPPORT_RECORD: self.support.path / SUPPORT_RECORD}
        for example in self.support.examples:
            place = f"{SUPPORT}/{example.category}/{example.defect}"
            found[f"{place}/{example.name}.png"] = example.image_file
            found[f"{place}_mask/{example.name}_mask.png"] = example.mask_file
        return found


def train_synthesis(
    config: MethodConfig,
    dataset: Dataset,
    out: Path,
    *,
    resume: bool = False,
    command: str = "",
    progress: Progress = no_progress,
) -> SynthesisRecord:
    """Train what draws defects, and write the run.

    Args:
        config: Settings of `train base`, `train embedding` or `train inpainting`.
        dataset: A base learns its good training pictures. The others learn the pictures of a support set, which has to
            be of this dataset.
        out: Run folder to write; an earlier run there is replaced.
        resume: Go on with a training that was interrupted.
        command: Command line for the record.
        progress: Told what is being done.

    Raises:
        ArgumentError: If settings name no autoencoder, base or support set, or do not fit them.
        DataError: If pictures are missing, broken, too few, or not of the dataset.
        MissingExtra: If a package is not installed.
        RunError: If autoencoder or base cannot be used, memory runs out, the loss is not finite, or a checkpoint does
            not fit.
        StorageError: If the run cannot be written.
    """
    if not isinstance(config, SynthesisConfig):
        raise ArgumentError(f"config: expected settings of what draws defects, got {type(config).__name__}.")
    check_replaceable(out, RECORD)  # before the work, not after
    started = time.perf_counter()
    # Before pictures are hashed: what is missing is the user's to name.
    if isinstance(config, BaseConfig):
        given = None
        weights, licence = f"autoencoder sha256:{autoencoder_identity(config)}", _own_licence(config)
    else:
        given = _given(config)
        weights, licence = given.identity, given.base.licence
    paths = [sample.path for sample in dataset.samples]
    hashes = hash_contents(paths, lambda done, total: progress("hashing pictures", done, total))
    identity = fingerprint(dataset, hashes)
    good: list[Picture] = pictures_of(dataset.train_good, config.tiling)
    if not good:
        raise DataError(f"{dataset.root}: expected good training pictures, got none. See flawscope data inspect.")
    if given is None:
        training = sorted(hashes[sample.path] for sample in dataset.train_good)
    else:
        _check_support(dataset, given.support, frozenset(hashes.values()))
        training = sorted(example.record.content for example in given.support.examples)
    hashed = time.perf_counter()
    descriptions = "" if given is None else given.descriptions
    with unfinished(out, config, identity, weights, resume, descriptions) as notes:
        fitted = _train(config, dataset, given, hashes, notes, resume, progress)
        fitted_at = time.perf_counter()
        record = SynthesisRecord(
            kind=_KINDS[type(config)],
            config=config,
            category=dataset.category,
            layout=dataset.layout,
            dataset=identity,
            training=tuple(training),
            base="" if given is None else given.base.identity,
            licence=licence,
            defects=fitted.defects,
            networks=fitted.settings,
            facts=fitted.facts,
            seconds={"preparation": round(hashed - started, 3), "fitting": round(fitted_at - hashed, 3)},
            versions=package_versions(),
            created=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
            command=command,
            flawscope=flawscope.__version__,
        )
        samples = good[:: max(1, len(good) // _SAMPLES)][:_SAMPLES]
        write_synthesis_run(out, record, fitted, samples, notes, {} if given is None else given.files)
    return record


_KINDS: dict[type, Kind] = {BaseConfig: "base", EmbeddingConfig: "embedding", InpaintingConfig: "inpainting"}


def _given(config: AdaptedConfig) -> _Given:
    """Read base and support set, and refuse what does not fit before anything is learned."""
    adaptation = config.adaptation
    if adaptation.base is None:
        raise ArgumentError(
            "base: expected a run of train base, or a folder of Stable Diffusion or LDM text-to-image, got none. Make "
            "one with flawscope train base, then name it with --set base=RUN."
        )
    if adaptation.support is None:
        raise ArgumentError(
            "support: expected a folder of synth support, got none. Make one with flawscope synth support, then name "
            "it with --set support=FOLDER."
        )
    support = read_support_examples(Path(adaptation.support), adaptation.defects)
    base = open_base(Path(adaptation.base), config.placeholder if isinstance(config, EmbeddingConfig) else "*")
    if not isinstance(config, InpaintingConfig):
        check_base(config, base, inpainting=False)
        return _Given(base, support)
    check_base(config, base, inpainting=True)
    return _Given(base, support, describe(support, None if config.descriptions is None else Path(config.descriptions)))


def _own_licence(config: BaseConfig) -> str:
    """Return what a base is made from, with which its user may do what he likes, and what others have a say in."""
    path = Path(config.autoencoder or "")
    if not (path / RECORD).is_file():
        return f"own, but for the autoencoder: {licence_of(path)}"
    begun = read_autoencoder_record(path)[0].base
    # The folder's name alone: a bundle says nothing of where things lie on the machine that made it.
    return "own" if begun is None else f"own, but for the autoencoder, which began as {Path(begun).name}"


def _check_support(dataset: Dataset, support: SupportExamples, contents: frozenset[str]) -> None:
    """Refuse support pictures of another dataset: they would be counted as pictures that nobody has seen."""
    records = (example.record for example in support.examples)
    strange = [record.source for record in records if record.content not in contents]
    if strange:
        raise DataError(
            f"{support.path}: expected pictures of {dataset.root}, got {len(strange)} that are not in it (the first is "
            f"{strange[0]}). Name the dataset that the support set was made from."
        )


def _train(
    config: SynthesisConfig,
    dataset: Dataset,
    given: _Given | None,
    hashes: dict[Path, str],
    notes: Path,
    resume: bool,
    progress: Progress,
) -> SynthesisFitted:
    if isinstance(config, BaseConfig):
        return train_base(config, dataset.train_good, dataset.category, hashes, notes, resume, progress)
    assert given is not None
    if isinstance(config, EmbeddingConfig):
        return train_embedding(config, given.base, given.support, notes, resume, progress)
    return train_inpainting(config, given.base, given.support, notes, resume, progress)

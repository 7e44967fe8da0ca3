"""The table of methods: what each one is made of, by name alone, so that a lean device imports nothing that it lacks.

A method is one row. A place is `MODULE:ATTRIBUTE` and is imported when it is asked for: the settings without NumPy, the
scorer without torch, the trainer and exporter only where training libraries are installed. Nobody enumerates methods
anywhere else; `tests/project/test_methods.py` demands every face of every row.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from flawscope.errors import ArgumentError

MethodKind = Literal["detector", "ensemble", "autoencoder", "generator"]
"""`detector` scores images; `ensemble` adds up detectors and is combined, not trained; `autoencoder` is a part of other
methods; `generator` draws defects."""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: The tag of its settings and its head, and METHOD on the command line.
        kind: What it is good for; see `MethodKind`.
        line: One line for people.
        docs: Page of the documentation that describes it.
        settings: Struct of its settings, or None for what is not trained.
        head: Struct in the manifest of its bundles, or None for what is not exported by itself.
        trainer: What fits and restores it, a `flawscope.training.trainer.Trainer`.
        exporter: What turns its run into graphs, a `flawscope.export.exporter.Exporter`; None where there is no run.
        scorer: What makes maps and scores of its bundle, a `flawscope.runtime.scorers.base.ScorerKind`. None for what
            draws.
        tag: What a manifest calls it, where bundles of several methods are alike; empty for the name itself.
    """

    name: str
    kind: MethodKind
    line: str
    docs: str
    settings: str | None = None
    head: str | None = None
    trainer: str | None = None
    exporter: str | None = None
    scorer: str | None = None
    tag: str = ""

    @property
    def bundle_tag(self) -> str:
        """What a manifest calls the method."""
        return self.tag or self.name


_ROWS = (
    Method(
        "patchcore",
        "detector",
        "A memory bank of normal patches, scored by the nearest one; for parts in any position.",
        "docs/training.md",
        settings="flawscope.config.detector_settings:PatchcoreConfig",
        head="flawscope.bundle.heads:PatchcoreHead",
        trainer="flawscope.training.detectors.patchcore:TRAINER",
        exporter="flawscope.export.detectors.bank_exporter:PATCHCORE",
        scorer="flawscope.runtime.scorers.patchcore_scorer:PATCHCORE",
    ),
    Method(
        "padim",
        "detector",
        "A Gaussian for every position; for parts that always lie alike.",
        "docs/training.md",
        settings="flawscope.config.detector_settings:PadimConfig",
        head="flawscope.bundle.heads:PadimHead",
        trainer="flawscope.training.detectors.padim:TRAINER",
        exporter="flawscope.export.detectors.bank_exporter:PADIM",
        scorer="flawscope.runtime.scorers.padim_scorer:PADIM",
    ),
    Method(
        "stfpm",
        "detector",
        "A student network that agrees with its teacher on normal images alone.",
        "docs/training.md",
        settings="flawscope.config.detector_settings:StfpmConfig",
        head="flawscope.bundle.heads:StfpmHead",
        trainer="flawscope.training.detectors.stfpm:TRAINER",
        exporter="flawscope.export.detectors.graph_exporter:STFPM",
        scorer="flawscope.runtime.scorers.graph_scorer:GRAPH",
    ),
    Method(
        "ddad",
        "detector",
        "Reconstruction by denoising diffusion in pixels; what cannot be rebuilt is a defect.",
        "docs/training.md",
        settings="flawscope.config.diffusion_settings:DdadConfig",
        head="flawscope.bundle.heads:DdadHead",
        trainer="flawscope.training.detectors.ddad:TRAINER",
        exporter="flawscope.export.detectors.reconstruction_exporter:DDAD",
        scorer="flawscope.runtime.scorers.reconstruction_scorer:RECONSTRUCTION",
    ),
    Method(
        "dsad",
        "detector",
        "The same in the latents of an autoencoder, guided by the image and its sketch; several categories at once.",
        "docs/training.md",
        settings="flawscope.config.diffusion_settings:DsadConfig",
        head="flawscope.bundle.heads:DsadHead",
        trainer="flawscope.training.detectors.dsad:TRAINER",
        exporter="flawscope.export.detectors.reconstruction_exporter:DSAD",
        scorer="flawscope.runtime.scorers.reconstruction_scorer:RECONSTRUCTION",
    ),
    Method(
        "ensemble",
        "ensemble",
        "Several detectors whose maps and scores are added up with fixed weights.",
        "docs/bundle-format.md",
        head="flawscope.bundle.ensemble_head:EnsembleHead",
        scorer="flawscope.runtime.scorers.ensemble_scorer:ENSEMBLE",
    ),
    Method(
        "autoencoder",
        "autoencoder",
        "The autoencoder of latent diffusion, which dsad and base work in.",
        "docs/training.md",
        settings="flawscope.config.diffusion_settings:AutoencoderConfig",
        trainer="flawscope.training.diffusion.autoencoder:TRAINER",
    ),
    Method(
        "base",
        "generator",
        "A small text-to-image model of normal images, where no Stable Diffusion is at hand.",
        "docs/synthesis.md",
        settings="flawscope.config.generator_settings:BaseConfig",
        trainer="flawscope.training.synthesis.base_training:TRAINER",
        head="flawscope.bundle.synth_head:SynthHead",
        exporter="flawscope.export.synthesis.generator_export:BASE",
        tag="synth",
    ),
    Method(
        "embedding",
        "generator",
        "A learned word for each defect type, from a few images of it.",
        "docs/synthesis.md",
        settings="flawscope.config.generator_settings:EmbeddingConfig",
        trainer="flawscope.training.synthesis.embedding:TRAINER",
        head="flawscope.bundle.synth_head:SynthHead",
        exporter="flawscope.export.synthesis.generator_export:EMBEDDING",
        tag="synth",
    ),
    Method(
        "inpainting",
        "generator",
        "An inpainting network that knows the defects of a part, from a few images of each.",
        "docs/synthesis.md",
        settings="flawscope.config.generator_settings:InpaintingConfig",
        trainer="flawscope.training.synthesis.inpainting:TRAINER",
        head="flawscope.bundle.synth_head:SynthHead",
        exporter="flawscope.export.synthesis.generator_export:INPAINTING",
        tag="synth",
    ),
)
METHODS: dict[str, Method] = {row.name: row for row in _ROWS}


def names(*kinds: MethodKind) -> tuple[str, ...]:
    """Return the names of all methods of these kinds, of all kinds where none is given, in the table's order."""
    return tuple(row.name for row in METHODS.values() if not kinds or row.kind in kinds)


def method(name: str) -> Method:
    """Return the row of a method.

    Raises:
        ArgumentError: If there is none.
    """
    if name not in METHODS:
        raise ArgumentError(f"method: expected one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def head_type(tag: str) -> Any:
    """Return the struct that a manifest's head of this tag is decoded to.

    Raises:
        ValueError: If no method has this tag.
    """
    for row in METHODS.values():
        if row.bundle_tag == tag and row.head is not None:
            return load(row.head)
    known = ", ".join(dict.fromkeys(row.bundle_tag for row in METHODS.values() if row.head is not None))
    raise ValueError(f"Invalid value {tag!r}, expected a head of {known}")


def scorer_of(tag: str) -> Any:
    """Return the scorer of bundles of this tag, a `flawscope.runtime.scorers.base.ScorerKind`.

    Raises:
        ArgumentError: If such bundles do not score.
    """
    for row in METHODS.values():
        if row.bundle_tag == tag and row.scorer is not None:
            return load(row.scorer)
    raise ArgumentError(f"method: expected one that scores images, got {tag!r}.")


def load(place: str) -> Any:
    """Import what a place `MODULE:ATTRIBUTE` names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)

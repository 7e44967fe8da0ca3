"""The table of methods: one row per method, which names its settings, head, trainer, exporter and scorer.

Rows hold strings `MODULE:ATTRIBUTE`, imported on first use, so that an edge device imports only what it has installed:
settings without torch, the scorer without torch, trainer and exporter only beside the training libraries. Methods are
enumerated nowhere else; `tests/project/test_methods.py` checks every entry of every row.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any, Literal

from flawscope.errors import ArgumentError

MethodKind = Literal["detector", "ensemble", "autoencoder", "generator"]
"""`detector` scores images; `ensemble` sums detectors and is combined, not trained; `autoencoder` serves other methods;
`generator` draws defects."""


@dataclass(frozen=True)
class Method:
    """One row.

    Attributes:
        name: Tag of its settings and of its head, and METHOD on the command line.
        kind: What it does; see `MethodKind`.
        line: One-line description.
        docs: Page of the documentation.
        settings: Struct of its settings, or None if it is not trained.
        head: Struct of its section in a manifest, or None if it is not exported by itself.
        trainer: Fits and restores it, a `flawscope.training.trainer.Trainer`; None if it is not trained.
        exporter: Turns its run into graphs, a `flawscope.export.exporter.Exporter`; None if it is not exported.
        scorer: Computes maps and scores of its bundles, a `flawscope.runtime.scorers.scorer.ScorerKind`; None if it
            does not score.
        tag: Its tag in a manifest, where several methods share one kind of bundle; empty for the name itself.
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
        """Tag of the method in a manifest."""
        return self.tag or self.name


# The order is that of `--help` and of error messages.
_ROWS = (
    Method(
        "patchcore",
        "detector",
        "Nearest-neighbour distance to a memory bank of normal patches; for parts in any position.",
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
        "Mahalanobis distance to one Gaussian per patch position; for aligned parts.",
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
        "Student-teacher feature matching; the student agrees with its teacher on normal images only.",
        "docs/training.md",
        settings="flawscope.config.detector_settings:StfpmConfig",
        head="flawscope.bundle.heads:StfpmHead",
        trainer="flawscope.training.detectors.stfpm:TRAINER",
        exporter="flawscope.export.detectors.graph_exporter:STFPM",
        scorer="flawscope.runtime.scorers.graph_scorer:GRAPH",
    ),
    Method(
        "segmenter",
        "detector",
        "A segmenter on a frozen backbone that learns from labelled defects: real, drawn or procedural ones.",
        "docs/training.md",
        settings="flawscope.config.supervised_settings:SegmenterConfig",
        head="flawscope.bundle.heads:SegmenterHead",
        trainer="flawscope.training.detectors.segmenter:TRAINER",
        exporter="flawscope.export.detectors.graph_exporter:SEGMENTER",
        scorer="flawscope.runtime.scorers.graph_scorer:GRAPH",
    ),
    Method(
        "draem",
        "detector",
        "Rebuilds an image without its defects and compares the two; learns from drawn, pasted and real defects.",
        "docs/training.md",
        settings="flawscope.config.draem_settings:DraemConfig",
        head="flawscope.bundle.supervised_heads:DraemHead",
        trainer="flawscope.training.detectors.draem:TRAINER",
        exporter="flawscope.export.detectors.graph_exporter:DRAEM",
        scorer="flawscope.runtime.scorers.graph_scorer:GRAPH",
    ),
    Method(
        "destseg",
        "detector",
        "A student denoises a frozen teacher's features, a head segments; learns from drawn, pasted and real defects.",
        "docs/training.md",
        settings="flawscope.config.draem_settings:DestsegConfig",
        head="flawscope.bundle.supervised_heads:DestsegHead",
        trainer="flawscope.training.detectors.destseg:TRAINER",
        exporter="flawscope.export.detectors.graph_exporter:DESTSEG",
        scorer="flawscope.runtime.scorers.graph_scorer:GRAPH",
    ),
    Method(
        "ddad",
        "detector",
        "Reconstruction by denoising diffusion in pixels; what is not reconstructed is anomalous.",
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
        "Reconstruction by latent diffusion, guided by the image and its sketch; several categories at once.",
        "docs/training.md",
        settings="flawscope.config.diffusion_settings:DsadConfig",
        head="flawscope.bundle.heads:DsadHead",
        trainer="flawscope.training.detectors.dsad:TRAINER",
        exporter="flawscope.export.detectors.reconstruction_exporter:DSAD",
        scorer="flawscope.runtime.scorers.reconstruction_scorer:RECONSTRUCTION",
    ),
    Method(
        "lafite",
        "detector",
        "Features edited towards a bank of normal ones, then denoised by diffusion; what changes is anomalous.",
        "docs/training.md",
        settings="flawscope.config.lafite_settings:LafiteConfig",
        head="flawscope.bundle.lafite_head:LafiteHead",
        trainer="flawscope.training.detectors.lafite:TRAINER",
        exporter="flawscope.export.detectors.lafite_exporter:LAFITE",
        scorer="flawscope.runtime.scorers.lafite_scorer:LAFITE",
    ),
    Method(
        # Neither settings nor trainer: `flawscope bundle combine` makes it of finished bundles.
        "ensemble",
        "ensemble",
        "Weighted sum of the maps and scores of several detectors.",
        "docs/bundle-format.md",
        head="flawscope.bundle.ensemble_head:EnsembleHead",
        scorer="flawscope.runtime.scorers.ensemble_scorer:ENSEMBLE",
    ),
    Method(
        # Neither head nor exporter: its graphs are part of the bundles of the methods that use it.
        "autoencoder",
        "autoencoder",
        "The autoencoder of latent diffusion, for dsad and base.",
        "docs/training.md",
        settings="flawscope.config.diffusion_settings:AutoencoderConfig",
        trainer="flawscope.training.diffusion.autoencoder:TRAINER",
    ),
    Method(
        "base",
        "generator",
        "A small text-to-image base model of normal images, where no Stable Diffusion is at hand.",
        "docs/synthesis.md",
        settings="flawscope.config.generator_settings:BaseConfig",
        trainer="flawscope.training.synthesis.base_training:TRAINER",
        head="flawscope.bundle.synth_head:SynthHead",
        exporter="flawscope.export.synthesis.generator_export:BASE",
        # All generators export one kind of bundle, which their runtime draws with.
        tag="synth",
    ),
    Method(
        "embedding",
        "generator",
        "A learned embedding for each defect type, from a few images of it.",
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
        "An inpainting model of the defects of a part, from a few images of each type.",
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
    """Return the names of the methods of these kinds, or of all methods, in the order of the table."""
    return tuple(row.name for row in METHODS.values() if not kinds or row.kind in kinds)


def method(name: str) -> Method:
    """Return the row of a method.

    Raises:
        ArgumentError: If there is no such method.
    """
    if name not in METHODS:
        raise ArgumentError(f"method: expected one of {', '.join(METHODS)}, got {name!r}.")
    return METHODS[name]


def head_type(tag: str) -> Any:
    """Return the struct of heads with this tag.

    Raises:
        ValueError: If no method has this tag.
    """
    # The table and not a union of structs: a method that is registered later is known here too.
    for row in METHODS.values():
        if row.bundle_tag == tag and row.head is not None:
            return load(row.head)
    tags = ", ".join(dict.fromkeys(row.bundle_tag for row in METHODS.values() if row.head is not None))
    # A ValueError: msgspec adds the place in the JSON to it, and to no other type.
    raise ValueError(f"Invalid value {tag!r}, expected a head of {tags}")


def scorer_of(tag: str) -> Any:
    """Return the scorer of bundles with this tag, a `flawscope.runtime.scorers.scorer.ScorerKind`.

    Raises:
        ArgumentError: If bundles with this tag do not score.
    """
    for row in METHODS.values():
        if row.bundle_tag == tag and row.scorer is not None:
            return load(row.scorer)
    raise ArgumentError(f"method: expected one that scores images, got {tag!r}.")


def load(place: str) -> Any:
    """Import and return the object that `MODULE:ATTRIBUTE` names."""
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)

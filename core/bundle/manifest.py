"""The manifest of a bundle: all structs of `manifest.json`, and its canonical bytes.

Unknown fields are refused and numbers must be finite. The field `digest` is the SHA-256 of the manifest with an empty
digest. As the manifest lists the hashes of all files, the digest identifies the whole bundle and reveals any changed
byte.
"""

from __future__ import annotations

import hashlib
import math
from typing import Literal

import msgspec

from flawscope.bundle.heads import Head, decode_head
from flawscope.bundle.region import Region
from flawscope.bundle.threshold_structs import ThresholdChange, Thresholds
from flawscope.bundle.upkeep import Upkeep
from flawscope.bundle.zones import Zones
from flawscope.diffusion.schedule import Sampling
from flawscope.drawn_check import DrawnCheck
from flawscope.errors import ArgumentError, BundleError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.learned_images import LearnedImages
from flawscope.imaging.tiles import Tiling
from flawscope.learned_defects import LearnedDefects
from flawscope.ranges import BatchSize, Count, Elements, NotNegative, PositiveCount, Sha256
from flawscope.text import NOT_JSON, encode_json

# Raised when a field is added or changes its meaning. Newer schemas are refused, and of the older ones all but these:
# what schemas 4 to 7 added has a default that says what bundles of schema 3 did.
SCHEMA = 7
_OLDER = (3, 4, 5, 6)

MAX_MANIFEST_BYTES = 64 << 20
"""Largest manifest: it is read into memory before anything is verified, and none is written that is not read."""

PRECISIONS = ("fp32", "fp16", "bf16", "int8")
"""Precisions of a bundle; every bundle has fp32."""

COMPUTED = ("bf16",)
"""Precisions without graphs of their own: a backend computes those of FP32 in them. One that takes its precision from
the graph would run FP32 under another name, and has to refuse them."""


class _Struct(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Base of the manifest structs: immutable, unknown fields refused."""


class FileEntry(_Struct, frozen=True):
    """One file of the bundle: its SHA-256 in hexadecimal and its size in bytes."""

    sha256: Sha256
    size: Count


class Graph(_Struct, frozen=True):
    """One ONNX graph.

    Attributes:
        file: File name in the bundle.
        outputs: Names of the outputs.
        largest_tensor: Name of the largest tensor at `max_batch`.
        largest_elements: Its number of elements; proven below 2³¹ at export.
        peak_bytes: Upper estimate of weights and live tensors at `max_batch`, in bytes.
    """

    file: str
    outputs: tuple[str, ...]
    largest_tensor: str
    largest_elements: Elements
    peak_bytes: Count


def external_data(graph: str) -> str:
    """Return the file name of a graph's external data: weights that do not fit in its own file."""
    return f"{graph}.data"


class Golden(_Struct, frozen=True):
    """An image whose score is known; checked when the bundle is loaded.

    Attributes:
        file: PNG file in the bundle, any size: the whole preprocessing is part of the check.
        score: Its score by ONNX Runtime on the CPU at export.
        map_max: The maximum of its anomaly map.
    """

    file: str
    score: float
    map_max: float


class Parity(_Struct, frozen=True):
    """Agreement of two ways to compute the same scores, measured on real images.

    Attributes:
        reference: Implementation taken as correct, for example `torch`.
        candidate: Implementation compared with it, for example `score.onnx (cpu)`.
        images: Number of images.
        score_max_relative: Largest |candidate - reference| / |reference| of the scores.
        map_max_relative: Largest map difference, relative to the largest reference map value.
        score_spearman: Rank correlation of the scores; null with fewer than three distinct scores.
    """

    reference: str
    candidate: str
    images: Count
    score_max_relative: NotNegative
    map_max_relative: NotNegative
    # Of one or two values a rank correlation means nothing, and of equal ones it is NaN.
    score_spearman: float | None


class RecordedDrift(_Struct, frozen=True):
    """How figures differed from those of the same images with another backend or precision, or on another machine.

    Attributes:
        against: Backend of the other figures, with path and precision in brackets.
        when: UTC time of the other figures.
        changes: Figure -> its difference, these figures minus the others.
        images: Images whose scores were compared one by one; 0 where only the figures were.
        intervals: Figure -> lower and upper end of the 95 % interval of its difference, where scores were compared.
        decisions_changed: Images with another decision; null where they were not compared.
    """

    against: str
    when: str
    changes: dict[str, float]
    images: Count
    intervals: dict[str, tuple[float, float]]
    decisions_changed: Count | None


class Accuracy(_Struct, frozen=True):
    """Figures of one `evaluate` run: what was measured, on which data, by which command, and the drift it showed."""

    when: str
    command: str
    dataset: str
    backend: str
    images: Count
    anomalous: Count
    figures: dict[str, float | None]
    drift: tuple[RecordedDrift, ...] = ()


class KeptNode(_Struct, frozen=True):
    """An operator that stayed in FP32, and why."""

    node: str
    operator: str
    reason: str


class Gate(_Struct, frozen=True):
    """Result of the acceptance gate of a reduced precision: its figures against FP32, measured through the runtime.

    Differences are the precision's figure minus that of FP32.

    Attributes:
        backend: Where it was measured.
        images: Normal images used neither in training nor in calibrating the precision.
        score_max_relative: Largest |difference| / score of FP32 on them.
        map_max_relative: Largest difference of a map value on them, relative to the largest value of FP32.
        threshold: The image threshold that FP32 gets from these images: the largest score.
        false_reject_shift: Share of these images that the precision scores above that threshold.
        labelled: Labelled images; 0 where none were given.
        anomalous: How many of them show a defect.
        image_auroc: Image AUROC of FP32, or null without labels.
        image_auroc_change: Its difference, or null.
        pixel_auroc: Pixel AUROC of FP32, or null without masks.
        pixel_auroc_change: Its difference, or null.
        score_spearman: Rank correlation of the scores, over the labelled images if there are any.
        images_per_second: Inference alone, batch 1.
        images_per_second_fp32: The same of FP32, in alternation.
        map_place_change: How far the map moves at one place, as the mean over these images, relative to the mean of
            their map maxima: the largest of all places. Unset in gates that were measured without it.
    """

    backend: str
    images: int
    score_max_relative: float
    map_max_relative: float
    threshold: float
    false_reject_shift: float
    labelled: int
    anomalous: int
    image_auroc: float | None
    image_auroc_change: float | None
    pixel_auroc: float | None
    pixel_auroc_change: float | None
    score_spearman: float | None
    images_per_second: float
    images_per_second_fp32: float
    map_place_change: float | msgspec.UnsetType = msgspec.UNSET


class Precision(_Struct, frozen=True):
    """The graphs of one precision beside FP32.

    Attributes:
        graphs: As those of the manifest.
        golden: The golden images with the scores of this precision: by ONNX Runtime on the CPU or, where that does not
            compute in it, by the first backend of the gate.
        method: How the graphs were quantized or converted.
        calibration_images: Normal images that value ranges were measured on.
        quantised: Number of convolutions and matrix products in this precision.
        kept: Those that are not; `method` says in which precision they are, FP32 if it says nothing.
        gate: Result of the acceptance gate on the first backend; null only until it has run.
        thresholds: The thresholds in force for this precision, once calibrated.
        gates: Results of the gate on further backends, in their order; unset where there was one.
        golden_on: Backend -> the golden images with its scores, where it rounds otherwise than what `golden` is of;
            unset where there is no such backend.
    """

    graphs: dict[str, Graph]
    golden: tuple[Golden, ...]
    method: str
    calibration_images: Count
    quantised: Count
    kept: tuple[KeptNode, ...]
    gate: Gate | None = None
    thresholds: Thresholds | None = None
    gates: tuple[Gate, ...] | msgspec.UnsetType = msgspec.UNSET
    golden_on: dict[str, tuple[Golden, ...]] | msgspec.UnsetType = msgspec.UNSET

    @property
    def golden_by_backend(self) -> dict[str, tuple[Golden, ...]]:
        """`golden_on`, empty where it is unset."""
        return {} if self.golden_on is msgspec.UNSET else self.golden_on

    @property
    def all_gates(self) -> tuple[Gate, ...]:
        """The results of the gate on all backends that it was measured on."""
        first = () if self.gate is None else (self.gate,)
        return first if self.gates is msgspec.UNSET else (*first, *self.gates)


class SamplingChange(_Struct, frozen=True):
    """Figures of a changed diffusion sampling against the original one, both measured in one run.

    Attributes:
        when: UTC time.
        command: The command that measured it.
        dataset: Fingerprint of the dataset.
        backend: Where it was measured.
        before: The sampling of the original bundle.
        after: The sampling of this one.
        images: Labelled images.
        anomalous: How many of them show a defect.
        image_auroc: Image AUROC before.
        image_auroc_change: Image AUROC after, minus before.
        pixel_auroc: Pixel AUROC before, or null without masks.
        pixel_auroc_change: Pixel AUROC after, minus before, or null.
        milliseconds: Median time per image before, from file to decision.
        milliseconds_after: The same after.
    """

    when: str
    command: str
    dataset: str
    backend: str
    before: Sampling
    after: Sampling
    images: int
    anomalous: int
    image_auroc: float
    image_auroc_change: float
    pixel_auroc: float | None
    pixel_auroc_change: float | None
    milliseconds: float
    milliseconds_after: float


class Evidence(_Struct, frozen=True):
    """Measured proof stored in the bundle; `drawn` is the drawn check of the run, null where there was none."""

    parity: tuple[Parity, ...] = ()
    accuracy: tuple[Accuracy, ...] = ()
    sampling: tuple[SamplingChange, ...] = ()
    drawn: DrawnCheck | None = None


class Provenance(_Struct, frozen=True):
    """Where the bundle comes from.

    Attributes:
        created: UTC time of the export, ISO 8601.
        command: The command that exported it.
        run: SHA-256 of the training run's `run.json`; for an ensemble, of its members' values, one per line.
        dataset: Fingerprint of the training set.
        category: Its category name.
        seed: Seed of the run.
        versions: Package versions of training and export.
        config: The training settings in force, by their flat names.
        weights: SHA-256 of the backbone's weights, and where they came from.
        images: File with the content hashes of training and held-out images, below the bundle.
        conditions: How the backbone's weights are used (mean, deviation, padding), and who said so, one line each.
    """

    created: str
    command: str
    run: str
    dataset: str
    category: str
    seed: int
    versions: dict[str, str]
    # Plain data, not a struct: a bundle must open although settings were renamed since.
    config: dict[str, object]
    weights: str
    images: str
    conditions: tuple[str, ...] = ()


class Manifest(_Struct, frozen=True):
    """Everything a runtime has to know about a bundle; see the structs of its fields."""

    name: str
    kind: Literal["score", "synth"]
    method: str
    flawscope: str
    input: Preprocessing
    max_batch: BatchSize
    graphs: dict[str, Graph]
    bank: str | None
    # Not a union of structs: `decode_head` finds the struct in the table of methods.
    head: Head
    golden: tuple[Golden, ...]
    provenance: Provenance
    files: dict[str, FileEntry]
    tiling: Tiling | None = None
    learned: LearnedImages | None = None
    region: Region | None = None
    upkeep: Upkeep | None = None
    # msgspec copies an empty default for each instance.
    precisions: dict[str, Precision] = {}
    thresholds: Thresholds | None = None
    threshold_changes: tuple[ThresholdChange, ...] = ()
    min_area_px: PositiveCount = 4
    evidence: Evidence = Evidence()
    digest: str = ""
    schema: int = SCHEMA
    # UNSET and not None: manifests without zones keep their bytes, which the digest covers.
    zones: Zones | msgspec.UnsetType = msgspec.UNSET
    # For detectors alone that have learned from labelled defects; unset for the same reason.
    defects: LearnedDefects | msgspec.UnsetType = msgspec.UNSET

    @property
    def learned_defects(self) -> LearnedDefects | None:
        """The labelled defects that the detector has learned from, or None if it learned from normal images alone."""
        return None if self.defects is msgspec.UNSET else self.defects

    @property
    def drawn_zones(self) -> Zones | None:
        """The zones, or None where the bundle has none."""
        return None if self.zones is msgspec.UNSET else self.zones

    @property
    def map_spec(self) -> Preprocessing | None:
        """The geometry of an image's anomaly map; None where the map shows the whole image, with tiles or letterbox."""
        return self.input if self.tiling is None and self.input.mode == "stretch" else None

    def graphs_of(self, precision: str) -> dict[str, Graph]:
        """Return the graphs of a precision.

        Raises:
            ArgumentError: If the bundle lacks it.
        """
        # fp32 is not an entry of `precisions`: its graphs are the manifest's own.
        return self.graphs if precision == "fp32" else self._precision(precision).graphs

    def thresholds_of(self, precision: str) -> Thresholds | None:
        """Return the thresholds in force for a precision; see `graphs_of`."""
        return self.thresholds if precision == "fp32" else self._precision(precision).thresholds

    def with_thresholds(self, precision: str, thresholds: Thresholds) -> Manifest:
        """Return the manifest with other thresholds for a precision; see `graphs_of`."""
        if precision == "fp32":
            return msgspec.structs.replace(self, thresholds=thresholds)
        # Each precision has its own: scores of INT8 are slightly other numbers than those of FP32.
        changed = msgspec.structs.replace(self._precision(precision), thresholds=thresholds)
        return msgspec.structs.replace(self, precisions={**self.precisions, precision: changed})

    def golden_of(self, precision: str, backend: str = "") -> tuple[Golden, ...]:
        """Return the golden images with the scores of a precision on a backend; see `graphs_of`.

        Of a backend that has none of its own, or none that is named, they are those of the precision.
        """
        if precision == "fp32":
            return self.golden
        own = self._precision(precision)
        return own.golden_by_backend.get(backend, own.golden)

    def _precision(self, name: str) -> Precision:
        if not isinstance(name, str) or name not in self.precisions:
            has = ", ".join(("fp32", *sorted(self.precisions)))
            raise ArgumentError(
                f"precision: expected one the bundle has ({has}), got {name!r}. Add it with flawscope export "
                "--precision."
            )
        return self.precisions[name]


class _Versioned(msgspec.Struct):
    """The one field that is read before all others; a newer schema may not decode otherwise."""

    schema: int


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the canonical bytes of a manifest, with its digest set.

    Raises:
        BundleError: If a number is NaN or infinite, a field has a value that could not be read back, or all of it is
            larger than `MAX_MANIFEST_BYTES`.
    """
    fields = msgspec.to_builtins(manifest)
    # Before encoding: msgspec writes NaN and infinity as null, which a nullable field would take for none.
    if not _all_finite(fields):
        raise BundleError("manifest: expected finite numbers, got NaN or infinity. Nothing was written.")
    try:
        # Converted as it will be read: a 1 in a float field would come back as 1.0, other bytes than were hashed.
        # Always of today's schema: a bundle of an older one becomes one of today when it is written.
        blank = msgspec.convert({**fields, "digest": "", "schema": SCHEMA}, Manifest, dec_hook=decode_head)
    except msgspec.ValidationError as err:
        raise BundleError(f"manifest: {err}. Nothing was written.") from err
    digest = hashlib.sha256(_canonical(blank)).hexdigest()
    data = _canonical(msgspec.structs.replace(blank, digest=digest))
    if len(data) > MAX_MANIFEST_BYTES:  # it could not be opened any more
        raise BundleError(
            f"manifest: expected at most {MAX_MANIFEST_BYTES >> 20} MiB, got {len(data) / (1 << 20):.1f}. Nothing was "
            "written."
        )
    return data


def decode_manifest(data: bytes, name: str) -> Manifest:
    """Read a manifest back, refusing anything that is not exactly what `encode_manifest` wrote.

    Raises:
        BundleError: If the bytes are no manifest, of a newer schema, or were changed.
    """
    try:
        # First, so that a newer bundle is called newer and not broken for the fields that we do not know.
        schema = msgspec.json.decode(data, type=_Versioned).schema
        if schema < SCHEMA and schema not in _OLDER:
            raise BundleError(
                f"{name}: expected manifest schema {SCHEMA}, got {schema}. Export the run again with flawscope export."
            )
        if schema > SCHEMA:
            raise BundleError(
                f"{name}: expected manifest schema {SCHEMA}, got {schema}. "
                "It was written by a newer flawscope: update this one."
            )
        manifest = msgspec.json.decode(data, type=Manifest, dec_hook=decode_head)
        # Byte for byte: this covers digest, order of keys and white space, and repeated keys of JSON.
        is_whole = (encode_manifest(manifest) if schema == SCHEMA else _encode_older(data)) == data
    except NOT_JSON as err:
        raise BundleError(f"{name}: the manifest is broken: {err}. Copy or export the bundle again.") from err
    if not is_whole:
        raise BundleError(f"{name}: the manifest was changed after it was written. Copy or export the bundle again.")
    return manifest


def _encode_older(data: bytes) -> bytes:
    """Return the canonical bytes of a manifest of an older schema, from its own fields and without today's structs."""
    fields = msgspec.json.decode(data)
    digest = hashlib.sha256(_canonical({**fields, "digest": ""})).hexdigest()
    return _canonical({**fields, "digest": digest})


def _canonical(manifest: Manifest | dict[str, object]) -> bytes:
    # Sorted keys: the order of dicts is that of their making, and must not change the digest.
    return msgspec.json.format(encode_json(manifest, order="sorted"), indent=1) + b"\n"


def _all_finite(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(_all_finite(item) for item in value.values())
    if isinstance(value, list | tuple):
        return all(_all_finite(item) for item in value)
    return True

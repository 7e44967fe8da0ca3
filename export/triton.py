"""Writes a bundle into a Triton model repository: `REPOSITORY/NAME/` with configuration, graph, labels and a record.

Triton Inference Server runs `score.onnx` in its ONNX Runtime backend and batches the requests of several clients. It
neither decodes images, cuts tiles nor applies thresholds: that is done where the images are, by
`flawscope.runtime.client` with the bundle, or by other clients with the numbers in `flawscope.json`.

Source: Triton's user guide (model repository). There a graph with external data is a folder `VERSION/model.onnx/`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from flawscope.bundle import (
    Bundle,
    FileEntry,
    Golden,
    Manifest,
    Thresholds,
    making,
    open_bundle,
    thresholds_in_force,
)
from flawscope.errors import ArgumentError, BackendError, BundleError, GateError
from flawscope.export.source_kind import is_run
from flawscope.export.triton_config import RECORD, TritonOptions, check_options, checked_name, config_text
from flawscope.files import atomic_folder, check_replaceable, sha256_file, storage_errors, temporary_folder
from flawscope.imaging.images import Preprocessing, prepare, read_image
from flawscope.open_files import RECORD_BYTES, list_folder, read_regular, walk_folder
from flawscope.runtime.backends.ort import import_onnxruntime
from flawscope.runtime.backends.table import GOLDEN_TOLERANCE, precision_problem
from flawscope.runtime.client.served_model import OUTPUTS, ServedModel, served_model, why_not_served
from flawscope.runtime.scorers.scorer import ScorerOptions, open_scorer
from flawscope.text import NOT_JSON, encode_json

LABEL = "anomaly_score"
"""Label of the only element of `score`: it names a number, not a decision, since Triton makes none."""

_RULES = (
    "flawscope.imaging.images.decode_image with the bits of the preprocessing, then flawscope.imaging.images.prepare: "
    "uint8 RGB [H, W, 3]; cast and normalisation are in the graph"
)
_DECISION = (
    "fault if score or anomaly_map is not finite, if there is no answer or if thresholds is null; "
    "reject if score > thresholds.image.value; accept otherwise"
)
_DECISION_BY_BUNDLE = (
    "by flawscope.runtime.client with the bundle alone, for what is not in the graph: see `beside`; fault otherwise"
)


class TritonRecord(msgspec.Struct, frozen=True):
    """The content of `flawscope.json`.

    Attributes:
        name: Name of the model in Triton.
        bundle: Name of the bundle.
        digest: Digest of the bundle, also the parameter `flawscope_digest` of `config.pbtxt`.
        method: Method of the detector.
        precision: Precision of the graph that thresholds and golden scores belong to.
        flawscope: Version that wrote it.
        thresholds: The thresholds, or null where the bundle is not calibrated, or decides by more than them.
        decision: The rule by which a client decides.
        min_area_px: Regions of the map above the pixel threshold that are smaller give no box; in pixels of the map.
        preprocessing: Sizes and version of the preprocessing.
        preprocessing_rules: The functions that do the preprocessing.
        golden: Images below this folder and the scores that the graph must give for them, within `golden_tolerance`.
        golden_tolerance: Largest relative difference.
        golden_least: Differences are relative to at least this number: below it a score is only rounding.
        files: Every other file of the folder: SHA-256 and size.
        graph: Identity of the graph, also the parameter `flawscope_graph` of `config.pbtxt`: a client compares both to
            see whether the server runs the graph that these thresholds are for.
        version: Version of the model, made of it: requests name it, and answers repeat it.
        beside: What decides beside graph and thresholds, and is in the bundle: tiles, region, zones.
        schema: Version of this struct.
    """

    name: str
    bundle: str
    digest: str
    method: str
    precision: str
    flawscope: str
    thresholds: Thresholds | None
    decision: str
    min_area_px: int
    preprocessing: Preprocessing
    preprocessing_rules: str
    golden: tuple[Golden, ...]
    golden_tolerance: float
    golden_least: float
    files: dict[str, FileEntry]
    # With defaults, so that a folder of an earlier version can be replaced.
    graph: str = ""
    version: str = "1"
    beside: tuple[str, ...] = ()
    schema: int = 2


@contextmanager
def bundle_of(source: Path, export: Callable[[Path], object]) -> Iterator[Bundle]:
    """Yield the bundle at `source`; a run is exported to a temporary bundle first.

    Args:
        source: A bundle, folder or packed, or a run.
        export: Called only for a run, with the path of the bundle folder to write.

    Raises:
        BundleError: If the bundle is missing, broken or of another kind.
    """
    if not is_run(source):
        with open_bundle(source) as bundle:
            yield bundle
        return
    with temporary_folder() as folder:
        out = folder / f"{source.resolve().name}.flaw"
        with making():
            export(out)
            bundle = open_bundle(out)
        with bundle:
            yield bundle


def write_triton(
    bundle: Bundle, repository: Path, options: TritonOptions | None = None, *, overwrite: bool = False
) -> TritonRecord:
    """Write a bundle as one model of a Triton model repository, atomically.

    Before the model appears, ONNX Runtime loads the graph from the written files, its inputs and outputs are compared
    with the configuration as strictly as Triton does it, and the golden images must give their scores on the CPU.

    Args:
        bundle: The bundle; without calibration the record has no thresholds.
        repository: The model repository. Other models in it stay.
        options: Name, device and batching.
        overwrite: Whether a model of this name may be replaced; only if its files are exactly as this function wrote
            them.

    Returns:
        The record as written to `flawscope.json`.

    Raises:
        ArgumentError: If an option is out of range, the bundle lacks the precision, or the place of the model is taken
            by something else.
        BundleError: If the bundle is of another kind.
        BackendError: If ONNX Runtime cannot load the graph.
        GateError: If the graph does not match its configuration or does not give its golden scores.
        MissingExtra: If ONNX Runtime is not installed.
        StorageError: If the system refuses to write.
    """
    options = options or TritonOptions()
    manifest = bundle.manifest
    # An overlay that lies beside the bundle counts on the server too.
    in_force = thresholds_in_force(bundle.path, manifest, options.precision)
    name = checked_name(manifest.name if options.name is None else options.name)
    check_options(options, manifest.max_batch)
    check_precision(options.precision)
    _check_kind(bundle, options.precision)
    model = served_model(bundle, "score", options.precision, name)
    # Checked before anything is written below the repository, which a running Triton may be polling.
    folder = repository / name
    with storage_errors(folder):
        _check_repository(repository)
        _check_unchanged(folder)
        check_replaceable(folder, RECORD, overwrite=overwrite)
    golden, beside = manifest.golden_of(options.precision), _beside(manifest)
    with atomic_folder(folder, replace_if=RECORD, overwrite=overwrite) as temporary:
        for target, source in _copies(bundle, options.precision, model.version).items():
            (temporary / target).parent.mkdir(parents=True, exist_ok=True)
            with (temporary / target).open("wb") as file:
                bundle.copy(source, file)
        (temporary / "labels.txt").write_text(f"{LABEL}\n", encoding="utf-8")
        (temporary / "config.pbtxt").write_text(config_text(model, manifest.digest, options), encoding="utf-8")
        session = _load_graph(temporary, model)
        with closing(open_scorer(bundle, ScorerOptions("cpu", "graph", options.precision))) as scorer:
            least = scorer.least_score
        _check_golden(session, temporary, manifest, golden, least)
        # Last, since it lists the hashes of all other files.
        record = TritonRecord(
            name=name,
            bundle=manifest.name,
            digest=manifest.digest,
            method=manifest.method,
            precision=options.precision,
            flawscope=manifest.flawscope,
            # A rule that leaves out tiles or zones must not be able to accept.
            thresholds=None if beside else in_force.thresholds,
            decision=_DECISION_BY_BUNDLE if beside else _DECISION,
            min_area_px=in_force.min_area_px,
            preprocessing=manifest.input,
            preprocessing_rules=_RULES,
            golden=golden,
            golden_tolerance=GOLDEN_TOLERANCE,
            golden_least=least,
            files=_entries(temporary),
            graph=model.identity,
            version=model.version,
            beside=beside,
        )
        data = msgspec.json.format(encode_json(record, order="deterministic"), indent=1)
        (temporary / RECORD).write_bytes(data + b"\n")
    return record


def write_models(
    bundle: Bundle, repository: Path, options: TritonOptions | None = None, *, overwrite: bool = False
) -> list[TritonRecord]:
    """Write a bundle as models of a Triton model repository: one, or of an ensemble one for each member.

    Maps and scores of members are added where the images are. A member's model has the name that its own bundle would
    give it, so members that several ensembles share are served once. Arguments and errors are those of `write_triton`.

    Raises:
        ArgumentError: If an ensemble is given a name, or two members have the same.
    """
    options = options or TritonOptions()
    # By attribute and not by kind, as a head with members is an ensemble's.
    entries = getattr(bundle.manifest.head, "members", ())
    if not entries:
        return [write_triton(bundle, repository, options, overwrite=overwrite)]
    if options.name is not None:
        raise ArgumentError(
            f"--model-name: expected it with one detector, got it with the ensemble {bundle.path}, whose members are "
            "models with names of their own. Leave it out."
        )
    members = [bundle.member(member.name) for member in entries]
    # All of them before the first is written: an ensemble of which a part is served is no use.
    names = [checked_name(member.manifest.name) for member in members]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ArgumentError(
            f"{bundle.path}: expected members that have names of their own as bundles, got {twice} twice. Combine "
            "bundles that were exported under different names."
        )
    for member, name in zip(members, names, strict=True):
        _check_kind(member, options.precision)
        check_replaceable(repository / name, RECORD, overwrite=overwrite)
    return [write_triton(member, repository, options, overwrite=overwrite) for member in members]


def graph_place(version: str) -> str:
    """Return the path of a graph below its model folder: one of several files is in a folder with the file's name."""
    return f"{version}/model.onnx/model.onnx"


def _beside(manifest: Manifest) -> tuple[str, ...]:
    """Return what decides beside the graph and its thresholds."""
    parts = {"tiles": manifest.tiling, "region": manifest.region, "zones": manifest.drawn_zones}
    return tuple(name for name, part in parts.items() if part is not None)


def _copies(bundle: Bundle, precision: str, version: str) -> dict[str, str]:
    """Return path below the model folder -> file of the bundle, for every file that is copied unchanged."""
    graph, *external = bundle.graph_files("score", precision)
    place = graph_place(version)
    return {
        **{f"{Path(place).parent}/{name}": name for name in external},
        place: graph,
        **{golden.file: golden.file for golden in bundle.manifest.golden_of(precision)},
    }


def check_precision(precision: str) -> None:
    """Raise ArgumentError unless Triton's ONNX Runtime computes in a precision, as ours does on the CPU."""
    if problem := precision_problem("cpu", precision):
        raise ArgumentError(
            f"--precision {precision}: expected one that ONNX Runtime computes, in which Triton runs the graph, got "
            f"another: {problem} Take another --precision."
        )


def _check_kind(bundle: Bundle, precision: str) -> None:
    graph = bundle.manifest.graphs_of(precision).get("score")
    if graph is None or graph.outputs != OUTPUTS:
        got = "none" if graph is None else f"one with {', '.join(graph.outputs)}"
        raise BundleError(
            f"{bundle.path}: expected a graph called score with the outputs {', '.join(OUTPUTS)}, got {got}. "
            f"{why_not_served('')}"
        )


def _check_repository(repository: Path) -> None:
    """Refuse a folder that is no model repository: Triton would try to load every folder in it as a model."""
    if not repository.exists():
        return
    problem = "a file" if not repository.is_dir() else ""
    for entry in list_folder(repository) if repository.is_dir() else ():
        if entry.name.startswith("."):
            continue
        if not entry.is_dir() or ((inside := list_folder(entry)) and not _is_model(inside)):
            problem = f"a folder with {entry.name}, which is no model"
            break
    if problem:
        raise ArgumentError(
            f"{repository}: expected a new folder or a Triton model repository, got {problem}. Choose another folder."
        )


def _is_model(entries: list[Path]) -> bool:
    """Return whether these are entries of a model's folder: its configuration, or a version, which is a number."""
    return any(path.name == "config.pbtxt" or (path.name[:1] in "123456789" and path.is_dir()) for path in entries)


def _check_unchanged(folder: Path) -> None:
    """Refuse to replace a model folder with any file changed, added or removed: the change would be lost."""
    if not folder.is_dir() or not list_folder(folder):
        return
    # A record without these fields is another schema, so its folder is nobody's to replace.
    try:
        listed = msgspec.json.decode(read_regular(folder / RECORD, RECORD_BYTES), type=TritonRecord).files
    except (OSError, ArgumentError, *NOT_JSON):
        raise ArgumentError(
            f"{folder}: expected a free name or a model written by flawscope, got a folder without a valid {RECORD}. "
            "Choose another name with --model-name."
        ) from None
    present = _entries(folder)
    changed = sorted(name for name in {*listed, *present} if listed.get(name) != present.get(name))
    if changed:
        raise ArgumentError(
            f"{folder}: expected a model as it was exported, got {changed[0]} changed, added or removed since. "
            "Move the folder away, or choose another name with --model-name."
        )


def _entries(folder: Path) -> dict[str, FileEntry]:
    files = sorted(path for path in walk_folder(folder) if not path.is_dir() and path != folder / RECORD)
    return {path.relative_to(folder).as_posix(): FileEntry(sha256_file(path), path.stat().st_size) for path in files}


def _load_graph(folder: Path, model: ServedModel) -> Any:
    """Return a session of the graph in its final layout, its tensors compared with the configuration."""
    onnxruntime, place = import_onnxruntime(), graph_place(model.version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal: errors are raised as well, and those are reported here
    try:
        # On the CPU also for `gpu`: the machine that exports may have none. Triton's GPU runs the same FP32 graph.
        session = onnxruntime.InferenceSession(folder / place, options, providers=["CPUExecutionProvider"])
    except Exception as err:
        # ONNX Runtime's exceptions share no base class of their own.
        raise BackendError(
            f"triton: ONNX Runtime could not load {place}: {str(err).splitlines()[0]} Export the bundle again."
        ) from err
    height, width = model.size
    expected = {
        "image": ("tensor(uint8)", [height, width, 3]),
        "anomaly_map": ("tensor(float)", [height, width]),
        "score": ("tensor(float)", []),
    }
    tensors = {
        tensor.name: (tensor.type, list(tensor.shape[1:]))
        for tensor in (*session.get_inputs(), *session.get_outputs())
        # With max_batch_size > 0 Triton takes the first dimension as the batch, which must be dynamic in the graph.
        if tensor.shape and not isinstance(tensor.shape[0], int)
    }
    if tensors != expected:
        raise GateError(
            f"triton: expected the tensors {expected} with a dynamic batch in the graph, got {tensors}. "
            "Triton would refuse it; export the bundle again."
        )
    return session


def _check_golden(session: Any, folder: Path, manifest: Manifest, golden: tuple[Golden, ...], least: float) -> None:
    """Raise GateError unless the graph reproduces the golden scores."""
    for entry in golden:
        image = prepare(read_image(folder / entry.file), manifest.input)
        anomaly_map, score = session.run(list(OUTPUTS), {"image": image[None]})
        for name, got, stored in (
            ("score", float(score[0]), entry.score),
            ("map", float(np.max(anomaly_map)), entry.map_max),
        ):
            # Written as `not <=`, so that NaN is refused too.
            if not abs(got - stored) <= GOLDEN_TOLERANCE * max(abs(stored), least):
                raise GateError(
                    f"triton: golden image {entry.file}: expected {name} {stored:.6g} as at export, got {got:.6g}. "
                    "Nothing was written; see flawscope doctor."
                )

"""The identity of a model: what scores come from changes it, what is added to a bundle afterwards does not."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
from fake_bundles import write_fake_bundle

from flawscope.bundle import (
    Accuracy,
    Evidence,
    FileEntry,
    Graph,
    PadimHead,
    Precision,
    Threshold,
    Thresholds,
    make_region,
    model_identity,
    open_bundle,
)
from flawscope.bundle.manifest import decode_manifest, encode_manifest
from flawscope.imaging.tiles import Tiling


@pytest.fixture
def manifest(tmp_path):
    with open_bundle(write_fake_bundle(tmp_path / "part.flaw")) as bundle:
        return bundle.manifest


def _with(manifest, **fields):
    return msgspec.structs.replace(manifest, **fields)


def test_what_is_added_to_a_bundle_afterwards_leaves_the_model(manifest):
    threshold = Threshold(1.0, "manual", 0, None, None, None, None)
    precision = Precision({"score": Graph("int8.onnx", ("anomaly_map", "score"), "x", 1, 1)}, (), "int8", 8, 3, ())
    files = {name: FileEntry("a" * 64, 1) for name in ("int8.onnx", "int8.onnx.data")}
    more = _with(
        manifest,
        files=manifest.files | files,
        precisions={"int8": precision},
        thresholds=Thresholds(threshold, threshold),
        evidence=Evidence(accuracy=(Accuracy("", "", "1" * 64, "cpu", 1, 1, {}),)),
        min_area_px=9,
    )
    more = decode_manifest(encode_manifest(more), "part")
    assert more.digest != manifest.digest
    assert model_identity(more) == model_identity(manifest)


def test_what_scores_come_from_is_the_model(manifest):
    mask = np.zeros((32, 32), np.bool_)
    mask[:16] = True
    others = [
        _with(manifest, files=manifest.files | {"bank.safetensors": FileEntry("a" * 64, 4)}),
        _with(manifest, files=manifest.files | {"score.onnx": FileEntry("a" * 64, 5)}),
        _with(manifest, head=PadimHead((8, 8), 2.0)),
        _with(manifest, region=make_region(mask)),
        _with(manifest, tiling=Tiling((32, 32), 0.25)),
        _with(manifest, input=msgspec.structs.replace(manifest.input, mode="letterbox")),
        _with(manifest, provenance=msgspec.structs.replace(manifest.provenance, run="9" * 64)),
    ]
    assert len({model_identity(other) for other in (manifest, *others)}) == len(others) + 1


def test_a_field_that_a_newer_version_adds_leaves_the_model_where_it_has_its_default(manifest):
    fields = [("added", int, 3), ("more", dict, {})]
    newer = msgspec.defstruct("PadimHead", fields, bases=(PadimHead,), frozen=True)
    same = newer(*(getattr(manifest.head, name) for name in PadimHead.__struct_fields__))
    assert model_identity(_with(manifest, head=same)) == model_identity(manifest)
    assert model_identity(_with(manifest, head=msgspec.structs.replace(same, added=4))) != model_identity(manifest)

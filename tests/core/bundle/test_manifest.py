"""The manifest: what it says comes back, and nothing else is believed."""

from __future__ import annotations

import hashlib
import json

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import (
    tiny_manifest,
    tiny_thresholds,
    write_tiny_bundle,
)

from flawscope.bundle import (
    SCHEMA,
    Accuracy,
    Evidence,
    Parity,
    PatchcoreHead,
    Precision,
    ThresholdChange,
    open_bundle,
)
from flawscope.bundle.manifest import decode_manifest, encode_manifest
from flawscope.errors import BundleError

finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.text(st.characters(codec="utf-8"), max_size=12)
json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | finite | plain,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(plain, inner, max_size=3),
    max_leaves=6,
)


def test_whole_numbers_in_fields_for_floats_come_back():
    manifest = decode_manifest(encode_manifest(tiny_manifest(thresholds=tiny_thresholds(150))), "m")
    assert manifest.thresholds == tiny_thresholds(150.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "program"}, "Invalid enum value 'program'"),
        ({"max_batch": 4.5}, "Expected `int`, got `float`"),
        ({"graphs": None}, "Expected `object`, got `null`"),
    ],
)
def test_a_manifest_that_could_not_be_read_back_is_not_written(tmp_path, change, message):
    with pytest.raises(BundleError, match=f"manifest: {message}.*Nothing was written"):
        write_tiny_bundle(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(plain, json_value, max_size=4), plain, finite, st.integers(0, 2**70), finite)
def test_every_manifest_comes_back_equal(config, text, number, seed, old):
    base = tiny_manifest()
    manifest = msgspec.structs.replace(
        base,
        name=text,
        provenance=msgspec.structs.replace(base.provenance, config=config, command=text, seed=seed),
        thresholds=tiny_thresholds(number),
        threshold_changes=(
            ThresholdChange(text, "image", None, number, text),
            ThresholdChange("", "pixel", old, 1, ""),
        ),
        evidence=Evidence(
            parity=(Parity("torch", text, 3, abs(number), abs(old), None),),
            accuracy=(Accuracy("", text, "", "cpu", 3, 1, {"image_auroc": number, "aupro": None}),),
        ),
    )
    data = encode_manifest(manifest)
    decoded = decode_manifest(data, "m")
    assert msgspec.structs.replace(decoded, digest="") == manifest
    assert encode_manifest(decoded) == data


def test_the_identity_follows_every_field():
    digests = {
        decode_manifest(encode_manifest(tiny_manifest(**change)), "m").digest
        for change in ({}, {"name": "other"}, {"max_batch": 5}, {"min_area_px": 5}, {"thresholds": tiny_thresholds(1)})
    }
    assert len(digests) == 5


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("place", ["thresholds", "evidence", "config"])
def test_numbers_that_are_not_finite_are_refused_before_anything_is_written(tmp_path, value, place):
    base = tiny_manifest()
    change = {
        "thresholds": {"thresholds": tiny_thresholds(value)},
        "evidence": {"evidence": Evidence(accuracy=(Accuracy("", "", "", "cpu", 1, 1, {"aupro": value}),))},
        "config": {"provenance": msgspec.structs.replace(base.provenance, config={"deep": [{"mean": (0.5, value)}]})},
    }[place]
    with pytest.raises(BundleError, match="expected finite numbers, got NaN or infinity"):
        write_tiny_bundle(tmp_path / "b", **change)
    assert list(tmp_path.iterdir()) == []


def edited(change, redigest=True):
    """Return the bytes of a manifest whose JSON was edited by one who knows how the digest is made."""
    fields = json.loads(encode_manifest(tiny_manifest()))
    change(fields)
    if redigest:
        fields["digest"] = ""
        blank = (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()
        fields["digest"] = hashlib.sha256(blank).hexdigest()
    return (json.dumps(fields, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def test_the_forger_of_these_tests_makes_manifests_that_pass():
    manifest = decode_manifest(edited(lambda fields: fields.update(name="forged")), "m")
    assert manifest.name == "forged"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda fields: fields.update(schema=SCHEMA + 1),
            f"schema {SCHEMA}, got {SCHEMA + 1}. It was written by a newer flaw",
        ),
        (lambda fields: fields.update(schema=10**18, head="?", extra=[]), "written by a newer flawscope: update"),
        (lambda fields: fields.update(schema=0), f"expected manifest schema {SCHEMA}, got 0"),
        (lambda fields: fields.update(schema="1"), r"Expected `int`, got `str` - at `\$.schema`"),
        (lambda fields: fields.pop("schema"), "missing required field `schema`"),
        (lambda fields: fields.update(extra=1), "unknown field `extra`"),
        (lambda fields: fields["input"].update(extra=1), r"unknown field `extra` - at `\$.input`"),
        (lambda fields: fields["head"].update(type="other"), "Invalid value 'other'"),
        (lambda fields: fields["provenance"].update(extra=1), r"unknown field `extra` - at `\$.provenance`"),
        (lambda fields: fields.pop("bank"), "missing required field `bank`"),
        (lambda fields: fields.update(max_batch="4"), "Expected `int`, got `str`"),
        (lambda fields: fields.update(kind="program"), "Invalid enum value 'program'"),
        (lambda fields: fields["input"].update(resize=[1, 1]), "resize: expected height and width from 16 to 8192"),
        (lambda fields: fields["input"].update(version=9), "preprocessing version: expected 1 to 2, got 9"),
        (lambda fields: fields["head"].update(sigma=0), "was changed after it was written"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(change, message):
    with pytest.raises(BundleError, match=message):
        decode_manifest(edited(change), "m")


def test_an_edited_value_without_a_new_digest_is_refused():
    data = edited(lambda fields: fields.update(max_batch=64), redigest=False)
    with pytest.raises(BundleError, match="m: the manifest was changed after it was written"):
        decode_manifest(data, "m")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{",
        b"\xff\xfe",
        b'{"schema": NaN}',
        b'{"schema": 1e999}',
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": NaN', 1),
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": Infinity', 1),
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": 1e999', 1),
        b'{"schema": 2, "provenance": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        encode_manifest(tiny_manifest()).replace(b'"sigma": 0.0', b'"sigma": ' + b"[" * 600 + b"]" * 600, 1),
    ],
)
def test_bytes_that_are_no_manifest_are_refused(data):
    with pytest.raises(BundleError, match=r"m: the manifest is broken: .*Copy or export the bundle again"):
        decode_manifest(data, "m")


def test_the_same_content_in_other_bytes_is_refused():
    data = json.dumps(json.loads(encode_manifest(tiny_manifest()))).encode()
    with pytest.raises(BundleError, match="was changed after it was written"):
        decode_manifest(data, "m")


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("head", "sigma"), 1e6),
        (("head", "sigma"), -1.0),
        (("head", "grid"), [0, 4]),
        (("head", "grid"), [1 << 40, 4]),
        (("head", "neighbors"), 0),
        (("head", "neighbors"), 1 << 62),
        (("max_batch",), 0),
        (("max_batch",), 1 << 31),
        (("min_area_px",), 0),
        (("files", "score.onnx", "size"), -1),
        (("files", "score.onnx", "sha256"), "no hash"),
        (("graphs", "score", "largest_elements"), 1 << 31),
        (("graphs", "score", "peak_bytes"), -1),
    ],
)
def test_a_number_out_of_range_is_refused(folder, path, value):
    fields = json.loads((folder / "manifest.json").read_bytes())
    place = fields
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    with pytest.raises(BundleError, match=r"the manifest is broken: (Expected|Invalid)"):
        decode_manifest(json.dumps(fields).encode(), "m")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "padim"}, "expected a head of the method padim, got patchcore"),
        ({"kind": "synth"}, "expected a head of the kind synth, got patchcore"),
        ({"bank": "other.safetensors"}, "names other.safetensors but does not list it"),
        ({"head": PatchcoreHead((17, 4), 1, "none", 0.0)}, r"patch grid of at most the input's \[16, 16\] pixels"),
    ],
)
def test_parts_that_do_not_fit_each_other_are_refused(tmp_path, changes, message):
    write_tiny_bundle(tmp_path / "b", **changes)
    with pytest.raises(BundleError, match=message):
        open_bundle(tmp_path / "b")


@pytest.mark.parametrize("schema", [SCHEMA - 1, SCHEMA - 2, SCHEMA - 3, SCHEMA - 4])
def test_a_bundle_of_a_schema_before_opens_and_is_written_as_today(folder, schema):
    fields = json.loads((folder / "manifest.json").read_bytes())
    older = older_manifest({**fields, "schema": schema})
    (folder / "manifest.json").write_bytes(older)
    with open_bundle(folder) as bundle:
        assert bundle.manifest.schema == schema
        assert bundle.manifest.digest == json.loads(older)["digest"]
        rewritten = decode_manifest(encode_manifest(bundle.manifest), "m")
    assert (rewritten.schema, rewritten.head) == (SCHEMA, bundle.manifest.head)
    (folder / "manifest.json").write_bytes(older.replace(b'"name": "tiny"', b'"name": "tinY"'))
    with pytest.raises(BundleError, match="was changed after it was written"):
        open_bundle(folder)


def older_manifest(fields):
    def text(digest):
        encoded = msgspec.json.encode({**fields, "digest": digest}, order="sorted")
        return msgspec.json.format(encoded, indent=1) + b"\n"

    return text(hashlib.sha256(text("")).hexdigest())


def test_golden_scores_of_a_backend_are_its_own_and_others_keep_their_bytes():
    base = tiny_manifest()
    plain = Precision(dict(base.graphs), base.golden, "by hand", 0, 0, ())
    assert b"golden_on" not in encode_manifest(msgspec.structs.replace(base, precisions={"bf16": plain}))
    own = (msgspec.structs.replace(base.golden[0], score=7.0),)
    manifest = msgspec.structs.replace(
        base, precisions={"bf16": msgspec.structs.replace(plain, golden_on={"openvino": own})}
    )
    manifest = decode_manifest(encode_manifest(manifest), "m")
    assert manifest.golden_of("bf16", "openvino") == own
    assert manifest.golden_of("bf16", "cpu") == manifest.golden_of("bf16") == base.golden
    assert manifest.golden_of("fp32", "openvino") == base.golden


def test_a_golden_image_of_a_backend_has_to_be_there(tmp_path):
    base = tiny_manifest()
    lost = (msgspec.structs.replace(base.golden[0], file="golden/none.png"),)
    precision = Precision(dict(base.graphs), base.golden, "by hand", 0, 0, (), golden_on={"openvino": lost})
    write_tiny_bundle(tmp_path / "b", precisions={"bf16": precision})
    with pytest.raises(BundleError, match=r"it names golden/none\.png but does not list it"):
        open_bundle(tmp_path / "b")

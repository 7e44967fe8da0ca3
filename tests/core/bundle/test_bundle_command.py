"""`flawscope bundle info|verify|pack`, through the command line."""

from __future__ import annotations

import json
import zipfile

import msgspec
import pytest
from tiny_bundle import tiny_manifest, tiny_thresholds, write_tiny_bundle

from flawscope.bundle import Accuracy, Evidence, Parity, Threshold, ThresholdChange, Thresholds, open_bundle
from flawscope.cli import run


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny.flaw"
    write_tiny_bundle(path)
    return path


def call(capsys, *arguments):
    """Run a command; return its status, its output and its error lines."""
    status = run([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    return status, out, err.splitlines()


def facts(text):
    """Return the lines of `info` as label -> texts."""
    texts = {}
    for line in text.splitlines():
        texts.setdefault(line[:14].strip(), []).append(line[15:])
    return texts


def test_info_names_identity_input_and_source(folder, capsys):
    status, out, errors = call(capsys, "bundle", "info", folder)
    printed = facts(out)
    assert (status, errors) == (0, [])
    assert printed["name"] == ["tiny"]
    assert printed["identity"] == [open_bundle(folder).manifest.digest]
    assert printed["input"] == ["16x16 px, batches up to 4"]
    assert printed["thresholds"] == ["none: run flawscope calibrate"]
    assert printed["files"][0].startswith("4, 0.0 MiB")
    assert printed["graph score"] == ["largest tensor 3,072 elements, about 0 MiB"]


def test_info_shows_how_the_weights_of_the_backbone_are_used(tmp_path, capsys):
    lines = ("weights: assumed, since the weights do not say: mean 0.5", "licence: dinov3-license, one of its own")
    provenance = msgspec.structs.replace(tiny_manifest().provenance, conditions=lines)
    write_tiny_bundle(tmp_path / "b", provenance=provenance)
    printed = facts(call(capsys, "bundle", "info", tmp_path / "b")[1])
    assert printed["weights"] == ["assumed, since the weights do not say: mean 0.5"]
    assert printed["licence"] == ["dinov3-license, one of its own"]
    as_json = json.loads(call(capsys, "bundle", "info", tmp_path / "b", "--json")[1])
    assert as_json["provenance"]["conditions"] == list(lines)


def test_info_shows_width_before_height(tmp_path, capsys):
    base = tiny_manifest().input
    write_tiny_bundle(tmp_path / "b", input=msgspec.structs.replace(base, resize=(20, 40), crop=(16, 32)))
    assert facts(call(capsys, "bundle", "info", tmp_path / "b")[1])["input"] == ["32x16 px, batches up to 4"]


def test_info_shows_thresholds_with_their_bound_and_every_change(tmp_path, capsys):
    image = Threshold(12.5, "order-statistic", 200, 0.01, 0.95, 0.0149, "cpu")
    write_tiny_bundle(
        tmp_path / "b",
        thresholds=Thresholds(image=image, pixel=Threshold(3.0, "manual")),
        threshold_changes=(
            ThresholdChange("2026-01-02", "image", None, 12.5, "flawscope calibrate b"),
            ThresholdChange("2026-01-03", "pixel", 1 / 3, 3.0, "flawscope calibrate b --pixel-threshold 3"),
        ),
    )
    printed = facts(call(capsys, "bundle", "info", tmp_path / "b")[1])
    assert printed["image"] == ["12.5 (order-statistic on 200 images, false rejects at most 1.49% with 95% confidence)"]
    assert printed["pixel"] == ["3 (manual)"]
    assert printed["changed"] == [
        "2026-01-02 image: none -> 12.5 by flawscope calibrate b",
        "2026-01-03 pixel: 0.333333 -> 3 by flawscope calibrate b --pixel-threshold 3",
    ]


def test_info_tells_a_figure_of_zero_from_one_that_was_not_measured(tmp_path, capsys):
    figures = {"image_auroc": 0.0, "aupro": None, "pixel_auroc": 1.0}
    evidence = Evidence(
        parity=(Parity("torch", "score.onnx (cpu)", 8, 1.2e-6, 2e-6, 1.0),),
        accuracy=(Accuracy("2026-01-02", "flawscope evaluate", "d", "cpu", 9, 3, figures),),
    )
    write_tiny_bundle(tmp_path / "b", evidence=evidence)
    printed = facts(call(capsys, "bundle", "info", tmp_path / "b")[1])
    assert printed["parity"] == ["score.onnx (cpu) against torch: 1.2e-06 on 8 images"]
    assert printed["accuracy"] == ["2026-01-02 cpu: aupro none, image_auroc 0, pixel_auroc 1"]


def test_info_as_json_is_the_whole_manifest(folder, capsys):
    status, out, _ = call(capsys, "bundle", "info", folder, "--json")
    assert status == 0
    assert json.loads(out) == json.loads((folder / "manifest.json").read_bytes())


def test_pack_writes_a_file_that_verifies_to_the_same_identity(folder, tmp_path, capsys):
    packed = tmp_path / "out" / "packed.flaw"
    status, out, errors = call(capsys, "bundle", "pack", folder, "--out", packed)
    assert (status, errors) == (0, [])
    assert out.startswith(f"{packed}: ")
    assert zipfile.is_zipfile(packed)
    digest = open_bundle(folder).manifest.digest
    for path in (folder, packed):
        status, out, errors = call(capsys, "bundle", "verify", path)
        assert (status, out, errors) == (0, f"{path}: 4 files are as listed, identity {digest}, unsigned\n", [])


def test_pack_into_the_bundle_is_refused(folder, capsys):
    status, out, errors = call(capsys, "bundle", "pack", folder, "--out", folder / "packed.flaw")
    assert (status, out) == (2, "")
    assert errors[0].endswith("expected a place outside the bundle, where only listed files may lie.")
    assert call(capsys, "bundle", "verify", folder)[0] == 0


@pytest.mark.parametrize("name", ["score.onnx", "bank.safetensors", "golden/0.png", "images.json", "manifest.json"])
def test_verify_fails_with_status_1_on_a_changed_file(folder, capsys, name):
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    status, out, errors = call(capsys, "bundle", "verify", folder)
    assert (status, out, len(errors)) == (1, "", 1)
    assert errors[0].startswith(f"error: {folder}: ")
    assert "manifest" in errors[0] if name == "manifest.json" else f"{name}: expected SHA-256" in errors[0]


def test_verify_fails_with_status_1_on_a_bank_of_nan(tmp_path, capsys):
    bank = b'\x38\x00\x00\x00\x00\x00\x00\x00{"bank":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}\x00\x00\xc0\x7f'
    bank = bank.replace(b"\x38", bytes([len(bank) - 12]), 1)
    write_tiny_bundle(tmp_path / "b", {"bank.safetensors": bank})
    status, _, errors = call(capsys, "bundle", "verify", tmp_path / "b")
    assert (status, len(errors)) == (1, 1)
    assert "expected finite numbers in bank, got NaN or infinity" in errors[0]


@pytest.mark.parametrize("verb", ["info", "verify"])
def test_a_path_with_nothing_there_is_a_wrong_request(tmp_path, capsys, verb):
    status, out, errors = call(capsys, "bundle", verb, tmp_path / "none.flaw")
    assert (status, out, len(errors)) == (2, "", 1)
    assert "expected a bundle, got no such file or folder" in errors[0]


def test_info_of_a_broken_bundle_is_a_wrong_request(folder, capsys):
    (folder / "score.onnx").unlink()
    status, out, errors = call(capsys, "bundle", "info", folder)
    assert (status, out, len(errors)) == (2, "", 1)
    assert "expected the listed file score.onnx, which is missing" in errors[0]


def test_thresholds_set_in_python_show_up(folder, capsys):
    write_tiny_bundle(folder, thresholds=tiny_thresholds(150))
    assert facts(call(capsys, "bundle", "info", folder)[1])["image"] == ["150 (manual)"]

"""Wrong requests through the command line: status 2, one line that says what is wrong, nothing half-written."""

from __future__ import annotations

import errno
import json
import resource
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from tiny_dataset import CATEGORY, broken_images, normal_images, training_images

from flawscope import cli
from flawscope.bundle import open_bundle, pack_bundle
from flawscope.datasets import image_hash
from flawscope.runs import WEIGHTS

SMALL = ["--image-size", "64", "--set", "stages=1", "--set", "channels=4"]


@contextmanager
def files_up_to(count: int) -> Iterator[None]:
    """Let the system refuse to write files longer than `count` bytes: what a full disk does, half-way through."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (count, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def everything_below(folder: Path) -> dict[str, bytes | None]:
    """Return every entry below a folder with its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


class Workshop:
    """A folder for outputs that must stay as it is while requests are refused."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.out = folder / "workshop"
        self.out.mkdir()
        (self.out / "earlier.txt").write_text("was here before")
        self._capsys = capsys

    def refuses(self, *arguments: object, status: int = 2) -> str:
        """Run a command, check that it is refused as it should be, and return the line it gave."""
        before = everything_below(self.out)
        got = cli.run([str(argument) for argument in arguments])
        shown = self._capsys.readouterr()
        assert got == status, shown.err
        assert shown.err.startswith("error: "), shown.err
        assert shown.err.endswith("\n")
        assert shown.err.count("\n") == 1, shown.err
        assert "Traceback" not in shown.err + shown.out
        assert 20 < len(shown.err) < 700, shown.err
        assert everything_below(self.out) == before
        return shown.err


@pytest.fixture
def workshop(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workshop:
    """Where outputs would go."""
    return Workshop(tmp_path, capsys)


def train(workshop: Workshop, data: Path, *options: object, method: str = "padim") -> str:
    return workshop.refuses("train", method, "--data", data, "--out", workshop.out / "run", *SMALL, *options)


def good_folder(root: Path, folder: Path) -> Path:
    return Path(shutil.copytree(root / CATEGORY / "train" / "good", folder / "good"))


# Datasets.


def test_an_empty_folder(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "got an empty folder" in train(workshop, tmp_path / "empty")


def test_a_folder_that_is_not_there(workshop: Workshop, tmp_path: Path) -> None:
    assert "No such file or directory" in train(workshop, tmp_path / "none")


def test_a_file_in_place_of_a_folder(workshop: Workshop, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert "got a file" in train(workshop, tmp_path / "file")


def test_two_categories_where_one_was_meant(workshop: Workshop, tiny_root: Path, tmp_path: Path) -> None:
    for name in ("gear", "steel"):
        (tmp_path / "data" / name / "train").mkdir(parents=True)
        shutil.copytree(tiny_root / CATEGORY / "train" / "good", tmp_path / "data" / name / "train" / "good")
    message = train(workshop, tmp_path / "data")
    assert "expected one category, got 2: gear, steel. Name one with --category, or take all" in message
    assert "got 'brass'" in train(workshop, tmp_path / "data", "--category", "brass")


@pytest.mark.parametrize("kind", sorted(broken_images()))
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_broken_image_as_the_only_one(workshop: Workshop, tmp_path: Path, kind: str, method: str) -> None:
    name, data = broken_images()[kind]
    (tmp_path / "good").mkdir()
    (tmp_path / "good" / name).write_bytes(data)
    options = ["--out", workshop.out / "run", "--image-size", "64", "--set", "stages=1"]
    message = workshop.refuses("train", method, "--data", tmp_path / "good", *options)
    if method == "patchcore":  # PaDiM needs two images, whatever is in them
        assert name in message


@pytest.mark.parametrize("kind", sorted(broken_images()))
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_a_broken_image_among_good_ones(
    workshop: Workshop, tiny_root: Path, tmp_path: Path, kind: str, method: str
) -> None:
    folder = good_folder(tiny_root, tmp_path)
    name, data = broken_images()[kind]
    (folder / name).write_bytes(data)
    options = ["--out", workshop.out / "run", "--image-size", "64", "--set", "stages=1,2", "--set", "held_out=0"]
    message = workshop.refuses("train", method, "--data", folder, *options)
    assert name in message


def test_a_broken_image_that_is_held_out(workshop: Workshop, tiny_root: Path, tmp_path: Path, padim_run: Path) -> None:
    held_out = set(json.loads((padim_run / "run.json").read_text())["held_out"])
    folder = good_folder(tiny_root, tmp_path)
    names = sorted(path.name for path in folder.iterdir() if image_hash(path) in held_out)
    assert len(names) == 5
    for name in names:  # which images are held out depends on their names alone
        (folder / name).write_bytes((folder / name).read_bytes()[:200] + name.encode())
    message = train(workshop, folder, "--set", "held_out_minimum=5")
    assert names[0] in message


def test_the_announced_size_of_an_image_is_not_allocated(workshop: Workshop, tiny_root: Path, tmp_path: Path) -> None:
    folder = good_folder(tiny_root, tmp_path)
    name, data = broken_images()["huge"]
    (folder / name).write_bytes(data)
    message = train(workshop, folder, "--set", "held_out=0")
    assert "expected at most 200,000,000 pixels, got 30000x30000; it was not decoded" in message


# Requests.


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (["--backbone", "resnet19"], "backbone: expected scattering or the name of a timm model, got 'resnet19'"),
        (["--set", "coresett=1"], "coresett: is no setting of padim"),
        (["--set", "chanels=1"], "chanels: is no setting of padim. Did you mean channels?"),
        (["--set", "channels"], "--set channels: expected KEY=VALUE"),
        (["--set", "channels=many"], "channels"),
        (["--set", "channels=0"], "channels: expected 1 to 4096, got 0"),
        (["--set", "channels=999"], "channels: expected at most the 75 channels"),
        (["--set", "stages=9"], "stages: scattering has the stages 1,2,3,4, got [9]"),
        (["--set", "stages=2,1"], "stages: expected rising stage numbers"),
        (["--set", "crop=128"], "crop: expected at most the resized size [64, 64], got [128, 128]"),
        (["--set", "device=cuda", "--set", "seed=1"], "device: expected cuda, got a machine where torch finds no CUDA"),
        (["--set", "regularization=1e-300", "--set", "channels=40"], "regularization: expected enough"),
        (["--image-size", "15"], "resize: expected height and width from 16 to 8192 pixels"),
        (["--image-size", "16", "--set", "stages=3"], "image size: expected one that the backbone's stages can take"),
        (["--image-size", "big"], "--image-size"),
        (["--seed", "-1"], "seed: expected a number of at least 0, got -1"),
        (["--config", "no-such.yml"], "--config no-such.yml: expected a YAML file or one of anogen-seed"),
        (["--config", "patchcore-seed"], "is no setting of padim"),
        (["--weights", "none.safetensors"], "weights: the backbone scattering has fixed filters and takes no file"),
        (["--backbone", "resnet18", "--weights", "none.safetensors"], "none.safetensors: expected a weights file"),
        (["--frobnicate", "1"], "No such option"),
        (["surplus"], "unexpected extra argument"),
    ],
)
def test_a_wrong_option_of_train(workshop: Workshop, tiny_root: Path, options: list[str], wanted: str) -> None:
    import torch

    if "device=cuda" in options and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    assert wanted in train(workshop, tiny_root, *options)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train", "magic", "--data", "x", "--out", "y"],
        ["train", "padim", "--data", "x"],
        ["frobnicate"],
        ["export"],
        ["export", "run", "--out", "x", "--max-batch", "zero"],
        ["score"],
        ["score", "bundle"],
        ["bench"],
        ["bundle", "frobnicate", "x"],
        ["doctor", "--frobnicate"],
    ],
)
def test_an_unknown_method_verb_or_option(workshop: Workshop, arguments: list[str]) -> None:
    workshop.refuses(*arguments)


def test_weights_of_another_architecture(workshop: Workshop, tiny_root: Path, tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    safetensors.numpy.save_file({"conv_stem.weight": np.zeros((32, 3, 3, 3), np.float32)}, path)
    message = train(workshop, tiny_root, "--backbone", "resnet18", "--weights", path)
    assert "expected weights of resnet18, got a file without" in message
    assert "Are they of another architecture?" in message


def test_an_output_that_is_something_else(workshop: Workshop, tiny_root: Path, padim_run: Path) -> None:
    train_out = ["train", "padim", "--data", tiny_root, *SMALL, "--out"]
    assert "expected a new folder or one with run.json" in workshop.refuses(*train_out, workshop.out)
    assert "got an existing file" in workshop.refuses(*train_out, workshop.out / "earlier.txt")
    message = workshop.refuses("export", padim_run, "--out", workshop.out)
    assert "expected a new folder or one with manifest.json" in message


# Runs.


def spoiled_run(run: Path, folder: Path, name: str, change: Callable[[Any], Any]) -> Path:
    target = Path(shutil.copytree(run, folder / "run"))
    tensors = dict(safetensors.numpy.load_file(target / WEIGHTS))
    tensors[name] = change(tensors[name])
    safetensors.numpy.save_file(tensors, target / WEIGHTS)
    return target


@pytest.mark.parametrize(
    ("method", "tensor", "change", "wanted"),
    [
        ("patchcore", "bank.bank", lambda bank: bank[:0], "got an empty array"),
        ("patchcore", "bank.bank", lambda bank: bank * np.float32("nan"), "got NaN or infinity"),
        ("padim", "bank.mean", lambda mean: mean[:0], "got an empty array"),
        ("padim", "bank.whitening", lambda whitening: whitening * np.float32("inf"), "got NaN or infinity"),
    ],
)
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_a_run_with_an_empty_bank_or_nan(
    workshop: Workshop, runs: dict[str, Path], tmp_path: Path, method: str, tensor: str, change: Any, wanted: str
) -> None:
    run = spoiled_run(runs[method], tmp_path, tensor, change)
    assert wanted in workshop.refuses("export", run, "--out", workshop.out / "part.flaw")


def test_a_run_of_another_backbone(workshop: Workshop, padim_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(padim_run, tmp_path / "run"))
    record = json.loads((run / "run.json").read_text())
    record["config"]["backbone"] = "resnet18"
    (run / "run.json").write_text(json.dumps(record))
    message = workshop.refuses("export", run, "--out", workshop.out / "part.flaw")
    assert "the run's weights are not those of resnet18" in message


def test_what_is_no_run(workshop: Workshop, tmp_path: Path, padim_bundle: Path) -> None:
    for path in (tmp_path / "none", padim_bundle):
        assert "expected a run with run.json" in workshop.refuses("export", path, "--out", workshop.out / "part.flaw")


# Bundles.


def resigned(bundle: Path, name: str, change: Callable[[Path], None]) -> None:
    """Change a file of a bundle and sign it anew, as a broken exporter would have."""
    import msgspec

    from flawscope.bundle import FileEntry, rewrite_manifest
    from flawscope.files import sha256_file

    with open_bundle(bundle) as opened:
        manifest = opened.manifest
    change(bundle / name)
    entry = FileEntry(sha256_file(bundle / name), (bundle / name).stat().st_size)
    rewrite_manifest(bundle, msgspec.structs.replace(manifest, files={**manifest.files, name: entry}))


@pytest.fixture
def copied(padim_bundle: Path, tmp_path: Path) -> Path:
    """A bundle that may be spoiled."""
    return Path(shutil.copytree(padim_bundle, tmp_path / "part.flaw"))


def every_use(workshop: Workshop, bundle: Path, root: Path) -> list[str]:
    """Refuse a bundle in every verb that reads one; return the lines."""
    return [
        workshop.refuses("score", bundle, normal_images(root)[0], "--maps", workshop.out / "maps"),
        workshop.refuses("bench", bundle, "--seconds", "0.1", "--no-cold-start", "--json", workshop.out / "bench.json"),
    ]


@pytest.mark.parametrize("value", ["nan", "empty"])
def test_a_bundle_with_an_empty_bank_or_nan(workshop: Workshop, copied: Path, tiny_root: Path, value: str) -> None:
    def change(path: Path) -> None:
        tensors = dict(safetensors.numpy.load_file(path))
        tensors["mean"] = np.full_like(tensors["mean"], np.nan) if value == "nan" else tensors["mean"][:0]
        safetensors.numpy.save_file(tensors, path)

    resigned(copied, "bank.safetensors", change)
    for message in every_use(workshop, copied, tiny_root):
        assert ("got NaN or infinity" if value == "nan" else "got an empty array") in message


@pytest.mark.parametrize("name", ["score.onnx", "features.onnx", "bank.safetensors", "golden/000.png", "images.json"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_bundle_with_one_byte_changed(
    workshop: Workshop, copied: Path, tiny_root: Path, tmp_path: Path, name: str, packed: bool
) -> None:
    bundle = copied
    if packed:
        bundle = tmp_path / "packed.flaw"
        with open_bundle(copied) as opened:
            pack_bundle(opened, bundle)
        inside = (copied / name).read_bytes()
        data = bytearray(bundle.read_bytes())
        data[data.find(inside) + len(inside) // 2] ^= 1
        bundle.write_bytes(data)
    else:
        data = bytearray((copied / name).read_bytes())
        data[len(data) // 2] ^= 1
        (copied / name).write_bytes(data)
    for message in every_use(workshop, bundle, tiny_root):
        assert "was changed" in message or "no readable zip file" in message


def test_a_manifest_of_a_newer_schema(workshop: Workshop, copied: Path, tiny_root: Path) -> None:
    manifest = json.loads((copied / "manifest.json").read_text())
    (copied / "manifest.json").write_text(json.dumps(manifest | {"schema": 99, "future": True}))
    for message in every_use(workshop, copied, tiny_root):
        assert "expected manifest schema 7, got 99" in message
        assert "update this one" in message


def test_a_threshold_changed_by_hand(workshop: Workshop, copied: Path, tiny_root: Path) -> None:
    text = (copied / "manifest.json").read_text()
    assert text.count('"min_area_px": 4') == 1
    (copied / "manifest.json").write_text(text.replace('"min_area_px": 4', '"min_area_px": 400'))
    for message in every_use(workshop, copied, tiny_root):
        assert "the manifest was changed after it was written" in message


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x"])
def test_a_zip_member_that_leaves_the_bundle(
    workshop: Workshop, copied: Path, tiny_root: Path, tmp_path: Path, name: str
) -> None:
    bundle = workshop.out / "packed.flaw"
    with open_bundle(copied) as opened:
        pack_bundle(opened, bundle)
    with zipfile.ZipFile(bundle, "a") as archive:
        archive.writestr(name, b"outside")
    for message in every_use(workshop, bundle, tiny_root):
        assert "leaves the bundle. It was not read." in message
    assert not (tmp_path / "x").exists()


def test_what_is_no_bundle(workshop: Workshop, tiny_root: Path, tmp_path: Path, padim_run: Path) -> None:
    (tmp_path / "text.flaw").write_text("no bundle")
    (tmp_path / "empty.flaw").mkdir()
    for path in (tmp_path / "none.flaw", tmp_path / "text.flaw", tmp_path / "empty.flaw", padim_run):
        for message in every_use(workshop, path, tiny_root):
            assert "expected a bundle" in message


def test_a_changed_golden_score(workshop: Workshop, copied: Path, tiny_root: Path) -> None:
    import msgspec

    from flawscope.bundle import rewrite_manifest

    with open_bundle(copied) as opened:
        manifest = opened.manifest
    golden = tuple(msgspec.structs.replace(one, score=2 * one.score) for one in manifest.golden)
    rewrite_manifest(copied, msgspec.structs.replace(manifest, golden=golden))
    for message in every_use(workshop, copied, tiny_root):
        assert "golden image golden/000.png: expected score" in message


# Backends.


@pytest.mark.parametrize("verb", ["score", "bench"])
def test_cuda_where_there_is_none(workshop: Workshop, padim_bundle: Path, tiny_root: Path, verb: str) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    images = [normal_images(tiny_root)[0]] if verb == "score" else []
    message = workshop.refuses(verb, padim_bundle, *images, "--backend", "cuda")
    assert "backend cuda: is not there" in message
    assert "There is no fall-back" in message


@pytest.mark.parametrize("verb", ["score", "bench"])
def test_an_unknown_backend_or_path(workshop: Workshop, padim_bundle: Path, tiny_root: Path, verb: str) -> None:
    images = [normal_images(tiny_root)[0]] if verb == "score" else []
    assert "'tpu'" in workshop.refuses(verb, padim_bundle, *images, "--backend", "tpu")
    assert "'magic'" in workshop.refuses(verb, padim_bundle, *images, "--path", "magic")


# A full disk.


@pytest.mark.parametrize("method", ["patchcore", "padim"])
@pytest.mark.parametrize("limit", [0, 5_000])
def test_a_full_disk_while_a_run_is_written(workshop: Workshop, tiny_root: Path, method: str, limit: int) -> None:
    options = ["--image-size", "64", "--set", "stages=1,2", "--out", workshop.out / "run"]
    with files_up_to(limit):
        message = workshop.refuses("train", method, "--data", tiny_root, *options)
    assert "run: could not be written: " in message
    assert "Nothing was left behind." in message


@pytest.mark.parametrize("limit", [0, 5_000])
def test_a_full_disk_while_a_bundle_is_exported(workshop: Workshop, padim_run: Path, limit: int) -> None:
    with files_up_to(limit):
        message = workshop.refuses("export", padim_run, "--out", workshop.out / "part.flaw")
    assert "part.flaw: could not be written: " in message


@pytest.mark.usefixtures("traced_features")
def test_a_full_disk_at_the_end_of_an_export(
    workshop: Workshop, padim_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copyfile = shutil.copyfile

    def full(source: Any, target: Any, **options: Any) -> Any:
        if "candidate" in str(target):  # the copy that the gate measures still fits
            return copyfile(source, target, **options)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    message = workshop.refuses("export", padim_run, "--out", workshop.out / "part.flaw", "--max-batch", "4")
    assert "the disk is full" in message


@pytest.mark.parametrize("limit", [0, 5_000])
def test_a_full_disk_while_a_bundle_is_packed(workshop: Workshop, padim_bundle: Path, limit: int) -> None:
    with files_up_to(limit):
        message = workshop.refuses("bundle", "pack", padim_bundle, "--out", workshop.out / "packed.flaw")
    assert "packed.flaw: could not be written: " in message


def test_a_full_disk_while_maps_are_drawn(workshop: Workshop, padim_bundle: Path, tiny_root: Path) -> None:
    with files_up_to(100):
        got = cli.run(["score", str(padim_bundle), str(normal_images(tiny_root)[0]), "--maps", str(workshop.out / "m")])
    assert got == 2
    assert list((workshop.out / "m").iterdir()) == []


def test_a_full_disk_while_figures_are_written(
    workshop: Workshop, padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("flawscope.runtime.bench.measurement.WARM_UP_S", (0.0, 0.01))
    with files_up_to(100):
        message = workshop.refuses(
            "bench", padim_bundle, "--seconds", "0.1", "--no-cold-start", "--json", workshop.out / "bench.json"
        )
    assert "bench.json: could not be written: " in message


def test_a_folder_that_may_not_be_written_to(workshop: Workshop, tiny_root: Path) -> None:
    out = workshop.out / "earlier.txt" / "run"  # below a file: refused for every user, root included
    assert "could not be written: " in workshop.refuses("train", "padim", "--data", tiny_root, *SMALL, "--out", out)


# One bad image among normal ones is no wrong request.


@pytest.mark.parametrize("kind", [*sorted(broken_images()), "missing"])
def test_one_bad_image_on_the_line_is_a_fault_and_the_rest_is_scored(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    name, data = broken_images().get(kind, ("missing.png", None))
    if data is not None:
        (tmp_path / name).write_bytes(data)
    good = normal_images(tiny_root)
    images = [good[0], tmp_path / name, *good[1:3]]
    assert cli.run(["score", str(padim_bundle), *map(str, images), "--json", "--batch", "4"]) == 1
    shown = capsys.readouterr()
    lines = [json.loads(line) for line in shown.out.splitlines()]
    assert [line["decision"] for line in lines] == ["accept", "fault", "accept", "accept"]
    assert lines[1]["image"].endswith(name)
    assert lines[1]["reason"]
    assert name not in lines[1]["reason"]
    assert all(line["score"] is not None for line in lines if line["decision"] != "fault")
    assert shown.err.startswith("backend cpu (auto: ")  # what `auto` took, and nothing else
    assert shown.err.count("\n") == 1


def test_a_good_request_is_not_refused(workshop: Workshop, tiny_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(training_images(tiny_root)) == 24
    arguments = ["train", "padim", "--data", str(tiny_root), "--out", str(workshop.out / "run"), *SMALL]
    assert cli.run(arguments) == 0
    assert (workshop.out / "run" / "run.json").is_file()
    # Of so few images notes are said, and nothing else.
    assert all(line.startswith("note: ") for line in capsys.readouterr().err.splitlines())

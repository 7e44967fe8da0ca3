"""The argument handling of the rival's script and the environment it runs in: what needs no anomalib."""

from __future__ import annotations

import argparse
import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np
import pytest
from project_paths import ROOT

from flawscope.errors import ArgumentError, FlawscopeError

BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "rival_anomalib.py"


def _load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


rival = _load(SCRIPT)
anomalib_env = _load(BENCHMARKS / "anomalib_env.py")


@pytest.fixture
def category(tmp_path: Path) -> Path:
    for name in ("train/good/1.png", "train/good/0.png", "test/good/0.png", "test/crack/0.png"):
        path = tmp_path / "tile" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.zeros((8, 8, 3), np.uint8))
    return tmp_path / "tile"


@pytest.fixture
def arguments(category: Path, tmp_path: Path) -> dict[str, str]:
    weights = tmp_path / "weights.safetensors"
    weights.write_bytes(b"")
    return {
        "--method": "padim",
        "--data": str(category),
        "--backbone": "resnet18",
        "--weights": str(weights),
        "--stages": "1,2,3",
        "--out": str(tmp_path / "out"),
    }


def _line(arguments: dict[str, str]) -> list[str]:
    return [part for pair in arguments.items() for part in pair]


def test_all_options_of_the_driver_are_understood(arguments: dict[str, str], tmp_path: Path) -> None:
    options = arguments | {
        "--method": "patchcore",
        "--backbone-options": '{"pad_type": "same"}',
        "--mean": "0.50196",
        "--std": "0.2,0.3,0.4",
        "--stages": "2,3",
        "--size": "256",
        "--seed": "7",
        "--coreset": "0.0015",
        "--neighbors": "5",
        "--channels": "50",
        "--epochs": "12",
        "--workers": "1",
    }
    assert rival.parse_arguments(_line(options)) == rival.Settings(
        method="patchcore",
        data=tmp_path / "tile",
        backbone="resnet18",
        weights=tmp_path / "weights.safetensors",
        backbone_options={"pad_type": "same"},
        mean=(0.50196, 0.50196, 0.50196),
        std=(0.2, 0.3, 0.4),
        stages=(2, 3),
        size=256,
        seed=7,
        coreset=0.0015,
        neighbors=5,
        channels=50,
        epochs=12,
        workers=1,
        out=tmp_path / "out",
    )


def test_defaults_are_those_of_anomalib(arguments: dict[str, str]) -> None:
    settings = rival.parse_arguments(_line(arguments))
    assert (settings.mean, settings.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (settings.coreset, settings.neighbors, settings.backbone_options) == (0.1, 9, {})


@pytest.mark.parametrize("text", ["", "a", "0,1", "2,1", "2,2", "1,,2", "-1"])
def test_stages_that_are_not_ascending_from_one_are_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="expected ascending stages from 1"):
        rival.parse_stages(text)


def test_stages_are_read() -> None:
    assert rival.parse_stages("2") == (2,)
    assert rival.parse_stages("1, 2,3") == (1, 2, 3)


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--method", "draem", "--method: invalid choice: 'draem'"),
        ("--stages", "3,2", "--stages: expected ascending stages from 1 such as 2,3, got '3,2'"),
        ("--mean", "0.1,0.2", "--mean: expected one number or three with commas, got '0.1,0.2'"),
        ("--std", "0", r"--std: expected numbers above 0, got \[0.0, 0.0, 0.0\]"),
        ("--backbone-options", "{", "--backbone-options: expected a JSON object, got '{'"),
        ("--backbone-options", "[1]", r"--backbone-options: expected a JSON object, got '\[1\]'"),
        ("--coreset", "0", "--coreset: expected a fraction above 0 and up to 1, got '0'"),
        ("--coreset", "nan", "--coreset: expected a fraction above 0 and up to 1, got 'nan'"),
        ("--channels", "0", "--channels: expected a whole number of at least 1, got '0'"),
        ("--neighbors", "1.5", "--neighbors: expected a whole number of at least 1, got '1.5'"),
        ("--weights", "absent.safetensors", "--weights: expected a safetensors file, got absent.safetensors"),
        ("--out", str(SCRIPT), "--out: expected a folder, got the file .*rival_anomalib.py"),
        ("--colour", "red", "unrecognized arguments: --colour red; see --help"),
    ],
)
def test_a_wrong_option_is_named_with_its_value(arguments: dict[str, str], option: str, value: str, says: str) -> None:
    with pytest.raises(rival.RivalError, match=says):
        rival.parse_arguments(_line(arguments | {option: value}))


def test_a_missing_option_is_named(arguments: dict[str, str]) -> None:
    del arguments["--stages"]
    with pytest.raises(rival.RivalError, match="required: --stages"):
        rival.parse_arguments(_line(arguments))


def test_images_are_listed_by_path_and_other_files_left_out(category: Path) -> None:
    (category / "test" / "crack" / "notes.txt").write_text("no image")
    (category / "test" / "readme.png").write_bytes(b"beside the defect folders")
    train, test = rival.list_images(category)
    assert [path.relative_to(category).as_posix() for path in train] == ["train/good/0.png", "train/good/1.png"]
    assert [path.relative_to(category).as_posix() for path in test] == ["test/crack/0.png", "test/good/0.png"]


def test_a_folder_without_training_images_is_refused_with_the_counts(category: Path) -> None:
    (category / "train" / "good" / "0.png").unlink()
    with pytest.raises(rival.RivalError, match=r"two or more images in .*/train/good .* got 1 and 2"):
        rival.list_images(category)


def test_missing_data_is_one_sentence_and_status_two(
    arguments: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status = rival.main(_line(arguments | {"--data": str(tmp_path / "absent")}))
    shown = capsys.readouterr()
    assert status == 2
    assert shown.err == f"error: --data: expected a category folder, got {tmp_path}/absent, which is not there.\n"
    assert shown.out == ""
    assert not (tmp_path / "out").exists()


def test_an_environment_without_anomalib_is_one_sentence_and_status_two(
    arguments: dict[str, str], tmp_path: Path
) -> None:
    # Shadows anomalib, so that the claim is tested where it is installed too.
    (tmp_path / "shadow").mkdir()
    (tmp_path / "shadow" / "anomalib.py").write_text("raise ModuleNotFoundError('no anomalib', name='anomalib')")
    process = subprocess.run(
        [sys.executable, str(SCRIPT), *_line(arguments)],
        env={"PYTHONPATH": str(tmp_path / "shadow")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr == (
        f"error: {sys.executable}: expected an environment with anomalib, got one without anomalib; "
        "make one with benchmarks/anomalib_env.py.\n"
    )


def test_importing_the_script_imports_neither_anomalib_nor_flawscope() -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCHMARKS)!r}); before = set(sys.modules); import rival_anomalib; "
        "print(*sorted({name.split('.')[0] for name in set(sys.modules) - before}))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(process.stdout.split())
    assert "rival_anomalib" in loaded
    assert not loaded & {"anomalib", "flawscope", "torch", "timm", "lightning", "numpy"}


def _fake_create(script: str) -> object:
    """Return a stand-in for `venv.create` that leaves a shell script as the environment's Python."""

    def create(folder: Path, *, clear: bool, with_pip: bool) -> None:
        assert clear
        assert with_pip
        (folder / "bin").mkdir(parents=True)
        (folder / "pyvenv.cfg").write_text("")
        python = folder / "bin" / "python"
        python.write_text(f"#!/bin/sh\n{script}\n")
        python.chmod(0o755)

    return create


def test_the_environment_is_made_with_the_pins_once_and_reused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, log = tmp_path / "env", tmp_path / "log"
    monkeypatch.setattr(anomalib_env.venv, "create", _fake_create(f'printf "%s\\n" "$@" >> {log}'))
    python = anomalib_env.ensure_environment(folder)
    assert python == folder / "bin" / "python"
    assert log.read_text().splitlines()[:3] == ["-m", "pip", "install"]
    assert log.read_text().splitlines()[-len(anomalib_env.PINS) :] == list(anomalib_env.PINS)
    before = log.read_text()
    assert anomalib_env.ensure_environment(folder) == python
    assert log.read_text() == before


def test_an_environment_of_other_pins_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(anomalib_env.venv, "create", _fake_create("exit 0"))
    folder = tmp_path / "env"
    anomalib_env.ensure_environment(folder)
    cleared: list[bool] = []
    monkeypatch.setattr(anomalib_env, "PINS", ("anomalib==2.8.0",))
    monkeypatch.setattr(anomalib_env.venv, "create", lambda _folder, clear, with_pip: cleared.append(clear))
    anomalib_env.ensure_environment(folder)
    assert cleared == [True]
    assert "anomalib==2.8.0" in (folder / anomalib_env.MARKER).read_text()


def test_a_failure_of_pip_is_told_and_leaves_no_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = "echo 'ERROR: No matching distribution found for anomalib' >&2; echo hint >&2; exit 3"
    monkeypatch.setattr(anomalib_env.venv, "create", _fake_create(script))
    with pytest.raises(FlawscopeError, match="status 3: ERROR: No matching distribution found for anomalib"):
        anomalib_env.ensure_environment(tmp_path / "env")
    assert not (tmp_path / "env" / anomalib_env.MARKER).exists()


def test_a_folder_with_other_files_is_never_cleared(tmp_path: Path) -> None:
    foreign = tmp_path / "kept.txt"
    foreign.write_text("mine")
    with pytest.raises(ArgumentError, match="expected a free name or a virtual environment, got something else"):
        anomalib_env.ensure_environment(tmp_path)
    assert foreign.read_text() == "mine"

"""A method that no product file knows goes from training to the line by its row in the table alone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import toy_method
from tiny_dataset import CATEGORY, anomalous_images, normal_images

from flawscope import cli
from flawscope.methods import METHODS


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the row into the table."""
    monkeypatch.setitem(METHODS, "toy", toy_method.ROW)


@pytest.mark.usefixtures("toy")
def test_a_row_is_all_that_a_new_method_needs(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, bundle, data = str(tmp_path / "run"), str(tmp_path / "toy.flaw"), ["--data", str(tiny_root)]

    def flawscope(*arguments: str) -> str:
        assert cli.run(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    assert "power=1.0" in flawscope("train", "toy", "--help")
    settings = ["--set", "power=2", "--set", "held_out=0.4", "--set", "held_out_minimum=5", "--image-size", "64"]
    assert "toy fitted on" in flawscope("train", "toy", *data, "--category", CATEGORY, *settings, "--out", run)
    assert "parity score.onnx, cpu against torch" in flawscope("export", run, "--out", bundle)
    assert "within to the end" in flawscope("explain", run)
    flawscope("calibrate", bundle, *data, "--category", CATEGORY, "--false-reject-rate", "0.3")
    images = [str(path) for path in (normal_images(tiny_root)[0], anomalous_images(tiny_root)[0])]
    good, bad = (json.loads(line) for line in flawscope("score", bundle, *images, "--json").splitlines())
    assert good["score"] < bad["score"]
    assert bad["decision"] == "reject"
    evaluated = tmp_path / "figures.json"
    flawscope("evaluate", bundle, *data, "--category", CATEGORY, "--json", str(evaluated))
    assert json.loads(evaluated.read_text())["image_auroc"] > 0.5
    examined = json.loads(flawscope("doctor", bundle, "--json"))["bundle"]
    assert (examined["graph"], examined["head"]) == ("score.onnx", "in the graph")
    measured = tmp_path / "bench.json"
    flawscope("bench", bundle, "--seconds", "0.1", "--no-cold-start", "--json", str(measured))
    assert json.loads(measured.read_text())["method"] == "toy"
    assert '"power": 2.0' in flawscope("bundle", "info", bundle, "--json")


def test_without_its_row_the_method_is_unknown(
    tiny_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "toy", "--data", str(tiny_root), "--category", CATEGORY, "--out", str(tmp_path / "run")]
    assert cli.run(arguments) == 2
    assert "METHOD: expected one of patchcore, padim," in capsys.readouterr().err

from __future__ import annotations

import json

import pytest

from flawscope.bundle import open_bundle
from flawscope.cli import run

pytestmark = pytest.mark.long


def test_the_demo_leaves_data_bundle_and_report_and_tells_good_from_bad(tmp_path, capsys):
    out = tmp_path / "demo"
    assert run(["demo", "--out", str(out), "--kind", "board", "--size", "128", "--train", "40"]) == 0
    printed = capsys.readouterr().out
    assert str(out / "board" / "report" / "report.html") in printed
    assert (out / "data" / "contact_sheet.png").is_file()
    assert "<html" in (out / "board" / "report" / "report.html").read_text()[:500]
    with open_bundle(out / "board" / "board.flaw") as bundle:
        manifest = bundle.manifest
    assert manifest.thresholds is not None
    assert manifest.evidence.accuracy[0].figures["image_auroc"] >= 0.9
    assert json.loads((out / "demo.json").read_text())["image_auroc"] >= 0.9


def test_the_demo_refuses_a_folder_with_other_files(tmp_path, capsys):
    data = tmp_path / "demo" / "data"
    data.mkdir(parents=True)
    (data / "precious.txt").write_text("mine")
    assert run(["demo", "--out", str(tmp_path / "demo"), "--kind", "steel"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (data / "precious.txt").read_text() == "mine"

"""`flawscope benchmark`: which cells run, what is kept, resumed and refused, and what the tables say."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_dataset import CATEGORY, write_tiny_dataset

from flawscope.calibration.evaluation.figures import BundleIdentity, DatasetIdentity, Figures, Latency
from flawscope.calibration.evaluation.intervals import Interval
from flawscope.cli import run
from flawscope.workflows.accuracy import cells as cells_module
from flawscope.workflows.accuracy.cells import CellResult
from flawscope.workflows.accuracy.tables import Benchmark, means_of, to_markdown


def figures(auroc: float) -> Figures:
    """Return the figures of an evaluation without masks."""
    return Figures(
        image_auroc=auroc,
        image_ap=None,
        image_f1_max=None,
        pixel_auroc=None,
        pixel_ap=None,
        aupro=None,
        aupro_05=None,
        pixel_f1=None,
        pixel_recall=None,
        images=9,
        anomalous=4,
        without_mask=4,
        masks_lost=0,
        f1_threshold=None,
        recall_by_size=(),
        diagnosis=(),
        backend="cpu",
        backend_reason="asked for",
        path="kernel",
        precision="fp32",
        latency_ms=Latency(p50=3.0, p90=4.0, p99=5.0),
        intervals={"image_auroc": Interval(auroc - 0.1, min(1.0, auroc + 0.1), 0.95)},
        confusion=None,
        defects=(),
        faults=(),
        notes=(),
        bundle=BundleIdentity(name="b", method="padim", digest="0", model="0"),
        dataset=DatasetIdentity(category="c", fingerprint="0"),
        versions={},
        command="flawscope pipeline",
        when="2026-01-01T00:00:00+00:00",
        seed=0,
        resamples=100,
        support=None,
        per_image=(),
        drift=(),
    )


class Runner:
    """Stands for the processes: the AUROC is told by category, and others fail."""

    def __init__(self) -> None:
        self.commands: list[list[str]] = []
        self.aurocs = {"a": 0.75, "b": 0.5, "one": 0.5}

    def __call__(self, command: list[str], log: Path, lock: int) -> tuple[int, int]:
        """Write what the pipeline would."""
        self.commands.append(command)
        log.write_text("note: something\n")
        category = command[command.index("--category") + 1] if "--category" in command else "one"
        if category not in self.aurocs:
            log.write_text("error: broken: expected images, got none.\n")
            return 2, 1024
        out = Path(command[command.index("--out") + 1])
        out.mkdir(parents=True, exist_ok=True)
        (out / "evaluation.json").write_bytes(msgspec.json.encode(figures(self.aurocs[category])))
        return 0, 2048


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """Put the stand-in in the place of processes."""
    stand_in = Runner()
    monkeypatch.setattr(cells_module, "_run", stand_in)
    return stand_in


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A dataset of two categories, whose files nobody opens."""
    for category in ("a", "b"):
        for name in ("train/good/0.png", "train/good/1.png", "test/good/0.png", "test/hole/0.png"):
            path = tmp_path / "set" / category / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"")
    return tmp_path / "set"


def document(out: Path) -> dict[str, Any]:
    """Return the JSON of a benchmark."""
    loaded: dict[str, Any] = json.loads((out / "benchmark.json").read_text())
    return loaded


def test_every_method_category_and_seed_is_a_cell_of_its_own(runner, root, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = ["benchmark", str(root), "--out", str(out), "--seeds", "0,1", "--set", "patchcore.coreset=0.5"]
    assert run([*arguments, "--set", "held_out=0.2", "--image-size", "96"]) == 0
    told = document(out)
    assert [(c["category"], c["method"], c["seed"]) for c in told["cells"]] == [
        (category, method, seed) for category in "ab" for method in ("padim", "patchcore") for seed in (0, 1)
    ]
    assert told["cells"][2]["command"] == (
        f"flawscope pipeline patchcore --data {root} --category a --seed 0 --image-size 96 --set coreset=0.5 "
        "--set held_out=0.2"
    )
    assert "coreset" not in told["cells"][0]["command"]
    assert [command[1:5] for command in runner.commands] == [
        ["-m", "flawscope", "pipeline", cell["method"]] for cell in told["cells"]
    ]
    assert [(m["method"], m["figure"], m["value"], m["seeds_sd"]) for m in told["means"]] == [
        (method, "image_auroc", 0.625, 0.0) for method in ("padim", "patchcore")
    ]
    page = (out / "benchmark.md").read_text()
    assert "| a | 0.750 ± 0.000 | 0.750 ± 0.000 |" in page
    assert "| **mean** | **0.625** ± 0.000" in page
    assert "| padim | 0 | 3.0 | 2 | 0 |" in page
    assert "set/a padim seed 0" in capsys.readouterr().out
    # Runs and bundles go with their cell; what was measured and the log stay.
    assert sorted(path.name for path in (out / "cells/set/a/padim-seed0").iterdir()) == ["log.txt", "result.json"]


def test_finished_cells_stay_and_a_failure_is_tried_again(runner, root, tmp_path, capsys):
    out = tmp_path / "out"
    (root / "b").rename(root / "broken")
    arguments = ["benchmark", str(root), "--out", str(out), "--methods", "padim"]
    assert run(arguments) == 1
    assert "failed, and tried again with --resume: set/broken padim seed 0" in capsys.readouterr().err
    assert "- broken padim seed 0: broken: expected images, got none." in (out / "benchmark.md").read_text()
    assert "**0.750** (0.650 to 0.850), without 1" in (out / "benchmark.md").read_text()
    assert run(arguments) == 2
    assert "got an earlier output with benchmark.json" in capsys.readouterr().err
    runner.aurocs["broken"] = 0.5
    # Another method is added to those that were measured.
    assert run(["benchmark", str(root), "--out", str(out), "--methods", "padim,stfpm", "--resume"]) == 0
    assert [(command[4], command[8]) for command in runner.commands] == [
        ("padim", "a"),
        ("padim", "broken"),
        ("stfpm", "a"),
        ("padim", "broken"),
        ("stfpm", "broken"),
    ]
    assert len(document(out)["cells"]) == 4


def test_results_of_another_command_are_not_mixed(runner, root, tmp_path, capsys):
    arguments = ["benchmark", str(root), "--out", str(tmp_path / "out"), "--methods", "padim"]
    assert run(arguments) == 0
    assert run([*arguments, "--image-size", "64", "--resume"]) == 2
    assert "--overwrite to measure all anew" in capsys.readouterr().err
    assert run([*arguments, "--image-size", "64", "--overwrite"]) == 0
    assert all("--image-size 64" in cell["command"] for cell in document(tmp_path / "out")["cells"])


def test_a_training_that_was_interrupted_goes_on(runner, root, tmp_path):
    cell = tmp_path / "out/cells/set/a/stfpm-seed0"
    (cell / "work/run.training").mkdir(parents=True)
    (cell / "work/run.training/begun.json").write_text("{}")
    (cell / "log.txt").write_text("")
    (tmp_path / "out/benchmark.json").write_text("{}")
    arguments = ["benchmark", str(root), "--out", str(tmp_path / "out"), "--methods", "stfpm", "--resume"]
    assert run(arguments) == 0
    assert [command[-2:] == ["--resume", "latest"] for command in runner.commands] == [True, False]


def test_an_old_evaluation_is_not_taken_for_that_of_a_process_that_failed(root, tmp_path, monkeypatch):
    cell = tmp_path / "out/cells/set/a/padim-seed0"
    (cell / "work").mkdir(parents=True)
    (cell / "log.txt").write_text("")
    (cell / "work/evaluation.json").write_bytes(msgspec.json.encode(figures(0.9)))
    (tmp_path / "out/benchmark.json").write_text("{}")
    monkeypatch.setattr(cells_module, "_run", lambda command, log, lock: (log.write_text("error: no."), (1, 0))[1])
    assert run(["benchmark", str(root), "--out", str(tmp_path / "out"), "--methods", "padim", "--resume"]) == 1
    assert {result["error"] for result in document(tmp_path / "out")["cells"]} == {"no."}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--methods", "padm"], "--methods: expected names of detectors"),
        (["--methods", ","], "got none"),
        (["--seeds", "0,x"], "--seeds: expected numbers from 0 on"),
        (["--seeds", "-1"], "--seeds: expected numbers from 0 on"),
        (["--category", "c"], "--category: expected categories of"),
        (["--set", "stfpm.epochs=3"], "METHOD.KEY=VALUE with one of padim, patchcore"),
        (["--set", "neighbours_=3"], "neighbours_"),
        (["--image-size", "0"], "expected height and width from 16 to 8192 pixels, got [0, 0]"),
        (["--weights", "nowhere"], "--weights nowhere: expected a safetensors file, got none there"),
        (["--methods", "stfpm", "--backbone", "scattering"], "expected a network that can be trained"),
        (["--resume", "--overwrite"], "expected it or --overwrite, got both"),
    ],
)
def test_a_wrong_request_is_refused_before_any_cell(runner, root, tmp_path, capsys, arguments, expected):
    assert run(["benchmark", str(root), "--out", str(tmp_path / "out"), *arguments]) == 2
    assert expected in capsys.readouterr().err
    assert runner.commands == []
    assert not (tmp_path / "out").exists()


def test_two_folders_of_one_name_need_names(runner, root, tmp_path, capsys):
    other = tmp_path / "other/set"
    shutil.copytree(root / "a", other)
    assert run(["benchmark", str(root), str(other), "--out", str(tmp_path / "out")]) == 2
    assert "Say NAME=FOLDER" in capsys.readouterr().err
    assert run(["benchmark", str(root), f"second={other}", "--out", str(tmp_path / "out"), "--methods", "padim"]) == 0
    assert [(c["dataset"], c["category"]) for c in document(tmp_path / "out")["cells"]] == [
        ("set", "a"),
        ("set", "b"),
        ("second", "second"),
    ]


def test_what_lies_in_the_folder_of_a_cell_is_not_removed(runner, root, tmp_path, capsys):
    mine = tmp_path / "out/cells/set/a/padim-seed0/mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "out/benchmark.json").write_text("{}")
    for asked in ("--resume", "--overwrite"):
        assert run(["benchmark", str(root), "--out", str(tmp_path / "out"), asked]) == 2
        assert "got a folder with other files" in capsys.readouterr().err
    assert mine.read_text() == "mine"


def test_two_benchmarks_are_not_at_work_in_one_folder_nor_beside_a_cell_of_one_that_was_killed(
    runner, root, tmp_path, capsys
):
    out, arguments = tmp_path / "out", ["benchmark", str(root), "--out", str(tmp_path / "out"), "--methods", "padim"]
    with cells_module.alone_in(out) as lock:
        process = subprocess.Popen(["cat"], stdin=subprocess.PIPE, pass_fds=(lock,))
    (out / "benchmark.json").write_text("{}")
    # The benchmark has let go; what it had started has not.
    assert run([*arguments, "--resume"]) == 2
    assert "expected no other benchmark at work there" in capsys.readouterr().err
    assert runner.commands == []
    process.communicate()
    assert run([*arguments, "--resume"]) == 0


# ---- The tables ------------------------------------------------------------------------------------------------------


def result(category: str, value: float | None, half: float | None = 0.1, seed: int = 0, error: str | None = None):
    """Return the result of a cell whose interval is `half` to both sides."""
    intervals = {} if value is None or half is None else {"aupro": Interval(value - half, value + half, 0.95)}
    return CellResult(
        dataset="d",
        category=category,
        method="padim",
        seed=seed,
        command="c",
        figures={"aupro": value},
        intervals=intervals,
        error=error,
    )


def test_variances_of_independent_categories_add():
    mean = means_of([result("a", 0.5, 0.3), result("b", 0.75, 0.4)])[0]
    assert (mean.value, mean.categories, mean.missing, mean.seeds_sd) == (0.625, 2, 0, None)
    assert mean.interval is not None
    assert (mean.interval.low, mean.interval.high) == pytest.approx((0.625 - 0.25, 0.625 + 0.25))


def test_seeds_share_their_test_images_and_narrow_nothing():
    once = means_of([result("a", 0.5)])[0]
    twice = means_of([result("a", 0.5), result("a", 0.5, seed=1)])[0]
    assert once.interval == twice.interval
    assert twice.seeds_sd == 0.0


def test_seeds_that_some_categories_lack_have_no_deviation():
    assert means_of([result("a", 0.5), result("a", 0.6, seed=1), result("b", 0.5)])[0].seeds_sd is None


def test_a_mean_over_fewer_categories_says_so():
    results = (result("a", 0.5), result("b", None, error="out | of\nmemory"))
    whole = Benchmark(
        command="c", when="w", machine={"cpu": "x", "cores": 2}, cells=results, means=means_of(results), planned=3
    )
    page = to_markdown(whole)
    assert "| b | failed |" in page
    assert "| **mean** | **0.500** (0.400 to 0.600), without 1 |" in page
    assert "**Not finished**: 1 of 3 cells" in page
    assert "- b padim seed 0: out \\| of memory" in page


@given(values=st.lists(st.floats(0.3, 0.7), min_size=1, max_size=6), half=st.floats(0.0, 0.3))
def test_the_interval_of_a_mean_holds_it_and_is_no_wider_than_theirs(values, half):
    mean = means_of([result(str(i), value, half) for i, value in enumerate(values)])[0]
    assert mean.interval is not None
    assert mean.interval.low <= mean.value <= mean.interval.high
    assert mean.interval.high - mean.value <= half / math.sqrt(len(values)) + 1e-9


# ---- For real --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_cell_is_measured_by_the_command_that_it_names(tmp_path, capsys):
    root = write_tiny_dataset(tmp_path / "tiny")
    out = tmp_path / "out"
    assert run(["benchmark", str(root), "--out", str(out), "--methods", "padim", "--image-size", "64", "--keep"]) == 0
    cell = document(out)["cells"][0]
    kept = json.loads((out / f"cells/tiny/{CATEGORY}/padim-seed0/work/evaluation.json").read_text())
    assert cell["figures"]["image_auroc"] == kept["image_auroc"] > 0.5
    assert kept["command"].startswith(cell["command"])
    assert cell["peak_mb"] > 50
    assert cell["seconds"] > 0


@pytest.mark.slow
def test_a_signal_ends_the_process_of_the_cell_too(tmp_path):
    root = write_tiny_dataset(tmp_path / "tiny")
    command = [sys.executable, "-m", "flawscope", "benchmark", str(root), "--out", str(tmp_path / "out")]
    with (tmp_path / "stderr").open("w+") as told:
        process = subprocess.Popen(command, stderr=told)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    deadline = time.monotonic() + 60
    while not (pids := children.read_text().split()) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert (tmp_path / "stderr").read_text().startswith("[1/2]")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert pids
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("category", ["../../../evil", "..", "a/b", ""])
def test_a_category_of_a_table_leads_nowhere(tmp_path: Path, category: str, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    data.mkdir()
    rows = "".join(f"{name},train,normal,a.png,\n" for name in (category, "other"))
    (data / "visa.csv").write_text(f"object,split,label,image,mask\n{rows}")
    assert run(["benchmark", str(data), "--methods", "padim", "--out", str(tmp_path / "b" / "out")]) == 2
    assert f"category: expected a name that a folder can have, got {category!r}" in capsys.readouterr().err
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "visa.csv"]


@pytest.mark.parametrize("named", ["", "x=", "="])
def test_a_dataset_without_a_folder_is_not_the_working_folder(
    tmp_path: Path, named: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(write_tiny_dataset(tmp_path / "data"))
    assert run(["benchmark", named, "--out", str(tmp_path / "out")]) == 2
    assert f"DATASET: expected a folder, or NAME=FOLDER, got {named!r}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()

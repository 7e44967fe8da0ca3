"""The comparison of exported detectors in their runtimes: turns of processes, ratios and goals, a whole small run."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
from project_paths import ROOT

BENCHMARKS = ROOT / "benchmarks"
CONTESTANTS = """
import os, sys, time
sys.path.insert(0, {folder!r})
from rival_server import Contestant, main

class Sleeper(Contestant):
    facts = {{"rows": 7}}
    def __init__(self, request):
        if request.get("ends"):
            os._exit(3)
        if request.get("broken"):
            raise ValueError("no such network")
        self.calls = 0
    def decide(self, paths):
        print("a library prints")
        self.calls += 1
        time.sleep(0.002 * len(paths))
        return [float(len(path)) for path in paths], [[[len(path)]] for path in paths], 0.001

main(Sleeper)
"""


@pytest.fixture(scope="module", autouse=True)
def scripts() -> Iterator[None]:
    sys.path.insert(0, str(BENCHMARKS))  # as Python does for a script: they import each other
    yield
    sys.path.remove(str(BENCHMARKS))


@pytest.fixture(scope="module")
def tables(scripts: None) -> ModuleType:
    return importlib.import_module("edge_tables")


@pytest.fixture(scope="module")
def driver(scripts: None) -> ModuleType:
    return importlib.import_module("edge_rivals")


@pytest.fixture
def server(driver: ModuleType, tmp_path: Path) -> Iterator[Any]:
    script = tmp_path / "contestants.py"
    script.write_text(CONTESTANTS.format(folder=str(BENCHMARKS)), encoding="utf-8")
    running = driver.Server(sys.executable, str(script), tmp_path)
    yield running
    running.close()
    assert running.process.returncode == 0


def row(system: str, variant: str, ms: float, part: str = "whole_ms", **more: Any) -> dict[str, Any]:
    figures = {"p50": ms, "p99": ms, "turns": [ms, 2 * ms, ms]}
    return {
        **{"method": "patchcore", "backbone": "resnet18", "batch": 1, "system": system, "variant": variant},
        **{"model_ms": figures, part: figures, "images_per_second": 1e3 / ms, "calls": 3, **more},
    }


def test_a_turn_is_measured_in_the_other_process_whatever_its_libraries_print(server: Any) -> None:
    assert server.ask(do="open", name="one") == {"facts": {"rows": 7}}
    turn = server.ask(do="time", name="one", paths=["a", "b", "c"], batch=2, seconds=0, least=3)
    assert len(turn["whole"]) == len(turn["model"]) == 3
    assert min(turn["whole"]) >= 4.0  # two images a call, of 2 ms each
    assert turn["model"] == [1.0] * 3


def test_what_a_contestant_cannot_do_is_an_answer_and_the_process_goes_on(server: Any) -> None:
    assert server.ask(do="open", name="two", broken=True) == {"failed": "ValueError: no such network"}
    assert "KeyError" in server.ask(do="time", name="two", paths=["a"], batch=1, seconds=0, least=1)["failed"]
    assert "failed" not in server.ask(do="open", name="one")


def test_scores_and_maps_are_written_in_the_order_of_the_images(server: Any, tmp_path: Path) -> None:
    server.ask(do="open", name="one")
    out = tmp_path / "scores.npz"
    assert server.ask(do="score", name="one", paths=["aaa", "b"], out=str(out)) == {"images": 2}
    with np.load(out, allow_pickle=False) as arrays:
        assert arrays["score"].tolist() == [3.0, 1.0]
        assert arrays["anomaly_map"].tolist() == [[[3.0]], [[1.0]]]


def test_a_process_that_ended_is_a_failure_of_its_contestants_and_not_of_the_run(
    driver: ModuleType, tmp_path: Path
) -> None:
    script = tmp_path / "dies.py"
    script.write_text("import os, signal; input(); os.kill(os.getpid(), signal.SIGKILL)", encoding="utf-8")
    started = driver.Server(sys.executable, str(script), tmp_path)
    for _ in range(2):  # and so is every later request
        assert started.ask(do="open", name="one") == {"failed": "its process ended with status -9"}
    started.close()


def test_one_that_ends_the_process_when_it_is_opened_takes_no_other_out_of_the_run(server: Any) -> None:
    requests = [{"name": "one"}, {"name": "two", "broken": True}, {"name": "three", "ends": True}]
    requests += [{"name": "four"}, {"name": "five", "ends": True}]
    answers = server.open_all(requests)
    assert answers["one"] == answers["four"] == {"facts": {"rows": 7}}
    assert answers["two"] == {"failed": "ValueError: no such network"}
    assert answers["three"] == answers["five"] == {"failed": "its process ended with status 3"}
    for name in ("one", "four"):  # both in the process that goes on
        assert "whole" in server.ask(do="time", name=name, paths=["a"], batch=1, seconds=0, least=1)


def test_ratios_are_of_the_same_round_and_their_median_and_ends_are_kept(tables: ModuleType) -> None:
    theirs, ours = row("anomalib", "array default", 6.0), row("flawscope", "cpu fp32", 2.0)
    theirs["whole_ms"] = {"p50": 6.0, "turns": [6.0, 20.0, 7.0]}
    assert tables.ratios(theirs, ours, "whole_ms") == [3.0, 5.0, 3.5]
    assert tables.ratios(None, ours, "whole_ms") == []
    assert tables.ratios({"failed": "no"}, ours, "whole_ms") == []
    goal = tables.summarise([theirs, ours], [])[0]
    assert (goal["ratio"], goal["least"], goal["most"], goal["batch"]) == (3.5, 3.0, 5.0, 1)


def test_every_batch_has_its_goals(tables: ModuleType) -> None:
    eight = [
        {**row("anomalib", "batch default", 3.0), "batch": 8},
        {**row("flawscope", "cpu fp32", 2.0), "batch": 8},
    ]
    goals = tables.summarise([row("anomalib", "array default", 6.0), row("flawscope", "cpu fp32", 2.0), *eight], [])
    fp32 = {goal["batch"]: goal for goal in goals if goal["goal"].startswith("image to decision, fp32")}
    assert {batch: goal["ratio"] for batch, goal in fp32.items()} == {1: 3.0, 8: 1.5}


def test_differences_of_accuracy_are_to_the_better_default_of_the_rival(scripts: None, tables: ModuleType) -> None:
    paired = importlib.import_module("flawscope.calibration.evaluation.paired_differences")
    edge_accuracy = importlib.import_module("edge_accuracy")
    generator = np.random.default_rng(0)
    labels = np.arange(60) >= 30
    truth = paired.Truth(labels, np.zeros((60, 2, 2), np.bool_))
    noise = generator.standard_normal(60)
    scores = {
        ("anomalib", "file default"): 0.5 * labels + noise,
        ("anomalib", "array default"): 1.0 * labels + noise,
        ("anomalib", "array fp32"): 9.0 * labels + noise,  # better still, but nobody's default
        ("flawscope", "cpu fp32"): 5.0 * labels + noise,
        ("flawscope", "openvino int8"): 1.0 * labels + noise,
    }
    maps = np.zeros((60, 2, 2), np.float32)
    tallies = {name: paired.tally(maps, values, truth, {}) for name, values in scores.items()}
    rows = [
        {"method": "padim", "backbone": "b", "system": s, "variant": v} for s, v in [*scores, ("flawscope", "lost")]
    ]
    edge_accuracy.add_differences(rows, tallies, truth)
    better, same = rows[3], rows[4]
    assert better["against"] == same["against"] == "array default"
    assert 0 < better["difference"]["image_auroc"]["least"] < better["difference"]["image_auroc"]["ratio"]
    assert set(same["difference"]["image_auroc"].values()) == {0.0}  # the same scores: chance in the images cancels
    assert not any("difference" in each for each in (*rows[:3], rows[5]))
    assert [goal["holds"] for goal in tables.summarise([], rows)] == [True, True]
    alone = [{"system": "flawscope", "variant": "cpu fp32"}]
    edge_accuracy.add_differences(alone, {("flawscope", "cpu fp32"): tallies["flawscope", "cpu fp32"]}, truth)
    assert alone == [{"system": "flawscope", "variant": "cpu fp32"}]


def test_goals_are_against_the_faster_form_of_the_rival_and_losses_stay(tables: ModuleType) -> None:
    runs = [
        row("anomalib", "file default", 9.0),
        row("anomalib", "array default", 4.0),
        row("anomalib", "array fp32", 1.0),
        row("flawscope", "cpu fp32", 4.0),
        row("flawscope", "openvino int8", 1.0),
        row("flawscope backbone", "openvino int8", 0.5, "model_ms"),
        row("raw", "onnxruntime fp32", 1.0, "model_ms"),
        {**row("raw", "openvino int8", 1.0), "failed": "no such network"},
    ]
    worse = {"against": "array default", "difference": {"image_auroc": {"ratio": -0.05, "least": -0.09, "most": 0.01}}}
    goals = {(goal["goal"], goal["ours"]): goal for goal in tables.summarise(runs, [{**runs[4], **worse}])}
    default = "against anomalib's default"
    assert goals[f"image to decision, fp32, {default}", "cpu fp32"]["ratio"] == 1.0
    assert not goals[f"image to decision, fp32, {default}", "cpu fp32"]["holds"]
    assert goals[f"image to decision, best, {default}", "openvino int8"]["ratio"] == 4.0
    assert goals[f"image to decision, best, {default}", "openvino int8"]["holds"]
    assert not goals["backbone in int8, against ONNX Runtime", "openvino int8"]["holds"]
    assert goals["inference over its backbone", "openvino int8"]["ratio"] == 2.0
    assert not goals["inference over its backbone", "openvino int8"]["holds"]
    accuracy = goals["image AUROC less that of anomalib array default", "openvino int8"]
    assert (accuracy["ratio"], accuracy["least"], accuracy["most"], accuracy["holds"]) == (-0.05, -0.09, 0.01, False)
    # Nothing is said of what was not measured.
    assert not any("bare network" in name or "bf16" in name for name, _ in goals)


def test_tables_have_every_contestant_also_one_that_failed(tables: ModuleType) -> None:
    failed = {key: value for key, value in row("anomalib", "file default", 1.0).items() if "ms" not in key}
    runs = [row("flawscope", "cpu fp32", 2.5), {**failed, "failed": "a shape"}]
    starts = [{"system": "flawscope", "variant": "cpu fp32", "decided_s": 0.5, "uss_kib": 102400, "peak_kib": 204800}]
    text = tables.tables({"runs": runs, "accuracy": [], "starts": starts}, tables.summarise(runs, []))
    assert "| flawscope cpu fp32 | 2.5 | 2.5 | 2.5 | 2.5 | 400 | 3 |" in text
    assert "| anomalib file default | failed: a shape |" in text
    assert "| flawscope cpu fp32 |  | 0.5 | 100 | 200 |" in text


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--rivals", "anomalib,faiss,openvino"], "--rivals: expected openvino and others of"),
        (["--rivals", "anomavision"], "--rivals: expected openvino and others of"),
        (["--rivals", "openvino,anomavision"], "--rivals anomavision: expected --anomavision-python PATH with it"),
    ],
)
def test_rivals_that_cannot_be_compared_are_refused(
    driver: ModuleType, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str
) -> None:
    with pytest.raises(SystemExit):
        driver.parse_arguments([*arguments, "--data", "d", "--work", "w", "--out", "o"])
    assert says in capsys.readouterr().err


def test_a_run_with_other_settings_is_not_gone_on_with(driver: ModuleType, tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    arguments = ["--rivals", "openvino", "--data", "d", "--work", "w", "--out", str(out), "--resume"]
    options = driver.parse_arguments(arguments)
    kept = {"runs": [{"batch": 1}], "accuracy": [], "starts": [], "prepared": {}}
    out.write_text(json.dumps({"settings": driver.settings_of(options), **kept}), encoding="utf-8")
    assert driver.earlier(options) == kept
    with pytest.raises(SystemExit, match="expected the same settings to resume, got others"):
        driver.earlier(driver.parse_arguments([*arguments, "--rounds", "3"]))


def draw(path: Path, draw_from: np.random.Generator, *, has_scratch: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = draw_from.integers(90, 130, (72, 80, 3)).astype(np.uint8)
    if has_scratch:
        image[30:34, 10:60] = 255
    cv2.imwrite(str(path), image)


@pytest.mark.long  # imports torch and timm
def test_random_weights_reach_the_scores_through_every_layer(scripts: None, tmp_path: Path) -> None:
    timm, torch = pytest.importorskip("timm"), pytest.importorskip("torch")
    prepare = importlib.import_module("edge_prepare")
    draw_from, data = np.random.default_rng(0), tmp_path / "parts"
    for n in range(3):
        draw(data / "train" / "good" / f"{n}.png", draw_from)
    draw(data / "test" / "scratch" / "0.png", draw_from, has_scratch=True)
    options = argparse.Namespace(work=tmp_path, seed=0, size=64, data=data)
    state = prepare.safetensors.torch.load_file(prepare.random_weights(options, "resnet18"))
    network = timm.create_model("resnet18", pretrained=False, features_only=True, out_indices=(2, 3)).eval()
    network.load_state_dict(state, strict=False)
    image = (torch.tensor(np.stack([prepare.read_image(data / "train" / "good" / "0.png")])) / 255).movedim(-1, 1)
    with torch.inference_mode():
        before = network(image)[1]
        for name, values in network.named_parameters():
            # Layer 4 and what stands beside stages 2 and 3 is not in them.
            if "conv" in name:
                kept = values.clone()
                values.mul_(torch.rand_like(values))
                assert not torch.allclose(network(image)[1], before, rtol=1e-3), name
                values.copy_(kept)
    assert torch.equal(network(image)[1], before)
    # Statistics are those of the images, not the 0 and 1 of the start.
    moved = [value for name, value in state.items() if name.endswith("running_var")]
    assert len(moved) == 20
    assert all((value - 1).abs().median() > 0.1 for value in moved)
    assert all(torch.isfinite(value).all() for value in state.values())


@pytest.mark.slow
def test_a_small_run_measures_every_contestant_and_goes_on_where_it_was(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("timm")
    generator, data, out = np.random.default_rng(0), tmp_path / "parts", tmp_path / "out.json"
    for part, count in (("train/good", 24), ("test/good", 4), ("test/scratch", 4)):
        for n in range(count):
            draw(data / part / f"{n}.png", generator, has_scratch="scratch" in part)
    command = [sys.executable, str(BENCHMARKS / "end_to_end.py"), "--rivals", "openvino", "--quick", "--resume"]
    command += ["--data", str(data), "--work", str(tmp_path / "work"), "--out", str(out), "--without", "int8", "bf16"]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    document = json.loads(out.read_text(encoding="utf-8"))
    assert document["suite"] == "edge_rivals"
    assert str(tmp_path) not in out.read_text(encoding="utf-8")
    assert [run for run in document["runs"] if "failed" in run] == []
    assert {(run["method"], run["batch"]) for run in document["runs"]} == {
        (method, batch) for method in ("patchcore", "padim") for batch in (1, 2)
    }
    assert {f"{run['system']} {run['variant']}" for run in document["runs"]} == {
        *("flawscope cpu fp32", "flawscope openvino fp32", "flawscope backbone cpu fp32"),
        *("flawscope backbone openvino fp32", "raw onnxruntime fp32", "raw openvino fp32", "raw openvino default"),
        "raw openvino fp32, our graph",
    }
    for run in document["runs"]:
        assert run["model_ms"]["p99"] >= run["model_ms"]["p50"] > 0
        assert run.get("whole_ms", run["model_ms"])["p50"] >= run["model_ms"]["p50"]
    assert {goal["goal"] for goal in document["goals"]} == {
        "backbone over the bare network",
        "backbone over the same graph in bare OpenVINO",
        "inference over its backbone",
    }
    assert "Cold start" in process.stdout
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert json.loads(out.read_text(encoding="utf-8"))["runs"] == document["runs"]

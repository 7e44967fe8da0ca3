"""The runner of `tools/gpu_check.py`: how stages end, what is kept and resumed, order and time, JSON and table."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
import venv
import zipfile
from pathlib import Path
from typing import Any

import gpu_check
import pytest
from gpu_stages import document, runner
from gpu_stages.document import Refused
from gpu_stages.here import missing
from gpu_stages.runner import Plan
from gpu_stages.table import STAGES, Stage
from project_paths import ROOT
from toy_stages import toy

HELPERS = ROOT / "tests" / "helpers"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to build in; processes of stages find the toy stages."""
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def run(work: Path, *stages: Stage, record: dict[str, Any] | None = None, lacks: Any = None, **plan: Any) -> Any:
    """Run stages; return the record as the file has it, read back after every one."""
    out = work / "out.json"
    record = {"stages": {}} if record is None else record
    states: list[str] = []

    def say(line: str) -> None:
        if out.exists():
            states.append(json.dumps(json.loads(out.read_text())))

    runner.run(Plan(stages, **plan), record, out, work, lacks or {"driver": None}, say)
    assert list(work.glob(".out.json*")) == []
    return json.loads(out.read_text()) if out.exists() else record


# --- how a stage ends


@pytest.mark.parametrize(
    ("name", "state", "reason"),
    [
        ("passes", "passed", None),
        ("fails", "failed", "1 of 2 checks"),
        ("raises", "failed", "RuntimeError: something unforeseen"),
        ("leaves_early", "failed", "it said nothing"),
        ("crashes", "crashed", "ended by signal SIGSEGV"),
        ("is_absent", "absent", "no such tool here"),
        ("fails_and_lacks", "failed", "1 of 1 checks"),
    ],
)
def test_a_stage_ends(work: Path, name: str, state: str, reason: str | None) -> None:
    entry = run(work, toy(name))["stages"][name]
    assert (entry["state"], entry.get("reason")) == (state, reason)
    assert entry["on"] == "gpu"
    assert 0 < entry["seconds"] < 30
    if name == "passes":
        assert entry["figures"] == {"answer": 42, "rate": "nan"}
        assert (entry["checks"], entry["summary"]) == (1, "all well")
    if name == "fails":
        assert entry["failures"] == ["what does not hold"]
    if name == "crashes":
        assert entry["figures"] == {"before": "the crash"}
    assert ("output" in entry) == (state not in ("passed", "absent"))


def test_a_stage_that_takes_too_long_is_stopped_with_all_that_it_started(work: Path) -> None:
    entry = run(work, toy("hangs", limit_s=4))["stages"]["hangs"]
    assert (entry["state"], entry["reason"]) == ("out of time", "stopped after 4 s")
    assert entry["figures"] == {"before": "the end"}
    child = int((work / "child.pid").read_text())
    for _ in range(100):
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, 0)
            # One that is dead stays until its parent has asked for it.
            if Path(f"/proc/{child}/stat").read_text().split()[2] != "Z":
                time.sleep(0.05)
                continue
        return
    pytest.fail("a process that the stage started is still there")


def test_the_next_stage_goes_on_after_any_other(work: Path) -> None:
    record = run(work, toy("crashes"), toy("raises"), toy("passes"))
    assert [entry["state"] for entry in record["stages"].values()] == ["crashed", "failed", "passed"]


# --- what is run, and where


def test_without_a_driver_twins_run_and_what_has_none_is_absent(work: Path) -> None:
    lacks = {"driver": "no NVIDIA driver", "nvcc": "no nvcc"}
    record = run(work, toy("passes", needs=("driver", "nvcc")), toy("fails", twin=False), lacks=lacks)
    assert record["stages"]["passes"]["on"] == "cpu twin"
    assert record["stages"]["fails"] == {"state": "absent", "reason": "no NVIDIA driver"}


def test_what_a_stage_needs_and_is_not_here_is_the_reason(work: Path) -> None:
    lacks = {"driver": None, "ncu": "no ncu on the PATH", "torch": None}
    record = run(work, toy("passes", needs=("driver", "torch", "ncu")), lacks=lacks)
    assert record["stages"]["passes"] == {"state": "absent", "reason": "no ncu on the PATH"}


def test_a_twin_needs_what_a_cpu_can_have(work: Path) -> None:
    lacks = {"driver": "no NVIDIA driver", "nvcc": "no nvcc", "numpy": "no numpy in this Python"}
    record = run(work, toy("passes", needs=("driver", "nvcc")), toy("fails", needs=("driver", "numpy")), lacks=lacks)
    assert record["stages"]["passes"]["state"] == "passed"
    assert record["stages"]["fails"] == {"state": "absent", "reason": "no numpy in this Python"}


@pytest.mark.long
def test_a_python_with_nothing_but_its_own_library_runs_the_tool(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    venv.create(bare, with_pip=False, symlinks=True)
    out = tmp_path / "out.json"
    command = [bare / "bin" / "python", "tools/gpu_check.py", "--twins", "--out", out, "--work", tmp_path / "work"]
    command += ["--stage", "facts", "--stage", "correctness", "--stage", "ncu", "--stage", "checks"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    reasons = {name: entry["reason"] for name, entry in json.loads(out.read_text())["stages"].items()}
    assert reasons.pop("ncu") != ""
    assert reasons == {
        **dict.fromkeys(("facts", "correctness"), "no numpy in this Python"),
        "checks": "the stage build has left no programs of checks here",
    }


def test_a_run_out_of_minutes_leaves_out_the_last_stages(work: Path) -> None:
    started = time.monotonic()
    record = run(work, toy("hangs", limit_s=600), toy("fails", least_s=5), minutes=0.06)
    assert time.monotonic() - started < 30
    states = {name: entry["state"] for name, entry in record["stages"].items()}
    assert states == {"hangs": "out of time", "fails": "left out"}
    assert record["stages"]["fails"]["reason"] == "no time left of 0.06 minutes"
    assert record["stages"]["hangs"]["limit_s"] <= 3.6


def test_what_is_finished_is_not_run_again_unless_it_is_named(work: Path) -> None:
    kept = {name: {"state": state} for name, state in (("fails", "passed"), ("raises", "failed"))}
    again = {name: {"state": state} for name, state in (("crashes", "absent"), ("passes", "out of time"))}
    stages = [toy(name) for name in (*kept, *again)]
    record = run(work, *stages, record={"stages": {**kept, **again}})
    states = {name: entry["state"] for name, entry in record["stages"].items()}
    assert states == {"fails": "passed", "raises": "failed", "crashes": "crashed", "passes": "passed"}
    record = run(work, toy("fails"), record={"stages": dict(kept)}, named=True)
    assert record["stages"]["fails"]["state"] == "failed"


def test_the_file_is_whole_whenever_it_is_read(work: Path) -> None:
    seen: list[int] = []
    out = work / "out.json"

    def say(line: str) -> None:
        if out.exists():
            seen.append(len(json.loads(out.read_text())["stages"]))

    runner.run(Plan([toy("passes"), toy("raises")]), {"stages": {}}, out, work, {"driver": None}, say)
    assert seen == [1, 1]  # before the second stage and after it, each before its own entry is written
    assert len(json.loads(out.read_text())["stages"]) == 2


# --- the command line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "--out: expected a JSON file"),
        (["--out", "x.json", "--minutes", "0"], "--minutes: expected more than 0"),
        (["--out", "x.json", "--stage", "nothing"], "invalid choice: 'nothing'"),
        (["--out", "x.json", "--wheels", "/not/there"], "--wheels: expected something that is there"),
    ],
)
def test_a_wrong_request_is_refused(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        gpu_check.main(arguments)
    assert caught.value.code == 2
    assert said in capsys.readouterr().err


def test_the_stages_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu_check.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [stage.name for stage in STAGES]


def test_every_stage_names_functions_that_are_there_and_needs_that_can_be_asked_for() -> None:
    known = missing().keys()
    for stage in STAGES:
        assert set(stage.needs) <= known, stage.name
        for place in filter(None, (stage.place, stage.twin)):
            module, _, function = place.partition(":")
            path = ROOT / "tools" / (module.replace(".", "/") + ".py")
            assert f"def {function}(report: Report)" in path.read_text(), place
    assert STAGES[0].name == "facts"
    assert sum(stage.twin_limit_s for stage in STAGES if stage.twin) <= 600


def run_tool(tmp_path: Path, *arguments: str, monkeypatch: pytest.MonkeyPatch, stages: Any) -> int:
    monkeypatch.setattr(gpu_check, "STAGES", stages)
    monkeypatch.setattr(gpu_check, "ask_here", lambda *_: {"missing": {"driver": None}, "gpu": "a card"})
    monkeypatch.setenv("PYTHONPATH", str(HELPERS))
    return gpu_check.main(["--out", str(tmp_path / "out.json"), "--work", str(tmp_path / "work"), *arguments])


def test_the_exit_status_is_that_of_the_stages_and_nothing_is_overwritten_unasked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def tool(*arguments: str, stages: Any) -> int:
        return run_tool(tmp_path, *arguments, monkeypatch=monkeypatch, stages=stages)

    assert tool(stages=[toy("passes"), toy("is_absent")]) == 0
    first = json.loads((tmp_path / "out.json").read_text())
    assert first["machine"]["gpu"] == "a card"
    assert first["suite"] == "gpu_check"
    assert tool(stages=[toy("passes")]) == 2
    assert "expected a new file, got one that is there. --resume goes on with it." in capsys.readouterr().err
    assert tool("--resume", stages=[toy("passes"), toy("fails")]) == 1
    record = json.loads((tmp_path / "out.json").read_text())
    assert record["stages"]["passes"] == first["stages"]["passes"]
    assert record["stages"]["fails"]["state"] == "failed"


def test_a_run_of_another_machine_or_of_other_sources_is_not_gone_on_with(tmp_path: Path) -> None:
    out, head = tmp_path / "out.json", {"sources": "a", "machine": {"gpu": "one"}}
    document.write(out, {**head, "stages": {"facts": {"state": "passed"}}})
    assert document.begin(out, head, resume=True)["stages"] == {"facts": {"state": "passed"}}
    for other, name in (({**head, "sources": "b"}, "sources"), ({**head, "machine": {}}, "machine")):
        with pytest.raises(Refused, match=f"expected a run of the same {name} to go on with, got another"):
            document.begin(out, other, resume=True)
    out.write_text("{")
    with pytest.raises(Refused, match="got one that cannot be read"):
        document.begin(out, head, resume=True)


def test_wheels_are_unpacked_without_pip_and_what_is_none_is_refused(tmp_path: Path) -> None:
    wheels, site = tmp_path / "wheels", tmp_path / "site"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / "thing-1.0-py3-none-any.whl", "w") as archive:
        archive.writestr("thing.py", "answer = 42\n")
    assert gpu_check.unpack(wheels, site) == ["thing-1.0-py3-none-any.whl"]
    assert (site / "thing.py").read_text() == "answer = 42\n"
    (wheels / "broken-1.0-py3-none-any.whl").write_text("none")
    with pytest.raises(Refused, match="expected a wheel, got a file that is none"):
        gpu_check.unpack(wheels, site)


def test_the_table_says_what_failed_and_counts(work: Path) -> None:
    record = run(work, toy("passes"), toy("fails"), toy("is_absent"))
    lines = document.table(record).splitlines()
    assert lines[0].split() == ["stage", "state", "on", "seconds", "what"]
    assert lines[1].startswith("passes       passed       gpu")
    assert lines[1].endswith("all well")
    assert lines[3].strip() == "what does not hold"
    assert lines[-1] == "3 stages: 1 passed, 1 failed, 1 absent"


def test_a_driver_that_ends_the_process_that_asks_it_counts_as_none(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "run_process", lambda *_: runner.Ended(-11, "", 0.1))
    assert runner.ask_here(work, None)["missing"]["driver"] == "asking it ended the process with status -11"


def test_make_runs_the_tool() -> None:
    assert "tools/gpu_check.py" in (ROOT / "Makefile").read_text()

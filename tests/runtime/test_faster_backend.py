"""`auto` on a CPU: which backend a measurement finds faster, how that is kept, and that it is said."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest
import rival_stand_in
import safetensors.numpy
from rival_stand_in import STEADY, measured_as
from tiny_bundle import SIDE, golden_image, tiny_sources, tiny_thresholds, write_tiny_bundle
from tiny_ensemble import member_of, write_member, write_tiny_ensemble

from flawscope import cli
from flawscope.bundle import Threshold, Thresholds, open_bundle
from flawscope.errors import BackendError, BundleError
from flawscope.runtime import Inspector, Router, faster_backend
from flawscope.runtime.backends import kept_times, ort
from flawscope.runtime.backends.kept_times import times_key

RIVALS = ("cpu", "openvino")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the times, not yet made; and no CUDA."""
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: ["CPUExecutionProvider"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "flawscope" / "auto"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    write_tiny_bundle(tmp_path / "tiny.flaw")
    return tmp_path / "tiny.flaw"


def never_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any) -> Any:
        raise AssertionError("it was measured")

    monkeypatch.setattr(faster_backend, "in_turns", fail)


def taken(bundle: Path | str) -> tuple[str, str]:
    """Load a bundle and inspect its golden image; return the backend and why."""
    with Inspector.load(bundle) as inspector:
        assert inspector(golden_image()).score == pytest.approx(200.0)
        return inspector.backend, inspector.backend_reason


def made_at(file: Path, apart: timedelta) -> None:
    """Let a file of times say that they were measured that long after now."""
    when = (datetime.now(timezone.utc) + apart).isoformat()
    file.write_bytes(msgspec.json.encode(json.loads(file.read_bytes()) | {"measured": when}))


@pytest.mark.parametrize(("rival", "expected"), [(10.0, "openvino"), (19.0, "cpu"), (40.0, "cpu")])
def test_the_faster_one_is_taken_kept_and_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, rival: float, expected: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    asked: list[list[str]] = []
    measured_as(monkeypatch, {"cpu": [20.0], "openvino": [rival]}, asked)
    backend, reason = taken(bundle)
    assert backend == expected
    assert f"auto: openvino takes {rival / 20:.2f} of the time of cpu ({rival:.3g} and 20 ms, below 0.90" in reason
    (file,) = cache.iterdir()
    assert "; measured 20" in reason
    assert reason.endswith(f", kept in {file}")
    assert file.stat().st_mode & 0o777 == 0o600
    assert json.loads(file.read_bytes())["milliseconds"] == {"cpu": 20.0, "openvino": rival}
    assert taken(bundle) == (backend, reason)
    assert asked == [["cpu", "openvino"]]
    # The loser of the measurement is closed, and so is what was inspected with.
    assert [session.is_closed for session in rival_stand_in.opened] == [True] * (2 if expected == "openvino" else 1)


def test_a_real_measurement_takes_one_of_both(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    backend, reason = taken(bundle)
    assert backend in RIVALS
    assert "of the time of cpu" in reason


def test_a_calibrated_bundle_stays_and_is_not_measured(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    never_measured(monkeypatch)
    for backend in RIVALS:
        threshold = Threshold(150.0, "order-statistic", backend=backend)
        write_tiny_bundle(bundle, thresholds=Thresholds(threshold, threshold))
        assert taken(bundle)[0] == backend
    assert taken(bundle)[1] == "auto: thresholds were set on openvino"


def test_new_thresholds_and_another_name_are_no_reason_to_measure_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    first = write_tiny_bundle(bundle)
    key = times_key(first, "fp32", "auto", RIVALS)
    for alike in (write_tiny_bundle(bundle, thresholds=tiny_thresholds()), write_tiny_bundle(bundle, name="b")):
        assert times_key(alike, "fp32", "auto", RIVALS) == key
    others = [
        times_key(first, "fp32", "graph", RIVALS),
        times_key(first, "fp32", "auto", ("openvino", "cpu")),
        times_key(write_tiny_bundle(bundle, {"bank.safetensors": tiny_sources()["bank.safetensors"] + b" "}),
                  "fp32", "auto", RIVALS),
    ]  # fmt: skip
    monkeypatch.setattr(kept_times, "cpu_name", lambda: "another processor")
    others.append(times_key(first, "fp32", "auto", RIVALS))
    monkeypatch.undo()
    monkeypatch.setattr(kept_times, "version", lambda package: "0.0.0")
    others.append(times_key(first, "fp32", "auto", RIVALS))
    monkeypatch.undo()
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX2")
    others.append(times_key(first, "fp32", "auto", RIVALS))
    assert len({other.digest() for other in (key, *others)}) == 7


BROKEN = {
    "no JSON": lambda data: b"{",
    "cut off": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: b"\xff" + data,
    "empty": lambda data: b"",
    "too long": lambda data: b" " * (1 << 16) + data,
    "another schema": lambda data: data.replace(b'"schema": 1', b'"schema": 2'),
    "an unknown field": lambda data: data.replace(b'"schema": 1', b'"schema": 1, "more": 2'),
    "another machine": lambda data: data.replace(b'"cores": ', b'"cores": 1'),
    "no date": lambda data: re.sub(rb'"measured": "[^"]*"', b'"measured": "once"', data),
    "a date of no time zone": lambda data: re.sub(rb'("measured": "[^"]*)Z"', rb'\1"', data),
    "a time of zero": lambda data: data.replace(b'"cpu": 20.0', b'"cpu": 0.0'),
    "no time of the first": lambda data: data.replace(b'"cpu": 20.0,', b"").replace(b"{}", b'{"cpu": "gone"}', 1),
    "one backend too few": lambda data: data.replace(b',\n  "openvino": 10.0', b""),
    "one that nobody asked for": lambda data: data.replace(b'"openvino": 10.0', b'"openvino": 10.0, "cuda": 1.0'),
}


@pytest.mark.parametrize("damage", BROKEN)
def test_what_is_broken_or_of_something_else_is_measured_anew(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, damage: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"
    (file,) = cache.iterdir()
    whole = file.read_bytes()
    settings = b'"settings": {}'
    broken = BROKEN[damage](whole.replace(settings, b'"settings": { }'))
    assert broken != whole
    file.write_bytes(broken)
    measured_as(monkeypatch, {"cpu": [7.0], "openvino": [8.0]})
    assert taken(bundle)[0] == "cpu"
    assert [path.name for path in cache.iterdir()] == [file.name]
    assert json.loads(file.read_bytes())["milliseconds"] == {"cpu": 7.0, "openvino": 8.0}


@pytest.mark.parametrize("what", ["folder", "file", "link", "pipe", "folder in its place"])
def test_what_somebody_else_could_have_written_is_neither_used_nor_replaced(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, tmp_path: Path, what: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    taken(bundle)
    (file,) = cache.iterdir()
    kept = file.read_bytes()
    if what == "link":
        file.rename(tmp_path / "elsewhere")
        file.symlink_to(tmp_path / "elsewhere")
    elif what == "pipe":
        file.unlink()
        os.mkfifo(file)
    elif what == "folder in its place":
        file.unlink()
        file.mkdir()
    else:
        (cache if what == "folder" else file).chmod(0o777)
    asked: list[list[str]] = []
    measured_as(monkeypatch, {"cpu": [7.0], "openvino": [8.0]}, asked)
    for _ in range(2):
        backend, reason = taken(bundle)
        assert backend == "cpu"
        assert f", not kept: {cache}" in reason
        assert "expected a" in reason
    assert len(asked) == 2
    if file.is_file():
        assert file.read_bytes() == kept
    assert [path.name for path in cache.iterdir()] == [file.name]


def test_where_nothing_can_be_written_it_is_measured_each_time_and_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    asked: list[list[str]] = []
    measured_as(monkeypatch, STEADY, asked)
    (tmp_path / "cache").write_bytes(b"a file in place of the folder")
    for _ in range(2):
        backend, reason = taken(bundle)
        assert backend == "openvino"
        assert ", not kept: " in reason
    assert len(asked) == 2


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_folder_measures_each_time(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    backend, reason = taken(bundle)
    assert backend == "openvino"
    assert reason.endswith(", not kept: the user has no home folder, and XDG_CACHE_HOME names none")


def test_a_measurement_of_a_busy_machine_is_not_kept(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch, {"cpu": [5.0, 20.0, 20.0], "openvino": [10.0, 10.0, 10.0]})
    backend, reason = taken(bundle)
    assert backend == "openvino"
    assert reason.endswith(", not kept: the machine was busy")
    assert list(cache.iterdir()) == []


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o077])
def test_what_is_kept_is_believed_whatever_the_umask(bundle: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    asked: list[list[str]] = []
    measured_as(monkeypatch, STEADY, asked)
    before = os.umask(umask)
    try:
        assert taken(bundle) == taken(bundle)
    finally:
        os.umask(before)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"refusal": "backend openvino: no such operator."},
            "openvino is left out: backend openvino: no such operator;",
        ),
        ({"factor": 1.01}, "expected score 200 as at export, got 202 on openvino."),
        ({"failing_after": 1}, "openvino is left out: backend openvino: the device failed: it is gone;"),
    ],
)
def test_one_that_cannot_run_the_bundle_is_left_out_and_tried_again_after_a_day(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, changes: dict[str, Any], said: str
) -> None:
    rival_stand_in.put_in_place(monkeypatch, **changes)
    backend, reason = taken(bundle)
    assert backend == "cpu"
    assert said in reason
    (file,) = cache.iterdir()
    assert reason.endswith(f", kept for a day in {file}")
    opened = len(rival_stand_in.opened)
    assert taken(bundle) == (backend, reason)
    assert len(rival_stand_in.opened) == opened
    assert all(session.is_closed for session in rival_stand_in.opened)
    rival_stand_in.put_in_place(monkeypatch)  # it works again
    measured_as(monkeypatch)
    made_at(file, -timedelta(hours=23))
    assert taken(bundle)[0] == "cpu"
    made_at(file, -timedelta(hours=25))
    assert taken(bundle)[0] == "openvino"


@pytest.mark.parametrize("apart", [timedelta(days=-1000), timedelta(days=1000)])
def test_times_of_all_backends_hold_whatever_the_clock_says(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, apart: timedelta
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"
    (file,) = cache.iterdir()
    made_at(file, apart)
    never_measured(monkeypatch)
    assert taken(bundle)[0] == "openvino"


def test_one_that_was_left_out_in_the_future_is_tried_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    rival_stand_in.put_in_place(monkeypatch, failing_after=1)
    assert taken(bundle)[0] == "cpu"
    (file,) = cache.iterdir()
    made_at(file, timedelta(days=1000))  # the clock was wrong, and has been set since
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"


def test_one_that_is_not_there_is_looked_for_again(bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    rival_stand_in.put_in_place(monkeypatch, problem="it lists no CPU.")
    backend, reason = taken(bundle)
    assert backend == "cpu"
    assert "openvino is left out: it lists no CPU; no thresholds are set; measured " in reason
    assert reason.endswith(", not kept: openvino may be there by the next load")
    assert list(cache.iterdir()) == []
    monkeypatch.setattr(rival_stand_in, "problem", None)  # repaired, with the same version
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"


def test_the_first_must_give_the_golden_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    rival_stand_in.put_in_place(monkeypatch, factor=1.25)
    manifest = write_tiny_bundle(tmp_path / "tiny.flaw")
    golden = tuple(msgspec.structs.replace(entry, score=250.0, map_max=250.0) for entry in manifest.golden)
    write_tiny_bundle(tmp_path / "tiny.flaw", golden=golden)  # as if the rival had made them
    with pytest.raises(BundleError, match=r"expected score 250 as at export, got 200 on cpu"):
        Inspector.load(tmp_path / "tiny.flaw")
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_kept_rival_that_computes_something_else_by_now_is_refused(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"
    monkeypatch.setattr(rival_stand_in, "factor", 1.01)
    with pytest.raises(BundleError, match=r"expected score 200 as at export, got 202 on openvino"):
        Inspector.load(bundle)


def test_a_kept_rival_that_does_not_start_is_replaced_by_the_cpu_and_said(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert taken(bundle)[0] == "openvino"
    monkeypatch.setattr(rival_stand_in, "refusal", "backend openvino: no memory.")
    assert taken(bundle) == ("cpu", "auto: backend openvino: no memory.")
    with pytest.raises(BackendError, match="no memory"):
        Inspector.load(bundle, "openvino")


def test_of_several_at_once_one_measures_and_the_others_take_what_it_found(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    asked: list[list[str]] = []
    together = threading.Barrier(4)
    measured_as(monkeypatch, STEADY, asked)
    found: list[tuple[str, str]] = []

    def load() -> None:
        together.wait()
        found.append(taken(bundle))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    assert len(found) == 4
    assert len(set(found)) == 1
    assert len(list(cache.iterdir())) == 1


@pytest.mark.long
def test_processes_at_once_agree(bundle: Path, cache: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    code = """
import sys
from flawscope.runtime import Inspector, faster_backend
faster_backend.is_steady = lambda times: True  # the test's own processes make the machine busy
with Inspector.load(sys.argv[1]) as inspector:
    print(inspector.backend, inspector.backend_reason)
"""
    environment = {**os.environ, "FLAWSCOPE_AUTO": "cpu,openvino"}
    command = [sys.executable, "-c", code, str(bundle)]
    running = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    printed = {process.communicate(timeout=120)[0] for process in running}
    assert [process.returncode for process in running] == [0, 0, 0]
    assert len(printed) == 1
    assert "of the time of cpu" in printed.pop()
    assert len(list(cache.iterdir())) == 1


@pytest.mark.long
def test_where_the_cpu_is_kept_openvino_is_not_imported(bundle: Path, tmp_path: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    code = """
import sys
from flawscope.runtime import Inspector, faster_backend
faster_backend.in_turns = lambda runs: {"cpu": [1.0], "openvino": [2.0]}
with Inspector.load(sys.argv[1]) as inspector:
    assert inspector.backend == "cpu", inspector.backend_reason
print("openvino" in sys.modules)
"""
    calibrated = tmp_path / "calibrated.flaw"
    write_tiny_bundle(calibrated, thresholds=tiny_thresholds())
    environment = {**os.environ, "FLAWSCOPE_AUTO": "cpu,openvino"}
    printed = [
        subprocess.run(
            [sys.executable, "-c", code, str(path)], env=environment, check=True, timeout=120, capture_output=True
        ).stdout.split()
        for path in (bundle, bundle, calibrated)
    ]
    assert printed == [[b"True"], [b"False"], [b"False"]]


def test_members_of_an_ensemble_are_measured_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    asked: list[list[str]] = []
    measured_as(monkeypatch, STEADY, asked)
    members = {}
    for name, factor in (("a", 1.0), ("b", 2.0)):
        write_member(tmp_path / f"{name}.flaw", factor)
        members[tmp_path / f"{name}.flaw"] = member_of(tmp_path / f"{name}.flaw", 1.0, 0.0, 1.0)
    with Inspector.load(tmp_path / "a.flaw", "cpu") as alone:
        score = alone(golden_image()).score
    assert score is not None
    write_tiny_ensemble(tmp_path / "both.flaw", members, golden=3 * score)
    with Inspector.load(tmp_path / "both.flaw") as inspector:
        assert inspector.backend == "openvino"
        assert inspector(golden_image()).score == pytest.approx(3 * score)
    assert asked == [["cpu", "openvino"]]
    assert len(rival_stand_in.opened) == 2


def test_bundles_of_a_router_choose_each_for_itself(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    write_tiny_bundle(tmp_path / "calibrated.flaw", thresholds=tiny_thresholds())
    with Router({"a": bundle, "b": bundle, "c": tmp_path / "calibrated.flaw"}) as router:
        assert [router.inspector(name).backend for name in "abc"] == ["openvino", "openvino", "cpu"]
        shared = [(use.backend, use.bundles) for use in router.sharing]
        assert sorted(shared) == [("cpu", ("c",)), ("openvino", ("a", "b"))]
    assert all(session.is_closed for session in rival_stand_in.opened)


def test_commands_say_it(bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    assert cli.run(["score", str(bundle), str(bundle / "golden" / "0.png")]) == 1  # no thresholds yet
    assert "backend openvino (auto: openvino takes 0.50 of the time of cpu (10 and 20 ms, " in capsys.readouterr().err
    # Also where stdout is for a program: what runs may be another backend tomorrow.
    assert cli.run(["score", str(bundle), str(bundle / "golden" / "0.png"), "--json"]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("backend openvino (auto: ")
    assert json.loads(shown.out)["score"] == 200.0


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """Runs `doctor BUNDLE --json` and returns what it says of the bundle."""
    # Nodes are those of OpenVINO itself, which the stand-in has none of.
    monkeypatch.setattr("flawscope.runtime.doctor.openvino_profile.executed_nodes", lambda *part: [])

    def run(bundle: Path, *options: str) -> dict[str, Any]:
        assert cli.run(["doctor", str(bundle), "--json", *options]) in (0, 1)
        said: dict[str, Any] = json.loads(capsys.readouterr().out)["bundle"]
        return said

    return run


def test_doctor_says_what_may_be_taken_and_measures_again(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, report: Callable[..., dict[str, Any]]
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    said = report(bundle)
    assert said["backend"] == "openvino"
    assert said["auto"] == {"names": None, "why": "no thresholds are set"}
    never_measured(monkeypatch)
    assert report(bundle)["backend"] == "openvino"
    measured_as(monkeypatch, {"cpu": [1.0], "openvino": [2.0]})
    assert report(bundle, "--measure")["backend"] == "cpu"
    never_measured(monkeypatch)
    assert report(bundle)["backend"] == "cpu"


@pytest.mark.parametrize("is_believed", [True, False])
def test_doctor_forgets_times_with_any_number_of_threads_of_this_model_and_precision_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, report: Callable[..., dict[str, Any]], is_believed: bool
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    measured_as(monkeypatch)
    other = bundle.with_name("other.flaw")
    tensors = safetensors.numpy.load(tiny_sources()["bank.safetensors"])
    write_tiny_bundle(other, {"bank.safetensors": safetensors.numpy.save(tensors, {"another": "file"})})
    taken(other)
    (of_other,) = cache.iterdir()
    for path in ("auto", "graph"):
        for threads in (None, 1):
            Inspector.load(bundle, path=path, threads=threads).close()
    kept = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert len(kept) == 5
    (cache / "no times.json").write_bytes(b"{")
    cache.chmod(0o700 if is_believed else 0o777)
    measured_as(monkeypatch, {"cpu": [1.0], "openvino": [2.0]})
    assert report(bundle, "--measure")["backend"] == "cpu"
    left = {file.name: file.read_bytes() for file in cache.iterdir()}
    assert left.pop("no times.json") == b"{"
    assert left.pop(of_other.name) == kept[of_other.name]
    # Either what was measured again, with the path `auto`, or the two with threads, which nobody reads.
    assert len(left) == (1 if is_believed else 2)
    assert all(kept[name] == data for name, data in left.items()) == (not is_believed)


def test_doctor_shows_why_a_calibrated_bundle_stays(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    write_tiny_bundle(bundle, thresholds=tiny_thresholds())
    cli.run(["doctor", str(bundle)])
    assert "auto      may take cpu: thresholds name no backend, which stands for cpu" in capsys.readouterr().out
    assert cli.run(["doctor", str(bundle), "--measure"]) == 2
    error = capsys.readouterr().err
    assert "error: --measure: expected several backends that auto may take, got cpu alone: FLAWSCOPE_AUTO" in error
    assert cli.run(["doctor", str(bundle), "--measure", "--backend", "cpu"]) == 2
    assert "--measure is for --backend auto" in capsys.readouterr().err
    assert cli.run(["doctor", "--measure"]) == 2
    assert "are for a BUNDLE" in capsys.readouterr().err


def test_the_golden_image_of_a_bundle_is_what_is_timed(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rival_stand_in.put_in_place(monkeypatch)
    seen: list[tuple[int, ...]] = []
    real = rival_stand_in.RivalSession.infer

    def infer(session: Any, images: Any) -> Any:
        seen.append(images.shape)
        assert (images[0] == golden_image()).all()
        return real(session, images)

    monkeypatch.setattr(rival_stand_in.RivalSession, "infer", infer)
    with open_bundle(bundle) as opened, Inspector(opened):
        assert len(seen) > 10
        assert set(seen) == {(1, SIDE, SIDE, 3)}

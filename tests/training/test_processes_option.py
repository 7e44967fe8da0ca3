"""`train --processes` and torchrun: what is refused before anything starts."""

from __future__ import annotations

from pathlib import Path

import pytest

from flawscope import cli

PLACE = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert cli.run([str(argument) for argument in arguments]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.count("\n") == 1
    return told.err


def test_a_batch_that_does_not_divide_is_refused_before_the_start(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("train", "stfpm", "--data", tmp_path, "--out", tmp_path / "run", "--processes", 3, "--set", "batch_size=8")
    assert "expected a multiple of 3" in refused(capsys, *asked)


def test_another_number_than_was_started_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    asked = ("train", "stfpm", "--data", tmp_path, "--out", tmp_path / "run", "--processes", 4)
    assert "--processes: expected 2, as were started, got 4" in refused(capsys, *asked)


def test_other_verbs_do_not_run_in_several_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    asked = ("pipeline", "stfpm", "--data", tmp_path, "--out", tmp_path / "run")
    assert "pipeline: expected one process, got 2 (WORLD_SIZE)" in refused(capsys, *asked)


def test_half_a_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    asked = ("train", "stfpm", "--data", tmp_path, "--out", tmp_path / "run")
    assert "got none of RANK, MASTER_ADDR, MASTER_PORT" in refused(capsys, *asked)

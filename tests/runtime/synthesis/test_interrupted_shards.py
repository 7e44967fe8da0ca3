"""Work in shards that is interrupted prints the command that goes on, and that command finishes it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import here_executor
import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle
from tiny_dataset import CATEGORY

from flawscope.cli import run


@pytest.mark.parametrize("verb", ["generate", "dataset", "evaluate", "score"])
def test_the_command_that_is_printed_goes_on(verb, place, drawn, tiny_root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    here_executor.use(monkeypatch)
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds(255.0))
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    command = {
        "generate": ["synth", "generate", str(place / "drawer.flaw"), "--boxes", str(place / "boxes"), *data],
        "dataset": ["synth", "dataset", str(drawn), *data],
        "evaluate": ["evaluate", "tiny.flaw", *data, "--no-record", "--json", "figures.json"],
        "score": ["score", "tiny.flaw", str(tiny_root / CATEGORY / "test")],
    }[verb]
    sharded = [*command, "--out", "out", "--on", "here", "--shard-size", "4", "--overwrite"]

    def done():
        return len(list(Path().glob("out*/**/shards/*.jsonl")))

    real = here_executor.HereExecutor.wait

    def interrupted(executor):
        if done():
            raise KeyboardInterrupt
        return real(executor)

    monkeypatch.setattr(sys, "argv", ["flawscope", *sharded])
    with monkeypatch.context() as patch:
        patch.setattr(here_executor.HereExecutor, "wait", interrupted)
        assert run(sharded) == 130
    (note,) = (line for line in capsys.readouterr().err.splitlines() if "Go on with: " in line)
    before = done()
    assert before > 0
    again = shlex.split(note.partition("Go on with: ")[2])
    assert again[0] == "flawscope"
    assert run(again[1:]) == 0
    assert len(list(Path("out").iterdir())) > 1

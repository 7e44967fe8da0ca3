"""`flawscope score` on the parts of the fixture `parts_here`, in shards of four by threads, and what came of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flawscope import cli


def score(*arguments: object) -> int:
    return cli.run(["score", "t.flaw", *(str(argument) for argument in arguments), "--backend", "cpu"])


def in_shards(*arguments: object) -> int:
    return score("parts", "--out", "out", "--on", "threads", "--shard-size", 4, *arguments)


def results(folder: str = "out") -> bytes:
    return (Path(folder) / "results.jsonl").read_bytes()


def report(folder: str = "out") -> Any:
    return json.loads((Path(folder) / "report.json").read_bytes())


def error(capsys: pytest.CaptureFixture[str]) -> str:
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1
    return lines[0]

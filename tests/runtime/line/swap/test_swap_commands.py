"""`flawscope line swap` and `rollback`, as somebody at a terminal of the machine uses them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from free_ports import free_port

pytest.importorskip("starlette", reason="needs starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("prometheus_client", reason="needs prometheus_client")

from line_project import png, read_config, write_line
from line_stand_ins import wait_until
from swapped_lines import events_of, running, verdict_of, write_bundle_at

from flawscope import cli
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.users.users_file import UsersFile


@pytest.fixture
def config(tmp_path: Path) -> Path:
    write_bundle_at(tmp_path / "tiny.flaw", 150.0)
    write_bundle_at(tmp_path / "other.flaw", 100.0)
    path = write_line(tmp_path)
    path.write_text(path.read_text().replace("127.0.0.1:0", f"127.0.0.1:{free_port()}"))
    return path


@pytest.fixture
def line(config: Path) -> Iterator[Line]:
    with running(config.parent, read=read_config(config)) as line:
        yield line


def test_swap_and_rollback(line: Line, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verdict_of(line, 120).verdict == "accept"
    other = str(tmp_path / "other.flaw")
    assert cli.run(["line", "swap", str(config), "top", other]) == 0
    said = capsys.readouterr().out.splitlines()
    assert [text.split()[:2] for text in said][-1] == ["flip", "ok"]
    assert len(said) == 7
    assert verdict_of(line, 120).verdict == "reject"
    assert cli.run(["line", "rollback", str(config), "top", "--reason", "too many rejects"]) == 0
    assert "rolled back" in capsys.readouterr().out
    assert verdict_of(line, 120).verdict == "accept"
    line.journal.flush()
    (event,) = events_of(tmp_path, "rollback")
    assert (event["actor"], event["reason"]) == ("local", "too many rejects")
    # What is refused is one line, and exit status 2; what fails is 1.
    assert cli.run(["line", "rollback", str(config), "top", "--reason", "again"]) == 2
    assert "expected a swap not longer than" in capsys.readouterr().err
    assert cli.run(["line", "swap", str(config), "side", other]) == 2
    assert "one of the stations top" in capsys.readouterr().err
    (tmp_path / "state" / "challenge" / "top" / "must_accept").mkdir(parents=True)
    (tmp_path / "state" / "challenge" / "top" / "must_accept" / "good.png").write_bytes(png(120))
    assert cli.run(["line", "swap", str(config), "top", other]) == 1
    assert "good.png: expected accept, got reject" in capsys.readouterr().err


def test_with_users_it_asks_as_one_of_them(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    password = "four plain words here"
    file = UsersFile(tmp_path / "state")
    file.add_user("erik", "engineer", password)
    file.add_user("olga", "operator", password)
    (tmp_path / "password").write_text(password + "\n")
    with running(tmp_path, read=read_config(config)) as line:
        command = ["line", "swap", str(config), "top", str(tmp_path / "other.flaw")]
        assert cli.run(command) == 2
        assert "Say who asks with --user NAME." in capsys.readouterr().err
        login = ["--password-file", str(tmp_path / "password"), "--user"]
        assert cli.run([*command, *login, "olga"]) == 2
        capsys.readouterr()
        assert cli.run([*command, *login, "erik"]) == 0, capsys.readouterr().err
        assert verdict_of(line, 120).verdict == "reject"
    (event,) = events_of(tmp_path, "swap")
    assert (event["actor"], event["role"]) == ("erik", "engineer")


def test_without_a_line_that_runs_it_says_so(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["line", "swap", str(config), "top", str(tmp_path / "other.flaw")]) == 2
    said = capsys.readouterr().err
    assert "Does it run?" in said
    assert len(said.strip().splitlines()) == 1


def test_challenge_by_hand_and_a_swap_that_stops(
    line: Line, config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good = tmp_path / "state" / "challenge" / "top" / "must_accept"
    good.mkdir(parents=True)
    (good / "good.png").write_bytes(png(120))
    command = ["line", "challenge", str(config), "top"]
    assert cli.run(command) == 0
    assert capsys.readouterr().out.split()[:2] == ["challenge", "ok"]
    (good / "bright.png").write_bytes(png(200))
    assert cli.run(command) == 1
    assert "1 of 2 parts: bright.png: expected accept, got reject" in capsys.readouterr().out
    assert line.stations["top"].readiness.state == "error"
    line.write_status()
    status = tmp_path / "state" / "status.json"
    wait_until(lambda: status.exists() and '"by hand"' in status.read_text())
    assert cli.run(["line", "status", str(config)]) == 1
    assert "challenge of cam0 by hand" in capsys.readouterr().out
    for path in good.iterdir():
        path.unlink()
    (good / "dark.png").write_bytes(png(50))
    assert cli.run(["line", "swap", str(config), "top", str(tmp_path / "other.flaw"), "--stop"]) == 0
    steps = [text.split()[0] for text in capsys.readouterr().out.splitlines()]
    assert steps == ["staged", "verified", "dropped", "warm", "golden", "challenge", "flip"]
    # What was in force had failed; the one after it has passed.
    assert verdict_of(line, 120).verdict == "reject"


@pytest.mark.parametrize(("value", "status"), [(120, 0), (200, 1)])
def test_check_challenges_the_bundle_of_the_configuration(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], value: int, status: int
) -> None:
    good = tmp_path / "state" / "challenge" / "top" / "must_accept"
    good.mkdir(parents=True)
    (good / "good.png").write_bytes(png(value))
    assert cli.run(["line", "check", str(config)]) == status
    said = capsys.readouterr().out
    assert f"{'FAIL' if status else 'ok'} top/cam0 challenge: " in " ".join(said.split())

"""Completion in the real shells, where they are installed, and the script that makes it."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from flawscope.cli import run
from flawscope.completion_command import SHELLS, completion_script


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell that finds `flawscope`, and nothing of the user's."""
    place = tmp_path / "bin"
    place.mkdir()
    program = place / "flawscope"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m flawscope "$@"\n')
    program.chmod(0o755)
    return {"PATH": f"{place}:{os.environ['PATH']}", "HOME": str(tmp_path), "TERM": "dumb", "LC_ALL": "C.UTF-8"}


def typed(shell: list[str], environment: dict[str, str], lines: list[tuple[str, str]]) -> str:
    """Type into a shell on a terminal of its own; wait for an answer to each text, and return all that was shown."""
    process, terminal = pty.fork()
    if process == 0:  # the child
        os.execvpe(shell[0], shell, environment)
    shown = ""
    try:
        for text, awaited in lines:
            os.write(terminal, text.encode())
            begun, deadline = len(shown), time.monotonic() + 60
            while awaited not in shown[begun:] and time.monotonic() < deadline:
                if select.select([terminal], [], [], 0.2)[0]:
                    shown += os.read(terminal, 65536).decode(errors="replace")
            assert awaited in shown[begun:], shown
        return shown
    finally:
        os.close(terminal)  # the shell ends when its terminal is gone
        os.waitpid(process, 0)


def needs(shell: str) -> str:
    found = shutil.which(shell)
    if found is None:
        pytest.skip(f"{shell} is not installed")
    return found


LINES = [
    ("flawscope pipel\t", "flawscope pipeline"),
    ("\x15flawscope bundle ver\t", "flawscope bundle verify"),
    ("\x15flawscope train patchc\t", "flawscope train patchcore"),
    ("\x15flawscope train padim --set chan\t", "--set channels="),
    ("\x15flawscope score --prec\t", "flawscope score --precision"),
]
"""What is typed (^U clears the line before), and what is shown then."""


@pytest.mark.long
def test_bash_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    bash = needs("bash")
    (tmp_path / "script").write_text(completion_script("bash"))
    begin = [(f"PS1='> '; source {tmp_path}/script; echo is\"\"ready\n", "isready")]
    typed([bash, "--norc", "--noprofile", "-i"], environment, begin + LINES)


@pytest.mark.long
def test_zsh_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    zsh = needs("zsh")
    (tmp_path / "script").write_text(completion_script("zsh"))
    begin = [
        (f"PS1='> '; autoload -U compinit; compinit -u -D; source {tmp_path}/script; echo is\"\"ready\n", "isready")
    ]
    typed([zsh, "-f", "-i"], environment, begin + LINES)


@pytest.mark.long
def test_fish_completes(tmp_path: Path, environment: dict[str, str]) -> None:
    fish = needs("fish")
    (tmp_path / "script").write_text(completion_script("fish"))
    for text, shown in LINES:
        line = text.strip("\x15\t")
        done = subprocess.run(
            [fish, "--no-config", "-c", f"source {tmp_path}/script; complete -C '{line}'"],
            capture_output=True,
            text=True,
            env=environment,
            check=True,
        )
        assert [word for word in done.stdout.splitlines() if word.split("\t")[0] == shown.split()[-1]], done


@pytest.mark.parametrize("shell", SHELLS)
def test_the_script_is_printed(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["completion", shell]) == 0
    assert capsys.readouterr() == (completion_script(shell), "")


@pytest.mark.parametrize(
    ("shell", "place"),
    [
        ("bash", "data/bash-completion/completions/flawscope"),
        ("zsh", "data/zsh/site-functions/_flawscope"),
        ("fish", "config/fish/completions/flawscope.fish"),
    ],
)
def test_it_is_installed_where_the_shell_looks_and_replaces_nothing_unasked(
    shell: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    file = tmp_path / place
    assert run(["completion", "--install"]) == 0
    assert capsys.readouterr().out.startswith(f"completion: {file}\n")
    assert file.read_text() == completion_script(shell)
    assert run(["completion", shell, "--install"]) == 0  # the same once more
    file.write_text("somebody's\n")
    assert run(["completion", shell, "--install"]) == 2
    assert "Replace it with --overwrite" in capsys.readouterr().err
    assert file.read_text() == "somebody's\n"
    assert run(["completion", shell, "--install", "--overwrite"]) == 0
    assert file.read_text() == completion_script(shell)


def test_a_shell_that_is_not_known_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], no_home: None
) -> None:
    monkeypatch.setenv("SHELL", "/bin/csh")
    assert run(["completion"]) == 2
    assert "SHELL: expected one of bash, zsh, fish, got csh from the environment." in capsys.readouterr().err
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert run(["completion", "bash", "--install"]) == 2
    assert "--install: expected a home folder, got none." in capsys.readouterr().err

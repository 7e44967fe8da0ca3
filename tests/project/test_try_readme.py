"""`make try-readme`: commands are found as a reader would paste them, and a failure is told."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
import try_readme
from readme_commands import commands_of
from try_readme import Outcome, Shell, first_decision, table, try_command

PAGE = """# Page
Text that names `flawscope score` and goes on
    flawscope no block: an indented line of a paragraph

    make install            # a comment
    flawscope calibrate x.flaw \\
        --data parts

    threshold  old  new
    ok   this was printed

1. item

```bash
$ echo one
$ cd sub
```
```yaml title="line.yml"
make: no command
```
```yaml
make: no command
```
```console
$ true --flag  # exit status 1
flawscope printed this
```
<!-- try-readme: needs a camera -->
```
flawscope line check line.yml
```
```python
import flawscope
```
## Heading
    flawscope line demo
"""


def test_commands_are_found_and_nothing_else() -> None:
    found = [(each.line, each.text, each.kind) for each in commands_of("p.md", PAGE)]
    assert found == [
        (5, "make install            # a comment", "shell"),
        (6, "flawscope calibrate x.flaw \\\n--data parts", "shell"),
        (15, "echo one", "shell"),
        (16, "cd sub", "shell"),
        (19, "make: no command\n", "file"),
        (25, "true --flag  # exit status 1", "shell"),
        (30, "flawscope line check line.yml", "shell"),
        (33, "import flawscope\n", "python"),
        (36, "flawscope line demo", "shell"),
    ]


def test_a_block_may_be_left_out_with_its_reason_and_no_other() -> None:
    left_out = {each.text: each.left_out for each in commands_of("p.md", PAGE) if each.left_out}
    assert left_out == {"flawscope line check line.yml": "needs a camera"}


def test_a_block_without_an_end_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"p\.md, line 2"):
        commands_of("p.md", "text\n```bash\nls\n")


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    (tmp_path / "clone" / "sub").mkdir(parents=True)
    return Shell(tmp_path / "clone", tmp_path / "state", {"PATH": os.environ["PATH"]})


def test_folder_and_variables_last_from_one_command_to_the_next(shell: Shell, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert shell.run("cd sub; export WORD='two words'", log) == 0
    assert shell.run('echo "$WORD in $PWD"', log) == 0
    assert log.read_text().strip() == f"two words in {tmp_path / 'clone' / 'sub'}"


def test_a_command_that_fails_or_hangs_is_told(shell: Shell, tmp_path: Path) -> None:
    page = (
        "```\ncat none\n```\n```python\nraise SystemExit(3)\n```\n<!-- try-readme: no network -->\n```\nls none\n```\n"
    )
    outcomes = [try_command(shell, each, tmp_path / "log") for each in commands_of("p.md", page)]
    assert [each.problem for each in outcomes] == ["exit status 1", "exit status 3", "left out: no network"]
    announced = '```yaml title="a.txt"\nword\n```\n```console\n$ grep other a.txt  # exit status 1\n$ cat a.txt\n```\n'
    outcomes = [try_command(shell, each, tmp_path / "log") for each in commands_of("p.md", announced)]
    assert [(each.status, each.problem) for each in outcomes] == [(0, ""), (1, ""), (0, "")]
    assert shell.run("sleep 60", tmp_path / "log", limit_s=0.2) is None


SERVER = "import signal, time\nprint('station top: ready', flush=True)\ntime.sleep(60)\n"


@pytest.mark.parametrize(("ending", "status"), [("", 0), ("signal.signal(signal.SIGINT, lambda *_: exit(5))\n", 5)])
def test_what_serves_is_ended_by_ctrl_c(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, status: int
) -> None:
    monkeypatch.setattr(try_readme, "SERVED_S", 0.1)
    script = tmp_path / "serve.py"
    end_well = "signal.signal(signal.SIGINT, lambda *_: exit(0))\n"
    script.write_text(SERVER.replace("print", (ending or end_well) + "print", 1))
    found, seconds = shell.serve(f"python3 {script}", tmp_path / "log")
    assert found == status
    assert seconds < 30


def test_a_server_that_ends_before_it_is_ready_has_its_own_status(shell: Shell, tmp_path: Path) -> None:
    assert shell.serve("python3 -c 'exit(2)'", tmp_path / "log")[0] == 2


def test_seconds_to_the_first_decision_count_the_clone() -> None:
    outcomes = [
        Outcome("README.md", 1, "make install", 100.0, 0),
        Outcome("README.md", 2, "flawscope score a.flaw x", 1.0, 2, "exit status 2"),
        Outcome("README.md", 3, "flawscope score a.flaw new", 2.5, 0),
        Outcome("README.md", 4, "flawscope bench a.flaw", 9.0, 0),
    ]
    assert first_decision(outcomes, 3.0) == {"commands": 4, "seconds": 106.5, "install_seconds": 100.0}
    assert first_decision(outcomes[:2], 3.0) is None
    assert "| README.md:2 | `flawscope score a.flaw x` | 1.0 | exit status 2 |" in table(outcomes)


def test_a_clone_that_is_used_again_keeps_its_environment_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, clone = tmp_path / "source", tmp_path / "clone"
    git = ["git", "-C", str(source), "-c", "user.name=a", "-c", "user.email=a@example.org"]
    subprocess.run(["git", "init", "-q", str(source)], check=True)
    monkeypatch.setattr(try_readme, "ROOT", source)
    for text in ("one", "two"):
        (source / "page.md").write_text(text)
        subprocess.run([*git, "add", "."], check=True)
        subprocess.run([*git, "commit", "-q", "-m", text], check=True)
        try_readme.make_clone(clone)
        assert (clone / "page.md").read_text() == text
        assert not (clone / "work").exists()
        for folder in (".venv", "work"):
            (clone / folder).mkdir(exist_ok=True)
            (clone / folder / "file").write_text("")
        (clone / "page.md").write_text("changed by a command")
    assert (clone / ".venv" / "file").exists()


def test_settings_of_this_machine_are_not_those_of_a_fresh_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLAWSCOPE_TRUSTED_KEYS", "/keys")
    fresh = try_readme.fresh_environment(tmp_path, "python3.12")
    assert "FLAWSCOPE_TRUSTED_KEYS" not in fresh
    assert fresh["PYTHON"] == "python3.12"
    assert fresh["XDG_CONFIG_HOME"].startswith(str(tmp_path))

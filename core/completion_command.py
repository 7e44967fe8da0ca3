"""`flawscope completion`: what makes a shell complete verbs, options, methods, settings and files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import click
from click.shell_completion import FishComplete, ShellComplete, ZshComplete

from flawscope.errors import ArgumentError
from flawscope.files import storage_errors, write_text
from flawscope.open_files import SETTINGS_BYTES, read_regular
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo
from flawscope.user_folders import config_folder, data_folder

_PROGRAM, _VARIABLE = "flawscope", "_FLAWSCOPE_COMPLETE"


class _BashComplete(ShellComplete):
    """As click's own for bash, but without a space behind `KEY=`, and without starting bash to ask its version."""

    name = "bash"
    source_template = """\
%(complete_func)s() {
    local IFS=$'\\n' response line kind value
    response=$(env COMP_WORDS="${COMP_WORDS[*]}" COMP_CWORD=$COMP_CWORD %(complete_var)s=bash_complete $1)
    for line in $response; do
        kind=${line%%%%,*} value=${line#*,}
        case $kind in
            dir) COMPREPLY=() && compopt -o dirnames ;;
            file) COMPREPLY=() && compopt -o default ;;
            plain)
                COMPREPLY+=("$value")
                if [[ $value == *= ]]; then compopt -o nospace; fi
                ;;
        esac
    done
    return 0
}
complete -o nosort -F %(complete_func)s %(prog_name)s
"""


class _FishComplete(FishComplete):
    """As click's own for fish, which cuts descriptions at their first comma."""

    source_template = FishComplete.source_template.replace('string split ","', 'string split --max 1 ","')


class _Shell(NamedTuple):
    """A shell.

    Attributes:
        completion: What makes its script.
        folder: Where a user's completions lie, below the data or the configuration folder.
        file: Name of the file there.
        is_configuration: Whether that is the configuration folder.
        then: What is left to do, with `{file}` and `{folder}`; empty where the shell finds the file by itself.
    """

    completion: type[ShellComplete]
    folder: str
    file: str
    is_configuration: bool
    then: str


SHELLS = {
    "bash": _Shell(
        _BashComplete,
        "bash-completion/completions",
        "flawscope",
        False,
        "Without the package bash-completion, add to ~/.bashrc: source {file}",
    ),
    "zsh": _Shell(
        ZshComplete,
        "zsh/site-functions",
        "_flawscope",
        False,
        "Add to ~/.zshrc, unless it is there: fpath+=({folder}); autoload -U compinit; compinit",
    ),
    "fish": _Shell(_FishComplete, "fish/completions", "flawscope.fish", True, ""),
}


def completion_script(shell: str) -> str:
    """Return the script that makes a shell of `SHELLS` complete `flawscope`."""
    kind = SHELLS[shell].completion
    # ShellComplete's own `source`: that of click's bash starts a bash to ask for its version.
    return ShellComplete.source(kind(click.Command(_PROGRAM), {}, _PROGRAM, _VARIABLE)).lstrip("\n")


def _place(shell: str) -> Path:
    row = SHELLS[shell]
    folder = config_folder() if row.is_configuration else data_folder()
    if folder is None:
        raise ArgumentError(
            "--install: expected a home folder, got none. Print the script and store it where the shell reads it."
        )
    return folder / row.folder / row.file


@click.command()
@click.argument("shell", type=click.Choice(list(SHELLS)), required=False)
@click.option("--install", is_flag=True, help="Write it where the shell finds it, in your own folders.")
@OVERWRITE
def completion(shell: str | None, install: bool, overwrite: bool) -> None:
    """Print the script that makes SHELL complete verbs, options, methods, settings and files, or install it.

    SHELL is bash, zsh or fish; without it that of the environment variable SHELL.
    """
    if shell is None:
        shell = Path(os.environ.get("SHELL", "")).name
        if shell not in SHELLS:
            raise ArgumentError(
                f"SHELL: expected one of {', '.join(SHELLS)}, got {shell or 'none'} from the environment. Name one."
            )
    script = completion_script(shell)
    if not install:
        echo_script(script)
        return
    file = _place(shell)
    with storage_errors(file):
        if file.exists() and not overwrite and read_regular(file, SETTINGS_BYTES) != script.encode():
            raise ArgumentError(
                f"{file}: expected a new name, got another completion. Replace it with --overwrite, or remove it."
            )
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, script)
    echo(f"completion: {file}")
    if row_then := SHELLS[shell].then:
        echo(row_then.format(file=file, folder=file.parent))
    echo("It works in shells that are opened from now on.")


def echo_script(script: str) -> None:
    """Print a script line by line; none of its lines holds what a terminal would obey."""
    for line in script.rstrip("\n").split("\n"):
        echo(line)

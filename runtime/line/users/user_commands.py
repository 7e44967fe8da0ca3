"""`flawscope line user add|list|remove|password|role` and `flawscope line token add|remove`."""

from __future__ import annotations

import getpass
import sys
from pathlib import Path

import click

from flawscope.errors import ArgumentError
from flawscope.runtime.line.line_command import CONFIG
from flawscope.runtime.line.users.password_file import first_line
from flawscope.runtime.line.users.users_file import PersonRole, UsersFile
from flawscope.terminal import echo, echo_json

_NAME = click.argument("name")
_ROLE = click.Choice(["operator", "engineer", "admin"])
_PASSWORD = click.option(
    "--password-file",
    metavar="FILE",
    help="File whose first line is the password, or - for standard input; otherwise it is asked for, twice.",
)


@click.command()
@CONFIG
@_NAME
@click.option("--role", type=_ROLE, required=True, help="What the user may do; each may what those before it may.")
@_PASSWORD
def add(config: Path, name: str, role: PersonRole, password_file: str | None) -> None:
    """Add a user to a line, with a password of at least 12 characters.

    CONFIG is the YAML file of the line. From the first user on, everybody has to log in. A line that runs notices it
    within a second.
    """
    file = _file(config)
    file.check_name(name)
    file.add_user(name, role, _password(name, password_file))
    echo(f"user {name}: added as {role}")


@click.command("list")
@CONFIG
@click.option("--json", "as_json", is_flag=True, help="Users and tokens as one JSON object.")
def list_users(config: Path, as_json: bool) -> None:
    """List the users and tokens of a line."""
    users = _file(config).read()
    if as_json:
        echo_json(
            {
                "users": [{"name": user.name, "role": user.role, "added": user.utc} for user in users.users],
                "tokens": [{"name": token.name, "added": token.utc} for token in users.tokens],
            }
        )
        return
    for user in users.users:
        echo(f"user {user.name}: {user.role}, added {user.utc}")
    for token in users.tokens:
        echo(f"token {token.name}: machine, added {token.utc}")
    if not users.users:
        echo("no users: everybody on this machine may do everything, and others are not answered", err=True)


@click.command()
@CONFIG
@_NAME
@click.option("--last", is_flag=True, help="Also the last user, without whom everybody on this machine is admin.")
def remove(config: Path, name: str, last: bool) -> None:
    """Remove a user from a line; his sessions end within a second."""
    _file(config).remove_user(name, last=last)
    echo(f"user {name}: removed")


@click.command()
@CONFIG
@_NAME
@_PASSWORD
def password(config: Path, name: str, password_file: str | None) -> None:
    """Give a user of a line another password; his sessions end within a second."""
    file = _file(config)
    file.check_user(name)
    file.set_password(name, _password(name, password_file))
    echo(f"user {name}: has another password")


@click.command()
@CONFIG
@_NAME
@click.argument("role", type=_ROLE)
def role(config: Path, name: str, role: PersonRole) -> None:
    """Give a user of a line another role: operator, engineer or admin."""
    _file(config).set_role(name, role)
    echo(f"user {name}: is {role}")


@click.command("add")
@CONFIG
@_NAME
def add_token(config: Path, name: str) -> None:
    """Make a token, with which a program may trigger and read; it is shown once.

    CONFIG is the YAML file of the line, NAME what the journal calls the program. It sends the token as
    `Authorization: Bearer TOKEN`.
    """
    token = _file(config).add_token(name)
    echo(f"token {name}: keep it, it is shown this once", err=True)
    echo(token)


@click.command("remove")
@CONFIG
@_NAME
def remove_token(config: Path, name: str) -> None:
    """Remove a token; it is refused within a second."""
    _file(config).remove_token(name)
    echo(f"token {name}: removed")


def _file(config: Path) -> UsersFile:
    from flawscope.runtime.line.config_file import read_config

    return UsersFile(read_config(config).config.line.state)


def _password(name: str, place: str | None) -> str:
    """Return a password from a file or the terminal, never from an argument, which everybody on the machine sees."""
    if place is not None:
        return first_line(place)
    if not sys.stdin.isatty():
        raise ArgumentError("password: expected a terminal to ask, got none. Use --password-file FILE, or - for stdin.")
    typed = getpass.getpass(f"Password of {name}: ")
    if getpass.getpass("Once more: ") != typed:
        raise ArgumentError("password: expected the same twice, got two that differ. Nothing was changed.")
    return typed

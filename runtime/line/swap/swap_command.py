"""`flawscope line swap`, `rollback` and `challenge`: ask a line that runs to change its bundle, or to test it."""

from __future__ import annotations

import contextlib
import getpass
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import click

from flawscope.bundle import open_bundle, pack_bundle
from flawscope.errors import ArgumentError
from flawscope.files import temporary_folder
from flawscope.open_files import open_regular
from flawscope.runtime.line.line_command import CONFIG
from flawscope.runtime.line.swap.line_client import LineClient, asking
from flawscope.runtime.line.users.password_file import first_line
from flawscope.terminal import echo

_POLL_S = 0.2
_F = TypeVar("_F", bound=Callable[..., Any])

_STATION = click.argument("station")


def _login(command: _F) -> _F:
    """Add the options of a line with users."""
    password = click.option("--password-file", metavar="FILE", help="File with the password, or - for standard input.")
    user = click.option("--user", metavar="NAME", help="Engineer or admin who asks, where the line has users.")
    return user(password(command))


@click.command()
@CONFIG
@_STATION
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--view", metavar="NAME", help="The view, where the station has several.")
@click.option("--shadow", type=click.IntRange(0, 10_000), metavar="K", help="Parts that both bundles score before.")
@click.option(
    "--allow-unlike", is_flag=True, help="Also where the view's images are unlike those that the bundle learned from."
)
@click.option(
    "--stop", is_flag=True, help="Drop the bundle in force first, where memory is too small for two; READY falls."
)
@_login
def swap(
    config: Path,
    station: str,
    bundle: Path,
    view: str | None,
    shadow: int | None,
    allow_unlike: bool,
    stop: bool,
    user: str | None,
    password_file: str | None,
) -> int:
    """Change the bundle of STATION while the line of CONFIG runs, between two parts.

    BUNDLE is sent to the line, verified there, and decides from the next part on when every step has passed; see
    docs/line-bundles.md. Exit status 1 if a step fails: the old bundle goes on. Ctrl-C ends the command and not the
    swap, which `flawscope line rollback` gives up.
    """
    path = f"/api/v1/stations/{quote(station, safe='')}/swap"
    with _packed(bundle) as (file, size, digest), asking(config, user, _password(user, password_file)) as client:
        if digest not in {stored["digest"] for stored in client.get("/api/v1/bundles")["bundles"]}:
            client.send("/api/v1/bundles", file, size)
        said = {
            "digest": digest,
            "view": view,
            "shadow": shadow,
            "allow_unlike": allow_unlike or None,
            "stop": stop or None,
        }
        client.post(path, {name: value for name, value in said.items() if value is not None})
        state = _followed(client, path)
    for row in state["disagreements"]:
        echo(f"part {row['seq']}: {_said(row['old'])} before, {_said(row['new'])} by the new bundle")
    if state["state"] != "done":
        echo(f"{state['state']}: {state['reason']}", err=True)
    return 0 if state["state"] == "done" else 1


@click.command()
@CONFIG
@_STATION
@click.option("--reason", required=True, metavar="TEXT", help="Why, for the record.")
@_login
def rollback(config: Path, station: str, reason: str, user: str | None, password_file: str | None) -> None:
    """Put back, for the next part, what STATION decided by before its last swap, and give up a swap that runs."""
    with asking(config, user, _password(user, password_file)) as client:
        state = client.post(f"/api/v1/stations/{quote(station, safe='')}/rollback", {"reason": reason})
    echo(f"station {station}: {state['done']}")


@click.command()
@CONFIG
@_STATION
@click.option("--view", metavar="NAME", help="The view, where the station has several.")
@_login
def challenge(config: Path, station: str, view: str | None, user: str | None, password_file: str | None) -> int:
    """Test the bundle in force of STATION with the site's own parts, between the parts of the line.

    Exit status 1 if one of them gets another verdict than it must; then the station stops, unless its configuration
    says `warn`. A challenge that is passed mends it.
    """
    path = f"/api/v1/stations/{quote(station, safe='')}"
    with asking(config, user, _password(user, password_file)) as client:
        client.post(f"{path}/challenge", {} if view is None else {"view": view})
        state = _followed(client, f"{path}/swap")
    return 0 if state["state"] == "done" else 1


def _followed(client: LineClient, path: str) -> dict[str, Any]:
    """Show the steps of a swap as they end, and return what is known when it is over."""
    shown = 0
    while True:
        state: dict[str, Any] = client.get(path)
        over = [step for step in state["steps"] if step["state"] not in ("waiting", "running")]
        for step in over[shown:]:
            echo(f"{step['name']:9} {step['state']:8} {step['ms']:9.1f} ms  {step['detail']}".rstrip())
        shown = len(over)
        if state["state"] != "running":
            return state
        time.sleep(_POLL_S)


def _said(one: dict[str, Any]) -> str:
    score = "no score" if one["score"] is None else f"score {one['score']:.6g}"
    return f"{one['verdict']} ({score})"


@contextlib.contextmanager
def _packed(path: Path) -> Iterator[tuple[IO[bytes], int, str]]:
    """Yield a bundle as one open file, with its size and digest; a folder is packed for it."""
    with contextlib.ExitStack() as stack:
        # Whether it is signed by a key that counts is for the line to say.
        with open_bundle(path, check_signature=False) as bundle:
            digest, packed = bundle.manifest.digest, path
            if path.is_dir():
                packed = stack.enter_context(temporary_folder()) / "packed.flaw"
                pack_bundle(bundle, packed)
        file = stack.enter_context(open_regular(packed))
        yield file, packed.stat().st_size, digest


def _password(user: str | None, place: str | None) -> str:
    if user is None:
        return ""
    if place is not None:
        return first_line(place)
    if not sys.stdin.isatty():
        raise ArgumentError("password: expected a terminal to ask, got none. Use --password-file FILE, or - for stdin.")
    return getpass.getpass(f"Password of {user}: ")

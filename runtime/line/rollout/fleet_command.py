"""`flawscope fleet publish`, `tag` and `list`: releases of signed bundles, for lines that pull them by themselves."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError
from flawscope.runtime.line.options import HostName, Secret
from flawscope.runtime.line.rollout.place import Place, checked_tag, is_digest, open_place, options_of
from flawscope.runtime.line.rollout.publishing import give_tag, list_releases, publish
from flawscope.runtime.line.rollout.table import RegistryReleases
from flawscope.terminal import echo, echo_json

_F = TypeVar("_F", bound=Callable[..., Any])
_PLACE = click.argument("place")


def _registry(command: _F) -> _F:
    """Add the options of a registry."""
    options = (
        click.option("--user", metavar="NAME", help="User of the registry."),
        click.option("--password", metavar="PLACE", help="Where the password is: env:VARIABLE or file:PATH."),
        click.option("--token", metavar="PLACE", help="Where a token is, in place of user and password."),
        click.option("--ca", type=click.Path(path_type=Path), metavar="FILE", help="Certificates that are trusted."),
        click.option("--host", "hosts", multiple=True, metavar="NAME", help="Other machine the registry may send to."),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command("publish")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--to", "place", required=True, metavar="PLACE", help="oci://HOST:PORT/NAME, or a folder of releases.")
@click.option("--tag", "tags", multiple=True, default=("stable",), show_default=True, help="Tag that it gets.")
@_registry
@trusted_keys_option
def publish_command(bundle: Path, place: str, tags: tuple[str, ...], **registry: Any) -> None:
    """Publish a signed bundle as a release: lines that follow one of its tags pull it and swap to it.

    PLACE is a repository of an OCI registry, or a folder, which becomes an OCI image layout. The same bundle is always
    the same release. A tag that another release has goes over to this one; all releases stay.
    """
    tags = tuple(checked_tag(tag) for tag in tags)
    with _opened(place, registry, "--to") as opened:
        digest = publish(bundle, opened, tags)
        echo(f"{opened.name}: {', '.join(tags)}: {digest}")


@click.command("tag")
@_PLACE
@click.argument("release")
@click.argument("tag")
@_registry
def tag_command(place: str, release: str, tag: str, **registry: Any) -> None:
    """Give TAG to RELEASE (another tag of it, or its digest): a rollout of what is there already, or the way back."""
    checked = release if is_digest(release) else checked_tag(release)
    with _opened(place, registry) as opened:
        echo(f"{opened.name}: {tag}: {give_tag(opened, checked, checked_tag(tag))}")


@click.command("list")
@_PLACE
@click.option("--json", "as_json", is_flag=True, help="A JSON object a line.")
@_registry
@trusted_keys_option
def list_command(place: str, as_json: bool, **registry: Any) -> int:
    """List the tags of PLACE, with the bundle of each and who signed it; exit status 1 if one cannot be used."""
    is_good = True
    with _opened(place, registry) as opened:
        for row in list_releases(opened):
            is_good = is_good and not row["problem"]
            if as_json:
                echo_json(row)
                continue
            said = row["problem"] or f"{row['name']} ({row['method']}), bundle {row['bundle'][:12]}…, by {row['key']}"
            echo(f"{row['tag']:20} {row['release'][:19]:19}  {said}")
    return 0 if is_good else 1


@contextlib.contextmanager
def _opened(place: str, registry: dict[str, Any], what: str = "PLACE") -> Iterator[Place]:
    given = {name: value for name, value in registry.items() if value}
    options = options_of(place, what)
    if isinstance(options, RegistryReleases):
        for name in ("password", "token"):
            _check(given.get(name), Secret, f"--{name}", "env:VARIABLE or file:PATH, never the secret itself")
        for host in given.get("hosts", ()):
            _check(host, HostName, "--host", "the name of a machine, without port")
        options = msgspec.structs.replace(options, **given)
    elif given:
        raise ArgumentError(
            f"--{next(iter(given))}: expected a registry (oci://...) with it, got a folder. Leave it out."
        )
    opened = open_place(options)
    try:
        yield opened
    finally:
        opened.close()


def _check(value: str | None, kind: Any, option: str, words: str) -> None:
    if value is None:
        return
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        raise ArgumentError(f"{option}: expected {words}, got something else. Mend it.") from None

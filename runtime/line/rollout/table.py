"""Where releases come from: a kind, its options, and where its code is; and what a view says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import msgspec

from flawscope.ranges import Share
from flawscope.runtime.line.options import HostName, Options, Seconds, Secret

Tag = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]{0,127}\Z")]
"""Name of a release, which may be given to another one later."""

TimeOfDay = Annotated[str, msgspec.Meta(pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]\Z")]

PLAIN, SECURE = "oci+http://", "oci://"


class FolderReleases(Options, frozen=True, kw_only=True, tag="folder", tag_field="kind"):
    """A folder of releases: an OCI image layout, on a disk or a share that is mounted.

    Attributes:
        path: The folder.
    """

    path: Path


class RegistryReleases(Options, frozen=True, kw_only=True, tag="registry", tag_field="kind"):
    """A repository of an OCI registry.

    Attributes:
        url: The repository, `oci://HOST:PORT/NAME`; `oci+http://` for one without TLS, which gets no password unless it
            is on this machine.
        user: User name, for a registry that asks for one.
        password: Where the password is.
        token: Where a token of the registry is, in place of user and password.
        ca: Certificates that are trusted, in place of the system's.
        hosts: Other machines that the registry may send to: its token server, and its store of blobs. To no other one.
        timeout_s: Seconds until an answer must have begun; a blob has more time, by its size.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^oci(\+http)?://[^@]+$", max_length=1024)]
    user: Annotated[str, msgspec.Meta(min_length=1, max_length=256)] | None = None
    password: Secret | None = None
    token: Secret | None = None
    ca: Path | None = None
    hosts: tuple[HostName, ...] = ()
    timeout_s: Seconds = 30.0


ReleaseOptions = FolderReleases | RegistryReleases

_HERE = "flawscope.runtime.line.rollout"

PLACES: dict[type[Any], str] = {
    FolderReleases: f"{_HERE}.layout:Layout",
    RegistryReleases: f"{_HERE}.registry:Registry",
}
"""Options -> `module:attribute` of the class, which is made with them; see `flawscope.runtime.line.rollout.place`."""


class RolloutOptions(Options, frozen=True, kw_only=True):
    """Releases that a view pulls and swaps to by itself; see docs/fleet.md.

    Attributes:
        source: Where they come from.
        tag: Which one: the release that has this tag, whenever it is another one than before.
        every_s: Seconds between two looks, about.
        first: Share of the views of all lines that take a new release at once; the release draws them by lot.
        wait_s: Seconds that the others wait since they saw it: time to give the tag back to the one before.
        between: Two times of day, by `timezone`: swaps begin between them alone. It may be over midnight.
        shadow_parts: Parts that both bundles score before; null for what `swap` says.
    """

    source: ReleaseOptions
    tag: Tag = "stable"
    every_s: Annotated[float, msgspec.Meta(ge=1.0, le=86400.0)] = 300.0
    first: Share = 1.0
    wait_s: Annotated[float, msgspec.Meta(ge=0.0, le=31536000.0)] = 86400.0
    between: tuple[TimeOfDay, TimeOfDay] | None = None
    shadow_parts: Annotated[int, msgspec.Meta(ge=0, le=10_000)] | None = None

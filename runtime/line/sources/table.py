"""The table of sources: a kind, its options, and where its code is; nothing else lists them.

Options are here and not beside the code, so that reading a configuration imports no camera library.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from flawscope.runtime.line.options import Options, Seconds, Secret, Text
from flawscope.runtime.line.sources.source import Policy


class FolderSource(Options, frozen=True, kw_only=True, tag="folder", tag_field="kind"):
    """Image files of a folder, in the order of their names; those that are there at the start, and those that come.

    Attributes:
        path: The folder.
        match: Pattern of the file names.
        watch: Whether files that come later are taken; otherwise the source ends with those that are there.
        poll_ms: Milliseconds between two looks at the folder: works on network drives, too.
        settle_ms: A file is taken when its size and time have not changed for this long.
        after: Whether a file that has a verdict stays, or is moved to `done` below the state folder.
        on_full: What happens when the station is full.
    """

    path: Path
    match: Text = "*"
    watch: bool = True
    poll_ms: Annotated[float, msgspec.Meta(ge=5.0, le=60000.0)] = 50.0
    settle_ms: Annotated[float, msgspec.Meta(ge=0.0, le=60000.0)] = 200.0
    after: Literal["keep", "move"] = "keep"
    on_full: Policy = "wait"


class PushSource(Options, frozen=True, kw_only=True, tag="push", tag_field="kind"):
    """Images that are sent to the line over HTTP, one part a request; where the station is full, it is a fault."""


class VideoSource(Options, frozen=True, kw_only=True, tag="video", tag_field="kind"):
    """Images of a video file.

    Attributes:
        path: The file.
        pace: Whether images come as fast as they were taken, or as fast as they can be scored.
        on_full: What happens when the station is full.
    """

    path: Path
    pace: Literal["file", "fast"] = "fast"
    on_full: Policy = "wait"


class RtspSource(Options, frozen=True, kw_only=True, tag="rtsp", tag_field="kind"):
    """Images of a network camera (RTSP).

    Attributes:
        url: Its address; user and password by `user` and `password`, never in the address.
        user: Where its user name is.
        password: Where its password is.
        transport: Protocol of the stream; UDP may lose parts of images without a word.
        open_s: Seconds until it must answer.
        read_s: Seconds until the next image must come.
        on_full: What happens when the station is full.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^rtsps?://[^@]+$", max_length=4096)]
    user: Secret | None = None
    password: Secret | None = None
    transport: Literal["tcp", "udp"] = "tcp"
    open_s: Seconds = 3.0
    read_s: Seconds = 2.0
    on_full: Policy = "latest"


V4l2Format = Literal["YUYV", "UYVY", "YU12", "NV12", "RGB3", "BGR3", "GREY", "MJPG", "H264"]
"""Formats of Video4Linux by its own names of four characters."""


class V4l2Source(Options, frozen=True, kw_only=True, tag="v4l2", tag_field="kind"):
    """Images of a USB camera (Video4Linux).

    Attributes:
        device: Its file.
        size: Width and height of its images; None for what it is set to.
        pixel_format: Format of its images; None for what it is set to.
        read_s: Seconds until the next image must come.
        on_full: What happens when the station is full.
    """

    device: Path
    size: tuple[int, int] | None = None
    pixel_format: V4l2Format | None = None
    read_s: Seconds = 2.0
    on_full: Policy = "latest"


class CameraSource(Options, frozen=True, kw_only=True):
    """What all industrial cameras have, however they are reached."""

    camera: Text
    pixel_format: Text = "Mono8"
    trigger: Literal["hardware", "software", "free"] = "hardware"
    features: dict[str, bool | int | float | str] = msgspec.field(default_factory=dict)
    heartbeat_s: Seconds = 1.0
    on_full: Policy | None = None


class GenicamSource(CameraSource, frozen=True, kw_only=True, tag="genicam", tag_field="kind"):
    """Images of a GigE or USB3 Vision camera, through Aravis.

    Attributes:
        camera: Its name, as `flawscope line cameras` lists them, or its address.
        pixel_format: Format of its pixels by the GenICam convention, such as `Mono8`, `BayerRG8` or `RGB8`.
        trigger: `hardware`: by a wire; `software`: by the line; `free`: as fast as it is set to.
        features: Name -> value of GenICam features that are written, read back and compared at each start.
        packet_size: Bytes of a network packet, or `auto`.
        heartbeat_s: Seconds between two reads of a register, by which a lost camera is noticed.
        on_full: What happens when the station is full; by default `latest` for `free`, else `every`.
    """

    packet_size: Annotated[int, msgspec.Meta(ge=576, le=16000)] | Literal["auto"] = "auto"


class GentlSource(CameraSource, frozen=True, kw_only=True, tag="gentl", tag_field="kind"):
    """Images of a camera that its maker's driver (a GenTL producer) reaches, such as one on a frame grabber.

    Attributes:
        producer: The driver's file, `*.cti`.
        camera: Its identifier, serial number or user-defined name.
        pixel_format: As for `genicam`.
        trigger: As for `genicam`.
        features: As for `genicam`.
        heartbeat_s: As for `genicam`.
        on_full: As for `genicam`.
    """

    producer: Path


SourceOptions = FolderSource | PushSource | VideoSource | RtspSource | V4l2Source | GenicamSource | GentlSource


class Row(NamedTuple):
    """A kind of source.

    Attributes:
        place: `module:attribute` of its class; made with its options and a `SourcePlace`, in a child process but for
            `push`.
        extra: Extra of flawscope that installs what it needs; empty where nothing is.
    """

    place: str
    extra: str


_HERE = "flawscope.runtime.line.sources"

SOURCES: dict[type[Any], Row] = {
    FolderSource: Row(f"{_HERE}.folder:FolderGrabber", ""),
    PushSource: Row(f"{_HERE}.push:Push", ""),
    VideoSource: Row(f"{_HERE}.video:VideoGrabber", "line"),
    RtspSource: Row(f"{_HERE}.rtsp:RtspGrabber", "line"),
    V4l2Source: Row(f"{_HERE}.v4l2:V4l2Grabber", "line"),
    GenicamSource: Row(f"{_HERE}.genicam:GenicamGrabber", ""),
    GentlSource: Row(f"{_HERE}.gentl:GentlGrabber", "gentl"),
}
"""Options -> row."""


def policy_of(options: Any) -> Policy:
    """Return what happens to images of a source when the station is full, its own default included."""
    policy: Policy | None = getattr(options, "on_full", None)
    return policy or ("latest" if getattr(options, "trigger", "") == "free" else "every")


def is_triggered(options: Any) -> bool:
    """Return whether a source gives an image only after it was asked for one."""
    return getattr(options, "trigger", "") == "software"


def is_camera(options: Any) -> bool:
    """Return whether a source is a camera, whose images are never equal: noise alone makes them differ."""
    return isinstance(options, CameraSource | RtspSource | V4l2Source)

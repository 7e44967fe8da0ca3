"""What the keys of a line's configuration must be together; each mistake is one line that names the place."""

from __future__ import annotations

import zoneinfo
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from flawscope.errors import ArgumentError
from flawscope.imaging.images import MAX_SIDE_PX, MIN_SIDE_PX
from flawscope.runtime.line.line_config import HttpOptions, LineConfig, StationOptions, ViewOptions
from flawscope.runtime.line.outputs.table import GpioOutput, ModbusOutput
from flawscope.runtime.line.rollout.registry_checks import mistakes_of
from flawscope.runtime.line.rollout.table import RegistryReleases
from flawscope.runtime.line.sinks.table import JsonlSink, MqttSink, Tls
from flawscope.runtime.line.sources.table import FolderSource, PushSource, V4l2Source, is_triggered, policy_of
from flawscope.secrets import is_this_machine


class Mistake(NamedTuple):
    """One mistake.

    Attributes:
        where: Key or keys, as `stations[0].views[1].source.path`; empty for all of the file.
        message: What is wrong, what was expected, what was got, and what to do.
    """

    where: str
    message: str


def check_config(config: LineConfig, path: Path) -> None:
    """Refuse a configuration whose keys contradict each other.

    Args:
        config: The configuration, with absolute paths.
        path: Its file, for the message.

    Raises:
        ArgumentError: For the first mistake.
    """
    for check in _CHECKS:
        for mistake in check(config):
            at = f"{mistake.where}: " if mistake.where else ""
            raise ArgumentError(f"{path}: {at}{mistake.message}")


def address_of(listen: str) -> tuple[str, int]:
    """Return host and port of `ADDRESS:PORT`; the brackets around an address of IPv6 are taken off."""
    host, _, port = listen.rpartition(":")
    return host.removeprefix("[").removesuffix("]"), int(port)


def _views(config: LineConfig) -> Iterator[tuple[str, StationOptions, ViewOptions]]:
    for number, station in enumerate(config.stations):
        for place, view in enumerate(station.views):
            yield f"stations[{number}].views[{place}]", station, view


def _check_names(config: LineConfig) -> Iterator[Mistake]:
    yield from _twice("stations", (station.name for station in config.stations), "station")
    for number, station in enumerate(config.stations):
        yield from _twice(f"stations[{number}].views", (view.name for view in station.views), "view of the station")


def _twice(where: str, names: Iterable[str], what: str) -> Iterator[Mistake]:
    for name, times in Counter(names).items():
        if times > 1:
            yield Mistake(where, f"expected every {what} to have a name of its own, got {name} twice. Rename one.")


def _check_times(config: LineConfig) -> Iterator[Mistake]:
    for number, station in enumerate(config.stations):
        if station.collect_ms is not None and station.collect_ms >= station.deadline_ms:
            yield Mistake(
                f"stations[{number}].collect_ms",
                f"expected less than deadline_ms ({station.deadline_ms:g}), got {station.collect_ms:g}. "
                "The rest is the time to score: lower it, or leave it out for half of the deadline.",
            )


def _check_policies(config: LineConfig) -> Iterator[Mistake]:
    for where, station, view in _views(config):
        if policy_of(view.source) == "latest" and station.outputs and not station.allow_skip:
            yield Mistake(
                f"{where}.source.on_full",
                "expected `every` or `wait` where the station has outputs, got `latest`, which leaves out images: the "
                "PLC would wait for verdicts that never come. Change it, or set allow_skip: true for the station.",
            )


def _check_triggers(config: LineConfig) -> Iterator[Mistake]:
    for number, station in enumerate(config.stations):
        where = f"stations[{number}].views"
        pushed = [view.name for view in station.views if isinstance(view.source, PushSource)]
        if pushed and len(pushed) < len(station.views):
            yield Mistake(
                where,
                f"expected all or none of a station's sources to be `push`, got it for {', '.join(pushed)} alone. "
                "Give the others a station of their own.",
            )
        asked = [view.name for view in station.views if is_triggered(view.source)]
        if asked and len(asked) < len(station.views):
            yield Mistake(
                where,
                "expected all or none of a station's sources to wait for a software trigger, got it for "
                f"{', '.join(asked)} alone: it would not be known which images belong together. "
                "Give the others a station of their own.",
            )
        if pushed and config.http is None:
            yield Mistake("http", f"expected a server for the images of station {station.name} (push), got null.")


def _check_images(config: LineConfig) -> Iterator[Mistake]:
    for where, _, view in _views(config):
        source = view.source
        size = source.size if isinstance(source, V4l2Source) else None
        if size and not all(MIN_SIDE_PX <= side <= MAX_SIDE_PX for side in size):
            yield Mistake(
                f"{where}.source.size",
                f"expected width and height from {MIN_SIDE_PX} to {MAX_SIDE_PX} pixels, got {list(size)}. Mend it.",
            )
        if view.crop:
            yield from _crop_mistakes(f"{where}.crop", view.crop, size)
        if (limits := view.scene.brightness) and limits[0] > limits[1]:
            yield Mistake(
                f"{where}.scene.brightness",
                f"expected the smaller number first, got {list(limits)}. Exchange them.",
            )


def _check_days(config: LineConfig) -> Iterator[Mistake]:
    days, images = config.line.journal_days, config.images
    if days is not None and days < images.min_days and images.keep != "none":
        yield Mistake(
            "line.journal_days",
            f"expected at least images.min_days ({images.min_days:g}), as images go with the rows of their parts, got "
            f"{days:g}. Raise it, or lower the other.",
        )


def _crop_mistakes(where: str, crop: tuple[int, int, int, int], size: tuple[int, int] | None) -> Iterator[Mistake]:
    left, top, width, height = crop
    if min(width, height) < MIN_SIDE_PX or max(left + width, top + height) > MAX_SIDE_PX:
        yield Mistake(
            where,
            f"expected left, top, width, height with sides of at least {MIN_SIDE_PX} pixels that end before pixel "
            f"{MAX_SIDE_PX}, got {list(crop)}. Mend it.",
        )
    elif size and (left + width > size[0] or top + height > size[1]):
        yield Mistake(where, f"expected a part of the image of {size[0]}x{size[1]} pixels, got {list(crop)}. Mend it.")


def _check_addresses(config: LineConfig) -> Iterator[Mistake]:
    taken: list[tuple[str, str, int]] = []
    for where, listen in _listeners(config):
        host, port = address_of(listen)
        if port > 0xFFFF:
            yield Mistake(where, f"expected a port from 0 to 65535, got {port}. Mend it.")
        for other, other_host, other_port in taken:
            # Port 0 is any free one.
            if port and port == other_port and _meet(host, other_host):
                yield Mistake(where, f"expected an address of its own, got that of {other}. Change the port of one.")
        taken.append((where, host, port))


def _listeners(config: LineConfig) -> Iterator[tuple[str, str]]:
    for number, station in enumerate(config.stations):
        for place, output in enumerate(station.outputs):
            if isinstance(output, ModbusOutput):
                yield f"stations[{number}].outputs[{place}].listen", output.listen
    if config.http:
        yield "http.listen", config.http.listen


def _meet(one: str, other: str) -> bool:
    """Return whether two servers on one port would meet: the same address, or one on all addresses."""
    hosts = [{"localhost": "127.0.0.1"}.get(host.lower(), host.lower()) for host in (one, other)]
    return hosts[0] == hosts[1] or not {"0.0.0.0", "::"}.isdisjoint(hosts)


def _check_http(config: LineConfig) -> Iterator[Mistake]:
    http: HttpOptions | None = config.http
    if http is None:
        return
    host, _ = address_of(http.listen)
    if not is_this_machine(host) and http.tls is None:
        yield Mistake(
            "http.listen",
            "expected http.tls, or an address that this machine alone reaches, such as 127.0.0.1:8710, got "
            f"{http.listen} without TLS: passwords could be read on the way. Add a certificate and its key.",
        )
    if http.tls and http.tls.ca:
        yield Mistake(
            "http.tls.ca", "expected none, as certificates of clients are not asked for, got one. Leave it out."
        )
    if http.tls and not (http.tls.cert and http.tls.key):
        yield Mistake("http.tls", "expected cert and key of the server, got not both. Add what is missing.")


def _check_folders(config: LineConfig) -> Iterator[Mistake]:
    written = [("line.state", config.line.state)]
    written += [(f"sinks[{n}].path", sink.path) for n, sink in enumerate(config.sinks) if isinstance(sink, JsonlSink)]
    for where, _, view in _views(config):
        if not isinstance(view.source, FolderSource):
            continue
        if "/" in view.source.match:
            yield Mistake(
                f"{where}.source.match",
                f"expected a pattern of file names, got {view.source.match!r} with a folder. Put it into path.",
            )
        watched = view.source.path.resolve()
        for key, folder in written:
            inside = folder.resolve()
            if inside.is_relative_to(watched) or watched.is_relative_to(inside):
                yield Mistake(
                    key,
                    f"expected a folder apart from {where}.source.path ({watched}), whose files become parts, got "
                    f"{inside}. Move one of them.",
                )
    for path, times in Counter(folder.resolve() for _, folder in written[1:]).items():
        if times > 1:
            yield Mistake("sinks", f"expected every `jsonl` sink to have a folder of its own, got {path} twice.")


def _check_disk(config: LineConfig) -> Iterator[Mistake]:
    images = config.images
    limits = (images.fault_below_gb, images.stop_below_gb, images.prune_below_gb)
    if sorted(limits) != list(limits):
        yield Mistake(
            "images",
            "expected fault_below_gb, stop_below_gb and prune_below_gb to be no smaller in this order, got "
            f"{', '.join(f'{limit:g}' for limit in limits)}. Images are deleted before they are no longer stored, and "
            "verdicts come last.",
        )


def _check_tls(config: LineConfig) -> Iterator[Mistake]:
    for number, sink in enumerate(config.sinks):
        tls: Tls | None = sink.tls if isinstance(sink, MqttSink) else None
        if tls and (tls.cert is None) != (tls.key is None):
            yield Mistake(f"sinks[{number}].tls", "expected cert and key, or neither, got one. Add the other.")


def _check_behind(config: LineConfig) -> Iterator[Mistake]:
    for number, sink in enumerate(config.sinks):
        if sink.on_behind == "stop" and not sink.required:
            yield Mistake(
                f"sinks[{number}].on_behind",
                "expected `required: true` for a sink that stops the line, got false. Set it, or take `warn`.",
            )


def _check_gpio(config: LineConfig) -> Iterator[Mistake]:
    taken: dict[tuple[str, int], str] = {}
    for number, station in enumerate(config.stations):
        for place, output in enumerate(station.outputs):
            if not isinstance(output, GpioOutput):
                continue
            for name in ("ready", "accept", "reject", "fault"):
                where = f"stations[{number}].outputs[{place}].{name}"
                line = (output.chip, getattr(output, name))
                if line in taken:
                    yield Mistake(where, f"expected a line of its own, got {line[1]}, that of {taken[line]}. Mend it.")
                taken[line] = where


def _check_rollouts(config: LineConfig) -> Iterator[Mistake]:
    for where, _, view in _views(config):
        if view.rollout is None:
            continue
        if config.trusted_keys is None:
            yield Mistake(
                "trusted_keys",
                f"expected the keys of those who sign bundles, as {where}.rollout takes releases without anybody "
                "looking, got null. Name them.",
            )
        source = view.rollout.source
        if isinstance(source, RegistryReleases):
            for key, mistake in mistakes_of(source):
                yield Mistake(f"{where}.rollout.source" + (f".{key}" if key else ""), mistake)


def _check_timezone(config: LineConfig) -> Iterator[Mistake]:
    zone = config.line.timezone
    if zone == "UTC":  # needs no table
        return
    try:
        zoneinfo.ZoneInfo(zone)
    # Names such as `..` and `Europe` are refused by ValueError and OSError.
    except (zoneinfo.ZoneInfoNotFoundError, ValueError, OSError):
        if zoneinfo.available_timezones():
            message = f"expected a name such as Europe/Berlin, got {zone}. Mend it."
        else:
            message = (
                f"expected a time zone that is known here, got {zone}: this machine has no table of them. "
                "Install it (pip install tzdata), or use UTC."
            )
        yield Mistake("line.timezone", message)


_CHECKS: tuple[Callable[[LineConfig], Iterator[Mistake]], ...] = (
    _check_names,
    _check_times,
    _check_policies,
    _check_triggers,
    _check_images,
    _check_days,
    _check_addresses,
    _check_http,
    _check_folders,
    _check_disk,
    _check_tls,
    _check_behind,
    _check_gpio,
    _check_timezone,
    _check_rollouts,
)

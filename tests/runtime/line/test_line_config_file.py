"""The configuration of a line: the examples are read, and every mistake is one line that says where and what to do."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from error_lines import reason
from hypothesis import given, settings
from odd_bytes import assert_read_or_refused, odd_bytes
from project_paths import ROOT

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.config_words import PATTERNS, words_of
from flawscope.runtime.line.line_config import LineConfig

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")

EXAMPLES = sorted((ROOT / "docs" / "examples" / "line").glob("*.yml"))
SEED = 20261130
"""Of the mutated configurations: the same ones on every run."""

VIEW: dict[str, Any] = {"name": "cam", "source": {"kind": "folder", "path": "inbox"}, "bundle": "b.flaw"}
STATION: dict[str, Any] = {"name": "top", "views": [VIEW]}
LINE: dict[str, Any] = {"line": {"name": "l", "state": "state"}, "stations": [STATION]}
MODBUS = {"kind": "modbus", "listen": "127.0.0.1:5020"}
GPIO = {"kind": "gpio", "chip": "gpiochip0", "ready": 1, "accept": 2, "reject": 3, "fault": 4}


def changed(**places: Any) -> dict[str, Any]:
    """Return the smallest configuration with values at places; `view_crop` is `crop` of the one view."""
    config = copy.deepcopy(LINE)
    station = config["stations"][0]
    parts = {"view": station["views"][0], "station": station, "line": config["line"], "top": config}
    for place, value in places.items():
        part, _, key = place.partition("_")
        parts[part][key] = value
    return config


def as_yaml(config: Any) -> str:
    # Through JSON: PyYAML writes an alias for what is in the configuration twice.
    return str(yaml.safe_dump(json.loads(json.dumps(config))))


def read(folder: Path, config: Any) -> Any:
    path = folder / "line.yml"
    path.write_text(config if isinstance(config, str) else as_yaml(config), encoding="utf-8")
    return read_config(path)


def refused(folder: Path, config: Any) -> str:
    with pytest.raises(ArgumentError) as raised:
        read(folder, config)
    message = reason(raised)
    assert message.startswith(f"{folder / 'line.yml'}: ")
    return message.removeprefix(f"{folder / 'line.yml'}: ")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_read(path: Path) -> None:
    found = read_config(path)
    assert found.path == path
    assert len(found.sha256) == 64
    assert found.config.line.state.is_absolute()


def test_there_is_an_example_of_every_way_that_images_come() -> None:
    kinds = {type(view.source).__name__ for path in EXAMPLES for view in read_config(path).config.stations[0].views}
    assert kinds == {"FolderSource", "PushSource", "GenicamSource", "RtspSource"}


def test_paths_and_secrets_in_files_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "etc").mkdir()
    monkeypatch.chdir(tmp_path)
    config = changed(
        top_sinks=[{"kind": "mqtt", "host": "h", "topic": "t", "user": "env:U", "password": "file:mqtt.pw"}],
        view_bundle="/abs/b.flaw",
    )
    Path("etc/line.yml").write_text(as_yaml(config))
    found = read_config(Path("etc/line.yml")).config
    assert found.line.state == tmp_path / "etc" / "state"
    assert found.stations[0].views[0].bundle == Path("/abs/b.flaw")
    assert found.sinks[0].password == f"file:{tmp_path / 'etc' / 'mqtt.pw'}"  # type: ignore[union-attr]
    assert found.sinks[0].user == "env:U"  # type: ignore[union-attr]


def test_the_hash_is_that_of_the_bytes(tmp_path: Path) -> None:
    import hashlib

    found = read(tmp_path, changed())
    assert found.sha256 == hashlib.sha256((tmp_path / "line.yml").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("", "expected the key line (mapping), got none. Add it."),
        (changed(station_deadlin_ms=5), "stations[0]: expected one of the keys name, views,"),
        (changed(station_deadlin_ms=5), "got 'deadlin_ms'. Did you mean deadline_ms?"),
        (changed(top_frobnicate=5), "got 'frobnicate'. Leave it out."),
        (
            changed(station_deadline_ms="soon"),
            "stations[0].deadline_ms: expected number above 0, at most 3600000, got ",
        ),
        (changed(station_depth=0), "stations[0].depth: expected whole number from 1 to 1024, got 0. Mend it."),
        (changed(station_record="befor_accept"), "got 'befor_accept'. Did you mean before_accept?"),
        (changed(view_source={"kind": "foldr", "path": "x"}), "views[0].source.kind: expected one of folder, genicam"),
        (changed(view_source={"kind": "foldr", "path": "x"}), "got 'foldr'. Did you mean folder?"),
        (changed(view_source={"path": "x"}), "expected the key kind (one of folder, genicam,"),
        (changed(view_source={"kind": "folder"}), "views[0].source: expected the key path (path), got none. Add it."),
        (changed(view_source="folder"), "source: expected mapping with `kind`: folder, genicam,"),
        (changed(view_source={"kind": "folder", "path": 5}), "views[0].source.path: expected path, got 5. Mend it."),
        (changed(view_source={"kind": "folder", "path": ""}), "views[0].source.path: expected path, got ''. Mend it."),
        (changed(line_state="~/state"), "line.state: expected a path without ~"),
        (changed(line_name="a b"), "line.name: expected name of at most 64 letters, digits,"),
        (changed(line_name="a\n"), "line.name: expected text in one line without control characters"),
        (changed(view_crop=[1, 2, 3]), "crop: expected list of 4: whole number of at least 0, whole number of at"),
        (changed(view_crop=[1, 2, 0, 4]), "crop[2]: expected whole number of at least 1, got 0."),
        (
            changed(view_source={"kind": "genicam", "camera": "c", "features": {"Gain": 1.0, "Width": [1]}}),
            "views[0].source.features.Width: expected true or false or whole number or number or text, got [1].",
        ),
        (changed(top_stations=[]), "stations: expected list of at least 1, got []."),
        (changed(top_line=None), "line: expected mapping, got null."),
        ("line: &a x\nstations: *a", "line 1: expected plain values, got an anchor"),
    ],
)
def test_what_a_key_may_not_be_is_told_with_place_and_remedy(tmp_path: Path, config: Any, words: str) -> None:
    assert words in refused(tmp_path, config)


@pytest.mark.parametrize(
    "source",
    [
        {"kind": "rtsp", "url": "rtsp://user:hunter2@host/1"},
        {"kind": "rtsp", "url": "rtsp://host/1", "password": "hunter2"},
        {"kind": "rtsp", "url": "rtsp://host/1", "password": ["hunter2"]},
        {"kind": "rtsp", "url": "rtsp://host/1", "open_s": "rtsp://user:hunter2@host/1"},
        "rtsp://user:hunter2@host/1",
    ],
)
def test_no_message_shows_a_secret_of_a_source(tmp_path: Path, source: Any) -> None:
    assert "hunter2" not in refused(tmp_path, changed(view_source=source))


@pytest.mark.parametrize(
    "sink",
    [
        {"kind": "webhook", "url": "https://user:hunter2@host/1"},
        {"kind": "webhook", "url": "https://host/1", "token": "hunter2"},
        {"kind": "webhook", "url": "https://host/1", "token": ["hunter2"]},
        {"kind": "mqtt", "host": "h", "topic": "t", "password": "hunter2"},
    ],
)
def test_no_message_shows_a_secret_of_a_sink(tmp_path: Path, sink: Any) -> None:
    assert "hunter2" not in refused(tmp_path, changed(top_sinks=[sink]))


PUSH = {**VIEW, "source": {"kind": "push"}}
SOFTWARE = {**VIEW, "source": {"kind": "genicam", "camera": "c", "trigger": "software"}}
FREE = {**VIEW, "source": {"kind": "genicam", "camera": "c", "trigger": "free"}}
HARDWARE = {"name": "other", "source": {"kind": "genicam", "camera": "d"}, "bundle": "b.flaw"}


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            changed(top_stations=[STATION, STATION]),
            "stations: expected every station to have a name of its own, got top",
        ),
        (changed(station_views=[VIEW, VIEW]), "stations[0].views: expected every view of the station to have a name"),
        (changed(station_collect_ms=1000.0), "stations[0].collect_ms: expected less than deadline_ms (1000), got 1000"),
        (
            changed(station_views=[FREE], station_outputs=[MODBUS]),
            "views[0].source.on_full: expected `every` or `wait`",
        ),
        (
            changed(view_source={"kind": "v4l2", "device": "/dev/video0"}, station_outputs=[MODBUS]),
            "on_full: expected `every` or `wait` where the station has outputs, got `latest`",
        ),
        (
            changed(station_views=[PUSH, {**VIEW, "name": "two"}]),
            "stations[0].views: expected all or none of a station's",
        ),
        (changed(station_views=[SOFTWARE, HARDWARE]), "to wait for a software trigger, got it for cam alone"),
        (changed(station_views=[PUSH], top_http=None), "http: expected a server for the images of station top (push)"),
        (changed(view_crop=[0, 0, 4, 400]), "crop: expected left, top, width, height with sides of at least 8 pixels"),
        (
            changed(
                view_source={"kind": "v4l2", "device": "/dev/video0", "size": [640, 480]}, view_crop=[0, 0, 641, 9]
            ),
            "crop: expected a part of the image of 640x480 pixels, got [0, 0, 641, 9]",
        ),
        (
            changed(view_source={"kind": "v4l2", "device": "/dev/video0", "size": [0, 480]}),
            "source.size: expected width and height from 8 to",
        ),
        (changed(view_scene={"brightness": [180, 60]}), "scene.brightness: expected the smaller number first"),
        (
            changed(top_http={"listen": "0.0.0.0:8710"}),
            "http.listen: expected http.tls, or an address that this machine alone reaches",
        ),
        (changed(top_http={"listen": "line.example:8710"}), "got line.example:8710 without TLS"),
        (changed(top_http={"names": ["line.example:8710"]}), "http.names[0]: expected name of a machine"),
        (changed(top_http={"listen": "127.0.0.1:70000"}), "http.listen: expected a port from 0 to 65535, got 70000"),
        (changed(top_http={"tls": {"cert": "c.pem"}}), "http.tls: expected cert and key of the server"),
        (changed(top_http={"tls": {"ca": "c.pem"}}), "http.tls.ca: expected none"),
        (changed(station_outputs=[MODBUS, MODBUS]), "outputs[1].listen: expected an address of its own, got that of"),
        (
            changed(station_outputs=[{**MODBUS, "listen": "0.0.0.0:8710"}]),
            "http.listen: expected an address of its own, got that of stations[0].outputs[0].listen",
        ),
        (
            changed(station_outputs=[{**GPIO, "fault": 2}]),
            "outputs[0].fault: expected a line of its own, got 2, that of",
        ),
        (
            changed(line_state="inbox/state"),
            "line.state: expected a folder apart from stations[0].views[0].source.path",
        ),
        (changed(line_state="."), "line.state: expected a folder apart from stations[0].views[0].source.path"),
        (changed(top_sinks=[{"kind": "jsonl", "path": "inbox"}]), "sinks[0].path: expected a folder apart from"),
        (
            changed(top_sinks=[{"kind": "jsonl", "path": "log"}] * 2),
            "sinks: expected every `jsonl` sink to have a folder",
        ),
        (
            changed(view_source={"kind": "folder", "path": "in", "match": "*/a"}),
            "match: expected a pattern of file names",
        ),
        (
            changed(top_sinks=[{"kind": "mqtt", "host": "h", "topic": "t", "tls": {"key": "k.pem"}}]),
            "sinks[0].tls: expected cert and key, or neither, got one.",
        ),
        (
            changed(top_sinks=[{"kind": "jsonl", "path": "log", "on_behind": "stop"}]),
            "sinks[0].on_behind: expected `required: true`",
        ),
        (
            changed(line_timezone="Mars/Olympus"),
            "line.timezone: expected a name such as Europe/Berlin, got Mars/Olympus",
        ),
        (changed(line_timezone="../etc/passwd"), "line.timezone: expected a name such as Europe/Berlin"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(tmp_path: Path, config: Any, words: str) -> None:
    assert words in refused(tmp_path, config)


@pytest.mark.parametrize(
    "config",
    [
        changed(station_views=[FREE]),
        changed(station_views=[FREE], station_outputs=[MODBUS], station_allow_skip=True),
        changed(station_views=[HARDWARE], station_outputs=[MODBUS, GPIO]),
        changed(top_http={"listen": "[::1]:8710", "tls": {"cert": "c.pem", "key": "k.pem"}}),
        changed(top_http={"listen": "0.0.0.0:8710", "tls": {"cert": "c.pem", "key": "k.pem"}, "names": ["a.example"]}),
        changed(top_http={"listen": "localhost:0"}, station_outputs=[{**MODBUS, "listen": "127.0.0.1:0"}]),
        changed(top_http=None),
        changed(station_deadline_ms=100.0, station_collect_ms=99),
        changed(line_timezone="Europe/Berlin"),
    ],
)
def test_what_is_right_is_not_refused(tmp_path: Path, config: Any) -> None:
    pytest.importorskip("tzdata", reason="the test of a time zone needs a table of them")
    assert isinstance(read(tmp_path, config).config, LineConfig)


def test_a_folder_behind_a_link_is_found(tmp_path: Path) -> None:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "state").symlink_to("inbox")
    assert "line.state: expected a folder apart" in refused(tmp_path, changed())


def test_a_machine_without_time_zones_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zoneinfo

    def none(*_: object) -> Any:
        raise zoneinfo.ZoneInfoNotFoundError("none")

    monkeypatch.setattr(zoneinfo, "ZoneInfo", none)
    monkeypatch.setattr(zoneinfo, "available_timezones", set)
    assert "pip install tzdata" in refused(tmp_path, changed(line_timezone="Europe/Berlin"))
    assert read(tmp_path, changed(line_timezone="UTC")).config.line.timezone == "UTC"


def test_without_pyyaml_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "line.yml").write_text("line: {}")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(MissingExtra, match=r"flawscope\[line\]"):
        read_config(tmp_path / "line.yml")


def test_a_file_that_is_not_there_or_is_none_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "none.yml", tmp_path):
        with pytest.raises(ArgumentError) as raised:
            read_config(path)
        assert "could not be read" in reason(raised)


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the place of everything in a configuration, but for itself."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in entries:
        yield (*place, key)
        yield from leaves(inner, (*place, key))


def mutated(config: dict[str, Any], draw: random.Random) -> dict[str, Any]:
    """Return a configuration with one mistake that no key takes: a wrong type, a wrong name, or one key more."""
    mutant = copy.deepcopy(config)
    # Names below `features` are the camera's own: any is right here.
    place = draw.choice([place for place in leaves(mutant) if "features" not in place[:-1]])
    holder = mutant
    for key in place[:-1]:
        holder = holder[key]
    kind = draw.choice(["type", "name", "more"])
    if kind == "more" and isinstance(holder[place[-1]], dict) and place[-1] != "features":
        holder[place[-1]]["unheard_of"] = 1
    elif kind == "name" and isinstance(holder, dict):
        holder[f"{place[-1]}_x"] = holder.pop(place[-1])
    else:
        # A mapping where none is expected, a number where one is.
        holder[place[-1]] = 3 if isinstance(holder[place[-1]], dict) else {"x": 1}
    return mutant


def test_a_hundred_mutated_configurations_are_one_line_each(tmp_path: Path) -> None:
    draw = random.Random(SEED)
    wholes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in EXAMPLES]
    for _ in range(100):
        mutant = mutated(draw.choice(wholes), draw)
        message = refused(tmp_path, mutant)
        assert "expected" in message, (mutant, message)
        assert ", got " in message, (mutant, message)
        assert "validation" not in message.lower()


WHOLE = EXAMPLES[0].read_bytes()


@settings(max_examples=200)
@given(data=odd_bytes(WHOLE))
def test_odd_bytes_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "odd-line.yml"
    path.write_bytes(data)
    assert_read_or_refused(lambda: read_config(path))


def every_type(kind: msgspec.inspect.Type) -> Iterator[msgspec.inspect.Type]:
    yield kind
    inner: list[Any] = [getattr(kind, "item_type", None), getattr(kind, "value_type", None)]
    inner += [*getattr(kind, "types", ()), *getattr(kind, "item_types", ())]
    inner += [field.type for field in getattr(kind, "fields", ())]
    for one in inner:
        if one is not None:
            yield from every_type(one)


def test_every_key_has_words_for_what_it_takes() -> None:
    kinds = list(every_type(msgspec.inspect.type_info(LineConfig)))
    assert all(words_of(kind) for kind in kinds)
    used = {kind.pattern for kind in kinds if isinstance(kind, msgspec.inspect.StrType)} - {None}
    assert used == set(PATTERNS)

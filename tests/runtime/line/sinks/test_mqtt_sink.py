from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from line_control import wait_for
from memory_journal import MemoryJournal, event_entry, head_entry, part_entry
from mqtt_broker import MqttBroker, mqtt_broker, subscriber
from own_certificates import write_certificate

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.sinks.mqtt import Mqtt
from flawscope.runtime.line.sinks.runner import SinkRunner
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import MqttSink, Tls


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[MqttBroker]:
    with mqtt_broker(tmp_path / "broker") as broker:
        yield broker


@contextlib.contextmanager
def sink_to(port: int, **changes: Any) -> Iterator[Mqtt]:
    pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
    chosen = {"host": "127.0.0.1", "port": port, "topic": "factory/press/", "timeout_s": 30.0} | changes
    sink = Mqtt(MqttSink(**chosen), "press")
    try:
        yield sink
    finally:
        sink.close()


def test_entries_have_topics_of_their_kinds(broker: MqttBroker) -> None:
    with subscriber(broker.port) as listening:
        with sink_to(broker.port) as sink:
            sink.send([part_entry(1), event_entry(2), part_entry(3, station="side"), head_entry(4)])
            wait_for(lambda: listening.links() == [1, 2, 3, 4])
        wait_for(lambda: listening.states() == ["online", "stopped"])
        assert [topic for topic, *_ in listening.messages] == [
            "factory/press/state",
            "factory/press/top/result",
            "factory/press/event",
            "factory/press/side/result",
            "factory/press/head",
            "factory/press/state",
        ]
        assert json.loads(listening.messages[1][1]) == part_entry(1)


def test_only_the_state_is_retained(broker: MqttBroker) -> None:
    with sink_to(broker.port) as sink:
        sink.send([part_entry(1)])
        with subscriber(broker.port) as listening:
            wait_for(lambda: bool(listening.messages))
            assert listening.messages == [("factory/press/state", b"online", True)]


def test_a_batch_is_larger_than_what_may_be_in_flight(tmp_path: Path) -> None:
    with mqtt_broker(tmp_path, "max_inflight_messages 3") as broker, subscriber(broker.port) as listening:
        with sink_to(broker.port) as sink:
            sink.send([part_entry(link) for link in range(1, sink.batch + 1)])
            wait_for(lambda: len(listening.links()) == sink.batch)
        assert listening.links() == list(range(1, sink.batch + 1))


def test_the_broker_tells_when_the_line_is_gone(broker: MqttBroker) -> None:
    with subscriber(broker.port) as listening:
        with sink_to(broker.port) as sink:
            sink.send([part_entry(1)])
            assert sink._connection is not None
            sink._connection.drop()  # as the end of a killed process
            wait_for(lambda: "offline" in listening.states())
            # The sink comes back although there is nothing to send.
            wait_for(lambda: listening.states() == ["online", "offline", "online"])
        wait_for(lambda: listening.states()[-1] == "stopped")


def test_a_broker_that_is_away_is_an_error_with_its_reason() -> None:
    port = free_port()
    with sink_to(port) as sink:
        for _ in range(2):
            with pytest.raises(SinkError, match=rf"^mqtt 127\.0\.0\.1:{port}: Connection refused$"):
                sink.send([part_entry(1)])


def test_a_broker_that_comes_back_gets_all(broker: MqttBroker) -> None:
    with sink_to(broker.port) as sink:
        with subscriber(broker.port) as listening:
            sink.send([part_entry(1)])
            wait_for(lambda: listening.links() == [1])
        broker.stop()
        with pytest.raises(SinkError):
            sink.send([part_entry(2)])
        broker.start()

        def is_sent() -> bool:
            with contextlib.suppress(SinkError):
                sink.send([part_entry(2)])
                return True
            return False

        wait_for(is_sent)
        with subscriber(broker.port) as listening:
            # The first one comes again where the subscriber went before the broker had its acknowledgement.
            wait_for(lambda: listening.links()[-1:] == [2])


def test_a_broker_that_does_not_acknowledge_is_an_error(broker: MqttBroker) -> None:
    with sink_to(broker.port, timeout_s=0.5) as sink:
        sink.send([part_entry(1)])
        broker.freeze()
        with pytest.raises(SinkError, match=r"not acknowledged within 0\.5 s"):
            sink.send([part_entry(2)])
        with pytest.raises(SinkError):
            sink.send([part_entry(2)])
        broker.thaw()


def test_closing_ends_a_batch_that_waits(broker: MqttBroker) -> None:
    with sink_to(broker.port, timeout_s=600.0) as sink:
        sink.send([part_entry(1)])
        broker.freeze()
        errors: list[str] = []

        def send() -> None:
            try:
                sink.send([part_entry(2)])
            except SinkError as err:
                errors.append(str(err))

        thread = threading.Thread(target=send)
        thread.start()
        began = time.monotonic()
        sink.close()
        thread.join(30)
        assert time.monotonic() - began < 10
        assert errors == [f"mqtt 127.0.0.1:{broker.port}: closed"]
        broker.thaw()
        with pytest.raises(SinkError, match="closed"):
            sink.send([part_entry(2)])


def test_what_is_no_broker_is_an_error() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        sink_to(silent.getsockname()[1], timeout_s=0.3) as sink,
        pytest.raises(SinkError, match="does not answer as an MQTT broker"),
    ):
        sink.send([part_entry(1)])


def test_user_and_password_are_read_and_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = shutil.which("mosquitto_passwd")
    if tool is None:
        pytest.skip("needs mosquitto_passwd")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "line", "right-secret"], check=True, capture_output=True)
    monkeypatch.setenv("MQTT_USER", "line")
    monkeypatch.setenv("MQTT_PASSWORD", "wrong-secret")
    names = {"user": "env:MQTT_USER", "password": "env:MQTT_PASSWORD"}
    with (
        mqtt_broker(tmp_path / "broker", f"password_file {passwords}", anonymous=False) as broker,
        sink_to(broker.port, **names) as sink,
    ):
        with pytest.raises(SinkError, match="refuses the connection: Not authorized") as error:
            sink.send([part_entry(1)])
        assert "secret" not in str(error.value)
        monkeypatch.setenv("MQTT_PASSWORD", "right-secret")
        sink.send([part_entry(1)])


def test_a_topic_that_the_broker_refuses_is_an_error(tmp_path: Path) -> None:
    """Brokers acknowledge what they drop, unless they are asked in MQTT 5."""
    rules = tmp_path / "rules"
    rules.write_text("topic write factory/press/state\ntopic write factory/press/event\n")
    with mqtt_broker(tmp_path / "broker", f"acl_file {rules}") as broker, sink_to(broker.port) as sink:
        sink.send([event_entry(1)])
        with pytest.raises(SinkError, match=r"refuses link 2 on factory/press/top/result: Not authorized"):
            sink.send([part_entry(2)])


# paho leaves the socket of a failed handshake to the collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
def test_tls_is_verified(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path / "server")
    other, _ = write_certificate(tmp_path / "other")
    with mqtt_broker(tmp_path / "broker", f"certfile {certificate}", f"keyfile {key}") as broker:
        refused = pytest.raises(SinkError, match="its certificate is not trusted")
        with sink_to(broker.port, tls=Tls(ca=other)) as sink, refused:
            sink.send([part_entry(1)])
        with sink_to(broker.port, tls=Tls(ca=certificate)) as sink:
            sink.send([part_entry(1)])
        with sink_to(broker.port, timeout_s=1.0) as sink, pytest.raises(SinkError):
            sink.send([part_entry(1)])


def test_a_certificate_of_the_line_itself_is_sent(tmp_path: Path) -> None:
    certificate, key = write_certificate(tmp_path / "server")
    own, own_key = write_certificate(tmp_path / "own")
    settings = (f"certfile {certificate}", f"keyfile {key}", f"cafile {own}", "require_certificate true")
    tls = Tls(ca=certificate, cert=own, key=own_key)
    with mqtt_broker(tmp_path / "broker", *settings) as broker, sink_to(broker.port, tls=tls) as sink:
        sink.send([part_entry(1)])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tls": Tls(ca=Path("/nowhere/ca.pem"))}, r"expected /nowhere/ca\.pem to hold .*No such file"),
        ({"tls": Tls(key=Path("key.pem"))}, "expected a `cert` for the key"),
        ({"password": "env:MQTT_PASSWORD"}, "expected a `user` for the password"),
        ({"user": "env:NOT_SET_ANYWHERE"}, "expected an environment variable NOT_SET_ANYWHERE"),
    ],
)
def test_options_that_cannot_be_used_are_one_line(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as error, sink_to(1, **changes):
        pass
    assert "\n" not in str(error.value)


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtra, match="line-mqtt"):
        Mqtt(MqttSink(host="127.0.0.1", topic="a"), "press")


def test_a_sink_that_never_sent_connects_to_nobody(broker: MqttBroker) -> None:
    with subscriber(broker.port) as listening:
        with sink_to(broker.port):
            pass
        with sink_to(broker.port) as sink:
            sink.send([part_entry(1)])
            wait_for(lambda: listening.links() == [1])
        wait_for(lambda: listening.states() == ["online", "stopped"])


@pytest.mark.long
def test_a_broker_that_comes_and_goes_gets_all_in_order(broker: MqttBroker) -> None:
    journal = MemoryJournal()
    with subscriber(broker.port) as listening, sink_to(broker.port, timeout_s=5.0) as sink:
        runner = SinkRunner("mqtt", sink, journal, wait=lambda seconds: threading.Event().wait(0.05))
        runner.start()
        for _ in range(3):
            journal.add_parts(150)
            wait_for(lambda: len(listening.links()) > 10)
            broker.stop()
            journal.add_parts(100)
            broker.start()
        wait_for(lambda: len(listening.links()) == journal.last_link, 60)
        assert runner.stop(10.0)
        assert listening.links() == list(range(1, journal.last_link + 1))
        assert runner.errors > 0

"""A mosquitto of one's own on a free port, and a subscriber that notes what arrives; tests skip where it is absent."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from free_ports import free_port
from line_control import wait_for

_PLACES = ("mosquitto", "/usr/sbin/mosquitto", "/usr/local/sbin/mosquitto")


class MqttBroker:
    """A broker that keeps sessions over its own restarts.

    Args:
        folder: Folder of its files.
        settings: Further lines of its configuration, of its one listener and for all of it.
        anonymous: Whether clients need no password.
    """

    def __init__(self, folder: Path, *settings: str, anonymous: bool = True) -> None:
        program = next(filter(None, map(shutil.which, _PLACES)), None)
        if program is None:
            pytest.skip("needs mosquitto")
        pytest.importorskip("paho.mqtt.client", reason="needs paho-mqtt")
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        folder.mkdir(parents=True, exist_ok=True)
        lines = [
            f"listener {self.port} 127.0.0.1",
            *settings,
            f"allow_anonymous {str(anonymous).lower()}",
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            # As root it would go over to a user who may not read the folder of a test.
            "user root",
            f"log_dest file {folder / 'log.txt'}",
        ]
        (folder / "broker.conf").write_text("\n".join(lines) + "\n")
        self._command = [program, "-c", str(folder / "broker.conf")]
        self._log = folder / "log.txt"

    def start(self) -> None:
        """Start it, and return when it listens."""
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

        def is_listening() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, self._log.read_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), timeout=5):
                return True
            return False

        wait_for(is_listening)

    def stop(self) -> None:
        """End it; it keeps what its subscribers have not had yet."""
        if self._process is not None:
            # One that a test has stopped takes no other signal.
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            self._process.wait(20)
            self._process = None

    def freeze(self) -> None:
        """Let it keep its connections and answer nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def mqtt_broker(folder: Path, *settings: str, anonymous: bool = True) -> Iterator[MqttBroker]:
    """Run a broker."""
    broker = MqttBroker(folder, *settings, anonymous=anonymous)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


class Subscriber:
    """Notes all messages; its session outlives connections and the broker's restarts.

    Attributes:
        messages: Topic, payload, and whether it was retained, in the order of their arrival.
    """

    def __init__(self, port: int, topic: str = "#") -> None:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion

        self.messages: list[tuple[str, bytes, bool]] = []
        self._subscribed = threading.Event()
        self._client = Client(CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False)
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda client, *_: client.subscribe(topic, qos=1)
        self._client.on_subscribe = lambda *_: self._subscribed.set()
        self._client.on_message = self._on_message
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        assert self._subscribed.wait(30)

    def links(self) -> list[int]:
        """Return the links of what has arrived, in order, without those that have arrived before."""
        links = [json.loads(payload)["link"] for _, payload, _ in self.messages if payload.startswith(b"{")]
        return list(dict.fromkeys(links))

    def states(self) -> list[str]:
        """Return what was published on topics of the state."""
        return [payload.decode() for topic, payload, _ in self.messages if topic.endswith("/state")]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _on_message(self, client: Any, data: Any, message: Any) -> None:
        self.messages.append((message.topic, message.payload, message.retain))


@contextlib.contextmanager
def subscriber(port: int, topic: str = "#") -> Iterator[Subscriber]:
    """Subscribe to a topic."""
    listening = Subscriber(port, topic)
    try:
        yield listening
    finally:
        listening.close()

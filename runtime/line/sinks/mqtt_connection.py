"""One connection to an MQTT broker, never used again: what was unsent when it broke is nobody's but the journal's.

paho's own way to connect again sends what it still holds, so a batch that is sent once more would wait behind itself,
and more of it each time. MQTT 5 alone: brokers of MQTT 3.1.1 acknowledge what they drop for want of permission.
"""

from __future__ import annotations

import contextlib
import hashlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, NamedTuple

from flawscope.errors import MissingExtra
from flawscope.http_limit import shut_down

if TYPE_CHECKING:
    from paho.mqtt.client import Client, ConnectFlags, DisconnectFlags
    from paho.mqtt.properties import Properties
    from paho.mqtt.reasoncodes import ReasonCode

_KEEP_ALIVE_S = 20
_IN_FLIGHT = 20  # paho's and most brokers' own number


class Broker(NamedTuple):
    """Where a broker is, and how it is spoken to.

    Attributes:
        host: Its name or address.
        port: Its port.
        tls: TLS; None for none.
        topic: Topic of the state, which is `online` on every connection.
        client: Name of the client; of two connections of one name the broker ends the first.
    """

    host: str
    port: int
    tls: ssl.SSLContext | None
    topic: str
    client: str


def client_name(line: str, topic: str) -> str:
    """Return a name for the client of a line and topic, of the 23 characters that every broker takes."""
    return f"flawscope-{hashlib.sha256(f'{line}/{topic}'.encode()).hexdigest()[:12]}"


class Connection:
    """One connection, from `open` to its end.

    Attributes:
        is_up: Whether the broker has accepted it, and knows that the line is online.
        is_over: Whether it has ended.
        reason: Why it has ended or was not accepted; it holds no secrets.
        acknowledged: Message -> empty, or why the broker refused it.
        most_in_flight: Messages that the broker takes before it has acknowledged the first of them.
    """

    def __init__(self, broker: Broker, changed: threading.Condition) -> None:
        self.is_up = False
        self.is_over = False
        self.reason = ""
        self.acknowledged: dict[int, str] = {}
        self.most_in_flight = _IN_FLIGHT
        self._greeting: int | None = None
        self._broker, self._changed = broker, changed
        self._client = self._made()

    def open(self, user: str | None, password: str | None, timeout_s: float) -> None:
        """Connect; `changed` is notified when the broker accepts or refuses. Raises OSError."""
        client = self._client
        if user is not None:
            client.username_pw_set(user, password)
        client.connect_timeout = timeout_s
        client.connect(self._broker.host, self._broker.port, _KEEP_ALIVE_S, clean_start=True)
        client.loop_start()

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> int | None:
        """Send a message and return its number; None if the connection is over."""
        info = self._client.publish(topic, payload, qos=1, retain=retain)
        # Whatever paho says else, it has kept the message for a connection that this object will never have.
        return info.mid if info.rc == 0 else None

    def leave(self) -> None:
        """Say good-bye: the broker then publishes no last will."""
        with contextlib.suppress(OSError, ValueError):
            self._client.disconnect()

    def drop(self) -> None:
        """Break it off, whatever it waits for."""
        sock = self._client.socket()
        # paho's thread sees the end, closes the socket and ends; nobody waits for it.
        if isinstance(sock, socket.socket):
            shut_down(sock)
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    def _made(self) -> Client:
        from paho.mqtt.client import Client
        from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion

        client = Client(
            CallbackAPIVersion.VERSION2,
            client_id=self._broker.client,
            protocol=MQTTProtocolVersion.MQTTv5,
            reconnect_on_failure=False,
        )
        if self._broker.tls is not None:
            client.tls_set_context(self._broker.tls)
        client.will_set(self._broker.topic, b"offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _on_connect(
        self, client: Client, data: object, flags: ConnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        if code.is_failure:
            self._end(f"it refuses the connection: {code}")
            return
        # A broker ends connections that send more at once than it says here; paho does not look at it.
        self.most_in_flight = min(getattr(properties, "ReceiveMaximum", _IN_FLIGHT), _IN_FLIGHT)
        self._greeting = client.publish(self._broker.topic, b"online", qos=1, retain=True).mid

    def _on_disconnect(
        self, client: Client, data: object, flags: DisconnectFlags, code: ReasonCode, properties: Properties | None
    ) -> None:
        self._end(f"the connection has ended: {code}")

    def _on_publish(
        self, client: Client, data: object, message: int, code: ReasonCode, properties: Properties | None
    ) -> None:
        with self._changed:
            self.acknowledged[message] = str(code) if code.is_failure else ""
            # Before that it is one more in flight, so nothing else may be sent.
            self.is_up = self.is_up or message == self._greeting
            self._changed.notify_all()

    def _end(self, reason: str) -> None:
        with self._changed:
            self.is_over = True
            self.reason = self.reason or reason
            self._changed.notify_all()


def require_paho() -> None:
    """Raise MissingExtra unless paho-mqtt is installed."""
    try:
        import paho.mqtt.client  # noqa: F401
    except ImportError as err:
        raise MissingExtra("the sink mqtt", "paho-mqtt", "line-mqtt") from err

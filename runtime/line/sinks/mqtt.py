"""Messages of an MQTT broker: QoS 1, and sent only when the broker has acknowledged each message of the batch.

`TOPIC/state` is retained: `online` on every connection, `stopped` at the end, and `offline` from the broker when the
line is gone without a word. Nothing is ever received: there are no commands over MQTT.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from flawscope.errors import ArgumentError
from flawscope.runtime.line.sinks.mqtt_connection import Broker, Connection, client_name, require_paho
from flawscope.runtime.line.sinks.sink import SinkError
from flawscope.runtime.line.sinks.table import MqttSink, Tls
from flawscope.secrets import read_secret, without_secrets
from flawscope.text import encode_json, printable

_FIRST_PAUSE_S = 1.0
_LAST_PAUSE_S = 40.0
_GOOD_BYE_S = 0.4


class Mqtt:
    """Publishes entries below one topic; a `Sink`. It connects at the first entry, and then stays connected.

    Args:
        options: Its options.
        line: Name of the line.

    Raises:
        ArgumentError: If certificates, user or password cannot be used.
        MissingExtra: If paho-mqtt is not installed.
    """

    batch = 100

    def __init__(self, options: MqttSink, line: str) -> None:
        require_paho()
        self._options = options
        self._topic = options.topic.rstrip("/")
        self._shown = f"mqtt {options.host}:{options.port}"
        if options.password is not None and options.user is None:
            raise ArgumentError(f"sinks, {self._shown}: expected a `user` for the password, got none. Add it.")
        tls = None if options.tls is None else _context(options.tls, self._shown)
        self._broker = Broker(options.host, options.port, tls, f"{self._topic}/state", client_name(line, self._topic))
        self._secrets()
        self._changed = threading.Condition()
        self._connection: Connection | None = None
        self._thread: threading.Thread | None = None
        self._attempts = 0
        self._is_wanted = False
        self._is_closed = False
        self._reason = ""

    def send(self, entries: Sequence[dict[str, Any]]) -> None:
        """Publish entries, and return when the broker has acknowledged each; see `Sink`."""
        connection = self._connected()
        acknowledged = connection.acknowledged
        acknowledged.clear()
        end = time.monotonic() + self._options.timeout_s
        messages: list[int] = []
        for entry in entries:
            self._await(connection, lambda: len(messages) - len(acknowledged) < connection.most_in_flight, end)
            message = connection.publish(self._topic_of(entry), encode_json(entry))
            if message is None:
                raise self._broken(connection)
            messages.append(message)
        self._await(connection, lambda: len(acknowledged) == len(messages), end)
        for entry, message in zip(entries, messages, strict=True):
            if acknowledged[message]:
                raise SinkError(
                    f"{self._shown}: it refuses link {entry['link']} on {printable(self._topic_of(entry))}: "
                    f"{acknowledged[message]}"
                )

    def close(self) -> None:
        """End: `stopped` is published where the broker is there."""
        with self._changed:
            if self._is_closed:
                return
            self._is_closed = True
            connection = self._connection
            self._changed.notify_all()
        if connection is None:
            return
        message = connection.publish(self._broker.topic, b"stopped", retain=True)
        if message is not None and self._wait(lambda: connection.is_over or message in connection.acknowledged):
            connection.leave()
        self._wait(lambda: connection.is_over)
        connection.drop()

    def _await(self, connection: Connection, condition: Callable[[], bool], end: float) -> None:
        """Wait for acknowledgements, or raise SinkError if they do not come until the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closed or connection.is_over or condition(), end - time.monotonic())
            if condition():
                return
        raise self._broken(connection)

    def _wait(self, condition: Callable[[], bool]) -> bool:
        with self._changed:
            return self._changed.wait_for(condition, _GOOD_BYE_S)

    def _topic_of(self, entry: dict[str, Any]) -> str:
        if entry["kind"] == "part":
            return f"{self._topic}/{entry['station']}/result"
        return f"{self._topic}/{entry['kind']}"

    def _broken(self, connection: Connection) -> SinkError:
        """Return the error of a batch that was not acknowledged, and leave its connection, which still holds it."""
        with self._changed:
            reason = connection.reason or f"it has not acknowledged within {self._options.timeout_s:g} s"
            if self._is_closed:
                reason = "closed"
        if reason != "closed":  # then `close` says good-bye over it
            connection.drop()
        return SinkError(f"{self._shown}: {reason}")

    def _connected(self) -> Connection:
        """Return the connection, or raise SinkError when the next attempt to have one has failed."""
        with self._changed:
            if self._thread is None and not self._is_closed:
                self._thread = threading.Thread(target=self._keep, name=self._shown, daemon=True)
                self._thread.start()
            self._is_wanted = True
            self._changed.notify_all()
            attempts = self._attempts

            def is_decided() -> bool:
                return self._is_closed or self._connection is not None or self._attempts > attempts

            self._changed.wait_for(is_decided, 2 * self._options.timeout_s)
            self._is_wanted = False
            if self._connection is not None and not self._is_closed:
                return self._connection
            reason = "closed" if self._is_closed else self._reason or "it does not answer"
        raise SinkError(f"{self._shown}: {reason}")

    def _keep(self) -> None:
        """Connect, and connect again when that has ended, whether there is anything to send or not; a thread's target.

        A line that stands still for days must not be `offline` for those who look at its state.
        """
        failures = 0
        while True:
            connection = self._opened()
            with self._changed:
                if connection is None:
                    self._attempts += 1
                    failures += 1
                else:
                    self._connection = connection
                    failures = 1
                self._changed.notify_all()
                if connection is not None:
                    self._changed.wait_for(lambda ended=connection: self._is_closed or ended.is_over)  # type: ignore[misc]
                    if not self._is_closed:  # `close` says good-bye over it
                        self._connection = None
                self._is_wanted = False
                # Whoever sends has made a pause already.
                self._changed.wait_for(lambda: self._is_closed or self._is_wanted, _pause_s(failures))
                if self._is_closed:
                    return

    def _opened(self) -> Connection | None:
        """Return a connection that the broker has accepted, or None after noting why there is none."""
        user = password = None
        connection = Connection(self._broker, self._changed)
        try:
            user, password = self._secrets()
            connection.open(user, password, self._options.timeout_s)
        except (OSError, ValueError, ArgumentError) as err:
            reason = _reason(err)
        else:
            with self._changed:
                self._changed.wait_for(
                    lambda: self._is_closed or connection.is_up or connection.is_over, self._options.timeout_s
                )
                if connection.is_up and not connection.is_over and not self._is_closed:
                    return connection
                reason = connection.reason or "it does not answer as an MQTT broker"
            connection.drop()
        self._reason = without_secrets(printable(reason), user, password)
        return None

    def _secrets(self) -> tuple[str | None, str | None]:
        """Return user and password, read anew."""
        user, password = self._options.user, self._options.password
        return (None if user is None else read_secret(user)), (None if password is None else read_secret(password))


def _pause_s(failures: int) -> float:
    """Return how long to wait before the next attempt, not the same for all lines of a factory."""
    base = min(_FIRST_PAUSE_S * 2.0 ** min(failures - 1, 16), _LAST_PAUSE_S)
    return base * (1.0 + 0.5 * random.random())


def _context(tls: Tls, shown: str) -> ssl.SSLContext:
    if tls.key is not None and tls.cert is None:
        raise ArgumentError(f"sinks, {shown}: expected a `cert` for the key, got none. Add it.")
    named = " and ".join(printable(str(path)) for path in (tls.ca, tls.cert, tls.key) if path is not None)
    try:
        context = ssl.create_default_context(cafile=None if tls.ca is None else str(tls.ca))
        if tls.cert is not None:
            # Without a password, so that nobody is asked for one on the terminal of a service.
            context.load_cert_chain(tls.cert, tls.key, password="")
    except OSError as err:  # an SSLError is one
        reason = "they do not" if isinstance(err, ssl.SSLError) else err.strerror or str(err)
        raise ArgumentError(
            f"sinks, {shown}: expected {named} to hold certificates and an unencrypted key (PEM) that belong together, "
            f"but: {reason}."
        ) from None
    return context


def _reason(err: OSError | ValueError | ArgumentError) -> str:
    if isinstance(err, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({err.verify_message})"
    if isinstance(err, TimeoutError):
        return "it does not answer"
    return (err.strerror if isinstance(err, OSError) else None) or str(err)

"""The table of sinks: a kind, its options, and where its code is; nothing else lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import msgspec

from flawscope.runtime.line.options import Name, Options, Seconds, Secret, Text
from flawscope.runtime.line.outputs.table import Port


class SinkBase(Options, frozen=True, kw_only=True):
    """What all sinks have.

    Attributes:
        name: Its name, under which the journal keeps how far it is: with another name it begins at the start of the
            journal. Its kind by default; of two sinks of one kind, one needs a name.
        required: Whether the line warns when the sink is `max_behind` entries behind, and never drops them before.
        max_behind: Entries of the journal that a required sink may be behind.
        on_behind: What happens when a required sink is more behind: `warn`, or `stop`: no part is scored until it is
            behind half of that.
    """

    name: Name | None = None
    required: bool = False
    max_behind: Annotated[int, msgspec.Meta(ge=1)] = 10_000
    on_behind: Literal["warn", "stop"] = "warn"


class JsonlSink(SinkBase, frozen=True, kw_only=True, tag="jsonl", tag_field="kind"):
    """Files of JSON lines.

    Attributes:
        path: Folder of the files.
        rotate: When a new file begins, in UTC.
    """

    path: Path
    rotate: Literal["hourly", "daily", "never"] = "daily"


class WebhookSink(SinkBase, frozen=True, kw_only=True, tag="webhook", tag_field="kind"):
    """Entries as a JSON array, sent by HTTP POST.

    Attributes:
        url: Where to.
        token: Where the bearer token is; None for none.
        timeout_s: Seconds until the answer must be there.
        ca: Certificates that are trusted, in place of the system's.
        batch: Most entries of a request.
    """

    url: Annotated[str, msgspec.Meta(pattern=r"^https?://[^@]+$", max_length=4096)]
    token: Secret | None = None
    timeout_s: Seconds = 5.0
    ca: Path | None = None
    batch: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 100


class Tls(Options, frozen=True, kw_only=True):
    """TLS of a connection.

    Attributes:
        ca: Certificates that are trusted, in place of the system's.
        cert: Own certificate; None for none.
        key: Its key.
    """

    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None


class MqttSink(SinkBase, frozen=True, kw_only=True, tag="mqtt", tag_field="kind"):
    """Messages of an MQTT broker: `TOPIC/STATION/result`, `TOPIC/event`, `TOPIC/head`, and `TOPIC/state` (retained).

    Attributes:
        host: The broker.
        port: Its port.
        topic: Beginning of all topics.
        tls: TLS; None for none.
        user: Where the user name is; None for none.
        password: Where the password is; None for none.
        timeout_s: Seconds until the broker must have acknowledged.
    """

    host: Text
    port: Port = 1883
    topic: Annotated[str, msgspec.Meta(pattern=r"^[^+#\0]+$", max_length=1024)]
    tls: Tls | None = None
    user: Secret | None = None
    password: Secret | None = None
    timeout_s: Seconds = 10.0


SinkOptions = JsonlSink | WebhookSink | MqttSink


class Row(NamedTuple):
    """A kind of sink.

    Attributes:
        place: `module:attribute` of its class; made with its options and the name of the line.
        extra: Extra of flawscope that installs what it needs; empty where nothing is.
    """

    place: str
    extra: str


_HERE = "flawscope.runtime.line.sinks"

SINKS: dict[type[Any], Row] = {
    JsonlSink: Row(f"{_HERE}.jsonl:JsonLines", ""),
    WebhookSink: Row(f"{_HERE}.webhook:Webhook", ""),
    MqttSink: Row(f"{_HERE}.mqtt:Mqtt", "line-mqtt"),
}
"""Options -> row."""

"""The table of outputs: a kind, its options, and where its code is; nothing else lists them."""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple

import msgspec

from flawscope.runtime.line.options import Milliseconds, Options, Seconds, Text

Port = Annotated[int, msgspec.Meta(ge=0, le=0xFFFF)]
Line = Annotated[int, msgspec.Meta(ge=0, le=1023)]


class ModbusOutput(Options, frozen=True, kw_only=True, tag="modbus", tag_field="kind"):
    """A Modbus TCP server, which the PLC reads; the registers are in docs/line-outputs.md.

    Attributes:
        listen: Address and port. Modbus knows no users: anybody who reaches it may trigger and acknowledge.
        plc_s: Seconds without a read after which READY falls; None where the PLC need not read.
    """

    listen: Annotated[str, msgspec.Meta(pattern=r"^.+:[0-9]{1,5}$")] = "127.0.0.1:5020"
    plc_s: Seconds | None = None


class GpioOutput(Options, frozen=True, kw_only=True, tag="gpio", tag_field="kind"):
    """Lines of a GPIO chip.

    Attributes:
        chip: Name of the chip, such as `gpiochip0`.
        ready: Number of the line that is high while the station is ready.
        accept: Number of the line that pulses for an accept.
        reject: Number of the line that pulses for a reject.
        fault: Number of the line that pulses for a fault.
        pulse_ms: Length of a pulse; the line of an accept is low for as long before the next one.
        alive: Number of the line that changes its level each second while the station works; None for none.
    """

    chip: Text
    ready: Line
    accept: Line
    reject: Line
    fault: Line
    pulse_ms: Milliseconds = 50.0
    alive: Line | None = None


OutputOptions = ModbusOutput | GpioOutput


class Row(NamedTuple):
    """A kind of output.

    Attributes:
        place: `module:attribute` of its class; made with its options and the name of its station.
        extra: Extra of flawscope that installs what it needs.
    """

    place: str
    extra: str


_HERE = "flawscope.runtime.line.outputs"

OUTPUTS: dict[type[Any], Row] = {
    ModbusOutput: Row(f"{_HERE}.modbus:ModbusServer", "line-modbus"),
    GpioOutput: Row(f"{_HERE}.gpio:GpioLines", "line-gpio"),
}
"""Options -> row."""

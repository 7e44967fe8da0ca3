"""A Modbus TCP server, which the PLC reads: verdicts, state and heartbeat; it may trigger parts and acknowledge errors.

The protocol is pymodbus', on an asyncio loop in a thread of its own; nothing else of the line waits for it. Written for
pymodbus 3.16: its interface changes with every minor version, so the extra `line-modbus` pins it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from flawscope.errors import ArgumentError, MissingExtra
from flawscope.runtime.line.outputs import registers as at
from flawscope.runtime.line.outputs.output import Control, Signal, State
from flawscope.runtime.line.outputs.registers import Registers
from flawscope.runtime.line.outputs.table import ModbusOutput

if TYPE_CHECKING:
    from pymodbus.constants import ExcCodes
    from pymodbus.server import ModbusTcpServer

_READS = frozenset({3, 4, 23})  # holding registers, the same as input registers, and write-then-read
_WRITES = frozenset({6, 16, 23})
_ECHOES = frozenset({6})  # pymodbus reads the register once more for its answer
_JOIN_S = 2.0
_log = logging.getLogger(__name__)


class ModbusServer:
    """The registers of one station on a TCP port; an `Output`.

    Args:
        options: Its options.
        station: Name of the station.

    Raises:
        MissingExtra: If pymodbus is not installed.
    """

    def __init__(self, options: ModbusOutput, station: str) -> None:
        try:
            import pymodbus.server  # noqa: F401
        except ImportError as err:
            raise MissingExtra("the output modbus", "pymodbus", "line-modbus") from err
        host, _, port = options.listen.rpartition(":")
        self._address = host.removeprefix("[").removesuffix("]"), int(port)
        if self._address[1] > 0xFFFF:
            raise ArgumentError(
                f"station {station}: outputs, listen: expected a port up to 65535, got {options.listen}."
            )
        self._plc_s = options.plc_s
        self._station = station
        self._registers = Registers()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_open = False
        self._last_read = 0.0
        self._is_read = True

    @property
    def port(self) -> int:
        """The port it listens on: with port 0 in the options, the one that the system chose."""
        return self._address[1]

    def start(self, control: Control) -> None:
        """Begin to listen; see `Output`."""
        self._check_address()
        # Frames of strangers would fill the log, one line each: everything pymodbus says is about them.
        logging.getLogger("pymodbus").setLevel(logging.CRITICAL)
        listening: Future[None] = Future()
        self._thread = threading.Thread(
            target=self._run, args=(control, listening), name=f"modbus {self._station}", daemon=True
        )
        self._thread.start()
        listening.result()

    def state(self, state: State) -> None:
        """Show the state of the station."""
        self._registers.state(state)

    def verdict(self, signal: Signal) -> None:
        """Give out a verdict; see `Output`."""
        if not self._is_open:
            raise OSError(
                f"station {self._station}: the Modbus server does not run, so part {signal.seq} has no signal"
            )
        self._registers.verdict(signal)

    def beat(self) -> None:
        """Count the heartbeat up."""
        self._registers.beat()

    def stop(self) -> None:
        """End: state 0, no verdict, and the port is closed."""
        self._is_open = False
        self._registers.clear()
        loop, thread = self._loop, self._thread
        self._thread = None
        if thread is None or loop is None:
            return
        with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
            loop.call_soon_threadsafe(loop.stop)
        thread.join(_JOIN_S)

    def _check_address(self) -> None:
        """Raise ArgumentError with the system's reason where the address cannot be had; pymodbus does not tell it."""
        host, port = self._address
        try:
            family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind) as probe:
                # As the server does: else the connections of a server that has just ended would count.
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
        except OSError as err:
            raise self._refused(err.strerror or str(err)) from None

    def _refused(self, reason: str) -> ArgumentError:
        host, port = self._address
        return ArgumentError(
            f"station {self._station}: outputs, listen: cannot listen on {host}:{port} ({reason}); "
            "expected a free port of an address of this machine. Choose another, or end what uses it."
        )

    def _run(self, control: Control, listening: Future[None]) -> None:
        """Serve until the loop is stopped; the target of the thread."""
        loop = asyncio.new_event_loop()
        # A peer that breaks off in the middle of a frame is no news, and the loop would print a traceback of it.
        loop.set_exception_handler(lambda _, context: _log.debug("Modbus: %s", context.get("message", "")))
        server: ModbusTcpServer | None = None
        self._loop = loop
        try:
            server = loop.run_until_complete(self._listen(control))
            watch = loop.create_task(self._watch(control)) if self._plc_s is not None else None
            self._is_open = True
            listening.set_result(None)
            loop.run_forever()
            if watch is not None:
                watch.cancel()
        except BaseException as err:
            if not listening.done():
                listening.set_exception(err)
            else:
                _log.exception("The Modbus server of station %s ended", self._station)
        finally:
            self._is_open = False
            if server is not None:
                loop.run_until_complete(_close(server))
            loop.close()

    async def _listen(self, control: Control) -> ModbusTcpServer:
        from pymodbus.server import ModbusTcpServer
        from pymodbus.simulator import DataType, SimData, SimDevice

        async def action(
            code: int, start: int, address: int, count: int, current: list[int], values: list[int] | list[bool] | None
        ) -> ExcCodes | None:
            return self._request(control, code, address, current, values)

        def block(first: int, end: int, *, readonly: bool) -> SimData:
            return SimData(first, count=end - first, values=0, datatype=DataType.REGISTERS, readonly=readonly)

        # What is in no block, and a write to what is read only, is answered with exception 2.
        blocks = [
            block(0, at.TRIGGER, readonly=True),
            block(at.TRIGGER, at.LAST_CONTROL + 1, readonly=False),
            block(at.RING, at.SIZE, readonly=True),
        ]
        # Unit 0 answers for all numbers of units: PLCs send 0, 1 or 255 over TCP.
        server = ModbusTcpServer(SimDevice(id=0, simdata=blocks, action=action), address=self._address)
        if not await server.listen():
            raise self._refused("the port was taken while the line started")
        for listener in server.transport.sockets:  # type: ignore[attr-defined]
            _keep_alive(listener)
            self._address = listener.getsockname()[0], listener.getsockname()[1]
        self._last_read = time.monotonic()
        return server

    def _request(
        self, control: Control, code: int, address: int, current: list[int], values: list[int] | list[bool] | None
    ) -> ExcCodes | None:
        """Answer one request, in the thread of the loop and in one step: pymodbus replies from `current` afterwards."""
        from pymodbus.constants import ExcCodes

        if code not in (_READS | _ECHOES if values is None else _WRITES):
            return ExcCodes.ILLEGAL_FUNCTION
        if values is not None:
            self._written(control, address, [int(value) for value in values])
        elif code in _READS:
            self._last_read = time.monotonic()
        self._registers.copy_to(current)
        return None

    def _written(self, control: Control, address: int, values: list[int]) -> None:
        """Take what the PLC wrote to the registers of control: first the name of a part, then its trigger."""
        new = dict(enumerate(values, start=address))
        for register in (at.NEW_PART_ID, at.NEW_PART_ID + 1):
            if register in new:
                self._registers.write(register, [new[register]])
        trigger = new.get(at.TRIGGER)
        if trigger == 0:
            self._registers.write(at.TRIGGER, [0])
        elif trigger is not None and trigger != self._registers.control(at.TRIGGER):
            # Whoever waits for the verdict of this part must not find that of the last one. No lock is held: a full
            # station gives the verdict of this part before `trigger` returns.
            self._registers.clear_verdict()
            self._registers.opened(trigger, control.trigger(self._registers.new_part_id()))
        acknowledge = new.get(at.ACKNOWLEDGE)
        if acknowledge is not None and acknowledge != self._registers.control(at.ACKNOWLEDGE):
            self._registers.write(at.ACKNOWLEDGE, [acknowledge])
            if acknowledge != 0:
                control.acknowledge("modbus")

    async def _watch(self, control: Control) -> None:
        """Tell the station when the PLC no longer reads, and when it reads again."""
        assert self._plc_s is not None
        while True:
            await asyncio.sleep(min(self._plc_s / 4, 0.25))
            is_read = time.monotonic() - self._last_read <= self._plc_s
            if is_read != self._is_read:
                self._is_read = is_read
                control.plc_reads(is_read)


def _keep_alive(listener: Any) -> None:
    """Let the system close connections of PLCs that lost their power; accepted ones inherit it from the listener."""
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 20), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


async def _close(server: ModbusTcpServer) -> None:
    await server.shutdown()  # type: ignore[no-untyped-call]
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
    # Closed transports close their sockets in the next turns of the loop.
    for _ in range(3):
        await asyncio.sleep(0)

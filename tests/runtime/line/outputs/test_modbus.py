"""Acceptance test 24: trigger, echo, verdict written last, heartbeat, nothing after the end."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
from line_control import NotingControl, wait_for

from flawscope.errors import ArgumentError
from flawscope.runtime.line.outputs import registers as at
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.outputs.table import ModbusOutput

pytest.importorskip("pymodbus", reason="needs pymodbus")

from pymodbus.client import ModbusTcpClient

from flawscope.runtime.line.outputs.modbus import ModbusServer


@contextlib.contextmanager
def serving(control: NotingControl, *, plc_s: float | None = None) -> Iterator[ModbusServer]:
    server = ModbusServer(ModbusOutput(listen="127.0.0.1:0", plc_s=plc_s), "top")
    server.start(control)
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def connected(port: int) -> Iterator[ModbusTcpClient]:
    client = ModbusTcpClient("127.0.0.1", port=port, timeout=20)
    assert client.connect()
    try:
        yield client
    finally:
        client.close()


def read(client: ModbusTcpClient, address: int, count: int) -> list[int]:
    response = client.read_holding_registers(address, count=count)
    assert not response.isError(), response
    return response.registers


def number(values: list[int], address: int = 0) -> int:
    return values[address] << 16 | values[address + 1]


def test_a_plc_triggers_a_part_and_finds_its_verdict() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        server.state("ready")
        assert read(plc, 0, 10)[at.STATE] == 6
        # As a PLC does it: name of the part and trigger in one request.
        assert not plc.write_registers(at.TRIGGER, [1, 0x0001, 0x0002]).isError()
        assert control.part_ids == ["65538"]
        values = read(plc, 0, 20)
        assert (values[at.TAKEN], number(values, at.OPENED), values[at.VERDICT]) == (1, 1, 0)
        server.verdict(Signal(1, "65538", "accept", "", 0.25))
        values = read(plc, 0, 10)
        assert (number(values, at.SEQ), values[at.VERDICT], number(values, at.PART_ID)) == (1, 1, 65538)
        assert number(values, at.SCORE) == 250
        # The next trigger takes the verdict away before its part is open: an old accept is nobody else's.
        assert not plc.write_register(at.TRIGGER, 2).isError()
        assert read(plc, 0, 10)[at.VERDICT] == 0
        assert control.part_ids == ["65538", "65538"]
        assert number(read(plc, at.RING, 4)) == 1


def test_the_same_number_again_and_zero_are_no_trigger() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        for value in (0, 7, 7, 7, 0, 0, 7, 8):
            assert not plc.write_register(at.TRIGGER, value).isError()
        assert control.part_ids == ["", "", ""]


def test_trigger_and_echo_come_in_one_request() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        response = plc.readwrite_registers(read_address=0, read_count=20, write_address=at.TRIGGER, values=[5])
        assert (response.registers[at.TAKEN], number(response.registers, at.OPENED)) == (5, 1)


def test_a_full_station_gives_the_fault_of_this_part_at_once() -> None:
    servers: list[ModbusServer] = []
    control = NotingControl(lambda seq: servers[0].verdict(Signal(seq, "", "fault", "overrun", None)))
    with serving(control) as server, connected(server.port) as plc:
        servers.append(server)
        plc.write_register(at.TRIGGER, 1)
        values = read(plc, 0, 20)
        assert (number(values, at.SEQ), values[at.VERDICT], values[at.REASON]) == (1, 3, 1)
        assert number(values, at.OPENED) == 1


def test_an_error_is_acknowledged_by_a_new_number() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        for value in (1, 1, 0, 1):
            assert not plc.write_register(at.ACKNOWLEDGE, value).isError()
        assert control.actors == ["modbus", "modbus"]


@pytest.mark.parametrize("address", [0, 4, 10, 15, 20, 40, 63, 64, 127, 128, 65535])
def test_a_write_to_any_other_register_is_refused(address: int) -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        server.state("ready")
        response = plc.write_register(address, 1)
        assert response.isError()
        assert response.exception_code == 2
        assert read(plc, 0, 10)[:5] == [6, 0, 0, 0, 0]


def test_a_write_over_the_edge_does_nothing_at_all() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        assert plc.write_registers(at.TRIGGER - 1, [0, 9]).exception_code == 2
        assert plc.write_registers(at.TRIGGER, [9, 0, 0, 0, 0]).exception_code == 2
        assert read(plc, at.TRIGGER, 4) == [0, 0, 0, 0]
        assert control.part_ids == []


def test_single_bits_are_refused_and_input_registers_are_the_same() -> None:
    control = NotingControl()
    with serving(control) as server, connected(server.port) as plc:
        server.state("ready")
        assert plc.write_coil(0, True).isError()
        assert plc.write_coil(at.TRIGGER, True).exception_code == 1
        assert plc.read_coils(0, count=8).exception_code == 1
        assert plc.read_discrete_inputs(0, count=8).exception_code == 1
        assert plc.mask_write_register(address=at.TRIGGER, and_mask=0, or_mask=1).isError()
        assert plc.read_input_registers(0, count=10).registers == read(plc, 0, 10)
        assert plc.read_holding_registers(0, count=10, device_id=255).registers[at.STATE] == 6
        assert control.part_ids == []


def test_the_heartbeat_turns_only_when_it_is_called() -> None:
    with serving(NotingControl()) as server, connected(server.port) as plc:
        assert read(plc, at.HEARTBEAT, 1) == [0]
        server.beat()
        server.beat()
        assert read(plc, at.HEARTBEAT, 1) == [2]


def test_nobody_reads_the_verdict_of_one_part_beside_the_number_of_another() -> None:
    """Even parts are accepted and odd ones rejected; name and score go by the number, too."""
    with serving(NotingControl()) as server:
        done = threading.Event()

        def give_out() -> None:
            seq = 0
            while not done.is_set():
                seq += 1
                server.verdict(Signal(seq, str(seq), "accept" if seq % 2 == 0 else "reject", "", seq / 1000))

        writer = threading.Thread(target=give_out)
        writer.start()
        seen = set()
        slices = 0
        try:
            with connected(server.port) as plc:
                for _ in range(300):
                    values = read(plc, 0, 10)
                    seq = number(values, at.SEQ)
                    if seq:
                        assert values[at.VERDICT] == (1 if seq % 2 == 0 else 2)
                        assert number(values, at.PART_ID) == seq == number(values, at.SCORE)
                        seen.add(seq)
                    # In single requests, the rule of the docs: the number before and after.
                    before = read(plc, at.SEQ, 2)
                    verdict = read(plc, at.VERDICT, 1)[0]
                    if read(plc, at.SEQ, 2) == before and number(before):
                        slices += 1
                        assert verdict == (1 if number(before) % 2 == 0 else 2)
        finally:
            done.set()
            writer.join()
        assert len(seen) > 10


def test_ready_is_told_when_the_plc_no_longer_reads() -> None:
    control = NotingControl()
    with serving(control, plc_s=0.3) as server:
        wait_for(lambda: control.reading == [False])
        with connected(server.port) as plc:
            plc.write_register(at.NEW_PART_ID, 3)
            assert control.reading == [False]

            def reads_again() -> bool:
                read(plc, 0, 1)
                # On a busy machine the next silence may be noticed before this thread looks.
                return control.reading[:2] == [False, True]

            wait_for(reads_again)
        wait_for(lambda: len(control.reading) > 2 and not control.reading[-1])
        changes = [next_one != before for before, next_one in zip(control.reading, control.reading[1:], strict=False)]
        assert all(changes)  # told once each time


def test_after_the_end_the_port_is_closed_and_a_verdict_is_an_error() -> None:
    server = ModbusServer(ModbusOutput(listen="127.0.0.1:0"), "top")
    server.start(NotingControl())
    port = server.port
    with connected(port) as plc:
        server.state("ready")
        server.verdict(Signal(1, "", "accept", "", 0.5))
        server.stop()
        with pytest.raises(OSError, match="part 2 has no signal"):
            server.verdict(Signal(2, "", "accept", "", 0.5))
        assert plc.socket is not None
        plc.socket.settimeout(20)
        assert plc.socket.recv(1) == b""
    with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
        pass
    server.stop()


def test_an_output_that_never_started_ends_and_gives_no_signal() -> None:
    server = ModbusServer(ModbusOutput(listen="127.0.0.1:0"), "top")
    with pytest.raises(OSError, match="no signal"):
        server.verdict(Signal(1, "", "accept", "", 0.5))
    server.stop()


def test_a_port_in_use_is_one_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        server = ModbusServer(ModbusOutput(listen=f"127.0.0.1:{port}"), "top")
        with pytest.raises(
            ArgumentError, match=rf"^station top: .*127\.0\.0\.1:{port} \(Address already in use\)"
        ) as error:
            server.start(NotingControl())
        assert "\n" not in str(error.value)
        server.stop()


def test_an_address_of_no_interface_is_one_line() -> None:
    with pytest.raises(ArgumentError, match=r"^station top: .*cannot listen on"):
        ModbusServer(ModbusOutput(listen="192.0.2.1:5020"), "top").start(NotingControl())


def test_a_port_beyond_all_is_refused() -> None:
    with pytest.raises(ArgumentError, match="up to 65535"):
        ModbusServer(ModbusOutput(listen="127.0.0.1:70000"), "top")


def test_noise_and_broken_connections_change_nothing() -> None:
    control = NotingControl()
    chance = random.Random(5)
    with serving(control) as server:
        server.state("ready")
        server.verdict(Signal(1, "", "reject", "", 0.5))
        for length in [1, 6, 7, 8, 12, 60, 300, 2000] * 5:
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as stranger:
                stranger.sendall(chance.randbytes(length))
        for code in (*range(0, 0x31), 0x80, 0xFF):
            with socket.create_connection(("127.0.0.1", server.port), timeout=20) as stranger:
                body = bytes([1, code]) + chance.randbytes(5)
                stranger.sendall(b"\0\1\0\0" + len(body).to_bytes(2, "big") + body)
        with connected(server.port) as plc:
            assert read(plc, 0, 6)[:6] == [6, 0, 0, 1, 2, 0]


_KILLED = """
import sys, threading
from line_control import NotingControl
from flawscope.runtime.line.outputs.modbus import ModbusServer
from flawscope.runtime.line.outputs.output import Signal
from flawscope.runtime.line.outputs.table import ModbusOutput
server = ModbusServer(ModbusOutput(listen="127.0.0.1:0"), "top")
server.start(NotingControl())
server.state("ready")
server.verdict(Signal(1, "", "accept", "", 0.5))
print(server.port, flush=True)
threading.Event().wait()
"""


def test_a_killed_line_leaves_no_accept() -> None:
    from project_paths import ROOT

    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests/helpers")}
    child = subprocess.Popen([sys.executable, "-c", _KILLED], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert child.stdout is not None
        port = int(child.stdout.readline())
        with connected(port) as plc:
            assert read(plc, at.VERDICT, 1) == [1]
            child.send_signal(signal.SIGKILL)
            child.wait(20)
            plc.socket.settimeout(20)  # type: ignore[union-attr]
            assert plc.socket.recv(1) == b""  # type: ignore[union-attr]
        with pytest.raises(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port), timeout=5):
            pass
    finally:
        child.kill()
        child.wait(20)
        assert child.stdout is not None
        child.stdout.close()

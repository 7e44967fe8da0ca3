"""What systemd is told, by a socket that stands for its own: the notify protocol and the watchdog."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from line_project import png, write_line
from line_stand_ins import WAIT_S

from flawscope.errors import ArgumentError
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.systemd import Systemd

FOLDER = {"kind": "folder", "path": "images", "settle_ms": 0}


class Listener:
    """A socket of a service manager.

    Attributes:
        heard: All messages so far, each with the time when it came.
    """

    def __init__(self, address: str | bytes) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)
        self.heard: list[tuple[str, float]] = []

    def next(self, timeout_s: float) -> str | None:
        """Return the next message; None where none comes in time."""
        self._socket.settimeout(max(timeout_s, 0.001))
        try:
            message = self._socket.recv(4096).decode()
        except TimeoutError:
            return None
        self.heard.append((message, time.monotonic()))
        return message

    def until(self, beginning: str) -> list[str]:
        """Return the messages up to the first that begins so."""
        end = time.monotonic() + WAIT_S
        got: list[str] = []
        while not got or not got[-1].startswith(beginning):
            message = self.next(end - time.monotonic())
            assert message is not None, f"no {beginning}, only {got}"
            got.append(message)
        return got

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener(tmp_path: Path) -> Iterator[Listener]:
    made = Listener(str(tmp_path / "notify"))
    yield made
    made.close()


class SoundLine:
    """A line whose soundness the test sets."""

    def __init__(self) -> None:
        self.stations: dict[str, object] = {}
        self.sound = self.has_begun = True
        self.periods: list[float] = []

    def is_sound(self, period_s: float) -> bool:
        self.periods.append(period_s)
        return self.sound


class TestProtocol:
    def test_a_path_and_an_abstract_name(self, tmp_path: Path) -> None:
        name = f"flawscope-test-{os.getpid()}"
        for address, bound in ((str(tmp_path / "socket"), str(tmp_path / "socket")), (f"@{name}", f"\0{name}")):
            listener = Listener(bound)
            systemd = Systemd(address)
            systemd.say("tiny.flaw:\nloading")
            systemd.say("tiny.flaw:\nloading")
            systemd.turn(SoundLine())  # type: ignore[arg-type]
            systemd.stopping()
            assert listener.until("STOPPING") == ["STATUS=tiny.flaw: loading", "READY=1", "STATUS=", "STOPPING=1"]
            systemd.close()
            systemd.close()
            listener.close()

    def test_the_watchdog_is_fed_at_half_of_its_time_while_the_line_is_sound(self, listener: Listener) -> None:
        now = [100.0]
        line = SoundLine()
        line.has_begun = False
        systemd = Systemd(listener._socket.getsockname(), 10.0, lambda: now[0])
        fed = []
        for step in range(40):  # half a second each
            line.sound = step < 20
            now[0] = 100.0 + step / 2
            systemd.turn(line)  # type: ignore[arg-type]
            while message := listener.next(0):
                fed += [now[0]] if message == "WATCHDOG=1" else []
        assert fed == [100.0, 105.0]
        assert set(line.periods) == {10.0}
        systemd.close()

    def test_a_start_that_goes_on_asks_for_more_time_while_the_line_is_sound(self, listener: Listener) -> None:
        now = [0.0]
        line = SoundLine()
        line.has_begun = False
        systemd = Systemd(listener._socket.getsockname(), None, lambda: now[0])
        asked = []
        for second in range(100):
            line.sound, line.has_begun = not 40 <= second < 60, second >= 80
            now[0] = float(second)
            systemd.turn(line)  # type: ignore[arg-type]
            while message := listener.next(0):
                asked += [second] if message == "EXTEND_TIMEOUT_USEC=60000000" else []
        assert asked == [0, 15, 30, 60, 75]
        systemd.close()

    def test_nobody_listens(self, tmp_path: Path) -> None:
        for systemd in (Systemd(None, 1.0), Systemd(str(tmp_path / "gone"), 1.0)):
            systemd.turn(SoundLine())  # type: ignore[arg-type]
            systemd.stopping()
            systemd.close()

    def test_the_environment(self) -> None:
        environment = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid()), "A": "b"}
        systemd = Systemd.of(environment)
        assert systemd._watchdog_s == 30.0
        # Children of the line are not the service.
        assert environment == {"A": "b"}
        systemd.close()
        of_another = Systemd.of({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"})
        assert of_another._watchdog_s is None
        of_another.close()
        assert Systemd.of({})._socket is None

    @pytest.mark.parametrize(
        ("environment", "words"),
        [
            ({"NOTIFY_SOCKET": "vsock:2:1234"}, "NOTIFY_SOCKET: expected the path of a socket"),
            ({"NOTIFY_SOCKET": "@"}, "NOTIFY_SOCKET: expected the path of a socket"),
            ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30s"}, "WATCHDOG_USEC: expected microseconds, got '30s'"),
            ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC: expected microseconds"),
        ],
    )
    def test_an_environment_that_says_nonsense(self, environment: dict[str, str], words: str) -> None:
        with pytest.raises(ArgumentError, match=words):
            Systemd.of(environment)


@contextlib.contextmanager
def running(config: Path, address: str, before: str, watchdog_s: float) -> Iterator[subprocess.Popen[str]]:
    """Run a line in a process that thinks it is a service."""
    program = f"import sys\nfrom flawscope import cli\n{before}\nsys.exit(cli.run(sys.argv[1:]))"
    environment = {**os.environ, "NOTIFY_SOCKET": address, "WATCHDOG_USEC": str(int(watchdog_s * 1e6))}
    command = [sys.executable, "-c", program, "line", "run", str(config)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


WRONG_WHEN_TOLD = """
from pathlib import Path
from flawscope.runtime.line import selftest
compare = selftest.compare_golden
def told(golden, maps, scores, *more):
    compare(golden, maps, scores + Path({flag!r}).exists(), *more)
selftest.compare_golden = told
selftest._AGAIN_S = 0.1
"""


def with_images(folder: Path) -> Path:
    (folder / "images").mkdir()
    (folder / "images" / "0.png").write_bytes(png(50))
    config = write_line(folder, source=dict(FOLDER))
    config.write_text(config.read_text() + "selftest_s: 0.2\n")
    return config


@pytest.mark.long
def test_ready_after_the_bundles_and_a_watchdog_that_the_self_test_stops(tmp_path: Path, listener: Listener) -> None:
    flag = tmp_path / "wrong"
    config = with_images(tmp_path)
    address = listener._socket.getsockname()
    with running(config, address, WRONG_WHEN_TOLD.format(flag=str(flag)), watchdog_s=1.0) as process:
        start = listener.until("READY=1")
        # Its golden images are checked before it says so.
        assert any(message.startswith("STATUS=tiny.flaw: ready on cpu") for message in start)
        assert "WATCHDOG=1" not in start
        listener.until("WATCHDOG=1")
        listener.until("STATUS=top ready")
        listener.until("WATCHDOG=1")
        listener.until("WATCHDOG=1")
        fed = [at for message, at in listener.heard if message == "WATCHDOG=1"]
        assert len(fed) >= 3
        # At half of its time, not at each turn; they may have waited in the socket.
        assert fed[-1] - fed[0] > 0.25 * (len(fed) - 1)
        flag.touch()
        assert "golden image" in listener.until("STATUS=top error")[-1]
        # Longer than the watchdog would wait.
        end = time.monotonic() + 2.0
        after = []
        while (left := end - time.monotonic()) > 0:
            if (message := listener.next(left)) is not None:
                after.append(message)
        assert "WATCHDOG=1" not in after
        # What mends itself is fed again; that somebody must acknowledge it is another matter.
        flag.unlink()
        listener.until("WATCHDOG=1")
        process.send_signal(signal.SIGTERM)
        listener.until("STOPPING=1")
        said = process.communicate(timeout=WAIT_S)[1]
        assert process.returncode == 0, said
    assert "READY=1" not in [message for message, _ in listener.heard[len(start) :]]
    actions = actions_of(tmp_path / "state")
    assert actions.count("selftest_failed") == actions.count("selftest_passed") == 1


HELD_UNTIL_TOLD = """
import time
from pathlib import Path
from flawscope.runtime.line.swap import challenges
run = challenges.run_challenge
def held(*arguments):
    while not Path({flag!r}).exists():
        time.sleep(0.01)
    return run(*arguments)
challenges.run_challenge = held
"""


@pytest.mark.long
@pytest.mark.parametrize("bad", [None, 200])
def test_ready_after_golden_images_and_challenge(tmp_path: Path, listener: Listener, bad: int | None) -> None:
    flag = tmp_path / "go on"
    config = with_images(tmp_path)
    good = tmp_path / "state" / "challenge" / "top" / "must_accept"
    good.mkdir(parents=True)
    (good / "good.png").write_bytes(png(bad or 50))
    address = listener._socket.getsockname()
    with running(config, address, HELD_UNTIL_TOLD.format(flag=str(flag)), watchdog_s=60.0) as process:
        before = listener.until("STATUS=top starting (challenge at the start")
        assert any(message.startswith("STATUS=tiny.flaw: ready on cpu") for message in before)
        assert listener.next(0.3) in (None, "WATCHDOG=1", "EXTEND_TIMEOUT_USEC=60000000")
        assert "READY=1" not in [message for message, _ in listener.heard]
        flag.touch()
        listener.until("READY=1")
        # One that failed is over, too: a start that never ends could not be acknowledged.
        listener.until("STATUS=top error (challenge cam0: at the start: 1 of 1" if bad else "STATUS=top ready")
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=WAIT_S)[1]
        assert process.returncode == 0, said
    assert ("challenge_failed" if bad else "challenge_passed") in actions_of(tmp_path / "state")


def actions_of(state: Path) -> list[str]:
    reader = JournalReader(state)
    entries = reader.entries(0, 1000)
    reader.close()
    return [str(entry["action"]) for entry in entries if entry["kind"] == "event"]


LOADS_FOR_EVER = """
import time
from flawscope.runtime.ready_scorer import ReadyScorer
def hang(self):
    print("hangs", file=sys.stderr, flush=True)
    time.sleep(600)
ReadyScorer._open = hang
"""


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_a_bundle_is_loaded_ends_the_start(
    tmp_path: Path, listener: Listener, number: signal.Signals
) -> None:
    config = with_images(tmp_path)
    with running(config, listener._socket.getsockname(), LOADS_FOR_EVER, watchdog_s=60.0) as process:
        assert process.stderr is not None
        while "hangs" not in (text := process.stderr.readline()):
            assert text
        begun = time.monotonic()
        process.send_signal(number)
        said = process.communicate(timeout=WAIT_S)[1]
        assert time.monotonic() - begun < WAIT_S
        assert process.returncode == 0, said
        assert "stopped while it was starting" in said
        assert "READY=1" not in listener.until("STOPPING=1")
    # The journal was closed: it says what happened, and the next start opens it.
    assert "started" in actions_of(tmp_path / "state")
    with running(config, listener._socket.getsockname(), "", watchdog_s=60.0) as process:
        listener.until("READY=1")
        listener.until("STATUS=top ready")
        process.send_signal(signal.SIGTERM)
        assert process.wait(WAIT_S) == 0

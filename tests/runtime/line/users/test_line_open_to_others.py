"""A line that others than this machine reach: never without TLS and a user, and under its own names alone."""

from __future__ import annotations

import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from error_lines import refused
from line_project import png, write_line
from line_stand_ins import wait_until
from own_certificates import write_certificate

from flawscope import cli
from flawscope.errors import ArgumentError
from flawscope.runtime.line.config_file import read_config
from flawscope.runtime.line.journal.reader import JournalReader
from flawscope.runtime.line.line import Line
from flawscope.runtime.line.users.users_file import UsersFile

httpx = pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("starlette", reason="needs starlette")
pytest.importorskip("uvicorn", reason="needs uvicorn")
pytest.importorskip("prometheus_client", reason="needs prometheus_client")

PASSWORD = "four plain words here"
OTHERS = "0.0.0.0:0"


def with_http(folder: Path, **http: Any) -> Path:
    """Write a line with a server of these settings."""
    path = write_line(folder)
    settings = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**settings, "http": http}))
    return path


@pytest.fixture
def tls(tmp_path: Path) -> dict[str, str]:
    cert, key = write_certificate(tmp_path / "tls")
    return {"cert": str(cert), "key": str(key)}


@pytest.mark.parametrize("command", ["run", "check", "status"])
def test_without_tls_the_configuration_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    UsersFile(tmp_path / "state").add_user("anna", "admin", PASSWORD)
    config = with_http(tmp_path, listen=OTHERS)
    assert "http.listen: expected http.tls" in refused(["line", command, str(config)], capsys)


def test_without_users_the_start_is_refused(tmp_path: Path, tls: dict[str, str]) -> None:
    config = with_http(tmp_path, listen=OTHERS, tls=tls)
    command = [sys.executable, "-m", "flawscope", "line", "run", str(config)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "expected at least one user" in line
    assert "flawscope line user add" in line
    # Nothing was begun.
    assert not (tmp_path / "state" / "journal.db").exists()


def test_a_token_is_no_user(tmp_path: Path, tls: dict[str, str]) -> None:
    UsersFile(tmp_path / "state").add_token("plc")
    with pytest.raises(ArgumentError, match="expected at least one user"):
        Line(read_config(with_http(tmp_path, listen=OTHERS, tls=tls)), lambda text: None).start()


def test_a_check_says_the_same(tmp_path: Path, tls: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    config = with_http(tmp_path, listen=OTHERS, tls=tls)
    assert cli.run(["line", "check", str(config)]) == 1
    assert "FAIL http: http.listen: expected at least one user" in capsys.readouterr().out
    UsersFile(tmp_path / "state").add_user("anna", "admin", PASSWORD)
    assert cli.run(["line", "check", str(config)]) == 0
    assert "ok   http: 0.0.0.0:0: everybody has to log in; 1 users" in capsys.readouterr().out
    assert cli.run(["line", "check", str(with_http(tmp_path, listen="127.0.0.1:0"))]) == 0


def test_a_key_with_a_passphrase_is_refused_and_not_asked_for(tmp_path: Path, tls: dict[str, str]) -> None:
    from cryptography.hazmat.primitives.serialization import (
        BestAvailableEncryption,
        Encoding,
        PrivateFormat,
        load_pem_private_key,
    )

    path = Path(tls["key"])
    key = load_pem_private_key(path.read_bytes(), None)
    locked = BestAvailableEncryption(b"secret")
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, locked))
    UsersFile(tmp_path / "state").add_user("anna", "admin", PASSWORD)
    with pytest.raises(ArgumentError, match=r"http\.tls: expected a key without a passphrase"):
        Line(read_config(with_http(tmp_path, listen=OTHERS, tls=tls)), lambda text: None).start()


class TestLine:
    @pytest.fixture
    def line(self, tmp_path: Path, tls: dict[str, str]) -> Iterator[Line]:
        """A whole line that listens everywhere, with a user and a token (`line.token`)."""
        file = UsersFile(tmp_path / "state")
        file.add_user("anna", "admin", PASSWORD)
        token = file.add_token("plc")
        said: list[str] = []
        config = read_config(with_http(tmp_path, listen=OTHERS, tls=tls, names=["Line.Plant.example"]))
        line = Line(config, said.append)
        line.start()
        line.token, line.said = token, said  # type: ignore[attr-defined]
        try:
            yield line
        finally:
            line.stop()

    @pytest.fixture
    def client(self, line: Line, tls: dict[str, str]) -> Iterator[Any]:
        assert line._server is not None
        trusted = ssl.create_default_context(cafile=tls["cert"])
        url = f"https://127.0.0.1:{line._server.address[1]}"
        with httpx.Client(base_url=url, verify=trusted, trust_env=False, timeout=20.0) as client:
            yield client

    def test_is_used_over_tls_after_a_login(self, line: Line, client: Any, tmp_path: Path) -> None:
        assert any(text.startswith("https://0.0.0.0:") for text in line.said)  # type: ignore[attr-defined]
        assert client.get("/api/v1/state").status_code == 401
        answer = client.post("/api/v1/login", json={"name": "anna", "password": PASSWORD})
        (cookie,) = answer.headers.get_list("set-cookie")
        assert cookie.startswith("__Host-flawscope-press=")
        assert "Secure" in cookie.split("; ")
        csrf = {"X-Flawscope-CSRF": answer.json()["csrf"], "X-Flawscope": "1"}
        wait_until(lambda: line.stations["top"].readiness.state == "ready")
        assert client.post("/api/v1/stations/top/halt", headers=csrf).json()["state"] == "halted"
        assert client.post("/api/v1/stations/top/reset", headers=csrf).json()["state"] == "ready"
        bearer = {"Authorization": f"Bearer {line.token}", "Content-Type": "image/png"}  # type: ignore[attr-defined]
        pushed = client.post("/api/v1/stations/top/trigger?wait=1", content=png(50), headers=bearer)
        assert pushed.json()["verdict"] == "accept"
        wait_until(lambda: (tmp_path / "state" / "users" / "recorded.json").exists())
        events = client.get("/api/v1/audit?order=newest").json()["events"]
        # Written by commands, recorded by the line, and by the line itself with who it was.
        told = {event["action"]: event for event in events}
        assert told["user_added"]["object"] == "user anna"
        assert told["token_added"]["object"] == "token plc"
        assert told["login"]["actor"] == "anna"
        assert (told["halted"]["actor"], told["halted"]["role"]) == ("anna", "admin")
        found = client.get("/api/v1/audit/verify").json()
        assert found["is_whole"]
        assert found["parts"] == 1

    def test_answers_to_its_names_alone(self, client: Any) -> None:
        port = str(client.base_url.port)
        for host in ("line.plant.example", f"LINE.plant.example:{port}", f"127.0.0.1:{port}", "localhost"):
            assert client.get("/healthz", headers={"Host": host}).status_code == 200, host
        for host in ("plant.example", "line.plant.example.evil", "10.1.2.3", "0.0.0.0", "", "x@127.0.0.1.evil"):
            answer = client.get("/healthz", headers={"Host": host})
            assert answer.status_code in (400, 421), host
        origin = {"Host": "line.plant.example", "Origin": "https://evil.example"}
        login = client.post("/api/v1/login", json={"name": "anna", "password": PASSWORD}, headers=origin)
        assert login.status_code == 403


def test_each_start_records_changes_once(tmp_path: Path) -> None:
    UsersFile(tmp_path / "state").add_token("plc")
    config = read_config(with_http(tmp_path, listen="127.0.0.1:0"))
    for _ in range(2):
        line = Line(config, lambda text: None)
        line.start()
        wait_until(lambda: (tmp_path / "state" / "users" / "recorded.json").exists())
        line.stop()
    reader = JournalReader(tmp_path / "state")
    try:
        assert [event["action"] for event in reader.events()].count("token_added") == 1
    finally:
        reader.close()


def test_users_that_the_journal_tells_of_are_not_forgotten(tmp_path: Path) -> None:
    """Whoever removes their file does not become everybody's admin at the next start."""
    file = UsersFile(tmp_path / "state")
    file.add_user("anna", "admin", PASSWORD)
    config = read_config(with_http(tmp_path, listen="127.0.0.1:0"))
    line = Line(config, lambda text: None)
    line.start()
    line.stop()
    (tmp_path / "state" / "users" / "users.json").unlink()
    with pytest.raises(ArgumentError, match="expected the users that the journal tells of, got no file"):
        Line(config, lambda text: None).start()
    file.add_user("anna", "admin", PASSWORD)
    file.remove_user("anna", last=True)
    line = Line(config, lambda text: None)
    line.start()
    assert line.users is not None
    assert not line.users.has_users
    line.stop()

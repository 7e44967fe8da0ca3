"""Servers behind a gateway: tokens and headers that no message shows, certificates of one's own, and who is refused."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from own_certificates import write_certificate
from tiny_bundle import golden_image, tiny_thresholds, write_tiny_bundle

from flawscope.bundle import open_bundle
from flawscope.cli import run
from flawscope.errors import ArgumentError, BackendError
from flawscope.export.triton import write_models
from flawscope.runtime.client import connect
from flawscope.runtime.client.access import Access, given_access
from flawscope.runtime.client.address import read_address

pytest.importorskip("tritonclient.grpc", reason='needs pip install "flawscope[client]"')
pytest.importorskip("tritonclient.http", reason='needs pip install "flawscope[client]"')

from kserve_stand_in import KserveStandIn

PROTOCOLS = ("grpc", "http")
TOKEN, KEY = "hunter2-token", "hunter2-key"
GOOD = golden_image() // 2


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy elsewhere is no server that is slow."""
    monkeypatch.setenv("FLAWSCOPE_TRITON_TIMEOUT", "120")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A calibrated bundle of a few kilobytes, and the repository of a server that serves it."""
    folder = tmp_path_factory.mktemp("served")
    write_tiny_bundle(folder / "tiny.flaw", thresholds=tiny_thresholds())
    with open_bundle(folder / "tiny.flaw") as opened:
        write_models(opened, folder / "models")
    return folder / "tiny.flaw", folder / "models"


@pytest.fixture
def server(models: tuple[Path, Path]) -> Iterator[KserveStandIn]:
    with KserveStandIn(models[1]) as standing:
        yield standing


@pytest.fixture
def tiny(models: tuple[Path, Path]) -> Path:
    return models[0]


def assert_hidden(*texts: str) -> None:
    for text in texts:
        assert "hunter2" not in text, text


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_gateway_gets_token_and_headers_with_each_request(tiny, server, tmp_path, monkeypatch, protocol):
    server.wants = {"authorization": f"Bearer {TOKEN}", "x-api-key": KEY}
    token = tmp_path / "token"
    token.write_text(TOKEN + "\n")
    monkeypatch.setenv("MY_KEY", KEY)
    with connect(tiny, server.url(protocol), token=f"file:{token}", headers={"X-Api-Key": "env:MY_KEY"}) as served:
        assert served(GOOD).decision == "accept"
        # Renewed on the server first, then here: found with the next image, without a restart.
        server.wants["authorization"] = f"Bearer {TOKEN}-2"
        result = served(GOOD)
        assert result.decision == "fault"
        assert f"does not take file:{token} and env:MY_KEY. Is it right, and not expired?" in str(result.reason)
        token.write_text(f"{TOKEN}-2")
        assert served(GOOD).decision == "accept"
        token.unlink()
        result = served(GOOD)
        assert result.decision == "fault"
        assert "expected a file with a secret" in str(result.reason)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_who_is_not_known_or_not_allowed_is_told_what_to_do(tiny, server, monkeypatch, protocol):
    url = server.url(protocol)
    server.wants = {"authorization": f"Bearer {TOKEN}"}
    with pytest.raises(
        BackendError, match=r"wants to know who asks. Set FLAWSCOPE_TRITON_TOKEN=env:NAME or file:"
    ) as no:
        connect(tiny, url)
    monkeypatch.setenv("MY_TOKEN", "hunter2-wrong")
    with pytest.raises(BackendError, match=r"got (401|UNAUTHENTICATED): .*does not take env:MY_TOKEN") as wrong:
        connect(tiny, url, token="env:MY_TOKEN")
    server.wants, server.forbids = {}, True
    with pytest.raises(
        BackendError, match=r"got (403|PERMISSION_DENIED): .*Have whoever has env:MY_TOKEN allowed"
    ) as no:
        connect(tiny, url, token="env:MY_TOKEN")
    # What the model is called has nothing to do with it.
    for raised in (no, wrong):
        assert "Expected the model" not in str(raised.value)
    assert server.asked == []


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_message_and_no_log_shows_a_secret(tiny, server, monkeypatch, caplog, protocol):
    """Not even where the server sends back what it was sent."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    server.tells = True
    with connect(tiny, server.url(protocol), token="env:MY_TOKEN", headers={"x-key": "env:MY_TOKEN"}) as served:
        server.trouble = "error"
        result = served(GOOD)
        assert "out of memory" in str(result.reason)
        assert "***" in str(result.reason)
        assert_hidden(str(result.reason), repr(result), repr(served.scorer), repr(vars(served.scorer)))
    with pytest.raises(BackendError, match=r"unknown model.*\*\*\*") as raised:
        connect(tiny, f"{server.url(protocol)}/lid", token="env:MY_TOKEN")
    server.forbids = True
    with pytest.raises(BackendError) as refused:
        connect(tiny, server.url(protocol), token="env:MY_TOKEN")
    assert_hidden(str(raised.value), str(refused.value), caplog.text, repr(Access("env:MY_TOKEN").read()))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_commands_take_it_from_the_environment(tiny, server, tmp_path, monkeypatch, capsys, protocol):
    import cv2

    assert cv2.imwrite(str(tmp_path / "good.png"), GOOD)
    server.wants, server.tells = {"authorization": f"Bearer {TOKEN}", "x-api-key": KEY}, True
    monkeypatch.setenv("FLAWSCOPE_TRITON", server.url(protocol))
    command = ["score", str(tiny), str(tmp_path / "good.png"), "--backend", "triton"]
    assert run(command) == 2
    assert "Set FLAWSCOPE_TRITON_TOKEN=env:NAME or file:PATH" in capsys.readouterr().err
    # The token itself, where its place belongs.
    monkeypatch.setenv("FLAWSCOPE_TRITON_TOKEN", TOKEN)
    assert run(command) == 2
    err = capsys.readouterr().err
    assert "expected where a secret is, env:NAME or file:PATH" in err
    assert_hidden(err)
    (tmp_path / "token").write_text(TOKEN)
    monkeypatch.setenv("FLAWSCOPE_TRITON_TOKEN", f"file:{tmp_path / 'token'}")
    monkeypatch.setenv("MY_KEY", KEY)
    monkeypatch.setenv("FLAWSCOPE_TRITON_HEADERS", "x-api-key=env:MY_KEY, x-other=env:MY_KEY")
    assert run(command) == 0
    assert "accept" in capsys.readouterr().out


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_certificate_of_ones_own_authority(tiny, models, tmp_path, monkeypatch, protocol):
    """TLS with a token; whoever has a certificate of another name, or of nobody, gets neither image nor token."""
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    tls = write_certificate(tmp_path / "tls")
    with KserveStandIn(models[1], tls=tls) as server:
        server.wants = {"authorization": f"Bearer {TOKEN}"}
        url = server.url(protocol)
        with connect(tiny, url, token="env:MY_TOKEN", ca=tls[0]) as served:
            assert served(GOOD).decision == "accept"
        with pytest.raises(BackendError, match=r"no server answers there: .*FLAWSCOPE_TRITON_CA=FILE"):
            connect(tiny, url, token="env:MY_TOKEN")
        with pytest.raises(BackendError, match="no server answers there"):
            connect(tiny, url.replace("127.0.0.1", "localhost"), token="env:MY_TOKEN", ca=tls[0])


@pytest.mark.parametrize(
    ("address", "given", "message"),
    [
        ("http://server:8000", {"token": "env:MY_TOKEN"}, r"expected https:// \(TLS\) where a token or header is sent"),
        ("grpc://10.0.0.1:8001", {"headers": {"x-key": "env:MY_TOKEN"}}, r"expected grpcs:// \(TLS\)"),
        ("grpcs://server:443", {"token": "hunter2"}, "expected where a secret is"),
        ("grpcs://server:443", {"token": "env:NONE_HERE"}, "expected an environment variable NONE_HERE"),
        ("grpcs://server:443", {"token": "env:TWO_WORDS"}, "without spaces"),
        ("https://server:443", {"headers": {"Content-Length": "env:MY_TOKEN"}}, "none that the protocol sets itself"),
        ("https://server:443", {"headers": {"x key\r\n": "env:MY_TOKEN"}}, "expected the name of a header"),
        ("https://server:443", {"headers": {"X-A": "env:MY_TOKEN", "x-a": "env:MY_TOKEN"}}, "got one twice"),
        ("https://server:443", {"token": "env:MY_TOKEN", "headers": {"Authorization": "env:MY_TOKEN"}}, "one twice"),
        ("http://127.0.0.1:1", {"ca": "nowhere.pem"}, r"expected https:// \(TLS\) with certificates"),
        ("https://server:443", {"ca": "nowhere.pem"}, "expected certificates .* in nowhere.pem, but No such file"),
        ("https://server:443", {"ca": os.devnull}, "but it holds no certificate"),
    ],
)
def test_what_cannot_be_sent_or_trusted_is_refused(monkeypatch, address, given, message):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    monkeypatch.setenv("TWO_WORDS", "hunter2 hunter3")
    with pytest.raises(ArgumentError, match=message) as raised:
        given_access(read_address(address), **given)
    assert_hidden(str(raised.value))


def test_headers_of_the_environment_that_cannot_be_read_are_not_shown(monkeypatch):
    monkeypatch.setenv("FLAWSCOPE_TRITON_HEADERS", "x-api-key:hunter2")
    with pytest.raises(ArgumentError, match="expected NAME=env:VARIABLE or NAME=file:PATH") as raised:
        given_access(read_address("grpc://localhost:1"))
    assert_hidden(str(raised.value))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_proxy_of_the_environment_gets_nothing(tiny, server, monkeypatch, protocol):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with connect(tiny, server.url(protocol), token="env:MY_TOKEN") as served:
        assert served(GOOD).decision == "accept"


def test_threads_that_asked_leave_no_open_files(tiny, server):
    """A line that opens a server again each second would have none left by the evening."""
    with connect(tiny, server.url("http")) as served:

        def ask() -> None:
            assert served(GOOD).decision == "accept"

        def files_after(times: int) -> int:
            for _ in range(times):
                thread = threading.Thread(target=ask)
                thread.start()
                thread.join()
            return len(list(Path("/proc/self/fd").iterdir()))

        before = files_after(2)
        assert files_after(10) <= before
    with connect(tiny, server.url("http")) as served:
        list(served.stream([GOOD] * 8, in_flight=4))
        session = served.scorer._session
    assert session._transport._idle == []

"""Addresses of servers, time limits, versions of models: what needs neither a server nor its client."""

from __future__ import annotations

import subprocess
import sys

import pytest
from tiny_bundle import tiny_thresholds, write_tiny_bundle
from tiny_ensemble import scaled_graph

from flawscope.bundle import open_bundle
from flawscope.errors import ArgumentError
from flawscope.runtime.client.address import Address, read_address, request_limit
from flawscope.runtime.client.served_model import served_identity, served_version


@pytest.mark.parametrize(
    ("text", "address", "shown"),
    [
        ("grpc://host:8001", Address("grpc", "host:8001", False), "grpc://host:8001"),
        ("grpcs://host:443/lid", Address("grpc", "host:443", True, "lid"), "grpcs://host:443"),
        ("http://10.0.0.1:8000/", Address("http", "10.0.0.1:8000", False), "http://10.0.0.1:8000"),
        ("https://[::1]:8443/a.b", Address("http", "[::1]:8443", True, "a.b"), "https://[::1]:8443"),
    ],
)
def test_an_address_is_read(text, address, shown):
    assert read_address(text) == address
    assert str(address) == shown


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host:8001",
        "grpc://host",
        "grpc://:8001",
        "ftp://host:8001",
        "grpc://host:port",
        "grpc://host:99999",
        "http://me:secret@host:8000",
        "http://host:8000/a/b",
        "http://host:8000/?v=1",
        "http://host:8000/tiny?key=secret",
        "http://[::1:8000",
    ],
)
def test_what_is_no_address_is_refused(text):
    with pytest.raises(ArgumentError, match="server: expected ") as caught:
        read_address(text)
    assert "secret" not in str(caught.value), "a message may be read by others"


@pytest.mark.parametrize("given", [0, -1, float("nan"), float("inf")])
def test_a_request_has_a_limit(given):
    with pytest.raises(ArgumentError, match="request_timeout_s: expected a positive number of seconds"):
        request_limit(given)


def test_the_limit_comes_from_the_environment(monkeypatch):
    assert request_limit() == 10.0
    monkeypatch.setenv("FLAWSCOPE_TRITON_TIMEOUT", "2.5")
    assert (request_limit(), request_limit(1)) == (2.5, 1.0)
    monkeypatch.setenv("FLAWSCOPE_TRITON_TIMEOUT", "soon")
    with pytest.raises(ArgumentError, match="FLAWSCOPE_TRITON_TIMEOUT: expected a positive number of seconds"):
        request_limit()


def test_the_identity_is_of_what_computes_and_not_of_thresholds(tmp_path):
    def identity(name: str, **changes) -> str:
        write_tiny_bundle(tmp_path / name, **changes)
        with open_bundle(tmp_path / name) as bundle:
            return served_identity(bundle, "score", "fp32")

    plain = identity("a.flaw")
    assert identity("b.flaw", thresholds=tiny_thresholds()) == plain
    assert identity("c.flaw", sources={"score.onnx": scaled_graph(2.0)}) != plain


def test_a_version_is_a_number_that_triton_and_json_keep():
    assert served_version("0" * 64) == "1"
    assert served_version("f" * 64) == str(2**48 - 1)
    assert served_version("000000000010" + "f" * 52) == "16"


def test_the_client_is_imported_where_a_server_is_asked_alone(tmp_path):
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    code = (
        "import sys\n"
        "for name in ('tritonclient', 'grpc', 'gevent'): sys.modules[name] = None\n"
        "from flawscope.runtime import Inspector\n"
        "from flawscope.runtime.client import connect\n"
        f"Inspector.load({str(tmp_path / 'tiny.flaw')!r}, 'cpu').close()\n"
        f"connect({str(tmp_path / 'tiny.flaw')!r}, 'grpc://127.0.0.1:1')\n"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert process.returncode == 1
    assert "needs the package tritonclient, which is not installed." in process.stderr
    assert 'pip install "flawscope[client]"' in process.stderr

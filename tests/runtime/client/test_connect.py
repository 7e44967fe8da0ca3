"""Inspectors whose graph runs on a server, against a stand-in of the protocol on loopback: results and every failure.

No Triton is here. The stand-in speaks KServe v2 over gRPC and HTTP, to the client that asks Triton too, and computes
with ONNX Runtime as a local inspector does.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
from own_certificates import write_certificate
from tiny_bundle import SIDE, golden_image, tiny_thresholds, write_tiny_bundle
from tiny_dataset import anomalous_images, normal_images
from tiny_ensemble import member_of, write_member, write_tiny_ensemble

from flawscope.bundle import Thresholds, ZoneThresholds, change_bundle, make_region, make_zones, open_bundle
from flawscope.cli import run
from flawscope.errors import ArgumentError, BackendError, BundleError
from flawscope.export.triton import write_models
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector, Result
from flawscope.runtime.client import connect
from flawscope.runtime.client.served_model import served_model

pytest.importorskip("tritonclient.grpc", reason='needs pip install "flawscope[client]"')
pytest.importorskip("tritonclient.http", reason='needs pip install "flawscope[client]"')

from kserve_stand_in import TROUBLES, KserveStandIn, Refused, until

PROTOCOLS = ("grpc", "http")
GOOD = golden_image() // 2
"""An image that the tiny bundle accepts."""
IMAGES = [golden_image() // part for part in (1, 2, 3, 4, 5)]


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that is busy elsewhere is no server that is slow."""
    monkeypatch.setenv("FLAWSCOPE_TRITON_TIMEOUT", "120")


def hasten(served: Inspector, limit_s: float = 0.4) -> None:
    """Give the server that little time for an answer."""
    served.scorer._session._limit_s = limit_s  # type: ignore[attr-defined]


def serve(bundle: Path, repository: Path, **options: Any) -> KserveStandIn:
    with open_bundle(bundle) as opened:
        write_models(opened, repository, **options)
    return KserveStandIn(repository)


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A calibrated bundle of a few kilobytes."""
    write_tiny_bundle(tmp_path / "tiny.flaw", thresholds=tiny_thresholds())
    return tmp_path / "tiny.flaw"


@pytest.fixture
def server(tiny: Path, tmp_path: Path) -> Iterator[KserveStandIn]:
    """A server that serves it."""
    with serve(tiny, tmp_path / "models") as standing:
        yield standing


def said(result: Result) -> dict[str, Any]:
    """Return all of a result but times, and the backend that it names."""
    line = result.to_json()
    del line["latency_ms"]
    return line | {"reason": result.reason, "revision": result.threshold_revision}


def assert_equal(served: list[Result], local: list[Result]) -> None:
    assert [said(result) for result in served] == [said(result) for result in local]
    for one, other in zip(served, local, strict=True):
        np.testing.assert_array_equal(one.anomaly_map, other.anomaly_map)


# --- the same results


@pytest.mark.long  # waits for bundles that are trained
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("method", ["patchcore", "padim"])
def test_results_are_those_of_a_local_inspector_to_the_last_bit(bundles, tiny_root, tmp_path, method, protocol):
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    images = [*normal_images(tiny_root)[:3], *anomalous_images(tiny_root)[:3], broken]
    with (
        serve(bundles[method], tmp_path / "models") as server,
        connect(bundles[method], server.url(protocol)) as served,
        Inspector.load(bundles[method], "cpu", path="graph") as local,
    ):
        expected = local(images)
        assert {result.decision for result in expected} == {"accept", "reject", "fault"}
        assert_equal(served(images), expected)
        # One by one: a batch of one is another request, and another run of the graph.
        assert_equal(
            [served(image) for image in images[:2]],
            [local(image) for image in images[:2]],
        )
        assert served.backend == "triton"
        assert served.backend_reason == f"served by {server.url(protocol)}"
        assert served(images[0]).backend == "triton"
    # The golden images come first, each alone; then full batches.
    assert server.asked[:2] == [1, 1]
    assert max(server.asked) > 1


def test_what_is_not_in_the_graph_is_done_here(tmp_path):
    """Tiles, region and zones: the server sees tiles of the graph's size alone."""
    left = np.zeros((SIDE, SIDE), np.bool_)
    left[:, : SIDE // 2] = True
    whole, alike = tiny_thresholds(0.0).image, tiny_thresholds(100.0)
    zones = make_zones({"left": left}, None, None)
    of_zones = tuple(ZoneThresholds(name, alike.image, alike.pixel) for name in zones.names)
    large = np.tile(golden_image(), (3, 4, 1))
    large[: 2 * SIDE] //= 3
    cases: list[tuple[str, dict[str, Any], Any]] = [
        ("tiles", {"tiling": Tiling((SIDE, SIDE), 0.25), "thresholds": tiny_thresholds()}, large),
        ("region", {"region": make_region(left), "thresholds": tiny_thresholds()}, golden_image()),
        ("zones", {"zones": zones, "thresholds": Thresholds(whole, alike.pixel, zones=of_zones)}, golden_image()),
    ]
    for name, changes, image in cases:
        bundle = tmp_path / f"{name}.flaw"
        write_tiny_bundle(bundle, name=name, **changes)
        with (
            serve(bundle, tmp_path / name) as server,
            connect(bundle, server.url("grpc")) as served,
            Inspector.load(bundle, "cpu", path="graph") as local,
        ):
            assert_equal(served([image, image // 4]), local([image, image // 4]))
        record = msgspec.json.decode((tmp_path / name / name / "flawscope.json").read_bytes())
        # Whoever decides by the record alone must not accept what a tile or a zone would have rejected.
        assert (record["beside"], record["thresholds"]) == ([name], None)


def test_the_members_of_an_ensemble_are_models_and_their_sum_is_made_here(tmp_path):
    paths = [write_member(tmp_path / f"{name}.flaw", factor) for name, factor in (("a", 1), ("b", 4))]
    entries = {path: member_of(path, 1.0, 0.0, 1.0) for path in paths}
    both = tmp_path / "both.flaw"
    write_tiny_ensemble(both, entries, 1000.0, thresholds=tiny_thresholds(600.0))
    with serve(both, tmp_path / "models") as server:
        assert sorted(server.models) == ["a", "b"]
        with connect(both, server.url("grpc")) as served, Inspector.load(both, "cpu", path="graph") as local:
            assert_equal(served(IMAGES), local(IMAGES))
            assert {result.decision for result in served(IMAGES)} == {"accept", "reject"}


def test_thresholds_are_those_of_the_client(tiny, server):
    with connect(tiny, server.url("grpc")) as served:
        assert served(GOOD).decision == "accept"
    with open_bundle(tiny) as bundle:
        manifest = bundle.manifest
    lower = msgspec.structs.replace(manifest.thresholds, image=tiny_thresholds(99.0).image)
    # Another digest, the same graph: a bundle that is calibrated anew needs no new export.
    change_bundle(tiny, manifest, lambda now: msgspec.structs.replace(now, thresholds=lower))
    with connect(tiny, server.url("grpc")) as served:
        assert (served(GOOD).decision, served(GOOD).threshold) == ("reject", 99.0)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_several_requests_are_under_way_and_results_keep_their_order(tiny, server, protocol):
    server.delay_s = 0.05
    with connect(tiny, server.url(protocol)) as served:
        images = [np.full((SIDE, SIDE, 3), level, np.uint8) for level in range(0, 240, 10)]
        taken = 0

        def source() -> Iterator[np.ndarray]:
            nonlocal taken
            for image in images:
                taken += 1
                yield image

        results = served.stream(source(), in_flight=4)
        first = next(results)
        assert taken == 4  # no more than it needs
        scores = [first.score, *(result.score for result in results)]
    assert scores == [float(image[0, 0, 0]) for image in images]
    assert 2 <= server.most_at_once <= 4


def test_submitted_images_are_inspected_too(tiny, server):
    with connect(tiny, server.url("grpc")) as served:
        assert served.submit(GOOD).result(30).decision == "accept"


def test_submitted_images_find_a_server_that_was_away(tiny, tmp_path):
    """However long and often it was away: another process would find no other server."""
    server = serve(tiny, tmp_path / "models")
    ports = {"grpc_port": server.grpc_port, "http_port": server.http_port}
    with connect(tiny, server.url("http")) as served:
        for _ in range(3):
            assert served.submit(GOOD).result(30).decision == "accept"
            server.close()
            assert [served.submit(GOOD).result(30).decision for _ in range(3)] == ["fault"] * 3
            server = KserveStandIn(tmp_path / "models", **ports)
            until(lambda: served.submit(GOOD).result(30).decision == "accept")
        server.close()


@pytest.mark.parametrize(("asked", "message"), [(0, "expected 1 to 64 batches, got 0"), (65, "got 65")])
def test_too_many_at_once_are_refused(tiny, server, asked, message):
    with connect(tiny, server.url("grpc")) as served, pytest.raises(ArgumentError, match=f"in_flight: .*{message}"):
        next(served.stream([GOOD], in_flight=asked))


def test_a_local_backend_takes_one_batch_after_the_other(tiny):
    with (
        Inspector.load(tiny, "cpu") as local,
        pytest.raises(ArgumentError, match="in_flight: expected 1 on backend cpu"),
    ):
        next(local.stream([GOOD], in_flight=2))


# --- failures: a fault, never an accept


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_an_answer_that_is_wrong_in_any_way_is_a_fault(tiny, server, protocol):
    reasons = {
        "error": "the server failed: onnx runtime error 6: out of memory",
        "nan": "inference gave NaN or infinity",
        "infinite": "inference gave NaN or infinity",
        "shape": "anomaly_map: expected float32 [1, 16, 16], got float32 [1, 15, 16]",
        "one score": "score: expected float32 [1, 1], got float32 [2, 1]",
        "dtype": "score: expected float32 [1, 1], got float64 [1, 1]",
        "missing": "score: expected float32 [1, 1], got none",
        "version": "expected an answer of version",
        "request": "expected an answer of version",
    }
    assert set(reasons) == set(TROUBLES)
    with connect(tiny, server.url(protocol)) as served:
        for trouble, reason in reasons.items():
            server.trouble = trouble
            result = served(GOOD)
            assert (result.decision, result.score) == ("fault", None), trouble
            assert reason in str(result.reason)
            server.trouble = ""
            assert served(GOOD).decision == "accept", trouble


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_slow_is_a_fault_within_the_limit(tiny, server, protocol):
    with connect(tiny, server.url(protocol)) as served:
        hasten(served)
        server.delay_s = 60.0
        result = served(GOOD)
        assert result.decision == "fault"
        assert "expected an answer within 0.4 s, got none" in str(result.reason)
        assert len(server.asked) <= 2  # the golden image, and the slow one: it is not asked twice
        server.delay_s = 0.0
        hasten(served, 120)
        assert served(GOOD).decision == "accept"


def test_an_answer_that_trickles_in_is_late_as_a_whole(tiny, server):
    with connect(tiny, server.url("http")) as served:
        hasten(served)
        server.trickles, server.delay_s = True, 0.02
        assert "expected an answer within 0.4 s" in str(served(GOOD).reason)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_connection_that_ends_is_tried_once_more_and_no_more(tiny, server, protocol):
    with connect(tiny, server.url(protocol)) as served:
        server.drops = 1
        assert served(GOOD).decision == "accept"
        server.drops = 2
        result = served(GOOD)
        assert result.decision == "fault"
        assert "no server answers there" in str(result.reason)
        assert server.drops == 0
        assert served(GOOD).decision == "accept"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_that_is_gone_is_a_fault_and_is_found_when_it_is_back(tiny, tmp_path, protocol):
    server = serve(tiny, tmp_path / "models")
    ports = {"grpc_port": server.grpc_port, "http_port": server.http_port}
    with connect(tiny, server.url(protocol)) as served:
        assert served(GOOD).decision == "accept"
        server.close()
        for _ in range(2):
            result = served(GOOD)
            assert result.decision == "fault"
            assert "no server answers there" in str(result.reason)
        with KserveStandIn(tmp_path / "models", **ports):
            until(lambda: served(GOOD).decision == "accept")


def test_a_model_that_is_replaced_while_images_come_is_noticed(tiny, server, tmp_path):
    """Another graph under the same name has another version: the very next request is refused."""
    with connect(tiny, server.url("grpc")) as served:
        assert served(GOOD).decision == "accept"
        write_member(tmp_path / "other" / "tiny.flaw", 0.5)
        with open_bundle(tmp_path / "other" / "tiny.flaw") as other:
            write_models(other, server.repository, overwrite=True)
        server.load()
        for _ in range(2):
            result = served(GOOD)
            assert result.decision == "fault"
            assert "is not found" in str(result.reason)


def test_of_several_requests_the_one_that_fails_is_the_fault(tiny, server):
    """A failure does not end the requests beside it: their answers count."""
    both, failed, real = threading.Barrier(2), threading.Event(), server.answer

    def answer(model: Any, images: np.ndarray, request: str) -> Any:
        level = int(images.max())
        if level in (40, 50):
            both.wait(20)  # until the other one is under way
        if level == 40:
            raise Refused("out of memory")
        if level == 50:
            failed.wait(20)
        return real(model, images, request)

    with connect(tiny, server.url("grpc")) as served:
        server.answer = answer  # type: ignore[method-assign]
        results = served.stream([np.full((SIDE, SIDE, 3), level, np.uint8) for level in (40, 50)], in_flight=2)
        first = next(results)
        assert (first.decision, served.device_failed) == ("fault", True)
        failed.set()
        assert next(results).decision == "accept"


def test_a_closed_inspector_gives_faults(tiny, server):
    served = connect(tiny, server.url("grpc"))
    served.close()
    assert served(GOOD).decision == "fault"


# --- before the first image


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_of_another_graph_is_refused(tiny, server, tmp_path, protocol):
    write_member(tmp_path / "other" / "tiny.flaw", 0.5)
    with pytest.raises(BackendError, match=r"is not found.*Expected the model tiny in version \d+"):
        connect(tmp_path / "other" / "tiny.flaw", server.url(protocol))
    with pytest.raises(BackendError, match="Request for unknown model: 'lid'"):
        connect(tiny, f"{server.url(protocol)}/lid")
    assert server.asked == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda config: config.parameters["flawscope_graph"].Clear(), "got none that flawscope has exported"),
        (lambda config: setattr(config, "max_batch_size", 2), "expected batches of up to 4 images, got 2"),
        (lambda config: config.output[0].dims.__setitem__(0, 8), "expected the tensors"),
    ],
)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_configuration_that_was_changed_is_refused(tiny, server, protocol, change: Callable[[Any], Any], message):
    change(server.models["tiny"].config)
    with pytest.raises(BackendError, match=re.escape(message)):
        connect(tiny, server.url(protocol))


@pytest.mark.parametrize("config", [[], {"parameters": [1]}, {"input": 3}, {"max_batch_size": "many"}])
def test_a_configuration_that_is_none_is_refused_in_one_line(tiny, server, monkeypatch, config):
    from flawscope.runtime.client.http_transport import HttpTransport

    with open_bundle(tiny) as opened:
        identity = served_model(opened, "score", "fp32").identity
    if config and "parameters" not in config:
        config = {"parameters": {"flawscope_graph": {"string_value": identity}}, **config}
    monkeypatch.setattr(HttpTransport, "config", lambda *arguments: config)
    with pytest.raises(BackendError, match=r"expected (its configuration|the graph|the tensors)"):
        connect(tiny, server.url("http"))


def test_a_server_that_computes_something_else_fails_the_golden_check(tiny, server):
    class Louder:
        def __init__(self, session: Any) -> None:
            self._session = session

        def run(self, *arguments: Any) -> list[np.ndarray]:
            return [1.01 * array for array in self._session.run(*arguments)]

    server.models["tiny"].session = Louder(server.models["tiny"].session)
    with pytest.raises(BundleError, match=r"golden/0\.png: expected score 200 as at export, got 202 on triton"):
        connect(tiny, server.url("grpc"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_no_server_is_one_line(tiny, server, protocol):
    url = server.url(protocol)
    server.close()
    with pytest.raises(BackendError, match=rf"backend triton: {url}: no server answers there"):
        connect(tiny, url)


def test_what_is_not_one_graph_is_refused_before_a_server_is_asked(tiny):
    with open_bundle(tiny) as bundle:
        for graph, why in (("denoise", "many times an image"), ("features", "take the path graph")):
            with pytest.raises(BackendError, match=f"expected a bundle whose score is one graph.*{why}"):
                served_model(bundle, graph, "fp32")


def test_another_name_there_stands_behind_the_address(tiny, tmp_path):
    from flawscope.export.triton_config import TritonOptions

    with serve(tiny, tmp_path / "models", options=TritonOptions(name="line_2")) as server:
        with connect(tiny, f"{server.url('http')}/line_2") as served:
            assert served(GOOD).decision == "accept"
        with pytest.raises(BackendError, match="unknown model: 'tiny'"):
            connect(tiny, server.url("http"))


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_over_tls_the_certificate_of_the_server_counts(tiny, tmp_path, protocol):
    """In processes of their own: which certificates are trusted is read once in a process."""
    tls = write_certificate(tmp_path / "tls")
    with open_bundle(tiny) as opened:
        write_models(opened, tmp_path / "models")
    variable = {"grpc": "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH", "http": "SSL_CERT_FILE"}[protocol]
    with KserveStandIn(tmp_path / "models", tls=tls) as server:
        code = (
            "import numpy as np\n"
            "from flawscope.runtime.client import connect\n"
            f"with connect({str(tiny)!r}, {server.url(protocol)!r}) as served:\n"
            f"    print(served(np.full(({SIDE}, {SIDE}, 3), 50, np.uint8)).decision)\n"
        )
        for trusted, said in (({variable: str(tls[0])}, "accept"), ({}, "no server answers there")):
            environment = {name: value for name, value in os.environ.items() if name != variable} | trusted
            done = subprocess.run(
                [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
            )
            assert said in done.stdout + done.stderr, done


def test_onnx_runtime_is_not_needed_where_the_images_are(tiny, server):
    code = (
        "import sys\n"
        "for name in ('onnxruntime', 'onnx', 'torch'): sys.modules[name] = None\n"
        "import numpy as np\n"
        "from flawscope.runtime.client import connect\n"
        f"with connect({str(tiny)!r}, {server.url('grpc')!r}) as served:\n"
        f"    print(served(np.full(({SIDE}, {SIDE}, 3), 50, np.uint8)).decision)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("accept\n", 0), done.stderr


# --- the command line


@pytest.fixture
def good(tmp_path: Path) -> Path:
    assert cv2.imwrite(str(tmp_path / "good.png"), GOOD)
    return tmp_path / "good.png"


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_score_takes_the_server_that_the_environment_names(tiny, server, good, monkeypatch, capsys, protocol):
    monkeypatch.setenv("FLAWSCOPE_TRITON", server.url(protocol))
    assert run(["score", str(tiny), str(good), "--backend", "triton", "--json"]) == 0
    line = msgspec.json.decode(capsys.readouterr().out)
    assert (line["decision"], line["score"]) == ("accept", 100.0)


@pytest.mark.long
def test_bench_and_doctor_take_it_too(tiny, server, monkeypatch, capsys):
    monkeypatch.setenv("FLAWSCOPE_TRITON", server.url("grpc"))
    assert run(["bench", str(tiny), "--backend", "triton", "--seconds", "0.2"]) == 0
    assert run(["doctor", str(tiny), "--backend", "triton"]) in (1, 2)
    assert "does not tell what computes which node" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "expected the address of a server, got none. Set FLAWSCOPE_TRITON=grpc://HOST:8001"),
        ({"FLAWSCOPE_TRITON": "host:8001"}, "FLAWSCOPE_TRITON: expected the address of a server"),
        ({"FLAWSCOPE_TRITON": "grpc://127.0.0.1:1", "FLAWSCOPE_TRITON_TIMEOUT": "0"}, "FLAWSCOPE_TRITON_TIMEOUT: exp"),
        ({"FLAWSCOPE_TRITON": "grpc://127.0.0.1:1"}, "no server answers there"),
    ],
)
def test_a_server_that_is_not_named_or_not_there_is_one_line(tiny, good, monkeypatch, capsys, variables, message):
    monkeypatch.delenv("FLAWSCOPE_TRITON", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert run(["score", str(tiny), str(good), "--backend", "triton"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert message in err

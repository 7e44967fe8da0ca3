"""The pool of sessions: what is one session, who opens it, and when it is closed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from tiny_banks import part_images, write_bank_bundle
from tiny_bundle import SIDE, write_tiny_bundle

from flawscope.bundle import Bundle, Graph, open_bundle
from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.runtime.backends import open_session, session_pool
from flawscope.runtime.backends.session_pool import SessionPool


class FakeSession:
    """Says which one it is, and whether it was closed."""

    outputs = ("patches",)

    def __init__(self) -> None:
        self.closed = 0
        self.fails = False

    def infer(self, images: Any) -> dict[str, Any]:
        if self.fails:
            raise DeviceError("lost")
        assert self.closed == 0, "a session that was closed is run"
        return {"patches": self}

    def run(self, inputs: Any) -> dict[str, Any]:
        return self.infer(inputs)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return open_bundle(write_bank_bundle(tmp_path_factory.mktemp("pool") / "a.flaw", 0))


@pytest.fixture(scope="module")
def made() -> Any:
    """Every session that was opened in this file, fakes all."""
    sessions: list[FakeSession] = []

    def fake(*_: object) -> FakeSession:
        sessions.append(FakeSession())
        return sessions[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(session_pool, "open_session", fake)
        yield sessions


def session_of(handle: Any) -> FakeSession:
    found = handle.infer(None)["patches"]
    assert isinstance(found, FakeSession)
    return found


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["open", "close", "fail"]),
            st.integers(0, 3),
            st.sampled_from(["features", "score"]),
            st.sampled_from(["cpu", "cuda"]),
        ),
        max_size=30,
    )
)
def test_one_session_for_each_graph_and_backend_until_it_fails_and_none_without_a_user(
    bundle: Bundle, made: list[FakeSession], steps: list[tuple[str, int, str, str]]
) -> None:
    pool = SessionPool()
    made.clear()
    handles: list[tuple[str, str, Any, FakeSession]] = []
    for step, number, graph, backend in steps:
        if step == "open":
            handle = pool.open(f"user {number}", bundle, graph, "fp32", backend)
            healthy = {id(session) for *key, _, session in handles if key == [graph, backend] and not session.fails}
            session = session_of(handle)
            assert healthy in (set(), {id(session)})
            handles.append((graph, backend, handle, session))
        elif handles and step == "close":
            handles.pop(number % len(handles))[2].close()
        elif handles:
            *_, handle, session = handles[number % len(handles)]
            session.fails = True
            with pytest.raises(DeviceError, match="lost"):
                handle.infer(None)
        used = {id(session) for *_, session in handles}
        assert [session.closed for session in made] == [int(id(session) not in used) for session in made]
        assert len(pool.uses()) == len(used)
    for *_, handle, _ in handles:
        handle.close()
        handle.close()
    assert [session.closed for session in made] == [1] * len(made)
    assert pool.uses() == ()


def test_a_handle_that_was_closed_runs_nothing(bundle: Bundle, made: list[FakeSession]) -> None:
    pool = SessionPool()
    first, second = (pool.open(name, bundle, "features", "fp32", "cpu") for name in ("a", "b"))
    first.close()
    with pytest.raises(DeviceError, match="the session is closed"):
        first.infer(part_images(1, 0))
    assert session_of(second).closed == 0
    assert pool.uses()[0].bundles == ("b",)


def test_of_many_threads_one_opens_the_session(
    bundle: Bundle, made: list[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    made.clear()
    fake: Any = vars(session_pool)["open_session"]
    start = threading.Barrier(6)

    def slowly(*arguments: Any) -> Any:
        time.sleep(0.02)
        return fake(*arguments)

    monkeypatch.setattr(session_pool, "open_session", slowly)
    pool = SessionPool()

    def open_one(number: int) -> Any:
        start.wait(20)
        return pool.open(f"user {number}", bundle, "features", "fp32", "cpu")

    with ThreadPoolExecutor(6) as threads:
        handles = list(threads.map(open_one, range(6)))
    assert len(made) == 1
    with ThreadPoolExecutor(6) as threads:
        list(threads.map(lambda handle: [handle.close() for _ in range(3)], handles))
    assert made[0].closed == 1


def test_where_one_fails_to_open_the_next_one_tries(
    bundle: Bundle, made: list[FakeSession], monkeypatch: pytest.MonkeyPatch
) -> None:
    fake: Any = vars(session_pool)["open_session"]
    answers: list[Callable[..., Any]] = [lambda *_: fail(), fake]

    def fail() -> None:
        raise BackendError("backend cpu: no room")

    monkeypatch.setattr(session_pool, "open_session", lambda *arguments: answers.pop(0)(*arguments))
    pool = SessionPool()
    with pytest.raises(BackendError, match="no room"):
        pool.open("a", bundle, "features", "fp32", "cpu")
    assert pool.uses() == ()
    assert pool.open("b", bundle, "features", "fp32", "cpu").outputs == ("patches",)


# ---- What is equal ---------------------------------------------------------------------------------------------------


def write_with_values(path: Path, value: float) -> Bundle:
    """Write and open a tiny bundle whose graph adds a number, which lies in a file beside it, to the brightness."""
    nodes = [
        helper.make_node("Cast", ["image"], ["pixels"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["pixels", "more"], ["brighter"]),
        helper.make_node("ReduceMean", ["brighter", "channel"], ["anomaly_map"], keepdims=0),
        helper.make_node("ReduceMax", ["anomaly_map", "rows_columns"], ["score"], keepdims=0),
    ]
    more = numpy_helper.from_array(np.full((SIDE, SIDE, 3), value, np.float32), "more")
    graph = helper.make_graph(
        nodes,
        "brighter",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["N", SIDE, SIDE, 3])],
        [
            helper.make_tensor_value_info("anomaly_map", TensorProto.FLOAT, ["N", SIDE, SIDE]),
            helper.make_tensor_value_info("score", TensorProto.FLOAT, ["N"]),
        ],
        [
            more,
            numpy_helper.from_array(np.array([3], np.int64), "channel"),
            numpy_helper.from_array(np.array([1, 2], np.int64), "rows_columns"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.with_suffix(".onnx")
    onnx.save(model, file, save_as_external_data=True, location="score.onnx.data", size_threshold=1024)
    data = path.parent / "score.onnx.data"
    sources: dict[str, Path | bytes] = {"score.onnx": file.read_bytes(), "score.onnx.data": data.read_bytes()}
    data.unlink()
    graphs = {"score": Graph("score.onnx", ("anomaly_map", "score"), "pixels", 4 * SIDE * SIDE * 3, 1 << 14)}
    write_tiny_bundle(path, sources, graphs=graphs)
    return open_bundle(path)


def test_graphs_with_other_values_beside_them_are_not_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_pool, "open_session", open_session)  # no fakes here
    with (
        write_with_values(tmp_path / "one.flaw", 1.0) as one,
        write_with_values(tmp_path / "two.flaw", 2.0) as two,
        write_with_values(tmp_path / "again.flaw", 1.0) as again,
    ):
        assert one.manifest.files["score.onnx"] == two.manifest.files["score.onnx"]
        pool = SessionPool()
        handles = [
            pool.open(name, bundle, "score", "fp32", "cpu")
            for name, bundle in (("one", one), ("two", two), ("again", again))
        ]
        images = part_images(2, 0)
        expected = images.mean(axis=3, dtype=np.float32)
        for handle, more in zip(handles, (1, 2, 1), strict=True):
            np.testing.assert_allclose(handle.infer(images)["anomaly_map"], expected + more, rtol=1e-5)
        assert [use.bundles for use in pool.uses()] == [("again", "one"), ("two",)]
        assert pool.uses()[1].reason == (
            "score.onnx.data, which the graph reads, differs in the other bundles with this graph"
        )
        for handle in handles:
            handle.close()


def test_bytes_that_are_not_those_of_the_bundle_are_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    with open_bundle(write_bank_bundle(tmp_path / "b.flaw", 1)) as other:
        with pytest.raises(BundleError, match=r"bank\.safetensors: expected SHA-256"):
            other.adopt("bank.safetensors", bundle.read("bank.safetensors"))
        with pytest.raises(BundleError, match=r"features\.onnx: expected [0-9]+ bytes, got 4"):
            other.adopt("features.onnx", b"onnx")
        with pytest.raises(BundleError, match="does not list it"):
            other.adopt("more.onnx", b"onnx")
        other.adopt("features.onnx", bundle.read("features.onnx"))
        assert other.read("features.onnx") is bundle.read("features.onnx")
    with pytest.raises(BundleError, match="the bundle was closed"):
        other.adopt("features.onnx", bundle.read("features.onnx"))

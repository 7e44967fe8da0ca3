"""Threads and streams: who has them, in which range, and that graph and kernels keep to them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_banks import part_images, write_bank_bundle

from flawscope.cpp_ext import separable_maps
from flawscope.cpp_ext.checks import check_threads, default_threads
from flawscope.errors import ArgumentError
from flawscope.runtime import Inspector
from flawscope.runtime.backends import Cores, check_cores, cores, open_session, session_pool
from flawscope.runtime.backends.ort import session_options
from flawscope.runtime.scorers import bank_scorer

ONE_CORE = """
import os, sys
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from flawscope.runtime import Inspector
with Inspector.load(sys.argv[1], sys.argv[2]) as inspector:
    inspector(sys.argv[3])
    print({core for task in os.listdir("/proc/self/task") for core in os.sched_getaffinity(int(task))}
          <= os.sched_getaffinity(0))
"""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bank_bundle(tmp_path_factory.mktemp("cores") / "a.flaw", 0)


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores, "usable_cores", lambda: 4)


@pytest.mark.parametrize(
    ("backend", "wanted", "message"),
    [
        ("cpu", Cores(threads=5), r"threads: expected 1 to 4 \(the cores that this process may use\), got 5\."),
        ("cpu", Cores(threads=0), r"threads: expected 1 to 4 .*, got 0\."),
        ("cpu", Cores(threads=True), "got True"),
        ("cpu", Cores(streams=1), "streams: backend cpu has none to choose. Leave it out, or use one that has: openvi"),
        ("cuda", Cores(threads=1), "threads: backend cuda has none"),
        ("openvino:gpu", Cores(threads=1), "threads: backend openvino:gpu has none"),
        ("openvino:cpu", Cores(threads=2, streams=3), r"streams: expected 1 to 2 \(the threads\), got 3\."),
    ],
)
def test_what_a_backend_has_not_is_refused(backend: str, wanted: Cores, message: str, four_cores: None) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_cores(backend, wanted)


def test_what_fits_is_taken(four_cores: None) -> None:
    for backend, wanted in (("cpu", Cores(4)), ("openvino", Cores(4, 4)), ("openvino:gpu", Cores(None, 2))):
        check_cores(backend, wanted)
    check_cores("cuda", Cores())


def test_kernels_take_the_default_of_their_own_thread_and_block() -> None:
    assert check_threads(0) == 0
    with default_threads(3):
        assert (check_threads(0), check_threads(2)) == (3, 2)
        with default_threads(None):
            assert check_threads(0) == 3
    assert check_threads(0) == 0
    with pytest.raises(ArgumentError, match="threads"), default_threads(-1):
        pass


def test_graph_and_kernels_get_the_threads(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert session_options(Cores(threads=1)).intra_op_num_threads == 1
    seen: list[int] = []
    real = separable_maps

    def watched(*arrays: Any) -> Any:
        seen.append(check_threads(0))
        return real(*arrays)

    monkeypatch.setattr(bank_scorer, "separable_maps", watched)
    with Inspector.load(bundle, "cpu", "kernel", threads=1) as inspector, Inspector.load(bundle, "cpu") as free:
        seen.clear()
        one, whole = inspector(part_images(1, 5)[0]), free(part_images(1, 5)[0])
    assert seen == [1, 0]
    assert one.score == pytest.approx(whole.score, rel=1e-5)


def test_a_number_of_cores_that_is_left_is_the_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    from flawscope.runtime.backends import ort

    monkeypatch.setattr(ort, "usable_cores", lambda: (os.cpu_count() or 1) + 1)
    assert session_options().intra_op_num_threads == (os.cpu_count() or 1) + 1
    monkeypatch.setattr(ort, "usable_cores", os.cpu_count)
    assert session_options().intra_op_num_threads == 0  # its own choice


@pytest.mark.parametrize("backend", ["cpu", "openvino"])
def test_no_thread_leaves_the_cores_that_the_process_may_use(bundle: Path, backend: str) -> None:
    if backend == "openvino":
        pytest.importorskip("openvino", reason="the extra openvino is not installed")
    if not hasattr(os, "sched_setaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core, or no affinity: there is nowhere else to go")
    image = next((bundle / "golden").iterdir())
    done = subprocess.run(
        [sys.executable, "-c", ONE_CORE, str(bundle), backend, str(image)], capture_output=True, text=True, timeout=300
    )
    assert (done.stdout, done.returncode) == ("True\n", 0), done.stderr


def test_sessions_of_one_process_have_threads_and_streams_of_their_own(bundle: Path) -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    images = part_images(4, 5)
    with (
        Inspector.load(bundle, "openvino", threads=1, streams=1) as one,
        Inspector.load(bundle, "openvino") as free,
    ):
        got, expected = one(images), free(images)
        sessions: list[Any] = [inspector.scorer.parts(np.stack(images))[0].session for inspector in (one, free)]
        threads = [session._pools["LATENCY"]._compiled.get_property("INFERENCE_NUM_THREADS") for session in sessions]
        assert threads[0] == 1
        assert threads[1] == 1 if cores.usable_cores() == 1 else threads[1] > 1
        # In one stream a batch needs no second model.
        assert [sorted(session._pools) for session in sessions] == [["LATENCY"], ["LATENCY", "THROUGHPUT"]]
    assert [a.score for a in got] == pytest.approx([b.score for b in expected], rel=1e-5)


def test_bundles_with_other_threads_share_no_session(bundle: Path) -> None:
    pool = session_pool.SessionPool()
    from flawscope.bundle import open_bundle

    with open_bundle(bundle) as opened:
        one = pool.open("a", opened, "features", "fp32", "cpu", None, Cores(threads=1))
        other = pool.open("b", opened, "features", "fp32", "cpu")
        assert [use.bundles for use in pool.uses()] == [("a",), ("b",)]
        assert pool.uses()[0].reason == "others have this graph with cores as the backend chooses"
        one.close()
        other.close()


def test_a_session_refuses_them_too(bundle: Path) -> None:
    from flawscope.bundle import open_bundle

    with open_bundle(bundle) as opened, pytest.raises(ArgumentError, match="streams: backend cpu has none"):
        open_session(opened, "features", "fp32", "cpu", cores=Cores(streams=1))


def test_openvino_comes_without_its_converter_which_is_there_when_it_is_asked_for() -> None:
    pytest.importorskip("openvino", reason="the extra openvino is not installed")
    code = (
        "import sys; from flawscope.runtime.backends.openvino_devices import import_openvino\n"
        "module = import_openvino(); print('openvino.tools.ovc' in sys.modules, hasattr(module, 'no_such'))\n"
        "from openvino import convert_model; print('openvino.tools.ovc' in sys.modules, convert_model.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert (done.stdout, done.stderr) == ("False False\nTrue convert_model\n", "")

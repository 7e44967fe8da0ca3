"""Several bundles at once: what they share changes no bit, and nothing of one is lost with another."""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_banks import part_images, write_bank_bundle
from tiny_bundle import tiny_thresholds
from tiny_ensemble import member_of, write_member, write_tiny_ensemble

from flawscope.bundle import Golden, open_bundle, rewrite_manifest
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError, LoadTimeout
from flawscope.runtime import Inspector, Result, Router
from flawscope.runtime.backends import open_session, ort, session_pool, table

SAME = ("a", "b", "c")
"""Bundles with one backbone; `other` has another one."""
NAMES = (*SAME, "other")


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("router")
    made = {name: write_bank_bundle(folder / f"{name}.flaw", seed) for seed, name in enumerate(SAME)}
    return {**made, "other": write_bank_bundle(folder / "other.flaw", 0, factor=0.5)}


class Sessions:
    """The sessions of ONNX Runtime that are open."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.opened = 0


@pytest.fixture(scope="module")
def sessions() -> Iterator[Sessions]:
    """Counted for all tests of this file: a property runs many examples in one."""
    found = Sessions()
    with pytest.MonkeyPatch.context() as patch:
        make, close = ort.OrtSession.__init__, ort.OrtSession.close

        def counted(self: Any, *arguments: Any) -> None:
            make(self, *arguments)
            found.open.append(self)
            found.opened += 1

        def closed(self: Any) -> None:
            close(self)
            if self in found.open:
                found.open.remove(self)

        patch.setattr(ort.OrtSession, "__init__", counted)
        patch.setattr(ort.OrtSession, "close", closed)
        yield found


def bits(result: Result) -> tuple[object, ...]:
    """What an inspection found, to the last bit."""
    assert result.anomaly_map is not None
    return result.decision, result.score, result.threshold, result.boxes, result.anomaly_map.tobytes()


@pytest.fixture(scope="module")
def alone(paths: dict[str, Path]) -> dict[tuple[str, str, int], tuple[object, ...]]:
    """(Path, bundle, number of the image) -> what the bundle finds by itself."""
    found = {}
    for path in ("graph", "kernel"):
        for name, bundle in paths.items():
            with Inspector.load(bundle, "cpu", path) as inspector:
                for number, image in enumerate(part_images(6, 5)):
                    found[path, name, number] = bits(inspector(image))
    # Otherwise it would not be seen which bundle was taken.
    assert len({found["kernel", name, 0] for name in NAMES}) == len(NAMES)
    return found


def sharing(router: Router) -> set[tuple[str, ...]]:
    return {use.bundles for use in router.sharing}


# ---- What is shared --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["graph", "kernel"])
def test_scores_and_maps_are_those_of_each_bundle_by_itself(
    paths: dict[str, Path], alone: dict[tuple[str, str, int], tuple[object, ...]], path: str
) -> None:
    with Router(paths, "cpu", path) as router:
        for number, image in enumerate(part_images(6, 5)):
            for name in NAMES:
                assert bits(router.inspect(image, name)) == alone[path, name, number]


def test_equal_backbones_are_one_session_and_another_one_is_beside_it(
    paths: dict[str, Path], sessions: Sessions
) -> None:
    before = sessions.opened
    with Router(paths, "cpu", "kernel") as router:
        assert sessions.opened - before == len(sessions.open) == 2
        shared, own = router.sharing
        assert (shared.graph, shared.backend, shared.bundles, shared.reason) == ("features.onnx", "cpu", SAME, "")
        assert (own.bundles, own.reason) == (("other",), "no other bundle has this graph")
    assert sessions.open == []
    assert router.sharing == ()


def test_a_graph_with_the_bank_inside_is_each_bundles_own_and_that_is_said(
    paths: dict[str, Path], sessions: Sessions
) -> None:
    with Router({name: paths[name] for name in SAME}, "cpu", "graph") as router:
        assert len(sessions.open) == 3
        assert [use.bundles for use in router.sharing] == [("a",), ("b",), ("c",)]
        assert {use.reason for use in router.sharing} == {
            "bank.safetensors, which the graph reads, differs in the other bundles with this graph"
        }


@pytest.mark.parametrize("path", ["graph", "kernel"])
def test_one_model_with_other_thresholds_is_shared_on_every_path(
    paths: dict[str, Path], tmp_path: Path, path: str
) -> None:
    strict = Path(shutil.copytree(paths["a"], tmp_path / "strict.flaw"))
    with open_bundle(strict) as bundle:
        rewrite_manifest(strict, msgspec.structs.replace(bundle.manifest, thresholds=tiny_thresholds(0.0)))
    with Router({"a": paths["a"], "strict": strict}, "cpu", path) as router:
        assert sharing(router) == {("a", "strict")}
        image = part_images(1, 99)[0]
        assert [router.inspect(image, name).decision for name in router.names] == ["accept", "reject"]


def test_another_largest_batch_is_another_session(paths: dict[str, Path], tmp_path: Path) -> None:
    small = write_bank_bundle(tmp_path / "small.flaw", 0, max_batch=2)
    with Router({"a": paths["a"], "small": small}, "cpu", "kernel") as router:
        assert [use.reason for use in router.sharing] == [
            "others have this graph with max_batch 2",
            "others have this graph with max_batch 4",
        ]


def test_a_backend_whose_sessions_serve_one_bundle_shares_none(
    paths: dict[str, Path], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(table.ROWS, "cpu", replace(table.ROWS["cpu"], alone="it is so"))
    with Router({name: paths[name] for name in SAME}, "cpu", "kernel") as router:
        assert len(sessions.open) == 3
        assert {use.reason for use in router.sharing} == {"backend cpu: it is so"}


def test_members_of_ensembles_share_what_is_equal(tmp_path: Path, sessions: Sessions) -> None:
    members = [write_member(tmp_path / f"{name}.flaw", factor) for name, factor in (("one", 1.0), ("two", 2.0))]
    ensembles = {name: tmp_path / f"{name}.flaw" for name in ("first", "second")}
    for ensemble in ensembles.values():
        write_tiny_ensemble(ensemble, {path: member_of(path, 1.0, 0.0, 1.0) for path in members}, 600.0)
    ensembles["one"] = members[0]
    with Router(ensembles, "cpu") as router:
        assert [use.bundles for use in router.sharing] == [("first", "one", "second"), ("first", "second")]
        assert len(sessions.open) == 2
        router.remove("first")
        assert router.inspect(part_images(1, 5)[0], "second").score is not None
    assert sessions.open == []


# ---- Whatever happens to one of them ---------------------------------------------------------------------------------


@given(st.permutations(NAMES), st.integers(0, 5))
@settings(max_examples=20)
def test_bundles_leave_in_any_order(
    paths: dict[str, Path],
    alone: dict[tuple[str, str, int], tuple[object, ...]],
    sessions: Sessions,
    order: list[str],
    number: int,
) -> None:
    image = part_images(6, 5)[number]
    with Router(paths, "cpu", "kernel") as router:
        for gone in range(1, len(order)):
            router.remove(order[gone - 1])
            left = order[gone:]
            assert sorted(router.names) == sorted(left)
            assert len(sessions.open) == ("other" in left) + any(name in left for name in SAME)
            for name in left:
                assert bits(router.inspect(image, name)) == alone["kernel", name, number]
    assert sessions.open == []


@given(st.lists(st.tuples(st.sampled_from(["add", "remove", "inspect", "fail"]), st.sampled_from(NAMES)), max_size=25))
@settings(max_examples=40)
def test_whatever_is_added_removed_and_fails_the_others_find_the_same(
    paths: dict[str, Path],
    alone: dict[tuple[str, str, int], tuple[object, ...]],
    sessions: Sessions,
    steps: list[tuple[str, str]],
) -> None:
    image = part_images(6, 5)[0]
    present: set[str] = set()
    with Router((), "cpu", "kernel") as router:
        for step, name in steps:
            if step == "add" and name not in present:
                router.add(name, paths[name])
                present.add(name)
            elif step == "remove" and name in present:
                router.remove(name)
                present.remove(name)
            elif step == "fail" and name in present:
                with failing():
                    assert router.inspect(image, name).decision == "fault"
            for other in present if step == "inspect" else ():
                assert bits(router.inspect(image, other)) == alone["kernel", other, 0]
        for other in present:
            assert bits(router.inspect(image, other)) == alone["kernel", other, 0]
        assert {user for use in router.sharing for user in use.bundles} == present
        assert len(router.sharing) == len(sessions.open)
    assert sessions.open == []


@contextlib.contextmanager
def failing() -> Iterator[None]:
    """Let every session fail within the block, as a device does."""

    def lost(*_: object) -> object:
        raise DeviceError("backend cpu: the device failed: it is lost")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ort.OrtSession, "infer", lost)
        yield


def test_a_device_that_failed_is_opened_anew_for_one_and_the_others_stay(
    paths: dict[str, Path], alone: dict[tuple[str, str, int], tuple[object, ...]], sessions: Sessions
) -> None:
    image = part_images(6, 5)[0]
    with Router({name: paths[name] for name in SAME}, "cpu", "kernel") as router:
        with failing():
            failed = router.inspect(image, "a")
        assert (failed.decision, failed.reason) == ("fault", "backend cpu: the device failed: it is lost")
        for name in SAME:
            assert bits(router.inspect(image, name)) == alone["kernel", name, 0]
        # `a` has a session of its own now; the others join it as soon as theirs fails too.
        assert sharing(router) == {("a",), ("b", "c")}
        assert router.sharing[1].reason == "the device of one of the bundles with this graph failed and was opened anew"
        for name in ("b", "c"):
            with failing():
                assert router.inspect(image, name).decision == "fault"
            assert bits(router.inspect(image, name)) == alone["kernel", name, 0]
        assert sharing(router) == {SAME}
        assert len(sessions.open) == 1


def test_a_device_is_opened_anew_from_memory_also_where_the_bundle_that_was_read_is_gone(
    paths: dict[str, Path], alone: dict[tuple[str, str, int], tuple[object, ...]], tmp_path: Path
) -> None:
    copies = {name: Path(shutil.copytree(paths[name], tmp_path / f"{name}.flaw")) for name in ("a", "b")}
    image = part_images(6, 5)[0]
    with Router(copies, "cpu", "kernel") as router:
        router.remove("a")
        for copy in copies.values():
            shutil.rmtree(copy)
        with failing():
            assert router.inspect(image, "b").decision == "fault"
        assert bits(router.inspect(image, "b")) == alone["kernel", "b", 0]


def test_every_bundle_is_checked_by_itself(paths: dict[str, Path], tmp_path: Path, sessions: Sessions) -> None:
    wrong = Path(shutil.copytree(paths["b"], tmp_path / "wrong.flaw"))
    with open_bundle(wrong) as bundle:
        golden = (Golden("golden/0.png", 1.0, 1.0),)
        rewrite_manifest(wrong, msgspec.structs.replace(bundle.manifest, golden=golden))
    changed = Path(shutil.copytree(paths["b"], tmp_path / "changed.flaw"))
    data = bytearray((changed / "features.onnx").read_bytes())
    data[-1] ^= 1
    (changed / "features.onnx").write_bytes(data)
    with Router({"a": paths["a"]}, "cpu", "kernel") as router:
        with pytest.raises(BundleError, match=r"golden image golden/0\.png: expected score 1 as at export"):
            router.add("b", wrong)
        with pytest.raises(BundleError, match=r"features\.onnx: expected SHA-256"):
            router.add("b", changed)
        assert (router.names, sharing(router), len(sessions.open)) == (("a",), {("a",)}, 1)
        router.add("b", paths["b"])  # the name is free
        assert sharing(router) == {("a", "b")}


def test_where_keys_are_trusted_every_bundle_must_be_signed(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from flawscope.bundle import opening

    asked = []

    def refuse(bundle: Any, trusted: Any) -> None:
        asked.append(bundle.path)
        if bundle.path == paths["b"]:
            raise BundleError(f"{bundle.path}: not signed")

    monkeypatch.setattr(opening, "check_bundle_trusted", refuse)
    with Router({"a": paths["a"]}, "cpu", "kernel") as router:
        with pytest.raises(BundleError, match="not signed"):
            router.add("b", paths["b"])
        assert asked == [paths["a"], paths["b"]]


# ---- Threads ---------------------------------------------------------------------------------------------------------


def test_threads_find_what_each_bundle_finds_by_itself(
    paths: dict[str, Path], alone: dict[tuple[str, str, int], tuple[object, ...]]
) -> None:
    images = part_images(6, 5)
    generator = np.random.default_rng(3)
    order = [(NAMES[generator.integers(4)], int(generator.integers(6))) for _ in range(200)]
    with Router(paths, "cpu", "kernel") as router, ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda step: bits(router.inspect(images[step[1]], step[0])), order))
    assert found == [alone["kernel", name, number] for name, number in order]


def test_threads_that_add_remove_and_inspect_get_the_right_result_or_an_error(
    paths: dict[str, Path],
    alone: dict[tuple[str, str, int], tuple[object, ...]],
    sessions: Sessions,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image = part_images(6, 5)[0]
    real = ort.OrtSession.infer
    is_done = threading.Event()

    def slowly(session: Any, images: Any) -> Any:
        time.sleep(0.001)  # so that others wait for their turn, and may find that the bundle has gone
        return real(session, images)

    def come_and_go(name: str) -> None:
        for _ in range(20):
            router.add(name, paths[name])
            time.sleep(0.003)
            router.remove(name)

    def inspect(name: str) -> set[tuple[object, ...]]:
        found = set()
        while not is_done.is_set():
            try:
                found.add(bits(router.inspect(image, name)))
            except ArgumentError as err:
                if "expected the name of one of its bundles ('a'" not in str(err):
                    raise
        return found

    monkeypatch.setattr(ort.OrtSession, "infer", slowly)
    with Router({"a": paths["a"]}, "cpu", "kernel") as router, ThreadPoolExecutor(8) as pool:
        looking = {name: [pool.submit(inspect, name) for _ in range(2)] for name in SAME}
        for moving in [pool.submit(come_and_go, name) for name in ("b", "c")]:
            moving.result()
        is_done.set()
        for name, work in looking.items():
            assert set.union(*(one.result() for one in work)) == {alone["kernel", name, 0]}
        assert sharing(router) == {("a",)}
    assert sessions.open == []


class Gate:
    """Lets something wait until it is told to go on."""

    def __init__(self) -> None:
        self.reached, self.go_on = threading.Event(), threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.go_on.wait(20)


def gated(real: Callable[..., Any], gate: Gate) -> Callable[..., Any]:
    def waiting(*arguments: Any, **options: Any) -> Any:
        gate.wait()
        return real(*arguments, **options)

    return waiting


def test_a_bundle_is_removed_after_the_image_that_is_inspected_with_it(
    paths: dict[str, Path],
    alone: dict[tuple[str, str, int], tuple[object, ...]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Gate()
    image = part_images(6, 5)[0]
    with Router(paths, "cpu", "kernel") as router, ThreadPoolExecutor(3) as pool:
        monkeypatch.setattr(router.inspector("a").scorer, "score", gated(router.inspector("a").scorer.score, gate))
        inspection = pool.submit(router.inspect, image, "a")
        assert gate.reached.wait(20)
        removal = pool.submit(router.remove, "a")
        late = pool.submit(router.inspect, image, "a")
        assert bits(router.inspect(image, "b")) == alone["kernel", "b", 0]  # does not wait for `a`
        assert not removal.done()
        gate.go_on.set()
        removal.result(20)
        assert bits(inspection.result(20)) == alone["kernel", "a", 0]
        # Before the removal or after it, never with a bundle that was closed.
        if late.exception(20) is None:
            assert bits(late.result()) == alone["kernel", "a", 0]
        else:
            assert "got 'a'" in str(late.exception())


def test_while_one_is_loaded_the_others_inspect_and_a_router_that_is_closed_takes_none(
    paths: dict[str, Path], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Router({"a": paths["a"]}, "cpu", "kernel") as router, ThreadPoolExecutor(1) as pool:
        monkeypatch.setattr(session_pool, "open_session", gated(open_session, gate))
        loading = pool.submit(router.add, "other", paths["other"])
        assert gate.reached.wait(20)
        assert router.inspect(part_images(1, 5)[0], "a").decision != "fault"
        with pytest.raises(ArgumentError, match="got 'other' twice"):
            router.add("other", paths["b"])
        router.close()
        gate.go_on.set()
        with pytest.raises(ArgumentError, match="got one that was closed"):
            loading.result(20)
    assert sessions.open == []


def test_a_graph_that_does_not_return_stops_no_bundle_with_another_graph(
    paths: dict[str, Path], sessions: Sessions, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = Gate()
    with Router({"other": paths["other"]}, "cpu", "kernel") as router:
        with monkeypatch.context() as patch:
            # Of these two alone: on a busy machine the first one may take longer.
            patch.setattr(router, "_load", partial(router._load, timeout_s=0.2))
            patch.setattr(session_pool, "open_session", gated(open_session, gate))
            for name in ("a", "b"):  # `b` waits for the session that `a` opens, and no longer than it may
                with pytest.raises(LoadTimeout):
                    router.add(name, paths[name])
        assert router.inspect(part_images(1, 5)[0], "other").decision != "fault"
        gate.go_on.set()
        for thread in threading.enumerate():
            if thread.name == "flawscope-load":
                thread.join(20)
        # What nobody waited for any more was closed.
        assert sharing(router) == {("other",)}
        assert len(sessions.open) == 1


# ---- Wrong requests --------------------------------------------------------------------------------------------------


def test_names_are_those_of_the_caller_or_of_the_manifests(paths: dict[str, Path]) -> None:
    with Router([paths["a"], str(paths["b"]), open_bundle(paths["c"])], "cpu", "kernel") as router:
        assert router.names == SAME
    with Router({"left": paths["a"], "right": paths["a"]}, "cpu", "kernel") as router:
        assert router.names == ("left", "right")
        assert router.inspector("left").manifest.name == "a"
        several = router.inspect(list(part_images(3, 5)), "left")
        assert [result.score for result in several] == [
            result.score for result in router.inspector("right")(list(part_images(3, 5)))
        ]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda router, paths: router.inspect(part_images(1, 0)[0], "d"), r"its bundles \('a'\), got 'd'"),
        (lambda router, paths: router.inspector("d"), r"its bundles \('a'\), got 'd'"),
        (lambda router, paths: router.inspector("d\n"), r"got 'd\\n'"),
        (lambda router, paths: router.remove("d"), r"its bundles \('a'\), got 'd'"),
        (lambda router, paths: router.inspect("a", part_images(1, 0)[0]), r"its bundles \('a'\), got ndarray"),
        (lambda router, paths: router.inspect("a", ["a"]), r"its bundles \('a'\), got list"),
        (lambda router, paths: router.inspector(None), r"its bundles \('a'\), got NoneType"),
        (lambda router, paths: router.remove({}), r"its bundles \('a'\), got dict"),
        (lambda router, paths: router.add("a", paths["b"]), "a name for each bundle, got 'a' twice"),
        (lambda router, paths: router.add("", paths["b"]), "a text as the name of a bundle, got ''"),
        (lambda router, paths: router.add(3, paths["b"]), "a text as the name of a bundle, got 3"),
        (lambda router, paths: router.add("d", 3), "expected a path or an opened bundle, got int"),
        (lambda router, paths: router.add("d", router.inspector("a").bundle), "another bundle, got that of 'a' again"),
        (lambda router, paths: Router(paths["a"]), "expected several bundles, got PosixPath"),
        (lambda router, paths: Router(str(paths["a"])), "expected several bundles, got str"),
        (lambda router, paths: Router(cast("Any", open_bundle(paths["a"]))), "expected several bundles, got Bundle"),
        (lambda router, paths: Router(cast("Any", 7)), "expected several bundles, got int"),
        (lambda router, paths: Router([paths["a"], paths["a"]], "cpu"), "a name for each bundle, got 'a' twice"),
        (lambda router, paths: Router([paths["a"]], "gpu"), "backend: expected one of"),
        (lambda router, paths: Router([paths["a"]], "cpu", "fast"), "path: expected one of"),
    ],
)
def test_a_wrong_request_is_one_line_and_changes_nothing(
    paths: dict[str, Path], do: Callable[[Any, dict[str, Path]], object], message: str
) -> None:
    with Router({"a": paths["a"]}, "cpu", "kernel") as router:
        with pytest.raises(ArgumentError, match=message) as caught:
            do(router, paths)
        assert "\n" not in str(caught.value)
        assert router.names == ("a",)
        assert router.inspect(part_images(1, 5)[0], "a").decision != "fault"


def test_a_router_that_was_closed_says_so(paths: dict[str, Path]) -> None:
    router = Router([paths["a"]], "cpu", "kernel")
    inspector = router.inspector("a")
    router.close()
    router.close()
    for ask in (
        lambda: router.inspect(part_images(1, 0)[0], "a"),
        lambda: router.inspector("a"),
        lambda: router.add("b", paths["b"]),
        lambda: router.remove("a"),
    ):
        with pytest.raises(ArgumentError, match="router: expected one that is open, got one that was closed"):
            ask()
    assert router.names == ()
    assert inspector(part_images(1, 0)[0]).decision == "fault"


def test_one_bundle_that_cannot_be_loaded_closes_those_before_and_after_it(
    paths: dict[str, Path], tmp_path: Path, sessions: Sessions
) -> None:
    before, after = open_bundle(paths["a"]), open_bundle(paths["b"])
    with pytest.raises(BundleError, match="no such file or folder"):
        Router([before, tmp_path / "none.flaw", after], "cpu", "kernel")
    assert sessions.open == []
    for bundle in (before, after):
        with pytest.raises(BundleError, match="the bundle was closed"):
            bundle.read("features.onnx")


def test_each_bundle_may_have_an_overlay_of_its_own_which_must_exist(paths: dict[str, Path], tmp_path: Path) -> None:
    with Router([paths["a"]], "cpu", "kernel") as router:
        with pytest.raises(BundleError, match="expected a threshold overlay"):
            router.add("b", paths["b"], threshold_overlay=tmp_path / "none.json")
        router.add("b", paths["b"])
        assert router.names == ("a", "b")


def test_a_bundle_that_is_refused_is_closed(paths: dict[str, Path]) -> None:
    with Router([paths["a"]], "cpu", "kernel") as router, open_bundle(paths["b"]) as bundle:
        with pytest.raises(ArgumentError, match="got 'a' twice"):
            router.add("a", bundle)
        with pytest.raises(BundleError, match="the bundle was closed"):
            bundle.read("features.onnx")


def test_a_backend_that_fails_under_auto_is_the_cpu_for_all(
    paths: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(ort.import_onnxruntime(), "get_available_providers", lambda: providers)
    real = open_session

    def without_cuda(bundle: Any, graph: str, precision: str, backend: str, *rest: Any) -> Any:
        if backend == "cuda":
            raise BackendError("backend cuda: no cuDNN")
        return real(bundle, graph, precision, backend, *rest)

    monkeypatch.setattr(session_pool, "open_session", without_cuda)
    with Router({name: paths[name] for name in SAME}, "auto", "kernel") as router:
        assert [(use.backend, use.bundles) for use in router.sharing] == [("cpu", SAME)]
        assert router.inspector("b").backend_reason == "auto: backend cuda: no cuDNN"

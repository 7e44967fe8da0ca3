"""The backend `tensorrt` with stand-ins for PyCUDA, the driver and TensorRT, and the CUDA kernels in emulation.

What NVIDIA's software computes is ONNX Runtime's here; everything that is ours is run: memory, order, graphs, errors,
the C interface of the kernels, and what is made of their results.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from cuda_emulation import emulated_kernels
from cuda_stand_in import Stand, check_left, stand_in
from cuda_stand_in_errors import LaunchError, MemoryError_
from tensorrt_stand_in import KernelsOnStand, tensorrt_module
from tiny_dataset import normal_images

from flawscope import cli
from flawscope.bundle import PadimHead, PatchcoreHead, open_bundle
from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.imaging.images import prepare, read_image
from flawscope.runtime import Inspector, Router
from flawscope.runtime.backends import BACKENDS, choose_backend, device, engine_session, open_session
from flawscope.runtime.backends.tensorrt import TensorrtSession
from flawscope.runtime.doctor.doctor_command import examine
from flawscope.runtime.engines import Target, TensorRT
from flawscope.runtime.scorers import bank_device, padim_scorer, patchcore_scorer
from flawscope.runtime.scorers.scorer import ScorerOptions, open_scorer

pytestmark = pytest.mark.long

METHODS = ("patchcore", "padim")


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stand]:
    """A GPU in host memory, for which engines are at hand."""
    stand = Stand()
    stand_in(stand, monkeypatch)
    tensorrt = TensorRT("tensorrt", "11.0", tensorrt_module(stand))
    monkeypatch.setattr(engine_session, "import_tensorrt", lambda: tensorrt)
    monkeypatch.setattr(engine_session, "current_target", lambda: Target("stand-in", (8, 9), "1"))
    monkeypatch.setattr(engine_session, "ensure_engine", lambda bundle, graph, *_, **__: engine(bundle, graph))
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", False)
    yield stand
    check_left(stand)


def engine(bundle: Any, graph: str) -> Any:
    data = str(bundle.path / bundle.graph_file(graph)).encode()
    return SimpleNamespace(stored=SimpleNamespace(load=lambda: data, plan=Path("engine.plan"), layers=None))


@pytest.fixture
def kernels(stand: Stand, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Stand:
    """The same with the bank on the device."""
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", True)
    emulated = emulated_kernels(tmp_path_factory)
    monkeypatch.setattr(bank_device, "CudaKernels", lambda: KernelsOnStand(stand, emulated))
    return stand


@pytest.fixture
def copies(bundles: dict[str, Path], tmp_path: Path) -> dict[str, Path]:
    """Bundles beside which plans may be written."""
    return {name: Path(shutil.copytree(path, tmp_path / path.name)) for name, path in bundles.items()}


@pytest.fixture
def part_images(tiny_root: Path) -> list[Path]:
    return normal_images(tiny_root)[:5]


def images(bundle: Path, part_images: list[Path]) -> npt.NDArray[np.uint8]:
    with open_bundle(bundle) as opened:
        return np.stack([prepare(read_image(path), opened.manifest.input) for path in part_images])


# --- scores


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("path", ["auto", "graph"])
def test_scores_and_maps_are_those_of_the_cpu(
    copies: dict[str, Path], part_images: list[Path], method: str, path: str, stand: Stand
) -> None:
    batches = [images(copies[method], part_images[:count]) for count in (1, 3, 1, 3, 1)]
    with Inspector.load(copies[method], "cpu", "kernel" if path == "auto" else path) as inspector:
        expected = [inspector.infer(batch) for batch in batches]
    with Inspector.load(copies[method], "tensorrt", path) as inspector:
        assert (inspector.backend, inspector.backend_reason) == ("tensorrt", "asked for")
        assert inspector.path == ("kernel" if path == "auto" else path)
        results = [inspector.infer(batch) for batch in batches]
    for (maps, scores), (other_maps, other_scores) in zip(expected, results, strict=True):
        np.testing.assert_array_equal(other_maps, maps)
        np.testing.assert_array_equal(other_scores, scores)


@pytest.mark.parametrize("method", METHODS)
def test_with_the_bank_on_the_device_too(
    copies: dict[str, Path], part_images: list[Path], method: str, kernels: Stand
) -> None:
    batches = [images(copies[method], part_images[:count]) for count in (1, 2, 1)]
    with Inspector.load(copies[method], "cpu", "kernel") as inspector:
        expected = [inspector.infer(batch) for batch in batches]
    with Inspector.load(copies[method], "tensorrt") as inspector:
        assert inspector.scorer.describe() == "CUDA kernels"
        before = kernels.launches
        results = [inspector.infer(batch) for batch in batches]
        assert kernels.launches > before
    for (maps, scores), (other_maps, other_scores) in zip(expected, results, strict=True):
        np.testing.assert_allclose(other_maps, maps, rtol=2e-5, atol=1e-6)
        np.testing.assert_allclose(other_scores, scores, rtol=2e-5)


def test_bundles_of_one_backbone_have_an_engine_each_with_their_bank_beside_it(
    copies: dict[str, Path], part_images: list[Path], kernels: Stand
) -> None:
    batch = images(copies["patchcore"], part_images[:2])
    with Inspector.load(copies["patchcore"], "tensorrt") as inspector:
        expected = [array.tobytes() for array in inspector.infer(batch)]
    with Router({"one": copies["patchcore"], "two": copies["patchcore"]}, "tensorrt") as router:
        for name in router.names:
            assert [array.tobytes() for array in router.inspector(name).infer(batch)] == expected
        assert [use.bundles for use in router.sharing] == [("one",), ("two",)]
        assert {use.reason for use in router.sharing} == {
            "backend tensorrt: an engine has buffers of its own, and the bank beside it on the device"
        }
        router.remove("one")
        assert [array.tobytes() for array in router.inspector("two").infer(batch)] == expected
    assert kernels.freed == kernels.allocated > 0


def test_results_belong_to_the_caller(copies: dict[str, Path], part_images: list[Path], stand: Stand) -> None:
    first, second = images(copies["padim"], part_images[:1]), images(copies["padim"], part_images[1:2])
    with Inspector.load(copies["padim"], "tensorrt", "graph") as inspector:
        maps, scores = inspector.infer(first)
        copies_before = maps.copy(), scores.copy()
        inspector.infer(second)
        np.testing.assert_array_equal(maps, copies_before[0])
        np.testing.assert_array_equal(scores, copies_before[1])


# --- graphs and memory


def test_every_batch_is_one_launch_from_the_first_on(
    copies: dict[str, Path], part_images: list[Path], stand: Stand
) -> None:
    batch = images(copies["padim"], part_images)
    with (
        open_bundle(copies["padim"]) as bundle,
        closing(engine_session.open_engine(bundle, "features", "fp32")) as ready,
    ):
        assert (stand.launches, len(stand.graphs), ready.graph_problem) == (0, bundle.manifest.max_batch, None)
        counts = stand.allocated, stand.pinned, stand.enqueued
        for count in (1, 2, 1, 2, 4):
            ready.infer(batch[:count])
        assert stand.launches == 5
        assert (stand.allocated, stand.pinned, stand.enqueued) == counts


def test_all_batch_sizes_compute_in_the_same_memory(copies: dict[str, Path], stand: Stand) -> None:
    with open_bundle(copies["padim"]) as bundle:
        engine_session.open_engine(bundle, "features", "fp32").close()
        (memories,) = stand.engines
        assert len(memories) == 1
        assert bundle.manifest.max_batch > 1


def test_threads_that_share_a_session_take_turns(
    copies: dict[str, Path], part_images: list[Path], stand: Stand
) -> None:
    batch = images(copies["padim"], part_images)
    with (
        open_bundle(copies["padim"]) as bundle,
        closing(engine_session.open_engine(bundle, "features", "fp32")) as ready,
    ):
        expected = [ready.infer(batch[index : index + 1])["patches"] for index in range(4)]

        def infer(index: int) -> bool:
            results = [ready.infer(batch[index : index + 1])["patches"] for _ in range(5)]
            return all(np.array_equal(result, expected[index]) for result in results)

        with ThreadPoolExecutor(4) as pool:
            assert all(pool.map(infer, range(4)))


@pytest.mark.parametrize("graphs", [True, False])
def test_without_graphs_frames_are_the_same(
    copies: dict[str, Path], part_images: list[Path], stand: Stand, graphs: bool
) -> None:
    batch = images(copies["padim"], part_images[:2])
    with open_bundle(copies["padim"]) as bundle:
        plan = engine(bundle, "features").stored.load()
        stand.capturable = not graphs
        plain = TensorrtSession(plan, engine_session.import_tensorrt(), range(1, 3), graphs=graphs)
        expected = plain.infer(batch)["patches"]
        np.testing.assert_array_equal(plain.infer(batch)["patches"], expected)
        assert stand.launches == 0
        assert plain.graph_problem is not None
        assert ("cuStreamBeginCapture failed with CUDA error 900" in plain.graph_problem) == graphs
        plain.close()


def test_everything_is_given_back(copies: dict[str, Path], part_images: list[Path], kernels: Stand) -> None:
    inspector = Inspector.load(copies["patchcore"], "tensorrt")
    inspector.infer(images(copies["patchcore"], part_images[:1]))
    inspector.close()
    inspector.close()
    assert kernels.freed == kernels.allocated > 0
    assert kernels.unpinned == kernels.pinned > 0
    assert (kernels.graphs, kernels.streams, kernels.retained) == ({}, {}, 1)


def test_the_backbone_alone_gives_patches(copies: dict[str, Path], part_images: list[Path], kernels: Stand) -> None:
    with (
        open_bundle(copies["padim"]) as bundle,
        closing(open_session(bundle, "features", "fp32", "tensorrt")) as backbone,
    ):
        assert backbone.outputs == ("patches",)
        assert backbone.infer(images(copies["padim"], part_images[:1]))["patches"].ndim == 3


@pytest.mark.parametrize("joined", [True, False])
def test_doctor_names_the_layers_of_the_engine(
    copies: dict[str, Path], kernels: Stand, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", joined)
    layers: bytes | None = b'{"Layers": [{"Name": "a + b", "LayerType": "CaskConvolution"}, "c"]}'

    def reported(bundle: Any, graph: str, *_: object, **__: object) -> Any:
        found = engine(bundle, graph)
        found.stored.layers = layers
        return found

    monkeypatch.setattr(engine_session, "ensure_engine", reported)
    report = examine(copies["padim"], "tensorrt", "fp32")
    assert [(node["name"], node["operator"], node["provider"]) for node in report["nodes"]] == [
        ("a + b", "CaskConvolution", "TensorRT engine"),
        ("c", "", "TensorRT engine"),
    ]
    assert report["elsewhere"] == []
    assert (report["head"] == "CUDA kernels") == joined
    assert ("; not on the device: this installation has no CUDA kernels; install" in report["head"]) == (not joined)
    layers = None
    with pytest.raises(BackendError, match=r"engine: expected a report of its layers beside engine\.plan, got none"):
        examine(copies["padim"], "tensorrt", "fp32")


# --- what goes wrong


def test_a_lost_device_is_a_fault_and_the_next_image_makes_the_session_anew(
    copies: dict[str, Path], part_images: list[Path], stand: Stand
) -> None:
    with Inspector.load(copies["padim"], "tensorrt") as inspector:
        good = inspector(part_images[0])
        allocated = stand.allocated
        stand.fail_next = LaunchError("unspecified launch failure")
        lost = inspector(part_images[0])
        assert (lost.decision, lost.score) == ("fault", None)
        assert lost.reason == "backend tensorrt: the device failed: unspecified launch failure"
        again = inspector(part_images[0])
        assert (again.decision, again.score) == (good.decision, good.score)
        assert stand.allocated > allocated
    assert stand.freed == stand.allocated


def test_a_session_made_anew_runs_the_engine_that_was_loaded_first(
    copies: dict[str, Path], part_images: list[Path], stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inspector.load(copies["padim"], "tensorrt") as inspector:
        good = inspector(part_images[0])

        def gone(*_: object, **__: object) -> None:
            raise BackendError("engine: the cache was emptied")

        monkeypatch.setattr(engine_session, "ensure_engine", gone)
        stand.fail_next = LaunchError("unspecified launch failure")
        assert inspector(part_images[0]).decision == "fault"
        assert inspector(part_images[0]).score == good.score


@pytest.mark.parametrize("stubborn", [False, True])
def test_a_dead_context_is_not_called_again_and_a_new_process_is_asked_for(
    copies: dict[str, Path], part_images: list[Path], stand: Stand, stubborn: bool
) -> None:
    stand.stubborn = stubborn
    with Inspector.load(copies["padim"], "tensorrt") as inspector:
        stand.break_next = True
        first = inspector(part_images[0])
        calls = stand.calls
        second = inspector(part_images[0])
        assert (first.decision, second.decision, inspector.device_failed) == ("fault", "fault", True)
        assert stand.calls == calls
    assert stand.calls == calls
    assert "(CUDA error 700, ILLEGAL_ADDRESS). This process cannot use it any more. Start it again." in str(
        first.reason
    )
    assert "backend tensorrt: the device cannot be used any more in this process: " in str(second.reason)
    if stubborn:
        stand.forget_threads()


def test_a_device_that_stays_lost_goes_on_giving_faults(
    copies: dict[str, Path], part_images: list[Path], stand: Stand
) -> None:
    with Inspector.load(copies["padim"], "tensorrt") as inspector:
        for _ in range(3):
            stand.fail_next = LaunchError("no device")
            assert inspector(part_images[0]).decision == "fault"
        assert inspector(part_images[0]).decision != "fault"


def test_the_path_kernel_by_name_is_refused_without_kernels(copies: dict[str, Path], stand: Stand) -> None:
    with pytest.raises(BackendError, match=r"path kernel: backend tensorrt cannot keep the bank on its device: this"):
        Inspector.load(copies["padim"], "tensorrt", "kernel")
    assert stand.allocated == 0


def test_out_of_memory_says_so(copies: dict[str, Path], stand: Stand) -> None:
    with open_bundle(copies["padim"]) as bundle:
        stand.fail_next = MemoryError_("cuMemAlloc failed: out of memory")
        with pytest.raises(
            DeviceError, match=r"out of memory: cuMemAlloc failed: out of memory\. Take smaller batches"
        ):
            engine_session.open_engine(bundle, "features", "fp32")
    assert (stand.freed, stand.unpinned, stand.streams) == (stand.allocated, stand.pinned, {})


def test_a_broken_engine_is_refused_in_words(copies: dict[str, Path], stand: Stand) -> None:
    with pytest.raises(
        BackendError, match=r"could not load the engine .*broken\.plan: the magic number is not right\."
    ):
        TensorrtSession(b"\x00rubbish", engine_session.import_tensorrt(), range(1, 2), name="here/broken.plan")
    assert stand.freed == stand.allocated


@pytest.mark.parametrize("shape", [(0, 64, 64, 3), (5, 64, 64, 3), (1, 64, 32, 3)])
def test_a_batch_that_does_not_fit_is_refused(copies: dict[str, Path], stand: Stand, shape: tuple[int, ...]) -> None:
    with (
        open_bundle(copies["padim"]) as bundle,
        closing(open_session(bundle, "features", "fp32", "tensorrt")) as backbone,
        pytest.raises(DeviceError, match=r"image: expected 1 to 4 of \[64, 64, 3\], got"),
    ):
        backbone.infer(np.zeros(shape, np.uint8))


def test_a_closed_session_says_so(copies: dict[str, Path], stand: Stand) -> None:
    with open_bundle(copies["padim"]) as bundle:
        backbone = open_session(bundle, "features", "fp32", "tensorrt")
        backbone.close()
        with pytest.raises(DeviceError, match="the session is closed"):
            backbone.infer(np.zeros((1, 64, 64, 3), np.uint8))


def test_a_bank_that_is_not_finite_is_refused_by_the_device(
    copies: dict[str, Path], kernels: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_bundle(copies["patchcore"]) as bundle:
        tensors = {name: value.copy() for name, value in bundle.tensors().items()}
        tensors["bank"][3, 1] = np.nan
        monkeypatch.setattr(type(bundle), "tensors", lambda self: tensors)
        with pytest.raises(BundleError, match="bank: expected finite numbers"):
            open_scorer(bundle, ScorerOptions("tensorrt"))


def test_without_a_device_asking_for_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, padim_bundle: Path, part_images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "tensorrt" in BACKENDS
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    monkeypatch.setattr(engine_session, "import_tensorrt", lambda: None)
    monkeypatch.setattr(engine_session, "current_target", lambda: None)
    with pytest.raises(BackendError, match=r"backend tensorrt: is not there: PyCUDA is not installed, .*no fall-back"):
        choose_backend("tensorrt")
    assert cli.run(["score", str(padim_bundle), str(part_images[0]), "--backend", "tensorrt"]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("error: backend tensorrt: is not there: ")
    assert shown.err.count("\n") == 1


def test_the_device_that_is_not_there_is_named(stand: Stand) -> None:
    assert device.device_problem() is None
    assert device.device_problem(2) == "expected CUDA device 2, got 1 devices."
    stand.count = 0
    with pytest.raises(BackendError, match=r"device: expected CUDA device 0, got 0 devices\."):
        device.Device()


def test_auto_never_takes_engines(stand: Stand) -> None:
    assert choose_backend("auto").name != "tensorrt"
    assert choose_backend("tensorrt").reason == "asked for"


def test_a_batch_that_needs_more_workspace_than_the_largest_is_searched(kernels: Stand) -> None:
    bank = np.random.default_rng(0).random((300, 32), np.float32)
    head = PatchcoreHead(grid=(8, 16), neighbors=1, reweight="none", sigma=1.0)
    on_device = device.Device()
    with on_device.current():
        ready = patchcore_scorer.device_head(on_device, head, {"bank": bank}, (16, 32), 5)
        for count in (4, 5):
            patches = np.repeat(bank[:128], count, axis=0)
            ready.enqueue(count, on_device.upload(patches))
            on_device.wait()
            maps, scores = ready.finish(count, 0)
            assert np.isfinite(maps).all()
            np.testing.assert_array_equal(scores, np.zeros(count))
    on_device.close()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("top", [1, 5])
def test_the_switches_of_a_bank_give_on_a_device_what_they_give_on_the_cpu(
    kernels: Stand, metric: Any, top: int
) -> None:
    bank, patches = (np.random.default_rng(seed).random((128, 32), np.float32) for seed in (0, 1))
    head = PatchcoreHead((8, 16), 1, "none", 1.0, metric=metric, top=top)
    on_device = device.Device()
    with on_device.current():
        ready = patchcore_scorer.device_head(on_device, head, {"bank": bank}, (16, 32), 1)
        ready.enqueue(1, on_device.upload(patches))
        on_device.wait()
        maps, scores = ready.finish(1, 0)
    on_device.close()
    expected_maps, expected_scores = patchcore_scorer.native_head(head, {"bank": bank}, (16, 32))(patches[None])
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


@pytest.mark.parametrize("window", [0, 2, 16])
def test_a_window_gives_on_a_device_what_it_gives_on_the_cpu(kernels: Stand, window: int) -> None:
    generator = np.random.default_rng(0)
    bank, patches = (generator.integers(0, 9, (128, 32)).astype(np.float32) for _ in range(2))
    cells = np.sort(generator.integers(0, 100, 128))  # the last places have no row
    tensors = {"bank": bank, "places": np.stack(np.divmod(cells, 16), axis=1)}
    head = PatchcoreHead((8, 16), 1, "none", 1.0, window=window)
    on_device = device.Device()
    with on_device.current():
        ready = patchcore_scorer.device_head(on_device, head, tensors, (16, 32), 2)
        ready.enqueue(2, on_device.upload(np.concatenate([patches, patches[::-1].copy()])))
        on_device.wait()
        maps, scores = ready.finish(2, 0)
    on_device.close()
    both = np.stack([patches, patches[::-1]])
    expected_maps, expected_scores = patchcore_scorer.native_head(head, tensors, (16, 32))(both)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-5)
    np.testing.assert_array_equal(scores, expected_scores)


@pytest.mark.parametrize("is_triangle", [True, False])
def test_of_whole_matrices_with_a_triangle_of_zeros_the_other_one_is_put_on_the_device(
    kernels: Stand, is_triangle: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(0)
    whitening = generator.standard_normal((8, 33, 33), np.float32)
    if is_triangle:
        whitening = np.triu(whitening)
    tensors = {"mean": generator.standard_normal((8, 33), np.float32), "whitening": whitening}
    patches, head = generator.standard_normal((3, 8, 33), np.float32), PadimHead((2, 4), 0.0)
    on_device, uploaded = device.Device(), []
    upload = on_device.upload
    monkeypatch.setattr(on_device, "upload", lambda array: uploaded.append(array.shape) or upload(array))
    with on_device.current():
        ready = padim_scorer.device_head(on_device, head, tensors, (8, 16), 3)
        ready.enqueue(3, on_device.upload(patches))
        on_device.wait()
        maps, scores = ready.finish(3, 0)
    on_device.close()
    assert uploaded[1] == ((8, 33 * 34 // 2) if is_triangle else (8, 33, 33))
    expected_maps, expected_scores = padim_scorer.native_head(head, tensors, (8, 16))(patches)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-5)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)


def test_a_bank_with_a_window_that_is_not_finite_is_refused_by_the_device(kernels: Stand) -> None:
    tensors = {"bank": np.full((1, 32), np.inf, np.float32), "places": np.zeros((1, 2), np.int64)}
    on_device = device.Device()
    with on_device.current(), pytest.raises(BundleError, match="bank: expected finite numbers"):
        patchcore_scorer.device_head(on_device, PatchcoreHead((1, 1), 1, "none", 0.0, window=1), tensors, (16, 32), 1)
    on_device.close()

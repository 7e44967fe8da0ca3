"""The inspector: what goes in, what comes out, and that nothing that goes wrong passes as good."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
from tiny_dataset import anomalous_images, broken_images, normal_images, write_rgb

from flawscope.bundle import Threshold, Thresholds, open_bundle, pack_bundle, rewrite_manifest
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError
from flawscope.imaging.images import Preprocessing, read_image
from flawscope.runtime import Inspector, Result, ready_scorer
from flawscope.runtime import inspector as inspector_module
from flawscope.runtime.backends import Choice, ort_cuda
from flawscope.runtime.scorers import bank_scorer
from flawscope.runtime.scorers.scorer import ScorerOptions

METHODS = ["patchcore", "padim"]


def copy_of(bundle: Path, folder: Path, **changes: Any) -> Path:
    """Copy a bundle with a changed, properly signed manifest."""
    target = Path(shutil.copytree(bundle, folder / bundle.name))
    with open_bundle(target) as opened:
        rewrite_manifest(target, msgspec.structs.replace(opened.manifest, **changes))
    return target


def images(root: Path) -> list[Path]:
    return [*normal_images(root), *anomalous_images(root)]


class FakeScorer:
    """A scorer that answers what it was told to, or fails."""

    path = "graph"
    least_score = 0.0
    reconstructor = None

    def __init__(self, answers: list[Any]) -> None:
        self.answers = answers

    def score(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        anomaly_map, score = answer
        maps = np.full((len(images), 64, 64), anomaly_map, np.float32)
        return maps, np.full(len(images), score, np.float32)

    def close(self) -> None:
        """Release nothing."""


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.long
def test_graph_and_kernel_path_agree(bundles: dict[str, Path], tiny_root: Path, method: str) -> None:
    with (
        Inspector.load(bundles[method], "cpu", "graph") as graph,
        Inspector.load(bundles[method], "cpu", "kernel") as kernel,
    ):
        for from_graph, from_kernel in zip(graph(images(tiny_root)), kernel(images(tiny_root)), strict=True):
            assert from_graph.score == pytest.approx(from_kernel.score, rel=1e-5)
            assert from_graph.anomaly_map is not None
            np.testing.assert_allclose(
                from_graph.anomaly_map, from_kernel.anomaly_map, rtol=1e-4, atol=1e-5 * from_graph.anomaly_map.max()
            )
            assert from_graph.decision == from_kernel.decision


@pytest.mark.parametrize("method", METHODS)
def test_normal_images_are_accepted_and_plain_defects_rejected(
    bundles: dict[str, Path], tiny_root: Path, method: str
) -> None:
    with Inspector.load(bundles[method], "cpu") as inspector:
        assert {result.decision for result in inspector(normal_images(tiny_root))} == {"accept"}
        pitted = inspector([path for path in anomalous_images(tiny_root) if "pitting" in str(path)])
    assert {result.decision for result in pitted} == {"reject"}
    assert all(result.boxes for result in pitted)
    assert all(result.reason is None for result in pitted)


@pytest.mark.parametrize("path", ["graph", "kernel"])
@pytest.mark.parametrize("method", METHODS)
def test_every_batch_size_gives_the_same_scores(
    bundles: dict[str, Path], tiny_root: Path, method: str, path: str
) -> None:
    with Inspector.load(bundles[method], "cpu", path) as inspector:
        expected = [result.score for result in inspector.stream(images(tiny_root), batch=1)]
        for batch in (2, 3, 4):
            got = [result.score for result in inspector.stream(images(tiny_root), batch=batch)]
            np.testing.assert_allclose(got, expected, rtol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("path", ["graph", "kernel"])
@pytest.mark.parametrize("method", METHODS)
def test_scores_and_maps_repeat_bit_for_bit(bundles: dict[str, Path], tiny_root: Path, method: str, path: str) -> None:
    with Inspector.load(bundles[method], "cpu", path) as inspector:
        first = inspector(images(tiny_root))
        second = inspector(images(tiny_root))
    with Inspector.load(bundles[method], "cpu", path) as inspector:
        third = inspector(images(tiny_root))
    for one, two, three in zip(first, second, third, strict=True):
        assert one.score == two.score == three.score
        assert one.anomaly_map is not None
        assert two.anomaly_map is not None
        assert three.anomaly_map is not None
        assert one.anomaly_map.tobytes() == two.anomaly_map.tobytes() == three.anomaly_map.tobytes()


def test_maps_are_the_callers_a_later_call_does_not_change_them(padim_bundle: Path, tiny_root: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        first = inspector(images(tiny_root)[0]).anomaly_map
        assert first is not None
        copied = first.copy()
        inspector(images(tiny_root)[1:])
    np.testing.assert_array_equal(first, copied)


def test_a_path_a_text_and_an_array_give_the_same_result(padim_bundle: Path, tiny_root: Path) -> None:
    part_image = anomalous_images(tiny_root)[0]
    image = read_image(part_image)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        results = [inspector(part_image), inspector(str(part_image)), inspector(image)]
        many = [
            *inspector([part_image, str(part_image), image]),
            *inspector(np.stack([image, image])),
            *inspector((part_image,)),
        ]
        assert inspector([]) == []
        assert inspector(np.empty((0, 64, 64, 3), np.uint8)) == []
    assert all(isinstance(result, Result) for result in results)
    assert len({result.score for result in results}) == 1
    for result in many:
        assert result.score == pytest.approx(results[0].score, rel=1e-5)
        assert result.boxes != ()
    assert [result.image for result in results] == [str(part_image), str(part_image), "image 0"]
    assert [result.image for result in many[2:5]] == ["image 2", "image 0", "image 1"]


def test_arrays_are_numbered_on_across_batches(padim_bundle: Path, tiny_root: Path) -> None:
    images = np.stack([read_image(path) for path in normal_images(tiny_root)])
    assert len(images) > 4  # more than one batch
    with Inspector.load(padim_bundle, "cpu") as inspector:
        names = [result.image for result in inspector(images)]
    assert names == [f"image {index}" for index in range(len(images))]


def test_images_of_other_sizes_are_resized_to_the_graphs(padim_bundle: Path, tiny_root: Path) -> None:
    image = read_image(normal_images(tiny_root)[0])
    large = np.repeat(np.repeat(image, 3, axis=0), 2, axis=1)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        # By area, whole multiples shrink back to the very same pixels.
        assert inspector(large).score == inspector(image).score


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.zeros((64,), np.uint8), r"^expected uint8 or uint16 \[H, W\]"),
        (np.zeros((64, 64, 2), np.uint8), r"^expected uint8 or uint16 \[H, W\]"),
        (np.zeros((3, 64, 64), np.uint8), r"^expected .* got uint8 \[3, 64, 64\]"),
        (np.zeros((64, 64, 3), np.float32), r"^expected .* got float32 \[64, 64, 3\]"),
        (np.zeros((64, 64, 3), np.int8), r"^expected .* got int8 \[64, 64, 3\]"),
        (np.zeros((64, 64, 3), ">u2"), r"^expected .* got >u2 \[64, 64, 3\]"),
        (None, "^expected an array of NumPy, CUDA or DLPack, got NoneType"),
        (7, "^expected an array of NumPy, CUDA or DLPack, got int"),
        (b"no image", "^expected an image .* got other or broken bytes"),
        (np.zeros((0, 64, 3), np.uint8), r"^expected uint8"),
        (np.zeros((4, 64, 3), np.uint8), r"^expected sides of at least 8 pixels, got 64x4"),
        (np.zeros((), np.uint8), r"^expected uint8"),
    ],
)
def test_an_array_that_is_no_image_is_a_fault(padim_bundle: Path, value: Any, reason: str) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        result = inspector(value)
    assert result.decision == "fault"
    assert result.score is None
    assert re.search(reason, result.reason or "")


@pytest.mark.parametrize("kind", sorted(broken_images()))
@pytest.mark.parametrize("batch", [1, 3])
def test_an_image_that_cannot_be_read_is_a_fault_and_the_others_are_scored(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path, kind: str, batch: int
) -> None:
    name, data = broken_images()[kind]
    (tmp_path / name).write_bytes(data)
    good = normal_images(tiny_root)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        results = list(inspector.stream([good[0], tmp_path / name, good[1]], batch))
        alone = [inspector(path).score for path in good[:2]]
    assert [result.decision for result in results] == ["accept", "fault", "accept"]
    np.testing.assert_allclose([results[0].score, results[2].score], alone, rtol=1e-5)  # type: ignore[arg-type]
    assert results[1].image == str(tmp_path / name)
    assert results[1].reason
    assert name not in results[1].reason
    assert results[1].anomaly_map is None


def test_a_batch_of_nothing_but_faults_does_not_reach_the_device(padim_bundle: Path, tmp_path: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        inspector.scorer.score = FakeScorer([]).score  # type: ignore[method-assign]
        results = inspector([tmp_path / "a.png", tmp_path / "b.png"])
    assert [result.decision for result in results] == ["fault", "fault"]
    assert all("No such file" in (result.reason or "") for result in results)


def test_a_surprise_while_reading_is_a_fault_too(
    padim_bundle: Path, tiny_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = normal_images(tiny_root)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        from flawscope.runtime import image_loading as module

        real = module.read_source_image

        def surprising(source: Any, *arguments: Any) -> Any:
            if source == good[1]:
                raise RuntimeError("surprise")
            return real(source, *arguments)

        monkeypatch.setattr(module, "read_source_image", surprising)
        results = inspector(good[:3])
    assert [result.decision for result in results] == ["accept", "fault", "accept"]
    assert results[1].reason == "unexpected RuntimeError: surprise"


def test_a_device_that_fails_makes_faults_and_the_line_goes_on(padim_bundle: Path, tiny_root: Path) -> None:
    failure = DeviceError("backend cuda: the device failed: out of memory")
    with Inspector.load(padim_bundle, "cpu", "graph") as inspector:
        inspector.scorer.score = FakeScorer([(0.0, 0.0), failure, (0.0, 0.0)]).score  # type: ignore[method-assign]
        results = list(inspector.stream(normal_images(tiny_root)[:6], batch=2))
    assert [result.decision for result in results] == ["accept", "accept", "fault", "fault", "accept", "accept"]
    assert results[2].reason == str(failure)
    assert results[2].score is None


@pytest.mark.parametrize(
    ("anomaly_map", "score"),
    [(0.0, float("nan")), (float("nan"), 0.0), (float("inf"), 0.0), (0.0, float("inf")), (0.0, -float("inf"))],
)
def test_no_number_from_the_graph_is_a_fault(
    padim_bundle: Path, tiny_root: Path, anomaly_map: float, score: float
) -> None:
    with Inspector.load(padim_bundle, "cpu", "graph") as inspector:
        inspector.scorer.score = FakeScorer([(anomaly_map, score)]).score  # type: ignore[method-assign]
        result = inspector(normal_images(tiny_root)[0])
    assert result.decision == "fault"
    assert result.reason == "inference gave NaN or infinity"
    assert result.boxes == ()
    assert result.score is None or np.isfinite(result.score)


@pytest.mark.parametrize("method", METHODS)
def test_a_bundle_that_is_not_calibrated_never_accepts(
    uncalibrated_bundles: dict[str, Path], tiny_root: Path, method: str
) -> None:
    with Inspector.load(uncalibrated_bundles[method], "cpu") as inspector:
        results = inspector(images(tiny_root))
    assert {result.decision for result in results} == {"fault"}
    assert {result.reason for result in results} == {"the bundle has no thresholds: run flawscope calibrate"}
    assert all(result.score is not None and result.threshold is None for result in results)
    assert all(result.boxes == () for result in results)


def test_thresholds_are_the_manifests_and_change_without_a_rebuild(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path
) -> None:
    limits = Thresholds(Threshold(-1.0, "manual"), Threshold(1e9, "manual"))
    bundle = copy_of(padim_bundle, tmp_path, thresholds=limits)
    with Inspector.load(bundle, "cpu") as inspector:
        result = inspector(normal_images(tiny_root)[0])
    assert (result.decision, result.threshold, result.boxes) == ("reject", -1.0, ())


def test_boxes_lie_in_the_source_also_behind_a_crop_and_in_an_image_that_is_not_square(
    padim_bundle: Path, tiny_root: Path, tmp_path: Path
) -> None:
    """The same pixels reach the graph from a larger resize with a crop; the box moves with the source."""
    pitted = next(path for path in anomalous_images(tiny_root) if "pitting" in str(path))
    image = read_image(pitted)
    # A frame around the image, then every pixel twice as wide and three times as high.
    framed = cv2.copyMakeBorder(image, 16, 16, 24, 24, cv2.BORDER_REFLECT)
    source = np.repeat(np.repeat(framed, 3, axis=0), 2, axis=1)
    cropped = copy_of(padim_bundle, tmp_path, input=Preprocessing(resize=(96, 112), crop=(64, 64)), golden=())
    with (
        Inspector.load(padim_bundle, "cpu") as plain,
        Inspector(open_bundle(cropped), "cpu", is_candidate=True) as inspector,
    ):
        expected, got = plain(image), inspector(source)
    assert got.score == expected.score
    assert len(expected.boxes) >= 1
    for box, cropped_box in zip(expected.boxes, got.boxes, strict=True):
        assert (cropped_box.x, cropped_box.y) == (2 * (box.x + 24), 3 * (box.y + 16))
        assert (cropped_box.width, cropped_box.height) == (2 * box.width, 3 * box.height)
        assert (cropped_box.area_px, cropped_box.peak) == (box.area_px, box.peak)


def test_the_box_marks_the_defect(padim_bundle: Path, tiny_root: Path) -> None:
    hits = 0
    with Inspector.load(padim_bundle, "cpu") as inspector:
        for path in anomalous_images(tiny_root):
            result = inspector(path)
            mask_file = tiny_root / "steel" / "ground_truth" / path.parent.name / f"{path.stem}_mask.png"
            mask = cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            hits += any(mask[b.y : b.y + b.height, b.x : b.x + b.width].any() for b in result.boxes[:1])
    assert hits >= 4


def test_timings_name_every_stage_and_sum_up(padim_bundle: Path, tiny_root: Path) -> None:
    with Inspector.load(padim_bundle, "cpu") as inspector:
        result = inspector(normal_images(tiny_root)[0])
    assert list(result.timings_ms) == ["read", "prepare", "infer", "decide", "total"]
    assert min(result.timings_ms.values()) >= 0
    assert result.timings_ms["infer"] > 0
    stages = [value for name, value in result.timings_ms.items() if name != "total"]
    assert result.timings_ms["total"] == pytest.approx(sum(stages))


@pytest.mark.parametrize("batch", [0, -1, 5])
def test_a_batch_the_graph_does_not_take_is_refused(padim_bundle: Path, tiny_root: Path, batch: int) -> None:
    with (
        Inspector.load(padim_bundle, "cpu") as inspector,
        pytest.raises(ArgumentError, match=rf"batch: expected 1 to 4, got {batch}\."),
    ):
        list(inspector.stream(normal_images(tiny_root), batch))


@pytest.mark.parametrize("path", ["graph", "kernel"])
@pytest.mark.parametrize(("field", "factor"), [("score", 1.01), ("score", 0.9), ("map_max", 1.01), ("map_max", 0.0)])
def test_a_bundle_that_does_not_give_its_golden_scores_is_refused(
    padim_bundle: Path, tmp_path: Path, field: str, factor: float, path: str
) -> None:
    with open_bundle(padim_bundle) as bundle:
        first, second = bundle.manifest.golden
    changed = msgspec.structs.replace(second, **{field: getattr(second, field) * factor})
    spoiled = copy_of(padim_bundle, tmp_path, golden=(first, changed))
    quantity = "score" if field == "score" else "map"
    with pytest.raises(
        BundleError, match=rf"golden image golden/001\.png: expected {quantity} .* on cpu\. .* flawscope doctor"
    ):
        Inspector.load(spoiled, "cpu", path)


def test_a_golden_score_within_the_noise_of_processors_passes(padim_bundle: Path, tmp_path: Path) -> None:
    with open_bundle(padim_bundle) as bundle:
        golden = tuple(msgspec.structs.replace(image, score=image.score * 1.0005) for image in bundle.manifest.golden)
    Inspector.load(copy_of(padim_bundle, tmp_path, golden=golden), "cpu").close()


def test_a_packed_bundle_scores_the_same(padim_bundle: Path, tiny_root: Path, tmp_path: Path) -> None:
    with open_bundle(padim_bundle) as bundle:
        pack_bundle(bundle, tmp_path / "part.flaw")
    with Inspector.load(padim_bundle, "cpu") as folder, Inspector.load(tmp_path / "part.flaw", "cpu") as packed:
        assert [r.score for r in packed(images(tiny_root))] == [r.score for r in folder(images(tiny_root))]


def test_a_load_that_fails_leaves_no_unpacked_bundle(
    padim_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with open_bundle(padim_bundle) as bundle:
        pack_bundle(bundle, tmp_path / "part.flaw")
    with pytest.raises(ArgumentError, match=r"backend: expected one of auto, cpu, cuda, tensorrt.*, got 'tpu'"):
        Inspector.load(tmp_path / "part.flaw", "tpu")
    assert [entry.name for entry in tmp_path.iterdir()] == ["part.flaw"]


@pytest.mark.parametrize(
    ("native", "backend", "graphs", "expected"),
    [
        (True, "cpu", ("score", "features"), "kernel"),
        (False, "cpu", ("score", "features"), "graph"),
        (True, "cuda", ("score", "features"), "graph"),
        (True, "cpu", ("score",), "graph"),
    ],
)
def test_the_path_is_chosen_by_what_is_there(
    padim_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    native: bool,
    backend: str,
    graphs: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.setattr(bank_scorer, "HAVE_NATIVE", native)
    with open_bundle(padim_bundle) as bundle:
        manifest = msgspec.structs.replace(
            bundle.manifest, graphs={name: bundle.manifest.graphs[name] for name in graphs}
        )
    assert bank_scorer.resolve_path(ScorerOptions(backend, "auto"), manifest) == expected
    assert bank_scorer.resolve_path(ScorerOptions(backend, "graph"), manifest) == "graph"


def test_auto_that_falls_back_to_the_cpu_resolves_the_path_again(
    padim_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> Any:
        raise BackendError("backend cuda: could not load score.onnx: no device")

    monkeypatch.setattr(bank_scorer, "HAVE_NATIVE", True)
    offered = Choice("cuda", "auto: offered", may_fall_back=True)
    monkeypatch.setattr(inspector_module, "choose_for_bundle", lambda *asked: offered)
    monkeypatch.setattr(ort_cuda, "open_on_cuda", broken)
    with Inspector.load(padim_bundle) as inspector:
        assert (inspector.backend, inspector.path) == ("cpu", "kernel")
        assert inspector.backend_reason == "auto: backend cuda: could not load score.onnx: no device"


def test_an_unknown_path_is_refused(padim_bundle: Path) -> None:
    with pytest.raises(ArgumentError, match=r"path: expected one of auto, graph, kernel, got 'magic'"):
        Inspector.load(padim_bundle, "cpu", "magic")


def test_cuda_that_is_not_there_is_an_error_and_not_the_cpu(padim_bundle: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this ONNX Runtime has CUDA")
    with pytest.raises(BackendError, match=r"backend cuda: is not there: .* There is no fall-back"):
        Inspector.load(padim_bundle, "cuda")


def test_auto_says_what_it_took_and_why(padim_bundle: Path) -> None:
    with Inspector.load(padim_bundle) as inspector:
        assert inspector.backend in ("cpu", "cuda")
        assert inspector.backend_reason.startswith("auto: ")
    with Inspector.load(padim_bundle, "cpu") as inspector:
        assert (inspector.backend, inspector.backend_reason) == ("cpu", "asked for")


def test_closing_twice_is_harmless_and_a_closed_inspector_makes_faults(padim_bundle: Path, tiny_root: Path) -> None:
    inspector = Inspector.load(padim_bundle, "cpu")
    inspector.close()
    inspector.close()
    assert inspector(normal_images(tiny_root)[0]).decision == "fault"


def test_an_image_on_disk_may_be_of_any_format(padim_bundle: Path, tiny_root: Path, tmp_path: Path) -> None:
    image = read_image(normal_images(tiny_root)[0])
    with Inspector.load(padim_bundle, "cpu") as inspector:
        expected = inspector(image).score
        for suffix in ("png", "bmp", "tiff"):
            assert inspector(write_rgb(tmp_path / f"x.{suffix}", image)).score == expected


def test_another_sampling_outlives_a_lost_device(padim_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Reconstructing(FakeScorer):
        """Remembers how it was told to sample."""

        def __init__(self, answers: list[Any]) -> None:
            super().__init__(answers)
            self.reconstructor, self.samplings = self, []

        def resample(self, sampling: Sampling) -> None:
            self.samplings.append(sampling)

    lost, fresh = Reconstructing([DeviceError("backend cpu: the device failed")]), Reconstructing([(0.0, 0.0)])
    few = Sampling(betas="linear", beta_start=0.1, beta_end=0.2, start=10, steps=2)
    image = np.zeros((1, 64, 64, 3), np.uint8)
    scorers = iter((lost, fresh))
    monkeypatch.setattr(ready_scorer, "open_scorer", lambda *arguments: next(scorers))
    monkeypatch.setattr(ready_scorer, "check_golden", lambda *arguments: None)
    with Inspector.load(padim_bundle, "cpu") as inspector:
        inspector.resample(few)
        with pytest.raises(DeviceError):
            inspector.infer(image)
        inspector.infer(image)
    assert lost.samplings == fresh.samplings == [few]

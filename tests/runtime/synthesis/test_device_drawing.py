"""Drawing on a device that is none: latents, texts and noise are those of the NumPy loop at each step."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from cuda_stand_in import Stand
from cuda_stand_in_errors import MemoryError_
from standing_device import check_same, seen_on_device, seen_on_host, standing_device
from tiny_synth_bundle import write_tiny_synth

from flawscope.errors import BackendError, BundleError, DeviceError
from flawscope.runtime.backends import engine_session
from flawscope.runtime.synthesis import Drawn, DrawOptions, DrawOrder, Synthesizer
from flawscope.runtime.synthesis.kept import Slots

pytestmark = pytest.mark.long


@pytest.fixture
def stand(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stand]:
    with standing_device(monkeypatch, tmp_path_factory) as stand:
        yield stand


def bundle(folder: Path, mode: Any = "blend") -> Path:
    write_tiny_synth(folder / "drawer.flaw", mode, share=0.9)
    return folder / "drawer.flaw"


def orders(count: int, seed: int = 0, first: int = 0) -> list[DrawOrder]:
    found = []
    for number in range(first, first + count):
        pixels = np.random.default_rng(number).integers(90, 140, (48, 64, 3), np.uint8)
        mask = np.zeros((48, 64), np.bool_)
        mask[12:30, 10 + 5 * number : 30 + 5 * number] = True
        found.append(DrawOrder(pixels, mask, "stain" if number % 2 else "pitting", None, seed + number))
    return found


def same(ours: list[Drawn], theirs: list[Drawn]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(one.image, other.image)
        np.testing.assert_array_equal(one.mask, other.mask)
        assert one.verdict == other.verdict


OPTIONS = [
    DrawOptions(),
    DrawOptions(steps=6, eta=0.7),
    DrawOptions(steps=8, solver="dpm++"),
    DrawOptions(steps=6, strength=0.5, guidance=4.0),
    DrawOptions(steps=5, tone="match", text_noise=0.3),
]


@pytest.mark.parametrize("mode", ["blend", "inpaint"])
def test_each_step_is_that_of_the_numpy_loop(tmp_path: Path, mode: str, stand: Stand) -> None:
    path = bundle(tmp_path, mode)
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        assert device.backend == "tensorrt"
        theirs, ours = seen_on_host(host._sessions, "denoise"), seen_on_device(device._sessions, "denoise")
        for options in OPTIONS:
            for count in (1, 3):
                for seed in (0, 50):  # the second time as one graph
                    same(device.draw(orders(count, seed), options), host.draw(orders(count, seed), options))
                    check_same(ours, theirs)


def test_steps_and_decoding_are_one_graph_for_each_number_of_steps_and_images(tmp_path: Path, stand: Stand) -> None:
    with Synthesizer.load(bundle(tmp_path), "tensorrt") as device:
        loop, own = device._drawing.loop, device.head.sampling.steps  # type: ignore[attr-defined]
        assert sorted(loop._graphs) == [(own, count) for count in range(1, device.max_batch + 1)], "captured at load"
        launches = stand.launches
        device.draw(orders(3))
        assert (stand.launches, len(loop._graphs)) == (launches + 1, device.max_batch)
        first = DrawOptions(steps=4, eta=1.0)  # the most noise: another option needs no other memory
        device.draw(orders(2), first)
        assert list(loop._graphs) == [(4, 2)]
        for options in (first, DrawOptions(steps=4, solver="dpm++"), DrawOptions(steps=8, strength=0.5, guidance=5.0)):
            launches, enqueued = stand.launches, stand.enqueued
            device.draw(orders(2, seed=9), options)
            assert stand.launches == launches + 1
            # Table, noise of two images, what is kept, texts, latents of two windows; two results. No network.
            assert stand.enqueued - enqueued == 9
        assert list(loop._graphs) == [(4, 2)]
        device.draw(orders(1), first)
        assert list(loop._graphs) == [(4, 2), (4, 1)]
        device.draw(orders(1), DrawOptions(steps=30, eta=1.0))  # more noise than there is room for
        assert list(loop._graphs) == [(30, 1)]
        for steps in range(2, 22):
            device.draw(orders(1), DrawOptions(steps=steps))
        assert len(loop._graphs) == 16 + device.max_batch
        assert loop.graph_problem is None
    assert stand.graphs == {}


def test_a_window_that_is_known_is_neither_encoded_nor_decoded(tmp_path: Path, stand: Stand) -> None:
    with Synthesizer.load(bundle(tmp_path, "inpaint"), "tensorrt") as device:
        encoded, decoded = (seen_on_device(device._sessions, name) for name in ("encode", "decode"))
        device.draw(orders(2))
        assert (len(encoded.inputs), len(decoded.inputs)) == (2, 2)
        device.draw(orders(2, seed=7))
        assert (len(encoded.inputs), len(decoded.inputs)) == (2, 3)
        device.draw(orders(2, seed=7, first=1))
        assert (len(encoded.inputs), len(decoded.inputs)) == (4, 5)
        # More windows than there are places for.
        device._drawing._slots = Slots(4)  # type: ignore[attr-defined]
        with Synthesizer.load(device.bundle.path, "cpu") as host:
            for first in (0, 2, 4, 0, 2, 0, 4):
                same(device.draw(orders(2, first=first)), host.draw(orders(2, first=first)))


def test_engines_compute_in_one_memory_on_one_stream_and_leave_nothing(tmp_path: Path, stand: Stand) -> None:
    with Synthesizer.load(bundle(tmp_path), "tensorrt") as device:
        device.draw(orders(2))
        assert len(stand.engines) == 4
        assert len(set.union(*stand.engines)) == 1
        assert len(stand.streams) == 1
        kept = stand.allocated
        device.draw(orders(2, seed=3))
        assert stand.allocated == kept
    assert stand.freed == stand.allocated
    assert stand.unpinned == stand.pinned
    with pytest.raises(BundleError, match="was closed"):
        device.draw(orders(1))


def test_what_cannot_be_captured_is_drawn_launch_by_launch(tmp_path: Path, stand: Stand) -> None:
    path = bundle(tmp_path)
    stand.capturable = False
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        for seed in range(2):
            same(device.draw(orders(2, seed)), host.draw(orders(2, seed)))
        assert "capture" in device._drawing.loop.graph_problem.lower()  # type: ignore[attr-defined]
    assert stand.launches == 0


def test_after_a_failure_nothing_of_it_is_taken_for_known(tmp_path: Path, stand: Stand) -> None:
    path = bundle(tmp_path)
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        device.draw(orders(2))

        def launch(count: int) -> None:
            raise DeviceError("backend tensorrt: it fails.")

        for name, first in (("encode", 1), ("decode", 2)):
            session: Any = device._sessions[name]
            session.launch = launch
            with pytest.raises(DeviceError, match="it fails"):
                device.draw(orders(2, first=first), DrawOptions(steps=3 + first))
            del session.launch
            same(device.draw(orders(2, first=first)), host.draw(orders(2, first=first)))


@pytest.mark.parametrize("fails", ["first", "second"])
def test_latents_whose_copy_failed_are_not_taken_for_known(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    path = bundle(tmp_path)
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        drawing: Any = device._drawing
        copy_on, into_slots = drawing._engines._device.copy_on, []
        places = range(drawing._slots_at, drawing._slots_at + len(drawing._slots._free) * drawing.loop.bytes)

        def copy(target: int, source: int, size: int) -> None:
            if target in places:
                into_slots.append(target)
                if len(into_slots) == (1 if fails == "first" else 2):
                    raise DeviceError("backend tensorrt: it fails.")
            copy_on(target, source, size)

        with monkeypatch.context() as patch:
            patch.setattr(drawing._engines._device, "copy_on", copy)
            with pytest.raises(DeviceError, match="it fails"):
                device.draw(orders(2))
        same(device.draw(orders(2)), host.draw(orders(2)))


def test_too_little_memory_is_said_and_given_back(tmp_path: Path, stand: Stand) -> None:
    path = bundle(tmp_path)
    stand.fail_next = MemoryError_("cuMemAlloc failed: out of memory")
    with pytest.raises(DeviceError, match="out of memory"):
        Synthesizer.load(path, "tensorrt")
    assert stand.freed == stand.allocated


def test_room_for_noise_that_there_was_no_memory_for_is_asked_for_again(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    def allocate(size: int) -> int:
        raise DeviceError("backend tensorrt: out of memory.")

    path, more = bundle(tmp_path), DrawOptions(steps=30, eta=1.0)
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        device.draw(orders(1), DrawOptions(steps=2))
        loop = device._drawing.loop  # type: ignore[attr-defined]
        assert loop._room > 0
        with monkeypatch.context() as patch:
            patch.setattr(device._engines._device, "allocate", allocate)
            with pytest.raises(DeviceError, match="out of memory"):
                device.draw(orders(1), more)
        assert loop._room == 0, "the old memory was freed before"
        same(device.draw(orders(1), more), host.draw(orders(1), more))


def test_an_engine_that_does_not_load_takes_the_others_with_it(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: Any = engine_session.ensure_engine

    def ensure(opened: Any, graph: str, *rest: object, **more: object) -> Any:
        made = found(opened, graph, *rest, **more)
        if graph == "decode":
            made.stored.load = lambda: b"not an engine"
        return made

    monkeypatch.setattr(engine_session, "ensure_engine", ensure)
    with pytest.raises(BackendError, match="could not load the engine"):
        Synthesizer.load(bundle(tmp_path), "tensorrt")
    assert stand.freed == stand.allocated
    assert stand.unpinned == stand.pinned


def test_a_text_of_another_width_and_other_latents_are_refused(tmp_path: Path, stand: Stand) -> None:
    path = bundle(tmp_path)
    with Synthesizer.load(path, "tensorrt") as device:
        device._context = lambda text, vectors: np.zeros((1, 3, 4), np.float32)  # type: ignore[method-assign]
        with pytest.raises(BundleError, match=r"text: expected float32 \[2, 8, 4\], got \[2, 3, 4\]"):
            device.draw(orders(1))
        other = msgspec.structs.replace(device.head, latents=(3, 4, 4))
    write_tiny_synth(tmp_path / "other.flaw", head={"latents": other.latents})
    with pytest.raises(BackendError, match=r"latents: expected float32 \[3, 4, 4\] an image, got float32 \[4, 4, 4\]"):
        Synthesizer.load(tmp_path / "other.flaw", "tensorrt")


def test_without_the_kernels_arrays_go_through_the_host(
    tmp_path: Path, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_session.cpp_ext, "HAVE_CUDA", False)
    path = bundle(tmp_path, "inpaint")
    with Synthesizer.load(path, "cpu") as host, Synthesizer.load(path, "tensorrt") as device:
        same(device.draw(orders(2)), host.draw(orders(2)))
        assert len(stand.streams) == 4, "every session has a device of its own"

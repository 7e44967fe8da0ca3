"""What a normal window gives is computed once, and what is drawn does not depend on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from tiny_synth_bundle import write_tiny_synth

from flawscope.runtime.synthesis import DrawOptions, DrawOrder, Synthesizer
from flawscope.runtime.synthesis.kept import Kept, digest_of


class Counting:
    """A session that counts the images that it runs."""

    def __init__(self, session: Any, name: str, counts: Counter[str]) -> None:
        self.session, self.name, self.counts = session, name, counts

    def run(self, inputs: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        self.counts[self.name] += len(next(iter(inputs.values())))
        return dict(self.session.run(inputs))

    def close(self) -> None:
        self.session.close()


@pytest.fixture(params=["blend", "inpaint"])
def counted(request: Any, tmp_path: Path) -> Iterator[tuple[Synthesizer, Counter[str]]]:
    counts: Counter[str] = Counter()
    write_tiny_synth(tmp_path / "drawer.flaw", request.param, share=0.9)
    with Synthesizer.load(tmp_path / "drawer.flaw", "cpu") as synthesizer:
        for name, session in synthesizer._sessions.items():
            synthesizer._sessions[name] = Counting(session, name, counts)  # type: ignore[assignment]
        yield synthesizer, counts


def order(seed: int, image: int = 0, left: int = 16) -> DrawOrder:
    pixels = np.random.default_rng(image).integers(90, 140, (48, 64, 3), np.uint8)
    mask = np.zeros((48, 64), np.bool_)
    mask[12:30, left : left + 16] = True
    return DrawOrder(pixels, mask, "pitting", "a * defect", seed)


def test_candidates_of_the_same_windows_take_the_decoder_once_each(counted: tuple[Synthesizer, Counter[str]]) -> None:
    synthesizer, counts = counted
    is_inpainting = synthesizer.head.mode == "inpaint"
    synthesizer.draw([order(0), order(1, image=1)])
    assert counts["encode"] == (4 if is_inpainting else 2)
    assert (counts["decode"], counts["text"]) == (4, 2)
    counts.clear()
    synthesizer.draw([order(2), order(3, image=1)])
    assert (counts["encode"], counts["decode"], counts["text"]) == (0, 2, 0)
    counts.clear()
    # One window is another: the whole batch is computed, so that a result depends on the size of the batch alone.
    synthesizer.draw([order(2), order(3, image=2)])
    assert counts["encode"] == (4 if is_inpainting else 2)
    counts.clear()
    # The same window with another box in it: only what lies around the box is another.
    whole = DrawOptions(crop=False)
    synthesizer.draw([order(0)], whole)
    counts.clear()
    synthesizer.draw([order(0, left=30)], whole)
    assert (counts["encode"], counts["decode"]) == (1 if is_inpainting else 0, 1)


def test_what_is_drawn_does_not_depend_on_what_was_drawn_before(
    counted: tuple[Synthesizer, Counter[str]],
) -> None:
    synthesizer, _ = counted
    for seeds in ((0, 1), (2, 3), (4, 5)):
        orders = [order(seeds[0]), order(seeds[1], image=1)]
        with Synthesizer.load(synthesizer.bundle.path, "cpu") as fresh:
            expected = fresh.draw(orders)
        for ours, theirs in zip(synthesizer.draw(orders), expected, strict=True):
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.mask, theirs.mask)


def test_what_was_unused_for_longest_is_forgotten_first() -> None:
    kept, arrays = Kept(most_bytes=3 * 80), [np.full(10, number, np.float64) for number in range(5)]
    kept.keep("abc", arrays[:3])
    assert kept.find("ac") is not None
    kept.keep("d", arrays[3:4])
    assert kept.find("b") is None
    assert kept.find("acb") is None, "one is missing"
    found = kept.find("cda")
    assert found is not None
    np.testing.assert_array_equal([array[0] for array in found], [2, 3, 0])
    kept.keep("a", arrays[4:5])
    kept.keep("efgh", arrays[:4])
    assert len(kept) == 3
    kept.keep("i", [np.zeros(100)])
    assert len(kept) == 0, "what is larger than all is not kept"


def test_what_is_kept_is_a_copy_of_its_own() -> None:
    kept, batch = Kept(1 << 20), np.zeros((2, 4))
    kept.keep("a", [batch[0]])
    batch[:] = 1
    found = kept.find("a")
    assert found is not None
    assert found[0].base is None
    assert not found[0].any()


def test_contents_and_their_order_are_what_is_hashed() -> None:
    one, two = np.arange(4), np.arange(1, 5)
    assert digest_of(one, two) == digest_of(one.copy(), two[::1])
    assert len({digest_of(one, two), digest_of(two, one), digest_of(one)}) == 3

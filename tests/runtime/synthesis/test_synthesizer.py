"""Drawing with a bundle: known colours, the loop by hand, what stays bit for bit, and what is refused."""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from cuda_frames import FakeCudaArray, FakeDriver
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_bundle import write_tiny_bundle
from tiny_synth_bundle import CATEGORY, CELL, GROUND, LATENTS, MAX_BATCH, SAMPLING, SIDE, WIDTH, write_tiny_synth

from flawscope.arrays import UInt8Array
from flawscope.bundle import SynthDefect
from flawscope.diffusion.latent_inpainting import draw_latents, draw_noise, keep_of
from flawscope.diffusion.reconstruction import signed, unsigned
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError
from flawscope.imaging.crops import Crop, crop_around, cut_image, cut_mask
from flawscope.runtime import device_arrays
from flawscope.runtime.synthesis import (
    DrawOptions,
    DrawOrder,
    QualityLimits,
    Synthesizer,
    feather_mask,
    paste_drawn,
    precise_mask,
)
from flawscope.runtime.synthesis.finishing import mask_in_window

STEEL = np.rint((np.array(GROUND[:3]) + 1) * 127.5).astype(np.uint8)


def steel(seed: int = 0, size: tuple[int, int] = (48, 48), sigma: float = 4.0) -> UInt8Array:
    noise = np.random.default_rng(seed).normal(0, sigma, (*size, 3))
    return np.clip(STEEL + noise, 0, 255).astype(np.uint8)


def box(top: int, left: int, height: int, width: int, size: tuple[int, int] = (48, 48)) -> Any:
    mask = np.zeros(size, np.bool_)
    mask[top : top + height, left : left + width] = True
    return mask


def order(number: int = 0, **changes: Any) -> DrawOrder:
    fields = {"image": steel(number), "mask": box(16, 16, 16, 16), "defect": "pitting", "seed": number}
    return DrawOrder(**{**fields, **changes})


@pytest.fixture(scope="module")
def blend(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "blend.flaw"
    write_tiny_synth(path, share=0.9)
    with Synthesizer.load(path, "cpu") as synthesizer:
        yield synthesizer


@pytest.fixture(scope="module")
def inpaint(tmp_path_factory):
    path = tmp_path_factory.mktemp("bundles") / "inpaint.flaw"
    write_tiny_synth(path, "inpaint", share=0.9)
    with Synthesizer.load(path, "cpu") as synthesizer:
        yield synthesizer


@pytest.fixture(scope="module", params=["blend", "inpaint"])
def either(request, blend, inpaint):
    return {"blend": blend, "inpaint": inpaint}[request.param]


def same(first, second):
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)
    assert (first.verdict, first.text, first.seed, first.crop) == (
        second.verdict,
        second.text,
        second.seed,
        second.crop,
    )


# --- what is drawn


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_a_denoiser_that_knows_the_colours_draws_them(tmp_path, solver):
    write_tiny_synth(tmp_path / "sure.flaw", share=1.0)
    with Synthesizer.load(tmp_path / "sure.flaw", "cpu") as synthesizer:
        (drawn,) = synthesizer.draw([order()], DrawOptions(solver=solver, steps=10))
    # The empty text says 0, and a guidance of 2 doubles what the word says: -0.3, -0.3, -0.35.
    expected = (np.array([-0.6, -0.6, -0.7]) + 1) * 127.5
    # Away from the edges of cells, beside which the enlargement overshoots.
    left, right = drawn.image[17:21, 17:21].reshape(-1, 3), drawn.image[17:21, 28:31].reshape(-1, 3)
    # Behind the last step lies the first noise level, whose deviation is 0.03.
    assert np.abs(left - expected).max() < 4 * 0.03 * 127.5
    assert np.abs(right - STEEL.astype(float)).max() < 4 * 0.03 * 127.5


def test_the_learned_word_and_other_words_draw_their_own_colours(blend):
    dark, brown = blend.draw([order(), order(defect=f"{CATEGORY}/stain")])
    assert dark.image[20:28, 18:22].mean() < 90
    red, _, blue = brown.image[20:28, 18:22].reshape(-1, 3).mean(axis=0)
    assert red > blue + 60


def test_the_mask_shows_what_was_drawn_and_the_image_is_accepted(blend):
    (drawn,) = blend.draw([order()])
    assert drawn.verdict.is_accepted, drawn.verdict.sentence()
    assert drawn.mask[18:30, 17:23].mean() > 0.95  # the left half of the box is another colour
    assert drawn.mask[:, 26:].mean() < 0.02  # the right half is steel again
    assert not drawn.mask[~drawn.region].any()
    assert np.array_equal(drawn.region, box(16, 16, 16, 16))
    assert len(drawn.verdict.measures) == 10


def by_hand(synthesizer, request: DrawOrder, text: str, scale: float, sampling: Any) -> UInt8Array:
    """Return the decoded window, uint8 [16, 16, 3], with every network called for one image and one text alone."""
    head, sessions = synthesizer.head, synthesizer._sessions
    crop = crop_around(request.mask, (SIDE, SIDE), fill=head.crop_fill, feather_px=4)
    image, mask = signed(cut_image(request.image, crop)[None]), cut_mask(request.mask, crop)
    encode = sessions["encode"].run
    clean, keep = encode({"image": image})["latents"], keep_of(mask, LATENTS[1:])[None]
    vectors = synthesizer._vectors_for(head.defects[0])
    contexts = [synthesizer._context(text, vectors), synthesizer._context("", None)]
    beside = []
    if head.mode == "inpaint":
        grey = image.copy()
        grey[:, :, mask] = 0.0
        beside = [1 - keep, encode({"image": grey})["latents"]]

    def predict(x, timestep):
        channels = np.concatenate([x, *beside], axis=1)
        step = np.array([timestep], np.int64)
        noises = [
            sessions["denoise"].run({"x": channels, "timestep": step, "context": context})["noise"]
            for context in contexts
        ]
        return noises[1] + np.float32(scale) * (noises[0] - noises[1])

    noise = draw_noise(request.seed, head.mode, sampling, LATENTS)[None]
    latents = draw_latents(head.mode, clean, keep, noise, sampling, predict, restore=True)
    return unsigned(sessions["decode"].run({"latents": latents})["picture"])[0]


def test_it_is_the_loop_of_core_with_the_two_texts_of_guidance(either):
    request = order(5, text="a * defect")
    sampling = msgspec.structs.replace(SAMPLING, steps=6, eta=0.5)
    window = by_hand(either, request, "a * defect", 1.5, sampling)
    drawn = either.draw([order(4), request], DrawOptions(steps=6, eta=0.5, guidance=1.5))[1]
    assert drawn.crop == Crop(0, 0, 48, 48, (SIDE, SIDE))
    assert np.array_equal(drawn.image, paste_drawn(request.image, window, drawn.crop, feather_mask(request.mask, 4)))


def test_an_inpainting_network_is_given_the_box_and_the_blanked_image(inpaint, monkeypatch):
    session, calls = inpaint._sessions["denoise"], []

    class Spy:
        def run(self, inputs):
            calls.append(inputs)
            return session.run(inputs)

    monkeypatch.setitem(inpaint._sessions, "denoise", Spy())
    orders = [order(0, image=steel(0, (SIDE, SIDE)), mask=box(4, 8, 3, 5, (SIDE, SIDE))), order(1)]
    inpaint.draw(orders, DrawOptions(crop=False))
    assert len(calls) == SAMPLING.steps
    assert [inputs["timestep"].tolist() for inputs in calls] == [[t] * 4 for t in (751, 501, 251, 1)]
    x = calls[0]["x"]
    assert x.shape == (4, 2 * LATENTS[0] + 1, *LATENTS[1:])
    assert np.array_equal(x[:2], x[2:]), "the same images for both texts"
    cells = np.zeros(LATENTS[1:], np.float32)
    cells[1, 2:4] = 1.0  # rows 4 to 6 and columns 8 to 12: cells that the box touches at all
    assert np.array_equal(x[0, LATENTS[0]], cells)
    blanked = signed(orders[0].image[None])
    blanked[:, :, orders[0].mask] = 0.0
    assert np.array_equal(x[0, LATENTS[0] + 1 :], inpaint._sessions["encode"].run({"image": blanked})["latents"][0])
    empty = calls[0]["context"][:2]
    assert not empty.any(), "the empty texts come first; their words are zero"
    assert calls[0]["context"][2:].any()


def test_an_image_does_not_depend_on_its_neighbours(either):
    orders = [order(0), order(1, defect="stain", mask=box(3, 30, 9, 12)), order(2, text="* in the upper left")]
    together = either.draw(orders, batch=3)
    assert [first.batch for first in together] == [3, 3, 3]
    for first, second in zip(together, either.draw(orders, batch=1), strict=True):
        same(first, second)
    for first, second in zip(together[::-1], either.draw(orders[::-1], batch=2), strict=True):
        same(first, second)


def test_the_seed_and_nothing_else_makes_the_noise(either):
    first, again, other = (either.draw([order(0, seed=seed)])[0] for seed in (7, 7, 8))
    same(first, again)
    assert not np.array_equal(first.image, other.image)


def test_fewer_steps_more_noise_and_less_strength_draw_otherwise(blend):
    drawn = [
        blend.draw([order(text="a * defect")], options)[0].image
        for options in (
            DrawOptions(),
            DrawOptions(steps=2),
            DrawOptions(eta=1.0),
            DrawOptions(strength=0.5),
            DrawOptions(guidance=1.2),
            DrawOptions(solver="dpm++"),
        )
    ]
    assert len({image.tobytes() for image in drawn}) == len(drawn)
    good = steel().astype(float)
    changes = [np.abs(image - good).mean() for image in drawn]
    assert changes[4] < changes[0], "less guidance draws a weaker defect"


def test_noise_on_the_text_comes_from_the_seed_and_leaves_that_of_the_image(either):
    request, plain = order(3, text="a * defect"), DrawOptions(text_noise=0.0)
    same(either.draw([request], DrawOptions())[0], either.draw([request], plain)[0])
    noisy = DrawOptions(text_noise=0.5)
    alone, (_, beside) = either.draw([request], noisy)[0], either.draw([order(4), request], noisy)
    same(alone, beside)
    assert (alone.image != either.draw([request], plain)[0].image).any()
    # Without guidance by the text, no noise on it can be seen: the noise of the image is the same.
    seen = []
    for options in (plain, noisy):
        recorded = []
        run = either._drawing._run
        either._drawing._run = lambda name, inputs, shape, run=run, kept=recorded: (
            (kept.append(inputs["x"]) if name == "denoise" else None) or run(name, inputs, shape)
        )
        try:
            either.draw([request], options)
        finally:
            del either._drawing._run
        seen.append(recorded[0])
    assert np.array_equal(*seen)


def test_a_bundle_draws_with_the_noise_on_texts_that_it_was_trained_with(tmp_path):
    write_tiny_synth(tmp_path / "noisy.flaw", share=0.9, head={"text_noise": 0.5})
    with Synthesizer.load(tmp_path / "noisy.flaw", "cpu") as synthesizer:
        assert DrawOptions().resolved(synthesizer.head).text_noise == 0.5
        own, asked, none = (
            synthesizer.draw([order(3, text="a * defect")], options)[0]
            for options in (DrawOptions(), DrawOptions(text_noise=0.5), DrawOptions(text_noise=0.0))
        )
    same(own, asked)
    assert (own.image != none.image).any()


# --- texts


def test_the_seed_chooses_one_of_the_bundles_texts_and_the_place_is_filled_in(blend):
    texts = {drawn.text for drawn in blend.draw([order(seed=seed, mask=box(2, 2, 8, 8)) for seed in range(12)])}
    assert texts == {"a * defect in the upper left", "* in the upper left"}
    (placed,) = blend.draw([order(text="* {location}", mask=box(36, 20, 8, 8))])
    assert placed.text == "* in the bottom middle"
    (placed,) = blend.draw([order(text="{location} of the part: * {location}", mask=box(36, 20, 8, 8))])
    assert placed.text == "In the bottom middle of the part: * in the bottom middle"


# --- where nothing may change


@st.composite
def boxes(draw: st.DrawFn) -> tuple[tuple[int, int], Any]:
    size = draw(st.tuples(st.integers(8, 40), st.integers(8, 40)))
    spans = []
    for side in size:
        first = draw(st.integers(0, side - 1))
        spans.append((first, draw(st.integers(1, side - first))))
    return size, box(spans[0][0], spans[1][0], spans[0][1], spans[1][1], size)


@settings(max_examples=40)
@given(place=boxes(), feather=st.integers(0, 5), crop=st.booleans(), seed=st.integers(0, 3))
def test_pixels_outside_the_feathered_box_keep_their_bytes(blend, place, feather, crop, seed):
    size, mask = place
    good = steel(seed, size, 20.0)
    before = good.copy()
    request = DrawOrder(good, mask, "stain", seed=seed)
    (drawn,) = blend.draw([request], DrawOptions(feather_px=feather, crop=crop))
    untouched = feather_mask(mask, feather) == 0
    assert np.array_equal(drawn.image[untouched], good[untouched])
    assert np.array_equal(good, before)
    assert not drawn.mask[~mask].any()
    assert drawn.image.shape == good.shape


def test_in_the_parity_mode_the_whole_image_is_what_the_decoder_gave(blend):
    request = order(3, image=steel(3, (SIDE, SIDE), 20.0), mask=box(4, 4, 8, 8, (SIDE, SIDE)))
    (drawn,) = blend.draw([request], DrawOptions(is_parity=True))
    cells = drawn.image.reshape(4, CELL, 4, CELL, 3)
    assert (cells == cells[:, :1, :, :1]).all(), "every cell is of one colour"
    assert (drawn.image != request.image).any(axis=2)[~request.mask].mean() > 0.9
    assert drawn.crop == Crop(0, 0, SIDE, SIDE, (SIDE, SIDE))


def test_a_decoders_noise_in_a_small_window_is_no_defect():
    good = steel(0, (400, 400), 0.0)
    region, crop = box(70, 70, 20, 20, (400, 400)), Crop(56, 56, 48, 48, (SIDE, SIDE))
    whole = good.copy()
    noise = np.random.default_rng(1).normal(0, 40, (48, 48, 3))
    whole[crop.window] = np.clip(good[crop.window] + noise, 0, 255).astype(np.uint8)
    assert precise_mask(whole, good, region).quality == "good", "equal pixels outside the window hide the noise"
    precise, _ = mask_in_window(whole, good, region, crop, DrawOptions())
    assert precise.quality in ("faint", "empty")
    assert precise.mask.shape == (400, 400)
    whole[72:84, 72:84] = (20, 20, 60)
    precise, _ = mask_in_window(whole, good, region, crop, DrawOptions())
    assert precise.quality == "good"
    assert precise.mask[73:83, 73:83].all()
    assert precise.mask.sum() < 14 * 14


# --- the filter


@pytest.mark.parametrize("broken", [{"gain": np.nan}, {"share": np.nan}, {"share": np.inf}])
def test_numbers_that_are_none_are_rejected_and_never_accepted(tmp_path, broken):
    write_tiny_synth(tmp_path / "broken.flaw", **broken)
    with Synthesizer.load(tmp_path / "broken.flaw", "cpu") as synthesizer:
        (drawn,) = synthesizer.draw([order()])
    assert "not-finite" in drawn.verdict.reasons
    assert drawn.image.dtype == np.uint8


def test_a_copy_of_a_support_image_is_rejected_and_one_of_another_defect_is_not(tmp_path, blend):
    (original,) = blend.draw([order(0)])
    supports = {"pitting": (original.image, original.mask, "0" * 64)}
    write_tiny_synth(tmp_path / "copier.flaw", share=0.9, supports=supports)
    with Synthesizer.load(tmp_path / "copier.flaw", "cpu") as synthesizer:
        (copy, other) = synthesizer.draw([order(0), order(0, defect="stain")])
    assert copy.verdict.reasons == ("copy",)
    assert copy.verdict.likeness is not None
    assert copy.verdict.likeness.support == "support/000.png"
    assert other.verdict.likeness is None
    assert original.verdict.is_accepted


def test_limits_are_those_that_were_asked_for(blend):
    (drawn,) = blend.draw([order()], DrawOptions(limits=QualityLimits(full=0.1)))
    assert drawn.verdict.reasons == ("full-mask",)


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"image": steel()[..., :1]}, r"image: expected uint8 \[H, W, 3\]"),
        ({"image": np.dstack([steel(), steel()[..., :1]])}, r"image: expected uint8 \[H, W, 3\]"),
        ({"image": steel().astype(np.float32)}, r"image: expected uint8"),
        ({"mask": box(1, 1, 3, 3, (48, 47))}, r"mask: expected bool \[48, 48\]"),
        ({"mask": np.ones((48, 48), np.uint8)}, r"mask: expected bool"),
        ({"mask": np.zeros((48, 48), np.bool_)}, r"mask: expected at least one white pixel, got an all-black mask"),
        ({"defect": "rust"}, r"defect: expected one that the bundle draws \(steel/pitting, steel/stain\), got 'rust'"),
        ({"defect": "brass/stain"}, r"got 'brass/stain'"),
        ({"text": "a defect"}, r"text: expected the word '\*', which stands for the defect"),
        ({"text": " "}, r"text: expected words, got none"),
        ({"seed": -1}, r"seed: expected a whole number from 0"),
    ],
)
@pytest.mark.parametrize("options", [DrawOptions(), DrawOptions(crop=False)], ids=["window", "whole"])
def test_an_order_that_cannot_be_drawn_is_one_line_and_nothing_is_drawn(blend, changes, message, options):
    steps = []
    with pytest.raises(ArgumentError, match=message) as caught:
        blend.draw([order(), order(**changes)], options, lambda *counts: steps.append(counts), batch=1)
    assert "\n" not in str(caught.value)
    assert steps == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"guidance": 1.0}, "guidance: expected a scale above 1, got 1"),
        ({"guidance": float("nan")}, "guidance: expected a scale above 1, got nan"),
        ({"steps": 0}, "steps: expected a whole number from 1 to 1000, got 0"),
        ({"steps": 1001}, "steps: expected a whole number from 1 to 1000, got 1001"),
        ({"eta": -0.1}, "eta: expected a number from 0 to 1"),
        ({"text_noise": -1.0}, "text_noise: expected a number of at least 0, got -1"),
        ({"text_noise": float("nan")}, "text_noise: expected a number of at least 0, got nan"),
        ({"strength": 0.0}, "strength: expected a share above 0 up to 1"),
        ({"feather_px": -1}, "feather_px: expected a number of pixels of at least 0"),
        ({"is_parity": True, "crop": True}, "crop: expected none with parity"),
        ({"solver": "dpm++", "eta": 0.5}, r"eta: expected 0 with the solver dpm\+\+"),
        ({"strength": 0.1}, "strength: expected at least one of 4 steps to be left"),
    ],
)
def test_an_option_out_of_range_is_one_line(blend, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        blend.draw([order()], DrawOptions(**options))
    assert "\n" not in str(caught.value)


def test_guidance_takes_half_of_the_largest_batch(blend):
    assert blend.max_batch == MAX_BATCH // 2
    assert len(blend.draw([order(seed=seed) for seed in range(5)])) == 5
    for batch in (0, MAX_BATCH // 2 + 1):
        with pytest.raises(ArgumentError, match=f"batch: expected 1 to 4, half of .* got {batch}"):
            blend.draw([order()], batch=batch)
    assert blend.draw([]) == []


def test_progress_is_told_after_every_batch(blend):
    steps = []
    blend.draw([order(seed=seed) for seed in range(3)], None, lambda *numbers: steps.append(numbers), batch=2)
    assert steps == [(2, 3), (3, 3)]


def test_a_defect_of_two_categories_has_to_be_named_with_one(tmp_path):
    defects = (SynthDefect("steel", "stain", ("a stain",)), SynthDefect("brass", "stain", ("a stain",)))
    write_tiny_synth(tmp_path / "two.flaw", head={"defects": defects})
    with Synthesizer.load(tmp_path / "two.flaw", "cpu") as synthesizer:
        assert synthesizer.defects == defects
        with pytest.raises(ArgumentError, match="expected one of brass/stain, steel/stain, got 'stain', which all of"):
            synthesizer.draw([order(defect="stain")])
        assert len(synthesizer.draw([order(defect="brass/stain")])) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"without": ["tokenizer.json"]}, "expected tokenizer.json, which texts need, got none"),
        ({"max_batch": 1}, "expected a largest batch of 2 or more"),
        ({"bank": None}, "vectors.steel/pitting: expected float32 .* got none"),
        (
            {"head": {"text_width": WIDTH + 1}},
            r"vectors.steel/pitting: expected float32 \[V, 5\], got float32 \[1, 4\]",
        ),
        ({"head": {"defects": (SynthDefect("steel", "stain", ()),)}}, "stain: expected a text, got none"),
        (
            {"supports": {"stain": (steel(), np.zeros((48, 48), np.bool_), "0" * 64)}},
            "expected a mask of the image's",
        ),
    ],
)
def test_a_bundle_that_lacks_something_is_refused_when_it_is_loaded(tmp_path, changes, message):
    write_tiny_synth(tmp_path / "broken.flaw", **changes)
    with pytest.raises(BundleError, match=message) as caught:
        Synthesizer.load(tmp_path / "broken.flaw", "cpu")
    assert "\n" not in str(caught.value)


def test_a_graph_of_another_shape_is_said_when_it_is_run(tmp_path):
    write_tiny_synth(tmp_path / "odd.flaw", head={"latents": (3, *LATENTS[1:])})
    with (
        Synthesizer.load(tmp_path / "odd.flaw", "cpu") as synthesizer,
        pytest.raises(BundleError, match=r"encode: expected float32 \[1, 3, 4, 4\], got float32 \[1, 4, 4, 4\]"),
    ):
        synthesizer.draw([order()])


def test_a_bundle_that_scores_is_refused(tmp_path):
    write_tiny_bundle(tmp_path / "scores.flaw")
    with pytest.raises(
        BundleError, match=r"expected a bundle that draws defects \(kind synth\), got one of the method"
    ):
        Synthesizer.load(tmp_path / "scores.flaw")


def test_backends_and_precisions_that_are_not_there_are_refused(blend):
    with pytest.raises(ArgumentError, match="backend: expected one of"):
        Synthesizer.load(blend.bundle.path, "gpu")
    with pytest.raises(ArgumentError, match="precision: expected one the bundle has"):
        Synthesizer.load(blend.bundle.path, "cpu", "fp16")


def test_a_backend_left_to_choice_falls_back_and_says_so(blend, monkeypatch):
    from flawscope.runtime.backends import Choice
    from flawscope.runtime.synthesis import synthesizer as module

    real = module.open_session

    def only_the_cpu(bundle, graph, precision, backend, **options):
        if backend != "cpu":
            raise BackendError("backend cuda: no device.")
        return real(bundle, graph, precision, backend, **options)

    monkeypatch.setattr(module, "choose_backend", lambda name: Choice("cuda", "auto: offered"))
    monkeypatch.setattr(module, "open_session", only_the_cpu)
    with Synthesizer.load(blend.bundle.path) as synthesizer:
        assert synthesizer.backend == "cpu"
        assert synthesizer.backend_reason == "auto: backend cuda: no device."
        assert len(synthesizer.draw([order()])) == 1
    with pytest.raises(BackendError, match="backend cuda: no device"):
        Synthesizer.load(blend.bundle.path, "cuda")


def test_closing_twice_is_harmless(tmp_path):
    manifest = write_tiny_synth(tmp_path / "b.flaw")
    synthesizer = Synthesizer.load(tmp_path / "b.flaw", "cpu")
    assert synthesizer.manifest == manifest
    assert safetensors.numpy.load(synthesizer.bundle.read("vectors.safetensors"))
    synthesizer.close()
    synthesizer.close()
    for _ in range(2):
        with pytest.raises(BundleError, match="the synthesizer was closed"):
            synthesizer.draw([order()])


def test_what_happens_to_the_files_after_loading_changes_nothing(tmp_path):
    write_tiny_synth(tmp_path / "b.flaw")
    with Synthesizer.load(tmp_path / "b.flaw", "cpu") as synthesizer:
        (before,) = synthesizer.draw([order()])
        for file in [entry for entry in (tmp_path / "b.flaw").rglob("*") if entry.is_file()]:
            file.write_bytes(b"")  # in place
        (after,) = synthesizer.draw([order()])
    np.testing.assert_array_equal(before.image, after.image)


def test_a_base_that_has_learned_no_defect_draws_any_by_its_words(tmp_path):
    write_tiny_synth(tmp_path / "base.flaw", "inpaint", head={"defects": ()})
    with Synthesizer.load(tmp_path / "base.flaw", "cpu") as synthesizer:
        (named,) = synthesizer.draw([order(defect="deep_scratch")])
        (drawn,) = synthesizer.draw([order(defect="deep_scratch", text="a crack")])
        assert named.text == "a deep scratch defect in the center"
        assert drawn.text == "a crack"
        with pytest.raises(ArgumentError, match="defect type: expected a name"):
            synthesizer.draw([order(defect="steel/../elsewhere")])


@pytest.mark.parametrize("paste", ["drawn", "change"])
def test_both_ways_of_pasting_keep_the_bytes_outside_and_find_the_same_mask(either, paste):
    request = order(3)
    (drawn,) = either.draw([request], DrawOptions(paste=paste))
    (usual,) = either.draw([request])
    outside = feather_mask(request.mask, 4) == 0
    np.testing.assert_array_equal(drawn.image[outside], request.image[outside])
    np.testing.assert_array_equal(drawn.mask, usual.mask)
    assert np.array_equal(drawn.image, usual.image) == (paste == "drawn")


def test_the_tone_is_held_where_the_network_alone_would_and_the_references_leave_it(blend, inpaint):
    def tone(synthesizer, **options):
        return DrawOptions(**options).resolved(synthesizer.head).tone

    assert tone(inpaint) == "restore"
    assert tone(inpaint, is_parity=True) == tone(blend) == "none"
    assert tone(inpaint, is_parity=True, tone="restore") == tone(blend, tone="restore") == "restore"
    drawn = {name: blend.draw([order()], DrawOptions(tone=name))[0].image for name in ("none", "restore")}
    assert np.array_equal(drawn["none"], drawn["restore"]), "blend puts the surroundings back in its own way"
    with pytest.raises(ArgumentError, match="tone: expected one of restore, match, none, got 'grey'"):
        DrawOptions(tone="grey")


@pytest.mark.parametrize("solver", ["ddim", "dpm++"])
def test_surroundings_that_the_network_draws_anew_are_put_back(inpaint, solver):
    """The tiny network draws the whole left half dark, not the box alone."""
    request, off = order(mask=box(12, 12, 24, 24)), {}
    left = np.s_[:, :8]  # a cell is 12 pixels wide here; beside the box the enlargement mixes two of them
    for tone in ("restore", "none"):
        (drawn,) = inpaint.draw([request], DrawOptions(tone=tone, solver=solver, is_parity=True))
        off[tone] = np.abs(drawn.image[left].astype(float) - STEEL).mean()
        assert drawn.image[16:32, 16:20].mean() < 110, "what is in the box is drawn"
    assert off["none"] > 60
    assert off["restore"] < 3


def test_parity_and_pasting_a_change_exclude_each_other():
    with pytest.raises(ArgumentError, match="paste: expected drawn with parity"):
        DrawOptions(paste="change", is_parity=True)
    with pytest.raises(ArgumentError, match="paste: expected one of drawn, change"):
        DrawOptions(paste="glue")


def test_images_and_masks_on_a_device_are_drawn_on_as_those_of_the_host(either, monkeypatch):
    monkeypatch.setattr(device_arrays, "_load_driver", FakeDriver)
    plain = order(3)
    far = order(3, image=FakeCudaArray(plain.image), mask=FakeCudaArray(plain.mask))
    same(either.draw([far])[0], either.draw([plain])[0])
    monkeypatch.setattr(device_arrays, "_load_driver", lambda: FakeDriver(fail="cuMemcpyDtoH"))
    with pytest.raises(DeviceError, match="cuMemcpyDtoH"):
        either.draw([far])
    monkeypatch.setattr(device_arrays, "_load_driver", FakeDriver)
    with pytest.raises(ArgumentError, match="mask: expected bool"):
        either.draw([order(3, mask=FakeCudaArray(plain.mask.astype(np.uint8)), image=plain.image)])

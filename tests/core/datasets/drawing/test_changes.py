"""Masks of what a drawing changes."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from flawscope.datasets.drawing.changes import keep_changes

seeds = st.integers(0, 2**32 - 1)
sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))


@given(
    seed=seeds,
    size=sizes,
    level=st.integers(1, 60),
    spread=st.integers(0, 80),
    share=st.floats(0, 1),
    edge=st.booleans(),
)
@settings(max_examples=300, deadline=None)
def test_the_mask_is_what_changed_and_what_it_encloses(seed, size, level, spread, share, edge):
    chance = np.random.default_rng(seed)
    image = chance.integers(0, 256, (*size, 3)).astype(np.uint8)
    drawn = np.clip(image + chance.integers(-spread, spread + 1, image.shape), 0, 255).astype(np.uint8)
    region, fringe = chance.random(size) < share, chance.random(size) < 0.5 if edge else None
    kept, mask = keep_changes(image, drawn, region, level, fringe)
    assert np.array_equal(kept[~mask], image[~mask])
    assert np.array_equal(kept[mask], drawn[mask])
    assert not (mask & ~region).any()
    strong = (np.abs(drawn.astype(int) - image).max(axis=2) >= level) & region
    inner = strong if fringe is None else strong & ~fringe
    assert not (inner & ~mask).any()
    assert mask.any() <= strong.any(), "empty where nothing changes enough"


def test_a_hole_in_a_change_belongs_to_it_and_a_bay_does_not():
    image = np.full((20, 20, 3), 100, np.uint8)
    drawn = image.copy()
    drawn[4:16, 4:16] = 160
    drawn[8:12, 8:12] = 100  # a hole
    drawn[4:9, 4:9] = 100  # a bay, from a corner, that does not reach it
    drawn[8, 8] = 160
    everywhere = np.ones((20, 20), np.bool_)
    kept, mask = keep_changes(image, drawn, everywhere, 5)
    assert mask[9:12, 9:12].all()
    assert not mask[4:8, 4:8].any()
    assert np.array_equal(kept, drawn)
    assert not keep_changes(image, drawn, everywhere & (drawn[..., 0] == 160), 5)[1][10, 10]


def test_grain_around_a_defect_is_none_and_its_shadow_is():
    chance = np.random.default_rng(0)
    image = np.full((40, 40, 3), 100, np.uint8)
    defect, shadow = np.zeros((40, 40), np.bool_), np.zeros((40, 40), np.bool_)
    defect[12:20, 12:20] = shadow[20:26, 12:20] = True
    region = np.zeros((40, 40), np.bool_)
    region[6:30, 6:30] = True
    drawn = image.astype(np.int16) + np.where(region, chance.choice([-8, 8], (40, 40)), 0)[..., None]
    drawn[defect] -= 50
    drawn[shadow] -= 20
    _, mask = keep_changes(image, drawn.astype(np.uint8), region, 6, region & ~defect)
    _, without = keep_changes(image, drawn.astype(np.uint8), region, 6)
    assert mask[defect].all()
    assert mask[shadow].mean() > 0.9
    grain = region & ~defect & ~shadow
    assert mask[grain].mean() < 0.5
    assert without[grain].all()

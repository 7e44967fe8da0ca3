"""Which drawings are kept: limits that were typed, no filter, and the best of several."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest
import safetensors.torch
from drawn_folders import lines_of, record_of
from published_weights import features_state, heads_state
from tiny_dataset import CATEGORY
from tiny_synth_bundle import write_tiny_synth

from flawscope.cli import run
from flawscope.errors import ArgumentError
from flawscope.files import sha256_file
from flawscope.imaging.crops import cut_image, cut_mask
from flawscope.imaging.images import read_image
from flawscope.imaging.masks import read_mask
from flawscope.runtime.synthesis import (
    DrawOptions,
    GenerateSettings,
    QualityLimits,
    generate_images,
    read_generated,
    redraw,
)
from flawscope.runtime.synthesis.generated_set import RecordedLimits, RecordedOptions
from flawscope.runtime.synthesis.masked_lpips import MaskedLpips


def test_limits_are_those_that_were_typed_and_are_in_every_line(arguments, tmp_path):
    assert run([*arguments, "--limit", "mask_px=4000", "--limit", "seam=0.5", "--out", str(tmp_path / "out")]) == 1
    for line in lines_of(tmp_path / "out"):
        assert line.options.limits == RecordedLimits(mask_px=4000, seam=0.5, smooth=QualityLimits().smooth)
        assert "empty-mask" in line.verdict.reasons


def test_a_record_from_before_a_limit_lets_everything_pass_it():
    old = msgspec.to_builtins(RecordedOptions.of(DrawOptions()))
    assert old["limits"].pop("smooth") == QualityLimits().smooth > 0
    assert msgspec.convert(old, RecordedOptions).limits.smooth == 0


def test_without_the_filter_every_image_is_kept_and_its_verdict_too(arguments, place, tiny_root, tmp_path, capsys):
    strict = ["--limit", "mask_px=4000"]
    assert run([*arguments, *strict, "--keep-all", "--out", str(tmp_path / "all")]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "filter: nothing was filtered (--keep-all)" in out
    assert "in all: 7 accepted; 7 of 7 do not pass the filter: empty-mask 7, full-mask 1" in out
    lines, record = lines_of(tmp_path / "all"), record_of(tmp_path / "all")
    assert record.settings.keep_all
    assert [count.accepted for count in record.defects.values()] == [4, 3]
    assert (record.summary.accepted, record.summary.counts["empty-mask"]) == (0, 7)
    assert record.seconds_per_accepted == pytest.approx(record.seconds / 7)
    assert run([*arguments, *strict, "--out", str(tmp_path / "filtered")]) == 1
    for kept, rejected in zip(lines, lines_of(tmp_path / "filtered"), strict=True):
        assert kept.accepted
        assert not rejected.accepted
        assert kept.verdict == rejected.verdict
        for one, other in (
            (kept.image, rejected.image),
            (kept.mask, rejected.mask),
            (kept.box_mask, rejected.box_mask),
        ):
            assert one.sha256 == other.sha256
    assert not list((tmp_path / "all").rglob("rejected*"))
    again = redraw(place / "drawer.flaw", lines[3], tiny_root / CATEGORY)
    assert np.array_equal(again.image, read_image(tmp_path / "all" / lines[3].image.place))
    assert again.verdict == lines[3].verdict
    data = ["--data", str(tiny_root), "--category", CATEGORY]
    for labels in ("precise", "box"):
        command = ["synth", "dataset", str(tmp_path / "all"), *data, "--labels", labels]
        assert run([*command, "--out", str(tmp_path / labels)]) == 0
        assert len(list((tmp_path / labels).rglob("train/*/synth_*.png"))) == 7


def test_what_is_no_image_is_not_kept_without_the_filter_either(arguments, tmp_path):
    write_tiny_synth(tmp_path / "broken.flaw", gain=float("nan"))
    arguments[2] = str(tmp_path / "broken.flaw")
    assert run([*arguments, "--keep-all", "--out", str(tmp_path / "out")]) == 1
    assert not any(line.accepted for line in lines_of(tmp_path / "out"))


@pytest.mark.parametrize("batch", ["1", "3", "4"])
def test_the_best_of_several_is_the_one_furthest_from_the_limits_whatever_the_batch(arguments, tmp_path, batch, capsys):
    options = ["--best-of", "3", "--limit", "full=0.49", "--seed", "5", "--batch", batch]
    assert run([*arguments, *options, "--out", str(tmp_path / "out")]) in (0, 1)
    lines = lines_of(tmp_path / "out")
    assert len(lines) == 21
    assert sorted(line.seed for line in lines) == list(range(5, 26))
    assert {line.verdict.is_accepted for line in lines} == {True, False}, "or the limit decides nothing"
    accepted = {line.number: line for line in lines if line.accepted}
    for number in range(7):
        candidates = sorted((line for line in lines if line.number == number), key=lambda line: line.round)
        assert [line.seed for line in candidates] == [5 + number + 7 * take for take in range(3)]
        assert all(line.score == line.verdict.margin for line in candidates)
        best = max(candidates, key=lambda line: line.score)
        assert (number in accepted) == best.verdict.is_accepted
        if number in accepted:
            assert accepted[number] == best
    assert record_of(tmp_path / "out").settings.best_of == 3
    assert f"; {sum(not line.verdict.is_accepted for line in lines)} of 21 do not pass" in capsys.readouterr().out
    assert len(read_generated(tmp_path / "out")) == 21


def test_the_best_of_several_without_the_filter_is_kept_for_every_record(arguments, tmp_path):
    options = ["--best-of", "2", "--limit", "mask_px=4000", "--keep-all"]
    assert run([*arguments, *options, "--out", str(tmp_path / "out")]) == 0
    lines = lines_of(tmp_path / "out")
    assert sorted(line.number for line in lines if line.accepted) == list(range(7))
    assert all(line.score < 0 for line in lines)


def test_the_best_by_lpips_is_the_accepted_one_that_differs_most_in_its_box(
    arguments, drawer, sites, place, tiny_root, tmp_path
):
    features, heads = tmp_path / "alexnet.safetensors", tmp_path / "heads.safetensors"
    safetensors.torch.save_file(features_state("alexnet"), features)
    safetensors.torch.save_file(heads_state("alexnet"), heads)
    options = ["--best-of", "3", "--limit", "full=0.49", "--seed", "5", "--best-by", "lpips", "--num", "4"]
    weights = ["--lpips", str(features), "--lpips-heads", str(heads)]
    assert run([*arguments, *options, *weights, "--out", str(tmp_path / "out")]) in (0, 1)
    assert run([*arguments, *options, *weights, "--batch", "1", "--out", str(tmp_path / "single")]) in (0, 1)
    lines = lines_of(tmp_path / "out")
    distance = MaskedLpips.load(features, heads)
    for number in range(4):
        candidates = [line for line in lines if line.number == number]
        assert len(candidates) == 3
        for line in candidates:
            crop = msgspec.structs.replace(line.crop, size=(64, 64))
            drawn, good = (
                read_image(path) for path in (tmp_path / "out" / line.image.place, tiny_root / CATEGORY / line.good)
            )
            box = read_mask(tmp_path / "out" / line.box_mask.place)
            expected = distance.measure(cut_image(drawn, crop), cut_image(good, crop), cut_mask(box, crop))
            assert line.score == expected > 0
        passed = [line for line in candidates if line.verdict.is_accepted]
        kept = [line for line in candidates if line.accepted]
        assert kept == ([max(passed, key=lambda line: line.score)] if passed else [])
    kept, single = ([line.seed for line in lines_of(tmp_path / name) if line.accepted] for name in ("out", "single"))
    assert sorted(kept) == sorted(single)
    assert record_of(tmp_path / "out").lpips == {path.name: sha256_file(path) for path in (features, heads)}
    for settings, of in ((GenerateSettings(best_of=2, best_by="lpips"), None), (GenerateSettings(), distance)):
        with pytest.raises(ArgumentError, match=r"best_by: expected .*weights of LPIPS with"):
            generate_images(drawer, sites, tmp_path / "none", settings, distance=of)

"""Ensembles on the line: an exact sum that rises with every member; members stay what they are, faults stay faults."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest
from file_contents import files_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import golden_image, tiny_manifest, tiny_sources, tiny_thresholds
from tiny_ensemble import (
    GOLDEN_SCORE,
    ensemble_sources,
    flat_image,
    member_of,
    scaled_graph,
    write_member,
    write_tiny_ensemble,
)

from flawscope import cli
from flawscope.bundle import EnsembleHead, EnsembleMember, Golden, open_bundle, pack_bundle, write_bundle
from flawscope.errors import ArgumentError, BackendError, BundleError, DeviceError
from flawscope.imaging.images import Preprocessing
from flawscope.imaging.tiles import Tiling
from flawscope.runtime import Inspector
from flawscope.runtime.scorers.ensemble_scorer import EnsembleScorer, sum_scale, weighted_sum

# weight · (value - center) / spread of the golden image: 2 · (200 - 100) / 64 and 1 · (800 - 400) / 256.
GOLDEN_SUM = 3.125 + 1.5625
finite = st.floats(-1e6, 1e6, allow_nan=False, width=32)


@pytest.fixture
def members(tmp_path: Path) -> dict[Path, EnsembleMember]:
    """Two bundles with their entries: brightness, and four times the brightness."""
    one, four = write_member(tmp_path / "one.flaw", 1.0), write_member(tmp_path / "four.flaw", 4.0)
    return {one: member_of(one, 2.0, 100.0, 64.0), four: member_of(four, 1.0, 400.0, 256.0)}


@pytest.fixture
def ensemble(tmp_path: Path, members: dict[Path, EnsembleMember]) -> Path:
    path = tmp_path / "both.flaw"
    write_tiny_ensemble(path, members, GOLDEN_SUM)
    return path


# --- the sum


def test_the_sum_of_hand_made_maps_is_exact() -> None:
    first = np.array([[[1.0, 3.0], [5.0, 9.0]]], np.float32)
    second = np.array([[[100.0, 50.0], [0.0, -50.0]]], np.float32)
    # 2 · (a - 1) / 4 + 0.5 · (b - 50) / 25
    total = weighted_sum([first, second], [(2.0, 1.0, 4.0), (0.5, 50.0, 25.0)])
    np.testing.assert_array_equal(total, np.array([[[1.0, 1.0], [1.0, 2.0]]], np.float32))
    assert total.dtype == np.float32
    assert first[0, 1, 1] == 9.0, "the members' arrays are theirs"


def test_the_sum_of_scores_is_exact_and_has_no_bounds() -> None:
    total = weighted_sum([np.array([0.0, 1e30, -1e30], np.float32)], [(1.0, 0.0, 0.5)])
    np.testing.assert_array_equal(total, np.array([0.0, 2e30, -2e30], np.float32))


@given(st.lists(finite, min_size=2, max_size=12), finite, st.floats(0.0, 1e3, width=32), st.integers(0, 11))
def test_no_value_can_rise_and_the_sum_fall(values: list[float], center: float, more: float, place: int) -> None:
    first = np.array(values, np.float32)
    second = first[::-1].copy()
    terms = [(0.7, center, 3.0), (1.9, -center, 0.01)]
    raised = first.copy()
    raised[place % len(values)] += np.float32(more)
    assert (weighted_sum([raised, second], terms) >= weighted_sum([first, second], terms)).all()


@given(st.lists(finite, min_size=2, max_size=30), st.floats(-10, 10), st.floats(0.01, 100))
def test_one_member_orders_values_as_they_are(values: list[float], center: float, spread: float) -> None:
    alone = np.array(sorted(values), np.float32)
    assert (np.diff(weighted_sum([alone], [(1.0, center, spread)])) >= 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_so(value: float) -> None:
    total = weighted_sum([np.array([value, 1.0], np.float32), np.ones(2, np.float32)], [(1.0, 0.0, 1.0)] * 2)
    assert not np.isfinite(total[0])
    assert total[1] == 2.0
    opposite = weighted_sum([np.array([np.inf], np.float32), np.array([-np.inf], np.float32)], [(1.0, 0.0, 1.0)] * 2)
    assert np.isnan(opposite[0])


def test_maps_of_different_shapes_are_refused() -> None:
    with pytest.raises(BundleError, match=r"one shape from every member, got \[1, 2, 2\], \[1, 4, 4\]"):
        weighted_sum([np.zeros((1, 2, 2), np.float32), np.zeros((1, 4, 4), np.float32)], [(1.0, 0.0, 1.0)] * 2)


def test_the_size_of_a_sum_is_that_of_its_terms() -> None:
    first = EnsembleMember("a", "0", "padim", 2.0, 9.0, 3.0, -8.0, 2.0)
    second = EnsembleMember("b", "1", "padim", 1.0, 0.0, 5.0, 1.0, 1.0)
    # maps: 2 · (9/3 + 1) + (0 + 1); scores: 2 · (8/2 + 1) + (1 + 1)
    assert sum_scale(EnsembleHead((first, second), 9)) == 12.0
    assert sum_scale(EnsembleHead((first,), 9)) == 10.0


# --- on the line


def test_an_ensemble_gives_the_weighted_sum_of_its_members(ensemble: Path) -> None:
    with Inspector.load(ensemble, "cpu") as inspector:
        maps, scores = inspector.infer(np.stack([golden_image(), flat_image(100)]))
        result = inspector(golden_image())
    assert scores.tolist() == [GOLDEN_SUM, 0.0]
    assert maps.shape == (2, 16, 16)
    # 90 around the square: 2 · (90 - 100) / 64 + (360 - 400) / 256
    assert maps[0, 0, 0] == -0.3125 - 0.15625
    assert (maps[1] == 0.0).all()
    assert (result.score, result.decision) == (GOLDEN_SUM, "fault")
    assert result.reason is not None
    assert "calibrate" in result.reason


def test_an_ensemble_decides_with_thresholds_of_its_own(tmp_path: Path, members: dict[Path, EnsembleMember]) -> None:
    write_tiny_ensemble(tmp_path / "both.flaw", members, GOLDEN_SUM, thresholds=tiny_thresholds(1.0))
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        bad, good = inspector([golden_image(), flat_image(100)])
    assert (bad.decision, good.decision) == ("reject", "accept")
    (box,) = bad.boxes
    assert (box.x, box.y, box.width, box.height) == (6, 4, 5, 5)


def test_a_packed_ensemble_gives_the_same_bits(ensemble: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed.flaw"
    with open_bundle(ensemble) as bundle:
        pack_bundle(bundle, packed)
    image = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    with Inspector.load(ensemble, "cpu") as folder, Inspector.load(packed, "cpu") as zipped:
        for from_folder, from_zip in zip(folder.infer(image), zipped.infer(image), strict=True):
            assert from_folder.tobytes() == from_zip.tobytes()


def test_a_tiled_ensemble_takes_the_largest_sum_of_a_tile(tmp_path: Path) -> None:
    tiling = Tiling((16, 16), 0.0)
    one, four = (
        write_member(tmp_path / f"{name}.flaw", factor, tiling=tiling) for name, factor in (("a", 1), ("b", 4))
    )
    entries = {one: member_of(one, 1.0, 100.0, 50.0), four: member_of(four, 1.0, 400.0, 200.0)}
    write_tiny_ensemble(tmp_path / "both.flaw", entries, 4.0, tiling=tiling)
    image = np.concatenate([flat_image(50), golden_image()], axis=1)
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        result = inspector(image)
    assert result.score == 4.0
    assert result.anomaly_map is not None
    assert result.anomaly_map.shape == (16, 32)
    assert result.anomaly_map[0, 0] == pytest.approx(-2.0)


def test_a_member_that_gives_nan_makes_a_fault(tmp_path: Path, members: dict[Path, EnsembleMember]) -> None:
    write_tiny_ensemble(tmp_path / "both.flaw", members, GOLDEN_SUM, thresholds=tiny_thresholds(1e9))
    with Inspector.load(tmp_path / "both.flaw", "cpu") as inspector:
        session = inspector.scorer
        assert isinstance(session, EnsembleScorer)
        member = session.members["four"]
        real = member.score

        def broken(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            maps, scores = real(images)
            return maps, np.full_like(scores, np.nan)

        member.score = broken  # type: ignore[method-assign]
        result = inspector(golden_image())
    assert (result.decision, result.score) == ("fault", None)


def test_a_device_that_fails_in_a_member_is_a_fault_and_all_are_opened_again(
    ensemble: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Inspector.load(ensemble, "cpu") as inspector:
        session = inspector.scorer
        assert isinstance(session, EnsembleScorer)

        def lost(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            raise DeviceError("backend cpu: the device failed: broken")

        monkeypatch.setattr(session.members["four"], "score", lost)
        fault = inspector(golden_image())
        assert (fault.decision, fault.reason) == ("fault", "backend cpu: the device failed: broken")
        assert session.members == {}
        assert inspector(golden_image()).score == GOLDEN_SUM
        assert inspector.scorer is not session


def test_where_one_member_cannot_be_opened_the_others_are_closed() -> None:
    closed = []

    class Member:
        def __init__(self, name: str) -> None:
            self.name = name

        def close(self) -> None:
            closed.append(self.name)

    def open_member(member: EnsembleMember) -> Member:
        if member.name == "c":
            raise BackendError("no room")
        return Member(member.name)

    entries = tuple(EnsembleMember(name, name, "padim", 1.0, 0.0, 1.0, 0.0, 1.0) for name in "abc")
    with pytest.raises(BackendError, match="no room"):
        EnsembleScorer(EnsembleHead(entries, 9), "members", open_member)  # type: ignore[arg-type]
    assert closed == ["a", "b"]


def test_scores_that_do_not_come_again_are_refused(tmp_path: Path, members: dict[Path, EnsembleMember]) -> None:
    # The terms are 2 · (100/64 + 1) + (400/256 + 1) = 7.7 large, so 0.0077 is allowed, whatever is left of the sum.
    write_tiny_ensemble(tmp_path / "near.flaw", members, GOLDEN_SUM + 0.007)
    with Inspector.load(tmp_path / "near.flaw", "cpu"):
        pass
    write_tiny_ensemble(tmp_path / "far.flaw", members, GOLDEN_SUM + 0.009)
    with pytest.raises(BundleError, match=r"far.flaw: golden image members/one/golden/0.png: expected score 4\.6965"):
        Inspector.load(tmp_path / "far.flaw", "cpu")


def test_a_member_that_computes_something_else_is_named(tmp_path: Path) -> None:
    odd = write_member(tmp_path / "odd.flaw", 1.0, golden=(Golden("golden/0.png", 250.0, 250.0),))
    write_tiny_ensemble(tmp_path / "e.flaw", {odd: member_of(odd, 1.0, 0.0, 1.0)}, GOLDEN_SCORE)
    with pytest.raises(BundleError, match=r"e.flaw/members/odd: golden image golden/0.png: expected score 250"):
        Inspector.load(tmp_path / "e.flaw", "cpu")


def test_paths_and_precisions_that_an_ensemble_lacks_are_refused(ensemble: Path) -> None:
    with pytest.raises(BundleError, match="path kernel: expected a method with a bank, got ensemble"):
        Inspector.load(ensemble, "cpu", "kernel")
    with pytest.raises(ArgumentError, match=r"precision: expected one the bundle has \(fp32\), got 'int8'"):
        Inspector.load(ensemble, "cpu", precision="int8")
    with Inspector.load(ensemble, "cpu", "graph") as inspector:
        assert inspector.path == "graph"
        with pytest.raises(ArgumentError, match="expected a bundle that reconstructs images as a whole"):
            inspector.check_reconstructs()
    for path in ("auto", "members"):
        with Inspector.load(ensemble, "cpu", path) as inspector:
            assert inspector.path == "members"
    with pytest.raises(BundleError, match="path members: expected an ensemble, got patchcore"):
        Inspector.load(ensemble / "members" / "one", "cpu", "members")


def test_bench_measures_an_ensemble_also_in_a_new_process(
    ensemble: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "bench.json"
    assert cli.run(["bench", str(ensemble), "--seconds", "0.1", "--json", str(figures)]) == 0
    figures_read = json.loads(figures.read_text())
    assert (figures_read["method"], figures_read["path"]) == ("ensemble", "members")
    assert figures_read["cold_start"]["median_ms"]["first_decision"] > 0
    capsys.readouterr()


# --- what is read back


def test_a_member_is_a_whole_bundle_in_its_folder(ensemble: Path, members: dict[Path, EnsembleMember]) -> None:
    for path in members:
        assert files_of(ensemble / "members" / path.stem) == files_of(path)
        with open_bundle(ensemble / "members" / path.stem) as alone, open_bundle(ensemble) as bundle:
            assert bundle.member(path.stem).manifest == alone.manifest
    with open_bundle(ensemble) as bundle, pytest.raises(ArgumentError, match=r"\['four', 'one'\]\), got 'two'"):
        bundle.member("two")
    alone = next(iter(members))
    with open_bundle(alone) as bundle, pytest.raises(ArgumentError, match=r"member of this bundle \(\[\]\), got 'one'"):
        bundle.member("one")


@pytest.mark.parametrize("name", ["score.onnx", "manifest.json", "images.json", "golden/0.png"])
def test_a_changed_byte_of_a_member_is_found(ensemble: Path, name: str) -> None:
    path = ensemble / "members" / "four" / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BundleError, match=rf"members/four/{name}: expected SHA-256 .*: the file was changed"):
        open_bundle(ensemble)
    assert cli.run(["bundle", "verify", str(ensemble)]) == 1


def test_a_file_that_only_one_of_both_manifests_lists_is_refused(
    tmp_path: Path, members: dict[Path, EnsembleMember]
) -> None:
    more = {"members/four/other.onnx": b"graph"}
    write_tiny_ensemble(tmp_path / "more.flaw", members, sources=dict(more))
    with pytest.raises(BundleError, match=r"members/four: expected the whole bundle .*, got other files"):
        open_bundle(tmp_path / "more.flaw")
    fewer = ensemble_sources(list(members))
    del fewer["members/one/bank.safetensors"]
    manifest = write_tiny_ensemble(tmp_path / "all.flaw", members)
    write_bundle(tmp_path / "fewer.flaw", manifest, fewer)
    with pytest.raises(BundleError, match=r"members/one: expected the whole bundle"):
        open_bundle(tmp_path / "fewer.flaw")


def test_a_file_of_a_member_that_was_replaced_and_listed_anew_is_refused(
    tmp_path: Path, members: dict[Path, EnsembleMember]
) -> None:
    path = tmp_path / "both.flaw"
    write_tiny_ensemble(path, members, sources={"members/four/score.onnx": scaled_graph(0.5)})
    with pytest.raises(BundleError, match=r"members/four: expected the whole bundle"):
        open_bundle(path)


def test_another_bundle_in_a_members_folder_is_refused(tmp_path: Path, members: dict[Path, EnsembleMember]) -> None:
    other = write_member(tmp_path / "other" / "four.flaw", 8.0)
    stated = [*members.values()][1]
    write_tiny_ensemble(tmp_path / "both.flaw", {other: stated})
    with pytest.raises(BundleError, match=rf"members/four: expected the whole bundle {stated.digest[:12]}…"):
        open_bundle(tmp_path / "both.flaw")


def test_a_member_without_a_manifest_is_refused(tmp_path: Path, members: dict[Path, EnsembleMember]) -> None:
    sources = ensemble_sources(list(members))
    del sources["members/one/manifest.json"]
    write_bundle(tmp_path / "b.flaw", write_tiny_ensemble(tmp_path / "a.flaw", members), sources)
    with pytest.raises(BundleError, match=r"names members/one/manifest.json but does not list it"):
        open_bundle(tmp_path / "b.flaw")


@pytest.mark.parametrize(
    "changes",
    [
        {"input": Preprocessing(resize=(32, 32))},
        {"tiling": Tiling((16, 16), 0.0)},
        {"max_batch": 5},
    ],
)
def test_a_member_that_does_not_fit_the_ensemble_is_refused(
    tmp_path: Path, members: dict[Path, EnsembleMember], changes: dict[str, object]
) -> None:
    write_tiny_ensemble(tmp_path / "both.flaw", members, **changes)
    with pytest.raises(BundleError, match=r"members/one: expected a detector with method, input, tiles and largest"):
        open_bundle(tmp_path / "both.flaw")


def test_a_wrong_method_and_an_ensemble_of_ensembles_are_refused(tmp_path: Path, ensemble: Path) -> None:
    with open_bundle(ensemble) as bundle:
        inner = bundle.manifest
    for method in ("ensemble", "padim"):
        entry = EnsembleMember("both", inner.digest, method, 1.0, 0.0, 1.0, 0.0, 1.0)
        write_tiny_ensemble(tmp_path / f"{method}.flaw", {ensemble: entry})
        with pytest.raises(BundleError, match=r"members/both: expected a detector with method"):
            open_bundle(tmp_path / f"{method}.flaw")


@pytest.mark.parametrize(
    ("changes", "files"),
    [
        ({"graphs": tiny_manifest().graphs}, {"score.onnx": tiny_sources()["score.onnx"]}),
        ({"bank": "bank.safetensors"}, {"bank.safetensors": tiny_sources()["bank.safetensors"]}),
    ],
)
def test_an_ensemble_has_no_graph_and_no_bank_of_its_own(
    tmp_path: Path,
    members: dict[Path, EnsembleMember],
    changes: dict[str, object],
    files: dict[str, Path | bytes],
) -> None:
    write_tiny_ensemble(tmp_path / "both.flaw", members, sources=files, **changes)
    with pytest.raises(BundleError, match="expected an ensemble without graphs and bank of its own"):
        open_bundle(tmp_path / "both.flaw")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "../up"}, "member name: expected letters, digits"),
        ({"name": ""}, "member name: expected letters, digits"),
        ({"name": ".hidden"}, "member name: expected letters, digits"),
        ({"weight": 0.0}, "weight of a: expected a number above 0, got 0"),
        ({"weight": -1.0}, "weight of a: expected a number above 0, got -1"),
        ({"weight": float("nan")}, "weight of a: expected a number above 0, got nan"),
        ({"map_spread": 0.0}, "maps of a: expected a finite center and a spread above 0, got 3 and 0"),
        ({"score_spread": -2.0}, "scores of a: expected a finite center and a spread above 0, got 5 and -2"),
        ({"score_center": float("inf")}, "scores of a: expected a finite center"),
        ({"weight": 1e-32}, "maps of a: expected a weight of ordinary size for a spread of 4, got 1e-32"),
        ({"map_spread": 1e-40}, "maps of a: expected a weight of ordinary size"),
    ],
)
def test_an_entry_that_would_not_rise_with_its_member_is_refused(changes: dict[str, object], message: str) -> None:
    entry = EnsembleMember("a", "0" * 64, "padim", 1.0, 3.0, 4.0, 5.0, 6.0)
    fields = {**msgspec.to_builtins(entry), **changes}
    with pytest.raises(ArgumentError, match=message):
        EnsembleMember(**fields)
    if all(value == value and abs(value) != float("inf") for value in changes.values() if isinstance(value, float)):
        with pytest.raises(msgspec.ValidationError, match=message):
            msgspec.json.decode(json.dumps(fields), type=EnsembleMember)


@pytest.mark.parametrize("names", [(), ("a", "b", "A")])
def test_members_have_names_of_their_own(names: tuple[str, ...]) -> None:
    entries = tuple(EnsembleMember(name, "0", "padim", 1.0, 0.0, 1.0, 0.0, 1.0) for name in names)
    with pytest.raises(ArgumentError, match="members: expected one or more, each with a name of its own"):
        EnsembleHead(entries, 9)


def test_info_names_the_members(ensemble: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["bundle", "info", str(ensemble)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    with open_bundle(ensemble / "members" / "one") as one:
        digest = one.manifest.digest
    assert "method ensemble, category tiny" in lines
    assert (
        f"member one (patchcore, {digest[:12]}): weight 2, map center 100 spread 64, score center 100 spread 64"
        in lines
    )
    assert "measured centers and spreads on 20 normal images that no member was trained on" in lines

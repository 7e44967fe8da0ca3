"""Settings from files and presets, and their order of precedence."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import ODD

from flawscope.config import (
    EmbeddingConfig,
    InpaintingConfig,
    PadimConfig,
    PatchcoreConfig,
    build_config,
    standardization,
)
from flawscope.errors import ArgumentError
from flawscope.training.loop.schedule import batches_in_all
from flawscope.training.settings import preset_names, read_settings


def test_the_presets_are_the_seeds() -> None:
    assert preset_names() == (
        "anogen-seed",
        "anomalydino",
        "dbad-seed",
        "ddad-paper",
        "defectfill",
        "diad-seed",
        "dsad",
        "lafite-paper",
        "mvpdiff-seed",
        "padim-seed",
        "patchcore-seed",
        "stfpm-seed",
    )


def test_the_padim_preset_fixes_every_value_of_the_seed() -> None:
    config, unused = build_config("padim", read_settings("padim-seed"))
    assert isinstance(config, PadimConfig)
    assert unused == ()
    assert (config.features.backbone, config.features.stages, config.channels) == ("resnet18.tv_in1k", (1, 2, 3), 100)
    assert (config.input.resize, config.input.crop, config.maps.sigma) == ((256, 256), (224, 224), 4.0)
    assert (config.regularization, config.seed, config.split.held_out) == (0.01, 3, 0.0)


def test_the_patchcore_preset_fixes_every_value_of_the_seed() -> None:
    config, unused = build_config("patchcore", read_settings("patchcore-seed"))
    assert isinstance(config, PatchcoreConfig)
    assert unused == ()
    assert (config.features.backbone, config.features.stages, config.coreset) == ("resnet18.tv_in1k", (2, 3), 0.1)
    assert (config.neighbors, config.reweight, config.patches.upsample) == (9, "seed", "nearest")
    assert config.input.crop is None  # a crop to the resized size is none


def test_the_anomalydino_preset_has_the_papers_bank_and_score() -> None:
    config, unused = build_config("patchcore", read_settings("anomalydino"))
    assert isinstance(config, PatchcoreConfig)
    assert unused == ()
    assert (config.features.backbone, config.features.stages) == ("vit_small_patch14_dinov2.lvd142m", (11,))
    assert [side % 14 for side in config.input.resize] == [0, 0]
    bank = config.bank
    assert (bank.metric, bank.top_share, bank.views, bank.pool, config.reweights) == (
        "cosine",
        0.01,
        "rotations",
        False,
        False,
    )
    assert (config.coreset, config.maps.sigma, standardization(config)) == (1.0, 4.0, "none")


def test_the_anogen_preset_takes_the_steps_of_the_seed_at_its_rate() -> None:
    config, unused = build_config("embedding", read_settings("anogen-seed"))
    assert isinstance(config, EmbeddingConfig)
    assert unused == ()
    batches = batches_in_all(config.loop, 3 * config.adaptation.repeats // config.loop.batch_size)  # three images
    assert (batches, config.loop.max_steps, config.adaptation.rate(config.loop)) == (6100, 6100, pytest.approx(0.02))
    assert (config.input.resize, config.adaptation.crop_defects, config.vectors) == ((256, 256), False, 1)
    assert (config.init_word, config.placeholder, config.mask_loss) == ("defect", "*", "mean")
    assert (config.adaptation.flip, config.loop.ema, config.loop.clip_norm, config.seed) == (0.5, 0.0, 0.0, 23)


def test_the_defectfill_preset_has_the_losses_of_the_paper_and_their_weights() -> None:
    config, unused = build_config("inpainting", read_settings("defectfill"))
    assert isinstance(config, InpaintingConfig)
    assert unused == ()
    weights = (config.defect_loss, config.object_loss, config.object_ground, config.attention_loss)
    assert weights == (0.5, 0.2, 0.3, 0.05)
    # Of a single support image as of many: the steps end before the epoch does.
    assert batches_in_all(config.loop, config.adaptation.repeats // config.loop.batch_size) <= 2000
    assert (config.loop.max_steps, config.learn_text, config.snr_gamma) == (2000, "vectors", 0.0)


def test_the_mvpdiff_preset_fixes_every_value_of_the_seed() -> None:
    config, unused = build_config("inpainting", read_settings("mvpdiff-seed"))
    assert isinstance(config, InpaintingConfig)
    assert unused == ()
    assert config.learn_text == "frozen"
    assert (config.loop.epochs, config.loop.batch_size, config.loop.accumulate, config.adaptation.repeats) == (
        1000,
        6,
        4,
        1,
    )
    assert config.adaptation.rate(config.loop) == pytest.approx(2.4e-6)
    assert (config.input.resize, config.adaptation.crop_defects, config.adaptation.flip, config.flip_vertical) == (
        (512, 512),
        False,
        0.0,
        0.0,
    )
    assert (config.adapt, config.rank, config.alpha, config.snr_gamma) == ("lora", 4, 4.0, 10.0)
    assert (
        config.denoising.betas,
        config.adaptation.epsilon,
        config.denoising.weight_decay,
        config.loop.clip_norm,
    ) == ((0.9, 0.999), 1e-8, 0.01, 1.0)
    assert (config.denoising.optimizer, config.loop.max_steps, config.denoising.gradient_checkpointing) == (
        "adamw",
        None,
        False,
    )
    assert (config.loop.mixed_precision, config.loop.schedule, config.loop.preview_every, config.seed) == (
        "fp16",
        "constant",
        100,
        0,
    )


@pytest.mark.parametrize("name", preset_names())
def test_presets_fit_only_their_method(name: str) -> None:
    short = name.split("-")[0]
    method = {
        "anomalydino": "patchcore",
        "dbad": "ddad",
        "diad": "dsad",
        "anogen": "embedding",
        "mvpdiff": "inpainting",
        "defectfill": "inpainting",
    }.get(short, short)
    build_config(method, read_settings(name))
    other = "padim" if method != "padim" else "patchcore"
    with pytest.raises(ArgumentError, match=r"is no setting of|method: expected"):
        build_config(other, read_settings(name))


def test_a_file_is_read_and_later_layers_win(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("resize: [128, 96]\nseed: 5\n# a comment\nchannels: 30\n")
    config, _ = build_config("padim", read_settings(str(path)), {"seed": 6})
    assert isinstance(config, PadimConfig)
    assert (config.input.resize, config.seed, config.channels) == ((128, 96), 6, 30)


def test_an_empty_file_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "empty.yml"
    path.write_text("# nothing\n")
    assert read_settings(str(path)) == {}


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (b"resize: [1, 2\n", r"is no valid YAML: while parsing a flow sequence at line 1, column 9"),
        (b"- a\n- b\n", r"expected KEY: VALUE lines, got list"),
        (b"just text\n", r"expected KEY: VALUE lines, got str"),
        (b"1: 2\n", r"expected KEY: VALUE lines"),
        (b"\xff\xfe\x00", r"expected text in UTF-8"),
        (b"a: !!python/object/apply:os.system ['true']\n", r"line 1: expected plain values, got .* a tag \(!\)"),
    ],
)
def test_a_file_that_is_no_mapping_is_one_sentence(tmp_path: Path, content: bytes, match: str) -> None:
    path = tmp_path / "bad.yml"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=match):
        read_settings(str(path))


@pytest.mark.parametrize("name", ["no-such-preset", "folder", ""])
def test_a_name_that_is_neither_file_nor_preset_lists_the_presets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match=r"expected a YAML file or one of anogen-seed, .*, stfpm-seed"):
        read_settings(name)


WHOLE = b"resize: [128, 96]\nseed: 5\nbackbone_options: {a: 1, b: [1.5, x]}\n"
COLLIDING = ", ".join(f"{number * (2**61 - 1)}: 0" for number in range(2000))
"""Integers whose hashes are equal: a dictionary of n of them takes n squared steps."""


@settings(max_examples=300)
@given(data=odd_bytes(WHOLE))
def test_settings_are_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "odd.yml"
    path.write_bytes(data)

    def read() -> None:
        for method in ("padim", "base"):
            build_config(method, read_settings(str(path)))

    assert_read_or_refused(read)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("a: &x 1\nb: 2", r"line 1: expected plain values, got an anchor"),
        ("a: 1\nb: *x", r"line 2: expected plain values, got an anchor \(&\), an alias"),
        ("a: 1\n\na: 2", r"line 3: expected every name once, got 'a' again"),
        ("s: {a: 1, a: 2}", r"line 1: expected every name once, got 'a' again"),
        (f"a: {{{COLLIDING}}}", r"line 1: expected KEY: VALUE lines, got a key that is no name"),
        ("yes: 1", r"line 1: expected KEY: VALUE lines, got a key that is no name"),
        (f"a: {'[' * 17}{']' * 17}", r"expected at most 16 levels, got more"),
        (f"a: {'[' * 30_000}{']' * 30_000}", r"expected at most 16 levels, got more"),
        ("a: .nan", r"expected finite numbers, got NaN or infinity"),
        ("a: {b: [1, -.inf]}", r"expected finite numbers, got NaN or infinity"),
        (f"a: {'1' * 5000}", r"is no valid YAML: .*4300 digits"),
        ("a: 2020-99-99", r"is no valid YAML: month must be in"),
        ("a: 1 # " + "x" * (1 << 16), r"could not be read: it has more than 65,536 bytes"),
    ],
)
def test_what_settings_do_not_need_is_refused_by_name(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "odd.yml"
    path.write_text(content)
    with pytest.raises(ArgumentError, match=match) as caught:
        read_settings(str(path))
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "mine.yml"
    path.write_text("seed: 5\n", encoding="utf-8-sig")
    assert read_settings(str(path)) == {"seed": 5}


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "odd.yml")
    with pytest.raises(ArgumentError, match="expected a YAML file or one of"):
        read_settings(str(tmp_path / "odd.yml"))

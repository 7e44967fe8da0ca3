"""What an inpainting network learns of the text: vectors for each defect type, the text encoder, and its effect."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from inpainting_runs import run_of
from tiny_base import SIDE, tiny_base, write_tiny_base_run
from tiny_dataset import CATEGORY, DEFECTS

from flawscope.config import InpaintingConfig, build_config
from flawscope.datasets import open_dataset
from flawscope.datasets.defects.support_set import write_support
from flawscope.errors import ArgumentError, RunError
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.imaging.images import read_image
from flawscope.progress import no_progress
from flawscope.runs import DEFECT_EFFECT, TEXT_EFFECT, LearnedDefect, SynthesisRecord
from flawscope.runtime.synthesis import DrawOptions, DrawOrder, Synthesizer
from flawscope.training.run_notes import SMALL_EFFECT, generator_notes
from flawscope.training.synthesis.base_model import SynthesisBase
from flawscope.training.synthesis.generator_run import read_synthesis_run
from flawscope.training.synthesis.generator_training import train_synthesis
from flawscope.training.synthesis.inpainting import InpaintingTask, train_inpainting
from flawscope.training.synthesis.learned_text import DefectTexts, InpaintingNetwork, placed_text, restore_text
from flawscope.training.synthesis.support_examples import SupportExamples, describe, read_support_examples
from flawscope.training.synthesis.text_effect import relative_change

pytestmark = pytest.mark.long

TEXTS = (["a crack", "a long crack"], ["a crack", "a stain"])
"""Of two defect types; they share a text."""


@pytest.fixture(scope="module")
def base() -> SynthesisBase:
    return tiny_base(inpainting=True)


@pytest.fixture(scope="module")
def support_folder(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("support") / "set"
    write_support(open_dataset(tiny_root, CATEGORY), folder, shots=2, split="test")
    return folder


@pytest.fixture(scope="module")
def support(support_folder: Path) -> SupportExamples:
    return read_support_examples(support_folder)


def config(**changes: Any) -> InpaintingConfig:
    plain = {"resize": SIDE, "epochs": 2, "repeats": 2, "batch_size": 4, "learning_rate": 0.01, "preview_every": 9}
    settings = build_config("inpainting", {**plain, **changes})[0]
    assert isinstance(settings, InpaintingConfig)
    return settings


def network_of(base: SynthesisBase, learn: Any, **changes: Any) -> tuple[InpaintingNetwork, DefectTexts]:
    settings = config(learn_text=learn, **changes)
    texts = DefectTexts(base, TEXTS, settings, learn)
    return InpaintingNetwork(settings, base, learn, texts), texts


# ---- Texts and vectors -----------------------------------------------------------------------------------------------


def test_a_text_has_the_placeholder_once_wherever_it_stands() -> None:
    assert placed_text("a crack", "*") == "* a crack"
    assert placed_text("a crack like *", "*") == "a crack like *"
    assert placed_text("a crack*", "*") == "* a crack*"


def test_types_that_share_a_text_share_a_row_unless_each_has_its_vectors(base: SynthesisBase) -> None:
    _, plain = network_of(base, "frozen")
    assert plain.rows == [[1, 2], [1, 3]]
    assert plain.texts == [list(of_type) for of_type in TEXTS]
    _, placed = network_of(base, "vectors", vectors=2)
    assert placed.rows == [[1, 2], [3, 4]]
    assert placed.texts == [[f"* {text}" for text in of_type] for of_type in TEXTS]
    tokens = placed.tokens
    assert tokens.placed.sum(dim=1).tolist() == [0, 2, 2, 2, 2]
    # The slots of the second type follow those of the first.
    slots = [row[is_placed > 0].tolist() for row, is_placed in zip(tokens.slots, tokens.placed, strict=True)]
    assert slots == [[], [0, 1], [0, 1], [2, 3], [2, 3]]


def test_a_vector_changes_the_context_of_its_own_type_alone(base: SynthesisBase) -> None:
    network, _ = network_of(base, "vectors", vectors=2)
    rows = torch.arange(5)
    with torch.no_grad():
        before = network.encode(rows)
        assert network.vectors is not None
        network.vectors[3] += 1.0
        changed = (network.encode(rows) != before).flatten(1).any(dim=1)
    assert changed.tolist() == [False, False, False, True, True]


@pytest.mark.parametrize("adapt", ["lora", "full"])
@pytest.mark.parametrize("learn", ["frozen", "vectors", "encoder"])
def test_gradients_reach_what_is_learned_and_nothing_of_the_base(base: SynthesisBase, learn: str, adapt: str) -> None:
    network, _ = network_of(base, learn, adapt=adapt)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((3, 9, 8, 8), generator=generator)
    if adapt == "lora":  # B is zero at the start, and with it the gradient of A
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(generator=generator)
    network(x, torch.tensor([3, 500, 900]), torch.tensor([1, 3, 4][: len(x)]) % 4).square().mean().backward()
    learned = {name.partition(".")[0] for name, value in network.named_parameters() if value.grad is not None}
    assert learned == {"unet", *({"vectors"} if learn == "vectors" else {"text"} if learn == "encoder" else ())}
    assert not any(value.requires_grad for value in (*base.text.parameters(), *base.unet.parameters()))


def test_what_is_learned_of_the_text_has_a_rate_of_its_own(base: SynthesisBase, support: SupportExamples) -> None:
    rates = {}
    for learn in ("frozen", "vectors", "encoder"):
        task = InpaintingTask(config(learn_text=learn, text_rate=0.5), base, support, describe(support))
        groups = task.optimizer().param_groups
        rates[learn] = [group["lr"] for group in groups]
        assert sum(len(group["params"]) for group in groups) == len(list(task.network.parameters()))
    assert rates == {"frozen": [0.01], "vectors": [0.01, 0.005], "encoder": [0.01, 0.005]}
    defaults = [
        InpaintingTask(config(learn_text=learn), base, support, describe(support)).optimizer().param_groups[1]["lr"]
        for learn in ("vectors", "encoder")
    ]
    assert defaults == pytest.approx([0.1, 0.01])


def test_a_small_base_learns_vectors_and_a_large_one_nothing_unless_asked(
    base: SynthesisBase, support: SupportExamples
) -> None:
    def learned(opened: SynthesisBase, **changes: Any) -> str:
        return InpaintingTask(config(**changes), opened, support, describe(support)).learn

    foreign = dataclasses.replace(base, is_small=False)
    assert [learned(base), learned(foreign)] == ["vectors", "frozen"]
    assert [learned(opened, learn_text="encoder") for opened in (base, foreign)] == ["encoder"] * 2


# ---- Trained, stored, drawn ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapt", ["lora", "full"])
def test_a_learned_text_encoder_is_restored_as_it_was_trained(
    base: SynthesisBase, support: SupportExamples, tmp_path: Path, adapt: str
) -> None:
    settings = config(learn_text="encoder", adapt=adapt, learning_rate=0.1)
    before = {name: value.clone() for name, value in base.text.state_dict().items()}
    fitted = train_inpainting(settings, base, support, tmp_path, False, no_progress)
    task = InpaintingTask(settings, base, support, describe(support))
    unet, group = ("lora", "text_lora") if adapt == "lora" else ("unet", "text")
    assert set(fitted.networks) == {unet, group}
    prefixes = {"lora": "unet", "text_lora": "text", "unet": "unet.unet", "text": "text.model"}
    task.network.load_state_dict(
        {f"{prefixes[part]}.{name}": value for part, state in fitted.networks.items() for name, value in state.items()}
    )
    run = run_of(base, settings, fitted.networks)
    restored = restore_text(base, run)
    tokens = task.texts.tokens
    rows = torch.arange(len(tokens.tokens))
    with torch.no_grad():
        expected = task.network.encode(rows)
        got = tokens.context(dataclasses.replace(base, text=restored), rows)
        plain = tokens.context(base, rows)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(plain, expected, atol=1e-3)
    assert all(value.equal(before[name]) for name, value in base.text.state_dict().items())
    with pytest.raises(RunError, match=f"run: {group}: expected"):
        restore_text(base, run_of(base, settings, {unet: fitted.networks[unet]}))


@pytest.mark.parametrize(
    ("learn", "text_rate"), [("vectors", 30.0), pytest.param("encoder", 1.0, marks=pytest.mark.slow)]
)
def test_a_bundle_draws_with_the_text_that_was_learned(
    tiny_root: Path, support_folder: Path, tmp_path: Path, learn: str, text_rate: float
) -> None:
    base = write_tiny_base_run(tmp_path / "base", inpainting=True)
    settings = config(base=str(base), support=str(support_folder), learn_text=learn, adapt="full", text_rate=text_rate)
    dataset = open_dataset(tiny_root, CATEGORY)
    record = train_synthesis(settings, dataset, tmp_path / "run")
    assert record.facts["learn_text"] == learn
    assert set(read_synthesis_run(tmp_path / "run").tensors) == {"unet", "vectors" if learn == "vectors" else "text"}
    export_synthesis(tmp_path / "run", tmp_path / "bundle.flaw")  # the gate draws with torch and the graphs
    good = read_image(dataset.train_good[0].path)
    mask = np.zeros(good.shape[:2], np.bool_)
    mask[4:12, 4:12] = True
    with Synthesizer.load(tmp_path / "bundle.flaw", "cpu") as synthesizer:
        defects = {defect.name: defect for defect in synthesizer.defects}
        assert set(defects) == set(DEFECTS)
        for defect in defects.values():
            assert (defect.vectors is not None) == (learn == "vectors")
            assert all("{location}" in text for text in defect.texts)
            assert all(text.startswith("* ") == (learn == "vectors") for text in defect.texts)
        orders = [DrawOrder(good, mask, name, None, seed=3) for name in DEFECTS]
        first, second = synthesizer.draw(orders, DrawOptions(steps=2))
    # The same noise: what differs is what was learned of the defects.
    assert (first.image != second.image).any()


# ---- The effect of the text ------------------------------------------------------------------------------------------


def test_the_change_is_the_root_mean_square_as_a_share() -> None:
    first, second = torch.tensor([3.0, 4.0]), torch.tensor([3.0, 1.0])
    assert relative_change([(first, second)]) == pytest.approx(3 / 5)
    assert relative_change([(first, first)]) == 0.0
    # Over all pairs, not the mean of their shares.
    assert relative_change([(first, second), (torch.tensor([12.0]), torch.tensor([8.0]))]) == pytest.approx(
        5 / 13, rel=1e-5
    )
    assert relative_change([(torch.zeros(2), torch.zeros(2))]) == 0.0


def test_a_network_that_does_not_look_at_the_text_has_no_effect_of_it(
    base: SynthesisBase, support: SupportExamples
) -> None:
    task = InpaintingTask(config(adapt="full", learn_text="vectors"), base, support, describe(support))
    state = {name: value.clone() for name, value in task.network.state_dict().items()}
    effects = task.text_effects(state)
    assert set(effects) == {TEXT_EFFECT, DEFECT_EFFECT}
    assert effects[TEXT_EFFECT] > 0
    assert 0 < effects[DEFECT_EFFECT] < effects[TEXT_EFFECT]
    for name, value in state.items():
        if "attn2.to_out" in name:
            value.zero_()
    assert task.text_effects(state) == {TEXT_EFFECT: 0.0, DEFECT_EFFECT: 0.0}


def test_a_small_effect_is_said_and_what_to_do(base: SynthesisBase) -> None:
    (note,) = generator_notes(record_with(base, SMALL_EFFECT / 2))
    assert "0.50%" in note
    assert "learn_text" in note
    assert generator_notes(record_with(base, SMALL_EFFECT)) == ()


def record_with(base: SynthesisBase, effect: float) -> SynthesisRecord:
    defect = LearnedDefect(CATEGORY, "stain", ("a stain",), vectors=False, pictures=1)
    return msgspec.structs.replace(run_of(base, config(), {}).record, facts={TEXT_EFFECT: effect}, defects=(defect,))


def test_an_attention_loss_needs_an_embedding_to_attend_to(base: SynthesisBase, support: SupportExamples) -> None:
    with pytest.raises(ArgumentError, match=r"attention_loss: expected learn_text=vectors, .* got encoder"):
        InpaintingTask(
            config(learn_text="encoder", defect_loss=0.5, attention_loss=0.1), base, support, describe(support)
        )
    with pytest.raises(ArgumentError, match="attention_loss: expected 0 without defect_loss or object_loss"):
        config(attention_loss=0.1)
    with pytest.raises(ArgumentError, match=r"init_word: .* expected a word that is a single token"):
        InpaintingTask(config(init_word="blowholes!"), base, support, describe(support))

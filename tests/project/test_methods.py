"""The table of methods: every row has every face, and a method that only a test knows goes the whole way."""

from __future__ import annotations

import ast
import importlib

import pytest
from project_paths import ROOMS, ROOT

from flawscope import methods
from flawscope.config import CONFIGS, MethodConfig
from flawscope.methods import METHODS

TRAINED = [name for name, row in METHODS.items() if row.settings is not None]
EXPORTED = [name for name, row in METHODS.items() if row.exporter is not None]
SCORING = [name for name, row in METHODS.items() if row.kind in ("detector", "ensemble")]


def test_no_row_hides_another_of_its_name() -> None:
    assert len(METHODS) == len(methods._ROWS)


def test_every_kind_of_method_has_the_faces_that_it_needs() -> None:
    for name, row in METHODS.items():
        assert row.name == name
        needed = {
            "detector": {"settings", "head", "trainer", "exporter", "scorer"},
            "ensemble": {"head", "scorer"},
            "autoencoder": {"settings", "trainer"},
            "generator": {"settings", "head", "trainer", "exporter"},
        }[row.kind]
        faces = {face for face in ("settings", "head", "trainer", "exporter", "scorer") if getattr(row, face)}
        assert faces == needed, name


@pytest.mark.parametrize("name", TRAINED)
def test_the_settings_of_a_row_are_its_own_and_have_a_trainer(name: str) -> None:
    from flawscope.training.synthesis.generator_trainer import GeneratorTrainer, generator_trainer_of
    from flawscope.training.trainer import Trainer, trainer_of

    row = METHODS[name]
    kind = CONFIGS[name]
    assert issubclass(kind, MethodConfig)
    assert kind.__struct_config__.tag == name
    base, find = (GeneratorTrainer, generator_trainer_of) if row.kind == "generator" else (Trainer, trainer_of)
    trainer = find(kind())  # type: ignore[operator]
    assert type(trainer).fit is not base.fit, "inherits what only says that there is nothing"
    if row.kind == "detector":
        assert type(trainer).restore is not Trainer.restore  # type: ignore[union-attr]


@pytest.mark.parametrize("name", EXPORTED)
def test_an_exporter_has_what_its_room_asks_of_it(name: str) -> None:
    from flawscope.export.exporter import exporter_named

    if METHODS[name].kind == "generator":
        exporter = methods.load(METHODS[name].exporter or "")
        assert callable(exporter.unet)
        assert isinstance(exporter.takes_words, bool)
        return
    exporter = exporter_named(name)
    for face in ("head", "graphs", "reference"):
        assert callable(getattr(exporter, face))
    assert exporter.graph_words
    assert exporter.traced is None or all(exporter.traced)


@pytest.mark.parametrize("name", SCORING)
def test_a_scorer_opens_bundles_of_its_tag(name: str) -> None:
    scorer = methods.scorer_of(name)
    assert callable(scorer.open)
    head = methods.head_type(name)
    assert head.__struct_config__.tag == name


@pytest.mark.parametrize("name", METHODS)
def test_a_row_is_described_in_the_documentation(name: str) -> None:
    row = METHODS[name]
    page = (ROOT / row.docs).read_text(encoding="utf-8")
    assert name in page.lower()
    assert row.line.endswith(".")


def test_every_method_has_a_status_for_every_way_and_for_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    support_matrix = importlib.import_module("support_matrix")
    assert "engine" in support_matrix.WAYS

    tags = {row.bundle_tag for row in METHODS.values() if row.head is not None}
    assert set(support_matrix.METHODS) == tags
    for tag in tags:
        for way in support_matrix.WAYS:
            assert (tag, way) in support_matrix.METHOD_STATUS


def test_a_page_of_help_lists_every_method(capsys: pytest.CaptureFixture[str]) -> None:
    from flawscope import cli

    assert cli.run(["train", "--help"]) == 0
    shown = capsys.readouterr().out
    for name in TRAINED:
        assert name in shown


# --- who asks what kind something is

KINDS = {"Head", "Config", "Scorer", "Trainer", "Exporter", "PatchFeatures", "StfpmNetwork", "Reconstruction"}
MOST_SITES = 10


def _asks_kind(call: ast.Call) -> bool:
    if not (isinstance(call.func, ast.Name) and call.func.id == "isinstance" and len(call.args) == 2):
        return False
    names = {node.id for node in ast.walk(call.args[1]) if isinstance(node, ast.Name)}
    return any(name in KINDS or name.endswith(("Head", "Config", "Scorer", "Trainer", "Exporter")) for name in names)


def test_few_places_ask_which_method_something_is() -> None:
    sites = []
    for room in ("core", *ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and _asks_kind(node):
                    sites.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert len(sites) <= MOST_SITES, sites


def test_the_check_of_such_places_finds_them() -> None:
    tree = ast.parse(
        "isinstance(head, PadimHead | PatchcoreHead)\nisinstance(x, (int, DdadConfig))\nisinstance(y, str)"
    )
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert [_asks_kind(call) for call in calls] == [True, True, False]


def test_no_product_file_lists_the_detectors_again() -> None:
    """Whoever names three detectors in one collection has a table of his own that a new row does not reach."""
    detectors = set(methods.names("detector"))
    # The table itself, and what records of an old schema had too much: history gets no new rows.
    allowed = {"core/methods.py", "core/runs.py"}
    for room in ("core", *ROOMS):
        for path in sorted((ROOT / room).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                elements: list[ast.expr | None] = []
                if isinstance(node, ast.Tuple | ast.List | ast.Set):
                    elements = list(node.elts)
                elif isinstance(node, ast.Dict):
                    elements = list(node.keys)
                values = {element.value for element in elements if isinstance(element, ast.Constant)}
                assert place in allowed or len(values & detectors) < 3, f"{place}:{node.lineno}"

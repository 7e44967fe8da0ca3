"""A training that was begun with settings of another form is not gone on with, and what was there stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import refuse_listing

from flawscope.config import StfpmConfig, flatten
from flawscope.errors import ArgumentError, DataError
from flawscope.training.loop.workspace import open_workspace


def begin(out: Path, resume: bool = False) -> None:
    with open_workspace(out, StfpmConfig(), "dataset", "weights", resume) as folder:
        (folder / "checkpoints" / "1").mkdir(parents=True, exist_ok=True)
        raise KeyboardInterrupt


@pytest.mark.parametrize("schema", [None, 1, 3])
def test_a_training_that_another_version_began_is_refused_in_a_line(tmp_path: Path, schema: int | None) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        begin(out)
    path = tmp_path / "run.training" / "begun.json"
    begun = json.loads(path.read_text())
    assert begun["schema"] == 2
    assert set(begun["settings"]) < set(flatten(StfpmConfig()))
    with pytest.raises(KeyboardInterrupt):  # its own is gone on with
        begin(out, resume=True)
    settings = {**begun["settings"], "upsample": "bilinear", "standardize": "auto"}
    begun = {name: value for name, value in begun.items() if name != "schema"} | {"settings": settings}
    path.write_text(json.dumps(begun if schema is None else {**begun, "schema": schema}))
    with pytest.raises(ArgumentError, match=r"expected a training that this version of flawscope began") as caught:
        begin(out, resume=True)
    assert str(caught.value).endswith("Remove the folder, and train again with flawscope train.")
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run.training" / "checkpoints" / "1").is_dir()


@given(data=st.data())
def test_what_a_training_began_with_is_taken_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    out = tmp_path_factory.getbasetemp() / "odd_run"
    path = out.with_name("odd_run.training") / "begun.json"
    whole = out.with_name("whole.json")
    if not whole.exists():
        with pytest.raises(KeyboardInterrupt):
            begin(out)
        whole.write_bytes(path.read_bytes())
    path.write_bytes(data.draw(odd_bytes(whole.read_bytes())))
    assert_read_or_refused(lambda: begin(out, resume=True), KeyboardInterrupt)
    assert (path.parent / "checkpoints" / "1").is_dir()


@pytest.mark.parametrize("key", ["new", "settings"])
def test_other_entries_are_refused_in_a_line(tmp_path: Path, key: str) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        begin(out)
    path = tmp_path / "run.training" / "begun.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), key: [1]}))
    with pytest.raises(ArgumentError, match=r"expected .*, got"):
        begin(out, resume=True)


@pytest.mark.parametrize("place", [".", "checkpoints"])
def test_a_workspace_that_cannot_be_listed_is_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    out = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        begin(out)
    with monkeypatch.context() as patched:
        refuse_listing(patched, tmp_path / "run.training" / place)
        with pytest.raises(DataError, match="expected a folder that can be listed"):
            begin(out, resume=True)
    assert (tmp_path / "run.training" / "checkpoints" / "1").is_dir()

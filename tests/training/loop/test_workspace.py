"""A training that was begun with settings of another form is not gone on with, and what was there stays."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flawscope.config import StfpmConfig, flatten
from flawscope.errors import ArgumentError
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

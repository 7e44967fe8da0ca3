"""Trainings that were interrupted are named as such, with the command that goes on with them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from flawscope.bundle import open_bundle
from flawscope.cli import run
from flawscope.errors import BundleError, RunError
from flawscope.path_kinds import kind_of_path
from flawscope.runs import read_autoencoder_record, read_run_record, read_synthesis_record
from flawscope.unfinished import check_finished, find_unfinished, with_resume

COMMAND = "flawscope train stfpm --data 'my parts' --out runs/half"


def interrupt(run_folder: Path, place: str = "", epoch: int | None = 3, **entries: object) -> Path:
    """Write what an interrupted training leaves."""
    folder = run_folder.with_name(f"{run_folder.name}.training")
    (folder / place).mkdir(parents=True)
    if epoch is not None:
        for number in range(1, epoch + 1):
            (folder / place / "checkpoints" / f"epoch_{number:06d}").mkdir(parents=True)
    (folder / "begun.json").write_text(json.dumps({"schema": 2, "command": COMMAND, **entries}))
    return folder


@pytest.mark.parametrize("name", ["half", "half.training"])
@pytest.mark.parametrize("verb", ["export", "export-triton", "explain"])
def test_where_a_run_is_expected_it_is_named_with_the_command(tmp_path, capsys, name, verb):
    interrupt(tmp_path / "half")
    options = [] if verb == "explain" else ["--out", str(tmp_path / "out")]
    assert run([verb, str(tmp_path / name), *options]) == 2
    assert capsys.readouterr().err == (
        f"error: {tmp_path / name}: expected a finished run, got an unfinished training in {tmp_path}/half.training "
        f"(its newest checkpoint is of epoch 3). Continue it with: {COMMAND} --resume latest\n"
    )


@pytest.mark.parametrize("read", [read_run_record, read_synthesis_record, check_finished])
def test_every_reader_of_runs_names_it(tmp_path, read):
    interrupt(tmp_path / "half", "steel/crack", 2)
    with pytest.raises(RunError, match=r"its newest checkpoint is of epoch 2\)\. Continue it with: flawscope train"):
        read(tmp_path / "half")


def test_where_a_bundle_is_expected_it_is_named(tmp_path):
    folder = interrupt(tmp_path / "half")
    assert kind_of_path(folder) == "an unfinished training"
    with pytest.raises(BundleError, match=r"got an unfinished training\. Continue it with: flawscope train .* latest$"):
        open_bundle(folder)


def test_a_finished_run_beside_a_new_training_is_a_run(tmp_path):
    interrupt(tmp_path / "half")
    (tmp_path / "half").mkdir()
    (tmp_path / "half" / "run.json").write_text("{}")
    check_finished(tmp_path / "half")


@pytest.mark.parametrize("method", ["stfpm", "padim"])  # padim has no epochs, but would take the place of the other
def test_training_over_it_is_refused_before_anything_is_read(tmp_path, capsys, method):
    interrupt(tmp_path / "half")
    (tmp_path / "good").mkdir()
    assert run(["train", method, "--data", str(tmp_path / "absent"), "--out", str(tmp_path / "half")]) == 2
    err = capsys.readouterr().err
    assert "half.training: expected no unfinished training, got one." in err
    assert f"Go on with --resume latest ({COMMAND} --resume latest), or remove the folder." in err


@pytest.mark.parametrize(
    ("entries", "command"),
    [
        ({"command": ""}, "flawscope train METHOD --data ROOT --out {run} --resume latest (with"),
        ({"command": "", "method": "ddad"}, "flawscope train ddad --data ROOT --out {run} --resume latest (with"),
        ({"command": 7}, "flawscope train METHOD "),
        ({"command": "flawscope pipeline stfpm --out x"}, "flawscope pipeline stfpm --out x --resume latest"),
    ],
)
def test_what_was_begun_otherwise_has_a_command_too(tmp_path, entries, command):
    interrupt(tmp_path / "half", epoch=None, **entries)
    found = find_unfinished(tmp_path / "half")
    assert found is not None
    assert found.epoch is None
    assert "no checkpoint yet" in found.words
    assert found.command.startswith(command.format(run=tmp_path / "half"))


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b'{"command": {}}'])
def test_a_broken_record_is_an_unfinished_training_too(tmp_path, content):
    interrupt(tmp_path / "half")
    (tmp_path / "half.training" / "begun.json").write_bytes(content)
    found = find_unfinished(tmp_path / "half")
    assert found is not None
    assert "flawscope train METHOD" in found.command


def test_nothing_is_found_where_nothing_is(tmp_path):
    assert find_unfinished(tmp_path / "half") is None
    assert find_unfinished(Path()) is None
    assert find_unfinished(Path("a\0b")) is None


@pytest.mark.parametrize(
    ("command", "resumed"),
    [
        ("flawscope train stfpm --out x", "flawscope train stfpm --out x --resume latest"),
        ("flawscope train stfpm --resume latest --out x", "flawscope train stfpm --out x --resume latest"),
        ("flawscope train stfpm --resume=a/b --out 'x y'", "flawscope train stfpm --out 'x y' --resume latest"),
        ("flawscope train 'unclosed", "flawscope train 'unclosed --resume latest"),
    ],
)
def test_resuming_is_said_once(command, resumed):
    assert with_resume(command) == resumed


def test_the_run_of_an_autoencoder_is_still_one_that_is_finished(tmp_path):
    with pytest.raises(RunError, match="expected a run of train autoencoder"):
        read_autoencoder_record(tmp_path)


@pytest.mark.parametrize("method", ["stfpm", "embedding"])
def test_a_finished_run_is_not_replaced_where_there_is_nothing_to_go_on_with(tmp_path, capsys, method):
    out = tmp_path / "done"
    out.mkdir()
    (out / "run.json").write_text("{}")
    command = ["train", method, "--data", str(tmp_path / "absent"), "--out", str(out), "--resume", "latest"]
    assert run(command) == 2
    assert "done: expected a new name, got an earlier output with run.json." in capsys.readouterr().err
    interrupt(out)
    assert run(command) == 2
    assert "expected a new name" not in capsys.readouterr().err

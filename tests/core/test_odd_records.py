"""Records and tables of strangers: whatever their bytes, they are read, or refused in one line and soon."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest
from dataset_files import touch
from hypothesis import given
from hypothesis import strategies as st
from odd_bytes import assert_read_or_refused, odd_bytes
from odd_files import ODD

from flawscope.datasets import list_categories, open_dataset
from flawscope.datasets.defects.captions import read_frames, read_phrases
from flawscope.datasets.defects.set_files import read_json, read_lines
from flawscope.errors import DataError, RunError
from flawscope.runs import read_autoencoder_record, read_run_record, read_synthesis_record, run_kind

VISA = (
    b"object,split,label,image,mask\n"
    b"candle,train,normal,a/0.png,\n"
    b'candle,train,normal,"a/1.png",\n'
    b"candle,test,anomaly,a/2.png,a/m.png\n"
)
RECORDS = b"".join(
    json.dumps({"filename": f"a/{index}.png", "label": 0, "label_name": "good", "clsname": "candle"}).encode() + b"\n"
    for index in range(3)
)


class Line(msgspec.Struct):
    """A line of a set, as strict as those of the product."""

    name: str
    number: int
    parts: list[dict[str, float]]


LINES = b'{"name":"a","number":1,"parts":[{"b":1.5}]}\n' * 3


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("odd")
    touch(path, *(f"a/{index}.png" for index in range(3)), "a/m.png")
    return path


def open_all(root: Path) -> None:
    for category in list_categories(root):
        open_dataset(root, category)


@given(data=odd_bytes(VISA))
def test_a_table_of_visa(root: Path, data: bytes) -> None:
    (root / "visa.csv").write_bytes(data)
    assert_read_or_refused(lambda: open_all(root))
    (root / "visa.csv").unlink()


@given(data=odd_bytes(RECORDS))
def test_a_table_of_records(root: Path, data: bytes) -> None:
    (root / "train.json").write_bytes(data)
    assert_read_or_refused(lambda: open_all(root))
    (root / "train.json").unlink()


@given(data=odd_bytes(LINES))
def test_lines_and_records_of_sets(root: Path, data: bytes) -> None:
    path = root / "set.json"
    path.write_bytes(data)
    assert_read_or_refused(lambda: read_json(path, Line, "a line"))
    assert_read_or_refused(lambda: list(read_lines(path, Line, "a line", "lines")))


@given(data=odd_bytes(b'{"candle/bad": "a scratch"}') | odd_bytes(b"There is {description} {location}; {token}\n"))
def test_phrases_and_sentences(root: Path, data: bytes) -> None:
    path = root / "words"
    path.write_bytes(data)
    assert_read_or_refused(lambda: read_phrases(path, {"candle/bad"}))
    assert_read_or_refused(lambda: read_frames(path))


@given(data=st.data())
def test_the_record_of_a_run(root: Path, padim_run: Path, data: st.DataObject) -> None:
    path = root / "x.run"
    path.mkdir(exist_ok=True)
    (path / "run.json").write_bytes(data.draw(odd_bytes((padim_run / "run.json").read_bytes())))
    for read in (read_run_record, read_synthesis_record, read_autoencoder_record, run_kind):
        assert_read_or_refused(lambda read=read: read(path))  # type: ignore[misc]


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_no_record(tmp_path: Path, kind: str) -> None:
    for name in ("train.json", "visa.csv", "run.json", "a.json"):
        ODD[kind](tmp_path / name)
    with pytest.raises(DataError):
        open_dataset(tmp_path)
    for read in (read_run_record, read_synthesis_record, read_autoencoder_record):
        with pytest.raises(RunError):
            read(tmp_path)
    with pytest.raises(DataError, match=r"a\.json: expected a line, got: "):
        read_json(tmp_path / "a.json", Line, "a line")
    with pytest.raises(DataError, match=r"a\.json: expected lines, got: "):
        list(read_lines(tmp_path / "a.json", Line, "a line", "lines"))
    with pytest.raises(DataError, match="expected a text file with a sentence a line"):
        read_frames(tmp_path / "a.json")

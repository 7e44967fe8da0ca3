"""Learned words: AnoGen's files are read without running them, and ours come back as they were written."""

from __future__ import annotations

import collections
import io
import os
import pickle
import shutil
import struct
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import nn

from flawscope import torch_file
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.embedding_files import read_anogen_embeddings, read_embedding, write_embedding
from flawscope.runtime.synthesis.import_command import import_command

BOTH_FORMS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "sequence"])


def word(count: int = 1, width: int = 12) -> torch.Tensor:
    return torch.randn((count, width), generator=torch.Generator().manual_seed(3))


def anogen(vectors: torch.Tensor, name: str = "*") -> dict[str, Any]:
    """What AnoGen saves: the token is a view of a tokenized text, the parameters are a module."""
    tokens = torch.tensor([[101, 1008, 102]])
    return {
        "string_to_token": {name: tokens[0, 1]},
        "string_to_param": nn.ParameterDict({name: nn.Parameter(vectors, requires_grad=vectors.is_floating_point())}),
    }


def save(path: Path, value: object, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


@BOTH_FORMS
@pytest.mark.parametrize("count", [1, 3])
def test_words_of_anogen_are_read_bit_for_bit(tmp_path: Path, is_zip: bool, count: int) -> None:
    vectors = word(count)
    embeddings = read_anogen_embeddings(save(tmp_path / "embeddings.pt", anogen(vectors), is_zip))
    assert list(embeddings) == ["*"]
    assert embeddings["*"].dtype == np.float32
    np.testing.assert_array_equal(embeddings["*"], vectors.numpy())


@BOTH_FORMS
@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float64])
def test_words_in_other_floating_point_types_are_converted(tmp_path: Path, is_zip: bool, kind: torch.dtype) -> None:
    vectors = word(2).to(kind)
    embeddings = read_anogen_embeddings(save(tmp_path / "e.pt", anogen(vectors), is_zip))
    np.testing.assert_array_equal(embeddings["*"], vectors.float().numpy())


@BOTH_FORMS
def test_views_of_a_larger_storage_are_read_as_they_are_laid_out(tmp_path: Path, is_zip: bool) -> None:
    whole = word(6, 8)
    for view in (whole[1:4], whole.T, whole[::2, 1::3], whole[2:3]):
        embeddings = read_anogen_embeddings(save(tmp_path / "e.pt", {"string_to_param": {"*": view}}, is_zip))
        np.testing.assert_array_equal(embeddings["*"], view.numpy())


def test_a_module_as_torch_1_10_pickled_it_is_read(tmp_path: Path) -> None:
    """Its attributes were fewer, and its parameters an OrderedDict that was filled from a list."""
    vectors = nn.Parameter(word())
    module = nn.ParameterDict.__new__(nn.ParameterDict)
    nn.Module.__init__(module)
    module.__dict__["_parameters"] = collections.OrderedDict([("@", vectors)])
    module.__dict__.pop("_forward_hooks_with_kwargs", None)
    embeddings = read_anogen_embeddings(save(tmp_path / "e.pt", {"string_to_param": module}))
    np.testing.assert_array_equal(embeddings["@"], vectors.detach().numpy())


# --- nothing is executed


class Calls:
    """Pickled, it asks whoever unpickles it to call a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@BOTH_FORMS
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch done",), f"{os.system.__module__}.system"),
        (eval, ("open('done', 'w')",), "builtin"),
        (exec, ("open('done', 'w')",), "builtin"),
        (shutil.copyfile, (__file__, "done"), "shutil.copyfile"),
        (getattr, (Calls(os.getcwd), "x"), "builtin"),
    ],
)
def test_what_a_file_wants_to_have_called_is_refused_and_not_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool, function: Any, arguments: Any, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = anogen(word())
    path = save(tmp_path / "e.pt", {**content, "more": Calls(function, *arguments)}, is_zip)
    with pytest.raises(DataError, match=rf"e\.pt: .* got a pickle with .*{name}.* It was not imported") as caught:
        read_anogen_embeddings(path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "done").exists()


def test_a_module_is_not_imported_to_find_out_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    path = tmp_path / "e.pt"
    path.write_bytes(b"\x80\x02ctrap\nword\n.")
    with pytest.raises(DataError, match=r"got a pickle with trap\.word, which it does not need"):
        read_anogen_embeddings(path)
    assert "trap" not in sys.modules


def test_instructions_that_tensors_do_not_need_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "e.pt"
    path.write_bytes(pickle.dumps({"string_to_param": b"bytes"}, protocol=5))
    with pytest.raises(DataError, match=r"got a pickle with the opcode FRAME, .* It was not executed\.$"):
        read_anogen_embeddings(path)


def test_keys_that_are_tuples_in_tuples_do_not_take_for_ever(tmp_path: Path) -> None:
    # Thirty levels of (x, x): comparing two of them would look at a billion places.
    program = b"\x80\x02}K\x00" + b"q\x00h\x00\x86" * 60 + b"K\x01s."
    path = tmp_path / "e.pt"
    path.write_bytes(program)
    with pytest.raises(DataError, match=r"got a broken one: tuple in a place where it makes no sense"):
        read_anogen_embeddings(path)


# --- broken files


@BOTH_FORMS
def test_a_file_cut_off_anywhere_is_refused(tmp_path: Path, is_zip: bool) -> None:
    data = save(tmp_path / "whole.pt", anogen(word()), is_zip).read_bytes()
    path = tmp_path / "e.pt"
    for length in [*range(0, len(data) - 1, 97), len(data) - 1]:
        path.write_bytes(data[:length])
        with pytest.raises(DataError, match=r"e\.pt: expected "):
            read_anogen_embeddings(path)


@BOTH_FORMS
@given(place=st.integers(0, 1 << 20), value=st.integers(0, 255))
def test_a_changed_byte_gives_words_or_an_error_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, is_zip: bool, place: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed"
    folder.mkdir(exist_ok=True)
    whole = folder / f"{is_zip}.pt"
    if not whole.exists():
        save(whole, anogen(word()), is_zip)
    data = bytearray(whole.read_bytes())
    data[place % len(data)] = value
    path = folder / "e.pt"
    path.write_bytes(data)
    embeddings, message = {}, ""
    try:
        embeddings = read_anogen_embeddings(path)
    except DataError as err:
        message = str(err)
    assert "\n" not in message
    assert all(np.isfinite(vectors).all() and vectors.ndim == 2 for vectors in embeddings.values())


def rewritten(path: Path, change: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> Path:
    """Replace members of a zip."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, change.get(name.partition("/")[2], data))
    return path


def program_of(path: Path) -> bytes:
    with zipfile.ZipFile(path) as archive:
        return archive.read(next(name for name in archive.namelist() if name.endswith("data.pkl")))


def test_a_tensor_that_claims_more_than_its_storage_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "e.pt", {"string_to_param": {"*": word(1, 100)}})
    program = program_of(path)
    assert program.count(b"K\x01Kd\x86") == 1  # its size: (1, 100)
    for size, stride in (((1, 101), None), ((2, 100), None), ((1 << 30, 1 << 30), b"K\x00K\x00\x86")):
        packed = b"".join(b"J" + struct.pack("<i", number) for number in size) + b"\x86"
        changed = program.replace(b"K\x01Kd\x86", packed)
        if stride is not None:
            changed = changed.replace(b"KdK\x01\x86", stride)
        rewritten(path, {"data.pkl": changed})
        with pytest.raises(DataError, match=r"expected a tensor within its 100 numbers, got size \["):
            read_anogen_embeddings(path)


def test_a_storage_that_claims_more_than_the_file_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "e.pt", {"string_to_param": {"*": word(1, 100)}})
    program = program_of(path)
    claim = b"X\x03\x00\x00\x00cpu"
    start = program.index(b"Kd", program.index(claim))
    rewritten(path, {"data.pkl": program[:start] + b"J\xff\xff\xff\x7f" + program[start + 2 :]})
    with pytest.raises(DataError, match=r"got a broken one: its storages would have 8589934588 bytes"):
        read_anogen_embeddings(path)


def test_compressed_members_are_refused(tmp_path: Path) -> None:
    path = rewritten(save(tmp_path / "e.pt", anogen(word())), {}, zipfile.ZIP_DEFLATED)
    with pytest.raises(DataError, match=r"expected members as torch writes them, got .*, which is compressed"):
        read_anogen_embeddings(path)


def test_numbers_in_another_byte_order_are_refused(tmp_path: Path) -> None:
    path = rewritten(save(tmp_path / "e.pt", anogen(word())), {"byteorder": b"big"})
    with pytest.raises(DataError, match="expected numbers in little-endian order"):
        read_anogen_embeddings(path)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_file, "MAX_BYTES", 1 << 20)
    path = tmp_path / "e.pt"
    path.write_bytes(bytes((1 << 20) + 1))
    with pytest.raises(
        DataError, match=r"expected a learned word in a file of at most 1 MiB, got 1 MiB\. .* is it the whole"
    ):
        read_anogen_embeddings(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            {"string_to_param": {"*": torch.arange(12).reshape(1, 12)}},
            r"expected floating-point .* got int64 \[1, 12\]",
        ),
        ({"string_to_param": {"*": torch.zeros(12)}}, r"expected floating-point vectors \[V, W\], got float32 \[12\]"),
        ({"string_to_param": {"*": torch.zeros((0, 12))}}, r"expected floating-point vectors \[V, W\]"),
        ({"string_to_param": {"*": torch.full((1, 4), float("nan"))}}, "expected finite numbers"),
        ({"string_to_param": {"*": torch.full((1, 4), 1e300, dtype=torch.float64)}}, "expected finite numbers"),
        ({"string_to_param": {"*": torch.zeros((1025, 1))}}, "expected at most 1024 vectors"),
        ({"string_to_param": {"*": "broken"}}, r"expected words with a tensor each, got str for '\*'"),
        ({"string_to_param": {}}, "expected learned words under string_to_param"),
        ({"state_dict": {"w": torch.zeros(2)}}, r"string_to_param, got state_dict\. Is it AnoGen's embeddings\.pt\?"),
        (torch.zeros(3), "expected learned words under string_to_param, got SavedTensor"),
        ({"string_to_param": nn.Linear(2, 2)}, r"a pickle with torch\.nn\.modules\.linear\.Linear, which it does not"),
    ],
)
@BOTH_FORMS
def test_files_that_hold_no_words_are_refused(tmp_path: Path, is_zip: bool, value: object, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_anogen_embeddings(save(tmp_path / "e.pt", value, is_zip))


def test_files_that_torch_did_not_write_are_refused(tmp_path: Path) -> None:
    for name, data in (("text", b"hello"), ("empty", b""), ("pickle", pickle.dumps({"a": 1}, protocol=2))):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(DataError, match=rf"{name}: expected a file of torch\.save, got a broken one"):
            read_anogen_embeddings(tmp_path / name)
    with pytest.raises(DataError, match=r"No such file or directory\. Check the path\.$"):
        read_anogen_embeddings(tmp_path / "none")
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as written:
        written.writestr("other.txt", "a")
    (tmp_path / "zip").write_bytes(archive.getvalue())
    with pytest.raises(DataError, match=r"zip: expected a file of torch\.save, got a broken one"):
        read_anogen_embeddings(tmp_path / "zip")


# --- our own files


@given(
    vectors=arrays.arrays(
        np.float32,
        st.tuples(st.integers(1, 4), st.integers(1, 9)),
        elements=st.floats(-1e6, 1e6, width=32),
    ),
    name=st.text(st.characters(codec="ascii", min_codepoint=33, max_codepoint=126), min_size=1, max_size=8),
)
def test_a_word_comes_back_as_it_was_written(tmp_path_factory: pytest.TempPathFactory, vectors: Any, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "word.safetensors"
    write_embedding(path, name, vectors, {"defect": "crack", "category": "bottle"}, overwrite=True)
    first = path.read_bytes()
    embedding = read_embedding(path)
    assert embedding.name == name
    np.testing.assert_array_equal(embedding.vectors, vectors)
    assert embedding.metadata == {"defect": "crack", "category": "bottle", "width": str(vectors.shape[1])}
    with pytest.raises(ArgumentError, match="expected a new name, got an existing file"):
        write_embedding(path, name, vectors, {"category": "bottle", "defect": "crack"})
    write_embedding(path, name, vectors, {"category": "bottle", "defect": "crack"}, overwrite=True)
    assert path.read_bytes() == first


def test_words_that_are_none_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=r"vectors: expected float32 \[V, W\]"):
        write_embedding(tmp_path / "w", "*", np.zeros(3, np.float32), {})
    with pytest.raises(ArgumentError, match="expected finite numbers"):
        write_embedding(tmp_path / "w", "*", np.full((1, 3), np.nan, np.float32), {})
    with pytest.raises(ArgumentError, match="expected texts that are not empty"):
        write_embedding(tmp_path / "w", "*", np.zeros((1, 3), np.float32), {"defect": ""})
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"a": np.zeros((1, 2), np.float32), "b": np.zeros((1, 2), np.float32)},
            "expected the tensor of one word, got 2",
        ),
        ({"a": np.zeros((1, 2), np.int32)}, r"expected floating-point vectors \[V, W\], got int32 \[1, 2\]"),
        ({"a": np.full((1, 2), np.inf, np.float32)}, "expected finite numbers"),
    ],
)
def test_other_safetensors_files_are_no_words(tmp_path: Path, tensors: Any, message: str) -> None:
    safetensors.numpy.save_file(tensors, tmp_path / "w.safetensors")
    with pytest.raises(DataError, match=message):
        read_embedding(tmp_path / "w.safetensors")


def test_a_file_that_is_no_safetensors_is_no_word(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(b"word")
    for name in ("w", "none"):
        with pytest.raises(
            DataError, match=r"expected a learned word in safetensors, got: .* flawscope synth import\.$"
        ):
            read_embedding(tmp_path / name)


# --- the command


def test_import_writes_what_the_file_says_and_where_it_is_from(tmp_path: Path) -> None:
    path, out = save(tmp_path / "embeddings.pt", anogen(word(2))), tmp_path / "broken_large.safetensors"
    arguments = [str(path), "--out", str(out), "--defect", "broken_large", "--category", "bottle"]
    result = CliRunner().invoke(import_command, arguments, catch_exceptions=False)
    assert result.output == f"{out}: '*', 2 vectors of width 12\n"
    embedding = read_embedding(out)
    assert embedding.name == "*"
    np.testing.assert_array_equal(embedding.vectors, word(2).numpy())
    assert embedding.metadata == {
        "defect": "broken_large",
        "category": "bottle",
        "width": "12",
        "source_sha256": sha256_file(path),
    }


def test_import_refuses_a_file_with_several_words(tmp_path: Path) -> None:
    path = save(tmp_path / "e.pt", {"string_to_param": {"*": word(), "@": word()}})
    with pytest.raises(DataError, match=r"expected one word, got 2: \*, @\. Split the file\."):
        CliRunner().invoke(import_command, [str(path), "--out", str(tmp_path / "o")], catch_exceptions=False)
    assert not (tmp_path / "o").exists()

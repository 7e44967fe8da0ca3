"""State dicts of networks, of today and of old torch: read to equal tensors, and nothing of the file is run."""

from __future__ import annotations

import collections
import gc
import os
import pickle
import struct
import tarfile
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_bytes import assert_read_or_refused
from odd_files import ODD
from torch import nn

from flawscope.errors import DataError
from flawscope.tensor_files import open_tensors
from flawscope.torch_file import MAX_BYTES, read_checkpoint, read_torch_file
from flawscope.torch_pickle import SavedTensor, Unread

BOTH_FORMS = pytest.mark.parametrize("is_zip", [True, False], ids=["zip", "sequence"])


def save(path: Path, value: object, is_zip: bool = True) -> Path:
    torch.save(value, path, _use_new_zipfile_serialization=is_zip)
    return path


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Linear(4, 5))


def assert_equal(path: Path, state: Any) -> None:
    saved = read_torch_file(path)
    assert list(saved.value) == list(state)
    for name, tensor in state.items():
        values = saved.array(saved.value[name])
        assert values.dtype == tensor.detach().numpy().dtype
        assert values.shape == tuple(tensor.shape)
        np.testing.assert_array_equal(values, tensor.detach().numpy())


@BOTH_FORMS
@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_state_dicts_of_torchvision_are_read_to_equal_tensors(tmp_path: Path, is_zip: bool, name: str) -> None:
    network = getattr(torchvision.models, name)(weights=None)
    state = network.state_dict()
    assert hasattr(state, "_metadata")
    assert_equal(save(tmp_path / "net.pth", state, is_zip), state)


@BOTH_FORMS
def test_parameters_shared_storages_and_other_types_are_read(tmp_path: Path, is_zip: bool) -> None:
    whole = torch.arange(24.0).reshape(4, 6)
    state = collections.OrderedDict(
        weight=nn.Parameter(torch.rand(3, 2)),
        frozen=nn.Parameter(torch.rand(2), requires_grad=False),
        view=whole[1:3, ::2],
        turned=whole.T,
        half=torch.rand(3).half(),
        count=torch.tensor(7),
        nothing=torch.zeros(0, 4),
    )
    assert_equal(save(tmp_path / "net.pth", state, is_zip), state)


@BOTH_FORMS
def test_only_what_is_asked_for_is_taken_out(tmp_path: Path, is_zip: bool) -> None:
    """A broken tensor that nobody wants does no harm; wanted, a zip's checksum says that it is broken."""
    path = save(tmp_path / "net.pth", {"a": torch.zeros(3), "b": torch.full((3,), 1.5)}, is_zip)
    data = path.read_bytes()
    numbers = struct.pack("<3f", 1.5, 1.5, 1.5)
    assert data.count(numbers) == 1
    path.write_bytes(data.replace(numbers, struct.pack("<3f", 1.5, 2.5, 1.5)))
    saved = read_torch_file(path)
    np.testing.assert_array_equal(saved.array(saved.value["a"]), np.zeros(3))
    if is_zip:
        with pytest.raises(DataError, match=r"net\.pth: expected a file of torch\.save, got a broken one: Bad CRC"):
            saved.array(saved.value["b"])
    else:
        np.testing.assert_array_equal(saved.array(saved.value["b"]), [1.5, 2.5, 1.5])


# ---- What old torch wrote --------------------------------------------------------------------------------------------


def old_file(path: Path, program: bytes, numbers: list[float]) -> Path:
    """A sequence of pickles whose object is built by `program`; its one storage has the key 0."""
    begin = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    end = pickle.dumps(["0"], 2) + struct.pack(f"<q{len(numbers)}f", len(numbers), *numbers)
    path.write_bytes(b"".join(begin) + b"\x80\x02" + program + b"." + end)
    return path


def text(value: str) -> bytes:
    """A text as Python 2 pickled it."""
    return b"U" + bytes([len(value)]) + value.encode()


# ('storage', FloatStorage, '0', 'cpu', 4, None), then the tensor's offset, size (2, 2) and stride (2, 1).
STORAGE = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu") + b"K\x04NtQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + b"K\x00K\x02K\x02\x86K\x02K\x01\x86tR"
PARAMETER = b"ctorch.nn.parameter\nParameter\n" + TENSOR


@pytest.mark.parametrize("make", [b"\x85R", b"\x88\x86R", b"\x85\x81"], ids=["called", "with_gradient", "new"])
def test_parameters_of_torch_before_0_4_are_read_as_torch_reads_them(tmp_path: Path, make: bytes) -> None:
    state = b"\x89\x89ccollections\nOrderedDict\n)R\x87b"  # (False, False, OrderedDict()), then BUILD
    program = b"ccollections\nOrderedDict\n)R" + text("weight") + PARAMETER + make + state + b"s"
    path = old_file(tmp_path / "old.pth", program, [1.0, 2.0, 3.0, 4.0])
    theirs = torch.load(path, weights_only=True)
    assert isinstance(theirs["weight"], nn.Parameter)
    assert_equal(path, theirs)


def test_the_tar_of_the_first_torch_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "storages").write_bytes(b"0")
    path = tmp_path / "old.pth"
    with tarfile.open(path, "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    with pytest.raises(
        DataError, match=r"old\.pth: expected a network as torch saves it since 2017, got the older tar format"
    ):
        read_torch_file(path, what="a network")


# ---- Checkpoints of trainings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["numpy.core.multiarray scalar", "pytorch_lightning.callbacks Early", "builtins object"]
)
def test_objects_of_a_training_stand_beside_the_weights_of_a_checkpoint_alone(tmp_path: Path, name: str) -> None:
    """(MARK), the name, called with nothing and given a state, as a value and as a key beside the state dict."""
    made = b"c" + name.replace(" ", "\n").encode() + b"\n)R}" + text("x") + b"K\x01sb"
    program = b"}(" + text("state_dict") + b"}" + text("weight") + TENSOR + b"s"
    program += text("callbacks") + b"}(" + made + b"K\x01" + text("own") + made + b"K\x05" + made + b"uu"
    path = old_file(tmp_path / "m.ckpt", program, [1.0, 2.0, 3.0, 4.0])
    saved, tensors = read_checkpoint(path, MAX_BYTES)
    np.testing.assert_array_equal(saved.array(tensors["weight"]), [[1.0, 2.0], [3.0, 4.0]])
    assert isinstance(saved.value["callbacks"]["own"], Unread)
    with pytest.raises(DataError, match="It was not imported"):
        read_torch_file(path)


@pytest.mark.parametrize(
    "name",
    ["os system", "posix system", "subprocess Popen", "builtins eval", "builtins getattr", "torchx load", "sys exit"],
)
def test_names_that_no_training_leaves_are_refused_in_checkpoints_too(tmp_path: Path, name: str) -> None:
    called = b"c" + name.replace(" ", "\n").encode() + b"\n" + text("touch done") + b"\x85R"
    program = b"}(" + text("state_dict") + b"}" + text("weight") + TENSOR + b"s" + text("callbacks") + called + b"u"
    path = old_file(tmp_path / "m.ckpt", program, [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(DataError, match=name.replace(" ", r"\.") + ".* It was not imported"):
        read_checkpoint(path, MAX_BYTES)


@pytest.mark.parametrize("size", [text("a") + b"K\x02\x86", b"\x88K\x02\x86", b"J\xff\xff\xff\xffK\x02\x86"])
def test_sizes_that_are_none_are_refused_when_a_file_is_opened(tmp_path: Path, size: bytes) -> None:
    tensor = TENSOR.replace(b"K\x02K\x02\x86", size, 1)
    assert tensor != TENSOR
    path = old_file(tmp_path / "m.ckpt", b"}" + text("weight") + tensor + b"s", [1.0, 2.0, 3.0, 4.0])
    with pytest.raises(DataError, match=r"m\.ckpt: expected tensors of whole sizes, got"):
        open_tensors(path, MAX_BYTES)


@given(st.data())
@settings(deadline=None)
def test_changed_checkpoints_are_read_or_refused_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    program = b"}(" + text("state_dict") + b"}" + text("weight") + TENSOR + b"s" + text("epoch") + b"K\x03u"
    whole = old_file(tmp_path_factory.mktemp("whole") / "m.ckpt", program, [1.0, 2.0, 3.0, 4.0]).read_bytes()
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + data.draw(st.binary(max_size=6)) + whole[place + data.draw(st.integers(0, 6)) :]
    path = tmp_path_factory.mktemp("changed") / "m.ckpt"
    path.write_bytes(changed)

    def read() -> None:
        saved, tensors = read_checkpoint(path, MAX_BYTES)
        for tensor in tensors.values():
            saved.array(tensor)

    assert_read_or_refused(read)


# ---- Nothing is run --------------------------------------------------------------------------------------------------


class Calls:
    """Pickled, it asks whoever unpickles it to call a function."""

    def __init__(self, function: Any, *arguments: object) -> None:
        self._call = (function, arguments)

    def __reduce__(self) -> Any:
        return self._call


@BOTH_FORMS
def test_what_the_metadata_of_a_state_dict_wants_to_have_called_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_zip: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    state = small().state_dict()
    state._metadata["0"]["version"] = Calls(os.system, "touch done")  # type: ignore[attr-defined]
    path = save(tmp_path / "net.pth", state, is_zip)
    with pytest.raises(DataError, match=r"expected weights, got a pickle with .*system, which it does not need") as err:
        read_torch_file(path, what="weights")
    assert "\n" not in str(err.value)
    assert not (tmp_path / "done").exists()


@BOTH_FORMS
def test_a_module_that_is_no_state_dict_is_refused(tmp_path: Path, is_zip: bool) -> None:
    with pytest.raises(DataError, match=r"got a pickle with torch\.nn\.modules\.\w+\.\w+, which it does not need"):
        read_torch_file(save(tmp_path / "net.pth", small(), is_zip), what="weights")


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (b"ccollections\nOrderedDict\n)R]b", "list in a place where it makes no sense"),
        (b"K\x01}b", "int in a place where it makes no sense"),
        (b"ccollections\nOrderedDict\n}b", "Name in a place where it makes no sense"),
        (PARAMETER + b"\x85R}b", "dict in a place where it makes no sense"),
        (b"ctorch.nn.parameter\nParameter\n)R", "tuple index out of range"),
        (b"ctorch.nn.parameter\nParameter\nK\x01\x85R", "int in a place where it makes no sense"),
    ],
)
def test_attributes_are_given_to_nothing_else(tmp_path: Path, program: bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"got a broken one: {message}\. Get it again\.$"):
        read_torch_file(old_file(tmp_path / "old.pth", program, [0.0] * 4))


def test_a_pickle_before_the_tensors_that_is_no_dictionary_is_an_error_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "net.pth"
    path.write_bytes(b"".join(pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, [1])))
    with pytest.raises(DataError, match=r"got a broken one: list in a place where it makes no sense"):
        read_torch_file(path)


# ---- Broken files ----------------------------------------------------------------------------------------------------


@BOTH_FORMS
@given(place=st.integers(0, 1 << 20), value=st.integers(0, 255))
def test_a_changed_byte_gives_tensors_or_an_error_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, is_zip: bool, place: int, value: int
) -> None:
    folder = tmp_path_factory.getbasetemp() / "changed_state"
    folder.mkdir(exist_ok=True)
    whole = folder / f"{is_zip}.pth"
    if not whole.exists():
        save(whole, small().state_dict(), is_zip)
    data = bytearray(whole.read_bytes())
    data[place % len(data)] = value
    path = folder / "net.pth"
    path.write_bytes(data)
    message = ""
    try:
        saved = read_torch_file(path)
        for tensor in saved.value.values() if isinstance(saved.value, dict) else ():
            if isinstance(tensor, SavedTensor):
                assert saved.array(tensor).size <= len(data)
    except DataError as err:
        message = str(err)
    assert "\n" not in message


def test_members_that_claim_to_be_encrypted_are_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", {"a": torch.zeros(3)})
    data = bytearray(path.read_bytes())
    entry = data.index(b"PK\x01\x02")
    data[entry + 8] |= 1  # the first member is data.pkl
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"got a broken one: File .*data\.pkl.* is encrypted"):
        read_torch_file(path)


def test_a_storage_that_is_shorter_than_it_is_said_to_be_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", {"a": torch.zeros(30), "b": torch.zeros(50)})
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:40] if name.endswith("data/1") else data)
    with pytest.raises(DataError, match="a storage of 40 bytes where 50 numbers are referred to"):
        read_torch_file(path)


def test_the_largest_size_is_the_callers(tmp_path: Path) -> None:
    path = save(tmp_path / "net.pth", {"a": torch.zeros(1 << 18)})
    assert path.stat().st_size < MAX_BYTES
    with pytest.raises(
        DataError, match=r"expected weights in a file of at most 1 MiB, got 1 MiB\. Name the right file"
    ):
        read_torch_file(path, what="weights", max_bytes=1 << 20)
    assert read_torch_file(path, max_bytes=2 << 20).value["a"].size == (1 << 18,)


# ---- Programs of any kind --------------------------------------------------------------------------------------------

PIECES = [
    *(TENSOR, PARAMETER, STORAGE, text("a"), b"K\x01", b"K\x00", b"]", b"}", b")", b"(", b"t", b"a", b"e", b"s"),
    *(b"u", b"N", b"R", b"\x81", b"b", b"Q", b"\x85", b"\x86", b"\x87", b"q\x00", b"h\x00", b"q\x01", b"h\x01"),
    *(b"\x88", b"\x8a\x00", b"\x8a\xff" + b"\x7f" * 255, b"J\xff\xff\xff\xff", b"G" + b"\xff" * 8, b"0", b"2", b"."),
    *(b"X\x02\x00\x00\x00\xed\xa0", b"X\xff\xff\xff\xff", b"ccollections\nOrderedDict\n", b"c__builtin__\nset\n"),
    *(
        b"ctorch._utils\n_rebuild_parameter\n",
        b"ctorch.nn.modules.container\nParameterDict\n",
        b"cos\nsystem\n",
        b"cos\rx\nsys\x1b[0mtem\n",
    ),
    *(b"cposix", b"\x80\x04"),
]


@settings(max_examples=300)
@given(program=st.lists(st.sampled_from(PIECES) | st.binary(min_size=1, max_size=2), max_size=12).map(b"".join))
def test_any_program_gives_a_value_or_an_error_in_one_line(
    tmp_path_factory: pytest.TempPathFactory, program: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "program.pth"

    def read() -> None:
        saved = read_torch_file(old_file(path, b"]" + program, [1.0] * 4))
        pending = [saved.value]
        while pending:
            value = pending.pop()
            if isinstance(value, SavedTensor):
                saved.array(value)
            elif isinstance(value, dict):
                pending += value.values()
            elif isinstance(value, list | tuple) and len(pending) < 1000:
                pending += value

    assert_read_or_refused(read)


SHAPES = st.lists(st.sampled_from([0, 1, 2, 4, 5, -1, 2**31, 2**62, 2**63, 2**70, True, 1.5, None, "a"]), max_size=40)


@given(offset=st.integers(-1, 5) | st.just(2**64), size=SHAPES, stride=SHAPES)
def test_a_tensor_of_any_shape_lies_within_its_storage_or_is_refused(
    tmp_path_factory: pytest.TempPathFactory, offset: int, size: list[Any], stride: list[Any]
) -> None:
    numbers = b"".join(pickle.dumps(value, 2)[2:-1] for value in (offset, tuple(size), tuple(stride)))
    program = b"ctorch._utils\n_rebuild_tensor\n(" + STORAGE + numbers + b"tR"
    path = old_file(tmp_path_factory.getbasetemp() / "shape.pth", program, [1.0] * 4)

    def read() -> None:
        saved = read_torch_file(path)
        assert saved.array(saved.value).size <= 4

    assert_read_or_refused(read)


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(
            b"}("
            + b"".join(b"\x8a\x0b" + (n * (2**61 - 1)).to_bytes(11, "little") + b"N" for n in range(60_000))
            + b"u",
            "int in a place where it makes no sense",
            id="keys_of_one_hash",
        ),
        pytest.param(b"]" * (1 << 20), "its pickle takes more than 524,288 steps", id="steps"),
        pytest.param(
            b"](" + b"N" * 200_000 + b"eq\x00" + b"c__builtin__\nset\nh\x00\x85R" * 100_000,
            "its pickle takes more than 524,288 steps",
            id="one_list_again_and_again",
        ),
        pytest.param(
            STORAGE[:-2] + b"N" * 200_000 + b"tq\x00" + b"h\x00Q" * 100_000,
            "its pickle takes more than 524,288 steps",
            id="one_reference_again_and_again",
        ),
        pytest.param(b"\x85" * 100_000, "it lists 1 storages and refers to 0", id="nested"),
    ],
)
def test_a_program_that_would_take_minutes_is_refused_soon(tmp_path: Path, program: bytes, message: str) -> None:
    path = old_file(tmp_path / "long.pth", program, [1.0] * 4)
    started = time.process_time()
    with pytest.raises(DataError, match=message):
        read_torch_file(path)
    assert time.process_time() - started < 10


@BOTH_FORMS
def test_the_file_is_read_on_demand_and_closed_with_what_was_read(tmp_path: Path, is_zip: bool) -> None:
    path = save(tmp_path / "net.pth", {"a": torch.ones(1 << 12)}, is_zip)
    opened = len(list(Path("/proc/self/fd").iterdir()))
    saved = read_torch_file(path)
    with path.open("r+b") as file:  # a mapping into memory would end the process here
        file.truncate(100)
    with pytest.raises(DataError, match=r"expected a file of torch\.save, got a broken one"):
        saved.array(saved.value["a"])
    del saved
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == opened


@pytest.mark.parametrize("kind", ODD)
def test_what_is_no_file_is_refused(tmp_path: Path, kind: str) -> None:
    ODD[kind](tmp_path / "net.pth")
    with pytest.raises(DataError, match=r"net\.pth: expected a file of torch\.save, got: .*Check the path"):
        read_torch_file(tmp_path / "net.pth")

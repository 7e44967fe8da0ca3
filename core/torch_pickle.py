"""Restricted interpreter of the pickles of `torch.save`, for what builds numbers, strings, lists and dictionaries.

A pickle is a program: unpickling it runs what its author wanted. Here nothing is imported or called; every opcode and
name but those that state dicts need is refused, and a program that would go on for minutes is stopped.
"""

from __future__ import annotations

import pickletools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from flawscope.errors import DataError
from flawscope.text import printable

# NumPy has no such type: read as uint16 and widened.
BFLOAT16 = "bfloat16"
_STORAGES = {
    "torch BFloat16Storage": BFLOAT16,
    "torch HalfStorage": "<f2",
    "torch FloatStorage": "<f4",
    "torch DoubleStorage": "<f8",
    "torch ByteStorage": "<u1",
    "torch CharStorage": "<i1",
    "torch ShortStorage": "<i2",
    "torch IntStorage": "<i4",
    "torch LongStorage": "<i8",
    "torch BoolStorage": "|b1",
}
_MODULE = "torch.nn.modules.container ParameterDict"
_TENSORS = ("torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2")
_PARAMETERS = (
    "torch._utils _rebuild_parameter",
    "torch._utils _rebuild_parameter_with_state",
    "torch.nn.parameter Parameter",  # as torch before 0.4 saved them
)
_ORDERED = "collections OrderedDict"
_SETS = ("__builtin__ set", "builtins set")
# An allow-list, not a list of what is dangerous: new names of pickle or torch stay refused.
_NAMES = frozenset((*_STORAGES, _MODULE, *_TENSORS, *_PARAMETERS, _ORDERED, *_SETS))

_LIGHTNING = ("lightning", "lightning_fabric", "omegaconf", "pytorch_lightning")
_LIBRARY = ("_codecs", "argparse", "builtins", "collections", "copyreg", "datetime", "enum", "pathlib", "typing")
_BESIDE = frozenset((*_LIGHTNING, *_LIBRARY, "__builtin__", "numpy", "torch"))
"""Packages of what a checkpoint of Lightning keeps beside its weights: settings, callbacks, states of optimizers."""
_NOT_BESIDE = frozenset(("eval", "exec", "compile", "open", "getattr", "setattr", "__import__", "apply", "execfile"))
"""Names that no checkpoint needs: a file that has them is refused although nothing of it would be called."""

# SHORT_BINSTRING is a string of Python 2.
_VALUES = frozenset(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"))
_CONSTANTS: Mapping[str, object] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

_MOST_OF_A_NAME = 200  # in characters: in a broken file it may have megabytes

_MOST_STEPS = 1 << 19
"""Opcodes of a pickle, and items that they copy; a large network has 50,000. Without a limit, minutes and gigabytes."""
_MOST_AXES = 32  # NumPy's own limit before version 2


@dataclass(frozen=True)
class _Name:
    text: str


class Unread:
    """What stands where a checkpoint has an object that is no tensor: it was neither made nor looked at."""


_UNREAD = Unread()


@dataclass(frozen=True)
class Storage:
    """Numbers in a file that tensors are views of: its key there, the type of a number, and how many there are."""

    key: str
    kind: str
    count: int

    @property
    def nbytes(self) -> int:
        """Bytes of all numbers."""
        return self.count * (2 if self.kind == BFLOAT16 else np.dtype(self.kind).itemsize)


@dataclass(frozen=True)
class SavedTensor:
    """A tensor of the file; `Saved.array` gives its numbers."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


@dataclass
class SavedModule:
    """A ParameterDict of the file.

    Attributes:
        state: Its attributes; tensors are in `_parameters`.
    """

    state: dict[Any, Any] = field(default_factory=dict)


class PickleMachine:
    """Restricted interpreter of one pickle. Nothing that it reads is called or imported.

    Args:
        path: The file, for messages.
        what: Expected contents, for messages.
        is_checkpoint: Whether objects of the packages that Lightning's checkpoints name may stand beside the tensors.
            They become `Unread`; every other name is refused as ever.

    Attributes:
        storages: Key -> storage that the pickle refers to.
    """

    def __init__(self, path: Path, what: str, *, is_checkpoint: bool = False) -> None:
        self._path, self._what, self._is_checkpoint = path, what, is_checkpoint
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}
        self._steps_left = _MOST_STEPS
        self.storages: dict[str, Storage] = {}

    def run(self, stream: BinaryIO) -> Any:
        """Return the object that the pickle at the stream's position builds; the stream then is behind it.

        Raises:
            DataError: If it holds an opcode or a name that is not needed.
            ValueError: If it is broken or takes too many steps; and whatever else nonsense makes Python raise.
        """
        # genops only splits the stream into opcodes and arguments; it builds nothing.
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return self._stack.pop()
            self._spend(1)
            self._step(opcode.name, argument)
        raise ValueError("it ends in the middle")

    def _spend(self, steps: int) -> None:
        self._steps_left -= steps
        if self._steps_left < 0:
            raise ValueError(f"its pickle takes more than {_MOST_STEPS:,} steps")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name in _VALUES:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "MARK":
            self._marks.append(len(stack))
        elif name == "TUPLE":
            stack.append(tuple(self._since_mark()))
        elif name in _TUPLES:
            count = _TUPLES[name]
            # A stack that is too short gives a shorter tuple here; whoever unpacks it then raises.
            stack[-count:] = [tuple(stack[-count:])]
        elif name in ("APPEND", "APPENDS"):
            items = [stack.pop()] if name == "APPEND" else self._since_mark()
            if not isinstance(stack[-1], Unread):
                expect(stack[-1], list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [stack.pop(-2), stack.pop()] if name == "SETITEM" else self._since_mark()
            pairs = list(zip(items[::2], items[1::2], strict=True))
            if self._is_checkpoint:
                # Optimizer states are numbered, and callbacks named by their classes: nobody looks them up.
                pairs = [pair for pair in pairs if isinstance(pair[0], str)]
            if not isinstance(stack[-1], Unread):
                _fill(expect(stack[-1], dict), pairs)
        # STACK_GLOBAL, of protocol 4, is refused like any other: torch.save writes protocol 2.
        elif name == "GLOBAL":
            stack.append(self._named(argument))
        elif name == "BINPERSID":
            stack.append(self._persistent(expect(stack.pop(), tuple)))
        # A call, which is described and not made.
        elif name in ("REDUCE", "NEWOBJ"):
            arguments = expect(stack.pop(), tuple)
            # The same long list can be named again and again, and each call goes over it.
            self._spend(len(arguments[0]) if arguments and isinstance(arguments[0], list) else 0)
            called = stack.pop()
            stack.append(called if isinstance(called, Unread) else _result(expect(called, _Name).text, arguments))
        elif name == "BUILD":
            self._build(stack.pop())
        elif name != "PROTO":
            raise DataError(
                f"{self._path}: expected {self._what}, got a pickle with the opcode {name}, which it does not "
                "need. It was not executed."
            )

    def _build(self, state: Any) -> None:
        """Set the attributes of the object on top; those of a dictionary or tensor hold no numbers and are dropped."""
        target = expect(self._stack[-1], SavedModule | SavedTensor | Unread | dict)
        if isinstance(target, Unread):
            return
        if isinstance(target, SavedModule):
            target.state = expect(state, dict)
        else:
            expect(state, tuple if isinstance(target, SavedTensor) else dict)

    def _since_mark(self) -> list[Any]:
        start = self._marks.pop()
        items = self._stack[start:]
        del self._stack[start:]
        return items

    def _named(self, text: str) -> _Name | Unread:
        if text not in _NAMES:
            package, _, attribute = text.partition(" ")
            is_beside = package.partition(".")[0] in _BESIDE and attribute.rpartition(".")[2] not in _NOT_BESIDE
            if self._is_checkpoint and is_beside:
                return _UNREAD
            name = printable(text.replace(" ", ".")[:_MOST_OF_A_NAME])
            raise DataError(
                f"{self._path}: expected {self._what}, got a pickle with {name}, which it does not "
                "need. It was not imported. If the file is yours, save its tensors alone."
            )
        return _Name(text)

    def _persistent(self, identity: tuple[Any, ...]) -> Any:
        """Return the storage that is referred to; the older format refers to classes in this way too."""
        self._spend(len(identity))
        if identity[0] == "module" and isinstance(identity[1], _Name):
            return identity[1]
        kind, key, _, count, *view = identity[1:]
        is_storage = identity[0] == "storage" and isinstance(kind, _Name) and kind.text in _STORAGES
        if not is_storage or type(key) is not str or type(count) is not int or count < 0 or any(view):
            raise ValueError("it refers to something other than a storage")
        storage = Storage(key, _STORAGES[kind.text], count)
        # Two types or lengths for one storage would let a tensor pass the checks of the other.
        if self.storages.setdefault(key, storage) != storage:
            raise ValueError("it refers to one storage in two ways")
        return storage


def _result(name: str, arguments: tuple[Any, ...]) -> Any:
    """Return a stand-in for the result of a call."""
    if name in _TENSORS:
        storage, offset, size, stride = arguments[:4]
        if len(expect(size, tuple)) > _MOST_AXES:
            raise ValueError(f"a tensor with {len(size)} axes")
        return SavedTensor(expect(storage, Storage), offset, size, expect(stride, tuple))
    if name in _PARAMETERS:
        return expect(arguments[0], SavedTensor)
    if name == _MODULE:
        return SavedModule()
    if name == _ORDERED:
        items: dict[Any, Any] = {}
        if arguments:
            _fill(items, [expect(pair, list | tuple) for pair in expect(arguments[0], list)])
        return items
    if name in _SETS:
        # A list in place of a set: its elements need not be hashable, and nobody looks them up.
        return list(*(expect(argument, list) for argument in arguments))
    raise ValueError(f"it calls {name.replace(' ', '.')}")


def _fill(target: dict[Any, Any], pairs: list[Any]) -> None:
    for key, value in pairs:
        # Neither tuples nor integers as keys: both can be chosen so that hashing or comparing them takes for ever.
        target[expect(key, str)] = value


def expect(value: Any, kind: Any) -> Any:
    """Return a value of a type, or raise ValueError."""
    if not isinstance(value, kind):
        raise ValueError(f"{type(value).__name__.lstrip('_')} in a place where it makes no sense")
    return value

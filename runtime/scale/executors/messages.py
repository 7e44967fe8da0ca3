"""What an executor and its workers say to each other, as JSON: the same over the pipe of a process and through Ray."""

from __future__ import annotations

import msgspec

from flawscope import __version__, errors
from flawscope.errors import BackendError, FlawscopeError
from flawscope.runtime.scale.task import Done
from flawscope.runtime.scale.work import WORKS
from flawscope.text import encode_json


class Marker(msgspec.Struct, frozen=True):
    """A file in the folder of the plan: whoever reads its text from it shares that folder with the driver.

    Attributes:
        path: The file.
        text: What is in it.
    """

    path: str
    text: str


class Order(msgspec.Struct, frozen=True):
    """What a worker needs before its first task.

    Attributes:
        work: What `encode_work` wrote.
        works: The driver's table of works: the kinds that a worker must know.
        version: The driver's version of flawscope.
        marker: A file that the driver has written, which a worker on another machine must see under the same name;
            None where there is no other machine.
        shared: A private folder of this machine, absolute, for what its workers have in common; empty for none.
        run: A name that no other run has, by which the workers of each machine find such a folder themselves; empty for
            none.
    """

    work: msgspec.Raw
    works: dict[str, str]
    version: str
    marker: Marker | None = None
    shared: str = ""
    run: str = ""


class Opened(msgspec.Struct, frozen=True, tag=True):
    """The worker is ready for tasks.

    Attributes:
        pid: Number of its process on its machine.
        host: Name of that machine.
        notes: What people have to know of how it was opened.
    """

    pid: int
    host: str
    notes: tuple[str, ...] = ()


class Refusal(msgspec.Struct, frozen=True, tag=True):
    """An error that no repetition mends.

    Attributes:
        error: Name of its class in `flawscope.errors`.
        message: Its message.
    """

    error: str
    message: str

    def as_error(self) -> FlawscopeError:
        """Return it as the error that it was in the worker."""
        kind = getattr(errors, self.error, None)
        # MissingExtra makes its message by itself; what is no class of ours says at least what happened.
        if isinstance(kind, type) and issubclass(kind, FlawscopeError) and kind is not errors.MissingExtra:
            return kind(self.message)
        return BackendError(self.message)


class Answer(msgspec.Struct, frozen=True, tag=True):
    """A task is done."""

    done: Done


class Leaving(msgspec.Struct, frozen=True, tag=True):
    """The worker cannot go on in this process, which has to end.

    Attributes:
        reason: Why, without a full stop.
    """

    reason: str


FromWorker = Opened | Answer | Refusal | Leaving

_decoder: msgspec.json.Decoder[FromWorker] = msgspec.json.Decoder(FromWorker)


def decode_answer(data: bytes) -> FromWorker:
    """Return what a worker said.

    Raises:
        msgspec.DecodeError: If it is nothing that this version says.
    """
    return _decoder.decode(data)


def encode_order(work: bytes, marker: Marker | None = None, shared: str = "", run: str = "") -> bytes:
    """Return the order for a work, what `encode_work` wrote."""
    return encode_json(Order(msgspec.Raw(work), dict(WORKS), __version__, marker, shared, run))

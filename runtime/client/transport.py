"""How a server is asked: what every transport gives and raises.

Every failure is a `DeviceError` in one line. `Unreachable` is one of them: no answer has come, because the connection
was refused or ended, so that asking again can help. An inference changes nothing on a server, so it may be asked twice.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import UInt8Array
from flawscope.errors import ArgumentError, DeviceError, MissingExtra
from flawscope.runtime.client.access import CA_VARIABLE, TOKEN_VARIABLE, Access, Sent
from flawscope.runtime.client.address import Address
from flawscope.secrets import without_secrets
from flawscope.text import printable

_LONGEST = 500
"""Characters of what a server says that are shown."""


class Unreachable(DeviceError):
    """No answer has come: the connection could not be made, or ended."""


class NotAllowed(DeviceError):
    """The server, or a gateway before it, does not know who asks, or does not let him."""


@dataclass(frozen=True)
class Answer:
    """What a server answered to a request.

    Attributes:
        model: Name of the model that computed, in its words.
        version: Version of the model.
        request: Name of the request.
        outputs: Output -> array, None where it is missing.
    """

    model: str
    version: str
    request: str
    outputs: Mapping[str, npt.NDArray[Any] | None]


class Transport(Protocol):
    """Asks a server. All of it may be called from several threads at once."""

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model as JSON has it.

        Raises:
            DeviceError: If there is none within the time.
        """

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to uint8 [N, H, W, 3].

        Raises:
            DeviceError: If there is none within the time.
        """

    def close(self) -> None:
        """End the connection; closing twice is harmless."""


def import_client(protocol: str) -> Any:
    """Return the module `tritonclient.grpc` or `tritonclient.http`.

    Raises:
        MissingExtra: If it is not installed.
    """
    try:
        return importlib.import_module(f"tritonclient.{protocol}")
    except ImportError as err:
        raise MissingExtra("asking an inference server", "tritonclient", "client") from err


def image_input(module: Any, images: UInt8Array) -> Any:
    """Return images as the input of a request."""
    given = module.InferInput("image", list(images.shape), "UINT8")
    given.set_data_from_numpy(np.ascontiguousarray(images))
    return given


class Failures:
    """Failures of one server in words, without secrets.

    Args:
        address: The server.
        access: What goes with each request.
    """

    def __init__(self, address: Address, access: Access) -> None:
        self._address, self._access = address, access

    def sent(self) -> Sent:
        """Return what goes with a request; a secret that is gone meanwhile is a DeviceError."""
        try:
            return self._access.read()
        except ArgumentError as err:
            raise DeviceError(f"backend triton: {self._address}: {err}") from None

    def too_late(self, limit_s: float) -> DeviceError:
        """Return the failure of an answer that did not come in time."""
        return DeviceError(f"backend triton: {self._address}: expected an answer within {limit_s:g} s, got none.")

    def unreachable(self, said: str, sent: Sent) -> Unreachable:
        """Return the failure of a connection."""
        hint = ""
        if self._address.is_secure and "CERTIFICATE_VERIFY_FAILED" in said.upper():
            hint = f" Where its certificate is of your own authority, name that one with {CA_VARIABLE}=FILE."
        return Unreachable(
            f"backend triton: {self._address}: no server answers there: {_in_one_line(said, sent)}{hint}"
        )

    def failed(self, said: str, sent: Sent) -> DeviceError:
        """Return the failure of a server that answers with an error, or with what is no answer."""
        return DeviceError(f"backend triton: {self._address}: the server failed: {_in_one_line(said, sent)}")

    def not_allowed(self, status: str, *, is_known: bool) -> NotAllowed:
        """Return the failure of who may not ask; what the server says of it may hold what it was sent."""
        places = self._access.places
        what = f"backend triton: {self._address}: expected an answer, got {status}: it or its gateway"
        if is_known:
            whom = f"whoever has {places}" if places else "anybody"
            return NotAllowed(f"{what} does not let {'him' if places else 'us'} ask. Have {whom} allowed there.")
        if not places:
            return NotAllowed(f"{what} wants to know who asks. Set {TOKEN_VARIABLE}=env:NAME or file:PATH.")
        return NotAllowed(f"{what} does not take {places}. Is it right, and not expired? Write a new one there.")


def _in_one_line(said: str, sent: Sent) -> str:
    # Before it is cut: a part of a secret is not found any more.
    lines = without_secrets(said.strip(), *sent.secrets).splitlines()
    return printable(lines[0])[:_LONGEST] if lines else "it said nothing"


def reached(transport: Transport, model: str, version: str, limit_s: float) -> dict[str, Any]:
    """Return the configuration of a model; a failure says what to look at.

    Raises:
        DeviceError: If the server does not answer, or has no such model.
    """
    try:
        return transport.config(model, version, limit_s)
    except (Unreachable, NotAllowed):
        raise
    except DeviceError as err:
        raise DeviceError(
            f"{err} Expected the model {model} in version {version}, as flawscope export-triton writes it."
        ) from None

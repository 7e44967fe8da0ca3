"""An ONNX graph with its external data in memory: what backends take in place of a path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy.typing as npt

from flawscope.bundle.onnx_graph import ExternalTensor, read_graph
from flawscope.errors import BundleError

Read = Callable[[str], bytes]
"""File name, relative to the folder that all files lie in -> its bytes."""


@dataclass(frozen=True)
class OnnxModel:
    """A graph as a backend takes it: bytes, no path.

    Attributes:
        file: Its file name.
        data: The bytes of the ONNX file.
        external: Name -> values of the initializers that lie in other files: views of the bytes that were read.
    """

    file: str
    data: bytes
    external: Mapping[str, npt.NDArray[Any]]

    @classmethod
    def read(cls, file: str, read: Read, where: str) -> OnnxModel:
        """Read a graph and its external data.

        Args:
            file: File name of the graph.
            read: Reads a file; it decides which names are allowed.
            where: What the graph is called in messages.

        Raises:
            BundleError: If the graph has operators that the bundle format does not name, or its external data do not
                fit; and whatever `read` raises.
        """
        external: dict[str, npt.NDArray[Any]] = {}
        for place, tensor in external_files(file, read(file), where):
            if tensor.name in external:
                raise BundleError(f"{where}: expected {tensor.name} once, got it again. Export the bundle again.")
            external[tensor.name] = tensor.view(read(place), where)
        return cls(file, read(file), external)

    @classmethod
    def of_file(cls, path: Path) -> OnnxModel:
        """Read a graph that was just made, and its external data beside it; see `read`."""
        read: dict[str, bytes] = {}

        def once(name: str) -> bytes:
            if name not in read:
                read[name] = (path.parent / name).read_bytes()
            return read[name]

        return cls.read(path.name, once, str(path))


def external_files(file: str, data: bytes, where: str) -> list[tuple[str, ExternalTensor]]:
    """Return the tensors that a graph keeps in other files, each with the name of its file; see `OnnxModel.read`.

    Args:
        file: File name of the graph, to which the names in it are relative.
        data: The bytes of the ONNX file.
        where: What the graph is called in messages.
    """
    return [((PurePosixPath(file).parent / tensor.file).as_posix(), tensor) for tensor in read_graph(data, where)]

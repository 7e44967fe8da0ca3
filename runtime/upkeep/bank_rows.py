"""The rows of a bundle's memory bank as they are changed: inserted, taken out, and stored within the room there is.

A row is stored with its squared norm, with a window its place, and where it has neighbours that re-weight the score,
with those. Rows keep their order, those of later images behind earlier ones (with a window: within a place): of equally
near rows the first one counts, so what is left after a removal is searched as if nothing had been there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from flawscope.arrays import BoolArray, Float32Array, Int64Array
from flawscope.bank_names import bank_names, norm_names, place_names
from flawscope.bundle import AddedRows, PatchcoreHead, with_room
from flawscope.cpp_ext import neighbour_table
from flawscope.cpp_ext.window import place_starts, window_reach
from flawscope.cpp_ext.window_coreset import places_of
from flawscope.errors import BundleError

TRAINED = -1
"""Origin of the rows that the training has chosen; others have the index of their image."""

_NEIGHBOURS = "neighbours"

Tensors = Mapping[str, npt.NDArray[Any]]


def rows_problem(head: PatchcoreHead, tensors: Tensors) -> str | None:
    """Return why the rows of a bank cannot be changed under its graph, or None if they can.

    How many neighbours re-weight a score, and how far a patch looks in a window, are constants of the graph.

    Args:
        head: The head.
        tensors: The rows in use, with their places where there is a window.
    """
    rows = len(tensors["bank"]) if head.banks == 1 else 0
    if head.reweights and rows < head.neighbors:
        return f"expected at least {head.neighbors} rows, as many as the neighbours that re-weight a score, got {rows}"
    if head.window is not None:
        for name in place_names(head.banks):
            reach = window_reach(place_starts(tensors[name], head.grid), head.grid, head.window)
            if widened := int((reach > head.window).sum()):
                return f"expected rows in the window of every patch, got {widened} patches without"
    return None


@dataclass(frozen=True)
class NewRows:
    """Rows to be added to one bank.

    Attributes:
        rows: float32 [K, D].
        positions: Place of each on the patch grid, row · columns + column, int64 [K].
        images: Index of the image of each, ascending, int64 [K].
    """

    rows: Float32Array
    positions: Int64Array
    images: Int64Array


@dataclass(frozen=True)
class BankRows:
    """The rows in use of all banks of a bundle.

    Attributes:
        head: The head.
        tensors: All tensors of the bank, those with an entry for each row without room.
        origins: For each bank where its rows come from: `TRAINED`, or the index of an added image, int64 [M].
    """

    head: PatchcoreHead
    tensors: Mapping[str, npt.NDArray[Any]]
    origins: tuple[Int64Array, ...]

    @classmethod
    def of(cls, head: PatchcoreHead, tensors: Tensors, added: Sequence[AddedRows]) -> BankRows:
        """Return the rows of a bundle.

        Args:
            head: Its head.
            tensors: Its tensors, those in use.
            added: What the record says of each bank; nothing before the first addition.

        Raises:
            BundleError: If the record names rows that the bank does not have.
        """
        origins = []
        for number, name in enumerate(bank_names(head.banks)):
            origin = np.full(len(tensors[name]), TRAINED, np.int64)
            if added:
                if added[number].rows and added[number].rows[-1] >= len(origin):
                    raise BundleError(
                        f"record of added images: expected rows of the {len(origin)} of {name}, got "
                        f"{added[number].rows[-1]}. Export the bundle again."
                    )
                origin[list(added[number].rows)] = added[number].images
            origins.append(origin)
        return cls(head, tensors, tuple(origins))

    @property
    def counts(self) -> tuple[int, ...]:
        """Rows in use of each bank."""
        return tuple(len(origin) for origin in self.origins)

    def added_rows(self) -> tuple[AddedRows, ...]:
        """Return what the record says of each bank."""
        return tuple(
            AddedRows(tuple(np.flatnonzero(origin != TRAINED).tolist()), tuple(origin[origin != TRAINED].tolist()))
            for origin in self.origins
        )

    def with_added(self, new: Sequence[NewRows]) -> BankRows:
        """Return the banks with new rows, one entry for each bank."""
        tensors, origins = dict(self.tensors), []
        for names, origin, part in zip(self._names(), self.origins, new, strict=True):
            rows = np.ascontiguousarray(part.rows, np.float32)
            together = {"bank": rows, "norms": np.einsum("md,md->m", rows, rows)}
            if self.head.window is not None:
                together["places"] = places_of(part.positions, self.head.grid)
            merged = {kind: np.concatenate([tensors[names[kind]], value]) for kind, value in together.items()}
            order = np.arange(len(merged["bank"]))
            if self.head.window is not None:
                # By place, as the search wants them; stable, so that earlier rows stay before later ones.
                order = np.lexsort((order, *merged["places"].T[::-1]))
            tensors |= {names[kind]: np.ascontiguousarray(value[order]) for kind, value in merged.items()}
            origins.append(np.concatenate([origin, part.images])[order])
        return BankRows(self.head, tensors, tuple(origins))._with_neighbours()

    def only(self, kept: Sequence[BoolArray]) -> BankRows:
        """Return the banks without some rows.

        Args:
            kept: Which rows of each bank stay, bool [M].
        """
        tensors = dict(self.tensors)
        for names, keep in zip(self._names(), kept, strict=True):
            tensors |= {name: tensors[name][keep] for name in names.values() if name in tensors}
        origins = tuple(origin[keep] for origin, keep in zip(self.origins, kept, strict=True))
        return BankRows(self.head, tensors, origins)._with_neighbours()

    def with_origins(self, origins: Sequence[Int64Array]) -> BankRows:
        """Return the same rows with other origins."""
        return BankRows(self.head, self.tensors, tuple(origins))

    def room(self, stored: bytes) -> tuple[int, ...]:
        """Return how many rows more a file of the bank has in each of its banks; negative where it has fewer."""
        before, names = safetensors.numpy.load(stored), bank_names(self.head.banks)
        return tuple(len(before[name]) - count for name, count in zip(names, self.counts, strict=True))

    def encode(self, stored: bytes) -> bytes:
        """Return the file of the bank, with room up to what was stored before: all offsets in it stay what they were.

        Args:
            stored: The file as it was.

        Raises:
            BundleError: If the rows do not fit.
        """
        room = self.room(stored)
        if min(room) < 0:
            raise BundleError(f"bank: expected room for {-min(room)} rows more, got none. Prune it first.")
        data = safetensors.numpy.save(with_room(self.tensors, room))
        # The graphs name their tensors by the place in this file.
        header = 8 + int.from_bytes(stored[:8], "little")
        if data[:header] != stored[:header] or len(data) != len(stored):
            raise BundleError("bank: expected a file as flawscope export writes it, got another. Export it again.")
        return data

    def _with_neighbours(self) -> BankRows:
        if _NEIGHBOURS not in self.tensors:
            return self
        table = neighbour_table(self.tensors["bank"], self.tensors[_NEIGHBOURS].shape[1])
        return BankRows(self.head, {**self.tensors, _NEIGHBOURS: table}, self.origins)

    def _names(self) -> list[dict[str, str]]:
        """Return for each bank the names of its tensors, by what they are."""
        banks = self.head.banks
        return [
            {"bank": bank, "norms": norms, "places": places}
            for bank, norms, places in zip(bank_names(banks), norm_names(banks), place_names(banks), strict=True)
        ]

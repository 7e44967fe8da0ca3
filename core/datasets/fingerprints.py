"""Content hashes of images, and the fingerprint of a whole dataset."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from flawscope.datasets.samples import Dataset
from flawscope.errors import ArgumentError, DataError
from flawscope.files import sha256_file
from flawscope.progress import CountProgress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        return sha256_file(path)
    except OSError as err:
        raise DataError(f"{path}: expected a file that can be read, got: {err.strerror or err}.") from err


def hash_contents(paths: Iterable[Path], progress: CountProgress | None = None) -> dict[Path, str]:
    """Return the content hash of every path; `progress` is called after each.

    Raises:
        DataError: If a file cannot be read.
    """
    listed = list(paths)
    return dict(zip(listed, map_in_threads(content_hash, listed, progress), strict=True))


def fingerprint(dataset: Dataset, hashes: Mapping[Path, str]) -> str:
    """Return one SHA-256 over everything that training and evaluation take from a dataset's images.

    It covers the path below the root, split, defect type and content of every sample in order, so it is the same when
    the dataset is copied elsewhere. Masks are not part of it: training does not read them.

    Raises:
        ArgumentError: If a sample has no hash.
    """
    digest = hashlib.sha256()
    for sample in dataset.samples:
        if sample.path not in hashes:
            raise ArgumentError(f"hashes: expected one for every sample, got none for {sample.path}.")
        # With slashes on every system.
        place = sample.path.relative_to(dataset.root).as_posix()
        # JSON, so that no two lists of fields give the same text; runs and bundles record it, so the form may not
        # change.
        digest.update(json.dumps([place, sample.split, sample.defect, hashes[sample.path]]).encode())
    return digest.hexdigest()


def map_in_threads(
    function: Callable[[_Item], _Result], items: list[_Item], progress: CountProgress | None = None
) -> Iterator[_Result]:
    """Yield function(item) in order, computed by a few threads: hashing and decoding release the interpreter lock."""
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        for completed, result in enumerate(pool.map(function, items), 1):
            yield result
            if progress:
                progress(completed, len(items))

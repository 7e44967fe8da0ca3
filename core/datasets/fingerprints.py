"""Content hashes of images, and the fingerprint of a whole dataset.

Two images are the same when their decoded pixels are, whatever bytes they are stored in: a copy with another time in
its metadata is no second image. Older bundles and runs have hashes of files instead, as support sets and generated
sets still do; `as_recorded` compares with those.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from flawscope.datasets.samples import Dataset
from flawscope.errors import ArgumentError, DataError, ImageError
from flawscope.files import sha256_file
from flawscope.imaging.images import decode_stored, read_encoded
from flawscope.progress import CountProgress

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


_AHEAD = 256
"""Items that threads may be ahead of whoever takes the results."""
_PIXELS = "pixels:"
"""Begins a hash of pixels; one of a file's bytes is 64 digits alone."""


def content_hash(path: Path) -> str:
    """Return the SHA-256 of a file's bytes as 64 hexadecimal digits.

    Raises:
        DataError: If the file cannot be read.
    """
    try:
        return sha256_file(path)
    except OSError as err:
        raise DataError(f"{path}: expected a file that can be read, got: {err.strerror or err}.") from err


def pixel_hash(image: npt.NDArray[Any]) -> str:
    """Return `pixels:` and the SHA-256 over type, shape and values of a decoded image; see `decode_stored`."""
    # Grey that was saved in colour is the same image.
    if image.ndim == 3 and (image == image[..., :1]).all():
        image = image[..., 0]
    digest = hashlib.sha256(f"{image.dtype.name} {image.shape}".encode())
    digest.update(np.ascontiguousarray(image).data)
    return _PIXELS + digest.hexdigest()


def hash_contents(paths: Iterable[Path], progress: CountProgress | None = None) -> dict[Path, str]:
    """Return the hash of every image's pixels; `progress` is called after each.

    An image that cannot be decoded has the hash of its file instead: whoever needs its pixels reports that.

    Raises:
        DataError: If a file cannot be read.
    """
    listed = list(paths)
    return dict(zip(listed, map_in_threads(image_hash, listed, progress), strict=True))


def image_hash(path: Path) -> str:
    """Return the hash of one image's pixels, or of its file where it cannot be decoded.

    Raises:
        DataError: If the file cannot be read.
    """
    data = read_encoded(path)
    try:
        return pixel_hash(decode_stored(data, str(path)))
    except ImageError:
        return hashlib.sha256(data).hexdigest()


def as_recorded(contents: Mapping[Path, str], recorded: Collection[str]) -> dict[Path, str]:
    """Return the hashes of images in the form in which records have them, for comparison.

    Where a record has the hash of an image's file, that is the hash of this image and of all with its pixels.

    Args:
        contents: What `hash_contents` returned.
        recorded: Hashes of records, of pixels or of files.

    Raises:
        DataError: If a file cannot be read.
    """
    of_files = {content for content in recorded if not content.startswith(_PIXELS)}
    if not of_files:
        return dict(contents)
    paths = list(contents)
    known: dict[str, str] = {}
    for path, of_file in zip(paths, map_in_threads(content_hash, paths), strict=True):
        # A record may have both kinds, as an ensemble of old and new members has.
        if of_file in of_files and contents[path] not in recorded:
            known.setdefault(contents[path], of_file)
    return {path: known.get(content, content) for path, content in contents.items()}


def pixels_of_recorded(contents: Mapping[Path, str], recorded: Collection[str]) -> dict[str, str]:
    """Return hash of a record -> hash of the pixels of the image that it is of, for those among these images.

    For comparing one by one: `as_recorded` names one hash for all copies of an image, and a record may have those of
    several copies, which are other files with the same pixels.

    Args:
        contents: What `hash_contents` returned.
        recorded: Hashes of records, of pixels or of files.

    Raises:
        DataError: If a file cannot be read.
    """
    found = {content: content for content in contents.values() if content in recorded}
    if any(not content.startswith(_PIXELS) for content in recorded):
        paths = list(contents)
        for path, of_file in zip(paths, map_in_threads(content_hash, paths), strict=True):
            if of_file in recorded:
                found[of_file] = contents[path]
    return found


def fingerprint(dataset: Dataset, hashes: Mapping[Path, str]) -> str:
    """Return one SHA-256 over everything that training and evaluation take from a dataset's images.

    It covers the path below the root, split, defect type and content of every sample in order, so it is the same when
    the dataset is copied elsewhere. `hashes` are those of `hash_contents`, so a fingerprint from before pixels were
    hashed is another one. Masks are not part of it: training does not read them.

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
    remaining = iter(items)
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        # A few at a time: `pool.map` would begin with a future for every one of a million images.
        waiting = deque(pool.submit(function, item) for item in itertools.islice(remaining, _AHEAD))
        try:
            for completed in range(1, len(items) + 1):
                result = waiting.popleft().result()
                waiting.extend(pool.submit(function, item) for item in itertools.islice(remaining, 1))
                yield result
                if progress:
                    progress(completed, len(items))
        finally:
            for future in waiting:
                future.cancel()

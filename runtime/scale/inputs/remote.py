"""Images by URL, through fsspec: listed with their sizes, a thousand a request, and read with one request each.

Who may read them is said where each library looks by itself: its environment, its files, and those of fsspec. Nothing
of it is in a plan, an option or a message.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeVar

from flawscope.errors import ArgumentError, DataError, FlawscopeError, ImageError, MissingExtra
from flawscope.files import is_litter
from flawscope.imaging.images import EXTENSIONS, most_encoded_bytes
from flawscope.runtime.scale.inputs.files import MASK_FOLDERS, check_size, ending_of
from flawscope.runtime.scale.inputs.items import Found, Item
from flawscope.runtime.scale.inputs.patterns import Pattern
from flawscope.runtime.scale.inputs.places import safe_place
from flawscope.runtime.scale.inputs.urls import reason_of, scheme_of, shown

Answer = TypeVar("Answer")

_PAUSES_S = (0.2, 1.0)
"""Before each new try of what failed; the library of S3 makes tries of its own besides."""
_FINAL = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError, ValueError, NotImplementedError)
_PACKAGES = {"gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
_ADVICE = "Check the name and who may read it."
# As the libraries call them; their modules may not be imported here.
_WITHOUT_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError"})


def system_of(url: str) -> tuple[Any, str]:
    """Return the file system of a URL, and the path there; equal file systems are one object.

    Raises:
        MissingExtra: If fsspec, or what it needs for S3, is not installed.
        ArgumentError: If nothing can read such URLs, or what does is not installed.
    """
    scheme = scheme_of(url)
    try:
        import fsspec
        from fsspec.core import url_to_fs
    except ImportError as err:
        raise MissingExtra("reading images by URL", "fsspec", "remote") from err
    if "::" in url:
        raise ArgumentError(
            f"{shown(url)}: expected the URL of an object, got a chain of URLs. Name the object itself."
        )
    try:
        fsspec.get_filesystem_class(scheme)
        # A listing of millions must not be kept.
        system, path = url_to_fs(url, use_listings_cache=False)
    except ImportError as err:
        if scheme in ("s3", "s3a"):
            raise MissingExtra(f"reading {scheme}://", "s3fs", "s3") from err
        package = _PACKAGES.get(scheme)
        install = f'pip install "flawscope[remote]" {package}' if package else str(err)
        raise ArgumentError(
            f"{shown(url)}: reading {scheme}:// needs a package which is not installed. Install it with: {install}"
        ) from err
    except Exception as err:  # libraries raise anything for settings that they do not understand
        raise ArgumentError(
            f"{shown(url)}: expected a URL that fsspec can open, got: {reason_of(err, url)}. Check it and the settings "
            f"of {scheme}."
        ) from err
    return system, str(path)


def tried(call: Callable[[], Answer]) -> Answer:
    """Return what a call returns; what fails by a network's mood is tried again."""
    for pause in _PAUSES_S:
        try:
            return call()
        except _FINAL:
            raise
        except Exception as err:
            if type(err).__name__ in _WITHOUT_CREDENTIALS:
                raise
            time.sleep(pause)
    return call()


def _refused(url: str, err: Exception, expected: str) -> str:
    if type(err).__name__ in _WITHOUT_CREDENTIALS:
        name = f"FSSPEC_{scheme_of(url).upper()}"
        advice = f"""Give its library credentials, or {name}='{{"anon": true}}' for what everybody may read."""
    else:
        advice = _ADVICE
    return f"{shown(url)}: expected {expected}, got: {reason_of(err, url)}. {advice}"


def named_object(url: str, place: str) -> Item:
    """Return the item of a URL of one image; nothing is asked of the network."""
    return _item(url, place)


def list_remote(url: str, top: str, found: Found, endings: frozenset[str] = EXTENSIONS) -> Iterator[Item]:
    """Yield the images below a URL, or those that it matches as a pattern, in the order of their names.

    Args:
        url: The URL, without an ending slash.
        top: Folder that places lie in; empty for none.
        found: Gets the folders of masks that are passed over.
        endings: Of the objects that count where the URL is a pattern.

    Raises:
        ArgumentError: If it cannot be listed.
    """
    pattern = Pattern(url)
    system, path = system_of(url)
    if pattern.parts:
        root, begin = Pattern(path).root, Pattern(path).literal
    else:
        root, begin, endings = path.rstrip("/"), f"{path.rstrip('/')}/", EXTENSIONS
    below_all = path.lstrip("/")
    head = url[: -len(below_all)] if below_all and url.endswith(below_all) else f"{scheme_of(url)}://"
    count, masks = 0, dict[str, None]()
    try:
        for name, size in _objects(system, root, begin):
            below = name[len(root) :].lstrip("/")
            if _counts(below, pattern if pattern.parts else None, endings, masks):
                count += 1
                yield _item(head + name.lstrip("/"), _place(top, below), size)
    except Exception as err:
        raise ArgumentError(_refused(url, err, "what can be listed")) from err
    found.masks.extend(shown(f"{head}{root.strip('/')}/{folder}") for folder in masks)
    if not count and not pattern.parts:
        yield from _itself(system, path, url, top)


def _item(url: str, place: str, size: int = -1) -> Item:
    name = shown(url)
    return Item(name, place, size, "fsspec", where=() if name == url else (url,))


def _place(top: str, below: str) -> str:
    return "/".join(filter(None, (top, safe_place(below))))


def _itself(system: Any, path: str, url: str, top: str) -> Iterator[Item]:
    """Yield an object without an ending that is called like an image."""
    with contextlib.suppress(Exception):  # there is none: the caller says so
        about = system.info(path)
        if about["type"] == "file":
            yield _item(url, _place(top, url.rpartition("/")[2]), _size(about))


def _counts(below: str, pattern: Pattern | None, endings: frozenset[str], masks: dict[str, None]) -> bool:
    """Return whether an object below the root of a listing is an image that counts; masks are added."""
    if ending_of(below[below.rfind("/") + 1 :]) not in endings or (pattern is not None and not pattern.matches(below)):
        return False
    parts = below.split("/")
    if any(map(is_litter, parts)):
        return False
    for number, part in enumerate(parts[:-1], 1):
        if part.lower() in MASK_FOLDERS and not (pattern is not None and part in pattern.parts):
            masks["/".join(parts[:number])] = None
            return False
    return True


def _objects(system: Any, root: str, begin: str) -> Iterator[tuple[str, int]]:
    """Yield name and size of all objects whose path begins with a text, in the order of their names."""
    if "s3" in _schemes(system):
        yield from _objects_of_s3(system, begin)
    else:
        yield from _objects_by_folder(system, root, begin)


def _schemes(system: Any) -> tuple[str, ...]:
    return (system.protocol,) if isinstance(system.protocol, str) else tuple(system.protocol)


def _objects_of_s3(system: Any, begin: str) -> Iterator[tuple[str, int]]:
    """Page by page, whatever folders there are: the library's own listing holds all objects of a folder at once."""
    bucket, prefix, _ = system.split_path(begin)
    asked: dict[str, Any] = {"Bucket": bucket, "Prefix": prefix}
    while True:
        page = tried(lambda: system.call_s3("list_objects_v2", **asked))
        for entry in page.get("Contents", ()):
            if not entry["Key"].endswith("/"):  # the mark of a folder
                yield f"{bucket}/{entry['Key']}", int(entry["Size"])
        if not page.get("IsTruncated"):
            return
        asked["ContinuationToken"] = page["NextContinuationToken"]


def _objects_by_folder(system: Any, root: str, begin: str) -> Iterator[tuple[str, int]]:
    """Folder by folder, for what fsspec lists no other way."""
    pending: list[Iterator[dict[str, Any]]] = [iter([{"name": root, "type": "directory"}])]
    while pending:
        entry = next(pending[-1], None)
        if entry is None:
            pending.pop()
            continue
        name = str(entry["name"]).rstrip("/")
        if entry["type"] != "directory":
            if name.startswith(begin):
                yield name, _size(entry)
        elif name == root or name.startswith(begin) or begin.startswith(f"{name}/"):
            entries = tried(lambda folder=name: system.ls(folder, detail=True))  # type: ignore[misc]
            # A listing of a file is the file itself; some have the folder itself among its entries.
            below = [entry for entry in entries if str(entry["name"]).rstrip("/") != name]
            pending.append(iter(sorted(below, key=lambda entry: str(entry["name"]))))
            system.invalidate_cache()


def _size(about: dict[str, Any]) -> int:
    size = about.get("size")
    return int(size) if isinstance(size, int | float) else -1


class RemoteReader:
    """Reads objects with one request each."""

    def read(self, item: Item) -> bytes:
        """Return the bytes of an object.

        Raises:
            ImageError: If it cannot be read, is gone, or has another size than when it was listed.
        """
        most = most_encoded_bytes()
        if item.size > most:
            raise ImageError(f"{item.name}: it has more than {most:,} bytes, the most that is read.")
        if item.size == 0:
            return b""  # a part of nothing is an error in S3
        # One more: an object that has grown is seen, and one without end is not read.
        data = read_remote(item.name, str(item.where[0]) if item.where else item.name, 0, max(item.size, 0) or most, 1)
        check_size(item, len(data))
        if len(data) > most:
            raise ImageError(f"{item.name}: it has more than {most:,} bytes, the most that is read.")
        return data

    def close(self) -> None:
        """Connections are of fsspec, which keeps them for all of the process."""


def read_remote(image: str, url: str, offset: int, length: int, more: int = 0) -> bytes:
    """Return a part of an object, shorter where the object ends.

    Args:
        image: What the image there is called.
        url: The object.
        offset: Where the part begins, in bytes.
        length: Bytes of the part.
        more: Bytes that may follow.

    Raises:
        ImageError: If it cannot be read, or has less than the part and `more` is 0.
    """
    try:
        system, path = system_of(url)
        data = bytes(tried(lambda: system.cat_file(path, start=offset, end=offset + length + more)))
    except (ArgumentError, MissingExtra):
        raise
    except FileNotFoundError as err:
        raise ImageError(f"{image}: expected an object that is there, got: not found. Put it back.") from err
    except Exception as err:
        raise ImageError(f"{image}: could not be read: {reason_of(err, url)}. {_ADVICE}") from err
    if not more and len(data) != length:
        raise ImageError(f"{image}: expected {length:,} bytes, got {len(data):,}: {shown(url)} was cut. Put it back.")
    return data


def size_of_remote(url: str) -> int:
    """Return the bytes of an object now.

    Raises:
        DataError: If it cannot be asked for.
    """
    try:
        system, path = system_of(url)
        size = _size(tried(lambda: system.info(path)))
    except (ArgumentError, MissingExtra):
        raise
    except Exception as err:
        raise DataError(_refused(url, err, "an object that is there")) from err
    if size < 0:
        raise DataError(
            f"{shown(url)}: expected an archive whose size is told, got none. Copy it here, and name the file."
        )
    return size


@contextlib.contextmanager
def open_remote(url: str) -> Iterator[tuple[IO[bytes], int]]:
    """Yield an object, open to be read and with `seek`, and its size in bytes.

    Raises:
        DataError: If it cannot be opened, or its file system fails while it is read.
    """
    size = size_of_remote(url)
    system, path = system_of(url)
    try:
        file = tried(lambda: system.open(path, "rb"))
    except Exception as err:
        raise DataError(_refused(url, err, "an object that can be read")) from err
    try:
        with file:
            yield file, size
    except FlawscopeError:
        raise
    except Exception as err:  # libraries raise what they like; a GeneratorExit is of whoever listens no more
        raise DataError(_refused(url, err, "an object that can be read")) from err

"""All that is named for a plan, as items: one after the other, so that ten million need hardly more memory than ten."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from flawscope.errors import ArgumentError, DataError
from flawscope.files import free_name
from flawscope.imaging.image_files import is_folder
from flawscope.imaging.images import EXTENSIONS
from flawscope.runtime.scale.inputs.files import Walk, ending_of, named_file
from flawscope.runtime.scale.inputs.items import Found, Item
from flawscope.runtime.scale.inputs.lists import STANDARD_INPUT, read_lines
from flawscope.runtime.scale.inputs.patterns import Pattern, has_magic
from flawscope.runtime.scale.inputs.places import safe_place
from flawscope.runtime.scale.inputs.table import ARCHIVES, SOURCES, Lister
from flawscope.runtime.scale.inputs.tables import beside
from flawscope.runtime.scale.inputs.taken import each_once, own_places
from flawscope.runtime.scale.inputs.urls import WEB, is_url, local_path, scheme_of, shown, without_query

_ENDINGS = EXTENSIONS | ARCHIVES.keys()
_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")


def list_items(named: Sequence[str | Path], *, column: str | None = None, found: Found | None = None) -> Iterator[Item]:
    """Yield the images that are named, in the order in which they are, each once.

    Folders, patterns and URLs of folders give their images in the order of their names; lists, archives and tables in
    their own. Images of one folder keep their folders below it in `Item.place`; those of several lie below the name of
    theirs. What does not exist stays: it becomes a fault with its reason, and the others are scored.

    Args:
        named: Images and folders; patterns of them (`**`); archives (`.tar`, `.parquet`); lists (`@FILE`, or `-` for
            standard input); URLs. What is there as a file is that file, whatever its name; a `Path` always is.
        column: Column of Parquet tables that has the images; None: by type and name.
        found: Gets what is met beside images; complete once all is yielded.

    Raises:
        ArgumentError: If something that is named has no image, or cannot be listed.
        DataError: If an archive cannot be read.
        MissingExtra: If a package is missing that reads what is named.
    """
    listing = _Listing(column, Found() if found is None else found)
    ways = [way for name in named for way in _ways(name)]
    listing.has_several = sum(way.is_folder for way in ways) > 1
    items: Iterator[Item] = (item for way in ways for item in listing.some(way))
    # A folder has nothing twice: then the larger part of the memory is not needed.
    if [way.kind for way in ways] != ["folder"] and not (len(ways) == 1 and ways[0].is_prefix):
        items = each_once(items)
    is_empty = True
    for item in own_places(items):
        is_empty = False
        yield item
    if is_empty:  # nothing but links that go round
        raise _no_image(str(named[0]) if named else ".")
    if column is not None and "parquet" not in listing.sources:
        raise ArgumentError(f"column: expected a table that has {column}, got none among what is named. Leave it out.")


@dataclass(frozen=True)
class _Way:
    """How something was named, and its text: a path, a URL, or the name of a list."""

    kind: str
    text: str

    @property
    def is_folder(self) -> bool:
        """Whether images may lie in folders below it."""
        return self.kind in ("folder", "pattern", "remote")

    @property
    def is_prefix(self) -> bool:
        """Whether it is the URL of a folder, and no pattern."""
        return self.kind == "remote" and not has_magic(self.text)


def _ways(name: str | Path) -> Iterator[_Way]:
    """Yield how something was named."""
    text = str(name)
    if not text:
        raise ArgumentError("expected the name of an image or folder, got an empty one. Leave it out.")
    if not isinstance(name, Path) and is_url(text):
        if (path := local_path(text)) is None:
            yield _way_of_url(text)
            return
        if not path:
            raise ArgumentError(f"{text}: expected the path of an image or folder behind it, got none. Name one.")
        text = path
    if is_folder(Path(text)):
        yield _Way("folder", str(Path(text)))
        return
    if not isinstance(name, Path) and not os.path.lexists(text):
        if text == STANDARD_INPUT or text.startswith("@"):
            yield _Way("list", text.removeprefix("@"))
            return
        if has_magic(text):
            yield _Way("pattern", text)
            return
    _check_plain(text)
    yield _Way("archive" if ending_of(Path(text).name) in ARCHIVES else "file", str(Path(text)))


def _way_of_url(url: str) -> _Way:
    _check_plain(url)
    ending = ending_of(_last_part(url))
    if scheme_of(url) not in WEB:
        if has_magic(url):
            return _Way("remote", url)
        if not ending or url.endswith("/") or ending not in _ENDINGS:
            return _Way("remote", url.rstrip("/") if not url.endswith("://") else url)
    return _Way("archive" if ending in ARCHIVES else "object", url)


@dataclass
class _Listing:
    column: str | None
    found: Found
    has_several: bool = False
    tops: set[str] = field(default_factory=set)
    sources: set[str] = field(default_factory=set)  # of the archives that were met

    def some(self, way: _Way) -> Iterator[Item]:
        """Yield the items of one thing that was named; none is an error, if it is more than an image."""
        again, count = len(self.found.again), 0
        for item in getattr(self, f"of_{way.kind}")(way.text):
            count += 1
            yield item
        if not count and (way.kind != "folder" or len(self.found.again) == again):
            raise _no_image(way.text)

    def of_file(self, path: str) -> Iterator[Item]:
        yield named_file(Path(path), Path(path).stem)

    def of_object(self, url: str) -> Iterator[Item]:
        from flawscope.runtime.scale.inputs.remote import named_object

        yield named_object(url, safe_place(_last_part(url)))

    def of_folder(self, path: str) -> Iterator[Item]:
        # `..` and `.` have no name of their own.
        name = Path(path).name or Path(os.path.abspath(path)).name or "images"  # noqa: PTH100
        return iter(Walk(Path(path), self._top(name), self.found))

    def of_pattern(self, text: str) -> Iterator[Item]:
        pattern = Pattern(text)
        root = Path(pattern.root)
        if not is_folder(root):
            raise ArgumentError(f"{text}: expected the folder {root}, got none of that name. Check the path.")
        top = self._top(root.name or "images")
        return self._unpacked(Walk(root, top, self.found, pattern, _ENDINGS))

    def of_remote(self, url: str) -> Iterator[Item]:
        from flawscope.runtime.scale.inputs.remote import list_remote

        pattern = Pattern(url)
        top = self._top(safe_place(pattern.root.rpartition("/")[2] + "/"))
        return self._unpacked(list_remote(url, top, self.found, _ENDINGS))

    def _unpacked(self, items: Walk | Iterator[Item]) -> Iterator[Item]:
        """Yield items, for an archive what is in it."""
        for item in items:
            if not item.fault and (ending := ending_of(item.name)) in ARCHIVES:
                yield from self._found_archive(str(item.where[0] if item.where else item.name), item.place, ending)
            else:
                yield item

    def of_archive(self, name: str) -> Iterator[Item]:
        base = _last_part(name)
        return self._in_archive(name, safe_place(base), ending_of(base))

    def _found_archive(self, name: str, place: str, ending: str) -> Iterator[Item]:
        """As `_in_archive`, but a fault where it cannot be read: nobody named it, and the others can be."""
        try:
            yield from self._in_archive(name, place, ending)
        except ArgumentError:
            raise
        except DataError as err:
            yield Item(shown(name), "", fault=str(err))

    def _in_archive(self, name: str, place: str, ending: str) -> Iterator[Item]:
        source = ARCHIVES[ending]
        self.sources.add(source)
        module, _, function = SOURCES[source].lister.partition(":")
        lister: Lister = getattr(importlib.import_module(module), function)
        for entry in lister(name, free_name(place, self.tops), self.column):
            if isinstance(entry, Item):
                yield entry
            else:
                yield from self._line(beside(name, entry), inside=source)

    def of_list(self, name: str) -> Iterator[Item]:
        for line in read_lines(name):
            yield from self._line(line)

    def _line(self, line: str, inside: str = "") -> Iterator[Item]:
        """Yield the image, or the images in the folder or archive, that a line of a list or a row of a table names.

        Args:
            line: The line.
            inside: Row of `SOURCES` of the table; empty for a list.
        """
        text = local_path(line) if is_url(line) else line
        text = line if text is None else text
        place, ending = safe_place(without_query(text).partition("://")[2] or text), ending_of(_last_part(text))
        if not text:
            yield Item(line, "", fault=f"{line}: expected a path behind it, got none.")
        elif inside and ARCHIVES.get(ending) == inside:
            # It may name the table that names it.
            fault = (
                f"{shown(text)}: expected an image, a folder or a tar archive in a row, got a table. Name it itself."
            )
            yield Item(shown(text), "", fault=fault)
        elif ending in ARCHIVES:
            yield from self._found_archive(text, place, ending)
        elif is_url(text):
            from flawscope.runtime.scale.inputs.remote import named_object

            yield named_object(text, place)
        else:
            # Of a list, images of many folders have one name: the place is the whole path.
            item = named_file(Path(text), place)
            if item.size >= 0 and ending not in EXTENSIONS and is_folder(Path(text)):
                yield from Walk(Path(text), safe_place(f"{text}/"), self.found)
            else:
                yield item

    def _top(self, name: str) -> str:
        return free_name(name, self.tops) if self.has_several else ""


def _last_part(name: str) -> str:
    return without_query(name).rpartition("/")[2]


def _no_image(text: str) -> ArgumentError:
    if is_url(text) or has_magic(text):
        hint = "Check it. `**` stands for any number of folders, or is the rest of a name"
        single = "; an object without the ending of an image goes into a list (@FILE)" if is_url(text) else ""
        return ArgumentError(f"{shown(text)}: expected images there, got none. {hint}{single}.")
    if text.endswith(tuple(ARCHIVES)):
        endings = ", ".join(sorted(EXTENSIONS))
        return ArgumentError(f"{text}: expected images in it, got none. They are known by their endings ({endings}).")
    return ArgumentError(f"{text}: expected images in this folder or below, got none. Name images or their folder.")


def _check_plain(name: str) -> None:
    if name.lower().endswith(_COMPRESSED):
        raise ArgumentError(
            f"{shown(name)}: expected a tar archive that is not compressed, got one that is. Unpack it (gunzip) "
            "to a .tar, whose images can be read by their place."
        )

"""Files of the repository that the documentation links to and that do not lie in docs/: the site has them too.

Links stay as the repository needs them (`../benchmarks/README.md`); here they become links of the site.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from site_pages.page import Page

DOCS = "docs"
PROJECT_PAGES = {
    "README.md": "project/readme.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "SECURITY.md": "project/security.md",
    "benchmarks/README.md": "project/benchmarks.md",
}
"""Pages of the project outside docs/, and where the site has them."""
COPIED = frozenset({".json", ".yml", ".yaml", ".toml", ".svg", ".png", ".webp"})
"""Endings of files that a browser shows as they are; others become a page with their text."""
LANGUAGES = {".py": "python", ".h": "cpp", ".cpp": "cpp", ".cu": "cuda", ".cuh": "cuda", ".sh": "bash"}
LINK = re.compile(r'(?P<before>\]\(\s*<?|<img\s[^>]*?src=")(?P<target>[^)>\s#"]+)(?P<fragment>#[^)>\s"]*)?(?=[>\s)"])')
CODE = re.compile(r"^(?P<fence>```+|~~~+).*?^(?P=fence)\s*$|`(?:[^`\n]|\n(?!\s*\n))*`", re.MULTILINE | re.DOTALL)


class LinkedFiles:
    """Files outside docs/ that pages lead to, directly or by way of another page.

    Args:
        root: The repository.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def pages(self) -> Iterator[Page]:
        """Return the pages made of those files."""
        for path in self._linked:
            if path in PROJECT_PAGES:
                text = (self.root / path).read_text(encoding="utf-8")
                # Its heading is the name of the project, which the home page has in the navigation.
                yield Page(PROJECT_PAGES[path], f"---\ntitle: README\n---\n{text}" if path == "README.md" else text)
            elif not self._is_copied(path):
                yield Page(self.site_path(path), _source_page(self.root, path))

    def copies(self) -> Iterator[str]:
        """Return the paths of files that are copied as they are."""
        yield from (path for path in self._linked if path not in PROJECT_PAGES and self._is_copied(path))

    def site_path(self, path: str) -> str:
        """Return where the site has a file of the repository."""
        return site_path(path)

    @cached_property
    def _linked(self) -> list[str]:
        """Every file that is reached from docs/ or from a page of the project."""
        pages = [path.relative_to(self.root).as_posix() for path in sorted((self.root / DOCS).rglob("*.md"))]
        waiting = pages + [path for path in PROJECT_PAGES if (self.root / path).is_file()]
        found: dict[str, None] = {path: None for path in waiting if path in PROJECT_PAGES}
        while waiting:
            page = waiting.pop()
            for target in _targets((self.root / page).read_text(encoding="utf-8"), page):
                if target in found or target.startswith(f"{DOCS}/") or not (self.root / target).exists():
                    continue
                found[target] = None
                if target.endswith(".md"):
                    waiting.append(target)
        return sorted(found)

    def _is_copied(self, path: str) -> bool:
        return Path(path).suffix in COPIED


def site_path(path: str) -> str:
    """Return where the site has a file of the repository: below its folder of pages."""
    if path == DOCS or path.startswith(f"{DOCS}/"):
        return path[len(DOCS) + 1 :] or "index.md"
    if path in PROJECT_PAGES:
        return PROJECT_PAGES[path]
    return f"files/{path}" if Path(path).suffix in COPIED else f"files/{path}.md"


def repository_path(page: str) -> str:
    """Return the file of the repository that a page of the site was made of."""
    outside = {place: path for path, place in PROJECT_PAGES.items()}
    return outside.get(page, page[len("files/") :] if page.startswith("files/") else f"{DOCS}/{page}")


def with_site_links(text: str, page: str, root: Path) -> str:
    """Return a page's Markdown with links that hold in the site.

    Args:
        text: Markdown whose links hold in the repository.
        page: The page, below the site's folder of pages.
        root: The repository.
    """
    source = repository_path(page)

    def replaced(match: re.Match[str]) -> str:
        path = _resolved(match["target"], source)
        if path is None or not (root / path).exists():
            return match[0]  # an address, or broken: MkDocs says so
        target = posixpath.relpath(_landing(path, root), posixpath.dirname(page) or ".")
        return f"{match['before']}{target}{match['fragment'] or ''}"

    text = re.sub(r"\[([\w-]+)\.md\]\(", r"[\1](", text)  # the site's pages are not files to its readers
    # Code is passed over: an example of a link is none.
    pieces, end = [], 0
    for block in CODE.finditer(text):
        pieces += [LINK.sub(replaced, text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*pieces, LINK.sub(replaced, text[end:])])


def _landing(path: str, root: Path) -> str:
    """Return the page that a link to a file or folder leads to."""
    if path.endswith(".ipynb"):
        return site_path(path).removesuffix(".ipynb") + ".md"
    if path.startswith(f"{DOCS}/") and (root / path).is_dir():
        # MkDocs knows no page of a folder: its first file is where a reader begins.
        return site_path(next(file.relative_to(root).as_posix() for file in sorted((root / path).iterdir())))
    return site_path(path)


def _targets(text: str, page: str) -> Iterator[str]:
    for match in LINK.finditer(CODE.sub("", text)):
        path = _resolved(match["target"], page)
        if path is not None:
            yield path


def _resolved(target: str, page: str) -> str | None:
    """Return the path below the repository that a link names, or None for an address."""
    if re.match(r"[a-z][a-z0-9+.-]*:|//", target, re.IGNORECASE):
        return None
    if target.startswith("/"):
        return target.lstrip("/")
    path = posixpath.normpath(posixpath.join(posixpath.dirname(page), unquote(target)))
    return None if path.startswith("..") else path


def _source_page(root: Path, path: str) -> str:
    """Return a page that shows a file as code, or lists a folder; the search passes it over."""
    place = root / path
    head = f"---\nsearch:\n  exclude: true\n---\n# `{path}`\n\n"
    if place.is_dir():
        names = sorted(entry.name for entry in place.iterdir() if not entry.name.startswith(("__", ".")))
        return head + "\n".join(f"- `{name}`" for name in names) + "\n"
    language = LANGUAGES.get(place.suffix, "text")
    return f"{head}````{language}\n{place.read_text(encoding='utf-8').rstrip()}\n````\n"

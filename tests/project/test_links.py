"""Links between the project's own pages lead somewhere."""

from __future__ import annotations

import re
from urllib.parse import unquote

from project_paths import ROOT

FOLDERS = ("docs", "benchmarks", ".github")
LINK = re.compile(r"\]\(\s*<?([^)>\s]+)")  # the closing bracket is enough, and finds an image inside a link too
REFERENCE = re.compile(r"^ {0,3}\[[^\]]+\]:\s+<?([^>\s]+)>?", re.MULTILINE)
TAG = re.compile(r"""<(?:a|img|source)\b[^>]*?\b(?:href|src|srcset)=["']([^"']+)["']""", re.IGNORECASE)
CODE_BLOCK = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
CODE_SPAN = re.compile(r"`[^`\n]*`")


def pages(root=ROOT):
    """Return the Markdown pages of the project: those at its top and those in its folders of pages."""
    found = [*root.glob("*.md"), *(page for folder in FOLDERS for page in (root / folder).rglob("*.md"))]
    return sorted(page for page in found if ".pytest_cache" not in page.parts)


def links(text):
    """Return the targets of all links and images in a page, code left out."""
    text = CODE_SPAN.sub("", CODE_BLOCK.sub("", text))
    return [target for pattern in (LINK, REFERENCE, TAG) for target in pattern.findall(text)]


def anchor(heading):
    """Return the name that a heading has in links, as GitHub makes it."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(text):
    """Return the names of all headings of a page."""
    names = []
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", CODE_BLOCK.sub("", text), re.MULTILINE):
        name = anchor(heading)
        repeats = names.count(name)
        names.append(f"{name}-{repeats}" if repeats else name)
    return {*names, *re.findall(r"""<a\s+(?:id|name)=["']([^"']+)["']""", text)}


def broken(root=ROOT):
    """Return `page: target` for every link inside the project that leads nowhere."""
    found = []
    for page in pages(root):
        for target in links(page.read_text(encoding="utf-8")):
            if re.match(r"[a-z][a-z0-9+.-]*:", target, re.IGNORECASE) or target.startswith("//"):
                continue
            name, _, fragment = target.partition("#")
            place = (root / name.lstrip("/") if name.startswith("/") else page.parent / unquote(name)) if name else page
            is_inside = place.resolve().is_relative_to(root.resolve())
            is_there = is_inside and place.exists()
            if is_there and fragment and place.suffix == ".md":
                is_there = unquote(fragment).lower() in anchors(place.read_text(encoding="utf-8"))
            if not is_there:
                found.append(f"{page.relative_to(root)}: {target}")
    return found


def test_every_relative_link_of_the_project_resolves():
    assert broken() == []


def test_links_of_every_form_are_found():
    text = """
    [a](one.md) and ![b](two.png "title") and [![c](three.svg)](four.md) <img src="five.png" alt="">
    `[no](code.md)`

[ref]: six.md
```
[no](block.md)
```
    [d](<seven.md>) [e](eight.md#part)
    """
    assert sorted(links(text)) == sorted(
        ["one.md", "two.png", "three.svg", "four.md", "five.png", "six.md", "seven.md", "eight.md#part"]
    )


def test_a_link_that_leads_nowhere_is_found(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "page.md").write_text("# A `b` (c), d!\n## Twice\n## Twice\n")
    (tmp_path / "README.md").write_text(
        "[ok](docs/page.md) [ok](docs/page.md#a-b-c-d) [ok](docs/page.md#twice-1) [ok](docs) [ok](https://x.org/none)\n"
        "[bad](docs/none.md) [bad](docs/page.md#none) [bad](../outside.md) [bad](#none)\n"
    )
    assert broken(tmp_path) == [
        "README.md: docs/none.md",
        "README.md: docs/page.md#none",
        "README.md: ../outside.md",
        "README.md: #none",
    ]

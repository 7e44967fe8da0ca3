"""The documentation as a site: generated pages say what the code says, links hold, and it opens without a network."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from project_paths import ROOT
from site_pages import api, commands, repository, settings
from site_pages.navigation import complete
from site_pages.page import escaped, table

from flawscope.cli import root
from flawscope.config import CONFIGS, change_settings, describe_settings
from flawscope.errors import ArgumentError


def test_every_setting_of_every_method_is_listed_with_type_default_and_meaning():
    pages = {page.path: page.text for page in settings.pages()}
    assert len(pages) == len(CONFIGS) + 1
    for method in CONFIGS:
        text = pages[f"{settings.FOLDER}/{method}.md"]
        for line in describe_settings(method):
            section = re.search(rf"^### `{line.key}`\n\n(.+)\n\n(.+)\n", text, re.MULTILINE)
            assert section is not None, (method, line.key)
            assert "**Type**" in section[1]
            assert "**default**" in section[1]
            assert section[2] == escaped(line.line)


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("channels", "1 to 4096"),
        ("resize", "height and width from 16 to 8192 pixels"),
        ("tile_overlap", "a share from 0 to 0.5"),
        ("stages", "rising stage numbers such as 1,2,3"),
    ],
)
def test_ranges_are_those_of_the_checks(key, text):
    assert text in settings.allowed("padim", key)


def test_every_number_has_a_range_and_its_bounds_hold():
    for method in CONFIGS:
        for line in describe_settings(method):
            if line.words in ("whole number", "number"):
                limits = settings.allowed(method, line.key)
                assert limits, (method, line.key)
                if bounds := re.fullmatch(r"(\d+) to ([\d,]+)", limits[0]):
                    beyond = int(bounds[2].replace(",", "")) + 1
                    with pytest.raises(ArgumentError, match=line.key):
                        change_settings(CONFIGS[method](), {line.key: beyond})


def test_every_verb_and_option_is_listed():
    pages = {page.path: page.text for page in commands.pages()}
    context = click.Context(root, info_name="flawscope")

    def walk(group: click.Group, parent: click.Context, page: str) -> None:
        for name in group.list_commands(parent):
            command = group.get_command(parent, name)
            assert command is not None
            place = page or f"{commands.FOLDER}/{name}.md"
            below = click.Context(command, info_name=name, parent=parent)
            assert f" {below.command_path}\n" in pages[place]
            for parameter in command.params:
                if isinstance(parameter, click.Option) and not parameter.hidden and parameter.name != "help":
                    assert all(f"`{word}`" in pages[place] for word in parameter.opts if word.startswith("-"))
            if isinstance(command, click.Group):
                walk(command, below, place)

    walk(root, context, "")


def test_public_classes_and_functions_are_listed_once():
    text = "".join(page.text for page in api.pages())
    names = re.findall(r"^::: (.+)$", text, re.MULTILINE)
    assert "flawscope.runtime.inspector.Inspector" in names
    assert "flawscope.errors.FlawscopeError" in names
    assert len(names) == len(set(names))


def test_links_that_leave_the_docs_become_pages_of_the_site():
    text = "[`a`](../cpp_ext/reference.py) [b](../CONTRIBUTING.md#tests) [c](glossary.md) `[d](../x.py)` [e](https://x.org)"
    assert repository.with_site_links(text, "kernels.md", ROOT) == (
        "[`a`](files/cpp_ext/reference.py.md) [b](project/contributing.md#tests) [c](glossary.md) `[d](../x.py)` "
        "[e](https://x.org)"
    )
    assert repository.with_site_links("[line.md](docs/line.md)", "project/readme.md", ROOT) == "[line](../line.md)"
    image = '<img src="docs/images/line-review.webp" alt="x"> `<img src="docs/x.png">`'
    assert repository.with_site_links(image, "project/readme.md", ROOT) == image.replace("docs/images", "../images")
    paths = {page.path for page in repository.LinkedFiles(ROOT).pages()}
    assert {"project/contributing.md", "files/cpp_ext/reference.py.md"} <= paths


def test_the_navigation_leaves_no_page_out():
    nav = [{"Home": "index.md"}, {"Reference": [{"Commands": "reference/"}]}]
    pages = ["index.md", "new.md", "reference/b.md", "reference/index.md", "files/x.md"]
    assert complete(nav, pages) == [
        {"Home": "index.md"},
        {"Reference": [{"Commands": ["reference/index.md", "reference/b.md"]}]},
        {"More": ["new.md"]},
    ]
    assert complete(["a/"], ["a/b-c.md", "a/b.md"]) == ["a/b.md", "a/b-c.md"]
    with pytest.raises(ValueError, match="expected a folder with pages"):
        complete(["none/"], pages)
    assert complete(["new.md", "reference/", "index.md"], pages) == [
        *("new.md", "reference/index.md", "reference/b.md", "index.md"),
    ]


def test_every_page_of_the_docs_is_in_the_navigation_once():
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8").partition("\nnav:\n")[2]
    named = re.findall(r"([\w./-]+\.md)$", nav, re.MULTILINE)
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(set(named) - {"notebooks/first-bundle.md"}) == sorted(pages)
    assert len(named) == len(set(named))


def test_cells_of_a_table_stay_in_their_columns():
    assert table(["a", "b"], [["x|y", "one\n  two"]]).splitlines()[-1] == "| x&#124;y | one two |"


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_asks_no_other_server(tmp_path):
    pytest.importorskip("mkdocs", reason="the group docs is not installed")
    subprocess.run([sys.executable, str(ROOT / "tools" / "linktree.py")], check=True)
    out = tmp_path / "site"
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    done = subprocess.run(build, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(out.rglob("*.html"))
    assert len(pages) > 100
    for page in pages:
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="https?://', page.read_text(encoding="utf-8")), (
            page
        )
    browse(out)


def browse(site: Path) -> None:
    """Open the site from the file system and search it, where Chromium is installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="no browser to open it with")
    from browser import CHROMIUM, launch

    if not CHROMIUM:
        pytest.skip("Chromium is not installed: the pages were built, and not opened")
    with playwright.sync_playwright() as running:
        page = launch(running).new_page()
        complaints: list[str] = []
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: complaints.append(request.url) if request.url.startswith("http") else None)
        page.goto((site / "index.html").as_uri())
        page.click("input.md-search__input")
        page.keyboard.type("coreset")
        page.wait_for_selector(".md-search-result__item", timeout=30_000)
        assert "coreset" in page.inner_text(".md-search-result__list")
        assert complaints == []

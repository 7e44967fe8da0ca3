"""MkDocs calls this while it builds the site: pages are added, links of the repository become links of the site.

What MkDocs looks for are the functions `on_config`, `on_files` and `on_page_markdown`; see `make site`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files
from site_pages import generated
from site_pages.navigation import complete
from site_pages.repository import LinkedFiles, with_site_links

ROOT = Path(__file__).resolve().parents[1]
ASSETS = Path(__file__).resolve().parent / "site_theme" / "assets"


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages, those of the repository outside docs/, and the site's own assets."""
    for page in generated.pages():
        files.append(File.generated(config, page.path, content=page.text))
    linked = LinkedFiles(ROOT)
    for page in linked.pages():
        files.append(File.generated(config, page.path, content=page.text))
    for path in linked.copies():
        files.append(File.generated(config, linked.site_path(path), abs_src_path=str(ROOT / path)))
    for asset in sorted(ASSETS.iterdir()):
        if files.get_file_from_path(f"assets/{asset.name}") is None:
            files.append(File.generated(config, f"assets/{asset.name}", abs_src_path=str(asset)))
    config.nav = complete(config.nav, [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return a page whose links that leave docs/ lead to the site's pages of those files."""
    return with_site_links(markdown, page.file.src_uri, ROOT)

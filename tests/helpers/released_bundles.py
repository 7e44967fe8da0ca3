"""A folder with a line that follows a tag, keys that sign, and signed tiny bundles to publish."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from line_project import write_line
from swapped_lines import write_bundle_at

from flawscope.bundle import sign_bundle
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.runtime.line.config_file import ReadConfig, read_config
from flawscope.runtime.line.rollout.place import open_place, options_of
from flawscope.runtime.line.rollout.publishing import publish


class Maker:
    """Signs bundles, and publishes them.

    Attributes:
        folder: Where all of it lies; the public key is `maker.pub`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        write_keys(folder / "maker")
        self._key = read_private_key(folder / "maker", lambda: None)

    @property
    def public(self) -> Path:
        return self.folder / "maker.pub"

    def bundle(self, name: str, threshold: float, **changes: Any) -> str:
        """Write a signed bundle `NAME.flaw` that accepts what is no brighter than a threshold; returns its digest."""
        digest = write_bundle_at(self.folder / f"{name}.flaw", threshold, **changes)
        self.sign(name)
        return digest

    def sign(self, name: str) -> None:
        """Sign `NAME.flaw`."""
        sign_bundle(self.folder / f"{name}.flaw", self._key)

    def publish(self, name: str, place: str | Path, *tags: str) -> str:
        """Publish `NAME.flaw`; returns the digest of the release."""
        opened = open_place(options_of(str(place)))
        try:
            return publish(self.folder / f"{name}.flaw", opened, tags or ("stable",))
        finally:
            opened.close()


def follower(maker: Maker, source: dict[str, Any], *, swap: dict[str, Any] | None = None, **rollout: Any) -> ReadConfig:
    """Write and read the configuration of a line whose view follows a tag; its bundle is signed. No HTTP server."""
    if not (maker.folder / "tiny.flaw").exists():
        maker.bundle("tiny", 150.0)
    path = write_line(maker.folder)
    config = yaml.safe_load(path.read_text())
    # No longer than a test waits.
    config["stations"][0]["views"][0]["rollout"] = {"source": source, "every_s": 1.0, **rollout}
    config |= {"trusted_keys": "maker.pub", "http": {"listen": "127.0.0.1:0"}}
    if swap is not None:
        config["swap"] = swap
    path.write_text(yaml.safe_dump(config))
    return read_config(path)

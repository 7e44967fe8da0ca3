"""Whether a view could take the release that it follows: for `flawscope line check`, which pulls nothing."""

from __future__ import annotations

import contextlib
from pathlib import Path

from flawscope.bundle import find_trusted_keys
from flawscope.errors import FlawscopeError
from flawscope.runtime.line.line_config import ViewOptions
from flawscope.runtime.line.measures import check_calibrated
from flawscope.runtime.line.rollout.place import open_place, read_blob
from flawscope.runtime.line.rollout.release import read_bundle_config, read_release


def check_release(view: ViewOptions, trusted_keys: Path | None) -> tuple[bool, str]:
    """Return whether the release of a view is there, signed and calibrated, and what was found in words.

    Args:
        view: The view, which has a rollout.
        trusted_keys: The keys of the line.
    """
    assert view.rollout is not None
    tag = view.rollout.tag
    try:
        with contextlib.closing(open_place(view.rollout.source)) as place:
            release = read_release(place.manifest(tag))
            where = f"release {release.digest[:19]}…"
            manifest = read_bundle_config(read_blob(place, release.config), where, find_trusted_keys(trusted_keys))
            check_calibrated(manifest, view, Path(where))
    except FlawscopeError as err:
        return False, str(err)
    return True, f"{tag} is {where}, bundle {manifest.digest[:12]}… ({manifest.method}), signed by a trusted key"

"""Whether a bundle learned from images like those of a view: else it may be the bundle of another part."""

from __future__ import annotations

from flawscope.bundle import Manifest
from flawscope.errors import BundleError
from flawscope.imaging.learned_images import Look, differences
from flawscope.runtime.line.line_config import ViewOptions


def notes_on(
    manifest: Manifest, view: ViewOptions, seen: tuple[tuple[int, ...], int] | None, *, allow_unlike: bool
) -> tuple[str, ...]:
    """Return in what the images of a view are unlike those that a bundle learned from.

    Args:
        manifest: Manifest of the bundle.
        view: The view.
        seen: Shape and bits of its last image; None before the first.
        allow_unlike: Whether they may be.

    Raises:
        BundleError: If they are, and nobody has allowed it, as the bundle may be that of another part; or the view is
            strict: each part would be a fault.
    """
    learned = manifest.learned
    if seen is None or learned is None:
        return ()
    (height, width, *channels), bits = seen
    # Of their pixels nothing is kept: size and bits are compared, grey only where there is one channel.
    look = Look(
        height,
        width,
        not channels or learned.colours == "grey",
        bits,
        sum(learned.brightness) / 2,
        sum(learned.red_minus_blue) / 2,
    )
    notes = differences(look, learned)
    if notes and view.strict:
        raise BundleError(f"unlike the images that it learned from, and the view is strict: {'; '.join(notes)}")
    if notes and not allow_unlike:
        raise BundleError(
            f"the images of this view are unlike those that it learned from: {'; '.join(notes)}. Is it the bundle "
            "of another part? If not, swap again with `allow_unlike` (--allow-unlike)."
        )
    return notes

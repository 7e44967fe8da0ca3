"""`flawscope bundle threshold`: change thresholds on a line, in an overlay; the bundle stays as it was signed."""

from __future__ import annotations

import getpass
from pathlib import Path

import click

from flawscope.bundle.file_names import overlay_beside
from flawscope.bundle.manifest import PRECISIONS
from flawscope.bundle.opening import open_bundle
from flawscope.bundle.threshold_overlay import add_revision, find_overlay
from flawscope.bundle.trusted_keys_option import trusted_keys_option
from flawscope.errors import ArgumentError
from flawscope.files import locked
from flawscope.terminal import echo


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--image", type=float, metavar="X", help="Threshold on the score.")
@click.option("--pixel", type=float, metavar="Y", help="Threshold on the pixels of the anomaly map.")
@click.option("--min-area", type=int, metavar="PX", help="Smallest region that gets a box, in pixels of the map.")
@click.option("--why", required=True, metavar="TEXT", help="The reason, for the record.")
@click.option("--by", metavar="NAME", help="Who changes it.  [default: the user's login name]")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option(
    "--threshold-overlay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Overlay to write.  [default: the one beside the bundle, NAME.flaw.thresholds.json]",
)
@trusted_keys_option
def threshold(
    bundle: Path,
    image: float | None,
    pixel: float | None,
    min_area: int | None,
    why: str,
    by: str | None,
    precision: str,
    threshold_overlay: Path | None,
) -> None:
    """Change thresholds of BUNDLE in its overlay, within the limits that calibrate stated in the bundle.

    The bundle itself is not changed, and its signature stays. Every change is a revision, which score names; the last
    one is in force from the next load on. What is not given stays as it is in force.
    """
    if image is None and pixel is None and min_area is None:
        raise click.UsageError("Expected --image, --pixel or --min-area, got none.")
    if threshold_overlay is None:
        find_overlay(bundle)  # refuses one beside a link, which this one would silently take the place of
    place = overlay_beside(bundle.resolve()) if threshold_overlay is None else threshold_overlay
    # The lock before the bundle: what changes the bundle takes it too, so the digest cannot change in between.
    with locked(place), open_bundle(bundle) as opened:
        revision = add_revision(
            bundle,
            opened.manifest,
            place,
            precision=precision,
            image=image,
            pixel=pixel,
            min_area_px=min_area,
            by=_login() if by is None else by,
            why=why,
        )
    echo(
        f"{place}: revision {revision.revision}, {precision}: image {revision.image:.6g}, pixel {revision.pixel:.6g}, "
        f"smallest region {revision.min_area_px or opened.manifest.min_area_px} px, by {revision.by}"
    )


def _login() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError) as err:  # a user id without an entry in the list of users
        raise ArgumentError("--by: expected a name, because this user has none, got none. Say who you are.") from err

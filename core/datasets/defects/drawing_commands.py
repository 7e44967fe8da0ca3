"""`flawscope synth paste|perlin`: defects drawn without a network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from flawscope.datasets import open_dataset
from flawscope.datasets.data_options import CATEGORY, PATH, data_option
from flawscope.datasets.defects.box_sets import Ground as Within
from flawscope.datasets.defects.drawing_options import DEFECTS, OUT, SEED, SOLID, WITHIN, warn_of_test_images
from flawscope.datasets.defects.paste_sets import PasteSettings, write_pasted
from flawscope.datasets.defects.perlin_sets import WORDS, PerlinSettings, find_textures, write_perlin
from flawscope.datasets.defects.random_masks import MIN_OVERLAP
from flawscope.datasets.defects.set_files import SHEET
from flawscope.datasets.defects.support_set import read_support
from flawscope.datasets.drawing.pasting import BLENDS, PASTE_PLACES, Blend, PasteOptions, PastePlaces
from flawscope.datasets.drawing.perlin import PerlinOptions
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo, progress_bars

# Defaults in --help are read from the structs: written here a second time, the two would drift apart.
_PASTE, _PERLIN, _PERLIN_SET = PasteOptions(), PerlinOptions(), PerlinSettings()


def _range(name: str, default: tuple[float, float], text: str) -> Callable[[Any], Any]:
    return click.option(
        f"--{name}", type=(float, float), default=default, show_default=True, metavar="LOW HIGH", help=text
    )


def _level(default: int) -> Callable[[Any], Any]:
    return click.option(
        "--level",
        default=default,
        show_default=True,
        help="Least change in grey levels that belongs to the mask; what changes less is left as it was.",
    )


@click.command()
@click.option("--support", type=PATH, required=True, metavar="DIR", help="Support set whose defects are pasted.")
@data_option("The dataset that the support set was taken from.", required=True)
@CATEGORY
@DEFECTS
@click.option("--num", "number", type=int, help="Images per category, divided among its defect types.")
@click.option("--per-defect", type=int, help="Images per defect type, in place of --num.")
@click.option(
    "--blend",
    type=click.Choice(BLENDS),
    default=_PASTE.blend,
    show_default=True,
    help="Add the defect to the image's texture, or put its own texture in place of that.",
)
@click.option(
    "--feather",
    "feather_px",
    default=_PASTE.feather_px,
    show_default=True,
    help="Pixels around a defect that belong to its change.",
)
@click.option(
    "--rotate", default=_PASTE.rotate, show_default=True, metavar="DEGREES", help="Largest turn to either side."
)
@_range("scale", _PASTE.scale, "Range of the size; 1 keeps a defect's share of the image.")
@_range("strength", _PASTE.strength, "Range of the factor of what a defect changes.")
@click.option("--mirror/--no-mirror", default=_PASTE.mirror, show_default=True, help="Mirror half of the defects.")
@_level(_PASTE.level)
@click.option(
    "--places",
    type=click.Choice(PASTE_PLACES),
    default=_PASTE.places,
    show_default=True,
    help="Near where the defect was seen, as far from the sides; where the image matches its surroundings; or "
    "anywhere. What a border cuts stays at that border.",
)
@WITHIN
@SOLID
@click.option("--overlap", default=MIN_OVERLAP, show_default=True, help="More than this share of a defect lies inside.")
@click.option(
    "--tries", default=PasteSettings(number=1).tries, show_default=True, help="Most placements drawn for one image."
)
@SEED
@OUT
@OVERWRITE
def paste(
    support: Path,
    data: Path,
    category: str | None,
    defects: tuple[str, ...],
    number: int | None,
    per_defect: int | None,
    blend: Blend,
    feather_px: int,
    rotate: float,
    scale: tuple[float, float],
    strength: tuple[float, float],
    mirror: bool,
    level: int,
    places: PastePlaces,
    within: Within,
    solid: bool,
    overlap: float,
    tries: int,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Paste the defects of a support set onto normal images, scaled, turned and mirrored, with exact masks.

    What a defect adds to its surroundings is moved, not its pixels. Without a network and torch, a few milliseconds an
    image. The folder is like that of synth generate, and synth dataset and synth judge take it.
    """
    if (number is None) == (per_defect is None):
        raise click.UsageError("Expected --num or --per-defect, got neither or both. Give one of them.")
    # Before the dataset is opened, so that a wrong number is reported at once.
    settings = PasteSettings(
        seed=seed,
        number=number,
        per_defect=per_defect,
        within=within,
        solid=solid,
        overlap=overlap,
        tries=tries,
        options=PasteOptions(
            blend=blend,
            feather_px=feather_px,
            rotate=rotate,
            scale=scale,
            strength=strength,
            mirror=mirror,
            level=level,
            places=places,
        ),
    )
    record_of_support = read_support(support)
    dataset = open_dataset(data, category)
    with progress_bars() as report:
        record = write_pasted(
            dataset,
            record_of_support,
            out,
            settings,
            defects=defects,
            progress=partial(report, "pasting"),
            overwrite=overwrite,
        )
    _echo_summary("pasted", out, record.defects, record.seconds_per_picture)
    warn_of_test_images(record.support_in_test)


@click.command()
@data_option("The dataset with the normal images.", required=True)
@CATEGORY
@click.option("--num", "number", default=_PERLIN_SET.number, show_default=True, help="Images per category.")
@click.option(
    "--textures",
    multiple=True,
    metavar="DIR|" + "|".join(WORDS),
    help="Folder of textures, other normal images in pieces, or made textures; may be given again.  "
    "[default: normal and made]",
)
@_range("opacity", _PERLIN.opacity, "Range of the share of the texture.")
@click.option(
    "--threshold", default=_PERLIN.threshold, show_default=True, help="The mask is where the noise is above it."
)
@_level(_PERLIN.level)
@click.option(
    "--defect", default=_PERLIN_SET.defect, show_default=True, metavar="NAME", help="Name of the anomalies as a type."
)
@WITHIN
@SOLID
@click.option("--tries", default=_PERLIN_SET.tries, show_default=True, help="Most masks drawn for one image.")
@SEED
@OUT
@OVERWRITE
def perlin(
    data: Path,
    category: str | None,
    number: int,
    textures: tuple[str, ...],
    opacity: tuple[float, float],
    threshold: float,
    level: int,
    defect: str,
    within: Within,
    solid: bool,
    tries: int,
    seed: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Draw anomalies on normal images as DRAEM does: Perlin noise as the mask, a texture blended in.

    Needs no defect at all. The folder is like that of synth generate, and synth dataset and synth judge take it.
    """
    settings = PerlinSettings(
        seed=seed,
        number=number,
        defect=defect,
        within=within,
        solid=solid,
        tries=tries,
        options=PerlinOptions(opacity=opacity, threshold=threshold, level=level),
    )
    found = find_textures(textures)
    dataset = open_dataset(data, category)
    with progress_bars() as report:
        record = write_perlin(
            dataset, out, settings, textures=found, progress=partial(report, "drawing"), overwrite=overwrite
        )
    _echo_summary("drawn", out, record.defects, record.seconds_per_picture)


def _echo_summary(verb: str, out: Path, defects: dict[str, int], seconds: float) -> None:
    echo(
        f"{verb}: {out}, {sum(defects.values())} images of {len(defects)} defect type{'' if len(defects) == 1 else 's'}"
    )
    for key, count in defects.items():
        echo(f"{key}: {count}")
    echo(f"milliseconds per image: {1000 * seconds:.1f}")
    echo(f"overview: {out / SHEET}")

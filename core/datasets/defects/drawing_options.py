"""Options that the commands of defect sets and drawings share, and what those that draw say alike."""

from __future__ import annotations

import click

from flawscope.datasets.data_options import PATH
from flawscope.datasets.defects.drawn_writer import GroundSettings
from flawscope.former_names import ChoiceWithFormerNames
from flawscope.terminal import echo

_GROUND = GroundSettings()  # the defaults

# The second spellings are those of the published scripts.
OUT = click.option("--out", "--outdir", "out", type=PATH, required=True, metavar="DIR", help="Folder to write.")
"""Parameter `out`."""
SEED = click.option("--seed", default=_GROUND.seed, show_default=True, help="Seed of every random choice.")
"""Parameter `seed`."""
DEFECTS = click.option(
    "--defect", "defects", multiple=True, metavar="NAME", help="Defect type; may be given again. Default: all."
)
"""Parameter `defects`."""
SOLID = click.option(
    "--solid", is_flag=True, help="The part has no holes: all that its outline encloses is foreground."
)
"""Parameter `solid`."""
WITHIN = click.option(
    "--within",
    type=ChoiceWithFormerNames(["foreground", "image"], {"picture": "image"}),
    default=_GROUND.within,
    show_default=True,
    help="Where what is drawn may lie; image (anywhere) is for parts that fill the image.",
)
"""Parameter `within`."""


def warn_of_test_images(support_in_test: int) -> None:
    """Print a warning if support images are in the test split, which an evaluation must not count."""
    if support_in_test:
        echo(
            f"warning: {support_in_test} support images are in the test split: leave them out of the evaluation (synth "
            "dataset does)",
            err=True,
        )

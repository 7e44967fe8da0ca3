"""Options of `synth generate`: how many images are drawn, how, and which are kept, as `GenerateSettings`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from flawscope.diffusion.latent_inpainting import SOLVERS, Solver
from flawscope.runtime.synthesis.draw_options import (
    BEST_BY,
    PASTES,
    TONES,
    BestBy,
    DrawOptions,
    GenerateSettings,
    Paste,
    Texts,
    Tone,
)
from flawscope.runtime.synthesis.limit_options import LIMITS, read_limits
from flawscope.runtime.synthesis.precise_masks import MaskMethod, MaskOptions

# Defaults in --help are read from the structs: written here a second time, the two would drift apart.
_OPTIONS, _SETTINGS = DrawOptions(), GenerateSettings()
_Result = TypeVar("_Result")

_GENERATE = (
    click.option(
        "--texts",
        type=click.Choice(["auto", "lines", "bundle"]),
        default=_SETTINGS.texts,
        show_default=True,
        help="Source of the prompts; auto: the bundle for a learned word, else the lines of the box set.",
    ),
    click.option(
        "--num",
        "number",
        type=int,
        help="Accepted images in all, divided among the defect types.  [default: one a line]",
    ),
    click.option("--per-defect", type=int, help="The same for each defect type."),
    click.option(
        "--keep-trying",
        "rounds",
        default=_SETTINGS.rounds,
        show_default=True,
        metavar="N",
        help="Largest number of rounds; rejected images are drawn again with other noise.",
    ),
    click.option(
        "--best-of",
        default=_SETTINGS.best_of,
        show_default=True,
        metavar="N",
        help="Draw N images at each box and keep the best.",
    ),
    click.option(
        "--best-by",
        type=click.Choice(BEST_BY),
        default=_SETTINGS.best_by,
        show_default=True,
        help="The best is furthest from the limits of the filter, or differs most from the normal image in its box.",
    ),
    click.option(
        "--limit",
        "limits",
        multiple=True,
        metavar="NAME=VALUE",
        help=f"Limit of the filter ({', '.join(LIMITS)}); can be repeated.",
    ),
    click.option("--keep-all", is_flag=True, help="Keep what the filter rejects, too; its verdicts are recorded."),
    click.option(
        "--seed",
        "--seeds",
        "seed",
        default=_SETTINGS.seed,
        show_default=True,
        help="Seed of the first image; each next one has the next number.",
    ),
    click.option(
        "--steps",
        "--num_inference_steps",
        "--ddim_steps",
        "steps",
        type=int,
        help="Denoising steps.  [default: the bundle's]",
    ),
    click.option(
        "--guidance",
        "--guidance_scale",
        "--scale",
        "guidance",
        type=float,
        help="Weight of the text, above 1.  [default: the bundle's]",
    ),
    click.option("--eta", "--ddim_eta", "eta", type=float, help="0 is DDIM, 1 is DDPM.  [default: the bundle's]"),
    click.option(
        "--text-noise",
        type=float,
        help="Standard deviation of the noise on the encoded text (MAGIC).  [default: the bundle's]",
    ),
    click.option(
        "--strength",
        default=_OPTIONS.strength,
        show_default=True,
        help="Below 1 more of the normal image remains visible.",
    ),
    click.option("--solver", type=click.Choice(SOLVERS), default=_OPTIONS.solver, show_default=True),
    click.option("--batch", type=int, help="Images drawn at once.  [default: as many as the bundle takes]"),
    click.option(
        "--mask-method",
        type=click.Choice(["robust", "cosine"]),
        default=_OPTIONS.mask.method,
        show_default=True,
        help="Method of the precise masks.",
    ),
    click.option(
        "--feather",
        "feather_px",
        default=_OPTIONS.feather_px,
        show_default=True,
        help="Pixels over which the drawing blends into the image.",
    ),
    click.option(
        "--paste",
        type=click.Choice(PASTES),
        default=_OPTIONS.paste,
        show_default=True,
        help="Paste the drawing, or add only the change that it makes, which keeps fine texture.",
    ),
    click.option(
        "--tone",
        type=click.Choice(TONES),
        help="What keeps a drawn window at the brightness of its surroundings: put them back at every step, match gain "
        "and offset outside the box, or nothing.  [default: restore for inpainting; none for an embedding, whose "
        "drawing puts them back in any case, and for --parity]",
    ),
    click.option(
        "--parity",
        is_flag=True,
        help="Keep the whole decoded image: pixels outside the box change too.",
    ),
)


def generate_options(command: Callable[..., _Result]) -> Callable[..., _Result]:
    """Put the options on a command, which gets them as its first argument, `GenerateSettings`.

    Raises:
        ArgumentError: If a value is out of range.
    """

    # wraps: click reads the help from the docstring, and the options below this decorator from __click_params__.
    @functools.wraps(command)
    def with_settings(
        *,
        texts: Texts,
        number: int | None,
        per_defect: int | None,
        rounds: int,
        best_of: int,
        best_by: BestBy,
        limits: tuple[str, ...],
        keep_all: bool,
        seed: int,
        steps: int | None,
        guidance: float | None,
        eta: float | None,
        text_noise: float | None,
        strength: float,
        solver: Solver,
        batch: int | None,
        mask_method: MaskMethod,
        feather_px: int,
        paste: Paste,
        tone: Tone | None,
        parity: bool,
        **others: Any,
    ) -> _Result:
        options = DrawOptions(
            steps=steps,
            guidance=guidance,
            eta=eta,
            text_noise=text_noise,
            strength=strength,
            solver=solver,
            feather_px=feather_px,
            paste=paste,
            tone=tone,
            is_parity=parity,
            mask=MaskOptions(method=mask_method),
            limits=read_limits(limits),
        )
        settings = GenerateSettings(
            seed=seed,
            number=number,
            per_defect=per_defect,
            rounds=rounds,
            best_of=best_of,
            best_by=best_by,
            keep_all=keep_all,
            texts=texts,
            batch=batch,
            options=options,
        )
        return command(settings, **others)

    decorated: Callable[..., _Result] = with_settings
    # click lists the option that was put on last first.
    for option in reversed(_GENERATE):
        decorated = option(decorated)
    return decorated

"""Options and requests of drawing defects: `DrawOptions`, `GenerateSettings`, `DrawOrder`, and their checks."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import msgspec
import numpy as np

from flawscope.arrays import BoolArray, UInt8Array, check_array
from flawscope.bundle import SynthDefect, SynthHead
from flawscope.datasets.defects.seeded_choice import check_count, check_seed
from flawscope.diffusion.latent_inpainting import Mode, Solver
from flawscope.diffusion.schedule import TRAINED_STEPS, Sampling
from flawscope.errors import ArgumentError
from flawscope.imaging.crops import check_feather
from flawscope.imaging.images import check_image
from flawscope.runtime.device_arrays import CudaArray, DlpackArray, on_host
from flawscope.runtime.synthesis.precise_masks import MaskOptions
from flawscope.runtime.synthesis.quality import QualityLimits

Texts = Literal["auto", "lines", "bundle"]
Paste = Literal["drawn", "change"]
PASTES: tuple[Paste, ...] = get_args(Paste)
Tone = Literal["restore", "match", "none"]
TONES: tuple[Tone, ...] = get_args(Tone)
BestBy = Literal["filter", "lpips"]
BEST_BY: tuple[BestBy, ...] = get_args(BestBy)
_TONES: dict[Mode, Tone] = {"inpaint": "restore", "blend": "none"}
_MAX_IMAGES = 1_000_000  # far beyond any real run: a mistyped number fails before anything is drawn


class DrawOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How defects are drawn. A value of None is taken from the bundle.

    Attributes:
        steps: Calls of the denoiser, 1 to 1000, each for the text and for the empty text.
        guidance: Scale of classifier-free guidance, above 1 (arXiv:2207.12598).
        eta: 0 is DDIM, 1 is DDPM (arXiv:2010.02502).
        text_noise: Standard deviation of the noise on the encoded text, the same at every step (MAGIC,
            arXiv:2507.02314): drawings of one text vary more.
        strength: Share of the steps that are taken, above 0 up to 1: below 1 more of the normal image shows through.
        solver: `ddim`, or `dpm++` (arXiv:2211.01095), which needs fewer steps and an eta of 0.
        feather_px: Pixels around the box over which the drawing fades into the normal image.
        is_parity: The whole image goes through the model and is kept as it comes out, as AnoGen and MvP-Diff do:
            pixels outside the box change as well.
        paste: `drawn` pastes the drawing itself; `change` adds the difference between the drawing and the
            autoencoder's reconstruction of the normal image, which keeps the fine texture that a small autoencoder
            loses, inside the defect as well.
        tone: What holds the tone of the window in mode `inpaint`, where the network draws the surroundings of the box
            as well. `restore` puts the known surroundings back at every step; `match` fits gain and offset outside the
            box and undoes them; `none` does neither, as MvP-Diff. Mode `blend` puts the surroundings back in any case,
            and draws the same with `restore` and `none`.
        crop: Whether the model draws an enlarged window around the box instead of the whole image.
        mask: How the precise mask is found.
        limits: Limits of the quality filter.
    """

    # None and not a number: bundles differ in steps, guidance and eta, and a default here would override them all.
    steps: int | None = None
    guidance: float | None = None
    eta: float | None = None
    text_noise: float | None = None
    strength: float = 1.0
    solver: Solver = "ddim"
    feather_px: int = 4
    is_parity: bool = False
    paste: Paste = "drawn"
    tone: Tone | None = None
    crop: bool | None = None
    mask: MaskOptions = MaskOptions()
    limits: QualityLimits = QualityLimits()

    def __post_init__(self) -> None:
        if self.steps is not None and not 1 <= self.steps <= TRAINED_STEPS:
            raise ArgumentError(f"steps: expected a whole number from 1 to {TRAINED_STEPS}, got {self.steps}.")
        if self.guidance is not None and not 1.0 < self.guidance < math.inf:
            raise ArgumentError(f"guidance: expected a scale above 1, got {self.guidance:g}. At 1 the text is lost.")
        if self.eta is not None and not 0.0 <= self.eta <= 1.0:
            raise ArgumentError(f"eta: expected a number from 0 to 1, got {self.eta:g}.")
        if self.text_noise is not None and not 0.0 <= self.text_noise < math.inf:
            raise ArgumentError(f"text_noise: expected a number of at least 0, got {self.text_noise:g}.")
        if not 0.0 < self.strength <= 1.0:
            raise ArgumentError(f"strength: expected a share above 0 up to 1, got {self.strength:g}.")
        check_feather(self.feather_px)
        if self.paste not in PASTES:
            raise ArgumentError(f"paste: expected one of {', '.join(PASTES)}, got {self.paste!r}.")
        if self.tone is not None and self.tone not in TONES:
            raise ArgumentError(f"tone: expected one of {', '.join(TONES)}, got {self.tone!r}.")
        # Without a paste there is nothing that a change could be added to.
        if self.is_parity and self.paste != "drawn":
            raise ArgumentError(f"paste: expected drawn with parity, got {self.paste}. Leave it out.")
        if self.is_parity and self.crop:
            raise ArgumentError("crop: expected none with parity, which draws the whole image, got one. Leave it out.")

    def resolved(self, head: SynthHead) -> DrawOptions:
        """Return the options with the bundle's numbers in place of None."""
        return msgspec.structs.replace(
            self,
            steps=head.sampling.steps if self.steps is None else self.steps,
            guidance=head.guidance if self.guidance is None else self.guidance,
            eta=head.sampling.eta if self.eta is None else self.eta,
            text_noise=(head.text_noise or 0.0) if self.text_noise is None else self.text_noise,
            # The references leave the tone as it is, and parity is with them.
            tone=("none" if self.is_parity else _TONES[head.mode]) if self.tone is None else self.tone,
            # `is_parity` goes first: there the bundle's own crop is ignored, the references draw whole images.
            crop=not self.is_parity and (head.crop if self.crop is None else self.crop),
        )

    def sampling(self, head: SynthHead) -> Sampling:
        """Return the bundle's sampling with these steps and this eta."""
        chosen = self.resolved(head)
        return msgspec.structs.replace(head.sampling, steps=chosen.steps, eta=chosen.eta)


class GenerateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many images are drawn from a box set, and how.

    Attributes:
        seed: Record i is drawn with seed + i; no two images of a run share their noise.
        number: Accepted images wanted of each category, shared out among its defect types, the first ones taking
            the remainder. Lines are used again, with other noise, where there are too few.
        per_defect: The same for each defect type. Without both, every line is drawn once.
        rounds: Largest number of rounds: rejected images are drawn again with other noise.
        best_of: Candidates of a record in a round, each with other noise. The best is kept.
        best_by: What is best: by the `filter`, the largest of the least margins to its limits (`Verdict.margin`); by
            `lpips`, the one that differs most from the normal image inside its region (`MaskedLpips`).
        keep_all: Keep what the filter rejects as well, verdicts recorded all the same; NaN alone is never kept.
        texts: Take the texts of the `lines` or of the `bundle`; `auto` takes those of the bundle for a learned
            embedding, whose placeholder the lines of `synth boxes` do not have, and of the lines otherwise.
        batch: Images drawn at once; None for as many as the bundle takes.
        options: How each is drawn.
    """

    seed: int = 0
    number: int | None = None
    per_defect: int | None = None
    rounds: int = 1
    best_of: int = 1
    best_by: BestBy = "filter"
    keep_all: bool = False
    texts: Texts = "auto"
    batch: int | None = None
    options: DrawOptions = DrawOptions()

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_count(self.rounds, "rounds", 1, 1000)
        check_count(self.best_of, "best_of", 1, 1000)
        if self.best_by not in BEST_BY:
            raise ArgumentError(f"best_by: expected one of {', '.join(BEST_BY)}, got {self.best_by!r}.")
        if self.best_by == "lpips" and self.best_of == 1:
            raise ArgumentError("best_of: expected at least 2 with best_by lpips, which compares candidates, got 1.")
        for name in ("number", "per_defect"):
            if (value := getattr(self, name)) is not None:
                check_count(value, name, 1, _MAX_IMAGES)
        if self.number is not None and self.per_defect is not None:
            raise ArgumentError("number: expected a number in all or for each defect type, got both. Leave one out.")


@dataclass(frozen=True)
class DrawOrder:
    """One defect to be drawn on one normal image.

    Attributes:
        image: The normal image, uint8 [H, W, 3] RGB; it is not changed. It may lie on a CUDA device or behind DLPack
            (`flawscope.runtime.device_arrays`), and so may the mask; the drawn image is always on the host.
        mask: Where the defect goes, bool [H, W]: a box, or any other shape.
        defect: Its type: a name that the bundle knows, or CATEGORY/NAME.
        text: The prompt; None takes one of the bundle's texts for the defect, chosen by the seed. In both,
            `{location}` becomes location words such as "in the upper left".
        seed: Seed of the noise. The same order gives the same image.
    """

    image: UInt8Array | CudaArray | DlpackArray = field(repr=False)
    mask: BoolArray | CudaArray | DlpackArray = field(repr=False)
    defect: str
    text: str | None = None
    seed: int = 0


def check_order(order: DrawOrder) -> tuple[UInt8Array, BoolArray]:
    """Return image and mask of an order, uint8 [H, W, 3] and bool [H, W] on the host.

    Raises:
        ArgumentError: If image, mask, text or seed cannot be drawn from.
        DeviceError: If an image cannot be fetched from its device.
    """
    # Fetched before they are checked: the checks take NumPy arrays only.
    image = check_image(on_host(order.image, "image"))
    mask = check_array(on_host(order.mask, "mask"), "mask", image.shape[:2], np.bool_)
    if not mask.any():
        raise ArgumentError("mask: expected at least one white pixel, got an all-black mask. Draw a box first.")
    if order.text is not None and not order.text.strip():
        raise ArgumentError("text: expected words, got none. Leave the text out to take one of the bundle's.")
    check_seed(order.seed)
    return image, mask


def find_defect(defects: Sequence[SynthDefect], name: str) -> SynthDefect:
    """Return the defect with this name, NAME or CATEGORY/NAME.

    Raises:
        ArgumentError: If there is none, or if several categories have one of that name.
    """
    matches = [defect for defect in defects if name in (defect.name, f"{defect.category}/{defect.name}")]
    # Of an ambiguous name only the candidates are listed, of an unknown one all that the bundle has.
    names = ", ".join(sorted(f"{defect.category}/{defect.name}" for defect in (matches or defects)))
    if not matches:
        raise ArgumentError(f"defect: expected one that the bundle draws ({names}), got {name!r}.")
    if len(matches) > 1:
        raise ArgumentError(f"defect: expected one of {names}, got {name!r}, which all of them are. Name the category.")
    return matches[0]

"""Manifest section of a generator bundle (kind `synth`): how its graphs draw a defect."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from flawscope.bundle.heads import Head
from flawscope.diffusion.prompts import PromptRules
from flawscope.diffusion.schedule import Sampling
from flawscope.ranges import Count, NotNegative, PositiveCount, Sha256, Share, Side


class SynthDefect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One defect that can be drawn.

    Attributes:
        category: Name of the category.
        name: Defect type, without the category.
        texts: Prompts, one of which is chosen at random; `{location}` becomes words such as "in the upper left".
        vectors: Name of the bundle's tensor float32 [V, W] that replaces the placeholder, or null for none.
    """

    category: str
    name: str
    texts: tuple[str, ...]
    vectors: str | None = None


class SynthSupport(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A support image that the model was trained on; used to detect memorization in generated images.

    Attributes:
        category: Name of the category.
        defect: Defect type.
        picture: PNG file in the bundle, RGB.
        mask: PNG file of its mask, 0 or 255.
        sha256: Content hash of the original image's file.
    """

    category: str
    defect: str
    picture: str
    mask: str
    sha256: Sha256


class ImageParity(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parity of two implementations that generate the same images from the same noise.

    Attributes:
        reference: Implementation taken as correct, for example `torch`.
        candidate: Implementation compared with it, for example `denoise.onnx and the others, cpu`.
        images: Number of images.
        steps: Steps of the sampling.
        psnr_db: Least peak signal-to-noise ratio of an image, in dB; 100 where they are equal.
    """

    reference: str
    candidate: str
    images: Count
    steps: PositiveCount
    psnr_db: float


class SynthHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="synth"):
    """How the graphs `text`, `encode`, `denoise` and `decode` draw a defect on a normal image.

    Attributes:
        mode: `blend` draws in the box and resets the rest at every step (AnoGen); `inpaint` gives the network the mask
            and the masked image as further channels (MvP-Diff).
        sampling: Noise levels and steps; `start` is 1000.
        guidance: Scale of classifier-free guidance (arXiv:2207.12598), above 1.
        latents: Channels, height and width of the latents.
        prompts: Tokenization rules.
        text_width: Width W of a token's embedding.
        crop: Whether a window around the box is drawn and pasted back, or the whole image.
        crop_fill: Largest share of the window's sides that a box takes.
        defects: Defects that can be drawn.
        support: Images it was trained on.
        licence: Licence of the base model.
        parity: Parity measured at export.
        text_noise: Standard deviation of the noise on encoded texts that it was trained with; absent for none.
    """

    mode: Literal["blend", "inpaint"]
    sampling: Sampling
    guidance: Annotated[float, msgspec.Meta(gt=0.0, le=1000.0)]
    latents: tuple[Side, Side, Side]
    prompts: PromptRules
    text_width: Annotated[int, msgspec.Meta(ge=1, le=65536)]
    crop: bool
    crop_fill: Share
    defects: tuple[SynthDefect, ...]
    support: tuple[SynthSupport, ...]
    licence: str
    parity: tuple[ImageParity, ...] = ()
    text_noise: NotNegative | msgspec.UnsetType = msgspec.UNSET

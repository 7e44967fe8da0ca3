"""Heads: what a manifest says of how maps and scores are made, one struct a method.

The manifest's field has the type `Head`, which no method is enumerated in: a head says by its tag which it is, and the
table of methods (`flawscope.methods`) knows the struct.
"""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from flawscope import methods
from flawscope.bundle.ensemble_member import EnsembleMember
from flawscope.diffusion.reconstruction import MapRule
from flawscope.diffusion.schedule import Sampling


class Head:
    """Base of all heads.

    A plain class and no struct: msgspec then leaves the decoding to `decode_head`, which finds the struct by its tag.
    It has no slots of its own, so that the structs stay as small as they are.
    """

    __slots__ = ()

    @property
    def members(self) -> tuple[EnsembleMember, ...]:
        """The detectors that an ensemble is made of; none for every other method."""
        return ()


def head_tag(head: Head) -> str:
    """Return the tag of a head, which is the manifest's `method`."""
    return str(type(head).__struct_config__.tag)  # type: ignore[attr-defined]


def decode_head(kind: type, value: Any) -> Any:
    """Return a manifest's head from its builtins: msgspec's `dec_hook`.

    Raises:
        ValueError: If the tag belongs to no method, or the fields are not those of its head.
    """
    if kind is not Head:  # `object`, the values of a training configuration: msgspec asks for these as well
        return value
    tag = value.get("type") if isinstance(value, dict) else None
    if not isinstance(tag, str):
        raise ValueError("Expected a head with its type")
    return msgspec.convert(value, methods.head_type(tag))


class PatchcoreHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="patchcore"):
    """Head of PatchCore (arXiv:2106.08265): patches and a memory bank become an anomaly map.

    Attributes:
        grid: Rows and columns of the patch grid.
        neighbors: b of equation 7, the number of neighbours in the re-weighting.
        reweight: `paper` (equation 7), `seed` (the test patch's own neighbours), or `none`.
        sigma: Standard deviation of the map's Gaussian, in input pixels.
    """

    grid: tuple[int, int]
    neighbors: int
    reweight: Literal["paper", "seed", "none"]
    sigma: float


class PadimHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="padim"):
    """Head of PaDiM (arXiv:2011.08785): patches and Gaussians become an anomaly map.

    Attributes:
        grid: Rows and columns of the patch grid.
        sigma: Standard deviation of the map's Gaussian, in input pixels.
    """

    grid: tuple[int, int]
    sigma: float


class StfpmHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stfpm"):
    """Head of STFPM (arXiv:2103.04257): the graph itself computes the map; there are no patches and no memory bank.

    Attributes:
        sigma: Standard deviation of the map's Gaussian, in input pixels; 0 for none.
        scale: An ordinary score: the mean of those of the sample images.
    """

    sigma: float
    scale: float


class DdadHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ddad"):
    """Head of DDAD (arXiv:2305.15956) and Diffusion-Based-AD: how images are reconstructed and scored.

    Attributes:
        sampling: Noise levels, steps, conditioning and seed.
        rule: How the differences become a map and a score.
        scale: An ordinary score: the mean of those of the sample images.
    """

    sampling: Sampling
    rule: MapRule
    scale: float

    @property
    def edges(self) -> Literal["none"]:
        """Nothing is drawn for a network that sees the image alone."""
        return "none"


class DsadHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dsad"):
    """The same in the latents of an autoencoder: DSAD, and DiAD (arXiv:2312.06607).

    Attributes:
        sampling: As of `DdadHead`.
        rule: As of `DdadHead`.
        scale: As of `DdadHead`.
        edges: What the graph `encode` is given beside the image: `canny`, or `none`, where it draws them itself.
    """

    sampling: Sampling
    rule: MapRule
    scale: float
    edges: Literal["none", "canny"] = "none"


BankHead = PatchcoreHead | PadimHead
"""Heads of methods whose bundles have patches and a bank."""

ReconstructionHead = DdadHead | DsadHead
"""Heads of methods whose bundles have a denoiser: graphs `denoise`, `compare`, and with latents `encode`, `decode`."""

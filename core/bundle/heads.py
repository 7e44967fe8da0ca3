"""Heads: the section of a manifest that says how features become map and score, one struct per method.

The manifest's field has the type `Head`, which lists no methods: the tag of a head names its method, and the table of
methods (`flawscope.methods`) its struct.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from flawscope import methods
from flawscope.bundle.ensemble_member import EnsembleMember
from flawscope.diffusion.reconstruction import MapRule
from flawscope.diffusion.schedule import Sampling
from flawscope.imaging.grid_places import GridPlaces
from flawscope.ranges import MAX_SIDE, MOST_BANKS, MOST_PLACES, NotNegative, Side, Sigma, Top

Neighbors = Annotated[int, msgspec.Meta(ge=1, le=64)]
Banks = Annotated[int, msgspec.Meta(ge=1, le=MOST_BANKS)]
Radius = Annotated[int, msgspec.Meta(ge=0, le=MAX_SIDE)]


class Head:
    """Base of all heads.

    A plain class and no struct: msgspec then leaves decoding to `decode_head`, which finds the struct by its tag.
    """

    # Without it every head would get a __dict__, and with it attributes that no manifest has.
    __slots__ = ()

    @property
    def fits_device(self) -> bool:
        """Whether the CUDA kernels compute this head; on a device its bundle is run as one graph if they do not."""
        return True

    @property
    def members(self) -> tuple[EnsembleMember, ...]:
        """The detectors of an ensemble; empty for every other method."""
        return ()

    @property
    def banks(self) -> int:
        """Memory banks of rows; 0 for methods without."""
        return 0

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        return None


def head_tag(head: Head) -> str:
    """Return the tag of a head, which is the manifest's `method`."""
    # The type checker knows no struct here: `Head` is a plain class.
    return str(type(head).__struct_config__.tag)  # type: ignore[attr-defined]


def decode_head(kind: type, value: Any) -> Any:
    """Return a manifest's head from plain data; a `dec_hook` of msgspec.

    Raises:
        ValueError: If the tag belongs to no method, or the fields are not those of its head.
    """
    if kind is not Head:  # msgspec calls the hook for `object` too, the values of a training configuration
        return value
    tag = value.get("type") if isinstance(value, dict) else None
    if not isinstance(tag, str):
        # A ValueError, to which msgspec adds the place in the JSON.
        raise ValueError("Expected a head with its type")
    return msgspec.convert(value, methods.head_type(tag))


class PatchcoreHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="patchcore"):
    """Head of PatchCore (arXiv:2106.08265): distances of patches to a memory bank.

    Attributes:
        grid: Rows and columns of the patch grid.
        neighbors: Neighbours b of the score re-weighting (equation 7).
        reweight: Whose neighbours re-weight the score: those of the nearest bank patch (`paper`), of the test patch
            (`seed`), or `none`.
        sigma: Standard deviation of the map's Gaussian, in input pixels.
        metric: Distance of a patch to a row, from the squared Euclidean d² between them: `euclidean` is d; `cosine` is
            d² / 2, which for patches and rows of length 1 is 1 - cos of their angle. The feature graph makes that
            length.
        top: Patches whose mean distance, the largest of the image, is the score; 1 is the largest distance itself.
        banks: Memory banks, each for its own channels of a patch, side by side; a patch's distance is the mean of those
            to all of them.
        foreground: Distances are multiplied with the weights of `flawscope.imaging.patch_foreground`.
        places: Where the patches lie in the input; None: their grid is centred on it.
        window: Cells of the grid, along rows and along columns, within which a patch is compared with bank rows; None
            for the whole bank. Where no row is so near, the nearest places that have rows count.
    """

    grid: tuple[Side, Side]
    neighbors: Neighbors
    reweight: Literal["paper", "seed", "none"]
    sigma: Sigma
    metric: Literal["euclidean", "cosine"] = "euclidean"
    top: Top = 1
    banks: Banks = 1
    foreground: bool = False
    places: GridPlaces | None = None
    window: Radius | None = None

    @property
    def reweights(self) -> bool:
        """Whether the score is re-weighted by neighbours, where the bank has more than one row."""
        return self.reweight != "none" and self.neighbors > 1  # one neighbour is nothing to weigh against

    @property
    def fits_device(self) -> bool:
        """Whether the CUDA kernels compute this head: they search one bank, in whole patches."""
        return self.banks == 1 and not self.foreground

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        positions = self.grid[0] * self.grid[1]
        if self.window is not None and positions > MOST_PLACES:
            return f"expected at most {MOST_PLACES} places in a patch grid with a window, got {positions}"
        if self.top > positions:
            return f"expected a score of at most the {positions} patches of an image, got {self.top}"
        if self.top > 1 and self.reweights:
            return f"expected a score of {self.top} patches without re-weighting, got reweight {self.reweight}"
        # msgspec checks ranges in what it reads, not in what a training makes.
        if self.banks > MOST_BANKS:
            return f"expected at most {MOST_BANKS} banks (stages times scales with layers=separate), got {self.banks}"
        if self.banks > 1 and self.reweights:
            return f"expected {self.banks} banks without re-weighting, got reweight {self.reweight}"
        return _grid_problem(self.grid, size)


class PadimHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="padim"):
    """Head of PaDiM (arXiv:2011.08785): Mahalanobis distances of patches to the Gaussian of their position.

    Attributes:
        grid: Rows and columns of the patch grid.
        sigma: Standard deviation of the map's Gaussian, in input pixels.
        places: Where the patches lie in the input; None: their grid is centred on it.
    """

    grid: tuple[Side, Side]
    sigma: Sigma
    places: GridPlaces | None = None

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        return _grid_problem(self.grid, size)


class StfpmHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="stfpm"):
    """Head of STFPM (arXiv:2103.04257): the graph computes the map; there is no memory bank.

    Attributes:
        sigma: Standard deviation of the map's Gaussian, in input pixels; 0 for none.
        scale: Typical score: the mean over the sample images.
    """

    sigma: Sigma
    scale: NotNegative


class SegmenterHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="segmenter"):
    """Head of a segmenter on a frozen backbone: the graph computes the map; there is no memory bank.

    Attributes:
        sigma: Standard deviation of the map's Gaussian, in input pixels; 0 for none.
        top: The score is the mean of so many pixels of the map, the highest ones.
        scale: Typical score: the mean over the sample images.
    """

    sigma: Sigma
    top: Top
    scale: NotNegative

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        if self.top <= size[0] * size[1]:
            return None
        return f"expected a score of at most the input's {size[0] * size[1]} pixels, got {self.top}"


class DdadHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="ddad"):
    """Head of DDAD (arXiv:2305.15956) and Diffusion-Based-AD: how images are reconstructed and scored.

    Attributes:
        sampling: Noise levels, steps, conditioning and seed.
        rule: How the differences become map and score.
        scale: Typical score: the mean over the sample images.
    """

    sampling: Sampling
    rule: MapRule
    scale: NotNegative

    @property
    def edges(self) -> Literal["none"]:
        """No edge input: the network is given the image alone."""
        return "none"

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        return _pooling_problem(self.rule, size)


class DsadHead(Head, msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="dsad"):
    """Head of DSAD and DiAD (arXiv:2312.06607): reconstruction in the latents of an autoencoder.

    Attributes:
        sampling: As of `DdadHead`.
        rule: As of `DdadHead`.
        scale: As of `DdadHead`.
        edges: Edge input of the graph `encode`: `canny`, or `none`, where the graph computes them itself or needs none.
    """

    sampling: Sampling
    rule: MapRule
    scale: NotNegative
    edges: Literal["none", "canny"] = "none"

    def problem(self, size: tuple[int, int]) -> str | None:
        """Return why the head does not fit an input of this height and width, or None if it does."""
        return _pooling_problem(self.rule, size)


def _grid_problem(grid: tuple[int, int], size: tuple[int, int]) -> str | None:
    if grid[0] <= size[0] and grid[1] <= size[1]:
        return None
    return f"expected a patch grid of at most the input's {list(size)} pixels, got {list(grid)}"


def _pooling_problem(rule: MapRule, size: tuple[int, int]) -> str | None:
    # Each pooling makes the map 7 pixels smaller; see `MapRule`.
    if 7 * rule.pooling < min(size):
        return None
    return f"expected poolings that leave something of {list(size)} pixels, got {rule.pooling}"


BankHead = PatchcoreHead | PadimHead
"""Heads of methods whose bundles have patches and a memory bank."""

ReconstructionHead = DdadHead | DsadHead
"""Heads of methods whose bundles have a denoiser: graphs `denoise`, `compare`, and with latents `encode`, `decode`."""

"""Drawing in windows: from normal windows and their boxes to drawn ones, by the networks of a generator.

What depends on a normal window alone, its latents and its reconstruction, is computed once where the window comes
again: candidates of one record (`best_of`) and further rounds draw in the same windows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, only_output
from flawscope.diffusion.latent_inpainting import Mode, Solver, classifier_free_guidance, draw_latents, keep_of
from flawscope.diffusion.reconstruction import signed, unsigned
from flawscope.diffusion.schedule import Sampling
from flawscope.errors import BundleError
from flawscope.runtime.backends import Session
from flawscope.runtime.synthesis.kept import Kept, digest_of

MOST_KEPT = 64 << 20
"""Bytes of latents and reconstructions that are kept: of 75 windows of 512 pixels."""


@dataclass(frozen=True)
class Manner:
    """How windows are drawn; see `draw_latents` and `classifier_free_guidance`.

    Attributes:
        mode: `blend` or `inpaint`.
        sampling: Noise levels, steps, η.
        guidance: Scale of the guidance.
        strength: Share of the steps that are taken.
        solver: `ddim` or `dpm++`.
        restore: Whether mode `inpaint` puts the surroundings back.
    """

    mode: Mode
    sampling: Sampling
    guidance: float
    strength: float
    solver: Solver
    restore: bool


@dataclass(frozen=True)
class DrawnWindows:
    """Windows as the networks draw them.

    Attributes:
        latents: Float32 [N, C, h, w].
        decoded: The drawn windows, float32 [N, 3, H, W] in [-1, 1]; NaN of a network that failed.
        known: The autoencoder's reconstruction of the normal windows, uint8 [N, H, W, 3]: its losses must not count as
            drawn changes.
    """

    latents: Float32Array
    decoded: Float32Array
    known: UInt8Array


class Drawing(Protocol):
    """Draws in windows."""

    def draw(
        self, windows: UInt8Array, masks: BoolArray, context: Float32Array, noise: Float32Array, manner: Manner
    ) -> DrawnWindows:
        """Return drawn windows; see `HostDrawing.draw`."""


class HostDrawing:
    """Draws by the loop in NumPy, which runs the networks with arrays of the host.

    Args:
        sessions: Graph → session; filled before the first drawing, and closed by whoever made it.
        latents: Channels, height and width of the latents.
        path: Path of the bundle, for messages.

    Raises:
        BundleError: When a graph gives another shape than the bundle says.
    """

    def __init__(self, sessions: Mapping[str, Session], latents: tuple[int, int, int], path: str) -> None:
        self._sessions, self._latents, self._path = sessions, latents, path
        self._kept = Kept(MOST_KEPT)

    def draw(
        self, windows: UInt8Array, masks: BoolArray, context: Float32Array, noise: Float32Array, manner: Manner
    ) -> DrawnWindows:
        """Return drawn windows.

        Args:
            windows: Normal windows, uint8 [N, H, W, 3].
            masks: Where to draw, bool [N, H, W].
            context: Encoded texts, float32 [2N, L, D]: N times the empty one, then the prompts.
            noise: From `draw_noise`, image by image, float32 [N, K, C, h, w].
            manner: How.
        """
        count, shape = len(windows), (len(windows), *self._latents)
        images = signed(windows)
        keep = np.stack([keep_of(mask, self._latents[1:]) for mask in masks])
        clean = self._once("encode", [windows], lambda: self._run("encode", {"image": images}, shape))
        conditions: list[Float32Array] = []
        if manner.mode == "inpaint":
            masked = self._once(
                "masked",
                [windows, masks],
                lambda: self._run("encode", {"image": blanked(images, masks)}, shape),
            )
            conditions = [np.float32(1.0) - keep, masked]

        def predict(x: Float32Array, timestep: int) -> Float32Array:
            # Channels in this order, x, mask, blanked image: the one that the first convolution was trained with.
            channels = np.concatenate([x, *conditions], axis=1)
            inputs = {
                "x": np.concatenate([channels, channels]),
                "timestep": np.full(2 * count, timestep, np.int64),
                "context": context,
            }
            found = self._run("denoise", inputs, (2 * count, *self._latents))
            return classifier_free_guidance(found[count:], found[:count], manner.guidance)

        latents = draw_latents(
            manner.mode,
            clean,
            keep,
            noise,
            manner.sampling,
            predict,
            strength=manner.strength,
            solver=manner.solver,
            restore=manner.restore,
        )
        size = windows.shape[1:3]
        decoded = self._run("decode", {"latents": latents}, (count, 3, *size))
        known = self._once(
            "known",
            [windows],
            lambda: reconstructed(self._run("decode", {"latents": clean}, (count, 3, *size))),
        )
        return DrawnWindows(latents, decoded, known)

    def _run(self, graph: str, inputs: Mapping[str, npt.NDArray[Any]], shape: tuple[int, ...]) -> Float32Array:
        """Return the only output of a graph, float32 of this shape; NaN passes, the quality filter rejects it."""
        value = only_output(self._sessions[graph].run(inputs))
        if value.shape != shape or value.dtype != np.float32:
            raise BundleError(
                f"{self._path}: {graph}: expected float32 {list(shape)}, got {value.dtype.name} "
                f"{list(value.shape)}. Export the bundle again."
            )
        return value

    def _once(
        self, kind: str, sources: list[npt.NDArray[Any]], compute: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        """Return what a network gives for a batch; what it gave for the same windows, if all are known."""
        keys = window_keys(kind, *sources)
        if (kept := self._kept.find(keys)) is not None:
            return np.stack(kept)
        computed = compute()
        self._kept.keep(keys, list(computed))
        return computed


def window_keys(kind: str, *sources: npt.NDArray[Any]) -> list[Hashable]:
    """Return a key for each window of a batch: of what is computed, and of all that it is computed from."""
    # The size of the batch too, and never some of its windows alone: sums of some kernels differ in their last bits
    # between batch sizes, and what a seed draws must not depend on what was drawn before.
    count = len(sources[0])
    return [(kind, count, digest_of(*(source[index] for source in sources))) for index in range(count)]


def blanked(images: Float32Array, masks: BoolArray) -> Float32Array:
    """Return images float32 [N, 3, H, W] that are 0 where masks bool [N, H, W] are true."""
    # 0 is mid-grey in the range of -1 to 1: what Stable Diffusion's inpainting networks were trained with.
    return images * (~masks[:, None]).astype(np.float32)


def reconstructed(decoded: Float32Array) -> UInt8Array:
    """Return decoded normal windows float32 [N, 3, H, W] as uint8 [N, H, W, 3]."""
    return unsigned(np.nan_to_num(decoded, nan=0.0))

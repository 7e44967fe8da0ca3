"""The built-in backbone that needs no download: a fixed wavelet scattering network.

First-order coefficients |y * ψ| with oriented Morlet filters, second-order coefficients ||y * ψ| * ψ'| on the next
octave, and the low-pass colours, on a pyramid of binomially smoothed octaves (Bruna and Mallat, "Invariant scattering
convolution networks", IEEE PAMI 2013, sections 2 and 3). Departures: the octaves come from a pyramid instead of
dilated filters, second order is taken on neighbouring octaves only, and two opponent colours have first order too.

Nothing is learned, so there are no weights and no licence terms. It responds to texture, edges, corners and colour, not
to objects; a network trained on ImageNet was clearly better on the real images on which both were compared.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

SCATTERING = "scattering"
"""Name of this backbone in the settings."""

ORIENTATIONS = 6
_MORLET_SIZE = 7
_EPSILON = 1e-6  # under the root of the modulus, whose slope would be infinite at 0


def _morlet_bank() -> Tensor:
    """Return even and odd oriented filters [2·ORIENTATIONS, 1, 7, 7], zero mean, unit energy per pair."""
    axis = torch.arange(_MORLET_SIZE, dtype=torch.float64) - _MORLET_SIZE // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    filters = []
    for index in range(ORIENTATIONS):
        angle = math.pi * index / ORIENTATIONS
        along = x * math.cos(angle) + y * math.sin(angle)
        across = -x * math.sin(angle) + y * math.cos(angle)
        envelope = torch.exp(-(along**2 + (0.6 * across) ** 2) / (2 * 1.3**2))
        phase = along * (math.pi / 2)  # wavelength of four pixels of its octave
        even = envelope * torch.cos(phase)
        # Zero mean (admissibility of the wavelet): a flat area must give no response.
        even = even - envelope * (even.sum() / envelope.sum())
        odd = envelope * torch.sin(phase)
        scale = torch.sqrt((even**2).sum() + (odd**2).sum())
        filters += [even / scale, odd / scale]
    return torch.stack(filters)[:, None].float()


class Scattering(nn.Module):
    """Fixed scattering features at the strides /4, /8, /16 and /32 (stages 1 to 4).

    `forward` takes float32 [N, 3, H, W] (RGB, normalised) and returns one float32 [N, 75, H/2^(s+1), W/2^(s+1)] per
    chosen stage s: 3 low-pass colours, 18 + 18 first-order maps of two octaves and 36 second-order maps.
    """

    def __init__(self, stages: tuple[int, ...]) -> None:
        super().__init__()
        self.stages = stages
        third = 1 / 3
        # Luminance first: `forward` takes the second order of the first ORIENTATIONS maps, which are its.
        opponent = torch.tensor([[third, third, third], [0.5, 0.0, -0.5], [-0.25, 0.5, -0.25]])
        binomial = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
        self.register_buffer("opponent", opponent[:, :, None, None], persistent=False)
        self.register_buffer("lowpass", torch.outer(binomial, binomial)[None, None], persistent=False)
        self.register_buffer("morlet", _morlet_bank(), persistent=False)

    def _halve(self, maps: Tensor) -> Tensor:
        channels = maps.shape[1]
        # Reflected borders: zeros would be edges, at which the features of every image peak.
        padded = functional.pad(maps, (2, 2, 2, 2), mode="reflect")
        kernel = self.get_buffer("lowpass").expand(channels, 1, 5, 5)
        return functional.conv2d(padded, kernel, stride=2, groups=channels)

    def _modulus(self, maps: Tensor) -> Tensor:
        """Return |maps * ψ| for every channel and orientation: [N, C·ORIENTATIONS, h, w]."""
        batch, channels, height, width = maps.shape
        margin = _MORLET_SIZE // 2
        padded = functional.pad(maps, (margin, margin, margin, margin), mode="reflect")
        # Grouped, one filter bank per input channel: output channels lie as (channel, orientation, even/odd).
        kernel = self.get_buffer("morlet").repeat(channels, 1, 1, 1)
        pairs = functional.conv2d(padded, kernel, groups=channels)
        pairs = pairs.reshape(batch, channels * ORIENTATIONS, 2, height, width)
        return torch.sqrt((pairs * pairs).sum(dim=2) + _EPSILON)

    def forward(self, image: Tensor) -> list[Tensor]:
        """Return the chosen stages, finest first."""
        colours = functional.conv2d(image, self.get_buffer("opponent"))
        first = self._modulus(colours)  # 18 maps: three colours, six orientations
        result = []
        for stage in range(max(self.stages) + 1):  # round s ends at stride 2^(s+1)
            second = self._modulus(self._halve(first)[:, :ORIENTATIONS])  # of the luminance's first order
            colours = self._halve(colours)
            finer = self._halve(first)
            first = self._modulus(colours)
            if stage in self.stages:
                result.append((colours, first, finer, second))
        return [torch.cat(parts, dim=1) for parts in result]

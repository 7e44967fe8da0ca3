"""The built-in backbone: shapes, symmetries, and what its channels mean."""

from __future__ import annotations

import pytest
import torch

from flawscope.training.features.scattering import ORIENTATIONS, Scattering, _morlet_bank

CHANNELS = 75
LOWPASS, FIRST, SECOND = slice(0, 3), slice(3, 21), slice(39, 75)


def random_image(side: int = 64, seed: int = 0) -> torch.Tensor:
    return torch.randn((1, 3, side, side), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (128, 96), (72, 40)])
def test_stage_s_has_75_channels_at_stride_two_to_the_s_plus_one(height: int, width: int) -> None:
    stages = Scattering((1, 2))(torch.zeros((2, 3, height, width)))
    assert [tuple(stage.shape) for stage in stages] == [
        (2, CHANNELS, height // 4, width // 4),
        (2, CHANNELS, height // 8, width // 8),
    ]


def test_a_stage_does_not_depend_on_which_others_were_chosen() -> None:
    image = random_image(128)
    every = Scattering((1, 2, 3, 4))(image)
    for index, stage in enumerate((1, 2, 3, 4)):
        assert torch.equal(Scattering((stage,))(image)[0], every[index])


def test_filters_have_zero_mean_and_unit_energy_per_pair() -> None:
    bank = _morlet_bank().double()
    assert bank.shape == (2 * ORIENTATIONS, 1, 7, 7)
    assert bank.sum(dim=(1, 2, 3)).abs().max() < 1e-6
    energy = (bank**2).sum(dim=(1, 2, 3)).reshape(ORIENTATIONS, 2).sum(dim=1)
    torch.testing.assert_close(energy, torch.ones(ORIENTATIONS, dtype=torch.float64), atol=1e-6, rtol=0)


def test_a_flat_image_has_its_colour_and_no_texture() -> None:
    colour = torch.tensor([0.9, 0.3, -0.6])
    (stage,) = Scattering((1,))(colour[None, :, None, None].expand(1, 3, 64, 64).contiguous())
    opponent = torch.tensor([0.2, 0.75, 0.075])  # mean, (R - B) / 2, (2G - R - B) / 4
    torch.testing.assert_close(stage[0, LOWPASS, 3, 3], opponent, atol=1e-6, rtol=0)
    # A modulus of nothing is the root of its epsilon; of that constant, nothing again.
    torch.testing.assert_close(stage[0, 3:], torch.full((72, 16, 16), 1e-3), atol=1e-5, rtol=0)


def test_stripes_excite_the_orientation_across_them() -> None:
    wave = torch.sin(torch.arange(64) * torch.pi / 8)  # at stride 4 a wavelength of four pixels
    across = wave.expand(1, 3, 64, 64).contiguous()
    (stage,) = Scattering((1,))(across)
    response = stage[0, FIRST][:ORIENTATIONS, 4:12, 4:12].mean(dim=(1, 2))
    assert int(response.argmax()) == 0  # filters of index 0 vary along x
    (turned,) = Scattering((1,))(across.transpose(2, 3).contiguous())
    response = turned[0, FIRST][:ORIENTATIONS, 4:12, 4:12].mean(dim=(1, 2))
    assert int(response.argmax()) == ORIENTATIONS // 2  # index 3 of 6 is a quarter turn


def test_the_modulus_does_not_oscillate_with_the_phase_of_a_wave() -> None:
    wave = torch.sin(torch.arange(64) * torch.pi / 8).expand(1, 3, 64, 64).contiguous()
    (stage,) = Scattering((1,))(wave)
    response = stage[0, FIRST][0, 4:12, 4:12]  # neighbours are a quarter of a wave apart
    assert float(response.mean()) > 0.1
    assert float(response.std() / response.mean()) < 0.1


def test_grey_images_leave_the_opponent_colours_empty() -> None:
    grey = random_image().mean(dim=1, keepdim=True).expand(1, 3, 64, 64).contiguous()
    (stage,) = Scattering((1,))(grey)
    assert stage[0, 1:3].abs().max() < 1e-6
    assert stage[0, FIRST][ORIENTATIONS:].max() < 1.1e-3  # two opponent colours, nothing above epsilon


def test_first_order_ignores_the_sign_of_contrast() -> None:
    image = random_image()
    (plain,), (inverted,) = Scattering((1,))(image), Scattering((1,))(-image)
    torch.testing.assert_close(inverted[0, 3:], plain[0, 3:], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(inverted[0, LOWPASS], -plain[0, LOWPASS], atol=1e-6, rtol=0)


def test_nothing_is_learned_or_stored() -> None:
    network = Scattering((1, 2, 3))
    assert list(network.parameters()) == []
    assert network.state_dict() == {}
    assert torch.equal(network(random_image())[2], Scattering((1, 2, 3))(random_image())[2])

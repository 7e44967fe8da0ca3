"""Loading the weights of a run into a network."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from flawscope.errors import RunError


def load_state(network: nn.Module, state: Mapping[str, Tensor], name: str) -> None:
    """Load the weights of a run into a network, freeze it and put it into inference mode.

    Args:
        network: The network.
        state: Its weights.
        name: Of run and network, for the error.

    Raises:
        RunError: If the weights are of another architecture.
    """
    expected = network.state_dict()  # torch's own message lists every one of hundreds of tensors
    matching = sum(key in state and state[key].shape == value.shape for key, value in expected.items())
    if matching != len(expected) or len(state) != len(expected):
        raise RunError(
            f"{name}: expected the {len(expected)} tensors that its settings ask for, got {len(state)}, of which "
            f"{matching} fit. Train again."
        )
    network.load_state_dict(dict(state))
    network.eval().requires_grad_(False)

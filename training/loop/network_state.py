"""Giving a network the weights of a run."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from flawscope.errors import RunError


def load_state(network: nn.Module, state: Mapping[str, Tensor], what: str) -> None:
    """Give a network the weights of a run and make it ready for inference.

    Raises:
        RunError: If they are of another architecture.
    """
    wanted = network.state_dict()  # torch's own message lists every one of hundreds of tensors
    fitting = sum(name in state and state[name].shape == value.shape for name, value in wanted.items())
    if fitting != len(wanted) or len(state) != len(wanted):
        raise RunError(
            f"{what}: expected the {len(wanted)} tensors that its settings ask for, got {len(state)}, of which "
            f"{fitting} fit. Train again."
        )
    network.load_state_dict(dict(state))
    network.eval().requires_grad_(False)

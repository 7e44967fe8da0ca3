"""A backbone that stands for another one: base of those that keep stages, or see an image at several scales."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from flawscope.training.features.backbone import Backbone


class WrappedBackbone(Backbone):
    """A backbone whose weights, device and everything else are those of another one.

    Args:
        backbone: The other one.
    """

    def __init__(self, backbone: Backbone) -> None:
        nn.Module.__init__(self)  # not that of Backbone, whose buffers the inner one has
        self.inner = backbone

    def __getattr__(self, name: str) -> Any:
        """Return what this one lacks from the other."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def get_buffer(self, target: str) -> Tensor:
        """Return a buffer of the other backbone."""
        return self.inner.get_buffer(target)

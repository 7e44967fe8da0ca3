"""The lean runtime: load a bundle, inspect images, without PyTorch."""

from typing import TYPE_CHECKING, Any

from flawscope.runtime.frame import Frame
from flawscope.runtime.inspector import Inspector
from flawscope.runtime.results import Box, Result

if TYPE_CHECKING:
    from flawscope.runtime.backends.session_pool import SessionUse
    from flawscope.runtime.router import Router

__all__ = ["Box", "Frame", "Inspector", "Result", "Router", "SessionUse"]


def __getattr__(name: str) -> Any:
    # On first use: one bundle needs neither, and its cold start is what a line waits for.
    if name == "Router":
        from flawscope.runtime.router import Router

        return Router
    if name == "SessionUse":
        from flawscope.runtime.backends.session_pool import SessionUse

        return SessionUse
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Many images in shards, by several processes or machines: the public names of `flawscope.runtime.scale`."""

import importlib

# Strings, as in `flawscope`: this module lies below the rooms that it names.
_PLACES = {
    "ShardedReport": "flawscope.runtime.scale.score_report",
    "score": "flawscope.runtime.scale.score_api",
}

__all__ = [*_PLACES]


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_PLACES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

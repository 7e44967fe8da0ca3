"""Scripts of the folder benchmarks, which is no package, as modules."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType

from project_paths import ROOT


def load_script(name: str) -> ModuleType:
    """Return `benchmarks/NAME.py` as a module."""
    path = ROOT / "benchmarks" / f"{name}.py"
    # As Python does for a script: they import each other, some of them when they run.
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module

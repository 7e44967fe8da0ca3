"""Tensors of checkpoints in a single file: small networks with the names of the real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flawscope.tensor_files import TensorEntry


def seeded(make: Any, *arguments: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        return make(*arguments)


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def vocabulary(folder: Path) -> int:
    return len(json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"])


def entries(state: dict[str, Tensor]) -> dict[str, TensorEntry]:
    def read() -> Any:
        raise AssertionError("no number of it is needed")

    return {name: TensorEntry(np.dtype(np.float32), tuple(value.shape), read) for name, value in state.items()}

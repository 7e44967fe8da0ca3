"""Files of learned embeddings, token vectors that stand for a defect in a prompt: AnoGen's, diffusers', our own.

A safetensors file holds one tensor, float32 [V, W], named by its placeholder, and metadata: defect, category, width
and the SHA-256 of the file it was imported from.

Source of the format that is read: AnoGen (ECCV 2024), `embeddings.pt`, a pickle that torch wrote, with the dictionaries
`string_to_token` and `string_to_param`. The tokens belong to one tokenizer and are not imported. Our files are also
what diffusers reads (`learned_embeds.safetensors`, arXiv:2208.01618): a tensor named by its placeholder.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import safetensors
import safetensors.numpy

from flawscope.arrays import Float32Array, check_array
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_new_file, write_bytes
from flawscope.open_files import open_regular, regular_path
from flawscope.tensor_files import TensorFile
from flawscope.torch_file import MAX_BYTES, read_torch_file
from flawscope.torch_pickle import SavedModule, SavedTensor

MAX_VECTORS = 1024
"""Largest number of vectors of a word; prompts have fewer tokens."""

_NAMELESS = "emb_params"


@dataclass(frozen=True)
class LearnedWord:
    """A learned embedding and its placeholder in prompts.

    Attributes:
        name: The placeholder it was learned as.
        vectors: Float32 [V, W].
        metadata: Metadata of the file: `defect`, `category`, `width`, `source_sha256`, as far as they are known.
    """

    name: str
    vectors: Float32Array
    metadata: Mapping[str, str]


def read_anogen_embeddings(path: Path) -> dict[str, Float32Array]:
    """Return the learned embeddings of AnoGen's `embeddings.pt` by their placeholders, each float32 [V, W].

    No code in the file is executed; see `flawscope.torch_file`.

    Raises:
        DataError: If the file cannot be read, is broken, or holds anything but such words.
    """
    # Not torch.load: a pickle from elsewhere can run any code, and a device that draws has no torch.
    saved = read_torch_file(path)
    content = saved.value if isinstance(saved.value, dict) else {}
    parameters: Any = content.get("string_to_param")
    # AnoGen pickles an nn.ParameterDict, which is a module whose tensors lie in its state.
    if isinstance(parameters, SavedModule):
        parameters = parameters.state.get("_parameters")
    if not isinstance(parameters, dict) or not parameters:
        raise DataError(
            f"{path}: expected learned words under string_to_param, got "
            f"{', '.join(sorted(map(str, content))) or type(saved.value).__name__}. Is it AnoGen's embeddings.pt?"
        )
    embeddings = {}
    for name, tensor in parameters.items():
        if not isinstance(name, str) or not isinstance(tensor, SavedTensor):
            raise DataError(f"{path}: expected words with a tensor each, got {type(tensor).__name__} for {name!r}.")
        embeddings[name] = _checked(saved.array(tensor), name, path)
    return embeddings


def is_anogen(path: Path) -> bool:
    """Return whether a file is one of AnoGen's, by the name of what is in it.

    Raises:
        DataError: If it is a pickle with anything but tensors and what lies beside them in checkpoints, or broken.
    """
    try:
        with open_regular(path) as file:
            start = file.read(9)
            size = file.seek(0, 2)
    except OSError as err:
        raise DataError(f"{path}: expected a file to import, got: {err.strerror or err}. Check the path.") from err
    if size > MAX_BYTES or start[8:] == b"{" or start[:4] == b"GGUF":
        return False
    saved = read_torch_file(path, what="a learned word or a checkpoint", is_checkpoint=True)
    return isinstance(saved.value, dict) and "string_to_param" in saved.value


def read_words(file: TensorFile) -> dict[str, Float32Array]:
    """Return the learned embeddings of diffusers (`learned_embeds`) by their placeholders, each float32 [V, W].

    Raises:
        DataError: If it holds anything but such words.
    """
    words = {}
    for name, entry in file.tensors.items():
        vectors = entry.read()
        # One vector is stored without its first axis. Other programs name all words alike.
        placeholder = file.path.stem if name == _NAMELESS else name
        words[placeholder] = _checked(vectors[None] if vectors.ndim == 1 else vectors, placeholder, file.path)
    return words


def write_embedding(
    path: Path, name: str, vectors: Float32Array, metadata: Mapping[str, str], *, overwrite: bool = False
) -> None:
    """Write a learned embedding as safetensors, whole or not at all.

    Args:
        path: The file to write.
        name: The placeholder it stands for.
        vectors: Float32 [V, W].
        metadata: `defect`, `category`, `source_sha256`, as far as they are known; `width` is added.
        overwrite: Whether a file that lies there may be replaced.

    Raises:
        ArgumentError: If `path` is taken, the vectors have another shape or dtype, or a text is empty.
        StorageError: If the system refuses to write.
    """
    check_array(vectors, "vectors", ("V", "W"), np.float32, finite=True)
    if not name or not all(metadata.values()):
        raise ArgumentError(f"metadata: expected texts that are not empty, got {dict(metadata)} for {name!r}.")
    check_new_file(path, overwrite=overwrite)
    texts = {**metadata, "width": str(vectors.shape[1])}  # safetensors takes strings only
    write_bytes(path, _ordered(safetensors.numpy.save({name: np.ascontiguousarray(vectors)}, metadata=texts)))


def read_embedding(path: Path) -> LearnedWord:
    """Read a learned embedding from safetensors.

    Raises:
        DataError: If the file cannot be read, or does not hold exactly one.
    """
    try:
        with safetensors.safe_open(regular_path(path), framework="numpy") as file:
            metadata = dict(file.metadata() or {})
            names = sorted(file.keys())
            if len(names) != 1:
                raise DataError(
                    f"{path}: expected the tensor of one word, got {len(names)}. Is it a file of flawscope synth "
                    "import?"
                )
            vectors = file.get_tensor(names[0])
    except (safetensors.SafetensorError, OSError, TypeError, AttributeError) as err:
        # TypeError and AttributeError: what safetensors raises for dtypes that NumPy lacks, such as bfloat16.
        raise DataError(
            f"{path}: expected a learned word in safetensors, got: {err}. Make it with flawscope synth import."
        ) from err
    return LearnedWord(names[0], _checked(vectors, names[0], path), metadata)


def _ordered(data: bytes) -> bytes:
    """Return a safetensors file with its header keys sorted."""
    # The package writes metadata in an order that changes from run to run; the same word must give the same bytes.
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:start]), sort_keys=True).encode()
    header += b" " * (-len(header) % 8)  # the format aligns the tensors to 8 bytes
    return len(header).to_bytes(8, "little") + header + data[start:]


def _checked(vectors: npt.NDArray[Any], name: str, path: Path) -> Float32Array:
    """Return the vectors of a word as float32, or raise DataError."""
    got = f"{vectors.dtype} {list(vectors.shape)}"
    if not np.issubdtype(vectors.dtype, np.floating) or vectors.ndim != 2 or vectors.size == 0:
        raise DataError(f"{path}: {name}: expected floating-point vectors [V, W], got {got}. Is it another model's?")
    if len(vectors) > MAX_VECTORS:
        raise DataError(f"{path}: {name}: expected at most {MAX_VECTORS} vectors for a word, got {got}.")
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinity, which is refused below
        converted = vectors.astype(np.float32)
    if not np.isfinite(converted).all():
        raise DataError(f"{path}: {name}: expected finite numbers, got NaN or infinity. Train the word again.")
    return converted

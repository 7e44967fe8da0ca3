"""Import of a diffusers model with pickled weights (`.bin`) as safetensors, without unpickling.

No code in the pickles is executed; see `flawscope.torch_file`. Other files (settings, tokenizers, licences) are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import safetensors.numpy

from flawscope.errors import DataError
from flawscope.files import atomic_folder, sha256_file
from flawscope.open_files import list_folder, regular_path
from flawscope.torch_file import read_state_dict

PARTS = ("unet", "vae", "vqvae", "text_encoder", "bert", "tokenizer", "scheduler")
"""Folders of a model that are imported, as far as they exist."""

_MAX_BYTES = 16 << 30  # a limit against broken files; the UNet of Stable Diffusion has 3.4 GB, that of XL 10 GB
_NAMES = {
    "diffusion_pytorch_model": "diffusion_pytorch_model.safetensors",
    "pytorch_model": "model.safetensors",
}
"""Stem of a weights file -> the name under which diffusers and transformers look for it."""

_VARIANTS = ("", ".fp16")  # order of preference: FP32 first
_COPIED = (".json", ".txt", ".md", ".model")  # a list of what is safe: scripts (.py) and other pickles stay behind
_ABOVE = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "model_index.json")


def import_base(folder: Path, out: Path, progress: Callable[[str, int, int], None] | None = None) -> tuple[Path, ...]:
    """Write a folder with the parts of a model and all weights as safetensors.

    The folder appears whole or not at all. Weights that are safetensors already are copied; where a part has both, the
    pickle is not read. bfloat16 becomes float32; nothing else changes.

    Args:
        folder: The model, with `unet` and others of `PARTS`.
        out: The folder to make; it must not exist, or be empty.
        progress: Called with the name of the stage, the number of parts finished and their total.

    Returns:
        Paths of the weights, below `out`.

    Raises:
        ArgumentError: If `out` holds something.
        DataError: If there is no UNet, a part has no weights, or a file is broken or holds anything but tensors.
        StorageError: If the system refuses to write.
    """
    parts = [name for name in PARTS if (folder / name).is_dir()]
    if "unet" not in parts:
        raise DataError(
            f"{folder}: expected a model as diffusers writes it, with a folder unet, got none. Check the path."
        )
    written = []
    with atomic_folder(out) as unfinished:
        for finished, part in enumerate(parts):
            if progress:
                progress(f"importing {part}", finished, len(parts))
            (unfinished / part).mkdir()
            for path in list_folder(folder / part):
                # Without the index: it tells the libraries to look for sharded weights, which are not imported.
                if path.suffix in _COPIED and path.is_file() and not path.name.endswith(".index.json"):
                    shutil.copyfile(regular_path(path), unfinished / part / path.name)
            if part not in ("tokenizer", "scheduler"):
                name = _write_weights(folder / part, unfinished / part)
                written.append(Path(part, name))
        for name in _ABOVE:
            if (folder / name).is_file():
                shutil.copyfile(regular_path(folder / name), unfinished / name)
        if progress:
            progress("importing", len(parts), len(parts))
    return tuple(written)


def _write_weights(part: Path, target: Path) -> str:
    """Write the weights of a part into `target` and return the name of the file."""
    for stem, name in _NAMES.items():
        for variant in _VARIANTS:
            stored = (part / name).with_suffix(f"{variant}.safetensors")
            if stored.is_file():
                shutil.copyfile(regular_path(stored), target / name)
                return name
            pickled = part / f"{stem}{variant}.bin"
            if pickled.is_file():
                saved, tensors = read_state_dict(pickled, _MAX_BYTES)
                arrays = {key: saved.array(tensor) for key, tensor in tensors.items()}
                # transformers refuses a safetensors file without `format`.
                metadata = {"format": "pt", "source_sha256": sha256_file(pickled)}
                safetensors.numpy.save_file(arrays, target / name, metadata)
                return name
    raise DataError(
        f"{part}: expected weights called {' or '.join(f'{stem}.bin' for stem in _NAMES)}, got none. Weights in "
        "several files are not taken over: get the folder again in one file a part."
    )

"""Import of a diffusers model as one whose weights are safetensors, one file a part, with LoRAs merged where wanted.

Weights may be pickles (`.bin`), half precision (`.fp16`) and in several files. No code in the pickles is executed; see
`flawscope.torch_file`. Other files (settings, tokenizers, licences) are copied.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from flawscope.errors import DataError
from flawscope.files import atomic_folder, sha256_file
from flawscope.open_files import list_folder, regular_path
from flawscope.runtime.synthesis.ldm_layout import ModelPart
from flawscope.runtime.synthesis.lora_merge import LoraScale, merged_parts
from flawscope.tensor_files import TensorFile, open_shards, open_state_dict, open_tensors, write_tensors

PARTS = ("unet", "vae", "vqvae", "text_encoder", "bert", "tokenizer", "scheduler")
"""Folders of a model that are imported, as far as they exist."""

MODEL_BYTES = 16 << 30
"""A limit against broken files; the UNet of Stable Diffusion has 3.4 GB, a checkpoint with averaged weights 8 GB."""

NAMES = {
    "diffusion_pytorch_model": "diffusion_pytorch_model.safetensors",
    "pytorch_model": "model.safetensors",
}
"""Stem of a weights file -> the name under which diffusers and transformers look for it."""

COPIED = (".json", ".txt", ".md", ".model")
"""Ends of the files that are copied: a list of what is safe; scripts (.py) and other pickles stay behind."""

_NAME_OF = dict.fromkeys(("unet", "vae", "vqvae"), NAMES["diffusion_pytorch_model"])
_NAME_OF |= dict.fromkeys(("text_encoder", "bert"), NAMES["pytorch_model"])
_VARIANTS = ("", ".fp16")  # order of preference: FP32 first
_ABOVE = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "model_index.json")


def import_base(
    folder: Path,
    out: Path,
    progress: Callable[[str, int, int], None] | None = None,
    loras: Sequence[LoraScale] = (),
) -> tuple[Path, ...]:
    """Write a folder with the parts of a model and all weights as safetensors.

    The folder appears whole or not at all. Weights that are safetensors in one file are copied; where a part has both,
    the pickle is not read. bfloat16 becomes float32; nothing else changes.

    Args:
        folder: The model, with `unet` and others of `PARTS`.
        out: The folder to make; it must not exist, or be empty.
        progress: Called with the name of the stage, the number of parts finished and their total.
        loras: LoRAs that are added to the weights.

    Returns:
        Paths of the weights, below `out`.

    Raises:
        ArgumentError: If `out` holds something.
        DataError: If there is no UNet, a part has no weights, a file is broken or holds anything but tensors, or a LoRA
            does not fit.
        StorageError: If the system refuses to write.
    """
    parts = [name for name in PARTS if (folder / name).is_dir()]
    if "unet" not in parts:
        raise DataError(
            f"{folder}: expected a model as diffusers writes it, with a folder unet, got none. Check the path."
        )
    files = {part: _weights(folder / part) for part in parts if part not in ("tokenizer", "scheduler")}
    plain = {part: ModelPart({}, dict(file.tensors)) for part, file in files.items()}
    changed = merged_parts(plain, loras)
    written = []
    with atomic_folder(out) as unfinished:
        for finished, part in enumerate(parts):
            if progress:
                progress(f"importing {part}", finished, len(parts))
            (unfinished / part).mkdir()
            for path in list_folder(folder / part):
                # Without the index: it tells the libraries to look for sharded weights, which are not imported.
                if path.suffix in COPIED and path.is_file() and ".index." not in path.name:
                    shutil.copyfile(regular_path(path), unfinished / part / path.name)
            if part in files:
                name = _NAME_OF[part]
                _write_weights(files[part], changed[part], plain[part], unfinished / part / name)
                written.append(Path(part, name))
        for name in _ABOVE:
            if (folder / name).is_file():
                shutil.copyfile(regular_path(folder / name), unfinished / name)
        if progress:
            progress("importing", len(parts), len(parts))
    return tuple(written)


def _weights(part: Path) -> TensorFile:
    """Return the tensors of a part, from whichever form of its weights comes first in the order of preference."""
    for variant in _VARIANTS:
        for stem, name in NAMES.items():
            stored = (part / name).with_suffix(f"{variant}.safetensors")
            if stored.is_file():
                return open_tensors(stored, MODEL_BYTES)
            if (pickled := part / f"{stem}{variant}.bin").is_file():
                return open_state_dict(pickled, MODEL_BYTES)
        # In diffusers the name of the variant comes before `.index`, in transformers behind it.
        for stem, name in NAMES.items():
            for weights in (name, f"{stem}.bin"):
                for index in (f"{weights}{variant}.index.json", f"{weights}.index{variant}.json"):
                    if (part / index).is_file():
                        shards = open_shards(part / index, MODEL_BYTES)
                        if shards.tensors:
                            return shards
    raise DataError(
        f"{part}: expected weights called {' or '.join(f'{stem}.bin' for stem in NAMES)}, or safetensors, got none. "
        "Get the folder again."
    )


def _write_weights(file: TensorFile, changed: ModelPart, plain: ModelPart, target: Path) -> None:
    is_whole = file.path.suffix == ".safetensors"
    if is_whole and changed is plain:
        shutil.copyfile(regular_path(file.path), target)
        return
    # transformers refuses a safetensors file without `format`.
    write_tensors(target, changed.tensors, {"format": "pt", "source_sha256": sha256_file(file.path)})

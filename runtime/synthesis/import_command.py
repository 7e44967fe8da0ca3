"""Command `flawscope synth import`: converts published embeddings, models and checkpoints, without unpickling."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.errors import DataError
from flawscope.files import check_new_file, sha256_file
from flawscope.output_options import OVERWRITE
from flawscope.runtime.synthesis.base_import import MODEL_BYTES, import_base
from flawscope.runtime.synthesis.checkpoint_kinds import Kind, kind_of
from flawscope.runtime.synthesis.embedding_files import is_anogen, read_anogen_embeddings, read_words, write_embedding
from flawscope.runtime.synthesis.lora_merge import LoraScale
from flawscope.runtime.synthesis.single_file import CheckpointOptions, import_checkpoint
from flawscope.tensor_files import TensorFile, open_tensors
from flawscope.terminal import echo, progress_bars

_PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("source", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="File (.safetensors) or folder to write.")
@click.option("--defect", metavar="NAME", help="Defect type that a learned word stands for.")
@click.option("--category", metavar="NAME", help="Category that it was learned on.")
@click.option(
    "--lora", "loras", multiple=True, metavar="FILE[=SCALE]", help="Merge a LoRA into the model (repeatable)."
)
@click.option("--tokenizer", type=_PATH, metavar="DIR", help="Tokenizer of a checkpoint: vocab.json and merges.txt.")
@click.option("--autoencoder", type=_PATH, metavar="FILE", help="Take the autoencoder of this checkpoint instead.")
@click.option("--ema/--no-ema", default=None, help="Take the averaged weights of a checkpoint, if any (default: yes).")
@click.option("--image-size", type=click.IntRange(8, 4096), metavar="PX", help="Side that a checkpoint was trained on.")
@click.option("--licence", metavar="NAME", help="Licence of a checkpoint, which bundles then state.")
@OVERWRITE
def import_command(
    source: Path,
    out: Path,
    defect: str | None,
    category: str | None,
    loras: tuple[str, ...],
    tokenizer: Path | None,
    autoencoder: Path | None,
    ema: bool | None,
    image_size: int | None,
    licence: str | None,
    overwrite: bool,
) -> None:
    """Import a learned word, a checkpoint or a model folder; no code in SOURCE is executed.

    SOURCE is a checkpoint in one file (.ckpt, .safetensors) of Stable Diffusion 1, LDM text-to-image or kl-f8, or a
    folder of Stable Diffusion or LDM text-to-image as diffusers writes it, with any form of weights: --out is then a
    folder that can be the base of a training. Or SOURCE is a learned word (AnoGen's embeddings.pt, learned_embeds of
    diffusers): it fits only the base model it was learned with, and flawscope export --embedding puts it into a bundle
    of that model.
    """
    added = tuple(_lora(text) for text in loras)
    options = CheckpointOptions(tokenizer, autoencoder, ema, image_size, licence, added)
    word = defect is not None or category is not None or overwrite
    checkpoint = [tokenizer, autoencoder, ema, image_size, licence]
    if source.is_dir():
        _refuse(word, "--defect, --category and --overwrite are for a learned word, got a folder")
        _refuse(
            any(given is not None for given in checkpoint),
            "--tokenizer, --autoencoder, --ema, --image-size and --licence are for a checkpoint in one file, got a "
            "folder",
        )
        with progress_bars() as progress:
            for path in import_base(source, out, progress, added):
                echo(f"{out / path}")
        return
    file = None if is_anogen(source) else open_tensors(source, MODEL_BYTES)
    if file is None or kind_of(file.tensors) is Kind.WORD:
        given = bool(added) or any(value is not None for value in checkpoint)
        _refuse(
            given, "--lora, --tokenizer, --autoencoder, --ema, --image-size and --licence are for a model, got a word"
        )
        _import_word(source, file, out, defect, category, overwrite)
        return
    _refuse(word, "--defect, --category and --overwrite are for a learned word, got a checkpoint")
    if kind_of(file.tensors) is Kind.LORA:
        raise DataError(
            f"{source}: expected a model or a learned word, got a LoRA, which is merged into its base: flawscope synth "
            f"import BASE --lora {source} --out FOLDER."
        )
    _import_checkpoint(file, out, options)


def _import_checkpoint(file: TensorFile, out: Path, options: CheckpointOptions) -> None:
    with progress_bars() as progress:
        converted = import_checkpoint(file, out, options, progress)
    for path in converted.weights:
        echo(f"{out / path}")
    weights = ", the averaged weights (EMA)" if converted.averaged else ""
    echo(f"{file.path}: {converted.kind.value}{weights}")
    echo(f"licence: {converted.licence or 'unknown, which bundles then state: name it with --licence'}")
    if converted.left_out:
        listed = ", ".join(f"{name} ({count})" for name, count in sorted(converted.left_out.items()))
        echo(f"left out: {listed}")


def _import_word(
    source: Path, file: TensorFile | None, out: Path, defect: str | None, category: str | None, overwrite: bool
) -> None:
    check_new_file(out, overwrite=overwrite)
    embeddings = read_anogen_embeddings(source) if file is None else read_words(file)
    # The output holds one tensor, and --defect and --category describe one word.
    if len(embeddings) != 1:
        raise DataError(
            f"{source}: expected one word, got {len(embeddings)}: {', '.join(sorted(embeddings))}. Split the file."
        )
    ((name, vectors),) = embeddings.items()
    metadata = {"defect": defect, "category": category, "source_sha256": sha256_file(source)}
    write_embedding(out, name, vectors, {key: text for key, text in metadata.items() if text}, overwrite=overwrite)
    count, width = vectors.shape
    echo(f"{out}: {name!r}, {count} vector{'s' if count > 1 else ''} of width {width}")


def _lora(text: str) -> LoraScale:
    """Return a LoRA and its scale from FILE or FILE=SCALE."""
    name, has_scale, number = text.rpartition("=")
    # A name may have the sign in it: the text behind the last one is the scale if it is a number.
    try:
        return LoraScale(Path(name), float(number)) if has_scale else LoraScale(Path(text))
    except ValueError:
        return LoraScale(Path(text))


def _refuse(given: bool, message: str) -> None:
    if given:
        raise click.UsageError(f"{message}. Leave them out.")

"""Command `flawscope synth import`: converts published embeddings and models to safetensors, without unpickling."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.errors import DataError
from flawscope.files import check_new_file, sha256_file
from flawscope.output_options import OVERWRITE
from flawscope.runtime.synthesis.base_import import import_base
from flawscope.runtime.synthesis.embedding_files import read_anogen_embeddings, write_embedding
from flawscope.terminal import echo, progress_bars

_PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("source", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="File (.safetensors) or folder to write.")
@click.option("--defect", metavar="NAME", help="Defect type that the word stands for.")
@click.option("--category", metavar="NAME", help="Category that it was learned on.")
@OVERWRITE
def import_command(source: Path, out: Path, defect: str | None, category: str | None, overwrite: bool) -> None:
    """Import a learned word, or a model whose weights are pickles; no code in SOURCE is executed.

    SOURCE is AnoGen's embeddings.pt: the word fits only the base model it was learned with, and flawscope export
    --embedding puts it into a bundle of that model. Or SOURCE is a folder of Stable Diffusion or LDM text-to-image with
    weights in .bin: --out is then a folder that can be the base of a training.
    """
    if source.is_dir():
        if defect is not None or category is not None or overwrite:
            raise click.UsageError(
                "--defect, --category and --overwrite are for a learned word, got a folder. Leave them out."
            )
        with progress_bars() as progress:
            for path in import_base(source, out, progress):
                echo(f"{out / path}")
        return
    check_new_file(out, overwrite=overwrite)
    embeddings = read_anogen_embeddings(source)
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

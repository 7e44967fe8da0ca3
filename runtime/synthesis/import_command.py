"""`flawscope synth import`: converts others' embeddings and models to safetensors without executing their files."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.base_import import import_base
from flawscope.runtime.synthesis.embedding_files import read_anogen_embeddings, write_embedding
from flawscope.terminal import progress_bars

_PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("source", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="File (.safetensors) or folder to write.")
@click.option("--defect", metavar="NAME", help="Defect type that the word stands for.")
@click.option("--category", metavar="NAME", help="Category it was learned on.")
def import_command(source: Path, out: Path, defect: str | None, category: str | None) -> None:
    """Take over a learned word, or a model whose weights are pickles; nothing in SOURCE is executed.

    SOURCE is AnoGen's embeddings.pt: the word fits the base model it was learned with alone, and flawscope export
    --embedding puts it into a bundle of that. Or it is a folder of Stable Diffusion or LDM text-to-image with weights
    in .bin: --out is then a folder that trainings take as their base.
    """
    if source.is_dir():
        if defect is not None or category is not None:
            raise click.UsageError("--defect and --category are for a learned word, got a folder. Leave them out.")
        with progress_bars() as progress:
            for path in import_base(source, out, progress):
                click.echo(f"{out / path}")
        return
    words = read_anogen_embeddings(source)
    if len(words) != 1:
        raise DataError(f"{source}: expected one word, got {len(words)}: {', '.join(sorted(words))}. Split the file.")
    ((name, vectors),) = words.items()
    known = {"defect": defect, "category": category, "source_sha256": sha256_file(source)}
    write_embedding(out, name, vectors, {key: text for key, text in known.items() if text})
    count, width = vectors.shape
    click.echo(f"{out}: {name!r}, {count} vector{'s' if count > 1 else ''} of width {width}")

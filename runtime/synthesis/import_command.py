"""`flawscope synth import`: a word that AnoGen has learned, as safetensors."""

from __future__ import annotations

from pathlib import Path

import click

from flawscope.errors import DataError
from flawscope.files import sha256_file
from flawscope.runtime.synthesis.embeddings import read_anogen_embeddings, write_embedding

_PATH = click.Path(path_type=Path)


@click.command("import")
@click.argument("source", metavar="FILE", type=_PATH)
@click.option("--out", type=_PATH, required=True, metavar="FILE", help="File to write (.safetensors).")
@click.option("--defect", metavar="NAME", help="Defect type that the word stands for.")
@click.option("--category", metavar="NAME", help="Category it was learned on.")
def import_command(source: Path, out: Path, defect: str | None, category: str | None) -> None:
    """Take over a learned word from AnoGen's embeddings.pt; nothing in it is executed.

    The word fits the base model it was learned with alone: flawscope export --embedding puts it into a bundle of that.
    """
    words = read_anogen_embeddings(source)
    if len(words) != 1:
        raise DataError(f"{source}: expected one word, got {len(words)}: {', '.join(sorted(words))}. Split the file.")
    ((name, vectors),) = words.items()
    known = {"defect": defect, "category": category, "source_sha256": sha256_file(source)}
    write_embedding(out, name, vectors, {key: text for key, text in known.items() if text})
    count, width = vectors.shape
    click.echo(f"{out}: {name!r}, {count} vector{'s' if count > 1 else ''} of width {width}")

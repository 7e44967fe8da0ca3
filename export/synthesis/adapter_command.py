"""Command `flawscope synth export-adapter`: what a run has learned, in the files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.config import InpaintingConfig
from flawscope.errors import ArgumentError
from flawscope.files import check_new_file
from flawscope.output_options import OVERWRITE
from flawscope.runtime.synthesis.embedding_files import write_embedding
from flawscope.runtime.synthesis.lora_files import Form, write_lora
from flawscope.terminal import echo

if TYPE_CHECKING:
    from flawscope.training.synthesis.generator_run import SynthesisRun

_PATH = click.Path(path_type=Path)
_FORMS = ("diffusers", "kohya", "peft")


@click.command("export-adapter")
@click.argument("run", type=_PATH)
@click.option("--out", type=_PATH, required=True, help="File (.safetensors) to write; for --form peft a folder.")
@click.option("--form", type=click.Choice(_FORMS), help="Whose names the LoRA gets (default: diffusers).")
@click.option("--defect", metavar="NAME", help="Defect type whose word is written, of a run that has several.")
@click.option("--token", metavar="WORD", help="What the word is called in prompts (default: <DEFECT>).")
@OVERWRITE
def export_adapter(
    run: Path, out: Path, form: Form | None, defect: str | None, token: str | None, overwrite: bool
) -> None:
    """Write what RUN has learned for other programs.

    RUN is a run of train inpainting with adapt=lora, whose LoRA is written as diffusers, kohya or peft name it; or a
    run of train embedding, whose learned word is written as learned_embeds.safetensors of diffusers. A run of train
    inpainting that has learned words gives them with --defect.
    """
    # Here, so that help is shown without torch.
    from flawscope.training.synthesis.generator_run import read_synthesis_run
    from flawscope.training.synthesis.learned_text import VECTORS
    from flawscope.training.synthesis.lora import LORA, UNET

    opened = read_synthesis_run(run)
    # By what the run holds: a word and a LoRA are files of their own, whichever training made them.
    whole = UNET in opened.tensors and opened.record.kind != "base"
    if defect is not None and VECTORS not in opened.tensors and (whole or LORA in opened.tensors):
        without = "" if whole else " Leave it out to get the LoRA of this run."
        raise ArgumentError(
            f"--defect: expected a run that has learned words, got {run}, which has none. Train with --set "
            f"learn_text=vectors, or with train embedding.{without}"
        )
    if not {LORA, VECTORS} & opened.tensors.keys():
        raise ArgumentError(
            f"{run}: expected a run with adapt=lora, got one with adapt=full, whose weights have all changed. Train "
            "with --set adapt=lora."
            if whole
            else f"{run}: expected a run of train inpainting or train embedding, got one of train "
            f"{opened.record.kind}, which has no adapter. Name another run."
        )
    if LORA not in opened.tensors or defect is not None:
        if form is not None:
            raise click.UsageError("--form is for a LoRA, got a learned word. Leave it out.")
        _write_word(opened, out, defect, token, overwrite)
        return
    if token is not None:
        raise click.UsageError("--token is for a learned word, got a LoRA. Leave it out, or name a --defect.")
    _write_lora(opened, out, form or "diffusers", overwrite)


def _write_lora(run: SynthesisRun, out: Path, form: Form, overwrite: bool) -> None:
    from flawscope.training.synthesis.learned_text import TEXT_LORA, VECTORS
    from flawscope.training.synthesis.lora import LORA

    unet, text = (
        {name: cast(Float32Array, tensor.float().numpy()) for name, tensor in run.tensors.get(group, {}).items()}
        for group in (LORA, TEXT_LORA)
    )
    config = cast("InpaintingConfig", run.record.config)  # no other training makes a LoRA
    write_lora(out, unet, float(config.alpha), form, text=text, overwrite=overwrite)
    count = len(unet) // 2 + len(text) // 2
    echo(f"{out}: {count} layers, rank {config.rank}, alpha {config.alpha:g}, as {form} names them")
    if words := run.tensors.get(VECTORS):
        echo(f"its words are files of their own, with --defect: {', '.join(sorted(words))}")


def _write_word(run: SynthesisRun, out: Path, defect: str | None, token: str | None, overwrite: bool) -> None:
    from flawscope.training.synthesis.learned_text import VECTORS

    vectors = run.tensors.get(VECTORS, {})
    found = [kind for kind in vectors if defect is None or defect in (kind, kind.partition("/")[2])]
    if len(found) != 1:
        raise ArgumentError(
            f"--defect: expected one of {', '.join(sorted(vectors))}, got {defect or 'none'}. Name one."
        )
    check_new_file(out, overwrite=overwrite)
    category, _, name = found[0].partition("/")
    values = np.ascontiguousarray(vectors[found[0]].float().numpy())
    word = token or f"<{name}>"
    write_embedding(out, word, values, {"defect": name, "category": category}, overwrite=overwrite)
    echo(f"{out}: {word!r}, {len(values)} vector{'s' if len(values) > 1 else ''} of width {values.shape[1]}")

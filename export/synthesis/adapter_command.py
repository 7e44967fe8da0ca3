"""Command `flawscope synth export-adapter`: what a run has learned, in the files of other programs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, cast

import click
import numpy as np

from flawscope.arrays import Float32Array
from flawscope.config import EmbeddingConfig, InpaintingConfig
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
    run of train embedding, whose learned word is written as learned_embeds.safetensors of diffusers.
    """
    # Here, so that help is shown without torch.
    from flawscope.training.synthesis.generator_run import read_synthesis_run

    opened = read_synthesis_run(run)
    config = opened.record.config
    if isinstance(config, InpaintingConfig):
        if defect is not None or token is not None:
            raise click.UsageError("--defect and --token are for a learned word, got a LoRA. Leave them out.")
        _write_lora(opened, config, out, form or "diffusers", overwrite)
    elif isinstance(config, EmbeddingConfig):
        if form is not None:
            raise click.UsageError("--form is for a LoRA, got a learned word. Leave it out.")
        _write_word(opened, out, defect, token, overwrite)
    else:
        raise ArgumentError(
            f"{run}: expected a run of train inpainting or train embedding, got one of train {opened.record.kind}, "
            "which has no adapter. Name another run."
        )


def _write_lora(run: SynthesisRun, config: InpaintingConfig, out: Path, form: Form, overwrite: bool) -> None:
    from flawscope.training.synthesis.lora import LORA

    state = run.tensors.get(LORA, {})
    if config.adapt != "lora" or not state:
        raise ArgumentError(
            f"{run.path}: expected a run with adapt=lora, got one with adapt={config.adapt}, whose weights have all "
            "changed. Train with --set adapt=lora."
        )
    matrices = {name: cast(Float32Array, tensor.float().numpy()) for name, tensor in state.items()}
    write_lora(out, matrices, float(config.alpha), form, overwrite=overwrite)
    echo(f"{out}: {len(matrices) // 2} layers, rank {config.rank}, alpha {config.alpha:g}, as {form} names them")


def _write_word(run: SynthesisRun, out: Path, defect: str | None, token: str | None, overwrite: bool) -> None:
    vectors = run.tensors.get("vectors", {})
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

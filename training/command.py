"""`flawscope train`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flawscope.config import CONFIGS, TrainedConfig, build_config, parse_assignment
from flawscope.datasets import open_dataset
from flawscope.errors import ArgumentError, MissingExtra
from flawscope.terminal import command_line, progress_bars
from flawscope.training.settings import preset_names, read_settings


@click.command()
@click.argument("method", type=click.Choice(list(CONFIGS)))
@click.option("--data", "root", type=click.Path(path_type=Path), help="Dataset root, or a category itself.")
@click.option("--category", help="Category below the root.")
@click.option("--config", "config_name", help=f"YAML file, or a preset: {', '.join(preset_names())}.")
@click.option("--set", "assignments", multiple=True, metavar="KEY=VALUE", help="One setting; may be repeated.")
@click.option("--backbone", help="scattering (built in, no download), or any timm model.")
@click.option("--weights", type=click.Path(path_type=Path), help="Safetensors file of the backbone, for offline use.")
@click.option("--image-size", type=int, help="Height and width in pixels after the resize.")
@click.option("--seed", type=int, help="Seed of every random choice.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder to write.")
@click.option(
    "--resume", type=click.Choice(["latest"]), help="Go on with an interrupted training, from its newest checkpoint."
)
def train(
    method: str,
    root: Path | None,
    category: str | None,
    config_name: str | None,
    assignments: tuple[str, ...],
    backbone: str | None,
    weights: Path | None,
    image_size: int | None,
    seed: int | None,
    out: Path,
    resume: str | None,
) -> None:
    """Learn what good parts look like; writes a run that `flawscope export` turns into a bundle.

    PatchCore and PaDiM are fitted, not trained: there is no loss and there are no epochs. STFPM is trained; meanwhile
    RUN.training has its metrics, previews and checkpoints.
    """
    from_file = read_settings(config_name) if config_name else {}
    # Two keys of such files name the data; options win over them.
    file_root = from_file.pop("data_path", None)
    file_category = from_file.pop("category", None)
    options: dict[str, Any] = {"backbone": backbone, "resize": image_size, "seed": seed}
    config, unused = build_config(
        method,
        from_file,
        dict(parse_assignment(text) for text in assignments),
        {key: value for key, value in options.items() if value is not None},
    )
    if unused:
        click.echo(f"note: not used by train: {', '.join(unused)}", err=True)
    if root is None and file_root is None:
        raise ArgumentError("--data: expected the dataset's folder, got none.")
    dataset = open_dataset(root or Path(str(file_root)), category or file_category)
    try:
        from flawscope.training.train import train_detector
    except ModuleNotFoundError as err:
        raise MissingExtra("training", str(err.name), "train") from err
    with progress_bars() as progress:
        record = train_detector(
            config,
            dataset,
            out,
            weights=weights,
            resume=resume is not None,
            command=command_line(),
            progress=progress,
        )
    done = "trained" if isinstance(config, TrainedConfig) else "fitted"
    facts = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in record.facts.items())
    click.echo(
        f"{method} {done} on {len(record.training)} good pictures of {record.category} in "
        f"{sum(record.seconds.values()):.1f} s; {len(record.held_out)} held out for calibration"
    )
    click.echo(f"{facts}")
    click.echo(f"run: {out}")

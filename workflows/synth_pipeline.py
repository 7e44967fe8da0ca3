"""All stages of a generator of defects: training, export, and a few drawings with their contact sheet."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from flawscope.bundle import Manifest, making
from flawscope.config import AdaptationSettings, MethodConfig, find_part, flatten
from flawscope.datasets import Dataset
from flawscope.datasets.defects.box_sets import BOXES_RECORD, BoxSettings, write_boxes
from flawscope.datasets.defects.file_names import category_of, check_name
from flawscope.datasets.defects.mask_ranges import CategoryRanges
from flawscope.datasets.defects.mask_sets import MASKS_RECORD, MaskSettings, write_masks
from flawscope.datasets.defects.random_masks import Sides
from flawscope.datasets.defects.seeded_choice import check_count
from flawscope.datasets.defects.set_files import SHEET
from flawscope.datasets.defects.support_set import find_support, read_support
from flawscope.errors import ArgumentError
from flawscope.export.synthesis.generator_export import export_synthesis
from flawscope.files import check_replaceable
from flawscope.progress import Progress
from flawscope.runs import RECORD, SynthesisRecord
from flawscope.runtime.synthesis.draw_options import GenerateSettings
from flawscope.runtime.synthesis.generated_set import MARKER, GenerateRecord
from flawscope.runtime.synthesis.generation import generate_images
from flawscope.runtime.synthesis.mask_sites import MaskSites
from flawscope.runtime.synthesis.sites import Site, read_sites
from flawscope.runtime.synthesis.synthesizer import Synthesizer
from flawscope.training.synthesis.generator_run import read_synthesis_run
from flawscope.training.synthesis.generator_training import train_synthesis
from flawscope.unfinished import check_not_finished
from flawscope.workflows.pipeline import Stage, run_below

DRAWN = 4
"""Images drawn of each defect type, unless another number is asked for."""
_BASE_DEFECT = "sample"
"""What a base model is asked for: it knows no defect, and redraws what it takes for normal."""
_BASE_SIDES = Sides((0.2, 0.4), (0.2, 0.4), rotate=False)

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class SynthPlan:
    """The request of one pipeline of a generator.

    Attributes:
        config: Settings of the method.
        dataset: Dataset of all stages.
        out: Folder for all results.
        resume: Resume an interrupted training, from its newest checkpoint or from this one.
        trains: Whether a generator is trained; otherwise the run of an earlier pipeline is used as it is.
        drawn: Images drawn of each defect type.
        command: Command line for the records.
        overwrite: Whether results of an earlier pipeline may be replaced.
    """

    config: MethodConfig
    dataset: Dataset
    out: Path
    resume: bool | Path = False
    trains: bool = True
    drawn: int = DRAWN
    command: str = ""
    overwrite: bool = False

    @property
    def replaces(self) -> bool:
        """Whether results of an earlier pipeline may be replaced: it is continued, or that was asked for."""
        return self.overwrite or self.resume is not False or not self.trains

    @property
    def run(self) -> Path:
        """Folder of the run."""
        return run_below(self.out)

    @property
    def bundle(self) -> Path:
        """Folder of the bundle."""
        return self.out / f"{self.dataset.category}.flaw"

    @property
    def places(self) -> Path:
        """Folder of the boxes or masks that are drawn at."""
        return self.out / ("boxes" if find_part(self.config, AdaptationSettings) is not None else "masks")

    @property
    def pictures(self) -> Path:
        """Folder of the drawings."""
        return self.out / "drawn"


@making()
def run_synth_pipeline(
    plan: SynthPlan,
    *,
    bars: Callable[[], AbstractContextManager[Progress]],
    announce: Callable[[Stage], None],
) -> GenerateRecord:
    """Train a generator, export it, and draw a few defects.

    Writes `run/`, `CATEGORY.flaw`, `boxes/` (of a base model `masks/`) and `drawn/` to the plan's folder.

    Args:
        plan: Which stages run, on what, with which settings.
        bars: Opens a progress display, once for each stage.
        announce: Called with each stage after it has run or was skipped.

    Raises:
        ArgumentError: If an output folder holds something else or may not be replaced, or there is no earlier run.
        DataError: If the category cannot be the name of a folder.
        FlawscopeError: If a stage fails.
    """

    def do(name: str, stage: Callable[[SynthPlan, Progress], tuple[_Result, str]]) -> _Result:
        started = time.perf_counter()
        with bars() as progress:
            result, summary = stage(plan, progress)
        announce(Stage(name, time.perf_counter() - started, summary))
        return result

    _check(plan)
    if plan.trains:
        do("train", _train)
    else:
        announce(Stage("train", None, f"{plan.run} is used as it is"))
    do("export", _export)
    do("places", _places)
    return do("drawing", _draw)


def _check(plan: SynthPlan) -> None:
    """Refuse before the training what would fail after it."""
    check_count(plan.drawn, "draw", 1, 10_000)
    # The bundle is named after the category: one with a slash or `..` would lie outside the output folder.
    check_name(plan.dataset.category, "category")
    if plan.out.exists() and not plan.out.is_dir():
        raise ArgumentError(f"{plan.out}: expected a folder, got a file. Choose another name.")
    if plan.trains:
        check_not_finished(plan.run, plan.resume)
    marker = BOXES_RECORD if plan.places.name == "boxes" else MASKS_RECORD
    for folder, name in (
        (plan.run, RECORD),
        (plan.bundle, "manifest.json"),
        (plan.places, marker),
        (plan.pictures, MARKER),
    ):
        check_replaceable(folder, name, overwrite=plan.replaces)
    if not plan.trains:
        _check_earlier_run(plan)


def _check_earlier_run(plan: SynthPlan) -> None:
    record = read_synthesis_run(plan.run).record
    if plan.resume is not False:
        raise ArgumentError("resume: expected a training to resume, got --skip train. Leave one of them out.")
    if record.category != plan.dataset.category:
        raise ArgumentError(
            f"{plan.run}: expected a run of {plan.dataset.category}, got one of {record.category}. Name the category "
            "it was trained on, or another --out."
        )
    recorded, asked = flatten(record.config), flatten(plan.config)
    if changed := sorted(name for name in asked if recorded.get(name) != asked[name]):
        raise ArgumentError(
            f"{changed[0]}: expected the setting of {plan.run} ({recorded.get(changed[0])}), got "
            f"{asked[changed[0]]}. Leave it out, or train again without --skip train."
        )


def _train(plan: SynthPlan, progress: Progress) -> tuple[SynthesisRecord, str]:
    record = train_synthesis(
        plan.config,
        plan.dataset,
        plan.run,
        resume=plan.resume,
        command=plan.command,
        progress=progress,
        overwrite=plan.replaces,
    )
    learned = "normal images" if record.kind == "base" else f"images of {len(record.defects)} defect types"
    return record, f"{plan.run}: {len(record.training)} {learned} learned"


def _export(plan: SynthPlan, progress: Progress) -> tuple[Manifest, str]:
    # From the folder and not from memory: what is shipped is what was written.
    manifest = export_synthesis(plan.run, plan.bundle, command=plan.command, progress=progress, overwrite=plan.replaces)
    size = sum(entry.size for entry in manifest.files.values())
    return manifest, f"{plan.bundle} ({size / 2**20:.1f} MiB)"


def _places(plan: SynthPlan, progress: Progress) -> tuple[None, str]:
    adaptation = find_part(plan.config, AdaptationSettings)
    if adaptation is None or adaptation.support is None:
        names = sorted({category_of(plan.dataset, sample) for sample in plan.dataset.train_good})
        ranges = {name: CategoryRanges("image", {_BASE_DEFECT: _BASE_SIDES}) for name in names}
        write_masks(ranges, plan.places, MaskSettings(plan.drawn, seed=plan.config.seed), overwrite=plan.replaces)
        return None, f"{plan.places}: {plan.drawn} masks anywhere; the base knows no defect and redraws normal material"
    record = read_synthesis_run(plan.run).record
    learned = {(defect.category, defect.name) for defect in record.defects}
    entries = [
        entry
        for entry in find_support(plan.dataset, read_support(Path(adaptation.support)))
        if (entry.category, entry.defect) in learned
    ]
    number = plan.drawn * max(sum(category == name for category, _ in learned) for name in {c for c, _ in learned})
    settings = BoxSettings(number=number, within="image", seed=plan.config.seed)
    boxes = write_boxes(plan.dataset, entries, plan.places, settings, overwrite=plan.replaces)
    return None, f"{plan.places}: {boxes.random} random boxes like those of {len(boxes.real)} defects"


def _draw(plan: SynthPlan, progress: Progress) -> tuple[GenerateRecord, str]:
    sites: Sequence[Site]
    if plan.places.name == "boxes":
        sites, lines = read_sites(plan.places, plan.dataset)
    else:
        masks = MaskSites(plan.places, plan.dataset)
        chosen, _ = masks.choose((), lambda key: True, per_image=1, seed=plan.config.seed)
        sites, lines = chosen[: plan.drawn], masks.hashes
    settings = GenerateSettings(seed=plan.config.seed)
    with Synthesizer.load(plan.bundle) as synthesizer:
        record = generate_images(
            synthesizer,
            sites,
            plan.pictures,
            settings,
            dataset=plan.dataset,
            lines=lines,
            report=progress,
            overwrite=plan.replaces,
        )
    summary = record.summary
    return record, f"{plan.pictures / SHEET}: {summary.accepted} of {summary.pictures} accepted by the filter"

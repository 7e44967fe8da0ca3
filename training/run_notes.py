"""What people are told of a run after its training: one line on what it learned, and notes on what to look at."""

from __future__ import annotations

from flawscope.config import CrossFitSettings, LoopSettings, find_part
from flawscope.drawn_check import advice_on
from flawscope.runs import AUTOENCODER_KNOWS, TEXT_EFFECT, RunRecord, SynthesisRecord

FEW_IMAGES = 20
"""Below this many normal images a run has a warning."""
FEW_FOR_A_SPLIT = 100
"""Below this many normal images cross-fitting is proposed, and `pipeline` takes it by itself: measured with 20 to 80 in
`benchmarks/few_images.py`, it bounds false rejects as twice as many images with a split do, or better."""
SMALL_EFFECT = 0.01
"""Below this effect of the text on the predicted noise a generator's run has a note: guidance of 7 times it is hardly
seen. Measured on a small base: docs/synthesis.md."""


def describe_run(method: str, record: RunRecord) -> str:
    """Return one line that says what a run was trained on."""
    verb = "fitted" if find_part(record.config, LoopSettings) is None else "trained"
    return (
        f"{method} {verb} on {len(record.training)} normal images of {record.category} in "
        f"{sum(record.seconds.values()):.1f} s; {describe_calibration(record)}"
        # An autoencoder scores nothing: what it holds out is held out of it for the detector that is built on it.
        f"{' for calibration' if record.kind == 'detector' else ''}"
    )


def describe_calibration(record: RunRecord) -> str:
    """Return where thresholds of a run's bundle can come from, a phrase."""
    if record.cross is not None:
        return f"cross-fitted in {record.cross.folds} folds"
    return f"{len(record.held_out)} held out"


def image_notes(record: RunRecord) -> tuple[str, ...]:
    """Return what to know of a run on few images, a sentence each; empty where there are enough."""
    count = len({*record.training, *record.held_out})
    notes = []
    if count < FEW_IMAGES:
        notes.append(
            f"{count} different normal images are few, below {FEW_IMAGES}: normal parts that look otherwise will be "
            "rejected, and thresholds can promise little. Add images."
        )
    can_cross = find_part(record.config, CrossFitSettings) is not None
    # A third: fewer cost the detector little.
    if can_cross and count < FEW_FOR_A_SPLIT and 3 * len(record.held_out) >= count:
        notes.append(
            f"{len(record.held_out)} of {count} normal images were held out for thresholds. --set cross_fit=20 learns "
            "from all of them, and thresholds come from all of them too."
        )
    if known := record.facts.get(AUTOENCODER_KNOWS):
        notes.append(
            f"the autoencoder has learned from {known} images that this run has not, held-out ones or test images: "
            "thresholds on them come out too low. Train it with the same --set held_out and held_out_minimum."
        )
    return tuple(notes)


def detector_notes(record: RunRecord) -> tuple[str, ...]:
    """Return all that there is to know of a detector's run: its images, its weights, and what it cannot tell apart."""
    notes = [*image_notes(record), *record.backbone.conditions]
    if record.drawn is not None and (advice := advice_on(record.drawn)) is not None:
        # The kind of line is said by who prints it: here each is a note.
        notes.append(advice.partition(": ")[2])
    return tuple(notes)


def describe_generator(record: SynthesisRecord) -> str:
    """Return one line that says what a generator was trained on."""
    types = len(record.defects)
    learned = "normal images" if record.kind == "base" else f"images of {types} defect type{'s' if types != 1 else ''}"
    seconds = sum(record.seconds.values())
    return f"{record.kind} trained on {len(record.training)} {learned} of {record.category} in {seconds:.1f} s"


def generator_notes(record: SynthesisRecord) -> tuple[str, ...]:
    """Return what to know of a generator's run, a sentence each."""
    effect = record.facts.get(TEXT_EFFECT)
    if not isinstance(effect, float) or effect >= SMALL_EFFECT or not record.defects:
        return ()
    return (
        f"the text changes the predicted noise by {effect:.2%} alone: the name of a defect and --guidance will "
        "hardly be seen in what is drawn. Train longer, raise the rate of what is learned of the text (--set "
        "text_rate), or let more be learned of it (--set learn_text).",
    )

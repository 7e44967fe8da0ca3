"""The table of verbs: `flawscope VERB`, and `flawscope GROUP VERB` below it.

A row names the module of its command as text, so that whoever lists verbs (`--help`, shell completion, tests) imports
none. A command of any room can stand in any group: rooms never import each other for the sake of the command line.
Nothing but strings belongs here; `flawscope.cli` makes commands of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeAlias


class Verb(NamedTuple):
    """A command.

    Attributes:
        place: `module:attribute` of the click command; imported when the command is called or asked for its own help.
        line: One sentence for lists, below 80 characters.
    """

    place: str
    line: str


class Alias(NamedTuple):
    """An earlier name of a verb that was renamed: it goes on working and no list shows it.

    Attributes:
        alias_of: The name now, in the same group. Whoever types the alias sees that name in help and errors, and
            environment variables are those of that name.
    """

    alias_of: str


class Group(NamedTuple):
    """Commands below one name.

    Attributes:
        line: One sentence for lists, below 80 characters.
        rows: Name -> row, in the order in which they are listed: that of the work.
        text: What the group's own `--help` says; the line, where there is no more to say.
    """

    line: str
    rows: Mapping[str, Row]
    text: str = ""


Row: TypeAlias = "Verb | Alias | Group"

_DATA = Group(
    "Look at a dataset, or generate one.",
    {
        "inspect": Verb(
            "flawscope.datasets.data_command:inspect", "Say what is in a dataset and what is wrong with it."
        ),
        "demo": Verb("flawscope.datasets.data_command:demo", "Draw parts with and without defects, and their masks."),
    },
)
_ENGINE = Group(
    "Build, list or clear TensorRT engines of this machine.",
    {
        "build": Verb(
            "flawscope.runtime.engines.engine_command:build", "Build the engine of a bundle, unless one fits."
        ),
        "list": Verb(
            "flawscope.runtime.engines.engine_command:list_engines",
            "List the engines of this machine and check each file.",
        ),
        "clear": Verb("flawscope.runtime.engines.engine_command:clear", "Remove engines from the cache."),
    },
    """Build, list and clear the TensorRT engines of this machine.

    An engine is compiled from a bundle for one GPU, driver and TensorRT version and kept in a cache; bundles are what
    is shipped. The cache is the folder FLAWSCOPE_ENGINES, or flawscope/engines in the user's cache folder.
    """,
)
_SYNTH = Group(
    "Draw defects: support sets, boxes, texts, images, datasets.",
    {
        "support": Verb(
            "flawscope.datasets.defects.set_commands:support", "Choose a few anomalous images to learn from."
        ),
        "boxes": Verb(
            "flawscope.datasets.defects.set_commands:boxes", "Put boxes around defects, draw random ones like them."
        ),
        "masks": Verb("flawscope.datasets.defects.set_commands:masks", "Draw box masks from a range file."),
        "describe": Verb(
            "flawscope.datasets.defects.set_commands:describe", "Say in sentences what defects look like."
        ),
        "import": Verb(
            "flawscope.runtime.synthesis.import_command:import_command", "Take over a learned word or a base model."
        ),
        "generate": Verb(
            "flawscope.runtime.synthesis.generate_command:generate", "Draw defects on normal images with a bundle."
        ),
        "dataset": Verb(
            "flawscope.runtime.synthesis.generate_command:dataset", "Make a dataset of drawn and real images."
        ),
        "judge": Verb(
            "flawscope.workflows.utility.judge_command:judge", "Train a segmenter with and without drawn images."
        ),
    },
    """Synthesise defects: support sets, boxes, masks and descriptions, drawn defects, and datasets of them.

    Everything is drawn by a seed and recorded; the same seed gives the same files. Every folder has a contact sheet.
    """,
)
_BUNDLE = Group(
    "Show, verify, pack or combine bundles.",
    {
        "info": Verb("flawscope.bundle.bundle_command:info", "Show what a bundle says of itself."),
        "verify": Verb("flawscope.bundle.bundle_command:verify", "Check every hash of a bundle."),
        "pack": Verb("flawscope.bundle.bundle_command:pack", "Write a bundle folder as one uncompressed file."),
        "combine": Verb(
            "flawscope.calibration.thresholds.combine_command:combine", "Combine several detectors to one bundle."
        ),
    },
)
VERBS: Mapping[str, Row] = {
    "demo": Verb("flawscope.workflows.demo_command:demo", "Generate parts, train, export, score and report, offline."),
    "doctor": Verb("flawscope.runtime.doctor.doctor_command:doctor", "Show devices, backends, versions and kernels."),
    "data": _DATA,
    "pipeline": Verb(
        "flawscope.workflows.pipeline_command:pipeline", "Train, export, set thresholds and evaluate in one go."
    ),
    "train": Verb("flawscope.training.train_command:train", "Learn what good parts look like."),
    "export": Verb("flawscope.export.export_command:export", "Turn a training run into a bundle."),
    "export-triton": Verb(
        "flawscope.export.triton_command:export_triton", "Write a bundle or run as a model for Triton."
    ),
    "explain": Verb(
        "flawscope.export.explain_command:explain", "Find the first tensor on which two ways of computing disagree."
    ),
    "calibrate": Verb(
        "flawscope.calibration.thresholds.calibrate_command:calibrate", "Set the thresholds of a bundle."
    ),
    "evaluate": Verb(
        "flawscope.calibration.evaluation.evaluate_command:evaluate", "Measure a bundle on labelled images."
    ),
    "sampling": Verb(
        "flawscope.calibration.evaluation.sampling_command:sampling", "Compare few-step samplings of ddad and dsad."
    ),
    "score": Verb("flawscope.runtime.score_command:score", "Decide on images with a bundle."),
    "engine": _ENGINE,
    "bench": Verb(
        "flawscope.runtime.bench.bench_command:bench_command", "Measure latency, throughput and memory of a bundle."
    ),
    "synth": _SYNTH,
    "bundle": _BUNDLE,
}
"""The verbs of the command root."""

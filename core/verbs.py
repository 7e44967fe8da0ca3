"""The table of verbs: `flawscope VERB`, and `flawscope GROUP VERB` below it.

A row names the module of its command as text, so that listing verbs (`--help`, shell completion, tests) imports none of
them. A command of any package can be in any group: packages never import each other for the command line alone. Only
strings belong here; `flawscope.cli` turns them into commands.
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
    """The former name of a renamed verb: it still works, but no list shows it.

    Attributes:
        alias_of: The present name, in the same group; help, errors and environment variables use it.
    """

    alias_of: str


class Group(NamedTuple):
    """A group of commands.

    Attributes:
        line: One sentence for lists, below 80 characters.
        rows: Name -> row, listed in this order, that of a typical workflow.
        text: Text of the group's own `--help`; empty for the line.
    """

    line: str
    rows: Mapping[str, Row]
    text: str = ""


Row: TypeAlias = "Verb | Alias | Group"

_DATA = Group(
    "Inspect a dataset, or generate one.",
    {
        "inspect": Verb(
            "flawscope.datasets.data_command:inspect", "Report what is in a dataset and what is wrong with it."
        ),
        "demo": Verb(
            "flawscope.datasets.data_command:demo", "Generate images of parts with and without defects, and masks."
        ),
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
    "Synthesise defects: support sets, boxes, captions, images, datasets.",
    {
        "support": Verb(
            "flawscope.datasets.defects.set_commands:support", "Choose a few anomalous images to train a generator on."
        ),
        "boxes": Verb(
            "flawscope.datasets.defects.set_commands:boxes", "Box real defects and draw random boxes like them."
        ),
        "masks": Verb("flawscope.datasets.defects.set_commands:masks", "Draw box masks from a range file."),
        "describe": Verb(
            "flawscope.datasets.defects.set_commands:describe", "Write captions of the defects in images."
        ),
        # The function is not called `import`, which is a keyword of Python.
        "import": Verb(
            "flawscope.runtime.synthesis.import_command:import_command",
            "Import a learned embedding, a checkpoint or a base model.",
        ),
        "export-adapter": Verb(
            "flawscope.export.synthesis.adapter_command:export_adapter",
            "Write a run's LoRA or learned embedding for other programs.",
        ),
        "generate": Verb(
            "flawscope.runtime.synthesis.generate_command:generate", "Draw defects on normal images with a bundle."
        ),
        "paste": Verb(
            "flawscope.datasets.defects.drawing_commands:paste",
            "Paste the defects of a support set onto normal images.",
        ),
        "perlin": Verb(
            "flawscope.datasets.defects.drawing_commands:perlin",
            "Draw Perlin anomalies, which need no defect, as DRAEM does.",
        ),
        "dataset": Verb(
            "flawscope.runtime.synthesis.dataset_command:dataset", "Make a dataset of synthetic and real images."
        ),
        # In `workflows`, the one package that may import all others.
        "judge": Verb(
            "flawscope.workflows.utility.judge_command:judge", "Train a detector with and without drawn defects."
        ),
    },
    """Synthesise defects: support sets, boxes, masks and descriptions, drawn defects, and datasets of them.

    Everything is drawn from a seed and recorded; the same seed gives the same files. Every folder has a contact sheet.
    """,
)
_BANK = Group(
    "Add normal images to a bundle's memory bank, or take them out.",
    {
        "add": Verb("flawscope.runtime.upkeep.upkeep_command:add", "Add normal images to the memory bank of a bundle."),
        "remove": Verb("flawscope.runtime.upkeep.upkeep_command:remove", "Take added images out of it again."),
        "prune": Verb("flawscope.runtime.upkeep.upkeep_command:prune", "Keep fewer rows in it, and make room."),
    },
    """Add normal images to the memory bank of an exported bundle (patchcore), and take them out again.

    Neither PyTorch nor onnx is needed. The bundle stays as it is; the changed one has no thresholds until it is
    calibrated. What was added and when is recorded in it, see bundle info.
    """,
)
_BUNDLE = Group(
    "Show, verify, sign, pack or combine bundles.",
    {
        "info": Verb("flawscope.bundle.bundle_command:info", "Show the contents of a bundle's manifest."),
        "verify": Verb("flawscope.bundle.bundle_command:verify", "Check every hash of a bundle, and its signature."),
        "threshold": Verb(
            "flawscope.bundle.threshold_command:threshold", "Change thresholds on a line, within the bundle's limits."
        ),
        "region": Verb("flawscope.bundle.region_command:region", "Say where in an image defects count."),
        "bank": _BANK,
        "keygen": Verb("flawscope.bundle.signature_command:keygen", "Make a key that signs bundles."),
        "sign": Verb("flawscope.bundle.signature_command:sign", "Sign a bundle with a private key."),
        "pack": Verb("flawscope.bundle.bundle_command:pack", "Write a bundle folder as one uncompressed file."),
        # In `calibration`, because centers and spreads are measured with the members.
        "combine": Verb(
            "flawscope.calibration.thresholds.combine_command:combine", "Combine several detectors into one bundle."
        ),
    },
)
_LINE_USER = Group(
    "Add, list or remove the users of a line.",
    {
        "add": Verb("flawscope.runtime.line.users.user_commands:add", "Add a user to a line."),
        "list": Verb("flawscope.runtime.line.users.user_commands:list_users", "List users and tokens of a line."),
        "remove": Verb("flawscope.runtime.line.users.user_commands:remove", "Remove a user from a line."),
        "password": Verb("flawscope.runtime.line.users.user_commands:password", "Give a user another password."),
        "role": Verb("flawscope.runtime.line.users.user_commands:role", "Give a user another role."),
    },
    """Add, list or remove the users of a line; see docs/line-users.md.

    Call it as the user of the operating system that owns the line's state folder. Passwords are never arguments.
    """,
)
_LINE_TOKEN = Group(
    "Make or remove tokens, with which programs may trigger and read.",
    {
        "add": Verb("flawscope.runtime.line.users.user_commands:add_token", "Make a token for a program."),
        "remove": Verb("flawscope.runtime.line.users.user_commands:remove_token", "Remove a token."),
    },
)
_LINE_AUDIT = Group(
    "Verify the journal of a line, or list who did what.",
    {
        "verify": Verb(
            "flawscope.runtime.line.journal.audit_command:verify", "Check that nobody has changed the journal."
        ),
        "events": Verb("flawscope.runtime.line.journal.audit_command:events", "List who did what on a line."),
    },
)
_LINE = Group(
    "Run a production line: parts, cameras, verdicts in time.",
    {
        # In `workflows`, the one package that may import all others.
        "demo": Verb(
            "flawscope.workflows.line_demo_command:line_demo_command",
            "Run a line without hardware, on generated parts.",
        ),
        "check": Verb(
            "flawscope.runtime.line.check_command:check", "Check a line: sources, bundles, times, outputs, sinks."
        ),
        "run": Verb("flawscope.runtime.line.line_command:run", "Run a line until it is stopped."),
        "status": Verb("flawscope.runtime.line.line_command:status", "Show the state and the account of a line."),
        "export": Verb(
            "flawscope.runtime.line.gallery.export_command:export", "Write reviewed images as data sets to learn from."
        ),
        "swap": Verb("flawscope.runtime.line.swap.swap_command:swap", "Change the bundle of a line that runs."),
        "rollback": Verb("flawscope.runtime.line.swap.swap_command:rollback", "Put the bundle before back."),
        "challenge": Verb(
            "flawscope.runtime.line.swap.swap_command:challenge", "Test the bundle of a line with the site's own parts."
        ),
        "cameras": Verb("flawscope.runtime.line.cameras_command:cameras", "List GigE and USB3 Vision cameras."),
        "user": _LINE_USER,
        "token": _LINE_TOKEN,
        "audit": _LINE_AUDIT,
    },
    """Run a production line from one configuration file; see docs/line.md.

    Every trigger is a part, and every part gets exactly one verdict before its deadline, which is on record:
    parts = accept + reject + fault + open, without a gap, and a fault is never an accept.
    """,
)
_FLEET = Group(
    "Publish bundles for many lines, which pull them.",
    {
        "publish": Verb(
            "flawscope.runtime.line.rollout.fleet_command:publish_command", "Publish a signed bundle as a release."
        ),
        "tag": Verb(
            "flawscope.runtime.line.rollout.fleet_command:tag_command", "Give a tag to a release: forward, or back."
        ),
        "list": Verb("flawscope.runtime.line.rollout.fleet_command:list_command", "List the releases that have a tag."),
    },
    """Publish signed bundles in an OCI registry or a folder; each line that follows a tag pulls what has it.

    A line verifies digest, hashes and signature, and goes through the steps of `flawscope line swap`: docs/fleet.md.
    """,
)

# In the order of `--help`. A verb that is renamed leaves an Alias behind, so that scripts go on working.
VERBS: Mapping[str, Row] = {
    "demo": Verb(
        "flawscope.workflows.demo_command:demo", "Generate a dataset, train, export, score and report, offline."
    ),
    "doctor": Verb("flawscope.runtime.doctor.doctor_command:doctor", "Show devices, backends, versions and kernels."),
    "data": _DATA,
    "pipeline": Verb(
        "flawscope.workflows.pipeline_command:pipeline", "Train, export, set thresholds and evaluate in one go."
    ),
    "train": Verb("flawscope.training.train_command:train", "Train a detector or a generator."),
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
    "merge": Verb(
        "flawscope.runtime.scale.merge_command:merge_command", "Join the shards that several jobs worked on."
    ),
    "engine": _ENGINE,
    "bench": Verb(
        "flawscope.runtime.bench.bench_command:bench_command", "Measure latency, throughput and memory of a bundle."
    ),
    "benchmark": Verb(
        "flawscope.workflows.accuracy.benchmark_command:benchmark", "Measure methods on data sets, as accuracy tables."
    ),
    "line": _LINE,
    "fleet": _FLEET,
    "synth": _SYNTH,
    "bundle": _BUNDLE,
    "completion": Verb(
        "flawscope.completion_command:completion", "Make bash, zsh or fish complete verbs, options and settings."
    ),
}
"""The verbs of `flawscope`."""

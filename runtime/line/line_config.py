"""The configuration of a line: one YAML file of the operator's. Its hash is in the journal at each start.

Unknown keys are errors, secrets are only named (`env:`, `file:`), and paths are relative to the file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from flawscope.ranges import PositiveCount, Share
from flawscope.runtime.line.options import HostName, Milliseconds, Moment, Name, Options, Seconds, Text
from flawscope.runtime.line.outputs.table import OutputOptions
from flawscope.runtime.line.rollout.table import RolloutOptions
from flawscope.runtime.line.sinks.table import SinkOptions, Tls
from flawscope.runtime.line.sources.table import SourceOptions

Grey = Annotated[float, msgspec.Meta(ge=0.0, le=255.0)]


class LineOptions(Options, frozen=True, kw_only=True):
    """The line itself.

    Attributes:
        name: Its name, in every message to others.
        state: Folder of its journal, images, keys and bundles.
        timezone: Where it stands: times are stored in UTC and shown in this one.
        journal_days: Days for which the journal keeps its rows; older ones are sealed in signed files and dropped, with
            the stored images of their parts. At least `images.min_days`; null for all rows, for ever.
    """

    name: Name
    state: Path
    timezone: Text = "UTC"
    journal_days: Annotated[float, msgspec.Meta(ge=1.0, le=36500.0)] | None = None


class SceneLimits(Options, frozen=True, kw_only=True):
    """What an image must be like before it is scored; an image that is not is a fault, one near a limit a note.

    Attributes:
        brightness: Least and largest median of the grey values, 0 to 255.
        saturated_max: Largest share of pixels at 0 or 255.
        sharpness_min: Least variance of the Laplacian of the grey values.
        frozen: What an image is that is equal, bit for bit, to the one before it; by default a fault from a camera,
            whose images always have noise, and a note from files.
        warn_share: Share of the way to a limit at which a note begins.
    """

    brightness: tuple[Grey, Grey] | None = None
    saturated_max: Share | None = None
    sharpness_min: Annotated[float, msgspec.Meta(ge=0.0)] | None = None
    frozen: Literal["fault", "note", "allow"] | None = None
    warn_share: Annotated[float, msgspec.Meta(gt=0.0, le=1.0)] = 0.9


class DriftOptions(Options, frozen=True, kw_only=True):
    """Whether images and scores are still those that the view began with: a warning, never another verdict.

    Attributes:
        window: Images that are compared with the reference; every quarter of them is a new look.
        reference: Images of the reference: the first accepted ones with a bundle and its thresholds.
        false_alarms: Looks with an alarm by chance, at most, for each 1000 images of which nothing has changed.
        bins: Bins of the population stability index.
    """

    window: Annotated[int, msgspec.Meta(ge=20, le=10_000)] = 200
    reference: Annotated[int, msgspec.Meta(ge=50, le=100_000)] = 500
    false_alarms: Annotated[float, msgspec.Meta(ge=0.001, le=100.0)] = 0.01
    bins: Annotated[int, msgspec.Meta(ge=4, le=50)] = 10


class ViewOptions(Options, frozen=True, kw_only=True):
    """One image of each part, and the bundle that decides on it.

    Attributes:
        name: Its name.
        source: Where its images come from.
        bundle: The bundle.
        crop: Left, top, width and height of what is inspected, in pixels of the image; None for all of it.
        backend: As for `flawscope score`.
        precision: As for `flawscope score`.
        product: As for `flawscope score`.
        threads: As for `flawscope score`.
        strict: Whether an image unlike those that the bundle learned from is a fault; otherwise that is a note.
        scene: What an image must be like before it is scored.
        slot_mb: Largest image of the source, in MiB; four of them are kept in shared memory.
        drift: When a drift of images and scores is told; null for never.
        rollout: Releases that it pulls and swaps to by itself; null for none. It needs `trusted_keys`.
    """

    name: Name
    source: SourceOptions
    bundle: Path
    crop: (
        tuple[Annotated[int, msgspec.Meta(ge=0)], Annotated[int, msgspec.Meta(ge=0)], PositiveCount, PositiveCount]
        | None
    ) = None
    backend: Text = "auto"
    precision: Text = "fp32"
    product: Text | None = None
    threads: Annotated[int, msgspec.Meta(ge=1, le=1024)] | None = None
    strict: bool = False
    scene: SceneLimits = SceneLimits()
    slot_mb: Annotated[float, msgspec.Meta(ge=0.1, le=1024.0)] = 64.0
    drift: DriftOptions | None = DriftOptions()
    rollout: RolloutOptions | None = None


class RollbackOptions(Options, frozen=True, kw_only=True):
    """When a swap is taken back without anybody asking.

    Attributes:
        device_faults: Parts in a row that are faults because the new bundle could not score them.
        window_parts: Parts after a swap for which the bundle before stays in memory, and the swap can be taken back.
    """

    device_faults: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 3
    window_parts: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 200


class SwapOptions(Options, frozen=True, kw_only=True):
    """Bundles that are changed while the line runs.

    Attributes:
        shadow_parts: Parts that are scored by both bundles before a swap, where it does not say.
        rollback: When a swap is taken back.
        upload_mb: Largest bundle that is taken over HTTP, in MiB.
    """

    shadow_parts: Annotated[int, msgspec.Meta(ge=0, le=10_000)] = 0
    rollback: RollbackOptions = RollbackOptions()
    upload_mb: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] = 4096


class ChallengeOptions(Options, frozen=True, kw_only=True):
    """The site's own parts, and when bundles must decide them rightly.

    Attributes:
        folder: Folder of the parts: `must_accept` and `must_reject` in it, or in a folder for each view; by default
            `challenge/STATION` in the state folder, where it is there.
        at: When: at the `start` of the line before it is ready; before the flip of a `swap`; when a `camera` is back
            that was away for more than a minute, before it is ready; and at times of day, by `timezone`.
        on_failure: What a failure does to the station: `stop` is the state `error` until a challenge is passed or
            somebody acknowledges it, `warn` a warning. A swap always ends with it.
    """

    folder: Path | None = None
    at: tuple[Moment, ...] = ("start", "swap", "camera")
    on_failure: Literal["stop", "warn"] = "stop"


class StationOptions(Options, frozen=True, kw_only=True):
    """One decision point: views, outputs, and how much time there is.

    Attributes:
        name: Its name.
        views: Its views; a part has one image of each.
        deadline_ms: Milliseconds from the trigger until the verdict must be out; then it is a fault.
        collect_ms: Milliseconds from the trigger until all images must be there; half of the deadline by default.
        depth: Most parts that are open at once; one more is a fault at once.
        outputs: Who is told in time.
        record: Whether an accept is recorded before it is given out, or after (then a power cut may lose its record).
        strict_alignment: Whether an image without a trigger, or lost by the camera, stops the station.
        allow_skip: Whether images may be left out (`latest`) although an output is there.
        challenge: The site's own parts, and when bundles must decide them rightly.
    """

    name: Name
    views: Annotated[tuple[ViewOptions, ...], msgspec.Meta(min_length=1, max_length=64)]
    deadline_ms: Milliseconds = 1000.0
    collect_ms: Milliseconds | None = None
    depth: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 4
    outputs: tuple[OutputOptions, ...] = ()
    record: Literal["before_accept", "after"] = "before_accept"
    strict_alignment: bool = False
    allow_skip: bool = False
    challenge: ChallengeOptions = ChallengeOptions()


class ImageOptions(Options, frozen=True, kw_only=True):
    """What is kept of images, and what happens when the disk of the state folder fills.

    Attributes:
        keep: Parts whose images are stored on the disk: `all`, `rejects` (faults too, and a share of the accepts), or
            `none`.
        accepts: Share of the accepts whose images `rejects` stores; which ones, their numbers decide.
        maps: Whether anomaly maps are stored beside images.
        min_days: Days for which images of rejects and faults stay that nobody has reviewed, however full the disk is.
        quota_gb: Most gigabytes (10^9 bytes) of stored images; null for what the disk has.
        prune_below_gb: Free gigabytes below which stored images are deleted: accepts first, then reviewed ones.
        stop_below_gb: Free gigabytes below which no images are stored.
        fault_below_gb: Free gigabytes below which parts are faults: without a disk there is no record.
        recent_parts: Last parts of each station whose images are in memory, for the page.
        recent_mb: Most MiB that they take.
    """

    keep: Literal["all", "rejects", "none"] = "rejects"
    accepts: Share = 0.01
    maps: bool = True
    min_days: Annotated[float, msgspec.Meta(ge=0.0, le=36500.0)] = 30.0
    quota_gb: Annotated[float, msgspec.Meta(gt=0.0)] | None = None
    prune_below_gb: Annotated[float, msgspec.Meta(ge=0.0)] = 5.0
    stop_below_gb: Annotated[float, msgspec.Meta(ge=0.0)] = 2.0
    fault_below_gb: Annotated[float, msgspec.Meta(ge=0.0)] = 0.2
    recent_parts: Annotated[int, msgspec.Meta(ge=1, le=10_000)] = 50
    recent_mb: Annotated[float, msgspec.Meta(ge=1.0, le=65536.0)] = 256.0


class HttpOptions(Options, frozen=True, kw_only=True):
    """The line's own HTTP server.

    Attributes:
        listen: Address and port; another address than that of this machine needs `tls` and at least one user.
        tls: Certificate and key.
        names: Names, without port, by which browsers and programs call this machine, beside its addresses and
            `localhost`; requests under other names are refused.
        idle_s: Seconds without a request after which somebody who has logged in is logged out.
        session_s: Seconds after which everybody is logged out who has logged in.
    """

    listen: Annotated[str, msgspec.Meta(pattern=r"^.+:[0-9]{1,5}$")] = "127.0.0.1:8710"
    tls: Tls | None = None
    names: tuple[HostName, ...] = ()
    idle_s: Seconds = 7200.0
    session_s: Seconds = 43200.0


class LineConfig(Options, frozen=True, kw_only=True):
    """All of a line.

    Attributes:
        line: The line itself.
        stations: Its stations.
        sinks: Who is told afterwards.
        images: What is kept of images, and what happens when the disk fills.
        http: Its HTTP server; None for none.
        trusted_keys: File or folder of public keys; with it, bundles that none of them has signed are refused.
        swap: Bundles that are changed while the line runs.
        selftest_s: Seconds between two scorings of a golden image on an idle line.
    """

    line: LineOptions
    stations: Annotated[tuple[StationOptions, ...], msgspec.Meta(min_length=1, max_length=64)]
    sinks: tuple[SinkOptions, ...] = ()
    images: ImageOptions = ImageOptions()
    http: HttpOptions | None = HttpOptions()
    trusted_keys: Path | None = None
    swap: SwapOptions = SwapOptions()
    selftest_s: Seconds = 30.0

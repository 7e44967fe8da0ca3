"""Load a generator bundle and draw defects on normal images, without torch.

For each image: the window around the box (or the whole image) is resized to the model's input and encoded; the loop of
`flawscope.diffusion.latent_inpainting` turns noise, which depends on the image's seed alone, into a defect; the decoded
image is compared with the normal image, pasted over the feathered box, and judged by the quality filter.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from flawscope.arrays import BoolArray, Float32Array, UInt8Array, only_output
from flawscope.bundle import Bundle, Manifest, SynthDefect, SynthHead, trusted_bundle
from flawscope.datasets.defects.file_names import check_defect_name, check_name
from flawscope.datasets.defects.seeded_choice import generator
from flawscope.diffusion.latent_inpainting import draw_noise
from flawscope.diffusion.location_words import located, location_of
from flawscope.diffusion.prompts import Prompts
from flawscope.diffusion.reconstruction import unsigned
from flawscope.errors import ArgumentError, BackendError, BundleError, DataError
from flawscope.imaging.boxes import bounds_of
from flawscope.imaging.crops import Crop, crop_around, cut_image, cut_mask
from flawscope.imaging.images import decode_image
from flawscope.imaging.masks import decode_mask
from flawscope.runtime.backends import Session, choose_backend, open_session, open_together
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.synthesis.draw_options import DrawOptions, DrawOrder, check_order, find_defect
from flawscope.runtime.synthesis.finishing import finish_drawing
from flawscope.runtime.synthesis.kept import Kept
from flawscope.runtime.synthesis.memorization import SupportPatch
from flawscope.runtime.synthesis.quality import Verdict
from flawscope.runtime.synthesis.window_drawing import Drawing, HostDrawing, Manner
from flawscope.time_limit import load_limit, within

TOKENIZER = "tokenizer.json"
FREE_CATEGORY = "any"
"""Category of the defects of a base model that was made for no category."""

_MOST_TEXT = 16 << 20  # 70 texts of Stable Diffusion
_GRAPHS = ("text", "encode", "denoise", "decode")


@dataclass(frozen=True)
class Drawn:
    """One drawn image.

    Attributes:
        image: The image with the defect, uint8 [H, W, 3] RGB, of the normal image's size. Outside the box and its
            feather its bytes are those of the normal image, except in the parity mode.
        mask: The precise mask: pixels of the region that show the defect, bool [H, W].
        region: Where the defect was asked for, bool [H, W].
        verdict: Verdict of the quality filter.
        text: The prompt.
        seed: Seed of the noise.
        crop: The window that the model saw.
        seconds: The image's share of the batch's time, from the order to the verdict.
        batch: Images in the batch. Sums of some kernels differ in their last bits between batch sizes.
    """

    image: UInt8Array = field(repr=False)
    mask: BoolArray = field(repr=False)
    region: BoolArray = field(repr=False)
    verdict: Verdict
    text: str
    seed: int
    crop: Crop
    seconds: float
    batch: int


@dataclass(frozen=True)
class _Job:
    """An order whose arrays are on the host, and whose defect, text and window are known."""

    image: UInt8Array
    mask: BoolArray
    seed: int
    defect: SynthDefect
    text: str
    crop: Crop


class Synthesizer:
    """A generator bundle, loaded on one backend. Close it, or use it in `with`.

    Attributes:
        bundle: The opened bundle.
        head: The manifest's description of how it draws.
        backend: Name of the backend in use.
        backend_reason: Why this backend was chosen.
        precision: Precision of the graphs.
    """

    def __init__(
        self,
        bundle: Bundle,
        backend: str = "auto",
        precision: str = "fp32",
        *,
        timeout_s: float | None = None,
        cores: Cores = OWN_CHOICE,
    ) -> None:
        head = head_of(bundle)
        self.bundle, self.head, self.precision, self._cores = bundle, head, precision, cores
        if TOKENIZER not in bundle.manifest.files:
            raise BundleError(f"{bundle.path}: expected {TOKENIZER}, which texts need, got none. Export it again.")
        # The bundle is checked whole before a backend is opened: building engines only to refuse it could take minutes.
        self._prompts = Prompts(bundle.read(TOKENIZER), head.prompts, f"{bundle.path}: {TOKENIZER}")
        self._vectors = _vectors_of(bundle, head)
        self._supports = _supports_of(bundle, head)
        choice = choose_backend(backend)
        self.backend, self.backend_reason = choice.name, choice.reason
        self._sessions: dict[str, Session] = {}
        self._texts = Kept(_MOST_TEXT)  # encoded texts: the empty one belongs to every image, a prompt to many
        self._engines: Any = None  # where the graphs share a device
        self._drawing: Drawing
        within(
            load_limit(timeout_s), lambda: self._open_any(backend), lambda _: self._close_sessions(), str(bundle.path)
        )

    def _open_any(self, backend: str) -> None:
        try:
            self._open()
        except BackendError as err:
            if backend != "auto" or self.backend == "cpu":
                raise
            # A backend that is installed but does not work. With `auto` the CPU takes over and the reason says so; a
            # backend asked for by name is never replaced in silence.
            self.backend, self.backend_reason = "cpu", f"auto: {err}"
            self._open()

    @classmethod
    def load(
        cls,
        bundle: Bundle | Path | str,
        backend: str = "auto",
        precision: str = "fp32",
        *,
        timeout_s: float | None = None,
        trusted_keys: Path | str | None = None,
        cores: Cores = OWN_CHOICE,
    ) -> Synthesizer:
        """Open and verify a bundle and load its graphs.

        Args:
            bundle: A bundle, or the path of one.
            backend: `auto`, `cpu`, `cuda`, `tensorrt` or `openvino`. One that is asked for by name must be available.
            precision: Precision of the graphs, one that the bundle has.
            timeout_s: Seconds until it must be ready, without the building of engines; 0 for no limit. None takes
                `FLAWSCOPE_LOAD_TIMEOUT`, or 300.
            trusted_keys: As in `Inspector.load`.
            cores: Threads of the graphs where they are opened one by one, which is on the CPU.

        Raises:
            ArgumentError: If the backend's name is unknown, the bundle lacks the precision, or trusted keys are set and
                cannot be used.
            BackendError: If the backend is not available or cannot run a graph.
            BundleError: If the bundle is broken, is no generator, lacks a file, or is not signed by a trusted key where
                there are any.
            LoadTimeout: If it is not ready in time. The thread that loads it cannot be ended and is left behind.
            MissingExtra: If the package `tokenizers` is not installed.
        """
        opened = trusted_bundle(bundle, trusted_keys)
        try:
            return cls(opened, backend, precision, timeout_s=timeout_s, cores=cores)
        except BaseException:  # Ctrl-C too
            opened.close()
            raise

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest."""
        return self.bundle.manifest

    @property
    def defects(self) -> tuple[SynthDefect, ...]:
        """The defects that the bundle has learned."""
        return self.head.defects

    @property
    def max_batch(self) -> int:
        """Images drawn at once at most: half of the graphs' largest batch, since guidance doubles it."""
        return self.manifest.max_batch // 2

    def check_batch(self, batch: int) -> None:
        """Raise ArgumentError unless `batch` images can be drawn at once."""
        if not 1 <= batch <= self.max_batch:
            raise ArgumentError(
                f"batch: expected 1 to {self.max_batch}, half of the bundle's largest batch, got {batch}."
            )

    def find_defect(self, name: str) -> SynthDefect:
        """Return the defect with this name, NAME or CATEGORY/NAME.

        A bundle of a base model that has learned no defect draws any name: the words of the name become the text.

        Raises:
            ArgumentError: If the bundle does not draw it.
        """
        return defect_named(self.manifest, self.head, name)

    def check_text(self, defect: str, text: str) -> None:
        """Raise ArgumentError if the defect is unknown, or if the text lacks the placeholder of its learned word."""
        self._prompts.tokens([text], self.head.text_width, [self._vectors_for(self.find_defect(defect))])

    def draw(
        self,
        orders: Sequence[DrawOrder],
        options: DrawOptions | None = None,
        progress: Callable[[int, int], None] | None = None,
        *,
        batch: int | None = None,
    ) -> list[Drawn]:
        """Draw defects on normal images, results in order.

        Args:
            orders: The images and where to draw on them.
            options: How to draw; None for the defaults of `DrawOptions`.
            progress: Called with the number of images drawn and their total after each batch.
            batch: Images drawn at once; None for `max_batch`.

        Raises:
            ArgumentError: If an order or option is wrong; nothing was drawn then.
            BundleError: If the synthesizer was closed, or a graph gives another shape than the bundle says.
            DeviceError: If the device fails.
        """
        if not self._sessions:
            raise BundleError(f"{self.bundle.path}: the synthesizer was closed. Load the bundle again.")
        chosen = (options or DrawOptions()).resolved(self.head)
        chosen.sampling(self.head)  # only to raise: an option that the bundle cannot take fails before the first image
        batch = self.max_batch if batch is None else batch
        self.check_batch(batch)
        # All orders are checked before the first is drawn: a mistake in the last one must not cost the others' time.
        jobs = [self._job(order, chosen) for order in orders]
        drawn: list[Drawn] = []
        remaining = iter(jobs)
        while group := list(islice(remaining, batch)):
            drawn += self._draw_batch(group, chosen)
            if progress:
                progress(len(drawn), len(jobs))
        return drawn

    def wrap_sessions(self, wrap: Callable[[str, Session], Session]) -> None:
        """Put something around the session of each graph that sees what goes through it; for measuring.

        Args:
            wrap: (name of the graph: text, encode, denoise or decode; its session) -> the session in its place.
        """
        for name, session in self._sessions.items():
            self._sessions[name] = wrap(name, session)

    def close(self) -> None:
        """Release the device and the bundle; nothing can be drawn after that. Closing twice is harmless."""
        self._close_sessions()
        self.bundle.close()

    def __enter__(self) -> Synthesizer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self) -> None:
        try:
            # On a device all that lies between the graphs stays there, if the backend has the kernels for it.
            self._engines = open_together(self.bundle, _GRAPHS, self.precision, self.backend)
            if self._engines is not None:
                from flawscope.runtime.synthesis.device_drawing import DeviceDrawing  # the CPU needs none of it

                self._sessions.update(self._engines.sessions)
                drawing = DeviceDrawing(self._engines, self.head, self.manifest.input.size, self.max_batch)
                drawing.make_ready(_manner(self.head, DrawOptions().resolved(self.head)))
                self._drawing = drawing
                return
            self._drawing = HostDrawing(self._sessions, self.head.latents, str(self.bundle.path))
            for name in _GRAPHS:
                self._sessions[name] = open_session(self.bundle, name, self.precision, self.backend, cores=self._cores)
                # The graphs of a large generator are gigabytes, and no session is opened a second time.
                self.bundle.forget()
        except BaseException:
            # A backend may refuse a later graph: nothing of it may stay open when the CPU takes over.
            self._close_sessions()
            raise

    def _close_sessions(self) -> None:
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()
        if self._engines is not None:
            self._engines.close()
            self._engines = None

    def _job(self, order: DrawOrder, options: DrawOptions) -> _Job:
        image, mask = check_order(order)
        size, defect = self.manifest.input.size, self.find_defect(order.defect)
        height, width = mask.shape
        crop = Crop(0, 0, height, width, size)
        if options.crop:
            crop = crop_around(mask, size, fill=self.head.crop_fill, feather_px=options.feather_px)
        text = order.text
        if text is None:
            # A generator of its own, by names: the choice of the text must not shift the noise drawn from the seed.
            rng = generator(order.seed, "text", defect.category, defect.name)
            text = defect.texts[int(rng.integers(len(defect.texts)))]
        text = located(text, location_of(bounds_of(mask), (height, width)))
        self.check_text(f"{defect.category}/{defect.name}", text)
        return _Job(image, mask, order.seed, defect, text, crop)

    def _vectors_for(self, defect: SynthDefect) -> Float32Array | None:
        return None if defect.vectors is None else self._vectors[defect.vectors]

    def _context(self, text: str, vectors: Float32Array | None) -> Float32Array:
        """Return the encoding of one text, float32 [1, L, D]."""
        key = (text, b"" if vectors is None else vectors.tobytes())
        if (kept := self._texts.find([key])) is not None:
            return kept[0]
        # One text at a time: in a batch its last bits could depend on the number of texts.
        tokens = self._prompts.tokens([text], self.head.text_width, [vectors])
        outputs = self._sessions["text"].run(
            {"tokens": tokens.tokens, "vectors": tokens.vectors, "placed": tokens.placed}
        )
        context = only_output(outputs)
        self._texts.keep([key], [context])
        return context

    def _guidance_context(self, jobs: Sequence[_Job], text_noise: float) -> Float32Array:
        """Return encoded texts for guidance, float32 [2N, L, D]: N times the empty one, then the prompts with noise."""
        empty = self._context("", None)
        texts = [self._context(job.text, self._vectors_for(job.defect)) for job in jobs]
        if text_noise > 0:
            # From a generator of its own, as the choice of the text: the noise of the image must stay what it is.
            noise = (generator(job.seed, "text noise").standard_normal(texts[0].shape, np.float32) for job in jobs)
            texts = [text + np.float32(text_noise) * added for text, added in zip(texts, noise, strict=True)]
        return np.concatenate([*[empty] * len(jobs), *texts])  # in this order: the guidance splits the noise by it

    def _draw_batch(self, jobs: Sequence[_Job], options: DrawOptions) -> list[Drawn]:
        started = time.perf_counter()
        head, count = self.head, len(jobs)
        manner = _manner(head, options)
        windows = np.stack([cut_image(job.image, job.crop) for job in jobs])
        masks = np.stack([cut_mask(job.mask, job.crop) for job in jobs])
        context = self._guidance_context(jobs, options.text_noise or 0.0)
        # An array for each image from its own seed: an image does not depend on its neighbours in the batch.
        noise = np.stack(
            [draw_noise(job.seed, head.mode, manner.sampling, head.latents, options.strength) for job in jobs]
        )
        with np.errstate(invalid="ignore", over="ignore"):  # NaN of a network that failed; the filter rejects it
            drawn = self._drawing.draw(windows, masks, context, noise, manner)
        finite = np.nan_to_num(drawn.decoded, nan=0.0, posinf=1.0, neginf=-1.0)
        # The latents too: a decoder may clip infinity, and then hide it.
        numbers = [
            np.concatenate([drawn.latents[index].ravel(), drawn.decoded[index].ravel()]) for index in range(count)
        ]
        finished = [
            finish_drawing(
                job.image,
                job.mask,
                job.crop,
                window,
                before,
                options,
                # Only the defect's own support: another type that happens to look alike is no copy.
                self._supports.get((job.defect.category, job.defect.name), []),
                raw,
            )
            for job, window, before, raw in zip(jobs, unsigned(finite), drawn.known, numbers, strict=True)
        ]
        seconds = (time.perf_counter() - started) / count
        return [
            Drawn(image, mask, job.mask, verdict, job.text, job.seed, job.crop, seconds, count)
            for job, (image, mask, verdict) in zip(jobs, finished, strict=True)
        ]


def head_of(bundle: Bundle) -> SynthHead:
    """Return how a bundle draws; raises BundleError if it does not, or cannot with guidance."""
    head = bundle.manifest.head
    # The type as well as the kind: a bundle of another version could say one and hold the other.
    if bundle.manifest.kind != "synth" or not isinstance(head, SynthHead):
        raise BundleError(
            f"{bundle.path}: expected a bundle that draws defects (kind synth), got one of the method "
            f"{bundle.manifest.method}, which scores images. Export a run of embedding or inpainting."
        )
    # Guidance runs every image twice in one batch, with its text and with the empty one.
    if bundle.manifest.max_batch < 2:
        raise BundleError(f"{bundle.path}: expected a largest batch of 2 or more, as guidance takes, got 1.")
    return head


def defect_named(manifest: Manifest, head: SynthHead, name: str) -> SynthDefect:
    """Return the defect of a bundle with a name, as `Synthesizer.find_defect`, without loading its graphs."""
    if head.defects:
        return find_defect(head.defects, name)
    category, has_category, defect = name.partition("/")
    if not has_category:
        category, defect = manifest.provenance.category or FREE_CATEGORY, name
    # The names become folders of the output: without the check `../x` would write outside it.
    try:
        check_name(category, "category")
        check_defect_name(defect, "defect type")
    except DataError as err:
        raise ArgumentError(str(err)) from err
    return SynthDefect(category, defect, (f"a {defect.replace('_', ' ')} defect {{location}}",))


def _manner(head: SynthHead, options: DrawOptions) -> Manner:
    """Return how windows are drawn with options that are resolved."""
    return Manner(
        head.mode,
        options.sampling(head),
        head.guidance if options.guidance is None else options.guidance,
        options.strength,
        options.solver,
        options.tone == "restore",
    )


def _vectors_of(bundle: Bundle, head: SynthHead) -> dict[str, Float32Array]:
    """Return the vectors of the learned words by their names in the manifest."""
    tensors = bundle.tensors()
    vectors: dict[str, Float32Array] = {}
    for defect in head.defects:
        if not defect.texts:
            raise BundleError(f"{bundle.path}: {defect.name}: expected a text, got none. Export the bundle again.")
        if defect.vectors is None:
            continue
        value = tensors.get(defect.vectors)
        if value is None or value.ndim != 2 or value.shape[1] != head.text_width or value.dtype != np.float32:
            got = "none" if value is None else f"{value.dtype.name} {list(value.shape)}"
            raise BundleError(
                f"{bundle.path}: {defect.vectors}: expected float32 [V, {head.text_width}], got {got}. "
                "Export the bundle again."
            )
        vectors[defect.vectors] = value
    return vectors


def _supports_of(bundle: Bundle, head: SynthHead) -> dict[tuple[str, str], list[SupportPatch]]:
    """Return the support patches of each defect, by category and defect type."""
    supports: dict[tuple[str, str], list[SupportPatch]] = {
        (defect.category, defect.name): [] for defect in head.defects
    }
    for support in head.support:
        image = decode_image(bundle.read(support.picture), support.picture, bundle.manifest.input.bits)
        mask = decode_mask(bundle.read(support.mask), support.mask)
        if mask.shape != image.shape[:2] or not mask.any():
            raise BundleError(
                f"{bundle.path}: {support.mask}: expected a mask of the image's size that shows a defect. "
                "Export the bundle again."
            )
        patches = supports.setdefault((support.category, support.defect), [])
        patches.append(SupportPatch(support.picture, image, mask))
    return supports

"""Folders of Perlin anomalies on normal images; see `flawscope.datasets.drawing.perlin`.

The folder is that of `synth generate` (see `drawn_writer`), with `perlin.json` as its record. The same dataset,
textures and settings give the same bytes, and `redraw_perlin` draws any line again; time and versions are in
perlin.json alone. Nothing is learned from any defect.

Textures are images of a folder with their tones, colours or direction changed, other normal images cut into pieces that
change places, or made ones (clouds, grain, stripes, checks). On a grey image they are grey.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from flawscope.arrays import BoolArray, UInt8Array
from flawscope.datasets import Dataset, content_hash, hash_contents, image_hash
from flawscope.datasets.defects.box_sets import Ground as Within
from flawscope.datasets.defects.drawn_set import MARKERS
from flawscope.datasets.defects.drawn_writer import (
    MOST_IMAGES,
    Drawing,
    DrawnFields,
    DrawnRecord,
    Grounds,
    GroundSettings,
    write_drawings,
)
from flawscope.datasets.defects.file_names import category_of, check_defect_name, place_of
from flawscope.datasets.defects.foreground import find_foreground
from flawscope.datasets.defects.seeded_choice import check_count, generator
from flawscope.datasets.drawing.perlin import PerlinOptions, perlin_anomaly
from flawscope.datasets.drawing.textures import as_grey, augment_texture, is_grey, make_texture, shuffle_texture
from flawscope.datasets.record_paths import place_below
from flawscope.errors import ArgumentError, DataError
from flawscope.files import check_replaceable, is_litter
from flawscope.imaging.image_files import is_folder
from flawscope.imaging.images import EXTENSIONS, read_image
from flawscope.open_files import walk_folder
from flawscope.progress import CountProgress

MARKER = MARKERS["perlin"]
TextureKind = Literal["folder", "normal", "made"]
WORDS: tuple[TextureKind, ...] = ("normal", "made")
"""What may stand in place of a folder of textures."""
_TRIES_PER_IMAGE = 20


class PerlinSettings(GroundSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How many Perlin anomalies are drawn, and where and how.

    Attributes:
        number: Images of each category.
        defect: Name that the anomalies get as their defect type.
        options: How each is drawn.
    """

    number: int = 100
    defect: str = "perlin"
    options: PerlinOptions = PerlinOptions()

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count(self.number, "number", 1, MOST_IMAGES)
        check_defect_name(self.defect, "defect type")


class PerlinImage(DrawnFields, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One line of generated.jsonl: an image and everything needed to draw it again.

    Attributes:
        source: What drew it.
        texture_kind: Where the texture is from.
        texture: Its file, below the folder of textures or the dataset's root; empty for a made one.
        texture_sha256: SHA-256 of its bytes; empty for a made one.
        seed: Seed of the run.
        index: Number of the image among those of its category.
        attempt: Number of the attempt for this image, from 0.
        within: Where the anomaly may lie.
        solid: The part has no holes.
        options: Options of the drawing.
    """

    source: Literal["perlin"] = "perlin"
    texture_kind: TextureKind
    texture: str
    texture_sha256: str
    seed: int
    index: int
    attempt: int
    within: Within
    solid: bool
    options: PerlinOptions


class PerlinRecord(DrawnRecord, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Sources, settings and cost of a folder of Perlin anomalies; the content of `perlin.json`.

    Attributes:
        settings: Settings of the run.
        textures: Kinds of textures that were drawn from.
    """

    settings: PerlinSettings
    textures: tuple[TextureKind, ...]


class Textures(NamedTuple):
    """What textures are drawn from.

    Attributes:
        kinds: The kinds; every image takes one of them, all with the same chance.
        folder: The folder of textures, if that is one of them.
        files: The images below it, by their paths below it.
    """

    kinds: tuple[TextureKind, ...] = WORDS
    folder: Path | None = None
    files: tuple[str, ...] = ()


def find_textures(names: Sequence[str]) -> Textures:
    """Return what the words `normal` and `made` and the path of a folder stand for; without any, the two words.

    Raises:
        ArgumentError: If two folders are named.
        DataError: If the folder holds no image.
    """
    # Sorted, not in the order of naming: that must not change what a seed draws.
    kinds: list[TextureKind] = [word for word in WORDS if word in names]
    folders = list(dict.fromkeys(name for name in names if name not in WORDS))
    if len(folders) > 1:
        raise ArgumentError(f"textures: expected one folder, got {len(folders)}. Put one into the other.")
    if not folders:
        return Textures(tuple(kinds) or WORDS)
    folder = Path(folders[0])
    files = sorted(
        path.relative_to(folder).as_posix()
        for path in walk_folder(folder)
        if path.suffix.lower() in EXTENSIONS and not is_litter(path.name) and not is_folder(path)
    )
    if not files:
        raise DataError(f"{folder}: expected images to take textures from, got none. Name another folder.")
    return Textures(("folder", *kinds), folder, tuple(files))


def write_perlin(
    dataset: Dataset,
    folder: Path,
    settings: PerlinSettings | None = None,
    *,
    textures: Textures | None = None,
    progress: CountProgress | None = None,
    overwrite: bool = False,
) -> PerlinRecord:
    """Draw Perlin anomalies on normal training images.

    The folder appears whole under its name or not at all.

    Args:
        dataset: The dataset.
        folder: The folder to write.
        settings: How many, where and how.
        textures: What textures are drawn from; by default other normal images and made ones.
        progress: Called with the number of images written and their total after each.
        overwrite: Whether an earlier folder of Perlin anomalies may be replaced.

    Raises:
        ArgumentError: If `folder` is taken.
        DataError: If no anomaly fits, a texture is an image of the test split, or a file cannot be read.
        StorageError: If the system refuses to write; nothing is left behind.
    """
    settings, textures = settings or PerlinSettings(), textures or Textures()
    check_replaceable(folder, MARKER, overwrite=overwrite)
    categories = sorted({category_of(dataset, sample) for sample in dataset.train_good})
    if not categories:
        raise DataError(f"{dataset.root}: expected normal training images to draw on, got none. Add some.")
    return write_drawings(
        dataset,
        folder,
        _draw_all(dataset, categories, textures, settings),
        settings.number * len(categories),
        partial(PerlinRecord, settings=settings, textures=textures.kinds, support=()),
        source="perlin",
        progress=progress,
        overwrite=overwrite,
    )


def _test_images(dataset: Dataset, textures: Textures) -> dict[str, str]:
    """Return the content of every test image -> its path below the root; empty without a folder of textures."""
    # Normal textures are images that a detector learns from in any case; a folder may hold anything.
    if textures.folder is None:
        return {}
    hashes = hash_contents(sample.path for sample in dataset.test)
    return {content: place_of(dataset, path) for path, content in hashes.items()}


def _check_unseen(path: Path, unseen: Mapping[str, str]) -> None:
    """Raise DataError if a texture is a test image: a detector would learn from what it is measured on."""
    if unseen and (place := unseen.get(image_hash(path))) is not None:
        raise DataError(
            f"{path}: expected a texture that is no image of the test split, got {place}. Take textures from elsewhere."
        )


def _draw_all(
    dataset: Dataset, categories: Sequence[str], textures: Textures, settings: PerlinSettings
) -> Iterator[Drawing]:
    unseen = _test_images(dataset, textures)
    for category in categories:
        grounds = Grounds(dataset, category, frozenset(), settings)
        for index in range(settings.number):
            yield _draw_one(dataset, category, index, grounds, textures, settings, unseen)


def _draw_one(
    dataset: Dataset,
    category: str,
    index: int,
    grounds: Grounds,
    textures: Textures,
    settings: PerlinSettings,
    unseen: Mapping[str, str],
) -> Drawing:
    for attempt in range(-(-settings.tries // _TRIES_PER_IMAGE)):
        # Apart from the generator that draws: a line names what was chosen here, and draws again without it.
        rng = generator(settings.seed, "perlin choice", category, index, attempt)
        ground = grounds.draw(rng)
        kind = textures.kinds[int(rng.integers(len(textures.kinds)))]
        path, texture = None, ""
        if kind == "folder" and textures.folder is not None:
            texture = textures.files[int(rng.integers(len(textures.files)))]
            path = textures.folder / texture
            _check_unseen(path, unseen)
        elif kind == "normal":
            path = grounds.samples[int(rng.integers(len(grounds.samples)))].path
            texture = place_of(dataset, path)
        drawn = _draw(
            ground.image,
            ground.part,
            kind,
            path,
            generator(settings.seed, "perlin", category, index, attempt),
            settings.options,
            min(settings.tries, _TRIES_PER_IMAGE),
        )
        if drawn is not None:
            line = partial(
                PerlinImage,
                texture_kind=kind,
                texture=texture,
                texture_sha256="" if path is None else content_hash(path),
                seed=settings.seed,
                index=index,
                attempt=attempt,
                within=settings.within,
                solid=settings.solid,
                options=settings.options,
            )
            return Drawing(category, settings.defect, texture or kind, *drawn, ground, line)
    where, level = "" if settings.within != "foreground" else " in the foreground", settings.options.level
    raise DataError(
        f"{category}: expected an anomaly{where} that changes at least {level} grey levels, got none in "
        f"{settings.tries} tries. Try --within image, --solid, a lower --threshold or --level, or other --textures."
    )


def _draw(
    image: UInt8Array,
    part: BoolArray | None,
    kind: TextureKind,
    path: Path | None,
    rng: np.random.Generator,
    options: PerlinOptions,
    tries: int,
) -> tuple[UInt8Array, BoolArray] | None:
    if path is None:
        texture = make_texture((image.shape[0], image.shape[1]), rng)
    else:
        texture = read_image(path)
        if kind == "normal":
            texture = shuffle_texture(texture, rng)
        texture = augment_texture(texture, rng)
    # In a grey image a colour would give every anomaly away.
    return perlin_anomaly(
        image, as_grey(texture) if is_grey(image) else texture, rng, options, within=part, tries=tries
    )


def redraw_perlin(dataset: Dataset, line: PerlinImage, textures: Path | None = None) -> tuple[UInt8Array, BoolArray]:
    """Draw a recorded image again, to the same bytes.

    Args:
        dataset: The dataset that the normal image is from.
        line: Its line of `generated.jsonl`.
        textures: The folder of textures, if its texture is from one.

    Returns:
        The image, uint8 [H, W, 3] RGB, and its mask, bool [H, W].

    Raises:
        ArgumentError: If the folder of textures is missing.
        DataError: If an image is missing or has other content, or the line is not one of them.
    """
    good = dataset.root / place_below(dataset.root, line.good, line.image.place)
    path = None
    if line.texture_kind != "made":
        root = textures if line.texture_kind == "folder" else dataset.root
        if root is None:
            raise ArgumentError(f"textures: expected the folder with {line.texture}, got none. Name it.")
        path = root / place_below(root, line.texture, line.image.place)
    for file, content in ((good, line.good_sha256), (path, line.texture_sha256)):
        if file is not None and content_hash(file) != content:
            raise DataError(f"{file}: expected the image that was drawn with, got other content.")
    image = read_image(good)
    part = find_foreground(image, is_solid=line.solid) if line.within == "foreground" else None
    rng = generator(line.seed, "perlin", line.category, line.index, line.attempt)
    drawn = _draw(image, part, line.texture_kind, path, rng, line.options, _TRIES_PER_IMAGE)
    if drawn is None:
        raise DataError(f"{line.image.place}: expected a line that draws an anomaly, got one that draws none.")
    return drawn

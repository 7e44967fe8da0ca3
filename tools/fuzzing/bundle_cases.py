"""Strategies of damaged and hostile bundles: manifest, zip file, safetensors and ONNX, all but that part being right.

The manifest lists the hashes of what was changed and has the right digest, wherever it can have one: otherwise nothing
behind the first check would ever be reached.
"""

from __future__ import annotations

import functools
import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
from hypothesis import strategies as st

from flawscope.bundle import MANIFEST, Manifest
from flawscope.bundle.heads import decode_head
from flawscope.bundle.manifest import encode_manifest
from fuzzing.cases import Case
from fuzzing.changes import NUMBERS, SCALARS, changed_bytes, changed_json, changed_message
from fuzzing.zip_writer import changed_zip

PATHS = ("auto", "graph", "kernel")
LOCATIONS = (
    *(
        "bank.safetensors",
        "score.onnx",
        "manifest.json",
        "images.json",
        "golden/0.png",
        "",
        ".",
        "..",
        "/",
        "./bank.safetensors",
    ),
    *(
        "golden/../bank.safetensors",
        "../bait/secret",
        "../../bait/secret",
        "BAIT",
        "file:BAIT",
        "/proc/self/maps",
        "*/*",
    ),
    *("/dev/zero", "/dev/stdin", "bank.safetensors\x00", "\\bank.safetensors", "*/_ORT_MEM_ADDR_/*"),
)
"""Where external data may be said to lie; BAIT stands for the path of a file outside that nobody may open."""
_OPERATORS = tuple(sorted({schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == ""}))
_HUNGRY = ("Loop", "If", "Scan", "ConstantOfShape", "Expand", "Tile", "Range", "Resize", "Pad", "OneHot", "EyeLike")


class Seed:
    """A valid bundle in memory.

    Attributes:
        files: Name -> bytes, without the manifest.
        tree: The manifest as plain data.
        models: Name -> parsed graph.
    """

    def __init__(self, folder: Path, bait: Path) -> None:
        names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
        self.files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in names}
        self.tree: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
        self.models = {name: onnx.load_from_string(data) for name, data in self.files.items() if name.endswith(".onnx")}
        self.locations = tuple(text.replace("BAIT", str(bait)) for text in LOCATIONS)

    def case(self, draw: st.DrawFn, tree: Any, files: dict[str, bytes], manifest: bytes | None = None) -> Case:
        """Return the bundle of a manifest and files, as a folder or packed."""
        whole = {**files, MANIFEST: sealed(tree) if manifest is None else manifest}
        path = draw(st.sampled_from(PATHS))
        return Case(whole if draw(st.booleans()) else _zipped(whole), {"path": path})

    def relisted(self, changes: dict[str, bytes]) -> tuple[dict[str, Any], dict[str, bytes]]:
        """Return manifest and files in which some files have other bytes, and are listed so."""
        files = {**self.files, **changes}
        listed = {name: {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)} for name, data in files.items()}
        return {**self.tree, "files": listed}, files


def sealed(tree: Any) -> bytes:
    """Return the bytes of a manifest: canonical and with its digest if it has the right types, else plain JSON."""
    try:
        return encode_manifest(msgspec.convert(tree, Manifest, dec_hook=decode_head))
    except Exception:  # whatever is wrong with it: that is what is wanted
        try:
            return json.dumps(tree).encode()
        except (TypeError, RecursionError):
            return b"[" * 5000 + b"]" * 5000


def _zipped(files: dict[str, bytes]) -> bytes:
    from fuzzing.zip_writer import write_zip

    return write_zip(files)


@st.composite
def manifests(draw: st.DrawFn, seeds: tuple[Seed, ...]) -> Case:
    """Return a bundle with a changed manifest."""
    seed = draw(st.sampled_from(seeds))
    kind = draw(st.sampled_from(("tree", "tree", "tree", "part", "part", "bytes")))
    if kind == "bytes":
        return seed.case(draw, None, seed.files, draw(changed_bytes(sealed(seed.tree))))
    if kind == "tree":
        return seed.case(draw, draw(changed_json(seed.tree)), seed.files)
    # What decides how the bundle is run, and not its many hashes.
    part = draw(st.sampled_from(("input", "head", "golden", "graphs", "thresholds", "max_batch", "bank", "tiling")))
    changed = draw(changed_json({part: seed.tree.get(part)}, most=2))
    return seed.case(draw, {**seed.tree, **changed}, seed.files)


@st.composite
def zips(draw: st.DrawFn, seeds: tuple[Seed, ...]) -> Case:
    """Return a packed bundle with a changed zip structure."""
    seed = draw(st.sampled_from(seeds[:1]))
    data = draw(changed_zip({**seed.files, MANIFEST: sealed(seed.tree)}))
    return Case(data, {"path": draw(st.sampled_from(PATHS))})


@st.composite
def banks(draw: st.DrawFn, seeds: tuple[Seed, ...]) -> Case:
    """Return a bundle with a changed memory bank."""
    seed = draw(st.sampled_from(seeds))
    original = seed.files["bank.safetensors"]
    (length,) = struct.unpack_from("<Q", original)
    header, content = json.loads(original[8 : 8 + length]), original[8 + length :]
    kind = draw(st.sampled_from(("header", "header", "length", "content", "numbers", "bytes")))
    if kind == "bytes":
        changed = draw(changed_bytes(original))
    elif kind == "length":
        number = draw(st.sampled_from((*NUMBERS, length + 1, length - 1, length + 8)))
        changed = struct.pack("<Q", number % (1 << 64)) + original[8:]
    else:
        if kind == "header":
            header = draw(changed_json(header))
        elif kind == "content":
            content = draw(changed_bytes(content))
        else:
            width = draw(st.sampled_from((2, 4, 8)))
            number = draw(
                st.sampled_from((-1.0, 0.0, 1e38, -1e38, 1e-40, float("nan"), float("inf"))) | st.integers(-9, 99)
            )
            if width == 2:  # by NumPy, which makes infinity of what float16 does not hold
                with np.errstate(over="ignore"):
                    packed = np.array(number, "<f2").tobytes()
            else:
                packed = struct.pack({4: "<f", 8: "<q" if isinstance(number, int) else "<d"}[width], number)
            start = width * draw(st.integers(0, len(content) // width - 1))
            content = content[:start] + packed + content[start + width :]
        try:
            text = json.dumps(header).encode()
        except RecursionError:
            text = b"[" * 5000 + b"]" * 5000
        changed = struct.pack("<Q", len(text)) + text + content
    return seed.case(draw, *seed.relisted({"bank.safetensors": changed}))


@st.composite
def graphs(draw: st.DrawFn, seeds: tuple[Seed, ...]) -> Case:
    """Return a bundle with a changed ONNX graph."""
    seed = draw(st.sampled_from(seeds))
    name = draw(st.sampled_from(sorted(seed.models)))
    if draw(st.integers(0, 3)) == 0:
        changed = draw(changed_bytes(seed.files[name]))
    else:
        message = draw(changed_message(seed.models[name], functools.partial(_text, seed)))
        if draw(st.integers(0, 5)) == 0:
            _take_outside(draw, message, seed)
        changed = message.SerializeToString()
    return seed.case(draw, *seed.relisted({name: changed}))


def _text(seed: Seed, draw: st.DrawFn, part: Any, field: Any) -> str | None:
    """Return a text that has a meaning where it stands, or None for any."""
    model = seed.models["score.onnx"]
    if field.name == "op_type":
        return draw(st.sampled_from(_OPERATORS) | st.sampled_from(_HUNGRY))
    if part.DESCRIPTOR.name == "StringStringEntryProto":
        if field.name == "key":
            return draw(st.sampled_from(("location", "offset", "length", "checksum", "basepath")))
        return draw(
            st.sampled_from(seed.locations) | st.sampled_from(("-1", "0", "8", "1e3", " 0", "9" * 18, "9" * 30))
        )
    if field.name in ("input", "output", "name"):
        return draw(st.sampled_from([value for node in model.graph.node for value in (*node.input, *node.output)]))
    return None


def _take_outside(draw: st.DrawFn, model: Any, seed: Seed) -> None:
    """Let an initializer lie in another file."""
    if not model.graph.initializer:
        return
    tensor = draw(st.sampled_from(list(model.graph.initializer)))
    tensor.data_location = onnx.TensorProto.EXTERNAL
    if draw(st.booleans()):
        tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.external_data.add(key="location", value=draw(st.sampled_from(seed.locations)))
    for key in draw(st.lists(st.sampled_from(("offset", "length", "location")), max_size=2)):
        scalars = [str(value) for value in SCALARS if isinstance(value, int)]
        tensor.external_data.add(key=key, value=draw(st.sampled_from(scalars)))

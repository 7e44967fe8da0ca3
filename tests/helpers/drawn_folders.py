"""What a folder of `synth generate` records."""

from __future__ import annotations

from pathlib import Path

import msgspec

from flawscope.runtime.synthesis import GeneratedImage, GenerateRecord


def lines_of(folder: Path) -> list[GeneratedImage]:
    texts = (folder / "generated.jsonl").read_bytes().splitlines()
    return [msgspec.json.decode(text, type=GeneratedImage) for text in texts]


def record_of(folder: Path) -> GenerateRecord:
    return msgspec.json.decode((folder / "generate.json").read_bytes(), type=GenerateRecord)

"""Which GPUs find code in the library: by the architectures that the build names, and CUDA's rules of who runs what."""

from __future__ import annotations

import re

import pytest
from project_paths import ROOT

DEVICES = ((7, 5), (8, 0), (8, 6), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0), (12, 1))
EMBEDDED = ((8, 7), (11, 0))
"""Of Jetsons: Orin and Thor. They take no machine code of other devices, but PTX."""


def lists() -> list[str]:
    """Return what the build names for older versions of nvcc, and for later ones."""
    text = (ROOT / "cpp_ext" / "cuda" / "cuda.cmake").read_text(encoding="utf-8")
    return re.findall(r"set\(CMAKE_CUDA_ARCHITECTURES ([^)]+)\)", text)


def find_code(architectures: str, device: tuple[int, int]) -> str:
    """Return what a device runs: machine code of its own or of an earlier one of its generation, else PTX before it."""
    real, virtual = set(), set()
    for name in architectures.split():
        digits, _, kind = name.partition("-")
        version = int(digits[:-1]), int(digits[-1])
        real |= set() if kind == "virtual" else {version}
        virtual |= set() if kind == "real" else {version}
    if device in real:
        return "its own"
    if device not in EMBEDDED and any(major == device[0] and minor <= device[1] for major, minor in real - {(8, 7)}):
        return "of its generation"
    usable = [version for version in virtual if version <= device]
    return f"PTX of {max(usable)}" if usable else "none"


@pytest.mark.parametrize("architectures", lists())
def test_every_device_from_7_5_on_finds_code(architectures: str) -> None:
    without = [device for device in (*DEVICES, *EMBEDDED) if find_code(architectures, device) == "none"]
    assert without == []


def test_newer_devices_find_code_of_their_own_where_nvcc_knows_them() -> None:
    older, later = lists()
    assert [find_code(later, device) for device in ((8, 7), (10, 0), (12, 0))] == ["its own"] * 3
    assert find_code(older, (8, 7)) == "its own"


@pytest.mark.parametrize(
    ("architectures", "device", "code"),
    [
        ("89-real 90-real 120", (11, 0), "none"),  # what comes before has no PTX, and 12.0 comes after
        ("90", (11, 0), "PTX of (9, 0)"),
        ("86-real", (8, 7), "none"),
        ("86-real", (8, 9), "of its generation"),
        ("87-real", (8, 9), "none"),
        ("89-real", (8, 6), "none"),
    ],
)
def test_the_rules(architectures: str, device: tuple[int, int], code: str) -> None:
    assert find_code(architectures, device) == code

"""The CUDA kernels, run in emulation on the CPU: all that can be said of their results without a GPU."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from project_paths import ROOT

CUDA = ROOT / "cpp_ext" / "cuda"
SEARCH_CHECK, WINDOW_CHECK, DIFFUSION_CHECK, CHECK = (
    Path(__file__).with_name(f"cuda_emulated{part}.cpp") for part in ("_search", "_window", "_diffusion", "")
)
OPTIONS = ["-std=c++17", "-O1", "-DFLAWSCOPE_EMULATION", "-Wall", "-Wno-unknown-pragmas"]
FOLDERS = [f"-I{ROOT / 'cpp_ext' / folder}" for folder in ("include", "src", "cuda")]

SANITIZE = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
"""Works with the fibers of the emulation: each has a stack of its own, which is cleared of marks before it is used."""

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to compile the emulation with"),
]


def run(*command: object) -> str:
    # Stacks of fibers are not searched for pointers, so what they hold would count as lost.
    environment = {**os.environ, "ASAN_OPTIONS": "detect_leaks=0"}
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Compiler options, with the sanitizers where this compiler has them."""
    folder = tmp_path_factory.mktemp("sanitizers")
    (folder / "empty.cpp").write_text("int main() { return 0; }\n")
    try:
        run("g++", *SANITIZE, folder / "empty.cpp", "-o", folder / "empty")
        run(folder / "empty")
    except AssertionError:
        return [*OPTIONS, *FOLDERS]
    return [*OPTIONS, *SANITIZE, *FOLDERS]


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory, options: list[str]) -> list[Path]:
    """Everything but the search, which alone differs between the architectures."""
    folder = tmp_path_factory.mktemp("objects")
    made = []
    for source in sorted(CUDA.glob("*.cu")):
        if source.stem != "search":
            made.append(folder / f"{source.stem}.o")
            run("g++", *options, "-DFLAWSCOPE_EMULATED_ARCH=800", "-x", "c++", "-c", source, "-o", made[-1])
    return made


# 7.5 copies through registers and multiplies 8 channels at a time, 8.0 and later copy asynchronously and multiply 16.
# What differs among the later ones is shared memory, which the check takes in turn.
@pytest.mark.parametrize(
    ("check", "architecture"),
    [
        pytest.param(SEARCH_CHECK, 750, marks=pytest.mark.slow),
        (SEARCH_CHECK, 800),
        (WINDOW_CHECK, 800),
        (DIFFUSION_CHECK, 800),
        (CHECK, 800),
    ],
)
def test_the_kernels_agree_with_plain_loops(
    check: Path, architecture: int, options: list[str], objects: list[Path], tmp_path: Path
) -> None:
    define = f"-DFLAWSCOPE_EMULATED_ARCH={architecture}"
    for source in (check, CUDA / "search.cu"):
        run("g++", *options, define, "-x", "c++", "-c", source, "-o", tmp_path / f"{source.stem}.o")
    run("g++", *options, *objects, *tmp_path.glob("*.o"), "-o", tmp_path / "check")
    assert run(tmp_path / "check", architecture).endswith("checks, 0 failures\n")


@pytest.mark.skipif(shutil.which("nm") is None, reason="no nm to read symbols with")
def test_a_build_without_cuda_has_the_same_functions(objects: list[Path], options: list[str], tmp_path: Path) -> None:
    run("g++", *options, "-c", CUDA / "absent.cpp", "-o", tmp_path / "absent.o")
    interface = next(path for path in objects if path.stem == "interface")
    names = [
        {line.split()[-1] for line in run("nm", path).splitlines() if " T " in line}
        for path in (tmp_path / "absent.o", interface)
    ]
    assert names[0] == names[1]
    assert "flawscope_cuda_nearest" in names[0]

"""What an installation without a compiler or without nvcc gets, and says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from project_paths import ROOMS, ROOT


def source_tree(target: Path) -> Path:
    """Copy what an installation needs: building in place would leave files behind."""
    for name in ("core", *ROOMS):
        ignored = shutil.ignore_patterns("__pycache__", "*.so")
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE"):
        shutil.copy2(ROOT / name, target / name)
    (target / "tools").mkdir()
    shutil.copy2(ROOT / "tools" / "linktree.py", target / "tools")  # setup.py reads the list of rooms with it
    return target


@pytest.mark.long
def test_without_native_kernels_the_wheel_is_pure_python(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "source")
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", str(tmp_path)]
    environment = {**os.environ, "FLAWSCOPE_NATIVE": "0"}
    subprocess.run([*command, str(tree)], check=True, env=environment, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    assert "flawscope/cpp_ext/reference.py" in names
    page = "runtime/line/http/page"
    assert {path.name for path in (ROOT / page).iterdir()} == {
        Path(name).name for name in names if name.startswith(f"flawscope/{page}/")
    }
    assert [name for name in names if Path(name).suffix in (".so", ".cpp", ".h", ".cu")] == []
    code = "import flawscope.cpp_ext as c; print(c.HAVE_NATIVE, c.HAVE_CUDA, c.simd_level(), c.implementation())"
    # Without `site`, whose import hook of an editable installation would find the kernels of this tree.
    libraries = sysconfig.get_path("purelib")
    found = subprocess.run(
        [sys.executable, "-S", "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path / "installed"), libraries])},
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    ).stdout
    assert found.startswith("False False none reference (NumPy): native kernels not built into this installation")
    assert "compiler" in found


def test_an_editable_installation_makes_the_tree_that_editors_and_type_checkers_read(tmp_path: Path) -> None:
    tree = source_tree(tmp_path / "source")
    # What pip calls in the end; it writes a wheel and puts nothing into this environment.
    code = "import sys; from setuptools import build_meta; build_meta.build_editable(sys.argv[1])"
    environment = {**os.environ, "FLAWSCOPE_NATIVE": "0"}
    subprocess.run([sys.executable, "-c", code, tmp_path], cwd=tree, check=True, env=environment, capture_output=True)
    package = tree / "build" / "typing" / "flawscope"
    assert (package / "cli.py").resolve() == tree / "core" / "cli.py"
    assert [room for room in ROOMS if (package / room).resolve() != tree / room] == []
    moved = tree.rename(tmp_path / "moved")
    assert (moved / "build" / "typing" / "flawscope" / "cli.py").is_file()


def configure(build: Path, *options: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    cmake = Path(sys.executable).parent / "cmake"
    environment = {**os.environ, "PATH": path or os.environ["PATH"]}
    environment.pop("CUDACXX", None)
    environment.pop("CUDA_PATH", None)
    command = [str(cmake), "-S", str(ROOT / "cpp_ext"), "-B", str(build), "-DFLAWSCOPE_PYTHON=OFF", *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


@pytest.fixture
def path_without_nvcc(tmp_path: Path) -> str:
    """A PATH with a C++ compiler and make, and no nvcc."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in (
        "c++",
        "g++",
        "gcc",
        "cc",
        "make",
        "ld",
        "as",
        "ar",
        "ranlib",
        "nm",
        "objdump",
        "strip",
        "uname",
        "sh",
    ):
        found = shutil.which(name)
        if found:
            (folder / name).symlink_to(found)
    if not (folder / "c++").exists():
        pytest.skip("no C++ compiler")
    return str(folder)


def test_without_nvcc_the_build_says_that_cuda_is_left_out(tmp_path: Path, path_without_nvcc: str) -> None:
    done = configure(tmp_path / "build", path=path_without_nvcc)
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: left out" in done.stdout
    assert "nvcc" in done.stdout


def test_cuda_that_is_asked_for_and_not_there_is_an_error(tmp_path: Path, path_without_nvcc: str) -> None:
    done = configure(tmp_path / "build", "-DFLAWSCOPE_CUDA=ON", path=path_without_nvcc)
    assert done.returncode != 0
    assert "nvcc" in done.stderr
    assert "FLAWSCOPE_CUDA" in done.stderr


def test_cuda_can_be_switched_off(tmp_path: Path) -> None:
    done = configure(tmp_path / "build", "-DFLAWSCOPE_CUDA=OFF")
    assert done.returncode == 0, done.stderr
    assert "CUDA kernels: left out, FLAWSCOPE_CUDA is OFF" in done.stdout


def test_every_pycuda_that_may_be_installed_compiles_with_cuda_13() -> None:
    """Those before 2025.1.2 call `cuCtxCreate` with the arguments that it had in CUDA 12."""
    for name in ("pyproject.toml", "docs/devices.md"):
        floors = re.findall(r"pycuda>=([\d.]+)", (ROOT / name).read_text(encoding="utf-8"))
        assert floors, name
        assert all(tuple(map(int, floor.split("."))) >= (2025, 1, 2) for floor in floors), name

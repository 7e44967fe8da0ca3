"""Map the top-level folders into the `flawscope` namespace and build `cpp_ext`; everything else is in pyproject.toml.

FLAWSCOPE_NATIVE=0 leaves the compiled kernels out: the wheel is then pure Python. FLAWSCOPE_CUDA=ON|OFF asks for the
CUDA kernels or leaves them out; otherwise they are built where nvcc is found. CMAKE_ARGS is passed to CMake.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.editable_wheel import editable_wheel
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
# A build backend runs this file without the project's folders on the path. Last there: a file of tools/ must not hide
# a package that is being used to build.
sys.path.append(str(ROOT / "tools"))
from linktree import ROOMS, make_tree  # noqa: E402

# Import name -> folder. `core/` is the package `flawscope` itself.
PACKAGE_DIR = {"flawscope": "core", **{f"flawscope.{room}": room for room in ROOMS}}
NATIVE = os.environ.get("FLAWSCOPE_NATIVE", "1") != "0"


class CMakeExtension(Extension):
    """An extension module whose sources are known to CMake, not to setuptools."""

    def __init__(self, name: str, source_dir: str) -> None:
        super().__init__(name, sources=[])
        self.source_dir = source_dir


class CMakeBuild(build_ext):
    """Configure, build and install one CMake project per extension."""

    def build_extension(self, ext: Extension) -> None:
        """Build `ext` into the folder of its package."""
        if not isinstance(ext, CMakeExtension):
            super().build_extension(ext)
            return
        prefixes = [Path(self.get_ext_fullpath(ext.name)).resolve().parent]
        if self.editable_mode:  # setuptools copies back only the module itself, not the library it links
            prefixes.append(ROOT / ext.source_dir)
        build = Path(self.build_temp).resolve() / ext.name
        # --fresh: the cache of an earlier isolated build names a ninja that is gone.
        configure = ["cmake", "--fresh", "-S", str(ROOT / ext.source_dir), "-B", str(build), "-G", "Ninja"]
        configure += ["-DCMAKE_BUILD_TYPE=Release", f"-DPython_EXECUTABLE={sys.executable}"]
        if "FLAWSCOPE_CUDA" in os.environ:
            configure.append(f"-DFLAWSCOPE_CUDA={os.environ['FLAWSCOPE_CUDA']}")
        try:
            subprocess.run([*configure, *shlex.split(os.environ.get("CMAKE_ARGS", ""))], check=True)
            subprocess.run(["cmake", "--build", str(build)], check=True)
            for prefix in prefixes:
                subprocess.run(["cmake", "--install", str(build), "--prefix", str(prefix)], check=True)
        except (OSError, subprocess.CalledProcessError) as err:
            raise CompileError(
                f"the native kernels of flawscope did not build: {err}. They need a C++17 compiler and the headers of "
                "Python. FLAWSCOPE_NATIVE=0 installs without them (slower), FLAWSCOPE_CUDA=OFF without CUDA."
            ) from err


class EditableWheel(editable_wheel):
    """Install for development, with the tree of links through which editors and type checkers see the packages."""

    def run(self) -> None:
        """Make the editable wheel, then the tree."""
        super().run()
        make_tree()


setup(
    package_dir=PACKAGE_DIR,
    packages=[
        *PACKAGE_DIR,
        # setuptools does not look below mapped folders by itself: without this a new sub-package misses the wheel.
        *(f"{name}.{sub}" for name, folder in PACKAGE_DIR.items() for sub in find_packages(folder)),
    ],
    include_package_data=False,
    package_data={
        "flawscope": ["py.typed", "__init__.pyi"],
        "flawscope.calibration.evaluation": ["templates/*"],
        "flawscope.runtime.line.http": ["page/*"],
        "flawscope.training": ["presets/*.yml"],
    },
    ext_modules=[CMakeExtension("flawscope.cpp_ext._native", "cpp_ext")] if NATIVE else [],
    cmdclass={"build_ext": CMakeBuild, "editable_wheel": EditableWheel},
)

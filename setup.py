"""Map the top-level folders into the `flawscope` namespace; everything else is in pyproject.toml."""

from __future__ import annotations

from setuptools import find_packages, setup

# Import name -> folder. `core/` is the package `flawscope` itself.
PACKAGE_DIR = {
    "flawscope": "core",
    "flawscope.cpp_ext": "cpp_ext",
    "flawscope.runtime": "runtime",
    "flawscope.calibration": "calibration",
    "flawscope.training": "training",
    "flawscope.export": "export",
}

setup(
    package_dir=PACKAGE_DIR,
    packages=[
        *PACKAGE_DIR,
        # setuptools does not look below mapped folders by itself: without this a new sub-package misses the wheel.
        *(f"{name}.{sub}" for name, folder in PACKAGE_DIR.items() for sub in find_packages(folder)),
    ],
    include_package_data=False,
    package_data={
        "flawscope": ["py.typed"],
        "flawscope.calibration": ["templates/*"],
        "flawscope.training": ["presets/*.yml"],
    },
)

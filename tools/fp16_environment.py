"""Make the environment for FP16: ModelOpt with the ONNX Runtime that it pins, apart from this environment.

    python tools/fp16_environment.py FOLDER

The new environment falls back to the packages of this one, so torch and its libraries are not installed twice; packages
that ModelOpt pins to another version (onnx, onnxruntime) are installed again. For development and tests only: users
install `flawscope[fp16]` into a separate environment.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sysconfig
import venv
from pathlib import Path

from output_folder import check_ours

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make the environment and check that it imports its own ONNX Runtime."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    check_ours(folder, "pyvenv.cfg")
    venv.create(folder, clear=True)
    python = (folder / "bin" / "python").absolute()
    site_packages = sysconfig.get_path("purelib", vars={"base": str(folder.absolute())})
    # The first match on sys.path wins, and lines of a .pth file come after its own folder: our packages come last.
    path_file = Path(site_packages) / "flawscope-development.pth"
    path_file.write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    requirements = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("flawscope") or []
        if requirement.endswith('extra == "fp16"')
    ]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints-fp16.txt")]
    subprocess.run([*pip, *requirements], check=True)
    code = (
        "import modelopt.onnx.autocast, onnxruntime; assert onnxruntime.__file__.startswith(%r), onnxruntime.__file__"
    )
    subprocess.run([str(python), "-I", "-c", code % str(folder.absolute())], check=True)
    # Last: make takes this file for the whole environment.
    (folder / ".installed").touch()


if __name__ == "__main__":
    main()

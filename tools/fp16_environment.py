"""Make the environment for FP16: ModelOpt with the ONNX Runtime that it pins, beside this one.

    python tools/fp16_environment.py FOLDER

The new environment sees the packages of this one behind its own, so torch and its libraries are not installed twice;
where ModelOpt wants another version (onnx, onnxruntime) it gets its own. That is for development and tests: users
install `flawscope[fp16]` into an environment of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import subprocess
import sysconfig
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Make it, and see that it works."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    venv.create(folder, clear=True)
    python = (folder / "bin" / "python").absolute()
    own = sysconfig.get_path("purelib", vars={"base": str(folder.absolute())})
    # Of two environments the one that is found first wins: lines of a .pth file come after the folder it lies in.
    (Path(own) / "flawscope-development.pth").write_text(f"{sysconfig.get_path('purelib')}\n", encoding="utf-8")
    wanted = [
        requirement.partition(";")[0].strip()
        for requirement in importlib.metadata.requires("flawscope") or []
        if requirement.endswith('extra == "fp16"')
    ]
    pip = [str(python), "-m", "pip", "install", "--quiet", "--constraint", str(ROOT / "constraints-fp16.txt")]
    subprocess.run([*pip, *wanted], check=True)
    code = (
        "import modelopt.onnx.autocast, onnxruntime; assert onnxruntime.__file__.startswith(%r), onnxruntime.__file__"
    )
    subprocess.run([str(python), "-I", "-c", code % str(folder.absolute())], check=True)
    (folder / ".installed").touch()


if __name__ == "__main__":
    main()

"""A user's script is type-checked strictly against the installed package: real types, not `Any`."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

import numpy
import pytest
from project_paths import ROOT

pytestmark = pytest.mark.long

SCRIPT = """\
from __future__ import annotations

from pathlib import Path

import flawscope
from flawscope import Bundle, FlawscopeError, Inspector, Result, Run
from flawscope.errors import GateError


def learn(data: Path) -> Bundle:
    run: Run = flawscope.fit(data, method="auto", image_size=256, settings={"seed": 1})
    reveal_type(run.notes)
    bundle = run.export("part.flaw", precisions=["int8"], calibration_data=data)
    reveal_type(bundle)
    done = bundle.calibrate(data, false_reject_rate=0.02)
    reveal_type(done.new.image.upper_bound)
    figures = bundle.evaluate(data, report="report")
    reveal_type(figures.image_auroc)
    return bundle


def look(inspector: Inspector, images: list[Path]) -> list[Result]:
    results = inspector(images)
    reveal_type(results)
    reveal_type(inspector(images[0]).anomaly_map)
    return results


def main() -> None:
    try:
        with learn(Path("parts")).inspector("cpu", threads=2) as inspector:
            look(inspector, [Path("0.png")])
    except GateError as err:
        print(err)
    except FlawscopeError as err:
        print(err.exit_status)
"""

REVEALED = [
    "tuple[str, ...]",
    "flawscope.workflows.api.Bundle",
    "float | None",
    "float | None",
    "list[flawscope.runtime.results.Result]",
    "numpy.ndarray[tuple[Any, ...], numpy.dtype[numpy.floating[numpy._typing._nbit_base._32Bit]]] | None",
]

MISTAKES = {
    "flawscope.fti('parts')": 'Module has no attribute "fti"',
    "flawscope.fit(3)": 'Argument 1 to "fit" has incompatible type "int"',
    "flawscope.fit('parts', stings={})": 'Unexpected keyword argument "stings" for "fit"',
    "flawscope.Bundle.load('b').calibrte()": '"Bundle" has no attribute "calibrte"',
}


@pytest.fixture(scope="module")
def user(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an environment that has flawscope as an installation leaves it."""
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder / "env", with_pip=False, symlinks=True)
    (packages,) = (folder / "env" / "lib").glob("python3*/site-packages")
    (packages / "flawscope").symlink_to(ROOT / "build" / "typing" / "flawscope")
    (packages / "others.pth").write_text(f"{Path(numpy.__file__).parents[1]}\n", encoding="utf-8")
    return folder


def checked(user: Path, text: str) -> list[str]:
    """Return what mypy says of a script, a line each."""
    pytest.importorskip("mypy", reason="needs mypy")
    (user / "script.py").write_text(text, encoding="utf-8")
    where = ["--python-executable", str(user / "env" / "bin" / "python"), "--cache-dir", str(user / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--no-error-summary", *where, "script.py"],
        cwd=user,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_script_that_uses_the_api_passes_strictly_with_real_types(user: Path) -> None:
    lines = checked(user, SCRIPT)
    assert all("note: Revealed type is" in line for line in lines), "\n".join(lines)
    assert [line.split('"')[1] for line in lines] == REVEALED


def test_mistakes_of_a_script_are_found(user: Path) -> None:
    lines = [line for line in checked(user, "\n".join(["import flawscope", *MISTAKES])) if ": note: " not in line]
    assert len(lines) == len(MISTAKES), "\n".join(lines)
    for line, told in zip(lines, MISTAKES.values(), strict=True):
        assert told in line

"""The tutorials are run: every command, in order, in one folder, and what they print is compared with the page.

The quick run takes smaller parts and compares words alone. The whole one takes the commands as they are printed, and
compares numbers too.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from free_ports import free_port
from project_paths import ROOT
from tutorial_pages import Step, same_line, steps, unmatched

from flawscope.cli import run

DOCS = ROOT / "docs"
# In the order in which they build on each other; text of the page -> what the quick run takes in its place.
SMALLER = {
    "from-50-photos-to-a-bundle": {
        "--size 128 --train 50": "--size 64 --train 8",
        "--test-good 20 --test-defective 8": "--test-good 4 --test-defective 4",
        "--image-size 128 --set cross_fit=20": "--image-size 64 --set cross_fit=2 --set channels=10 --no-drawn-check",
        # What small parts are told otherwise.
        "Advice: padim": "Advice: ...",
        "  PaDiM, a Gaussian at each place: each place shows much the same in all images ...": "...",
        "reject  parts": "... parts",
        "accept  parts": "... parts",
        "  1 region": " ...",
    },
    "from-three-defects-to-a-data-set": {
        "--per-defect 30": "--per-defect 2",
        "--num 30": "--num 3",
    },
    "to-a-line": {},
}

SLOW = ("synth", "judge")
"""Trains and exports several detectors, however small: the whole run alone does, and other tests of it."""
LARGE_PARTS_ALONE = (
    "diagnosis: Small defects are missed",
    "verdict: It misses defects.",
    "next step: Lower the threshold.",
    "station top: ready",  # a line may end before it looks at its station again
)
"""Lines that eight images do not lead to."""


def perform(step: Step, capfd: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    """Do a step in the working folder; return its exit status, and what it printed on stdout and stderr."""
    if step.file:
        Path(step.file).write_text("\n".join(step.shown) + "\n")
        return 0, "", ""
    name, *words = step.command
    words = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if name == "mkdir":
        Path(*words).mkdir()
        return 0, "", ""
    if name == "cp":
        for source in words[:-1]:
            shutil.copy(source, words[-1])
        return 0, "", ""
    assert name == "flawscope", f"expected flawscope, mkdir or cp, got {name}"
    capfd.readouterr()
    status = run(words)
    printed = capfd.readouterr()
    return status, printed.out, printed.err


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")  # tables are wrapped to the terminal


def follow(changes: dict[str, dict[str, str]], capfd: pytest.CaptureFixture[str], *, numbers: bool) -> None:
    for page, smaller in changes.items():
        port = {"127.0.0.1:8710": f"127.0.0.1:{free_port()}"} if page == "to-a-line" else {}
        for step in steps(DOCS / "tutorials" / f"{page}.md", {**smaller, **port}):
            if smaller and tuple(step.command[1:3]) == SLOW:
                continue
            status, *printed = perform(step, capfd)
            wanted = (step.status,) if numbers else (0, 1)
            assert status in wanted, f"{page}: {shlex.join(step.command)}: exit status {status}\n{''.join(printed)}"
            if not step.file:
                shown = [line for line in step.shown if numbers or not line.startswith(LARGE_PARTS_ALONE)]
                left = unmatched(shown, *printed, numbers=numbers)
                assert not left, f"{page}: {shlex.join(step.command)}: did not print\n{left}\nbut\n{''.join(printed)}"


@pytest.mark.long
@pytest.mark.usefixtures("working_folder")
def test_the_tutorials_run_on_small_parts(capfd):
    follow(SMALLER, capfd, numbers=False)


@pytest.mark.slow
@pytest.mark.usefixtures("working_folder")
def test_the_tutorials_print_what_the_pages_show(capfd):
    follow({page: {} for page in SMALLER}, capfd, numbers=True)


def test_every_tutorial_is_run():
    assert {path.stem for path in (DOCS / "tutorials").glob("*.md")} == set(SMALLER)


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_commands_of_the_how_tos_parse(page, capsys):
    lines = re.findall(r"^    (flawscope .+?)(?:\s+#.*)?$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert lines or page.stem == "modbus"
    for line in lines:
        assert run([*shlex.split(line)[1:], "--help"]) == 0, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("page", sorted((DOCS / "how-to").glob("*.md")), ids=lambda page: page.stem)
def test_a_how_to_is_one_short_page(page):
    assert len(page.read_text(encoding="utf-8").split()) < 350


def test_a_line_that_differs_is_found():
    page = ["image AUROC  0.98 ... to 1.00", "...", "done in 3 steps"]
    printed = "image AUROC 0.97  0.91 to 1.00\nmore\ndone in 3 steps\n"
    assert unmatched(page, printed, numbers=True) == ""
    assert unmatched(page, printed.replace("0.97", "0.71"), numbers=True) == page[0]
    assert unmatched(page, printed.replace("0.97", "0.71"), numbers=False) == ""
    assert unmatched(page, printed.replace("3", "4"), numbers=True) == page[2]
    assert unmatched(page, "done in 3 steps\nimage AUROC 0.97 to 1.00\n", numbers=True) == page[2]
    assert unmatched([page[2], page[0]], "done in 3 steps\n", "image AUROC 0.97 to 1.00\n", numbers=True) == ""
    assert not same_line("a (b)", "a b", numbers=True)


@pytest.mark.slow  # tests/workflows/test_api.py has the same calls
@pytest.mark.usefixtures("working_folder")
def test_the_notebooks_run_offline():
    notebooks = sorted((DOCS / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        names: dict[str, object] = {}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), path.name, "exec"), names)

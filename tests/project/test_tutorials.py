"""The tutorials are run: every command, in order, in one folder, and what they print is compared with the page.

The quick run takes smaller parts and compares words alone. The whole one takes the commands as they are printed, and
compares numbers too.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import socket
from pathlib import Path

import pytest
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
    },
    "from-three-defects-to-a-data-set": {
        "--per-defect 30": "--per-defect 2",
        "--num 30": "--num 3",
        "--steps 60 --seeds 0,1 --image-size 64": "--steps 2 --seeds 0,1 --image-size 32",
    },
    "to-a-line": {},
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def perform(step: Step, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Do a step in the working folder; return its exit status and what it printed, stderr last."""
    if step.file:
        Path(step.file).write_text("\n".join(step.shown) + "\n")
        return 0, ""
    name, *words = step.command
    words = [found for word in words for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]
    if name == "mkdir":
        Path(*words).mkdir()
        return 0, ""
    if name == "cp":
        for source in words[:-1]:
            shutil.copy(source, words[-1])
        return 0, ""
    assert name == "flawscope", f"expected flawscope, mkdir or cp, got {name}"
    capfd.readouterr()
    status = run(words)
    printed = capfd.readouterr()
    return status, printed.out + printed.err


def follow(changes: dict[str, dict[str, str]], capfd: pytest.CaptureFixture[str], *, numbers: bool) -> None:
    for page, smaller in changes.items():
        port = {"127.0.0.1:8710": f"127.0.0.1:{free_port()}"} if page == "to-a-line" else {}
        for step in steps(DOCS / "tutorials" / f"{page}.md", {**smaller, **port}):
            status, printed = perform(step, capfd)
            wanted = (step.status,) if numbers else (0, 1)
            assert status in wanted, f"{page}: {shlex.join(step.command)}: exit status {status}\n{printed}"
            if not step.file:
                left = unmatched(step.shown, printed, numbers=numbers)
                assert not left, f"{page}: {shlex.join(step.command)}: did not print\n{left}\nbut\n{printed}"


@pytest.mark.long
def test_the_tutorials_run_on_small_parts(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    follow(SMALLER, capfd, numbers=False)


@pytest.mark.slow
def test_the_tutorials_print_what_the_pages_show(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
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
    assert not same_line("a (b)", "a b", numbers=True)


def test_the_notebooks_run_offline(tmp_path, monkeypatch, capsys):
    notebooks = sorted((DOCS / "notebooks").glob("*.ipynb"))
    assert notebooks
    for path in notebooks:
        monkeypatch.chdir(tmp_path)
        names: dict[str, object] = {}
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "code":
                exec(compile("".join(cell["source"]), path.name, "exec"), names)

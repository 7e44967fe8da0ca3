"""Make docs/mistakes.md: typical mistakes on the command line, and what each is answered with.

    python tools/mistakes.py [--check]

Every command of the table is run in a folder with drawn images, a bundle, and what else the mistakes need; nothing is
trained. What is written is what was printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, NamedTuple

import cv2

from flawscope.cli import run
from flawscope.datasets.parts import render
from flawscope.files import write_text

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "mistakes.md"
_SIDE = 64


class Mistake(NamedTuple):
    """A mistake.

    Attributes:
        what: What somebody did, in a few words.
        command: What was typed, without `flawscope` in front.
        status: Exit status.
        stream: Where it is said: the other stream has what differs between machines, or all that went well.
    """

    what: str
    command: str
    status: int = 2
    stream: Literal["stdout", "stderr"] = "stderr"


MISTAKES: dict[str, tuple[Mistake, ...]] = {
    "Verbs, methods and options": (
        Mistake("a verb with a slip of the finger", "trian patchcore --data parts/bottle --out run"),
        Mistake("a verb without its group", "inspect parts/bottle"),
        Mistake("a method without its verb", "patchcore --data parts/bottle --out run"),
        Mistake("a method with a slip of the finger", "train patchcor --data parts/bottle --out run"),
        Mistake("an option with a slip of the finger", "train patchcore --dta parts/bottle --out run"),
        Mistake("the dataset without --data", "train patchcore parts/bottle --out run"),
        Mistake("no dataset", "train patchcore --out run"),
        Mistake("no place for the result", "train patchcore --data parts/bottle"),
        Mistake("a word for a number", "train patchcore --data parts/bottle --out run --image-size large"),
        Mistake("a backend that does not exist", "score bottle.flaw part.png --backend cpuu"),
        Mistake("--quiet behind the verb", "score --quiet bottle.flaw part.png"),
    ),
    "Settings": (
        Mistake(
            "a setting with a slip of the finger", "train patchcore --data parts/bottle --out run --set corset=0.1"
        ),
        Mistake("a setting without a value", "train patchcore --data parts/bottle --out run --set coreset"),
        Mistake("a value out of range", "train patchcore --data parts/bottle --out run --set coreset=-1"),
        Mistake("a setting of another method", "train patchcore --data parts/bottle --out run --set epochs=10"),
        Mistake(
            "a preset with a slip of the finger", "train patchcore --data parts/bottle --out run --config anomalydin"
        ),
        Mistake("a broken file of settings", "train patchcore --data parts/bottle --out run --config broken.yml"),
        Mistake(
            "weights that are not there",
            "train patchcore --data parts/bottle --out run --backbone resnet18 --weights net.safetensors",
        ),
    ),
    "Images": (
        Mistake("a folder that is not there", "train patchcore --data part/bottle --out run"),
        Mistake("a file in place of a folder", "train patchcore --data part.png --out run"),
        Mistake("an empty folder", "train patchcore --data empty --out run"),
        Mistake("several categories, none named", "train patchcore --data parts --out run"),
        Mistake("a category with a slip of the finger", "train patchcore --data parts --category botle --out run"),
        Mistake("folders that do not say which is normal", "train patchcore --data unsaid --out run"),
        Mistake("a folder of normal images with a number", "train patchcore --data numbered --out run"),
        Mistake("two folders of normal images", "train patchcore --data twice --out run"),
        Mistake("only anomalous images", "train patchcore --data sorted/NG --out run"),
        Mistake("normal and anomalous images in one folder", "train patchcore --data mixed --out run"),
        Mistake("images of a kind that is not read", "train patchcore --data phone --out run"),
        Mistake("a damaged image", "score bottle.flaw damaged.png", 1, "stdout"),
        Mistake("an image that is not there", "score bottle.flaw missing.png", 1, "stdout"),
    ),
    "Runs and bundles": (
        Mistake("images in place of a run", "export parts/bottle --out new.flaw"),
        Mistake("a run that is not there", "export runs/bottel --out new.flaw"),
        Mistake("a run whose training was interrupted", "export runs/half --out new.flaw"),
        Mistake("training once more over such a run", "train stfpm --data parts/bottle --out runs/half"),
        Mistake("the place of an earlier result", "train patchcore --data parts/bottle --out runs/done"),
        Mistake("image and bundle in the wrong order", "score part.png bottle.flaw"),
        Mistake("images in place of a bundle", "score parts/bottle part.png"),
        Mistake("a bundle that was changed", "score changed.flaw part.png"),
        Mistake("percent in place of a share", "calibrate bottle.flaw --data parts/bottle --false-reject-rate 5"),
        Mistake(
            "too few normal images for the bound",
            "calibrate bottle.flaw --data parts/bottle --false-reject-rate 0.001",
            0,
        ),
    ),
}


def make_world(folder: Path) -> None:
    """Write what the commands name: images, bundles and an interrupted training."""
    # Bundles that are made without training. Here and not above, because the tests' helpers are on no path.
    sys.path.insert(0, str(ROOT / "tests" / "helpers"))
    from tiny_bundle import golden_image, tiny_thresholds, write_tiny_bundle

    for kind, category in (("bottle", "gear"), ("cap", "board")):
        _write_images(folder / "parts" / kind / "good", category, 6)
        _write_images(folder / "parts" / kind / "scratch", category, 2)
    for place in ("unsaid/positive", "unsaid/negative", "numbered/01_OK", "numbered/02_NG", "sorted/OK", "sorted/NG"):
        _write_images(folder / place, "gear", 2)
    for place in ("twice/good", "twice/OK"):
        _write_images(folder / place, "gear", 2)
    _write_images(folder / "mixed", "gear", 2, "OK_{}.png")
    _write_images(folder / "mixed", "gear", 2, "NG_{}.png")
    (folder / "empty").mkdir()
    (folder / "phone" / "good").mkdir(parents=True)
    (folder / "phone" / "good" / "IMG_0001.HEIC").write_bytes(b"\0\0\0\x18ftypheic")
    cv2.imwrite(str(folder / "part.png"), golden_image()[..., ::-1])
    (folder / "damaged.png").write_bytes((folder / "part.png").read_bytes()[:40])
    (folder / "broken.yml").write_text("coreset: [0.1\n", encoding="utf-8")
    write_tiny_bundle(folder / "bottle.flaw", thresholds=tiny_thresholds())
    write_tiny_bundle(folder / "changed.flaw")
    (folder / "changed.flaw" / "images.json").write_text('{"training": [], "held_out": [] }\n', encoding="utf-8")
    (folder / "runs" / "done").mkdir(parents=True)
    (folder / "runs" / "done" / "run.json").write_text("{}", encoding="utf-8")
    half = folder / "runs" / "half.training"
    (half / "checkpoints" / "epoch_000003").mkdir(parents=True)
    command = "flawscope train stfpm --data parts/bottle --out runs/half"
    (half / "begun.json").write_text(json.dumps({"schema": 2, "method": "stfpm", "command": command}), encoding="utf-8")


def _write_images(folder: Path, category: str, count: int, name: str = "{}.png") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image, _ = render(category, 0, number, _SIDE)
        cv2.imwrite(str(folder / name.format(f"{number:03d}")), image[..., ::-1])


def said(mistake: Mistake) -> str:
    """Run a command in the working directory; return what it prints, and check its exit status."""
    results, remarks = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(results), contextlib.redirect_stderr(remarks):
        status = run(mistake.command.split())
    text = (remarks if mistake.stream == "stderr" else results).getvalue().strip()
    if status != mistake.status:
        sys.exit(f"flawscope {mistake.command}: expected exit status {mistake.status}, got {status}: {text}")
    if not text:
        sys.exit(f"flawscope {mistake.command}: expected something on {mistake.stream}, got nothing")
    return text


@contextlib.contextmanager
def _inside(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def page() -> str:
    """Return the page as Markdown."""
    count = sum(len(mistakes) for mistakes in MISTAKES.values())
    parts = [
        f"# {count} mistakes and what is said of them",
        "Written by `python tools/mistakes.py`, which runs every command; a test compares. Errors go to stderr in one\n"
        "line; the exit status is 2 where the request was wrong, and 1 where an image could not be decided on.",
        "Folders: `parts/bottle` and `parts/cap` have images in `good` and `scratch`; `bottle.flaw` is a bundle,\n"
        "`part.png` an image.",
    ]
    with tempfile.TemporaryDirectory() as scratch, _inside(Path(scratch)):
        make_world(Path())
        number = 0
        for title, mistakes in MISTAKES.items():
            rows = ["| | mistake | what is said |", "|---|---|---|"]
            for mistake in mistakes:
                number += 1
                text = said(mistake).replace("|", "\\|").replace("\n", "<br>")
                rows.append(f"| {number} | {mistake.what}<br>`flawscope {mistake.command}` | {text} |")
            parts += [f"## {title}", "\n".join(rows)]
    return "\n\n".join(parts) + "\n"


def main() -> None:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is out of date")
    options = parser.parse_args()
    text = page()
    if options.check:
        if not PAGE.is_file() or PAGE.read_text(encoding="utf-8") != text:
            sys.exit(f"{PAGE.name} is out of date. Write it with: python tools/mistakes.py")
        return
    write_text(PAGE, text)


if __name__ == "__main__":
    main()

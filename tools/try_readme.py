"""Paste every command of the README and the tutorials, as printed, in a fresh clone, and report each with its seconds.

    python tools/try_readme.py [--python PYTHON] [--pages README.md ...] [--out build/try-readme]
                               [--keep] [--again]

The clone is of the commit that is checked out. Generated parts are put where the README says the user's parts lie.
`make install` in it fetches some gigabytes and takes minutes. What serves until Ctrl-C (`flawscope line demo`, `line
run`) gets Ctrl-C once it is ready, and has to end in order. Writes `result.json` and a log of every command to --out.
Exit status 1 if a command fails.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from output_folder import emptied
from readme_commands import Command, commands_of

ROOT = Path(__file__).resolve().parent.parent
MARKER = "try-readme.txt"
"""Empty file in the folder of results, which says whose it is."""
SERVES = re.compile(r"flawscope line (demo|run)\b(?!.*--help)")
READY = re.compile(rb"\bready\b")
LIMIT_S = 3600
SERVED_S = 20.0
# Python's settings of this tree, and those of flawscope, are not those of a fresh machine.
_OURS = re.compile(r"^(FLAWSCOPE_\w+|VIRTUAL_ENV|PYTHONPATH|PYTHONHOME|MAKEFLAGS|MAKELEVEL|MFLAGS)$")


@dataclass
class Outcome:
    """What a command did.

    Attributes:
        page: Page that it is on.
        line: Line of the page.
        command: What was pasted.
        seconds: Wall-clock time; of what serves, until it was ready.
        status: Exit status; None if it was left out or ran past its limit.
        problem: Why it failed or was left out; empty if it was run and ended well.
    """

    page: str
    line: int
    command: str
    seconds: float
    status: int | None
    problem: str = ""


class Shell:
    """A shell that goes on from command to command: working directory and exported variables are kept.

    Attributes:
        folder: Where state and logs lie.
        environment: Variables of the first command.
    """

    def __init__(self, start: Path, folder: Path, environment: dict[str, str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.environment = environment
        self._place = folder / "place"
        self._variables = folder / "variables.sh"
        self._place.write_text(str(start), encoding="utf-8")
        self._variables.write_text("", encoding="utf-8")

    def _before(self) -> str:
        return f'. {shlex.quote(str(self._variables))}; cd "$(cat {shlex.quote(str(self._place))})" || exit 99\n'

    def run(self, text: str, log: Path, limit_s: float = LIMIT_S) -> int | None:
        """Run lines of the shell; return the exit status, or None past the limit."""
        keep = f"export -p > {shlex.quote(str(self._variables))}; pwd > {shlex.quote(str(self._place))}"
        script = f"{self._before()}{text}\nstatus=$?; {keep}; exit $status\n"
        with log.open("wb") as sink:
            process = self._start(script, sink)
            try:
                return process.wait(limit_s)
            except subprocess.TimeoutExpired:
                self._end(process, signal.SIGKILL)
                return None

    def serve(self, text: str, log: Path, limit_s: float = LIMIT_S) -> tuple[int | None, float]:
        """Run what serves until it says that it is ready and a little longer; then, if it goes on, send Ctrl-C.

        Returns:
            The exit status (None if it never was ready or did not end), and the seconds until it was ready.
        """
        start = time.perf_counter()
        with log.open("wb") as sink:
            process = self._start(f"{self._before()}exec {text}\n", sink)
        while process.poll() is None and not READY.search(log.read_bytes()):
            if time.perf_counter() - start > limit_s:
                self._end(process, signal.SIGKILL)
                return None, time.perf_counter() - start
            time.sleep(0.1)
        ready_s = time.perf_counter() - start
        if process.poll() is not None:
            return process.returncode, ready_s
        try:
            return process.wait(SERVED_S), ready_s
        except subprocess.TimeoutExpired:
            self._end(process, signal.SIGINT)
        try:
            return process.wait(60), ready_s
        except subprocess.TimeoutExpired:
            self._end(process, signal.SIGKILL)
            return None, ready_s

    def write(self, name: str, text: str) -> int:
        """Write a file that a page shows where the shell is; return 0, the status of what went well."""
        (Path(self._place.read_text(encoding="utf-8").strip()) / name).write_text(text, encoding="utf-8")
        return 0

    def _start(self, script: str, sink: object) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl-C reaches the command and what it started, and nothing else.
        return subprocess.Popen(
            ["bash", "-c", script],
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=sink,  # type: ignore[call-overload]
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _end(self, process: subprocess.Popen[bytes], number: signal.Signals) -> None:
        os.killpg(process.pid, number)
        if number == signal.SIGKILL:
            process.wait()


def fresh_environment(home: Path, python: str | None) -> dict[str, str]:
    """Return variables as of a machine that never had flawscope: no settings, keys, caches, or environment."""
    kept = {name: value for name, value in os.environ.items() if not _OURS.match(name)}
    own = str(Path(sys.executable).parent)
    kept["PATH"] = os.pathsep.join(part for part in kept["PATH"].split(os.pathsep) if part != own)
    kept |= {"XDG_CACHE_HOME": str(home / "cache"), "XDG_CONFIG_HOME": str(home / "config")}
    return kept | ({"PYTHON": python} if python else {})


def put_parts(clone: Path) -> None:
    """Generate parts where the README says that the user's lie: parts/bottle/{good,DEFECT}, and new/."""
    with tempfile.TemporaryDirectory(prefix="flawscope-parts-") as name:
        command = [sys.executable, "-m", "flawscope", "data", "demo", name, "--kind", "steel", "--train", "80"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        made = Path(name) / "steel"
        shutil.copytree(made / "train" / "good", clone / "parts" / "bottle" / "good")
        defects = sorted(path for path in (made / "test").iterdir() if path.name != "good")
        for defect in defects:
            shutil.copytree(defect, clone / "parts" / "bottle" / defect.name)
        (clone / "new").mkdir()
        # Photos that nothing has learned from: good and bad ones.
        photos = sorted((made / "test" / "good").iterdir())[:5] + sorted(defects[0].iterdir())[:3]
        for number, photo in enumerate(photos, 1):
            shutil.copy2(photo, clone / "new" / f"{number:04d}{photo.suffix}")


def try_command(shell: Shell, command: Command, log: Path) -> Outcome:
    """Run one command as it is pasted."""
    start = time.perf_counter()
    if command.left_out:
        return Outcome(command.page, command.line, command.text, 0.0, None, f"left out: {command.left_out}")
    if command.kind == "file":
        status = shell.write(command.name, command.text)
    elif command.kind == "python":
        script = log.with_suffix(".py")
        script.write_text(command.text, encoding="utf-8")
        status = shell.run(f"python {shlex.quote(str(script))}", log)
    elif SERVES.match(command.text):
        status, seconds = shell.serve(command.text, log)
        start = time.perf_counter() - seconds
    else:
        status = shell.run(command.text, log)
    seconds = time.perf_counter() - start
    problem = ""
    if status != command.status:
        problem = "ran past its limit" if status is None else f"exit status {status}"
    text = f"({command.name})" if command.name else command.text
    return Outcome(command.page, command.line, text, seconds, status, problem)


def first_decision(outcomes: list[Outcome], before_s: float) -> dict[str, float | int] | None:
    """Return seconds and commands from the clone to the end of the first `score`, or None without one.

    Args:
        outcomes: Outcomes in their order.
        before_s: Seconds of the clone, which is one command more.
    """
    seconds = before_s
    for number, outcome in enumerate(outcomes, 2):
        seconds += outcome.seconds
        if outcome.command.startswith("flawscope score") and outcome.status == 0:
            install_s = sum(each.seconds for each in outcomes if each.command.startswith("make install"))
            return {"commands": number, "seconds": round(seconds, 1), "install_seconds": round(install_s, 1)}
    return None


def table(outcomes: list[Outcome]) -> str:
    """Return the outcomes as a Markdown table."""
    rows = ["| page | command | seconds | |", "|---|---|---|---|"]
    for each in outcomes:
        text = " ".join(each.command.split())
        short = (text if len(text) <= 100 else text[:97] + "...").replace("|", "\\|")
        rows.append(f"| {each.page}:{each.line} | `{short}` | {each.seconds:.1f} | {each.problem or 'done'} |")
    return "\n".join(rows)


def make_clone(clone: Path) -> None:
    """Clone the commit that is checked out; of a clone that is there keep the environment, and nothing else."""
    if not clone.exists():
        subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
        return
    here = ["git", "-C", str(clone)]
    head = subprocess.run(["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, check=True)
    subprocess.run([*here, "fetch", "-q", "origin", head.stdout.strip()], check=True)
    subprocess.run([*here, "checkout", "-q", "--force", "--detach", head.stdout.strip()], check=True)
    subprocess.run([*here, "clean", "-qxffd", "-e", "/.venv", "-e", "/build", "-e", "/cpp_ext"], check=True)


def try_pages(pages: list[str], clone: Path, out: Path, python: str | None) -> tuple[list[Outcome], float]:
    """Clone, put parts in place, and run the commands of all pages in one shell.

    Returns:
        The outcomes, and the seconds that the clone took.
    """
    start = time.perf_counter()
    make_clone(clone)
    clone_s = time.perf_counter() - start
    put_parts(clone)
    environment = fresh_environment(out / "home", python)
    outcomes: list[Outcome] = []
    shell = Shell(clone, out / "state", environment)
    is_prepared = False
    for page in pages:
        if page != "README.md" and not is_prepared:
            is_prepared = True
            # A reader of a tutorial has done what the README says first. The tutorials go on from one to the next.
            shell.run(
                f"cd {shlex.quote(str(clone))}; source .venv/bin/activate; mkdir tutorials; cd tutorials",
                out / "cd.log",
            )
        for command in commands_of(page, (clone / page).read_text(encoding="utf-8")):
            log = out / f"{len(outcomes):03d}-{Path(page).stem}-{command.line}.log"
            outcomes.append(try_command(shell, command, log))
            done = outcomes[-1]
            first = command.text.splitlines()[0]
            print(f"{done.seconds:8.1f} s  {done.problem or 'done':12}  {page}:{done.line}  {first}", flush=True)
    return outcomes, clone_s


def main() -> None:
    """Try the pages, write and print the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    tutorials = [path.relative_to(ROOT).as_posix() for path in sorted((ROOT / "docs" / "tutorials").glob("*.md"))]
    parser.add_argument("--pages", nargs="+", default=["README.md", *tutorials], help="pages, relative to the project")
    parser.add_argument("--python", help="interpreter for `make install`; default: python3")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "try-readme")
    parser.add_argument("--keep", action="store_true", help="keep the clone, some gigabytes, in --out")
    parser.add_argument(
        "--again", action="store_true", help="with the environment that an earlier run with --keep left"
    )
    chosen = parser.parse_args()
    out = chosen.out.resolve()
    if chosen.again and not (out / "clone" / ".venv").is_dir():
        sys.exit(f"--again: expected a clone with its environment in {out / 'clone'}, got none; run once with --keep")
    if not chosen.again:
        emptied(out, MARKER)
    git = ["git", "-C", str(ROOT)]
    commit = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
    changed = subprocess.run([*git, "status", "--short"], capture_output=True, text=True, check=True).stdout
    if changed:
        print(f"not in the clone, because not committed: {len(changed.splitlines())} files")
    try:
        outcomes, clone_s = try_pages(chosen.pages, out / "clone", out, chosen.python)
        words = len((ROOT / "README.md").read_text(encoding="utf-8").split())
    finally:
        if not chosen.keep and not chosen.again:
            shutil.rmtree(out / "clone", ignore_errors=True)
    result = {
        "commit": commit.strip(),
        "environment": "of an earlier run" if chosen.again else "fetched",
        "readme_words": words,
        "first_decision": first_decision(outcomes, clone_s),
        "commands": [asdict(each) for each in outcomes],
    }
    (out / "result.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(table(outcomes))
    print(f"README: {words} words; first decision: {result['first_decision']}")
    failed = [each for each in outcomes if each.problem and not each.problem.startswith("left out")]
    print(f"{len(outcomes) - len(failed)} commands done or left out, {len(failed)} failed; logs: {out}")
    sys.exit(1 if failed or not outcomes else 0)


if __name__ == "__main__":
    main()

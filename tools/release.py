"""Check that a release is ready, and make what belongs to it in build/release; nothing is tagged or published.

    python tools/release.py [--no-wheel] [--out build/release]
    python tools/release.py --bump X.Y.Z                          # make it the version: three files are changed

Checked: the version has its part in CHANGELOG.md with a date, and nothing is left under Unreleased; CITATION.cff says
the same version and date; the working tree is committed, and the tag does not exist. Made: `notes.md`, `tag.txt` (the
commands that remain), `Dockerfile` (that of deploy/ with version and commit as labels), and the audited wheel with
`SHA256SUMS`. docs/release.md has the whole list. Exit status 1 if something is missing, each named in a line.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path

from output_folder import emptied

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = "tag.txt"
"""The commands that remain; it also marks the folder of an earlier run."""
_HEADING = re.compile(r"^## +(.+?)\s*$", re.MULTILINE)
_VERSION = re.compile(r'^__version__ = "([^"]+)"$', re.MULTILINE)


def version_of(source: str) -> str:
    """Return the version that `core/__init__.py` states.

    Raises:
        ValueError: It does not state exactly one.
    """
    found = _VERSION.findall(source)
    if len(found) != 1:
        raise ValueError(f'core/__init__.py: expected one line __version__ = "X.Y.Z", got {len(found)}')
    return str(found[0])


def parts_of(changelog: str) -> dict[str, str]:
    """Return the parts of a changelog by their headings, without the second-level headings themselves."""
    headings = list(_HEADING.finditer(changelog))
    ends = [each.start() for each in headings[1:]] + [len(changelog)]
    return {each[1]: changelog[each.end() : end].strip() for each, end in zip(headings, ends, strict=True)}


def entries(part: str) -> int:
    """Return how many entries a part of a changelog has."""
    return len(re.findall(r"^- ", part, re.MULTILINE))


def notes_of(changelog: str, version: str) -> tuple[str, str]:
    """Return the notes of a version and its date.

    Raises:
        ValueError: There is no part for the version with a date, or it has no entry.
    """
    for heading, text in parts_of(changelog).items():
        if heading.startswith(f"[{version}]"):
            date = re.fullmatch(rf"\[{re.escape(version)}\] - (\d{{4}}-\d\d-\d\d)", heading)
            if date is None:
                raise ValueError(f"CHANGELOG.md: expected the heading [{version}] - YYYY-MM-DD, got {heading}")
            if not entries(text):
                raise ValueError(f"CHANGELOG.md: the part of {version} has no entry")
            return text, date[1]
    raise ValueError(f"CHANGELOG.md: no part for {version}; expected the heading [{version}] - YYYY-MM-DD")


def problems_of_texts(version: str, changelog: str, citation: str) -> list[str]:
    """Return what is missing in the texts of a release, a line each."""
    problems = []
    try:
        date = notes_of(changelog, version)[1]
    except ValueError as err:
        problems.append(str(err))
        date = ""
    waiting = entries(parts_of(changelog).get("Unreleased", ""))
    if waiting:
        problems.append(f"CHANGELOG.md: {waiting} entries under Unreleased; move them to {version}")
    for name, expected in (("version", version), ("date-released", date)):
        found = re.search(rf"^{name}: *[\"']?([^\"'\s]+)", citation, re.MULTILINE)
        got = found[1] if found else "none"
        if expected and got != expected:
            problems.append(f"CITATION.cff: {name}: expected {expected}, got {got}")
    return problems


def bumped(version: str, date: str, source: str, changelog: str, citation: str) -> tuple[str, str, str]:
    """Return `core/__init__.py`, CHANGELOG.md and CITATION.cff with a new version, which gets what waited.

    Raises:
        ValueError: The version is no X.Y.Z, is there already, or nothing waits for it.
    """
    if not re.fullmatch(r"\d+\.\d+\.\d+", version):
        raise ValueError(f"version: expected X.Y.Z, got {version}")
    parts = parts_of(changelog)
    if any(heading.startswith(f"[{version}]") for heading in parts):
        raise ValueError(f"CHANGELOG.md: {version} is there already")
    if not entries(parts.get("Unreleased", "")):
        raise ValueError("CHANGELOG.md: expected entries under Unreleased, got none")
    version_of(source)
    heading = f"## Unreleased\n\n## [{version}] - {date}"
    return (
        _VERSION.sub(f'__version__ = "{version}"', source),
        re.sub(r"^## +Unreleased\s*?$", heading, changelog, count=1, flags=re.MULTILINE),
        re.sub(
            r"^date-released:.*$",
            f"date-released: {date}",
            re.sub(r"^version:.*$", f"version: {version}", citation, count=1, flags=re.MULTILINE),
            count=1,
            flags=re.MULTILINE,
        ),
    )


def bump(version: str) -> None:
    """Write the files of a new version, dated today (UTC)."""
    paths = [ROOT / "core" / "__init__.py", ROOT / "CHANGELOG.md", ROOT / "CITATION.cff"]
    texts = [path.read_text(encoding="utf-8") for path in paths]
    date = datetime.now(timezone.utc).date().isoformat()
    try:
        changed = bumped(version, date, *texts)
    except ValueError as err:
        sys.exit(str(err))
    for path, text in zip(paths, changed, strict=True):
        path.write_text(text, encoding="utf-8")
    print(f"flawscope {version}, {date}: {', '.join(str(path.relative_to(ROOT)) for path in paths)}")


def git(*arguments: str) -> str:
    """Return what git says, for this project."""
    done = subprocess.run(["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def problems_of_tree(version: str) -> list[str]:
    """Return why the working tree cannot be tagged, a line each."""
    problems = []
    changed = git("status", "--porcelain").splitlines()
    if changed:
        problems.append(f"working tree: {len(changed)} files are not committed, {changed[0][3:]} the first")
    if git("tag", "--list", f"v{version}"):
        problems.append(f"tag v{version} is there already; a released version is never replaced")
    return problems


def labelled(dockerfile: str, version: str, commit: str) -> str:
    """Return a Dockerfile whose last stage carries version and commit.

    Raises:
        ValueError: It has no stage.
    """
    lines = dockerfile.splitlines()
    stages = [place for place, line in enumerate(lines) if line.startswith("FROM ")]
    if not stages:
        raise ValueError("deploy/Dockerfile: expected a line FROM, got none")
    label = (
        f'LABEL org.opencontainers.image.version="{version}" org.opencontainers.image.revision="{commit}" '
        'org.opencontainers.image.licenses="Apache-2.0"'
    )
    lines.insert(stages[-1] + 1, label)
    return "\n".join(lines) + "\n"


def remaining(version: str, out: Path) -> str:
    """Return the commands that a person runs in the project's folder when everything is in order."""
    folder = shlex.quote(str(out.relative_to(ROOT) if out.is_relative_to(ROOT) else out.resolve()))
    return f"""# Nothing of this was run.
git tag --sign --cleanup=verbatim --file {folder}/notes.md v{version}
git push origin v{version}
docker build -f {folder}/Dockerfile -t flawscope-line:{version} .
"""


def make_wheel(out: Path) -> list[str]:
    """Make the wheel in `out`, and the sums of all wheels there; return what is wrong."""
    done = subprocess.run([sys.executable, str(ROOT / "tools" / "make_wheel.py"), "--out", str(out)], check=False)
    wheels = sorted(out.glob("*.whl"))
    sums = [f"{hashlib.sha256(wheel.read_bytes()).hexdigest()}  {wheel.name}\n" for wheel in wheels]
    (out / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    return [] if done.returncode == 0 and wheels else ["wheel: it did not pass; see above"]


def main() -> None:
    """Check, make, and say what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--no-wheel", action="store_true", help="leave out the wheel, which takes minutes")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "release")
    parser.add_argument("--bump", metavar="X.Y.Z", help="write this version into the files that state it, and end")
    chosen = parser.parse_args()
    if chosen.bump:
        bump(chosen.bump)
        return
    version = version_of((ROOT / "core" / "__init__.py").read_text(encoding="utf-8"))
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    problems = problems_of_texts(version, changelog, (ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    problems += problems_of_tree(version)
    emptied(chosen.out, COMMANDS)
    try:
        notes = notes_of(changelog, version)[0]
    except ValueError:
        notes = ""  # named among the problems
    (chosen.out / "notes.md").write_text(f"flawscope {version}\n\n{notes}\n", encoding="utf-8")
    (chosen.out / COMMANDS).write_text(remaining(version, chosen.out), encoding="utf-8")
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text(encoding="utf-8")
    (chosen.out / "Dockerfile").write_text(labelled(dockerfile, version, git("rev-parse", "HEAD")), encoding="utf-8")
    if not chosen.no_wheel:
        problems += make_wheel(chosen.out)
    for problem in problems:
        print(f"missing: {problem}")
    print(f"flawscope {version}: {'ready' if not problems else f'{len(problems)} things are missing'}; {chosen.out}")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()

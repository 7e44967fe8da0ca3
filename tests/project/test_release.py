"""`make release-check` and `make wheel`: what is missing is named, and what is made says the version."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import make_wheel
import pytest
import release
import yaml
from project_paths import ROOT

from flawscope import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
CHANGELOG = """# Changelog
## Unreleased

## [0.3.0] - 2026-12-01
### Added
- One.
- Two.

## [0.2.0]
### Fixed
- Three.
"""
CITATION = "version: 0.3.0\ndate-released: 2026-12-01\n"


def test_notes_are_those_of_the_version() -> None:
    assert release.notes_of(CHANGELOG, "0.3.0") == ("### Added\n- One.\n- Two.", "2026-12-01")


@pytest.mark.parametrize(("version", "said"), [("0.2.0", "got [0.2.0]"), ("9.9.9", "no part for 9.9.9")])
def test_a_version_without_its_part_or_date_is_named(version: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        release.notes_of(CHANGELOG, version)


def test_texts_that_agree_have_no_problem_and_others_are_named() -> None:
    assert release.problems_of_texts("0.3.0", CHANGELOG, CITATION) == []
    waiting = CHANGELOG.replace("## Unreleased\n", "## Unreleased\n### Added\n- Four.\n")
    found = release.problems_of_texts("0.3.0", waiting, "version: 0.2.0\n")
    assert [each.split(":")[0] for each in found] == ["CHANGELOG.md", "CITATION.cff", "CITATION.cff"]
    assert "1 entries under Unreleased" in found[0]
    assert "date-released: expected 2026-12-01, got none" in found[2]


def test_the_version_is_one_line_and_the_citation_has_it() -> None:
    assert release.version_of((ROOT / "core" / "__init__.py").read_text(encoding="utf-8")) == __version__
    with pytest.raises(ValueError, match="got 0"):
        release.version_of("__version__ = VERSION\n")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == __version__
    assert {"cff-version", "message", "title", "authors"} <= set(citation)


def test_a_new_version_is_one_command() -> None:
    waiting = CHANGELOG.replace("## Unreleased\n", "## Unreleased\n### Added\n- Four.\n")
    source, changelog, citation = release.bumped("0.4.0", "2027-01-02", '__version__ = "0.3.0"\n', waiting, CITATION)
    assert source == '__version__ = "0.4.0"\n'
    assert release.notes_of(changelog, "0.4.0") == ("### Added\n- Four.", "2027-01-02")
    assert release.problems_of_texts("0.4.0", changelog, citation) == []


@pytest.mark.parametrize(
    ("version", "said"), [("0.3.0", "is there already"), ("4", "expected X.Y.Z"), ("0.4.0", "got none")]
)
def test_a_version_that_cannot_be_is_refused(version: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)):
        release.bumped(version, "2027-01-02", '__version__ = "0.3.0"\n', CHANGELOG, CITATION)


def test_the_changelog_of_the_project_can_be_released() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    parts = release.parts_of(changelog)
    assert next(iter(parts)) == "Unreleased"
    kinds = {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    for heading, text in list(parts.items()):
        found = re.findall(r"^### (.+)$", text, re.MULTILINE)
        assert set(found) <= kinds, heading
        assert len(found) == len(set(found)), f"{heading}: a heading stands twice"


def test_the_container_file_carries_version_and_commit() -> None:
    lines = release.labelled("FROM a AS build\nRUN x\nFROM b\nUSER 1\n", "0.3.0", "abc").splitlines()
    assert lines[3].startswith('LABEL org.opencontainers.image.version="0.3.0" org.opencontainers.image.revision="abc"')
    assert lines[2] == "FROM b"
    with pytest.raises(ValueError, match="FROM"):
        release.labelled("RUN x\n", "0.3.0", "abc")


SHOWN = """
flawscope-0.1.0-cp311-cp311-manylinux_2_35_x86_64.whl is consistent with
the following platform tag: "manylinux_2_35_x86_64".

The wheel references external versioned symbols in these
system-provided shared libraries: libgcc_s.so.1 with versions
{'GCC_3.0'}, libc.so.6 with versions {'GLIBC_2.14'}, libstdc++.so.6 with versions {'GLIBCXX_3.4.30'}
"""


def test_the_verdict_of_auditwheel_is_one_line() -> None:
    said = make_wheel.verdict_of(SHOWN)
    assert (
        said == "consistent with manylinux_2_35_x86_64; of the system it needs libgcc_s.so.1, libc.so.6, libstdc++.so.6"
    )
    with pytest.raises(ValueError, match="expected a platform tag"):
        make_wheel.verdict_of("usage: auditwheel")


def test_a_wheel_is_made_of_sources_alone(tmp_path: Path) -> None:
    tree = make_wheel.copy_sources(tmp_path / "source")
    assert (tree / "core" / "__init__.py").is_file()
    assert (tree / "tools" / "linktree.py").is_file()
    assert [path for path in tree.rglob("*") if path.suffix in (".so", ".pyc")] == []


def test_versions_of_python_are_the_same_wherever_they_stand() -> None:
    named = [each.rsplit(" ", 1)[1] for each in PROJECT["project"]["classifiers"] if re.search(r":: 3\.\d+$", each)]
    page = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (3\.\d+) \| (.+?) \|", page, re.MULTILINE)
    # A classifier is a claim: only versions that ran all tests have it.
    assert named == [version for version, said in rows if said.startswith("yes")]
    assert PROJECT["project"]["requires-python"] == f">={rows[0][0]}"
    wheels = [each.removeprefix("cp3").removesuffix("-*") for each in PROJECT["tool"]["cibuildwheel"]["build"]]
    assert [version for version, _ in rows] == [f"3.{minor}" for minor in wheels]
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    assert workflow["jobs"]["all"]["strategy"]["matrix"]["python"] == [version for version, _ in rows]


def test_the_workflow_runs_what_every_change_has_to_pass() -> None:
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    commands = [step["run"] for step in workflow["jobs"]["all"]["steps"] if "run" in step]
    assert commands == ["bash .ci/run"]
    assert (ROOT / ".ci" / "run").is_file()


def test_reports_ask_for_the_diagnosis_of_the_machine() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"))
    texts = {form.name: form.read_text(encoding="utf-8") for form in forms if form.name != "config.yml"}
    assert len(texts) == 4
    for name, text in texts.items():
        assert re.search(r"flawscope doctor .*--json", text), name
        form = yaml.safe_load(text)
        assert {"name", "description", "body"} <= set(form), name
        names = [field["id"] for field in form["body"] if field["type"] != "markdown"]
        assert len(names) == len(set(names)), name

"""One list of rooms: all that name the rooms in a syntax of their own name the same, and static tools see them."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from project_paths import ROOMS, ROOT

LINKTREE = runpy.run_path(str(ROOT / "tools" / "linktree.py"))
PROJECT: dict[str, Any] = LINKTREE["tomllib"].loads((ROOT / "pyproject.toml").read_text("utf-8"))
TREE = LINKTREE["TREE"].relative_to(ROOT).as_posix()


def test_every_top_level_folder_that_is_a_package_is_a_room() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == {"core", *ROOMS}


def test_ruff_bans_the_folder_name_of_every_room_as_an_import() -> None:
    bans = PROJECT["tool"]["ruff"]["lint"]["flake8-tidy-imports"]["banned-api"]
    assert bans == {"core": {"msg": "Import flawscope."}} | {
        room: {"msg": f"Import flawscope.{room}."} for room in ROOMS
    }


def test_every_room_has_its_place_in_the_layers() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    # The first is that of the top-level rooms; those after it are of the rooms inside one.
    layers, *_ = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    names = [name.removeprefix("flawscope.") for layer in layers for name in re.split(r"\s*[|:]\s*", layer)]
    assert set(ROOMS) <= set(names)
    parts = sorted(set(names) - set(ROOMS))
    assert [name for name in parts if not list((ROOT / "core").glob(f"{name}*"))] == []
    assert len(names) == len(set(names))


def test_every_name_in_a_contract_of_layers_is_a_module() -> None:
    for contract in PROJECT["tool"]["importlinter"]["contracts"]:
        for layer in contract.get("layers", ()):
            for name in re.split(r"\s*[|:]\s*", layer):
                place = "/".join(name.split(".")[1:])
                folders = (ROOT / place, ROOT / "core" / place)
                assert any(path.is_dir() or path.with_suffix(".py").is_file() for path in folders), name


def test_no_contract_names_a_room_that_is_not_there() -> None:
    contracts = PROJECT["tool"]["importlinter"]["contracts"]
    named = {
        name.split(".")[1]
        for contract in contracts
        for key in ("source_modules", "forbidden_modules")
        for name in contract.get(key, ())
        if name.startswith("flawscope.")
    }
    there = {*ROOMS, *(path.stem for path in (ROOT / "core").iterdir())}
    assert named - there == set()


def test_editors_and_type_checkers_read_the_tree_that_the_installation_makes() -> None:
    pyright = json.loads((ROOT / "pyrightconfig.json").read_text("utf-8"))
    editor = json.loads((ROOT / ".vscode" / "settings.json").read_text("utf-8"))
    assert PROJECT["tool"]["mypy"]["mypy_path"] == TREE
    assert pyright["extraPaths"] == editor["python.analysis.extraPaths"] == [TREE, "tests/helpers"]
    assert {"core", *ROOMS} <= set(pyright["include"])
    assert [name for name in pyright["include"] if not (ROOT / name).is_dir()] == []


@pytest.mark.parametrize("name", ["errors.py", "cpp_ext"])
def test_the_tree_is_brought_up_to_date_and_what_was_right_stays(tmp_path: Path, name: str) -> None:
    make_tree = LINKTREE["make_tree"]
    package = make_tree(tmp_path)
    assert {path.name for path in package.iterdir()} == {
        *(path.name for path in (ROOT / "core").iterdir() if path.name != "__pycache__"),
        *ROOMS,
    }
    unchanged = (package / "files.py").lstat()
    (package / name).unlink()
    (package / "arrays.py").unlink()
    (package / "arrays.py").symlink_to("elsewhere.py")
    (package / "gone.py").symlink_to("gone.py")
    (package / "folder").mkdir()
    (package / "folder" / "file.py").touch()
    assert make_tree(tmp_path) == package
    assert not [path.name for path in package.iterdir() if not path.exists()]
    assert {"gone.py", "folder"}.isdisjoint(path.name for path in package.iterdir())
    assert (package / name).exists()
    assert (package / "arrays.py").resolve() == ROOT / "core" / "arrays.py"
    assert (package / "files.py").lstat().st_ino == unchanged.st_ino

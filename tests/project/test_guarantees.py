"""Every test that the page of guarantees names is there."""

from __future__ import annotations

import ast
import re

from project_paths import ROOT

PAGE = ROOT / "docs" / "guarantees.md"
NAMED = sorted(set(re.findall(r"`([\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))))


def test_every_test_that_is_named_is_there() -> None:
    missing = []
    for file, name in NAMED:
        path = ROOT / "tests" / file
        if not name and any((ROOT / room / file).is_file() for room in ("", "core")):
            continue  # a module of the product
        tests = set()
        if path.is_file():
            nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            tests = {node.name for node in nodes if isinstance(node, ast.FunctionDef)}
        if not tests or (name and name not in tests):
            missing.append(f"{file}::{name}")
    assert missing == []


def test_every_row_names_a_test_that_holds_it() -> None:
    for row in (line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("| ")):
        kind, held, other = (cell.strip() for cell in row.strip("|").split("|"))
        if kind != "kind":
            assert re.search(r"`[\w/]+\.py(::\w+)?`", held), kind
            assert other, kind

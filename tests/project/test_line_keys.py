"""The tables of docs/line-configuration.md are what the structs say that read a configuration."""

from __future__ import annotations

import sys
from pathlib import Path

import line_keys
import msgspec
import pytest

from flawscope.runtime.line.line_config import LineConfig, SceneLimits


def test_the_page_is_that_of_the_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["line_keys.py", "--check"])
    assert line_keys.main() == 0


def test_a_page_that_is_not_is_found_and_mended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "page.md"
    whole = line_keys.PAGE.read_text(encoding="utf-8")
    page.write_text(whole.replace("`warn_share` | number", "`warn_share` | text"), encoding="utf-8")
    monkeypatch.setattr(line_keys, "PAGE", page)
    monkeypatch.setattr(sys, "argv", ["line_keys.py", "--check"])
    assert line_keys.main() == 1
    assert "Run python tools/line_keys.py" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["line_keys.py"])
    assert line_keys.main() == 0
    assert page.read_text(encoding="utf-8") == whole


def structs_of(kind: msgspec.inspect.Type) -> set[type]:
    inner = [getattr(kind, "item_type", None), getattr(kind, "value_type", None)]
    inner += [*getattr(kind, "types", ()), *getattr(kind, "item_types", ())]
    inner += [field.type for field in getattr(kind, "fields", ())]
    found = {kind.cls} if isinstance(kind, msgspec.inspect.StructType) else set()
    return found.union(*(structs_of(one) for one in inner if one is not None))


def test_every_struct_of_the_configuration_has_a_table_and_every_key_a_text() -> None:
    structs = structs_of(msgspec.inspect.type_info(LineConfig))
    assert SceneLimits in structs
    text = line_keys.tables()
    for struct in structs:
        assert line_keys.table("x", struct).partition("\n")[2] in text, struct
        assert set(line_keys.documented(struct)) >= {field.name for field in msgspec.structs.fields(struct)}

"""Folders of the user: what the environment names, what lies below home, and none for a user without a home."""

from __future__ import annotations

from pathlib import Path

import pytest
from project_paths import ROOMS, ROOT

from flawscope.user_folders import cache_folder, config_folder, home_folder

XDG = [(cache_folder, "XDG_CACHE_HOME", ".cache"), (config_folder, "XDG_CONFIG_HOME", ".config")]


@pytest.mark.parametrize(("folder", "variable", "below"), XDG)
def test_a_folder_that_the_environment_names_comes_first(folder, variable, below, no_home, monkeypatch, tmp_path):
    monkeypatch.setenv(variable, str(tmp_path))
    assert folder() == tmp_path
    monkeypatch.setenv("HOME", "/home/someone")
    assert folder() == tmp_path
    monkeypatch.setenv(variable, "")
    assert folder() == Path("/home/someone") / below


@pytest.mark.parametrize(("folder", "variable", "below"), XDG)
def test_a_relative_folder_is_none(folder, variable, below, no_home, monkeypatch):
    monkeypatch.setenv(variable, "cache")
    assert folder() is None
    monkeypatch.setenv("HOME", "here")
    assert (folder(), home_folder()) == (None, None)


def test_a_user_of_a_service_has_no_folders(no_home):
    assert (home_folder(), cache_folder(), config_folder()) == (None, None, None)


def test_only_this_module_asks_for_the_home_folder():
    modules = [path for room in ("core", *ROOMS) for path in (ROOT / room).rglob("*.py")]
    words = ("Path.home", "expanduser", "XDG_", '"HOME"', "getpass", "import pwd")
    asking = [str(path.relative_to(ROOT)) for path in modules if any(word in path.read_text("utf-8") for word in words)]
    # The module `getpass` is asked for passphrases, passwords and the user's name, which may be missing too; `pwd` for
    # the owner of a file.
    more = {"core/bundle/signature_command.py", "core/bundle/threshold_command.py"}
    line = {f"runtime/line/{name}.py" for name in ("swap/swap_command", "users/user_commands", "users/users_file")}
    assert set(asking) == {*more, *line, "core/user_folders.py"}

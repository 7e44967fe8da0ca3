"""`flawscope bundle keygen|sign|verify` and `--trusted-keys`, through the command line."""

from __future__ import annotations

import importlib
import sys

import click
import pytest

from flawscope.bundle import open_bundle
from flawscope.bundle.file_names import SIGNATURE
from flawscope.cli import run
from flawscope.verbs import VERBS, Group, Verb

VARIABLE = "FLAWSCOPE_TRUSTED_KEYS"


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch, tmp_path):
    from flawscope.bundle import trusted_keys

    for name in (VARIABLE, "FLAWSCOPE_KEY_PASSPHRASE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(trusted_keys, "SYSTEM", tmp_path / "etc")


@pytest.fixture
def call(capsys):
    """Return a function that runs a command and returns its status, its output and its error lines."""

    def called(*arguments):
        status = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return status, out, err.splitlines()

    return called


def test_a_bundle_is_signed_and_verified(folder, tmp_path, call):
    key = tmp_path / "maker"
    status, out, errors = call("bundle", "keygen", "--out", key)
    assert (status, errors) == (0, [])
    name = out.split()[-1]
    assert out == f"{key}: private key; {key}.pub: public key {name}\n"
    with open_bundle(folder) as bundle:
        digest = bundle.manifest.digest
    files = f"{folder}: 4 files are as listed, identity {digest}"
    assert call("bundle", "verify", folder) == (0, f"{files}, unsigned\n", [])
    status, out, errors = call("bundle", "verify", folder, "--key", f"{key}.pub")
    assert (status, out) == (1, "")
    assert errors == [f"error: {folder}: expected a signature by {name}, got none. Sign it with flawscope bundle sign."]
    assert call("bundle", "sign", folder, "--key", key) == (0, f"{folder}: signed by {name}, identity {digest}\n", [])
    assert call("bundle", "verify", folder, "--key", f"{key}.pub") == (0, f"{files}, signed by {name}\n", [])
    unchecked = f"{files}, signature of {name} not checked: name its key with --key\n"
    assert call("bundle", "verify", folder) == (0, unchecked, [])
    assert f"says {name} (check it with flawscope bundle verify)" in call("bundle", "info", folder)[1]


def test_verify_takes_the_trusted_keys_where_no_key_is_named(folder, tmp_path, call, monkeypatch):
    for name in ("maker", "other"):
        call("bundle", "keygen", "--out", tmp_path / name)
    call("bundle", "sign", folder, "--key", tmp_path / "maker")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "other.pub"))
    assert call("bundle", "verify", folder)[0] == 1
    monkeypatch.setenv(VARIABLE, str(tmp_path / "maker.pub"))
    assert call("bundle", "verify", folder)[0] == 0


def test_a_missing_key_and_an_existing_one_are_wrong_requests(folder, tmp_path, call):
    assert call("bundle", "verify", folder, "--key", tmp_path / "nowhere")[0] == 2
    assert call("bundle", "sign", folder, "--key", tmp_path / "nowhere")[0] == 2
    (tmp_path / "maker").write_bytes(b"mine")
    status, _, errors = call("bundle", "keygen", "--out", tmp_path / "maker")
    assert (status, len(errors)) == (2, 1)
    assert (tmp_path / "maker").read_bytes() == b"mine"


def test_the_passphrase_comes_from_the_environment(folder, tmp_path, call, monkeypatch):
    monkeypatch.setenv("FLAWSCOPE_KEY_PASSPHRASE", "correct horse")
    status, out, _ = call("bundle", "keygen", "--out", tmp_path / "maker")
    assert (status, "private key, encrypted;" in out) == (0, True)
    assert call("bundle", "sign", folder, "--key", tmp_path / "maker")[0] == 0
    monkeypatch.setenv("FLAWSCOPE_KEY_PASSPHRASE", "battery staple")
    assert "wrong passphrase" in call("bundle", "sign", folder, "--key", tmp_path / "maker")[2][0]


def test_without_terminal_and_environment_there_is_no_passphrase(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    status, _, errors = call("bundle", "keygen", "--out", tmp_path / "maker", "--passphrase")
    assert (status, "Set FLAWSCOPE_KEY_PASSPHRASE" in errors[0]) == (2, True)
    assert [entry.name for entry in tmp_path.iterdir()] == ["tiny.flaw"]
    monkeypatch.setenv("FLAWSCOPE_KEY_PASSPHRASE", "correct horse")
    call("bundle", "keygen", "--out", tmp_path / "maker")
    monkeypatch.delenv("FLAWSCOPE_KEY_PASSPHRASE")
    status, _, errors = call("bundle", "sign", folder, "--key", tmp_path / "maker")
    assert (status, "expected a passphrase" in errors[0]) == (2, True)


def test_a_passphrase_is_typed_twice(folder, tmp_path, call, monkeypatch):
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    typed = iter(["correct horse", "correct hose", "correct horse", "correct horse", "correct horse"])
    monkeypatch.setattr("getpass.getpass", lambda prompt: next(typed))
    status, _, errors = call("bundle", "keygen", "--out", tmp_path / "maker", "--passphrase")
    assert (status, "expected the same twice" in errors[0], (tmp_path / "maker").exists()) == (2, True, False)
    assert "encrypted" in call("bundle", "keygen", "--out", tmp_path / "maker", "--passphrase")[1]
    assert call("bundle", "sign", folder, "--key", tmp_path / "maker")[0] == 0


def test_a_changed_bundle_is_said_to_have_lost_its_signature(folder, tmp_path, call):
    call("bundle", "keygen", "--out", tmp_path / "maker")
    call("bundle", "sign", folder, "--key", tmp_path / "maker")
    status, _, errors = call("calibrate", folder, "--image-threshold", 1, "--pixel-threshold", 2)
    assert status == 0
    assert next(line for line in errors if "signature" in line).startswith(f"note: {folder}: the signature of ")
    assert not (folder / SIGNATURE).exists()


RUN_A_BUNDLE = {
    ("score",),
    ("bench",),
    ("doctor",),
    ("engine", "build"),
    ("evaluate",),
    ("calibrate",),
    ("sampling",),
    ("bundle", "combine"),
    ("bundle", "bank", "add"),
    ("bundle", "bank", "remove"),
    ("bundle", "bank", "prune"),
    ("bundle", "threshold"),
    ("export-triton",),
    ("explain",),
    ("synth", "generate"),
    ("fleet", "publish"),  # runs none, but gives it to lines that do
}
# They take no bundle: one says which releases a line with these keys would take, one joins what shards made of one.
WITHOUT_BUNDLE = {("fleet", "list"), ("merge",)}
# They show, copy, sign or change a bundle, or send it to a line, which has its own keys, and run none.
OTHERS = {
    ("bundle", "info"),
    ("bundle", "verify"),
    ("bundle", "sign"),
    ("bundle", "pack"),
    ("bundle", "region"),
    ("line", "swap"),
}


def leaves(rows, above=()):
    for name, row in rows.items():
        if isinstance(row, Group):
            yield from leaves(row.rows, (*above, name))
        elif isinstance(row, Verb):
            yield (*above, name), row


def test_every_verb_that_runs_a_bundle_takes_trusted_keys():
    for names, row in leaves(VERBS):
        module, _, attribute = row.place.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        has_option = any("--trusted-keys" in parameter.opts for parameter in command.params)
        takes_bundle = any(
            isinstance(parameter, click.Argument)
            and ("bundle" in (parameter.name or "").lower() or "BUNDLE" in (parameter.metavar or ""))
            for parameter in command.params
        )
        # A new verb that takes a bundle has to be in one of the two.
        assert takes_bundle == (names in RUN_A_BUNDLE or names in OTHERS), names
        assert has_option == (names in RUN_A_BUNDLE or names in WITHOUT_BUNDLE), names

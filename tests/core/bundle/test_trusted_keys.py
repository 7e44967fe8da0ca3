"""Trusted keys: where they are set, whatever none of them signed is refused, and no setting is ever passed over."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import pytest
from error_lines import reason
from import_graph import product_modules
from project_paths import ROOT
from tiny_bundle import tiny_thresholds, write_tiny_bundle

from flawscope import cli
from flawscope.bundle import (
    change_bundle,
    find_trusted_keys,
    making,
    open_bundle,
    pack_bundle,
    rewrite_manifest,
    sign_bundle,
    trusted_bundle,
)
from flawscope.bundle import trusted_keys as settings
from flawscope.bundle.ed25519 import read_private_key, write_keys
from flawscope.bundle.file_names import MANIFEST, SIGNATURE
from flawscope.errors import ArgumentError, BundleError, MissingExtra

VARIABLE = "FLAWSCOPE_TRUSTED_KEYS"


@pytest.fixture
def key(tmp_path):
    write_keys(tmp_path / "keys" / "maker")
    return read_private_key(tmp_path / "keys" / "maker", lambda: None)


@pytest.fixture
def other(tmp_path):
    write_keys(tmp_path / "keys" / "other")
    return read_private_key(tmp_path / "keys" / "other", lambda: None)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """The four places of the setting, in their order: a name, the variable, the user's file, the system's."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(settings, "SYSTEM", tmp_path / "etc" / "trusted_keys")
    monkeypatch.delenv(VARIABLE, raising=False)
    for place in ("config/flawscope", "etc"):
        (tmp_path / place).mkdir(parents=True)
    return [tmp_path / "named", tmp_path / "variable", tmp_path / "config/flawscope/trusted_keys", settings.SYSTEM]


@pytest.fixture
def trusted(tmp_path, places, key, monkeypatch):
    """Trust the key of the maker on this machine; return the setting."""
    monkeypatch.setenv(VARIABLE, str(tmp_path / "keys" / "maker.pub"))
    return tmp_path / "keys" / "maker.pub"


@pytest.fixture(params=[False, True], ids=["folder", "packed"])
def path(request, folder, packed):
    return packed if request.param else folder


def test_nothing_is_set_where_no_place_has_keys(places):
    assert find_trusted_keys() is None


def test_the_first_place_that_is_set_counts(tmp_path, places, monkeypatch):
    ids = []
    for number, place in enumerate(places):
        ids.append(write_keys(tmp_path / "keys" / str(number)).id)
        place.write_bytes((tmp_path / "keys" / f"{number}.pub").read_bytes())
    monkeypatch.setenv(VARIABLE, str(places[1]))
    assert list(find_trusted_keys(places[0]).keys) == ids[:1]
    assert list(find_trusted_keys().keys) == ids[1:2]
    monkeypatch.delenv(VARIABLE)
    assert list(find_trusted_keys().keys) == ids[2:3]
    places[2].unlink()
    assert list(find_trusted_keys().keys) == ids[3:]


def test_a_folder_of_keys_is_read_whole(tmp_path, key, other):
    folder = tmp_path / "trusted"
    folder.mkdir()
    for name, end in (("maker", "a.pub"), ("other", "b.pem")):
        (folder / end).write_bytes((tmp_path / "keys" / f"{name}.pub").read_bytes())
    (folder / ".DS_Store").write_bytes(b"\0")
    found = find_trusted_keys(folder)
    assert set(found.keys) == {key.public.id, other.public.id}
    assert found.source == str(folder)


def break_setting(place: Path, how: str, key: Path) -> None:
    if how == "folder":
        place.mkdir()
    elif how == "other":
        place.mkdir()
        (place / "README").write_text("keys")
    elif how == "link inside":
        place.mkdir()
        (place / "a.pub").symlink_to(key)
    elif how == "empty":
        place.write_bytes(b"")
    elif how == "no key":
        place.write_bytes(b"not a key\n")
    elif how == "private":
        place.write_bytes(key.with_suffix("").read_bytes())
    elif how == "dangling":
        place.symlink_to(place.with_name("nowhere"))
    elif how == "loop":
        place.symlink_to(place)
    elif how == "pipe":
        os.mkfifo(place)
    elif how == "shared file":
        place.write_bytes(key.read_bytes())
        place.chmod(0o664)
    elif how == "shared folder":
        place.mkdir()
        (place / "a.pub").write_bytes(key.read_bytes())
        place.chmod(0o757)
    elif how == "link to shared":
        outside = place.parent / "outside"
        outside.mkdir()
        (outside / "a.pub").write_bytes(key.read_bytes())
        outside.chmod(0o777)
        place.symlink_to(outside / "a.pub")
    elif how == "link in shared":
        place.symlink_to(key)
        place.parent.chmod(0o777)


BROKEN = {
    "folder": "expected 1 to 1000 files of keys, got 0",
    "other": r"expected files that end in \.pub or \.pem, got README",
    "link inside": "expected plain files, got the link a.pub",
    "empty": "expected at least one public key",
    "no key": "got the line 'not a key'",
    "private": "got a block PRIVATE KEY",
    "dangling": "could not be read",
    "loop": "could not be read",
    "pipe": "could not be read: it is a pipe, not a file",
    "shared file": "expected keys that only root and this user can change, got mode 0664",
    "shared folder": "got mode 0757",
    "link to shared": "got mode 0777",
    "link in shared": "got mode 0777",
}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("position", range(4), ids=["named", "variable", "user", "system"])
def test_a_setting_that_cannot_be_used_is_an_error_and_never_none(
    folder, places, key, tmp_path, monkeypatch, how, position
):
    """Wherever it stands: also with a good setting in every place after it, and with a bundle that is signed."""
    sign_bundle(folder, key)
    public = tmp_path / "keys" / "maker.pub"
    places[position] = places[position].parent / "set" / "keys" if position < 2 else places[position]
    places[position].parent.mkdir(parents=True, exist_ok=True)
    break_setting(places[position], how, public)
    for later in places[position + 1 :]:
        later.write_bytes(public.read_bytes())
    if position < 1:
        monkeypatch.setenv(VARIABLE, str(places[1]))
    if position == 1:
        monkeypatch.setenv(VARIABLE, str(places[1]))
    with pytest.raises(ArgumentError, match=BROKEN[how]) as raised:
        open_bundle(folder, trusted_keys=places[0] if position == 0 else None)
    assert reason(raised)


@pytest.mark.parametrize("value", ["", "/nowhere/keys", "nowhere"])
def test_a_variable_that_names_nothing_is_an_error(folder, places, monkeypatch, value):
    monkeypatch.setenv(VARIABLE, value)
    with pytest.raises(ArgumentError, match=f"^{VARIABLE}"):
        open_bundle(folder)


def test_a_setting_that_cannot_be_looked_up_is_an_error(folder, places, monkeypatch):
    real = Path.lstat

    def denied(self, **others):
        if self == places[2]:
            raise PermissionError(13, "Permission denied")
        return real(self, **others)

    monkeypatch.setattr(Path, "lstat", denied)
    with pytest.raises(ArgumentError, match="whether keys are trusted here could not be looked up: Permission denied"):
        open_bundle(folder)


def test_a_setting_of_another_user_is_an_error(trusted, monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    if os.getuid() == 0:
        os.chown(trusted, 4712, -1)
        with pytest.raises(ArgumentError, match="a file or folder of the user 4712"):
            find_trusted_keys()
    else:
        with pytest.raises(ArgumentError, match=f"a file or folder of the user {os.getuid()}"):
            find_trusted_keys()


def test_a_service_without_home_uses_the_setting_of_the_system(tmp_path, key, places, monkeypatch, no_home):
    assert find_trusted_keys() is None
    places[3].write_bytes((tmp_path / "keys" / "maker.pub").read_bytes())
    assert list(find_trusted_keys().keys) == [key.public.id]


def test_where_keys_are_trusted_only_their_bundles_open(path, trusted, key, other):
    with pytest.raises(BundleError, match=f"expected a bundle signed by a key of {VARIABLE}=.*, got one without"):
        open_bundle(path)
    sign_bundle(path, other, overwrite=True)
    with pytest.raises(BundleError, match=f"got one signed by {other.public.id}, which is none of them"):
        open_bundle(path)
    sign_bundle(path, key, overwrite=True)
    with open_bundle(path) as bundle:
        assert bundle.manifest.name == "tiny"


def test_keys_that_are_named_take_the_place_of_the_setting(tmp_path, path, trusted, key, other):
    sign_bundle(path, other, overwrite=True)
    with open_bundle(path, trusted_keys=tmp_path / "keys" / "other.pub"):
        pass
    sign_bundle(path, key, overwrite=True)
    with pytest.raises(BundleError, match="none of them"):
        open_bundle(path, trusted_keys=tmp_path / "keys" / "other.pub")


def test_a_bundle_that_was_opened_unchecked_is_still_checked_before_it_runs(path, trusted, key):
    for _ in range(2):
        bundle = open_bundle(path, check_signature=False)
        with pytest.raises(BundleError, match="got one without signature"):
            trusted_bundle(bundle)
        with pytest.raises(BundleError, match="the bundle was closed"):
            bundle.read("score.onnx")
    sign_bundle(path, key, overwrite=True)
    with open_bundle(path, check_signature=False) as bundle:
        assert trusted_bundle(bundle) is bundle


def test_without_the_package_nothing_passes_where_keys_are_trusted(path, trusted, key, hidden_cryptography):
    with pytest.raises(MissingExtra, match="cryptography"):
        open_bundle(path)


def test_without_the_package_bundles_open_where_none_are(path, key, places, hidden_cryptography):
    """A signature is then a file like any other: nobody asked for it to be checked."""
    with open_bundle(path):
        pass


def test_the_check_is_left_out_only_where_nothing_is_run():
    found = {
        path.relative_to(ROOT).as_posix()
        for path in product_modules(ROOT).values()
        if "check_signature=False" in path.read_text(encoding="utf-8")
    }
    bundle = {f"core/bundle/{name}.py" for name in ("bundle_command", "region_command", "writing")}
    # One sends it to a line, which checks it; the other shows what it has written itself.
    assert found == {*bundle, "runtime/line/swap/swap_command.py", "workflows/api.py"}


# Bundles that are being made.


def test_a_bundle_that_is_being_made_opens_by_its_digest(tmp_path, trusted, key):
    path = tmp_path / "new.flaw"
    with making():
        write_tiny_bundle(path)
        with open_bundle(path) as bundle:
            rewrite_manifest(path, msgspec.structs.replace(bundle.manifest, min_area_px=9))
        with open_bundle(path) as bundle:
            change_bundle(path, bundle.manifest, lambda read: msgspec.structs.replace(read, min_area_px=8))
        with making(), open_bundle(path) as bundle:
            assert bundle.manifest.min_area_px == 8
        # Another one in its place is not it.
        stranger = tmp_path / "stranger.flaw"
        stranger.mkdir()
        for file in sorted(path.rglob("*")):
            place = stranger / file.relative_to(path)
            place.parent.mkdir(exist_ok=True)
            if file.is_file():
                place.write_bytes(file.read_bytes())
        data = (stranger / MANIFEST).read_bytes()
        assert data.count(b'"category": "tiny"') == 1
        from flawscope.bundle.manifest import decode_manifest, encode_manifest

        manifest = decode_manifest(data, "b")
        (stranger / MANIFEST).write_bytes(encode_manifest(msgspec.structs.replace(manifest, name="stranger")))
        with pytest.raises(BundleError, match="got one without signature"):
            open_bundle(stranger)
    with pytest.raises(BundleError, match="got one without signature"):
        open_bundle(path)


def test_what_a_stranger_made_stays_a_strangers_after_a_change(folder, trusted, key):
    with making():
        with open_bundle(folder, check_signature=False) as bundle:
            manifest = bundle.manifest
        change_bundle(folder, manifest, lambda read: msgspec.structs.replace(read, min_area_px=8))
        with pytest.raises(BundleError, match="got one without signature"):
            open_bundle(folder)


def test_a_signed_bundle_is_still_ones_own_after_a_change(path, trusted, key):
    manifest = sign_bundle(path, key, overwrite=True)
    with making():
        change_bundle(path, manifest, lambda read: msgspec.structs.replace(read, min_area_px=8))
        with open_bundle(path) as bundle:
            assert bundle.manifest.min_area_px == 8
    with pytest.raises(BundleError, match="got one without signature"):
        open_bundle(path)


# Writers drop the signature and say so.


def test_a_changed_bundle_loses_its_signature_and_it_is_said(path, key, places, caplog):
    manifest = sign_bundle(path, key, overwrite=True)
    change_bundle(path, manifest, lambda read: msgspec.structs.replace(read, thresholds=tiny_thresholds()))
    with open_bundle(path) as bundle:
        assert bundle.signature_bytes is None
    assert caplog.messages == [
        f"{path}: the signature of {key.public.id} was dropped: sign again with flawscope bundle sign."
    ]


def test_a_change_that_changes_nothing_keeps_it(path, key, places, caplog):
    manifest = sign_bundle(path, key, overwrite=True)
    change_bundle(path, manifest, lambda read: read)
    with open_bundle(path) as bundle:
        assert bundle.signature_bytes is not None
    assert caplog.messages == []


def test_a_bundle_written_over_a_signed_one_is_unsigned_and_it_is_said(folder, key, places, caplog):
    sign_bundle(folder, key)
    write_tiny_bundle(folder)
    with open_bundle(folder) as bundle:
        assert bundle.signature_bytes is None
    assert [key.public.id in message for message in caplog.messages] == [True]
    caplog.clear()
    write_tiny_bundle(folder)
    assert caplog.messages == []


def test_a_writer_that_is_killed_before_it_removes_the_signature_leaves_an_unsigned_bundle(
    folder, key, places, monkeypatch, trusted, caplog
):
    manifest = sign_bundle(folder, key)
    real = Path.unlink

    def killed(self, **others):
        if self.name == SIGNATURE:
            raise KeyboardInterrupt
        real(self, **others)

    monkeypatch.setattr(Path, "unlink", killed)
    with pytest.raises(KeyboardInterrupt):
        change_bundle(folder, manifest, lambda read: msgspec.structs.replace(read, min_area_px=8))
    monkeypatch.setattr(Path, "unlink", real)
    assert (folder / SIGNATURE).exists()
    with pytest.raises(BundleError, match="got one without signature"):
        open_bundle(folder)
    monkeypatch.delenv(VARIABLE)
    with open_bundle(folder) as bundle:
        manifest = bundle.manifest
        assert manifest.min_area_px == 8
    # The next writer removes what was left, and has nothing to say: the bundle had no signature.
    change_bundle(folder, manifest, lambda read: msgspec.structs.replace(read, min_area_px=7))
    assert not (folder / SIGNATURE).exists()
    assert caplog.messages == []


def test_a_bundle_of_an_older_schema_keeps_its_bytes_when_it_is_signed_and_packed(folder, key, tmp_path):
    """Its manifest is not what this version would write: rewriting it would make another bundle of it."""
    from flawscope.bundle.manifest import SCHEMA

    fields = msgspec.json.decode((folder / MANIFEST).read_bytes())
    import hashlib

    def canonical(value):
        return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=1) + b"\n"

    fields |= {"schema": SCHEMA - 1, "digest": ""}
    fields["digest"] = hashlib.sha256(canonical(fields)).hexdigest()
    older = canonical(fields)
    (folder / MANIFEST).write_bytes(older)
    sign_bundle(folder, key)
    assert (folder / MANIFEST).read_bytes() == older
    with open_bundle(folder) as bundle:
        pack_bundle(bundle, tmp_path / "packed.flaw")
    with open_bundle(tmp_path / "packed.flaw", trusted_keys=tmp_path / "keys" / "maker.pub") as bundle:
        assert bundle.manifest_bytes == older


@pytest.mark.parametrize("named", ["", 3, b"keys"])
def test_a_name_that_is_none_is_never_the_current_folder(folder, tmp_path, monkeypatch, named):
    write_keys(tmp_path / "maker", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="trusted_keys: expected a file or folder of keys, got"):
        open_bundle(folder, trusted_keys=named)


def test_an_empty_option_is_an_error(folder, tmp_path, monkeypatch, capsys):
    write_keys(tmp_path / "maker", None)
    monkeypatch.chdir(tmp_path)
    assert cli.run(["bench", "--trusted-keys", "", str(folder)]) == 2
    assert "--trusted-keys: expected a path, got an empty text" in capsys.readouterr().err


@pytest.mark.parametrize("place", [".", "/"])
def test_a_folder_is_no_name_of_a_key(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ArgumentError, match="expected a file name for the key, got a folder"):
        write_keys(Path(place), None)

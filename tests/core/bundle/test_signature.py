"""Signatures of bundles: what was signed verifies, anything else is refused, and nobody's key is overwritten."""

from __future__ import annotations

import base64
import os
import shutil
import stat
import zipfile

import msgspec
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519 as theirs
from cryptography.hazmat.primitives.asymmetric import rsa
from error_lines import reason
from file_contents import files_of
from hypothesis import given
from hypothesis import strategies as st
from tiny_bundle import write_tiny_bundle

from flawscope.bundle import open_bundle, pack_bundle, sign_bundle
from flawscope.bundle.ed25519 import parse_public_keys, read_private_key, read_public_keys, write_keys
from flawscope.bundle.file_names import MANIFEST, SIGNATURE
from flawscope.bundle.signature import Signature, decode_signature, fits, sign_manifest
from flawscope.bundle.trust import check_signed_by
from flawscope.errors import ArgumentError, BundleError, MissingExtra, StorageError


def no_passphrase():
    raise AssertionError("asked for a passphrase")


def read_key(path):
    return read_private_key(path, no_passphrase)


@pytest.fixture(scope="module")
def key(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "maker"
    write_keys(path)
    return read_key(path)


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    path = tmp_path_factory.mktemp("keys") / "other"
    write_keys(path)
    return read_key(path)


@pytest.fixture(params=[False, True], ids=["folder", "packed"])
def path(request, folder, packed):
    return packed if request.param else folder


def signer_of(path, *keys):
    with open_bundle(path, check_signature=False) as bundle:
        return check_signed_by(
            bundle.manifest_bytes, bundle.manifest.digest, bundle.signature_bytes, str(path), {k.id: k for k in keys}
        )


def test_a_signed_bundle_opens_and_names_its_key(path, key, other):
    before = files_of(path)
    manifest = sign_bundle(path, key, overwrite=True)
    assert signer_of(path, other.public, key.public) == key.public.id
    after = files_of(path)
    assert after.pop(SIGNATURE)
    assert after == before
    with open_bundle(path) as bundle:
        assert bundle.manifest == manifest
    assert sorted(entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")) == []


def test_an_unsigned_one_and_one_of_another_key_are_told_apart(path, key, other):
    with pytest.raises(BundleError, match=f"expected a signature by {key.public.id}, got none"):
        signer_of(path, key.public)
    sign_bundle(path, other, overwrite=True)
    with pytest.raises(BundleError, match=f"by {key.public.id}, got one by {other.public.id}"):
        signer_of(path, key.public)
    # Signing again takes the place of the first signature.
    sign_bundle(path, key, overwrite=True)
    assert signer_of(path, key.public) == key.public.id


def test_cryptography_itself_verifies_what_was_signed(folder, key):
    """The format, from its description alone: for whoever checks bundles with other tools."""
    sign_bundle(folder, key)
    record = msgspec.json.decode((folder / SIGNATURE).read_bytes())
    public = theirs.Ed25519PublicKey.from_public_bytes(key.public.raw)
    signed = b"flawscope bundle manifest v1\0" + (folder / MANIFEST).read_bytes()
    public.verify(base64.b64decode(record["signature"]), signed)
    assert record["algorithm"] == "ed25519"
    assert record["digest"] == msgspec.json.decode((folder / MANIFEST).read_bytes())["digest"]


def test_the_signature_stays_when_a_bundle_is_packed(folder, key, tmp_path):
    sign_bundle(folder, key)
    packed = tmp_path / "packed.flaw"
    with open_bundle(folder) as bundle:
        pack_bundle(bundle, packed)
    assert signer_of(packed, key.public) == key.public.id
    assert files_of(packed) == files_of(folder)


def test_a_foreign_signature_is_no_signature_of_this_bundle(folder, tmp_path, key):
    """A signature is copied from another bundle: as it is, and with the digest made to fit."""
    other = tmp_path / "other.flaw"
    write_tiny_bundle(other, max_batch=3)
    sign_bundle(other, key)
    shutil.copyfile(other / SIGNATURE, folder / SIGNATURE)
    with pytest.raises(BundleError, match="got none"):
        signer_of(folder, key.public)
    with open_bundle(folder) as bundle:
        digest = bundle.manifest.digest
    record = decode_signature((other / SIGNATURE).read_bytes(), "other")
    forged = msgspec.json.encode(msgspec.structs.replace(record, digest=digest), order="sorted")
    (folder / SIGNATURE).write_bytes(msgspec.json.format(forged, indent=1) + b"\n")
    with pytest.raises(BundleError, match="that key did not sign this bundle"):
        signer_of(folder, key.public)


MANIFEST_BYTES = b'{"digest": "...", "name": "any bytes"}\n' * 20
DIGEST = "ab" * 32


@given(data=st.data(), of_signature=st.booleans())
def test_no_changed_byte_passes(key, data, of_signature):
    whole = sign_manifest(MANIFEST_BYTES, DIGEST, key)
    assert check_signed_by(MANIFEST_BYTES, DIGEST, whole, "b", {key.public.id: key.public}) == key.public.id
    changed = bytearray(whole if of_signature else MANIFEST_BYTES)
    place = data.draw(st.integers(0, len(changed) - 1))
    changed[place] ^= data.draw(st.integers(1, 255))
    manifest, signature = (MANIFEST_BYTES, bytes(changed)) if of_signature else (bytes(changed), whole)
    with pytest.raises(BundleError) as raised:
        check_signed_by(manifest, DIGEST, signature, "b", {key.public.id: key.public})
    assert reason(raised)


@given(cut=st.integers(0, 400), added=st.binary(max_size=20))
def test_no_truncated_or_longer_signature_is_read(key, cut, added):
    whole = sign_manifest(MANIFEST_BYTES, DIGEST, key)
    changed = whole[:cut] + added
    if changed == whole:
        return
    with pytest.raises(BundleError, match=r"^b: the signature (is broken|was changed)"):
        decode_signature(changed, "b")


@given(st.binary(max_size=400))
def test_any_bytes_as_signature_are_one_line(data):
    with pytest.raises(BundleError) as raised:
        decode_signature(data, "b")
    assert reason(raised).startswith("b: the signature is broken")


@pytest.mark.parametrize("length", [0, 63, 65])
def test_a_signature_of_another_length_is_refused(key, length):
    record = Signature("ed25519", key.public.id, DIGEST, base64.b64encode(bytes(length)).decode())
    data = msgspec.json.format(msgspec.json.encode(record, order="sorted"), indent=1) + b"\n"
    with pytest.raises(BundleError, match="the signature was changed"):
        decode_signature(data, "b")


def test_a_signature_of_other_text_is_none_of_a_manifest(key):
    """A key that also signs other things: a bare signature over the bytes does not count."""
    record = Signature("ed25519", key.public.id, DIGEST, base64.b64encode(key.sign(MANIFEST_BYTES)).decode())
    assert not fits(record, MANIFEST_BYTES, key.public)


def test_a_broken_signature_is_refused_although_no_key_is_trusted(path, key):
    if path.is_dir():
        (path / SIGNATURE).write_bytes(b"{}")
    else:
        with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(SIGNATURE, b"{}")
    with pytest.raises(BundleError, match=r"the signature is broken: .* Sign the bundle again"):
        open_bundle(path)
    # As the message says.
    sign_bundle(path, key, overwrite=True)
    assert signer_of(path, key.public) == key.public.id


def test_a_signature_of_megabytes_is_not_read(folder):
    (folder / SIGNATURE).write_bytes(b" " * 5000)
    with pytest.raises(BundleError, match=r"signature\.json: expected at most 4096 bytes, got more"):
        open_bundle(folder)


def test_no_file_of_a_bundle_is_called_as_its_signature(tmp_path):
    with pytest.raises(ArgumentError, match=r"other than manifest\.json and signature\.json"):
        write_tiny_bundle(tmp_path / "b", {SIGNATURE: b"{}"})


def test_a_failed_signing_leaves_the_bundle(path, key, monkeypatch):
    before = files_of(path)
    real = type(path).replace

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(path), "replace", full)
    with pytest.raises(StorageError, match="the disk is full"):
        sign_bundle(path, key, overwrite=True)
    monkeypatch.setattr(type(path), "replace", real)
    assert files_of(path) == before


# Files of keys.


def test_keys_are_written_once_and_only_for_their_owner(tmp_path):
    path = tmp_path / "new" / "maker"
    public = write_keys(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["maker", "maker.pub"]
    assert read_key(path).public == public == read_public_keys(path.with_name("maker.pub"))[0]
    assert len(public.id) == 32
    # In the format that everybody reads.
    pem = serialization.load_pem_private_key(path.read_bytes(), None)
    assert isinstance(pem, theirs.Ed25519PrivateKey)


@pytest.mark.parametrize("taken", ["maker", "maker.pub"])
@pytest.mark.parametrize("is_link", [False, True])
def test_no_key_is_ever_overwritten(tmp_path, taken, is_link):
    if is_link:
        (tmp_path / taken).symlink_to(tmp_path / "nowhere")
    else:
        (tmp_path / taken).write_bytes(b"mine")
    with pytest.raises(ArgumentError, match=f"{taken}: expected a new file for a key, got one that exists"):
        write_keys(tmp_path / "maker")
    assert [entry.name for entry in tmp_path.iterdir()] == [taken]


def test_a_key_that_appears_meanwhile_is_not_overwritten_either(tmp_path, monkeypatch):
    real = os.link

    def first(source, target):
        if target.name == "maker":
            target.write_bytes(b"theirs")
        real(source, target)

    monkeypatch.setattr(os, "link", first)
    with pytest.raises(ArgumentError, match="maker: expected a new file"):
        write_keys(tmp_path / "maker")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"maker": b"theirs"}


def test_an_encrypted_key_needs_its_passphrase(tmp_path):
    path = tmp_path / "maker"
    public = write_keys(path, "correct horse")
    assert read_private_key(path, lambda: "correct horse").public == public
    with pytest.raises(ArgumentError, match="got a wrong passphrase"):
        read_private_key(path, lambda: "battery staple")
    with pytest.raises(ArgumentError, match=r"expected a passphrase.*FLAWSCOPE_KEY_PASSPHRASE"):
        read_private_key(path, lambda: None)
    with pytest.raises(ArgumentError, match="at least one character"):
        write_keys(tmp_path / "second", "")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610])
def test_a_private_key_that_others_can_read_is_refused(tmp_path, mode):
    write_keys(tmp_path / "maker")
    (tmp_path / "maker").chmod(mode)
    with pytest.raises(ArgumentError, match=f"only its owner can read, got mode {mode:04o}"):
        read_key(tmp_path / "maker")


def pem_of(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


RSA = rsa.generate_private_key(65537, 2048)
ONE, TWO = (theirs.Ed25519PrivateKey.generate() for _ in range(2))
RSA_PRIVATE = RSA.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected a private key in PEM, got another file"),
        (pem_of(ONE), "expected a private key in PEM, got another file"),
        (RSA_PRIVATE, "expected an Ed25519 key, got RSAPrivateKey"),
        (b"x" * (65 << 10), "of at most 64 KiB, got more"),
    ],
    ids=["empty", "public", "rsa", "large"],
)
def test_other_files_are_no_private_keys(tmp_path, data, message):
    path = tmp_path / "file"
    path.write_bytes(data)
    path.chmod(0o600)
    with pytest.raises(ArgumentError, match=message) as raised:
        read_key(path)
    assert reason(raised)


def test_a_pipe_and_a_missing_file_are_no_keys(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="could not be read: it is a pipe, not a file"):
        read_public_keys(tmp_path / "pipe")
    with pytest.raises(ArgumentError, match="could not be read: No such file"):
        read_key(tmp_path / "missing")


def test_a_file_holds_several_keys_with_comments():
    data = b"# of the plant\n\n" + pem_of(ONE) + b"\n  # of the maker\n" + pem_of(TWO)
    found = parse_public_keys(data, "keys")
    assert [key.raw for key in found] == [key.public_key().public_bytes_raw() for key in (ONE, TWO)]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "expected at least one public key in PEM, got none"),
        (b"# none yet\n", "expected at least one public key in PEM, got none"),
        (pem_of(ONE) + b"ssh-ed25519 AAAA\n", "got the line 'ssh-ed25519 AAAA'"),
        (pem_of(ONE) + pem_of(TWO)[:-10], "got the line '-----BEGIN PUBLIC KEY-----'"),
        (pem_of(ONE).replace(b"MCow", b"MCox"), "expected a public key in PEM, got a broken one"),
        (pem_of(RSA), "expected an Ed25519 key, got RSAPublicKey"),
        (RSA_PRIVATE, "expected public keys alone, got a block PRIVATE KEY"),
        (pem_of(ONE) + b"\xff\xfe\n", "got the line"),
    ],
    ids=["empty", "comment", "ssh", "cut", "broken", "rsa", "private", "binary"],
)
def test_what_is_no_key_is_never_passed_over(data, message):
    with pytest.raises(ArgumentError, match=message) as raised:
        parse_public_keys(data, "keys")
    assert reason(raised).startswith("keys: ")


def test_without_the_package_keys_are_refused(tmp_path, key, hidden_cryptography):
    for act in (
        lambda: write_keys(tmp_path / "maker"),
        lambda: parse_public_keys(pem_of(ONE), "keys"),
        lambda: key.public.verify(bytes(64), b""),
        lambda: read_key(tmp_path / "maker"),
    ):
        with pytest.raises(MissingExtra, match=r"cryptography, which is not installed.*flawscope\[sign\]"):
            act()
    assert list(tmp_path.iterdir()) == []

"""`flawscope bundle keygen|sign`; `bundle verify` is in `bundle_command`."""

from __future__ import annotations

import getpass
import os
import sys
from pathlib import Path

import click

from flawscope.bundle.ed25519 import PUBLIC, read_private_key, write_keys
from flawscope.bundle.writing import sign_bundle
from flawscope.errors import ArgumentError
from flawscope.output_options import OVERWRITE
from flawscope.terminal import echo

_PASSPHRASE = "FLAWSCOPE_KEY_PASSPHRASE"


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, metavar="NAME", help="File to write.")
@click.option(
    "--passphrase",
    "asks",
    is_flag=True,
    help=f"Encrypt NAME; asks, unless {_PASSPHRASE} is set, which encrypts too.",
)
def keygen(out: Path, asks: bool) -> None:
    """Make a key that signs bundles: NAME, which only its owner can read, and NAME.pub, for whoever checks.

    Whoever has NAME can sign: keep it off the machines that run bundles. Existing files are never overwritten.
    """
    passphrase = os.environ.get(_PASSPHRASE)
    if passphrase is None and asks:
        if not sys.stdin.isatty():
            raise ArgumentError(f"--passphrase: expected a terminal to ask, got none. Set {_PASSPHRASE}.")
        passphrase = getpass.getpass("Passphrase: ")
        if getpass.getpass("Once more: ") != passphrase:
            raise ArgumentError("--passphrase: expected the same twice, got two that differ. Nothing was written.")
    key = write_keys(out, passphrase)
    echo(f"{out}: private key{'' if passphrase is None else ', encrypted'}; {out}{PUBLIC}: public key {key.id}")


@click.command()
@click.argument("path", metavar="BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--key",
    "key_file",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help=f"Private key. The passphrase of an encrypted one is asked for, or taken from {_PASSPHRASE}.",
)
@OVERWRITE
def sign(path: Path, key_file: Path, overwrite: bool) -> None:
    """Sign a bundle. Nothing else in it is changed; the signature of another key is replaced only if asked for."""
    key = read_private_key(key_file, _passphrase)
    manifest = sign_bundle(path, key, overwrite=overwrite)
    echo(f"{path}: signed by {key.public.id}, identity {manifest.digest}")


def _passphrase() -> str | None:
    if (set_before := os.environ.get(_PASSPHRASE)) is not None:
        return set_before
    if not sys.stdin.isatty():
        return None
    return getpass.getpass("Passphrase: ")

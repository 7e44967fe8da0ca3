"""The option of every command that writes: without it, nothing that exists is replaced."""

from __future__ import annotations

import click

OVERWRITE = click.option("--overwrite", is_flag=True, help="Replace an earlier output of the same kind.")
"""Parameter `overwrite`."""

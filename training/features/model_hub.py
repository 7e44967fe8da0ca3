"""Published weights of timm: from the local cache, or else from the model hub."""

from __future__ import annotations

import logging
import socket
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flawscope.errors import RunError
from flawscope.training.features.scattering import SCATTERING


def fetch_weights(name: str, configuration: Mapping[str, Any]) -> tuple[Path, str]:
    """Return timm's published safetensors file (never the pickled one), and where it is from.

    Args:
        name: Name of the timm model.
        configuration: timm's configuration of its weights.

    Raises:
        RunError: If there is none, or it cannot be downloaded.
    """
    # Imported here: runs with the scattering backbone or a local file need no hub client.
    import huggingface_hub

    repository = str(configuration.get("hf_hub_id") or "")
    advice = f"Give a safetensors file with --weights FILE, or use --backbone {SCATTERING}, which needs none."
    if not repository:
        raise RunError(f"backbone: timm publishes no weights for {name}. {advice}")
    logging.getLogger("huggingface_hub").setLevel(logging.CRITICAL)  # it logs a warning for every retry
    try:
        try:
            # The cache first: with it a machine without a network trains, and never waits for a timeout.
            path = huggingface_hub.hf_hub_download(repository, "model.safetensors", local_files_only=True)
        except OSError:
            _check_hub_is_there(huggingface_hub.constants.ENDPOINT)
            path = huggingface_hub.hf_hub_download(repository, "model.safetensors")
    except Exception as err:
        # The hub client raises its own and its HTTP library's families of errors; to the user they are one thing.
        raise RunError(
            f"backbone: the weights of {name} could not be downloaded from {repository} ({type(err).__name__}). "
            f"{advice}"
        ) from err
    return Path(path), f"hub {repository}"


def _check_hub_is_there(endpoint: str) -> None:
    """Raise OSError at once if the hub's name cannot be resolved: its client would retry for most of a minute."""
    if urllib.request.getproxies():
        return  # behind a proxy local name resolution says nothing: the proxy resolves names
    socket.getaddrinfo(urllib.parse.urlsplit(endpoint).hostname, 443)

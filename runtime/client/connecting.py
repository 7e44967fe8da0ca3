"""`connect`: an inspector whose graphs run on an inference server."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from flawscope.bundle import Bundle, trusted_bundle
from flawscope.bundle.opening import made_ready
from flawscope.runtime.backends.choice import Choice
from flawscope.runtime.backends.cores import OWN_CHOICE, Cores
from flawscope.runtime.backends.session import MakeDeviceHead
from flawscope.runtime.client.access import given_access
from flawscope.runtime.client.address import read_address, request_limit
from flawscope.runtime.client.session import ServedSession, open_on
from flawscope.runtime.inspector import Inspector


def connect(
    bundle: Bundle | Path | str,
    server: str,
    precision: str = "fp32",
    *,
    token: str | None = None,
    headers: Mapping[str, str] | None = None,
    ca: Path | str | None = None,
    request_timeout_s: float | None = None,
    strict: bool = False,
    timeout_s: float | None = None,
    trusted_keys: Path | str | None = None,
    threshold_overlay: Path | str | None = None,
    use_overlay: bool = True,
    product: str | None = None,
) -> Inspector:
    """Return an inspector whose graph runs on a server, as `flawscope export-triton` gave it to that.

    Images are read, prepared, cut into tiles and judged here, by the bundle and its thresholds; the server returns maps
    and scores. It must serve the bundle's very graph and give its golden scores before the first image. A server that
    is gone, slow, answers something else or numbers that are none makes a `fault` of the image; the next image finds
    it again, if it is there, after the same checks. `Inspector.stream` may have several requests under way.

    Args:
        bundle: A bundle, which the inspector then owns and closes, or the path of one.
        server: `grpc://HOST:PORT`, `http://HOST:PORT`, `grpcs` or `https` with TLS; a model that has another name than
            the bundle stands behind it: `grpc://HOST:PORT/MODEL`.
        precision: Precision of the graph.
        token: Where the bearer token of a gateway is, `env:NAME` or `file:PATH`, never the token itself; it is read for
            each request. None takes `FLAWSCOPE_TRITON_TOKEN`.
        headers: Name of a further header -> where its value is, as `token`. None takes `FLAWSCOPE_TRITON_HEADERS`.
        ca: File of certificates (PEM) that are trusted, in place of the system's; None takes `FLAWSCOPE_TRITON_CA`.
        request_timeout_s: Seconds that the server has for a request; None takes `FLAWSCOPE_TRITON_TIMEOUT`, or 10.
        strict: As in `Inspector.load`, as all that follow.
        timeout_s: Seconds until it must be ready.
        trusted_keys: File or folder of public keys.
        threshold_overlay: Threshold overlay in place of the one beside the bundle.
        use_overlay: Whether an overlay counts.
        product: Product whose own thresholds hold.

    Raises:
        ArgumentError: As `Inspector.load`, and if the server, its time or what it is sent is wrong; a
            token or header goes without TLS to this machine alone.
        BackendError: If the server does not answer or serves something else, or the method's score is not one graph.
        BundleError: As `Inspector.load`.
        LoadTimeout: As `Inspector.load`.
        MissingExtra: If `tritonclient` is not installed.
    """
    address, limit_s = read_address(server), request_limit(request_timeout_s)
    access = given_access(address, token, headers, ca)

    def open_session(
        opened: Bundle,
        graph: str,
        precision: str,
        backend: str,
        make_head: MakeDeviceHead | None = None,
        cores: Cores = OWN_CHOICE,
    ) -> ServedSession:
        return open_on(address, access, limit_s, opened, graph, precision)

    opened = trusted_bundle(bundle, trusted_keys)
    with made_ready(opened):
        return Inspector(
            opened,
            "triton",
            "graph",
            precision,
            strict=strict,
            timeout_s=timeout_s,
            threshold_overlay=threshold_overlay,
            use_overlay=use_overlay,
            product=product,
            open_session=open_session,
            choice=Choice("triton", f"served by {address}"),
        )

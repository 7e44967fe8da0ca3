"""The certificate of the line's HTTP server: whether it can be used, before anybody asks."""

from __future__ import annotations

from flawscope.errors import ArgumentError
from flawscope.runtime.line.line_config import HttpOptions


def check_tls(options: HttpOptions) -> None:
    """Refuse a certificate or key that the server could not use; none is needed where none is named.

    Raises:
        ArgumentError: If they cannot be read, or do not fit.
    """
    if options.tls is None:
        return
    import ssl

    cert, key = options.tls.cert, options.tls.key
    assert cert is not None
    try:
        # A key with a passphrase would ask for it on the terminal, which a service has not.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password=_no_passphrase)
    except OSError as err:  # ssl.SSLError is one
        raise ArgumentError(
            f"http.tls: expected a certificate ({cert}) and its key ({key}), got: {err}. Mend the files."
        ) from err


def _no_passphrase() -> str:
    raise ArgumentError("http.tls: expected a key without a passphrase, got one with it. Write it without.")

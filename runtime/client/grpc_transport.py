"""The KServe v2 protocol over gRPC by NVIDIA's `tritonclient`: one connection serves all threads."""

from __future__ import annotations

from typing import Any

from flawscope.arrays import UInt8Array
from flawscope.errors import DeviceError
from flawscope.runtime.client.access import Access, Sent
from flawscope.runtime.client.address import Address
from flawscope.runtime.client.served_model import OUTPUTS
from flawscope.runtime.client.transport import Answer, Failures, image_input, import_client

_RECONNECT_MS = 1000
"""Longest wait of gRPC before it tries a server again that was gone; its own default is two minutes, in which every
part would be a fault."""
_MOST_BYTES = 2**31 - 1
"""Largest message, Triton's own limit; gRPC's default of 4 MiB is less than a batch of maps."""


class GrpcTransport:
    """Asks over gRPC; see `Transport` for the contract. Time limits are gRPC's deadlines, of the whole call.

    Args:
        address: The server.
        access: What goes with each request, and which certificates are trusted.

    Raises:
        MissingExtra: If `tritonclient` is not installed.
    """

    def __init__(self, address: Address, access: Access) -> None:
        self._module, self._failures = import_client("grpc"), Failures(address, access)
        self._client = self._module.InferenceServerClient(
            address.place,
            ssl=address.is_secure,
            root_certificates=None if access.ca is None else str(access.ca),
            channel_args=[
                ("grpc.max_send_message_length", _MOST_BYTES),
                ("grpc.max_receive_message_length", _MOST_BYTES),
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", _RECONNECT_MS),
                # Channels of one process share connections and their waits: a new one would start with an old wait.
                ("grpc.use_local_subchannel_pool", 1),
                # As over HTTP: images and tokens go to the server alone, whatever `http_proxy` says.
                ("grpc.enable_http_proxy", 0),
            ],
        )

    def config(self, model: str, version: str, limit_s: float) -> dict[str, Any]:
        """Return the configuration of a model."""
        sent = self._failures.sent()
        try:
            answer = self._client.get_model_config(
                model, version, headers=dict(sent.headers), as_json=True, client_timeout=limit_s
            )
        except Exception as err:
            raise self._failure(err, limit_s, sent) from None
        config: dict[str, Any] = answer.get("config", {})
        return config

    def infer(self, model: str, version: str, request: str, images: UInt8Array, limit_s: float) -> Answer:
        """Return the answer to images."""
        sent = self._failures.sent()
        try:
            result = self._client.infer(
                model,
                [image_input(self._module, images)],
                model_version=version,
                outputs=[self._module.InferRequestedOutput(name) for name in OUTPUTS],
                request_id=request,
                headers=dict(sent.headers),
                client_timeout=limit_s,
            )
            said = result.get_response()
            outputs = {name: result.as_numpy(name) for name in OUTPUTS}
        except Exception as err:
            raise self._failure(err, limit_s, sent) from None
        return Answer(said.model_name, said.model_version, said.id, outputs)

    def _failure(self, err: Exception, limit_s: float, sent: Sent) -> DeviceError:
        told = getattr(err, "status", None)  # that of the answer; a channel that was closed meanwhile raises ValueError
        status = str((told() if callable(told) else None) or "").rpartition(".")[2]
        if status == "DEADLINE_EXCEEDED":
            return self._failures.too_late(limit_s)
        # Also of a gateway that answers a call of gRPC with 401 or 403 of HTTP.
        if status in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
            return self._failures.not_allowed(status, is_known=status == "PERMISSION_DENIED")
        message = getattr(err, "message", None)
        text = str((message() if callable(message) else None) or err or "") or type(err).__name__
        return self._failures.unreachable(text, sent) if status == "UNAVAILABLE" else self._failures.failed(text, sent)

    def close(self) -> None:
        """End the connection."""
        self._client.close()

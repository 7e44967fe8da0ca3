"""What stands in the place of an inference server: the KServe v2 protocol over HTTP and gRPC on loopback.

It serves the models of a repository as their `config.pbtxt` says, read by Triton's own schema, computes with ONNX
Runtime, and can be told to fail in every way that a client must notice. Import it after `importorskip` of
`tritonclient.grpc`, whose messages and service it uses.
"""

from __future__ import annotations

import json
import re
import ssl
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime
from google.protobuf import json_format, text_format
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc

from flawscope.runtime.backends.ort import session_options

TROUBLES = ("error", "nan", "infinite", "shape", "one score", "dtype", "missing", "version", "request")
"""Answers that are wrong: a status, numbers that are none, arrays of another shape, number or type, none, and those of
another model or to another request."""

_TYPES = {np.dtype(np.float32): "FP32", np.dtype(np.float64): "FP64"}
_URL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?(?:/(infer|config|ready))?")
_HEADER = "Inference-Header-Content-Length"


class Refused(Exception):
    """A request that is answered with an error."""


class Model:
    """One folder of a repository."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "config.pbtxt").read_text(encoding="utf-8")
        self.config = text_format.Parse(text, model_config_pb2.ModelConfig())
        (number,) = self.config.version_policy.specific.versions
        self.version = str(number)
        graph = folder / self.version / "model.onnx" / self.config.default_model_filename
        # With the options of our own sessions: what is compared is the way to the server and back.
        self.session = onnxruntime.InferenceSession(graph, session_options(), providers=["CPUExecutionProvider"])
        for sample in self.config.model_warmup:
            shape = (sample.batch_size, *sample.inputs["image"].dims)
            self.session.run(None, {"image": np.zeros(shape, np.uint8)})

    def infer(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Check a request against the configuration, run the graph, and reshape what it gives."""
        (given,) = self.config.input
        if images.dtype != np.uint8 or images.shape[1:] != tuple(given.dims):
            raise Refused(f"unexpected shape for input '{given.name}': {list(images.shape)}")
        if not 1 <= len(images) <= self.config.max_batch_size:
            raise Refused(f"inference request batch-size must be <= {self.config.max_batch_size}")
        names = [output.name for output in self.config.output]
        found = dict(zip(names, self.session.run(names, {given.name: images}), strict=True))
        return {output.name: found[output.name].reshape(-1, *output.dims) for output in self.config.output}


class KserveStandIn:
    """Serves a repository on two free ports of loopback until it is closed; with `tls`, certificate and key, over TLS.

    Attributes:
        trouble: One of `TROUBLES`, or empty.
        delay_s: Seconds that an inference takes more.
        drops: Requests whose connection is ended without an answer, from now on.
        trickles: Whether HTTP answers come a byte at a time, the time of `delay_s` between.
        wants: Headers that each request must have, as a gateway before the server may want it.
        forbids: Whether a gateway knows who asks, and does not let him.
        tells: Whether errors repeat the headers of their request, as a gateway for developers does.
        asked: Sizes of the batches that were asked for.
        most_at_once: Most inferences that were under way at the same time.
    """

    def __init__(
        self, repository: Path, grpc_port: int = 0, http_port: int = 0, tls: tuple[Path, Path] | None = None
    ) -> None:
        self.repository = repository
        self.trouble, self.delay_s, self.drops, self.trickles = "", 0.0, 0, False
        self.wants: dict[str, str] = {}
        self.forbids = self.tells = False
        self.asked: list[int] = []
        self.most_at_once = self._at_once = 0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self.load()
        self._grpc = grpc.server(futures.ThreadPoolExecutor(16), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_Service(self), self._grpc)
        place, self._secure = f"127.0.0.1:{grpc_port}", "s" if tls else ""
        if tls is None:
            self.grpc_port = self._grpc.add_insecure_port(place)
        else:
            certificate, key = (path.read_bytes() for path in tls)
            self.grpc_port = self._grpc.add_secure_port(place, grpc.ssl_server_credentials([(key, certificate)]))
        self._grpc.start()
        self._http = _Server(("127.0.0.1", http_port), _Handler)
        self._http.stand_in = self
        if tls is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*tls)
            self._http.socket = context.wrap_socket(self._http.socket, server_side=True)
        self.http_port = self._http.server_address[1]
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def load(self) -> None:
        """Load the models as they lie in the repository now."""
        self.models = {path.parent.name: Model(path.parent) for path in self.repository.glob("*/config.pbtxt")}

    def url(self, protocol: str) -> str:
        """Return the address for a client."""
        return f"{protocol}{self._secure}://127.0.0.1:{self.grpc_port if protocol == 'grpc' else self.http_port}"

    def close(self) -> None:
        """Be gone; closing twice is harmless."""
        self._stopped.set()
        self._grpc.stop(0).wait()
        self._http.shutdown()
        self._http.server_close()
        self._http.end_connections()

    def __enter__(self) -> KserveStandIn:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def model(self, name: str, version: str) -> Model:
        """Return a model, or raise Refused where there is none of this version."""
        model = self.models.get(name)
        if model is None or version not in ("", model.version):
            raise Refused(f"Request for unknown model: '{name}' version {version} is not found")
        return model

    def drop(self) -> bool:
        """Return whether this request gets no answer."""
        with self._lock:
            is_dropped = self.drops > 0
            self.drops -= is_dropped
        return is_dropped

    def answer(self, model: Model, images: np.ndarray, request: str) -> tuple[str, str, dict[str, np.ndarray]]:
        """Return version, request and outputs of an answer, wrong in the way that was asked for."""
        with self._lock:
            self.asked.append(len(images))
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if self.delay_s and not self.trickles:
                self._stopped.wait(self.delay_s)
            outputs = {name: array.copy() for name, array in model.infer(images).items()}
        finally:
            with self._lock:
                self._at_once -= 1
        trouble, version = self.trouble, model.version
        if trouble == "error":
            raise Refused("onnx runtime error 6: out of memory")
        if trouble in ("nan", "infinite"):
            outputs["score"][:] = np.nan if trouble == "nan" else np.inf
        elif trouble == "shape":
            outputs["anomaly_map"] = outputs["anomaly_map"][:, 1:]
        elif trouble == "one score":
            outputs["score"] = np.repeat(outputs["score"], 2, axis=0)
        elif trouble == "dtype":
            outputs["score"] = outputs["score"].astype(np.float64)
        elif trouble == "missing":
            del outputs["score"]
        elif trouble == "version":
            version = str(int(version) + 1)
        elif trouble == "request":
            request += "0"
        return version, request, outputs

    def status(self, headers: dict[str, str]) -> int:
        """Return what a gateway says to the headers of a request, their names in small letters: 200 to let it pass."""
        if any(headers.get(name) != value for name, value in self.wants.items()):
            return 401
        return 403 if self.forbids else 200

    def said(self, text: str, headers: dict[str, str]) -> str:
        """Return the text of an error."""
        return f"{text} {json.dumps(headers)}" if self.tells else text

    def wait(self, seconds: float) -> None:
        """Wait, at most until it is closed."""
        self._stopped.wait(seconds)


class _Service(service_pb2_grpc.GRPCInferenceServiceServicer):
    def __init__(self, stand_in: KserveStandIn) -> None:
        self._stand_in = stand_in

    def ModelConfig(self, request: Any, context: Any) -> Any:
        model = self._find(request.name, request.version, context)
        return service_pb2.ModelConfigResponse(config=model.config)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        model = self._find(request.model_name, request.model_version, context)
        (given,) = request.inputs
        images = np.frombuffer(request.raw_input_contents[0], np.uint8).reshape(list(given.shape))
        try:
            version, number, outputs = self._stand_in.answer(model, images, request.id)
        except Refused as err:
            context.abort(grpc.StatusCode.INTERNAL, self._stand_in.said(str(err), _metadata(context)))
        answer = service_pb2.ModelInferResponse(model_name=request.model_name, model_version=version, id=number)
        for name in (output.name for output in request.outputs):
            if name in outputs:
                array = outputs[name]
                answer.outputs.add(name=name, datatype=_TYPES[array.dtype], shape=array.shape)
                answer.raw_output_contents.append(array.tobytes())
        return answer

    def _find(self, name: str, version: str, context: Any) -> Model:
        if self._stand_in.drop():
            context.abort(grpc.StatusCode.UNAVAILABLE, "Socket closed")
        headers = _metadata(context)
        if (status := self._stand_in.status(headers)) != 200:
            code = {401: grpc.StatusCode.UNAUTHENTICATED, 403: grpc.StatusCode.PERMISSION_DENIED}[status]
            context.abort(code, self._stand_in.said("not you", headers))
        try:
            return self._stand_in.model(name, version)
        except Refused as err:
            context.abort(grpc.StatusCode.NOT_FOUND, self._stand_in.said(str(err), headers))
        raise AssertionError  # abort raises


def _metadata(context: Any) -> dict[str, str]:
    return {entry.key: str(entry.value) for entry in context.invocation_metadata()}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    stand_in: KserveStandIn

    def __init__(self, *args: Any) -> None:
        self._open: set[Any] = set()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients go away, that is what is tested."""

    def end_connections(self) -> None:
        for connection in list(self._open):
            self.shutdown_request(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else a body waits 40 ms for the client's word that its headers have come

    def log_message(self, *args: Any) -> None:
        """Print nothing."""

    def do_GET(self) -> None:
        stand_in, match = self.server.stand_in, _URL.fullmatch(self.path)  # type: ignore[attr-defined]
        if stand_in.drop():
            self.close_connection = True
            return
        if self._turned_away():
            return
        try:
            if match is None or match[3] != "config":
                raise Refused(f"not found: {self.path}")
            model = stand_in.model(match[1], match[2] or "")
            self._send(200, json_format.MessageToJson(model.config, preserving_proto_field_name=True).encode())
        except Refused as err:
            self._error(400, err)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        stand_in, match = self.server.stand_in, _URL.fullmatch(self.path)  # type: ignore[attr-defined]
        if stand_in.drop():
            self.close_connection = True
            return
        if self._turned_away():
            return
        try:
            if match is None or match[3] != "infer":
                raise Refused(f"not found: {self.path}")
            model = stand_in.model(match[1], match[2] or "")
            length = int(self.headers[_HEADER])
            asked = json.loads(body[:length])
            (given,) = asked["inputs"]
            assert given["parameters"]["binary_data_size"] == len(body) - length
            images = np.frombuffer(body[length:], np.uint8).reshape(given["shape"])
            version, number, outputs = stand_in.answer(model, images, asked["id"])
        except Refused as err:
            self._error(500, err)
            return
        told = [
            {
                "name": entry["name"],
                "datatype": _TYPES[outputs[entry["name"]].dtype],
                "shape": list(outputs[entry["name"]].shape),
                "parameters": {"binary_data_size": outputs[entry["name"]].nbytes},
            }
            for entry in asked["outputs"]
            if entry["name"] in outputs
        ]
        answer = {"model_name": match[1], "model_version": version, "id": number, "outputs": told}
        head = json.dumps(answer).encode()
        self._send(200, head + b"".join(outputs[entry["name"]].tobytes() for entry in told), len(head))

    def _headers(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}

    def _turned_away(self) -> bool:
        stand_in = self.server.stand_in  # type: ignore[attr-defined]
        if (status := stand_in.status(self._headers())) == 200:
            return False
        self._send(status, f"<html>{stand_in.said('not you', self._headers())}</html>".encode())
        return True

    def _error(self, status: int, err: Refused) -> None:
        stand_in = self.server.stand_in  # type: ignore[attr-defined]
        self._send(status, json.dumps({"error": stand_in.said(str(err), self._headers())}).encode())

    def _send(self, status: int, body: bytes, head: int | None = None) -> None:
        stand_in = self.server.stand_in  # type: ignore[attr-defined]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Content-Type", "application/json" if head is None else "application/octet-stream")
        if head is not None:
            self.send_header(_HEADER, str(head))
        self.end_headers()
        if not stand_in.trickles or head is None:
            self.wfile.write(body)
            return
        for place in range(len(body)):
            self.wfile.write(body[place : place + 1])
            stand_in.wait(stand_in.delay_s)


def until(condition: Any, limit_s: float = 30.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, "it never came true"
        time.sleep(0.01)


def main() -> None:
    """Serve the repository that is named, print the ports as JSON, and stop when the standard input ends."""
    with KserveStandIn(Path(sys.argv[1])) as server:
        sys.stdout.write(json.dumps({"grpc": server.grpc_port, "http": server.http_port}) + "\n")
        sys.stdout.flush()
        sys.stdin.read()


if __name__ == "__main__":
    main()

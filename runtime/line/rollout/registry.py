"""A repository of an OCI registry, by the distribution specification 1.1: pull by tag or digest, push, and tokens."""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import re
from collections.abc import Callable, Iterator
from typing import IO
from urllib.parse import urlencode, urlsplit
from urllib.request import parse_http_list, parse_keqv_list

from flawscope.errors import ArgumentError
from flawscope.runtime.line.rollout.http_requests import Answer, Requests
from flawscope.runtime.line.rollout.place import check_manifest, is_digest
from flawscope.runtime.line.rollout.registry_checks import mistakes_of
from flawscope.runtime.line.rollout.release import (
    MANIFEST_TYPE,
    MOST_MANIFEST_BYTES,
    Descriptor,
    SourceAway,
    digest_of,
)
from flawscope.runtime.line.rollout.table import PLAIN, SECURE, RegistryReleases
from flawscope.secrets import is_this_machine, read_secret, read_token, without_secrets
from flawscope.text import NOT_JSON, printable

_SMALL_BYTES = 1 << 16
_MOST_TAGS = 10_000
_PAGES = 100


class Registry:
    """A repository of a registry; a `Place`.

    Args:
        options: Its options.

    Raises:
        ArgumentError: If its address, certificates or secrets cannot be used.
    """

    def __init__(self, options: RegistryReleases) -> None:
        self._options = options
        is_plain = options.url.startswith(PLAIN)
        rest = options.url.removeprefix(PLAIN).removeprefix(SECURE)
        host, _, self._repository = rest.partition("/")
        self._base = f"{'http' if is_plain else 'https'}://{host}"
        self.name = f"{PLAIN if is_plain else SECURE}{host}/{self._repository}"
        for _, mistake in mistakes_of(options):
            raise ArgumentError(f"registry: {mistake}")
        self._requests = Requests(self._base, self.name, options.ca, options.hosts, options.timeout_s)
        self._authorization = ""
        self._secrets: set[str] = set()

    def manifest(self, reference: str) -> bytes:
        """Return the bytes of a manifest; see `Place`."""
        with self._asked("GET", f"manifests/{reference}", {"Accept": MANIFEST_TYPE}) as answer:
            if answer.status == 404:
                raise SourceAway(f"{self.name}: expected a release with the tag {reference}, got none. Publish one.")
            self._check(answer, 200)
            data = answer.body(MOST_MANIFEST_BYTES)
            said = answer.headers.get("Docker-Content-Digest", "")
        check_manifest(data, reference, self.name)
        if is_digest(said) and said != digest_of(data):
            raise SourceAway(
                f"{self.name}: expected the manifest that it names, {said[:19]}…, got {digest_of(data)[:19]}…: it was "
                "changed on the way. Look at the registry."
            )
        return data

    @contextlib.contextmanager
    def blob(self, blob: Descriptor, offset: int = 0) -> Iterator[tuple[int, Iterator[bytes]]]:
        """Return a block with a blob piece by piece; see `Place`."""
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        with self._asked("GET", f"blobs/{blob.digest}", headers, size=blob.size) as answer:
            if answer.status == 404:
                raise SourceAway(f"{self.name}: expected the blob {blob.digest[:19]}…, got none. Publish it again.")
            if answer.status == 206:
                if not answer.headers.get("Content-Range", "").startswith(f"bytes {offset}-"):
                    raise SourceAway(
                        f"{self.name}: expected the bytes from {offset:,} on, got others. It is tried again."
                    )
            else:
                self._check(answer, 200)
                offset = 0
            # One byte more than it has: a body that does not end must not look like one that does.
            yield offset, answer.pieces(blob.size - offset + 1)

    def tags(self) -> list[str]:
        """Return all tags, sorted; at most 10,000 of them."""
        found: list[str] = []
        path = "tags/list?n=1000"
        for _ in range(_PAGES):
            with self._asked("GET", path, {}) as answer:
                if answer.status == 404:
                    break
                self._check(answer, 200)
                page, link = answer.body(MOST_MANIFEST_BYTES), answer.headers.get("Link", "")
            try:
                found += [str(tag) for tag in json.loads(page).get("tags") or ()]
            except (*NOT_JSON, ValueError, AttributeError, TypeError):
                raise SourceAway(f"{self.name}: expected a list of tags, got another text. Is it a registry?") from None
            last = re.search(r"[?&]last=([A-Za-z0-9._%-]+)", link)
            if last is None or len(found) >= _MOST_TAGS:
                break
            path = f"tags/list?n=1000&last={last[1]}"
        return sorted(set(found[:_MOST_TAGS]))

    def has_blob(self, blob: Descriptor) -> bool:
        """Return whether a blob is there."""
        with self._asked("HEAD", f"blobs/{blob.digest}", {}, actions="pull,push") as answer:
            return answer.status == 200

    def put_blob(self, blob: Descriptor, file: IO[bytes]) -> None:
        """Store a blob in one piece; see `Place`."""
        with self._asked("POST", "blobs/uploads/", {"Content-Length": "0"}, actions="pull,push") as answer:
            self._check(answer, 202)
            place = answer.headers.get("Location", "")
        url = self._requests.followed(f"{self._base}/v2/{self._repository}/blobs/uploads/", place)
        url += ("&" if urlsplit(url).query else "?") + urlencode({"digest": blob.digest})
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(blob.size)}
        if self._authorization and self._requests.is_own(url):
            headers["Authorization"] = self._authorization
        with self._requests.asked("PUT", url, headers, body=file, size=blob.size) as answer:
            self._check(answer, 201)

    def put_manifest(self, tag: str, data: bytes) -> None:
        """Store a manifest, and give it a tag; see `Place`."""
        headers = {"Content-Type": MANIFEST_TYPE}
        with self._asked("PUT", f"manifests/{tag}", headers, body=data, actions="pull,push") as answer:
            self._check(answer, 201)

    def close(self) -> None:
        """End what waits, from another thread."""
        self._requests.close()

    @contextlib.contextmanager
    def _asked(
        self,
        method: str,
        path: str,
        headers: dict[str, str],
        *,
        size: int = 0,
        body: bytes | None = None,
        actions: str = "pull",
    ) -> Iterator[Answer]:
        """Yield an answer of the repository; where it asks who asks, it is told, once."""
        url = f"{self._base}/v2/{self._repository}/{path}"
        sent = dict(headers)
        if self._authorization:
            sent["Authorization"] = self._authorization
        with self._requests.asked(method, url, sent, body=body, size=size) as answer:
            if answer.status != 401:
                yield answer
                return
            asks = answer.headers.get_all("WWW-Authenticate") or []
        self._authorization = self._answer_to(asks, actions)
        sent["Authorization"] = self._authorization
        with self._requests.asked(method, url, sent, body=body, size=size) as answer:
            yield answer

    def _answer_to(self, asks: list[str], actions: str) -> str:
        """Return the header by which a registry knows who asks; `asks` are those by which it wants to know it."""
        options = self._options
        kinds = {ask.partition(" ")[0].lower(): ask.partition(" ")[2] for ask in asks}
        if "bearer" in kinds:
            if options.token is not None:
                return f"Bearer {self._secret(options.token, read_token)}"
            return f"Bearer {self._token(_fields(kinds['bearer']), actions)}"
        if "basic" in kinds and options.user is not None:
            return self._basic()
        raise SourceAway(
            f"{self.name}: expected an answer, got 401: it asks who asks. Set user and password, or a token."
        )

    def _token(self, fields: dict[str, str], actions: str) -> str:
        """Ask the token server of the registry for a token."""
        wanted = {"service": fields.get("service", ""), "scope": f"repository:{self._repository}:{actions}"}
        query = urlencode({name: value for name, value in wanted.items() if value})
        # Before the password goes there: anybody could be named.
        url = self._requests.followed(self._base, fields.get("realm", "/"))
        url += ("&" if urlsplit(url).query else "?") + query
        if self._options.user is not None and not _is_safe(url):
            raise SourceAway(f"{self.name}: expected a token server with https, got one without. Look at it.")
        headers = {} if self._options.user is None else {"Authorization": self._basic()}
        with self._requests.asked("GET", url, headers) as answer:
            self._check(answer, 200)
            data = answer.body(_SMALL_BYTES)
        try:
            said = json.loads(data)
            token = said.get("token") or said.get("access_token")
        except (ValueError, AttributeError, RecursionError):
            token = None
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise SourceAway(f"{self.name}: expected a token of its token server, got something else. Look at it.")
        return token

    def _basic(self) -> str:
        password = "" if self._options.password is None else self._secret(self._options.password)
        coded = base64.b64encode(f"{self._options.user}:{password}".encode()).decode()
        self._secrets.add(coded)
        return f"Basic {coded}"

    def _secret(self, place: str, read: Callable[[str], str] = read_secret) -> str:
        try:
            secret = read(place)
        except ArgumentError as err:  # it may be written while the line runs
            raise SourceAway(f"{self.name}: {err}") from None
        self._secrets.add(secret)
        return secret

    def _check(self, answer: Answer, status: int) -> None:
        """Raise unless an answer has a status."""
        if answer.status == status:
            return
        if answer.status in (401, 403):
            raise SourceAway(
                f"{self.name}: expected status {status}, got {answer.status}: it does not let us. Who may?"
            )
        said = ""
        with contextlib.suppress(OSError, http.client.HTTPException):
            said = answer.body(_SMALL_BYTES).decode("utf-8", "replace")
        # It may send back what it was sent. Before the text is cut: a part of a secret is not found any more.
        said = without_secrets(said, self._authorization.partition(" ")[2], *self._secrets)
        raise SourceAway(
            f"{self.name}: expected status {status}, got {answer.status} {printable(said[:300])}".rstrip()
            + ". Look at the registry."
        )


def _is_safe(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" or is_this_machine(parts.hostname or "")


def _fields(text: str) -> dict[str, str]:
    with contextlib.suppress(ValueError, IndexError):
        return parse_keqv_list(parse_http_list(text))
    return {}

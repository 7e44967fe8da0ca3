"""Answers of the HTTP interface: JSON, and refusals in one sentence."""

from __future__ import annotations

from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.refusal import Refusal
from flawscope.text import encode_json


def json_answer(value: Any, status: int = 200) -> Response:
    """Return an answer in JSON."""
    return Response(encode_json(value), status, media_type="application/json")


def refusal_answer(refusal: Refusal) -> Response:
    """Return the answer to a request that is refused."""
    answer = json_answer({"error": str(refusal)}, refusal.status)
    # What was not read of a body that is refused must not be taken for the next request.
    answer.headers["connection"] = "close"
    return answer


async def refused(request: Request, refusal: Exception) -> Response:
    """Answer a request that was refused by one of ours."""
    assert isinstance(refusal, Refusal)
    return refusal_answer(refusal)


async def unheard(request: Request, error: Exception) -> Response:
    """Answer a client that has left; nobody reads it."""
    return Response(status_code=400)


async def no_route(request: Request, error: Exception) -> Response:
    """Answer a request for which there is no path or method."""
    assert isinstance(error, HTTPException)
    words = {404: "expected a path of the line, got another one.", 405: "expected another method for this path."}
    return refusal_answer(Refusal(error.status_code, words.get(error.status_code, error.detail)))


async def failed(request: Request, error: Exception) -> Response:
    """Answer where the line says why it could not."""
    return refusal_answer(Refusal(503, str(error)))


async def crashed(request: Request, error: Exception) -> Response:
    """Answer where nobody foresaw what happened."""
    # Starlette raises the error again afterwards, and the server writes it to the log.
    return refusal_answer(Refusal(500, "the line could not answer. Its log says why."))

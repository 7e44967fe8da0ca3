"""Logging in and out, and who one is."""

from __future__ import annotations

import asyncio
import math

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from flawscope.runtime.line.http.access import asker_of
from flawscope.runtime.line.http.answers import json_answer, refusal_answer
from flawscope.runtime.line.http.bodies import read_body
from flawscope.runtime.line.http.context import SMALL_BYTES, Api, Context, read_nothing
from flawscope.runtime.line.http.guard import content_type
from flawscope.runtime.line.http.query import Query
from flawscope.runtime.line.http.refusal import Refusal
from flawscope.runtime.line.users.line_users import LoginRefused
from flawscope.runtime.line.users.roles import NOBODY, User
from flawscope.text import NOT_JSON


class _Login(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: str
    password: str


def routes(context: Context) -> list[Api]:
    """Return the routes of users."""
    users, access = context.access.users, context.access

    def says(user: User, csrf: str) -> Response:
        has_users = users is None or users.has_users
        return json_answer({"name": user.name, "role": user.role, "csrf": csrf, "has_users": has_users})

    async def me(request: Request) -> Response:
        Query(request).end()
        asker = asker_of(request)
        return says(asker.user, asker.csrf)

    async def login(request: Request) -> Response:
        Query(request).end()
        said = await _said(request)
        if users is None or not users.has_users:
            raise Refusal(409, "expected a line with users, got one without. Ask without logging in.")
        asker = asker_of(request)
        try:
            address = request.client.host if request.client else ""
            value, session, user = await asyncio.wrap_future(users.login(said.name, said.password, address))
        except LoginRefused as refused:
            answer = refusal_answer(Refusal(429 if refused.wait_s else 401, str(refused)))
            if refused.wait_s:
                answer.headers["retry-after"] = str(math.ceil(refused.wait_s))
            return answer
        if asker.cookie:
            await context.call(users.logout, asker)
        answer = says(user, session.csrf)
        answer.set_cookie(access.cookie, value, path="/", secure=access.is_secure, httponly=True, samesite="strict")
        return answer

    async def logout(request: Request) -> Response:
        Query(request).end()
        await read_nothing(request)
        asker = asker_of(request)
        if users is not None and asker.cookie:
            await context.call(users.logout, asker)
        answer = says(NOBODY if asker.cookie else asker.user, "")
        answer.delete_cookie(access.cookie, path="/", secure=access.is_secure, httponly=True, samesite="strict")
        return answer

    return [
        Api("GET", "/api/v1/me", "", me),
        Api("POST", "/api/v1/login", "", login),
        Api("POST", "/api/v1/logout", "machine", logout),
    ]


async def _said(request: Request) -> _Login:
    body = await read_body(request.receive, SMALL_BYTES)
    try:
        if content_type(request.scope) != "application/json":
            raise msgspec.DecodeError
        return msgspec.json.decode(body, type=_Login)
    except NOT_JSON:
        # Not what was got: it may be a password.
        raise Refusal(400, 'expected JSON with "name" and "password", got something else. Send both.') from None

"""The routes of the HTTP interface: a row for each file of them."""

from __future__ import annotations

from collections.abc import Callable

from flawscope.runtime.line.http.context import Api, Context
from flawscope.runtime.line.http.routes import audit, control, images, page, records, review, state, triggers, users

ROUTES: tuple[Callable[[Context], list[Api]], ...] = (
    state.routes,
    records.routes,
    triggers.routes,
    control.routes,
    images.routes,
    review.routes,
    users.routes,
    audit.routes,
    page.routes,
)
"""Each returns its routes."""

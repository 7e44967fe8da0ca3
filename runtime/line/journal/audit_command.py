"""`flawscope line audit verify|events`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from flawscope.terminal import echo, echo_json

_PLACE = click.argument("place", metavar="CONFIG", type=click.Path(path_type=Path))


@click.command()
@_PLACE
@click.option(
    "--heads",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Heads that were kept elsewhere, such as the lines of a sink on another machine.",
)
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="FILE", help="Public key of the device that was kept elsewhere."
)
@click.option(
    "--sealed",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Sealed files that were moved away from the state folder.",
)
@click.option("--json", "as_json", is_flag=True, help="What was found as one JSON object.")
def verify(place: Path, heads: Path | None, key: Path | None, sealed: Path | None, as_json: bool) -> int:
    """Verify the journal of a line and its sealed files, also while it runs; exit status 1 if anything was changed.

    CONFIG is the YAML file of the line, or its state folder, or a copy of that. The chain alone shows rows that were
    changed, deleted or inserted. Whoever computes all of it anew, with the device's key, is found by heads alone that
    had left the machine before: name them with --heads, and the public key with --key.
    """
    from flawscope.runtime.line.journal.verify import verify as verify_journal

    found = verify_journal(_state_of(place), heads, key=key, sealed=sealed)
    if as_json:
        echo_json(
            {
                "is_whole": found.is_whole,
                "wrong_link": found.wrong_link,
                "wrong": found.wrong,
                "line": found.line,
                "first_link": found.first_link,
                "last_link": found.last_link,
                "parts": found.parts,
                "events": found.events,
                "sealed": found.sealed,
                "heads": found.heads,
                "signed": found.signed,
                "missing": found.missing,
                "notes": found.notes,
            }
        )
    else:
        for line in found.lines():
            echo(line)
    return 0 if found.is_whole else 1


@click.command()
@_PLACE
@click.option("--after", type=click.IntRange(min=0), default=0, metavar="LINK", help="Only events behind this entry.")
@click.option("--last", type=click.IntRange(min=1), default=50, show_default=True, help="Most events; the last ones.")
@click.option("--actor", metavar="NAME", help="Only what this user did.")
@click.option("--action", metavar="WORD", help="Only this action, such as login or user_added.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def events(place: Path, after: int, last: int, actor: str | None, action: str | None, as_json: bool) -> None:
    """List who did what on a line, the last event at the end, also while it runs.

    CONFIG is the YAML file of the line, or its state folder, or a copy of that.
    """
    from flawscope.runtime.line.journal.reader import JournalReader

    reader = JournalReader(_state_of(place))
    try:
        found = _last_events(reader, after, last, {"actor": actor, "action": action})
    finally:
        reader.close()
    for event in found:
        if as_json:
            echo_json(event)
        else:
            echo(_line(event))


def _last_events(reader: Any, after: int, most: int, wanted: dict[str, str | None]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    before: int | None = None
    while len(found) < most and (page := reader.events(after, 1000, before=before, newest_first=True)):
        before = page[-1]["link"]
        found += [one for one in page if all(value in (None, one[name]) for name, value in wanted.items())]
    return found[:most][::-1]


def _line(event: dict[str, Any]) -> str:
    who = f"{event['actor']} ({event['role']})" if event["role"] else event["actor"]
    words = [f"{event['link']:>8}  {event['utc']}  {who}: {event['action']}"]
    if event["object"]:
        words.append(event["object"])
    if event["old"] or event["new"]:
        words.append(f"{event['old'] or '-'} -> {event['new'] or '-'}")
    if event["reason"]:
        words.append(f"({event['reason']})")
    return " ".join(words)


def _state_of(place: Path) -> Path:
    """Return the state folder that a configuration names, or the folder itself."""
    from flawscope.runtime.line.config_file import read_config

    return place if place.is_dir() else read_config(place).config.line.state

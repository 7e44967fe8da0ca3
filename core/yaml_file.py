"""YAML that people write by hand, read with care: plain values alone, every name once, nothing that takes minutes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import msgspec

from flawscope.errors import ArgumentError, MissingExtra

_MOST_LEVELS = 16
_STRING = "tag:yaml.org,2002:str"


def read_yaml(data: bytes, place: str, *, feature: str, extra: str) -> dict[str, Any]:
    """Return the mapping that a YAML file holds; an empty file is an empty mapping.

    Args:
        data: The bytes of the file.
        place: What the file is called in messages.
        feature: What needs PyYAML, as a noun phrase.
        extra: The extra of flawscope that brings PyYAML for it.

    Raises:
        ArgumentError: If it is no YAML mapping of different names to finite numbers, texts, lists and mappings.
        MissingExtra: If PyYAML is not installed.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as err:
        raise ArgumentError(f"{place}: expected text in UTF-8, got {err}. Save it as UTF-8.") from err
    try:
        _check(text, place)
        # msgspec loads YAML with PyYAML's safe loader: a file cannot construct objects.
        settings = msgspec.yaml.decode(text)
    except ImportError as err:
        raise MissingExtra(feature, "PyYAML", extra) from err
    # The safe loader raises whatever Python does for dates and numbers that do not exist.
    except (msgspec.DecodeError, ValueError, KeyError, TypeError, AttributeError, OverflowError) as err:
        if isinstance(err, ArgumentError):
            raise
        raise ArgumentError(f"{place}: is no valid YAML: {_words(err)}.") from err
    if settings is None:  # an empty file, or one of comments alone
        return {}
    if not isinstance(settings, dict):
        raise ArgumentError(f"{place}: expected KEY: VALUE lines, got {type(settings).__name__}.")
    if any(isinstance(value, float) and not math.isfinite(value) for value in _leaves(settings)):
        raise ArgumentError(f"{place}: expected finite numbers, got NaN or infinity. Mend the file.")
    return settings


def _words(err: Exception) -> str:
    """Return in one line what PyYAML says of a text, which has no name there but `<unicode string>`."""
    return " ".join(str(err).replace('in "<unicode string>", ', "at ").split())


def _check(text: str, place: str) -> None:
    """Refuse what settings do not need, and what makes loading them slow or ambiguous, before anything is built.

    Aliases let a few lines stand for gigabytes, integers as keys can be chosen so that a dictionary of them takes
    minutes, and of a name that stands twice the first value is dropped without a word.
    """
    import yaml  # here, as it is no dependency of a device

    try:
        levels = 0
        for event in yaml.parse(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or getattr(event, "tag", None):
                line = f"line {event.start_mark.line + 1}: " if event.start_mark else ""
                raise ArgumentError(
                    f"{place}: {line}expected plain values, got an anchor (&), an alias (*) or a tag "
                    "(!). Write the value out."
                )
            opens = isinstance(event, yaml.CollectionStartEvent)
            levels += opens - isinstance(event, yaml.CollectionEndEvent)
            if levels > _MOST_LEVELS:
                raise ArgumentError(f"{place}: expected at most {_MOST_LEVELS} levels, got more. Mend it.")
        # Nodes are no dictionaries yet, and after the loop above they cannot nest deeply or share parts.
        pending = [yaml.compose(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader))]
        while pending:
            node = pending.pop()
            if isinstance(node, yaml.SequenceNode):
                pending += node.value
            if isinstance(node, yaml.MappingNode):
                _check_keys([key for key, _ in node.value], place)
                pending += [value for _, value in node.value]
    except yaml.YAMLError as err:
        raise ArgumentError(f"{place}: is no valid YAML: {_words(err)}.") from err


def _check_keys(keys: Iterable[Any], place: str) -> None:
    seen = set()
    for key in keys:
        line = key.start_mark.line + 1
        if key.tag != _STRING:
            raise ArgumentError(f"{place}: line {line}: expected KEY: VALUE lines, got a key that is no name.")
        if key.value in seen:
            raise ArgumentError(f"{place}: line {line}: expected every name once, got {key.value!r} again.")
        seen.add(key.value)


def _leaves(value: Any) -> Iterable[Any]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    else:
        yield value

"""Times of day in the time zone of a line, by a wall clock that may jump."""

from __future__ import annotations

import datetime
import zoneinfo
from collections.abc import Iterable


def is_between(times: tuple[str, str], zone: str, utc_ns: int) -> bool:
    """Return whether it is between two times of day (`HH:MM`), the first one included; it may be over midnight.

    Args:
        times: The times; two that are equal are the whole day.
        zone: Name of the time zone.
        utc_ns: The time now, in nanoseconds since 1970.
    """
    first, last = times
    info = datetime.timezone.utc if zone == "UTC" else zoneinfo.ZoneInfo(zone)
    now = f"{datetime.datetime.fromtimestamp(utc_ns / 1e9, info):%H:%M}"
    return first <= now < last if first < last else now >= first or now < last


class TimesOfDay:
    """Says when times of day have come.

    None is left out, although the clock jumps over it. Where a day has no such time, as when summer time begins, it
    comes as late as the clock was moved.

    Args:
        zone: Name of the time zone.
        utc_ns: The time now, in nanoseconds since 1970.
    """

    def __init__(self, zone: str, utc_ns: int) -> None:
        # UTC needs no table, which some machines have not.
        self._zone = datetime.timezone.utc if zone == "UTC" else zoneinfo.ZoneInfo(zone)
        self._last_s = utc_ns / 1e9

    def come(self, times: Iterable[str], utc_ns: int) -> tuple[str, ...]:
        """Return which of some times (`HH:MM`) have come since this was asked last.

        Args:
            times: The times.
            utc_ns: The time now.
        """
        before_s, now_s = self._last_s, utc_ns / 1e9
        self._last_s = now_s
        if now_s <= before_s:  # the clock was set back: they come again
            return ()
        today = datetime.datetime.fromtimestamp(now_s, self._zone).date()
        days = (today, today - datetime.timedelta(days=1))
        return tuple(time for time in times if any(before_s < self._at(day, time) <= now_s for day in days))

    def _at(self, day: datetime.date, time: str) -> float:
        hour, minute = (int(number) for number in time.split(":"))
        # Where a day has it twice it is the first one.
        return datetime.datetime.combine(day, datetime.time(hour, minute), self._zone).timestamp()

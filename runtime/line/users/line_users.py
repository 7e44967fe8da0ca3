"""The users of a line that runs: who asks, who logs in, and what of that the journal keeps.

Whoever asks is answered from memory: the file is read in a thread of its own, and passwords are compared in another,
one at a time and with the least priority, so that nobody who tries many keeps a part waiting.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from flawscope.errors import ArgumentError, FlawscopeError
from flawscope.runtime.line.config_checks import address_of
from flawscope.runtime.line.line_config import HttpOptions
from flawscope.runtime.line.users.attempts import Attempts, network_of
from flawscope.runtime.line.users.passwords import nobody
from flawscope.runtime.line.users.recorded import Events, Recorded
from flawscope.runtime.line.users.roles import LOCAL, NOBODY, User
from flawscope.runtime.line.users.sessions import Session, Sessions
from flawscope.runtime.line.users.users_file import FILE, FOLDER, Account, Print, Users, print_of, read_users
from flawscope.secrets import is_this_machine

NAME_BURST, NAME_EVERY_S = 5, 30.0
ADDRESS_BURST, ADDRESS_EVERY_S = 20, 6.0
MOST_WAITING = 8
"""Logins that wait for the one that is being checked."""

MOST_FAILURES = 10
"""Failed logins on record in a minute; further ones are counted."""

_MINUTE_S = 60.0
_WATCH_S = 1.0
_LOOK_S = 2.0
"""Longest wait of a login for the file."""
_FLUSH_S = 5.0
_STOP_S = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asker:
    """Who sends a request.

    Attributes:
        user: Who it is.
        csrf: What his requests that change something have to bring; empty where no browser adds anything by itself.
        cookie: The cookie by which he was known; empty for none.
        token: Hash of the token by which it was known; empty for none.
    """

    user: User
    csrf: str = ""
    cookie: str = ""
    token: str = ""


class LoginRefused(Exception):
    """Somebody may not log in.

    Args:
        message: Why, for him: the same for a name that nobody has as for a wrong password.
        wait_s: Seconds after which he may try again; 0 where he may at once.
    """

    def __init__(self, message: str, wait_s: float = 0.0) -> None:
        super().__init__(message)
        self.wait_s = wait_s


@dataclass(frozen=True)
class _Known:
    """What the file said when it was read last; replaced as a whole.

    Attributes:
        accounts: Name -> user.
        tokens: SHA-256 -> name of the program.
        problem: Why the file cannot be used; nobody may come in then.
    """

    accounts: dict[str, Account]
    tokens: dict[str, str]
    problem: str = ""


class LineUsers:
    """The users of a line. Calls may come from any thread.

    Args:
        state: State folder of the line.
        is_local: Whether this machine alone reaches the line: then everybody may do everything while there are no
            users. Elsewhere nobody may do anything then.
        idle_s: Seconds without a request after which a session ends.
        longest_s: Seconds after which each session ends.
        now: Seconds of a clock that does not jump.

    Raises:
        FlawscopeError: If there is a file of users that cannot be used.
    """

    def __init__(
        self,
        state: Path,
        *,
        is_local: bool,
        idle_s: float,
        longest_s: float,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._state, self._is_local, self._now = state, is_local, now
        self._sessions = Sessions(idle_s, longest_s, now)
        self._names = Attempts(NAME_BURST, NAME_EVERY_S, now)
        self._addresses = Attempts(ADDRESS_BURST, ADDRESS_EVERY_S, now)
        self._nobody = nobody()
        self._failures, self._unsaid, self._since = 0, 0, now()
        self._waiting = threading.BoundedSemaphore(MOST_WAITING)
        self._worker = ThreadPoolExecutor(1, "login", initializer=_least_priority)
        # Looks at the file that were asked for, and that were made.
        self._looks = threading.Condition()
        self._asked = self._looked = 0
        self._is_ending = False
        self._thread = threading.Thread(target=self._watch, name="users", daemon=True)
        self._events: Events | None = None
        self._recorded: Recorded | None = None
        self._print: Print | None = None
        self._known = _Known({}, {})
        self._users, self._sha256 = Users(), ""
        self._read(print_of(state))

    @classmethod
    def open(cls, state: Path, options: HttpOptions, now: Callable[[], float] = time.monotonic) -> LineUsers:
        """Return the users of a line with an HTTP server.

        Args:
            state: State folder of the line.
            options: Of the server.
            now: Seconds of a clock that does not jump.

        Raises:
            FlawscopeError: If others than this machine reach the line and it has no user, or the file of users cannot
                be used.
        """
        host, _ = address_of(options.listen)
        users = cls(state, is_local=is_this_machine(host), idle_s=options.idle_s, longest_s=options.session_s, now=now)
        if not users.count and not is_this_machine(host):
            users.stop()
            raise ArgumentError(
                f"http.listen: expected at least one user, as others than this machine reach {options.listen}, got "
                "none. Add one: flawscope line user add CONFIG NAME --role admin"
            )
        return users

    @property
    def has_users(self) -> bool:
        """Whether one has to log in."""
        known = self._known
        return bool(known.accounts) or bool(known.problem) or not self._is_local

    @property
    def count(self) -> int:
        """Number of users."""
        return len(self._known.accounts)

    def start(self, events: Events) -> None:
        """Begin to watch the file, and to record what happens.

        Raises:
            ArgumentError: If there is no file of users, and the journal says that there was one.
        """
        if self._print is None and events.has_event("user_added"):
            path = self._state / FOLDER / FILE
            raise ArgumentError(
                f"{path}: expected the users that the journal tells of, got no file. Put a copy back, or begin anew: "
                "flawscope line user add CONFIG NAME --role admin"
            )
        self._events = events
        self._recorded = Recorded(self._state, events)
        # Now, and not at the first login: a line that runs makes no more threads.
        self._worker.submit(self._say_unsaid)
        self._asked += 1
        self._thread.start()

    def stop(self) -> None:
        """End; twice is harmless."""
        with self._looks:
            self._is_ending = True
            self._looks.notify_all()
        self._worker.shutdown(wait=False, cancel_futures=True)
        if self._thread.ident is not None:
            self._thread.join(_STOP_S)

    def asker(self, cookie: str, bearer: str, *, touch: bool = True) -> Asker:
        """Return who sends a request; never waits for the disk.

        Args:
            cookie: The session's cookie; empty for none.
            bearer: The token; empty for none. With one, nothing else counts.
            touch: Whether it counts as a request of the session.
        """
        known = self._known
        if bearer:
            key = hashlib.sha256(bearer.encode("utf-8", "surrogatepass")).hexdigest()
            name = known.tokens.get(key)
            return Asker(NOBODY) if name is None else Asker(User(name, "machine"), token=key)
        if not self.has_users:
            return Asker(LOCAL)
        session = self._sessions.find(cookie, touch=touch) if cookie else None
        account = known.accounts.get(session.name) if session else None
        if session is None or account is None or _stamp(account) != session.stamp:
            return Asker(NOBODY)
        return Asker(User(account.name, account.role), session.csrf, cookie)

    def still(self, asker: Asker, *, touch: bool = False) -> bool:
        """Return whether somebody who was known still is: for streams and uploads, which last.

        Args:
            asker: Who was known.
            touch: Whether it counts as a request of the session; an upload does, an open page does not.
        """
        if asker.token:
            return asker.token in self._known.tokens
        return self.asker(asker.cookie, "", touch=touch).user == asker.user

    def login(self, name: str, password: str, address: str) -> Future[tuple[str, Session, User]]:
        """Log somebody in, in a thread of its own.

        Returns:
            What will be the cookie's value, the session and the user, or raises LoginRefused.

        Raises:
            LoginRefused: If too many wait already.
        """
        if not self._waiting.acquire(blocking=False):
            raise LoginRefused("expected fewer logins at once, got more than can be checked. Try again.", 1.0)
        try:
            future = self._worker.submit(self._log_in, name, password, network_of(address), address)
        except RuntimeError:  # it ends
            self._waiting.release()
            raise LoginRefused("expected a line that runs, got one that ends.") from None
        future.add_done_callback(lambda _: self._waiting.release())
        return future

    def logout(self, asker: Asker) -> None:
        """End a session."""
        self._sessions.end(asker.cookie)
        self._event("logout", asker.user)

    def look(self) -> None:
        """Have the file read if it has changed, and wait for that; a disk that hangs is not waited for long."""
        with self._looks:
            self._asked += 1
            asked = self._asked
            self._looks.notify_all()
            self._looks.wait_for(lambda: self._looked >= asked or self._is_ending, _LOOK_S)

    def _log_in(self, name: str, password: str, network: str, address: str) -> tuple[str, Session, User]:
        # Who was added a moment ago may come in.
        self.look()
        wait_s = max(self._names.wait_s(name), self._addresses.wait_s(network))
        if wait_s > 0:
            self._failed(name, address, "too many attempts")
            raise LoginRefused(f"expected fewer attempts, got too many. Wait {wait_s:.0f} s.", wait_s)
        self._names.count(name)
        self._addresses.count(network)
        account = self._known.accounts.get(name)
        # Whatever the name, the same work is done.
        is_right = (self._nobody if account is None else account.password).matches(password)
        if account is None or not is_right:
            self._failed(name, address, "wrong name or password")
            raise LoginRefused("expected a user's name and password, got a wrong name or password. Try again.")
        self._names.forget(name)
        self._addresses.give_back(network)
        value, session = self._sessions.begin(name, _stamp(account))
        user = User(account.name, account.role)
        self._event("login", user, object=f"address {address}")
        return value, session, user

    def _failed(self, name: str, address: str, reason: str) -> None:
        """Record a login that failed, or count it: whoever tries must not fill the journal."""
        self._say_unsaid()
        self._failures += 1
        if self._failures > MOST_FAILURES:
            self._unsaid += 1
            return
        # A name that nobody has may be a password, typed into the wrong field: the journal would keep it for ever.
        known = name if name in self._known.accounts else "unknown"
        self._event("login_failed", User(known, ""), object=f"address {address}", reason=reason)

    def _say_unsaid(self) -> None:
        if self._now() - self._since < _MINUTE_S:
            return
        unsaid, self._failures, self._unsaid, self._since = self._unsaid, 0, 0, self._now()
        if unsaid:
            self._event("login_failed", User("unknown", ""), reason=f"{unsaid:,} further attempts")

    def _event(self, action: str, user: User, object: str = "", reason: str = "") -> None:
        if self._events is not None:
            self._events.event(action, actor=user.name, role=user.role, object=object, reason=reason)

    def _read(self, now: Print | None) -> None:
        """Take over what the file says. Raises FlawscopeError, and then nothing is changed."""
        found = read_users(self._state) if now is not None else None
        if found is None:
            if self._print is not None or self._known.problem:
                # Somebody who can remove a file must not become everybody's admin.
                self._close(f"{self._state}: expected the file of users that was there before, got none.")
            return
        self._users, self._sha256 = found
        self._known = _Known(
            {user.name: user for user in self._users.users},
            {token.sha256: token.name for token in self._users.tokens},
        )
        self._print = now

    def _close(self, problem: str) -> None:
        if problem == self._known.problem:
            return
        self._known = _Known({}, {}, problem)
        _log.error("%s Nobody may log in until it is mended.", problem)
        self._event("users_unreadable", User("line", ""), object="users", reason=problem)

    def _watch(self) -> None:
        while True:
            with self._looks:
                self._looks.wait_for(lambda: self._asked > self._looked or self._is_ending, _WATCH_S)
                asked, is_ending = self._asked, self._is_ending
            with contextlib.suppress(RuntimeError):  # it ends
                self._worker.submit(self._say_unsaid)
            try:
                now = print_of(self._state)
                if now != self._print or self._known.problem:
                    self._read(now)
            except (FlawscopeError, OSError) as err:
                self._close(str(err))
            with self._looks:
                self._looked = asked
                self._looks.notify_all()
            if self._recorded is not None and self._sha256:
                self._recorded.tell(self._users, self._sha256, _FLUSH_S)
            if is_ending:
                return


def _stamp(account: Account) -> str:
    """Return what ends the sessions of an account when it changes: another password, or another user of the name."""
    return account.password.salt + account.utc


def _least_priority() -> None:
    # Of this thread alone, as Linux has it: scoring goes first.
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)

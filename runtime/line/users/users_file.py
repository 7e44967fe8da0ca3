"""The file of a line's users: private, written whole or not at all, and with each change beside who made it.

Commands write it, the line reads it again when it has changed. The journal belongs to the line, so changes wait here
until the line has recorded them.
"""

from __future__ import annotations

import os
import pwd
import secrets
import stat
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import msgspec

from flawscope.errors import ArgumentError, StorageError
from flawscope.files import locked, storage_errors, write_bytes
from flawscope.private_files import Kept, PrivateRoot, UntrustedFile, private_file
from flawscope.runtime.line.clock import Clock, SystemClock, iso
from flawscope.runtime.line.options import Name
from flawscope.runtime.line.users.passwords import PasswordHash, check_password, hash_password
from flawscope.runtime.line.users.roles import RESERVED
from flawscope.text import NOT_JSON, encode_json, printable

FOLDER = "users"
FILE = "users.json"
KEPT = Kept("users of a line", "line.state")

MOST_BYTES = 4 << 20
MOST_CHANGES = 1000
"""Changes that are kept; those before them were recorded long ago, or are lost to the journal."""

_MOST = 1000

_NAME_WORDS = (
    "expected a name of 1 to 64 letters, digits, dots, dashes or underscores, no sign first, got another. Take one."
)

PersonRole = Literal["operator", "engineer", "admin"]


class Account(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A user.

    Attributes:
        name: His name.
        role: What he may do.
        password: What is kept of his password.
        utc: When he was added.
    """

    name: Name
    role: PersonRole
    password: PasswordHash
    utc: str


class Token(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A token of a program.

    Attributes:
        name: Name of the program.
        sha256: SHA-256 of the token, in hex; it is random, so nothing slower is needed.
        utc: When it was made.
    """

    name: Name
    sha256: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
    utc: str


class Change(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A change of users or tokens, for the journal.

    Attributes:
        number: 1, 2, 3 ... without a gap.
        utc: When it was made.
        actor: Who made it: a user of the operating system.
        action: `user_added`, `user_removed`, `password_changed`, `role_changed`, `token_added` or `token_removed`.
        object: What was changed: `user NAME` or `token NAME`.
        old: Role before.
        new: Role from now on.
    """

    number: Annotated[int, msgspec.Meta(ge=1)]
    utc: str
    actor: str
    action: str
    object: str
    old: str = ""
    new: str = ""


class Users(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All users and tokens of a line, as the file has them.

    Attributes:
        schema: Version of the file.
        users: The users, by name.
        tokens: The tokens, by name.
        changes: The last changes, in order.
    """

    schema: Literal[1] = 1
    users: Annotated[tuple[Account, ...], msgspec.Meta(max_length=_MOST)] = ()
    tokens: Annotated[tuple[Token, ...], msgspec.Meta(max_length=_MOST)] = ()
    changes: tuple[Change, ...] = ()

    def user(self, name: str) -> Account | None:
        """Return the user of a name; None for nobody."""
        return next((user for user in self.users if user.name == name), None)

    def token(self, name: str) -> Token | None:
        """Return the token of a name; None for none."""
        return next((token for token in self.tokens if token.name == name), None)


class Print(NamedTuple):
    """What tells whether a file is another one than before, without reading it."""

    inode: int
    size: int
    ctime_ns: int


def print_of(state: Path) -> Print | None:
    """Return the print of the file in a state folder; None where there is none. Raises OSError."""
    try:
        found = (state / FOLDER / FILE).stat()
    except FileNotFoundError:
        return None
    # Not the time of the content: the mode counts, too.
    return Print(found.st_ino, found.st_size, found.st_ctime_ns)


def read_users(state: Path) -> tuple[Users, str] | None:
    """Return the users of a state folder, and the SHA-256 of their file; None where there is no file.

    Raises:
        ArgumentError: If it is no file of users that this version can read.
        BackendError: If others could have changed or read it, or it cannot be opened.
    """
    path = state / FOLDER / FILE
    with PrivateRoot(path.parent, KEPT).opened() as folder:
        if folder is None:
            return None
        try:
            with private_file(path, KEPT, folder) as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if mode & (stat.S_IRWXG | stat.S_IRWXO):
                    raise UntrustedFile(
                        f"{path}: expected a file that its owner alone may read, got mode {mode:04o}. If nobody "
                        f"else has read it: chmod 600 {path}"
                    )
                data = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise StorageError(f"{path}: could not be read: {err.strerror or err}. See to the disk.") from err
    try:
        if len(data) > MOST_BYTES:
            raise msgspec.DecodeError(f"more than {MOST_BYTES:,} bytes")
        users = msgspec.json.decode(data, type=Users)
    except NOT_JSON as err:
        raise ArgumentError(
            f"{path}: expected the users of a line, got something else: {printable(str(err))}. Put a copy back, or "
            "remove it and add the users anew."
        ) from err
    return users, sha256(data).hexdigest()


class UsersFile:
    """Changes the users of a line; each change is made alone, and is on the disk when the call returns.

    Args:
        state: State folder of the line.
        clock: Clock of the line.
    """

    def __init__(self, state: Path, clock: Clock | None = None) -> None:
        self._state, self._path = state, state / FOLDER / FILE
        self._clock: Clock = SystemClock() if clock is None else clock

    def read(self) -> Users:
        """Return the users; none where there is no file. Raises as `read_users`."""
        found = read_users(self._state)
        return Users() if found is None else found[0]

    def check_name(self, name: str) -> None:
        """Refuse a name that is taken or is none, before somebody is asked for a password. Raises ArgumentError."""
        try:
            msgspec.convert(name, Name)
        except msgspec.ValidationError as err:
            raise ArgumentError(f"{printable(name)}: {_NAME_WORDS}") from err
        _check_free(self.read(), name)

    def check_user(self, name: str) -> None:
        """Refuse a name that no user has, before somebody is asked for a password. Raises ArgumentError."""
        _user(self.read(), name)

    def add_user(self, name: str, role: PersonRole, password: str) -> None:
        """Add a user.

        Raises:
            ArgumentError: If the name is taken or is none, or the password is too weak.
            StorageError: If the file cannot be written.
        """
        self.check_name(name)
        check_password(name, password)
        account = Account(name, role, hash_password(password), self._utc())

        def change(users: Users) -> tuple[Users, str, str, str]:
            _check_free(users, name)
            users = msgspec.structs.replace(users, users=_sorted((*users.users, account)))
            return users, "user_added", "", role

        self._change(f"user {name}", change)

    def remove_user(self, name: str, *, last: bool = False) -> None:
        """Remove a user; his sessions end.

        Args:
            name: His name.
            last: Whether he may be the last one, without whom everybody on the machine may do everything.

        Raises:
            ArgumentError: If there is none of the name, or he is the last.
            StorageError: If the file cannot be written.
        """

        def change(users: Users) -> tuple[Users, str, str, str]:
            account = _user(users, name)
            left = tuple(user for user in users.users if user != account)
            if not left and not last:
                raise ArgumentError(
                    f"{name}: expected another user beside the one that is removed, got the last one: without users "
                    "everybody on this machine may do everything. Add another first, or say --last."
                )
            return msgspec.structs.replace(users, users=left), "user_removed", account.role, ""

        self._change(f"user {name}", change)

    def set_password(self, name: str, password: str) -> None:
        """Give a user another password; his sessions end. Raises as `add_user`."""
        check_password(name, password)
        made = hash_password(password)

        def change(users: Users) -> tuple[Users, str, str, str]:
            account = _user(users, name)
            changed = msgspec.structs.replace(account, password=made)
            others = (user for user in users.users if user != account)
            return msgspec.structs.replace(users, users=_sorted((*others, changed))), "password_changed", "", ""

        self._change(f"user {name}", change)

    def set_role(self, name: str, role: PersonRole) -> None:
        """Give a user another role; it counts at once. Raises as `add_user`."""

        def change(users: Users) -> tuple[Users, str, str, str]:
            account = _user(users, name)
            changed = msgspec.structs.replace(account, role=role)
            others = (user for user in users.users if user != account)
            users = msgspec.structs.replace(users, users=_sorted((*others, changed)))
            return users, "role_changed", account.role, role

        self._change(f"user {name}", change)

    def add_token(self, name: str) -> str:
        """Make a token for a program and return it: it is kept nowhere.

        Raises:
            ArgumentError: If the name is taken or is none.
            StorageError: If the file cannot be written.
        """
        self.check_name(name)
        text = f"flaw_{secrets.token_urlsafe(32)}"
        token = Token(name, sha256(text.encode()).hexdigest(), self._utc())

        def change(users: Users) -> tuple[Users, str, str, str]:
            _check_free(users, name)
            tokens = tuple(sorted((*users.tokens, token), key=lambda one: one.name))
            return msgspec.structs.replace(users, tokens=tokens), "token_added", "", "machine"

        self._change(f"token {name}", change)
        return text

    def remove_token(self, name: str) -> None:
        """Remove a token; it is refused at once. Raises as `add_token`."""

        def change(users: Users) -> tuple[Users, str, str, str]:
            token = users.token(name)
            if token is None:
                names = ", ".join(one.name for one in users.tokens) or "none"
                raise ArgumentError(f"{printable(name)}: expected the name of a token ({names}), got another one.")
            left = tuple(one for one in users.tokens if one != token)
            return msgspec.structs.replace(users, tokens=left), "token_removed", "machine", ""

        self._change(f"token {name}", change)

    def _change(self, object: str, change: Callable[[Users], tuple[Users, str, str, str]]) -> None:
        self._check_owner()
        # The folder first, private from its first moment on: the lock lies in it.
        with PrivateRoot(self._path.parent, KEPT).made(), locked(self._path):
            before = self.read()
            users, action, old, new = change(before)
            number = before.changes[-1].number + 1 if before.changes else 1
            entry = Change(number, self._utc(), _actor(), action, object, old, new)
            users = msgspec.structs.replace(users, changes=(*before.changes, entry)[-MOST_CHANGES:])
            data = encode_json(users)
            try:
                msgspec.json.decode(data, type=Users)
            except msgspec.ValidationError as err:
                raise ArgumentError(
                    f"{printable(object)}: expected at most {_MOST:,} users and tokens each, got: {err}. Remove some."
                ) from err
            write_bytes(self._path, msgspec.json.format(data), durable=True, private=True)

    def _check_owner(self) -> None:
        """Refuse to write what the line could not read: it runs as the owner of its state folder."""
        with storage_errors(self._state):
            try:
                owner = self._state.stat().st_uid
            except FileNotFoundError:
                return
        if owner != os.geteuid():
            raise ArgumentError(
                f"{self._state}: expected to be called by its owner, {_name_of(owner)}, as whom the line runs, got "
                f"{_name_of(os.geteuid())}. Call it with: sudo -u {_name_of(owner)}"
            )

    def _utc(self) -> str:
        return iso(self._clock.utc_ns())


def _sorted(users: tuple[Account, ...]) -> tuple[Account, ...]:
    return tuple(sorted(users, key=lambda user: user.name))


def _user(users: Users, name: str) -> Account:
    account = users.user(name)
    if account is None:
        names = ", ".join(user.name for user in users.users) or "none"
        raise ArgumentError(f"{printable(name)}: expected the name of a user ({names}), got another one.")
    return account


def _check_free(users: Users, name: str) -> None:
    # Without case: two people whom a reader of the journal would take for one.
    taken = {*RESERVED, *(user.name.lower() for user in users.users), *(token.name.lower() for token in users.tokens)}
    if name.lower() in taken:
        raise ArgumentError(f"{printable(name)}: expected a name that is free, got one that is taken. Take another.")


def _actor() -> str:
    """Return who calls a command: a user of the operating system, and for whom he says that he does."""
    name = _name_of(os.getuid())
    caller = os.environ.get("SUDO_USER")
    return f"{name} (sudo: {printable(caller[:64])})" if caller and caller != name else name


def _name_of(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"

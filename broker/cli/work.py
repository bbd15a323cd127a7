"""Work with the database of the settings, and who asks for it."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final, TypeVar

from broker.cli.screen import fail
from broker.exits import EXIT_CONFIGURATION, EXIT_NOT_WELL

if TYPE_CHECKING:
    from broker.settings import Settings
    from broker.storage.database import Database

Result = TypeVar("Result")
NAME_LETTERS_MAX: Final = 100


def run(job: Callable[[Settings, Database], Awaitable[Result]], *, on_any_schema: bool = False) -> Result:
    """Do something with the database; what can go wrong is told as a sentence."""
    from broker import bootstrap
    from broker.settings import Settings
    from broker.storage.revision import is_current, newest

    async def work() -> Result:
        settings = Settings()
        database = bootstrap.open_database(settings)
        try:
            if not on_any_schema and not await is_current(database):
                fail(f"the database is not at schema {newest()}: run cpis-broker migrate", EXIT_CONFIGURATION)
            return await job(settings, database)
        finally:
            await database.close()

    try:
        return asyncio.run(work())
    except Exception as error:
        told = _explain(error)
        if told is None:
            raise
        fail(told, EXIT_NOT_WELL)


def _explain(error: Exception) -> str | None:
    """What is told of an error that has to be reckoned with; None: it is none of these."""
    from sqlalchemy.exc import SQLAlchemyError

    from adapters.errors import LogError, MalformedFile, NotDurable
    from broker.landing import ListBlocked
    from broker.list_comparison import UnknownAuthority
    from broker.list_decision import NothingToDecide, StillLanding
    from broker.replay import ReplayRefused
    from broker.spool import SpoolFull

    match error:
        case MalformedFile():
            return f"{error}; nothing was loaded"
        case UnknownAuthority():
            return f"authority {error} is not in the directory: import it first; nothing was loaded"
        case SpoolFull():
            return "the file is larger than CPIS_LIST_UPLOAD_BYTES_MAX; nothing was loaded"
        case ListBlocked():
            return f"{error} (cpis-broker children landings list); nothing was loaded"
        case StillLanding():
            return f"{error} is landing just now, and nothing speaks against it: let it land"
        case NothingToDecide():
            return f"{error} does not wait for anybody: see cpis-broker children held and children landings list"
        case ReplayRefused():
            return str(error)
        case NotDurable():
            return "the log did not confirm what was appended: give the same command again to continue"
        case LogError():
            return f"the log does not answer ({type(error).__name__}): is it running, are the settings right?"
        case SQLAlchemyError() | OSError():
            return f"the database does not answer ({type(error).__name__}): is CPIS_DATABASE_URL right?"
    return None


def operator() -> str:
    """Who sits at the command line, for the audit."""
    return f"cli:{getpass.getuser()}"


def person(name: str, because: str) -> str:
    """Who asks, for the audit: the name that was given, and who is signed in to this machine."""
    shown = " ".join(name.split())
    if not shown or len(shown) > NAME_LETTERS_MAX or not shown.isprintable():
        fail(f"{because}: say who you are with --by NAME (1 to {NAME_LETTERS_MAX} letters)", EXIT_CONFIGURATION)
    return f"{shown} ({operator()})"

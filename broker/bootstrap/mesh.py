"""Child lists by MESH: the mailbox of the settings, and the way from a file of it to the one way in."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from importlib.util import find_spec
from types import MappingProxyType
from typing import Final

import msgspec

from adapters.errors import MalformedFile
from broker.bootstrap.engines import open_database
from broker.bootstrap.safety import ConfigurationError, load_keyring
from broker.bootstrap.tracing import open_tracer
from broker.clock import SystemClock
from broker.jobs.mesh_inbox import LoadList, MeshInbox, MeshInboxOptions
from broker.keyring import Keyring
from broker.list_answer import report_malformed
from broker.list_comparison import UnknownAuthority, UploadOptions, upload_options_of
from broker.list_upload import upload_children
from broker.ports import Clock, Tracer
from broker.settings import Settings
from broker.storage.database import Database
from schemas.identifiers import NhsNumber
from schemas.mesh import ListAnswer, ReceivedList
from schemas.trace import ByNumber, Refused, Unavailable
from schemas.upload import FileCode, UploadFormat, UploadKind, UploadReport

PdsAvailable = Callable[[], Awaitable[bool]]
"""Whether the Personal Demographics Service answers, asked before an XML file is loaded."""
_SENDER: Final = re.compile(r"\s*([A-Za-z0-9]+)\s*=\s*([A-Za-z0-9]{3,10})\s*")
_NOBODY: Final = NhsNumber("9990000018")
_BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
_NEEDED: Final = ("mesh_mailbox", "mesh_upload_workflow", "mesh_report_workflow", "mesh_senders")
_NEEDED_SECRETS: Final = ("mesh_password", "mesh_shared_key")


async def pds_is_not_asked() -> bool:
    """Where no PDS is set up, nothing is traced before it is loaded, and none can be away."""
    return True


async def pds_answers(tracer: Tracer) -> bool:
    """Whether PDS answers at all; asked about a number of the range that is nobody's (999)."""
    return not isinstance(await tracer.ask(ByNumber(nhs_number=_NOBODY)), Unavailable | Refused)


def list_loader(
    database: Database,
    keyring: Keyring,
    clock: Clock,
    *,
    options: UploadOptions | None = None,
    pds_available: PdsAvailable = pds_is_not_asked,
) -> LoadList:
    """What loads a file of the mailbox: XML waits for PDS, as in CP-IS (CPF05), the others never do."""

    async def load(received: ReceivedList) -> ListAnswer:
        form = _find_form(received.body)
        if form is UploadFormat.XML and not await pds_available():
            problem = "the Personal Demographics Service does not answer: send the file again later"
            return ListAnswer(file_code=FileCode.PDS_UNAVAILABLE, problem=problem, report=None, is_readable=True)
        try:
            report = await upload_children(
                database,
                keyring,
                clock,
                authority=received.authority,
                file=received.body,
                uploaded_by=received.uploaded_by,
                sent_at=received.waits_since,
                form=form,
                options=options,
            )
        except MalformedFile as error:
            refused = report_malformed(received.authority, UploadKind.CHANGES, error)
            return _answer(refused, is_readable=False)
        except UnknownAuthority:
            problem = "the authority of this mailbox is not in the directory"
            return ListAnswer(file_code=FileCode.NONE_LOADED, problem=problem, report=None, is_readable=False)
        return _answer(report, is_readable=True)

    return load


def _answer(report: UploadReport, *, is_readable: bool) -> ListAnswer:
    return ListAnswer(
        file_code=report.file_code,
        problem=report.problem or "",
        report=msgspec.Raw(msgspec.json.encode(report)) if is_readable else None,
        is_readable=is_readable,
    )


def _find_form(body: bytes) -> UploadFormat:
    begin = body[:64].removeprefix(_BYTE_ORDER_MARK).lstrip()
    if begin.startswith(b"<"):
        return UploadFormat.XML
    return UploadFormat.JSON if begin.startswith((b"{", b"[")) else UploadFormat.CSV


@asynccontextmanager
async def open_inbox(settings: Settings) -> AsyncIterator[MeshInbox]:
    """The inbox of the settings. Raises ConfigurationError where something is missing."""
    options = inbox_options(settings)
    from adapters.mesh import MeshMailbox, MeshOptions

    keyring, clock = load_keyring(settings), SystemClock()
    # Without the short limits of the watched database: a large list takes longer than a look-back may.
    database = open_database(settings)
    mailbox = MeshMailbox(
        MeshOptions(
            url=settings.mesh_url,
            mailbox=settings.mesh_mailbox,
            password=settings.mesh_password.get_secret_value(),
            shared_key=settings.mesh_shared_key.get_secret_value(),
            ca_file=str(settings.mesh_ca_file) if settings.mesh_ca_file else None,
            certificate_file=str(settings.mesh_certificate_file) if settings.mesh_certificate_file else None,
            key_file=str(settings.mesh_key_file) if settings.mesh_key_file else None,
            timeout_s=settings.mesh_timeout_s,
            message_bytes_max=settings.mesh_message_bytes_max,
        )
    )
    tracer = open_tracer(settings)
    try:
        load = list_loader(
            database,
            keyring,
            clock,
            options=upload_options_of(settings),
            pds_available=pds_is_not_asked if tracer is None else partial(pds_answers, tracer),
        )
        yield MeshInbox(database, keyring, clock, mailbox=mailbox, load=load, options=options)
    finally:
        if tracer is not None:
            await tracer.close()
        await mailbox.close()
        await database.close()


def inbox_options(settings: Settings) -> MeshInboxOptions:
    """The rules of the inbox. Raises ConfigurationError naming what is missing."""
    if find_spec("mesh_client") is None:
        raise ConfigurationError("CPIS_MESH_URL: MESH needs the package mesh-client, the extra 'mesh' of cpis-broker")
    missing = [name for name in _NEEDED if not getattr(settings, name)]
    missing += [name for name in _NEEDED_SECRETS if not getattr(settings, name).get_secret_value()]
    if missing:
        named = ", ".join(f"CPIS_{name.upper()}" for name in missing)
        raise ConfigurationError(f"{named}: MESH needs it, because CPIS_MESH_URL is set")
    return MeshInboxOptions(
        upload_workflow=settings.mesh_upload_workflow,
        report_workflow=settings.mesh_report_workflow,
        authorities=_read_senders(settings.mesh_senders),
        poll_s=settings.mesh_poll_s,
        limit=timedelta(minutes=settings.escalation_minutes),
    )


def _read_senders(text: str) -> Mapping[str, str]:
    found = [_SENDER.fullmatch(each) for each in text.split(",")]
    senders = {each[1].upper(): each[2].upper() for each in found if each is not None}
    if len(senders) != len(found):
        raise ConfigurationError("CPIS_MESH_SENDERS: must be MAILBOX=AUTHORITY,... with each mailbox once")
    return MappingProxyType(senders)

"""The naive build: the well-known libraries as their tutorials use them, one message at a time.

hl7apy or fhir.resources reads the message, SQLModel commits one row, the send is awaited; then the next one. It opens
the envelope, so that it has the same bytes to read, and asks no list: in both it is spared work that the broker does.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from fhir.resources.R4B.bundle import Bundle
from hl7apy.consts import VALIDATION_LEVEL
from hl7apy.parser import parse_message
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import registry
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from broker.settings import Settings


class NaiveModel(SQLModel, registry=registry()):
    """Tables apart from the broker's."""


class NaiveAttendance(NaiveModel, table=True):
    """What is kept of a message."""

    __tablename__ = "bench_naive"
    id: int | None = Field(default=None, primary_key=True)
    control_id: str
    event: str
    nhs_number: str
    family_name: str
    visit_number: str
    received_at: str


class NaiveStore:
    """Reads with hl7apy, commits with the ORM."""

    def __init__(self, settings: Settings) -> None:
        self._engine: AsyncEngine = create_async_engine(settings.resolved_database_url)

    async def open(self) -> None:
        """Make the table."""
        async with self._engine.begin() as connection:
            await connection.run_sync(NaiveModel.metadata.create_all)

    async def keep(self, message: bytes) -> None:
        """Read one message and commit its row."""
        row = read_attendance(message)
        async with AsyncSession(self._engine) as session:
            session.add(row)
            await session.commit()

    async def close(self) -> None:
        """Close the connections."""
        await self._engine.dispose()


def read_attendance(message: bytes) -> NaiveAttendance:
    """The row of a message, through hl7apy, or fhir.resources when it is a Bundle."""
    if message.startswith(b"{"):
        return read_bundle(message)
    parsed: Any = parse_message(message.decode(), validation_level=VALIDATION_LEVEL.TOLERANT, find_groups=False)
    identifiers = [repetition.to_er7().split("^") for repetition in parsed.pid.pid_3]
    return NaiveAttendance(
        control_id=parsed.msh.msh_10.to_er7(),
        event=parsed.msh.msh_9.msh_9_2.to_er7(),
        nhs_number=next((parts[0] for parts in identifiers if parts[-1] == "NH"), ""),
        family_name=parsed.pid.pid_5.pid_5_1.to_er7(),
        visit_number=parsed.pv1.pv1_19.pv1_19_1.to_er7(),
        received_at=datetime.now(UTC).isoformat(),
    )


def read_bundle(message: bytes) -> NaiveAttendance:
    """The row of a Bundle, through fhir.resources."""
    parsed: Any = Bundle.model_validate_json(message)
    resources: dict[str, Any] = {entry.resource.get_resource_type(): entry.resource for entry in parsed.entry}
    patient, encounter = resources["Patient"], resources.get("Encounter")
    numbers = [each.value for each in patient.identifier or () if str(each.system).endswith("nhs-number")]
    return NaiveAttendance(
        control_id=resources["MessageHeader"].id,
        event=str(encounter.status) if encounter else "",
        nhs_number=next(iter(numbers), ""),
        family_name=patient.name[0].family,
        visit_number=encounter.identifier[0].value if encounter else "",
        received_at=datetime.now(UTC).isoformat(),
    )

"""The audit chains."""

from __future__ import annotations

from datetime import datetime
from typing import Any, ClassVar

from sqlalchemy import BigInteger, Column, ForeignKey, String
from sqlmodel import Field, SQLModel

from broker.storage.tables.columns import instant, octets


class AuditHead(SQLModel, table=True):
    """The end of one owner's audit chain."""

    __tablename__: ClassVar[Any] = "audit_heads"
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), primary_key=True))
    sequence: int = Field(sa_column=Column(BigInteger, nullable=False))
    hash: bytes = Field(sa_column=octets(nullable=False))


class AuditRow(SQLModel, table=True):
    """One audited act."""

    __tablename__: ClassVar[Any] = "audit"
    owner: str = Field(sa_column=Column(String, ForeignKey("owners.id"), primary_key=True))
    sequence: int = Field(sa_column=Column(BigInteger, primary_key=True))
    at: datetime = Field(sa_column=instant(nullable=False))
    actor: str
    action: str
    subject: str = Field(index=True)
    reason: str = ""
    hash: bytes = Field(sa_column=octets(nullable=False))

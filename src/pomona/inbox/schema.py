"""Tables of the inbox.

In: nothing. Out: what SQLAlchemy maps.
Why: the one place that says what a row holds; migrations lead a database here, and a test holds the two together.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, CheckConstraint, DateTime, Index, Integer, MetaData, String, TypeDecorator
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from sqlalchemy import Dialect

VERSION_TABLE = "pomona_inbox_version"
"""Where Alembic keeps the revision: a name of our own, for the database may be shared with others."""


class UtcTime(TypeDecorator[datetime]):
    """A moment, as UTC on every database: SQLite keeps no time zone."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, _dialect: Dialect) -> datetime | None:
        """On the way in."""
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: Any, _dialect: Dialect) -> datetime | None:
        """On the way out."""
        if value is None:
            return None
        moment: datetime = value
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)


class Base(DeclarativeBase):
    """All tables."""

    metadata = MetaData(naming_convention={"pk": "pk_%(table_name)s", "ck": "ck_%(table_name)s_%(constraint_name)s"})


class PhotoRow(Base):
    """One photo."""

    __tablename__ = "pomona_photo"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(String(1000))
    added: Mapped[datetime] = mapped_column(UtcTime())
    state: Mapped[str] = mapped_column(String(9))
    version: Mapped[int | None] = mapped_column(Integer())
    n_bytes: Mapped[int] = mapped_column(BigInteger())
    format: Mapped[str] = mapped_column(String(8))

    __table_args__ = (
        CheckConstraint("state IN ('waiting', 'taught', 'withdrawn')", name="state"),
        Index("ix_pomona_photo_state_added", "state", "added"),
    )

"""The table of photos."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from pomona.errors import StorageError

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "pomona_photo",
        sa.Column("sha256", sa.String(64), nullable=False),
        sa.Column("label", sa.String(1000), nullable=False),
        sa.Column("added", sa.DateTime(timezone=True), nullable=False),
        sa.Column("state", sa.String(9), nullable=False),
        sa.Column("version", sa.Integer(), nullable=True),
        sa.Column("n_bytes", sa.BigInteger(), nullable=False),
        sa.Column("format", sa.String(8), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name="pk_pomona_photo"),
        sa.CheckConstraint("state IN ('waiting', 'taught', 'withdrawn')", name="ck_pomona_photo_state"),
    )


def downgrade() -> None:
    """Refuse: the labels of all photos would be lost."""
    raise StorageError("revision 0001 of the inbox cannot be taken back: the labels of all photos would be lost")

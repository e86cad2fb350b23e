"""Photos are asked for by state, the first that came first: an index says which."""

from __future__ import annotations

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Make the index."""
    op.create_index("ix_pomona_photo_state_added", "pomona_photo", ["state", "added"])


def downgrade() -> None:
    """Remove the index; no photo is touched."""
    op.drop_index("ix_pomona_photo_state_added", "pomona_photo")

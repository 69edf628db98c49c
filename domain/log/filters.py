"""Which records somebody wants to follow: by type, by stream and by tenant, in memory as in the database."""

from __future__ import annotations

from typing import Annotated, NamedTuple, Self

from pydantic import Field, StringConstraints

WISHES_MAX = 50

# `contract.escrow_released`, or a beginning that ends at a dot, such as `contract.*`.
TYPE_PATTERN = r"^[a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*(?:\.\*|\.[a-z0-9_]+)$"
STREAM_PATTERN = r"^[a-z][a-z0-9_]*/[\x21-\x7e]+$"

TypeWish = Annotated[str, StringConstraints(max_length=128, pattern=TYPE_PATTERN)]
StreamWish = Annotated[str, StringConstraints(max_length=300, pattern=STREAM_PATTERN)]
TypeWishes = Annotated[list[TypeWish], Field(max_length=WISHES_MAX)]
StreamWishes = Annotated[list[StreamWish], Field(max_length=WISHES_MAX)]


class Wish(NamedTuple):
    """What a follower wants to hear of: a record fits if it fits each part, and an absent part fits all.

    Types are exact or beginnings; one of either is enough.
    """

    types: frozenset[str] = frozenset()
    beginnings: tuple[str, ...] = ()
    streams: frozenset[str] = frozenset()
    tenant: str | None = None

    @classmethod
    def of(cls, types: list[str], streams: list[str], tenant: str | None) -> Self:
        """Read a wish as it is written: `contract.*` is a beginning, everything else exact."""
        beginnings = tuple(sorted({name[:-1] for name in types if name.endswith(".*")}))
        exact = frozenset(name for name in types if not name.endswith(".*"))
        return cls(exact, beginnings, frozenset(streams), tenant)

    def fits(self, wire_type: str, stream: str, tenant: str) -> bool:
        """Say whether a record is wanted."""
        if self.tenant is not None and tenant != self.tenant:
            return False
        if self.streams and stream not in self.streams:
            return False
        if not (self.types or self.beginnings):
            return True
        return wire_type in self.types or wire_type.startswith(self.beginnings)

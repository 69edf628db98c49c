"""The proof of a line of an invoice, a page at a time: what an auditor takes away and checks without us."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from domain.billing.invoices import Invoice, Source
from domain.billing.line_proofs import (
    SCHEMA,
    LineProof,
    ProvenReading,
    ProvenRecord,
    cursor_of,
    proven,
    sheet_of_line,
)
from domain.billing.price_books import PriceSheet
from ops.proofs import inclusions
from ops.reads import LogReader, Stored
from ops.runtime import Runtime
from ops.usage_totals import Reading, usage_readings
from projections.billing_counts import drawn_again


async def prove_line(
    opened: Runtime,
    invoice: Invoice,
    number: int,
    *,
    after: int = -1,
    size: int | None = None,
    limit: int = 100,
) -> LineProof:
    """Prove some of the readings of a line, those behind a position, under the checkpoint of a size.

    Without a size the checkpoint is the latest that a witness cosigned, or, where there is none, the latest.
    Cost:   the usage of the customer's period is added up once; a tile a reading.
    Errors: checkpoint_not_found, log_damaged, unavailable.
    """
    reader = opened.reader
    (issued,) = await reader.firsts([invoice.stream])
    head = await reader.head(size if size is not None else await reader.cosigned_size(issued.position))
    sources = (await drawn_again(reader, invoice)).sources[number]
    readings, more = await _readings(reader, invoice, sources, after, limit)
    replaced = await asyncio.gather(*(_replaced(reader, one) for one in readings))
    sheet = await _sheet(reader, invoice, number, sources)
    records = [issued, *([sheet] if sheet else []), *(one for one in replaced if one is not None)]
    positions = [one.position for one in readings] + [one.position for one in records]
    proofs = await inclusions(reader, positions, head.size)
    listed = [
        ProvenReading(
            proven(one.position, one.record.encode(), proofs[one.position]),
            None if before is None else _proven(before, proofs),
        )
        for one, before in zip(readings, replaced, strict=True)
    ]
    return LineProof(
        schema=SCHEMA,
        checkpoint=(await opened.cosigned_note(head)).decode(),
        invoice=_proven(issued, proofs),
        number=number,
        line=invoice.made.lines[number],
        evidence=invoice.evidence[number],
        sheet=None if sheet is None else _proven(sheet, proofs),
        readings=listed,
        next=cursor_of(readings[-1].position, head.size) if more else None,
    )


def _proven(stored: Stored, proofs: dict[int, list[bytes]]) -> ProvenRecord:
    return proven(stored.position, bytes(stored.record), proofs[stored.position])


async def _readings(
    reader: LogReader, invoice: Invoice, sources: Sequence[Source], after: int, limit: int
) -> tuple[list[Reading], bool]:
    found = await usage_readings(
        reader.pool, invoice.tenant, sources, bound=invoice.known_at, after=after, limit=limit + 1
    )
    return found[:limit], len(found) > limit


async def _replaced(reader: LogReader, one: Reading) -> Stored | None:
    """Read the version that a corrected reading put right."""
    if one.version == 1:
        return None
    (found,) = await reader.stream(one.stream, after=one.version - 2, limit=1)
    return found


async def _sheet(
    reader: LogReader, invoice: Invoice, number: int, sources: Sequence[Source]
) -> Stored | None:
    """Read the record of the prices that made a line."""
    streams = [f"{PriceSheet.KIND}/{one.sheet}" for one in invoice.sheets]
    loaded = await reader.load(streams)
    sheets = [one for stream in streams if isinstance(one := loaded[stream].aggregate, PriceSheet)]
    at = sheet_of_line(
        invoice.made.lines[number], invoice.sheets, sheets, sources[0].start if sources else None
    )
    return None if at is None else (await reader.firsts([streams[at]]))[0]

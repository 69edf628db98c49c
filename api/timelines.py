"""Timelines: what happened to one thing, told from the records of its stream."""

from __future__ import annotations

from typing import Any

import msgspec
import orjson

from domain.log.records import address_text
from ops.reads import Stored


class _Told(msgspec.Struct):
    """The members of a record that a timeline tells."""

    at: str
    actor: str
    type: str
    version: int
    data: msgspec.Raw


_told = msgspec.json.Decoder(_Told)


def entry(stored: Stored) -> dict[str, Any]:
    """Tell one record: `event` is its type without the kind, such as `escrow_released`."""
    told = _told.decode(stored.record)
    return {
        "position": stored.position,
        "address": address_text(stored.address),
        "version": told.version,
        "at": told.at,
        "event": told.type.partition(".")[2],
        "type": told.type,
        "actor": told.actor,
        "data": orjson.Fragment(bytes(told.data)),
    }

"""A client of the feed as anybody would write it: it goes on behind the last id, and trusts nothing it can check."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import NamedTuple

import httpx


class FeedEvent(NamedTuple):
    """An event of the feed."""

    id: int
    name: str
    data: dict[str, object]
    record: bytes


class FeedReader:
    """Reads one feed, over as many connections as it takes."""

    def __init__(self, url: str, token: str, **params: object) -> None:
        self.url = url
        self.token = token
        self.params = params
        self.last_id: int | None = None
        self.records: list[FeedEvent] = []
        self.end: str | None = None

    @property
    def positions(self) -> list[int]:
        return [event.id for event in self.records]

    def events(self, client: httpx.Client) -> Iterator[FeedEvent]:
        """Read one connection to its end; every event is checked against the one before."""
        headers = {"Authorization": f"Bearer {self.token}"}
        if self.last_id is not None:
            headers["Last-Event-ID"] = str(self.last_id)
        self.end = None
        with client.stream("GET", f"{self.url}/v1/log/feed", params=self.params, headers=headers) as answer:
            assert answer.status_code == 200, answer.read()
            held = b""
            for chunk in answer.iter_raw():
                held += chunk
                *blocks, held = held.split(b"\n\n")
                for block in blocks:
                    event = parsed(block)
                    if event is not None:
                        self._take(event)
                        yield event

    def _take(self, event: FeedEvent) -> None:
        if self.last_id is not None:
            assert event.data["previous_position"] == self.last_id, "something was lost between"
        self.last_id = event.id
        if "record" in event.data:
            assert event.data["address"] == "sha3-512:" + hashlib.sha3_512(event.record).hexdigest()
            assert event.data["position"] == event.id
            self.records.append(event)
        elif event.name != "position":
            self.end = event.name


def parsed(block: bytes) -> FeedEvent | None:
    """Read one event; None for a comment or a hint."""
    fields = {
        name.decode(): value.removeprefix(b" ")
        for name, _, value in (line.partition(b":") for line in block.split(b"\n"))
    }
    if "data" not in fields:
        return None
    start = fields["data"].find(b'"record":')
    record = fields["data"][start + 9 : -1] if start >= 0 else b""
    return FeedEvent(int(fields["id"]), fields["event"].decode(), json.loads(fields["data"]), record)

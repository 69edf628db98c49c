"""What is sent to a webhook: one message for one record, the same bytes and the same id however often it is sent.

Source: Standard Webhooks 1.0, on payload, id and size.
"""

from __future__ import annotations

import json

import msgspec

from domain.log.records import address_text

MESSAGE_BYTES_MAX = 20_000
ID_DIGITS = 64


class _Dated(msgspec.Struct):
    at: str


_dated = msgspec.json.Decoder(_Dated)


def message_id(address: bytes) -> str:
    """Name the message of a record by the beginning of its address: a repeat can be told from a new one."""
    return f"msg_{address.hex()[:ID_DIGITS]}"


def message_body(
    *, position: int, address: bytes, wire_type: str, stream: str, tenant: str, record: bytes
) -> bytes:
    """Print the message of a record: the record itself where it fits, else where it can be read."""
    at = _dated.decode(record).at
    place = {"position": position, "address": address_text(address), "stream": stream, "tenant": tenant}
    head = f'{{"type":"{wire_type}","timestamp":"{at}","data":{json.dumps(place)[:-1]}'.encode()
    whole = head + b',"record":' + record + b"}}"
    if len(whole) < MESSAGE_BYTES_MAX:
        return whole
    return head + f',"record":null,"link":"/v1/log/records/{position}"}}}}'.encode()


def ping_body(webhook_id: str, at: str) -> bytes:
    """Print the message that only asks whether somebody is there."""
    return json.dumps({"type": "webhook.ping", "timestamp": at, "data": {"webhook": webhook_id}}).encode()

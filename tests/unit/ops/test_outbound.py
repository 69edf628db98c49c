"""Where nothing is sent, and when a receiver wants to be asked again."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from ipaddress import ip_address

import pytest

from ops.outbound import RETRY_AFTER_S_MAX, Outbound, is_public, retry_after_s

PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "::ffff:1.1.1.1"]
PRIVATE = (
    "0.0.0.0 10.1.2.3 100.64.0.1 127.0.0.1 127.255.255.254 169.254.169.254 172.16.0.1 "
    "172.31.255.255 192.0.0.8 192.0.2.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 "
    "224.0.0.1 240.0.0.1 255.255.255.255 :: ::1 ::ffff:127.0.0.1 ::ffff:10.0.0.1 "
    "::127.0.0.1 64:ff9b::10.0.0.1 64:ff9b::169.254.169.254 64:ff9b:1::1 100::1 2001::1 2001:db8::1 "
    "2002:7f00:1::1 2002:a00:1::1 fc00::1 fd12::1 fe80::1 fec0::1 ff02::1 "
).split()


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_public_is_one(text: str) -> None:
    assert is_public(ip_address(text))


@pytest.mark.parametrize("text", PRIVATE)
def test_an_address_inside_any_network_is_none(text: str) -> None:
    assert not is_public(ip_address(text))


@pytest.mark.parametrize("found", [["127.0.0.1"], ["1.1.1.1", "10.0.0.1"], ["::1"], []])
def test_a_name_that_leads_inside_even_once_is_not_called(found: list[str]) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return found

    async def scene() -> None:
        async with Outbound(timeout_s=5, allow_private=False, resolve=resolve) as outbound:
            outcome = await outbound.post("https://receiver.example/", {}, b"{}")
        assert outcome.status is None
        assert "address" in outcome.error
        assert not [address for address in found if address in outcome.error]

    asyncio.run(scene())


def test_what_a_receiver_asks_for_is_heard_within_bounds() -> None:
    now = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
    assert retry_after_s("120") == 120
    assert retry_after_s("0") == 0
    assert retry_after_s("999999999") == RETRY_AFTER_S_MAX
    assert retry_after_s("Thu, 01 Jan 2026 12:05:00 GMT", now) == 300
    assert retry_after_s("Thu, 01 Jan 2026 11:00:00 GMT", now) == 0
    for text in (None, "", "soon", "-1", "1.5", "9" * 5_000, "\N{SUPERSCRIPT TWO}"):
        assert retry_after_s(text, now) is None

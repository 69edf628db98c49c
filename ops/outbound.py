"""The one door to the servers of strangers: a POST to a URL somebody gave us, and nothing inside our own network.

The host is looked up here, every address it has is judged, and the connection is made to the address that was judged,
so a name that changes its mind between the look and the call gains nothing. Redirects are not followed, proxies not
asked, answers read to a bound, and the whole takes a bounded time.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import NamedTuple, Self

import httpx

from domain.errors import WebhookAddressError

ANSWER_BYTES_MAX = 65_536
RETRY_AFTER_S_MAX = 86_400.0
ADDRESSES_MAX = 3
ERROR_CHARS_MAX = 200

Address = IPv4Address | IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]

_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Protocol assignments and 6to4 relays: releases of Python differ about them.
_SPECIAL = (IPv4Network("192.0.0.0/24"), IPv4Network("192.88.99.0/24"))
_NAT64 = IPv6Network("64:ff9b::/96")


class Outcome(NamedTuple):
    """What came of an attempt: a status, or what went wrong before there was one.

    Units: retry_after_s is the wish of the receiver, bounded; seconds is the time of the whole attempt.
    """

    status: int | None
    error: str
    retry_after_s: float | None
    seconds: float

    @property
    def delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_gone(self) -> bool:
        return self.status == 410


def is_public(address: Address) -> bool:
    """Say whether an address belongs to somebody on the public Internet, whatever form it is written in."""
    if isinstance(address, IPv4Address):
        return (
            address.is_global
            and not address.is_multicast
            and not address.is_reserved
            and not any(address in network for network in _SPECIAL)
        )
    if address.ipv4_mapped is not None:
        return is_public(address.ipv4_mapped)
    if address in _NAT64:
        return is_public(IPv4Address(int(address) & 0xFFFF_FFFF))
    # 6to4 and Teredo carry an IPv4 address that somebody else would unpack.
    return (
        address in _GLOBAL_UNICAST
        and address.is_global
        and address.sixtofour is None
        and address.teredo is None
    )


@cache
def public_tls() -> ssl.SSLContext:
    """Trust the authorities everybody trusts, or those SSL_CERT_FILE names."""
    return httpx.create_ssl_context()


class Outbound:
    """Posts to one receiver; its connection is kept for the next message."""

    def __init__(
        self,
        *,
        timeout_s: float,
        allow_private: bool,
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._timeout_s = timeout_s
        self._allow_private = allow_private
        self._resolve = resolve or _look_up
        self._tls = tls
        self._client: httpx.AsyncClient | None = None
        self._host = b""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._client is not None:
            await self._client.aclose()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Outcome:
        """Send a message, once; whatever goes wrong is an outcome."""
        started_s = time.perf_counter()
        status, retry_after_s, error = None, None, ""
        try:
            async with asyncio.timeout(self._timeout_s):
                status, retry_after_s = await self._sent(httpx.URL(url), headers, body)
            error = "" if 200 <= status < 300 else f"answered {status}"
        except TimeoutError:
            error = f"no answer within {self._timeout_s:g} s"
        except WebhookAddressError as refusal:
            error = refusal.message
        except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError) as trouble:
            error = f"{type(trouble).__name__}: {trouble}"[:ERROR_CHARS_MAX]
        return Outcome(status, error, retry_after_s, time.perf_counter() - started_s)

    async def _sent(
        self, url: httpx.URL, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, float | None]:
        addresses = await self._judged(url)
        for address in addresses[:-1]:
            try:
                return await self._sent_to(address, url, headers, body)
            except httpx.ConnectError:
                continue
        return await self._sent_to(addresses[-1], url, headers, body)

    async def _judged(self, url: httpx.URL) -> list[str]:
        """Look the host up, and refuse it if any of its addresses is none of the public's.

        Errors: webhook_address_refused.
        """
        port = url.port or (443 if url.scheme == "https" else 80)
        found = list(dict.fromkeys(await self._resolve(url.host, port)))[:ADDRESSES_MAX]
        if not found:
            raise WebhookAddressError("the host has no address")
        if not self._allow_private and not all(is_public(ip_address(address)) for address in found):
            # Which address it is would tell strangers about the names of our network.
            raise WebhookAddressError
        return found

    async def _sent_to(
        self, address: str, url: httpx.URL, headers: Mapping[str, str], body: bytes
    ) -> tuple[int, float | None]:
        pinned = url.copy_with(host=address)
        request_headers = {**headers, "Host": url.netloc.decode("ascii")}
        extensions = {"sni_hostname": url.host} if url.scheme == "https" else {}
        client = await self._client_for(url.netloc)
        async with client.stream(
            "POST", pinned, headers=request_headers, content=body, extensions=extensions
        ) as answer:
            read_bytes = 0
            # Raw: what claims to be compressed is not unpacked.
            async for chunk in answer.aiter_raw():
                read_bytes += len(chunk)
                if read_bytes > ANSWER_BYTES_MAX:
                    break
            return answer.status_code, retry_after_s(answer.headers.get("retry-after"))

    async def _client_for(self, host: bytes) -> httpx.AsyncClient:
        """Keep connections of one host only: a pool tells them apart by address, and two hosts may share one."""
        if self._client is None or self._host != host:
            if self._client is not None:
                await self._client.aclose()
            self._host = host
            self._client = httpx.AsyncClient(
                verify=self._tls or public_tls(),
                trust_env=False,
                follow_redirects=False,
                timeout=self._timeout_s,
            )
        return self._client


async def _look_up(host: str, port: int) -> Sequence[str]:
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(entry[4][0]).partition("%")[0] for entry in found]


def retry_after_s(text: str | None, now: datetime | None = None) -> float | None:
    """Read `Retry-After`, in seconds or as a date; what cannot be read is no wish.

    Source: RFC 9110, section 10.2.3.
    """
    if not text:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 9:
        return min(RETRY_AFTER_S_MAX, float(text))
    try:
        at = parsedate_to_datetime(text)
    except ValueError:
        return None
    at = at if at.tzinfo is not None else at.replace(tzinfo=UTC)
    return min(RETRY_AFTER_S_MAX, max(0.0, (at - (now or datetime.now(UTC))).total_seconds()))

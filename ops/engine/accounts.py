"""The two accounts of the engine, known to it by digests only."""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from ops.engine.digests import digest
from ops.engine.refusals import Refused


class Account(StrEnum):
    """Who asks."""

    SERVICE = "service"
    READER = "reader"


@dataclass(frozen=True)
class Accounts:
    """What the engine was told at its start: for each account the digest of its user and password."""

    digests: Mapping[Account, str]

    def who(self, headers: Mapping[str, str], fields: Mapping[str, str]) -> Account:
        """Tell who asks, by any of the ways ClickHouse knows.

        Both digests are compared whatever the first comparison says, each in constant time.
        """
        user, password = _credentials(headers, fields)
        given = digest(user, password)
        found = [account for account, kept in self.digests.items() if hmac.compare_digest(kept, given)]
        if not found:
            raise Refused(516, f"{user[:64]}: Authentication failed", "AUTHENTICATION_FAILED")
        return found[0]


def _credentials(headers: Mapping[str, str], fields: Mapping[str, str]) -> tuple[str, str]:
    kind, _, word = headers.get("authorization", "").partition(" ")
    if kind.lower() == "basic":
        try:
            user, _, password = base64.b64decode(word, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            raise Refused(516, "the Authorization header cannot be read", "AUTHENTICATION_FAILED") from None
        return user, password
    if "x-clickhouse-user" in headers or "x-clickhouse-key" in headers:
        return headers.get("x-clickhouse-user", ""), headers.get("x-clickhouse-key", "")
    return fields.get("user", ""), fields.get("password", "")

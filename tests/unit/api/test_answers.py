"""What an answer says of itself: the version in its ETag is the aggregate's own."""

from __future__ import annotations

import pytest

from api.http import printed
from domain.billing.invoices import Invoice
from domain.billing.payouts import Payout
from domain.billing.price_books import PriceBook, Version
from domain.ledger import Answer
from domain.log.records import Aggregate, encode_state


@pytest.mark.parametrize(
    "found",
    [
        Payout(id="p", tenant="t", version=3),
        Invoice(id="i", tenant="t", version=3, zone='a "version":9 b'),
        PriceBook(id="b", tenant="t", version=3, versions=[Version(1, "a", "b")]),
    ],
)
def test_whatever_stands_behind_it_the_version_is_told(found: Aggregate) -> None:
    assert printed(Answer(encode_state(found), 1, 1)).headers["etag"] == '"3"'


def test_an_answer_without_a_version_has_no_etag() -> None:
    assert "etag" not in printed(Answer(b'{"inserted":1}', 1, 1)).headers

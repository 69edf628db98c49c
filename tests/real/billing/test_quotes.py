"""The quote is the invoice: random prices, usage, coupons, taxes and credits, over HTTP and a real database."""

from __future__ import annotations

from datetime import timedelta
from itertools import count
from typing import Any

import msgspec
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domain.billing.metering import METERS
from domain.billing.prices import Flat, Percentage, PerMinute
from domain.values import moment_text
from tests.real.api.world import money
from tests.real.billing.billing_desk import Desk
from tests.unit.billing.price_maker import prices

numbers = count(1)
models = st.sampled_from(["m1", "m2", "m3"])
personas = st.none() | st.just("guide")
counts = st.integers(0, 10**7)


@st.composite
def charges(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw a book's charges, of every kind of price."""
    drawn = []
    for number in range(draw(st.integers(1, 5))):
        price = draw(prices)
        fixed = {Flat: "period", PerMinute: "seconds", Percentage: "amount"}.get(type(price))
        match = {"model": draw(models)} if draw(st.booleans()) else {}
        drawn.append(
            {
                "id": f"c{number}",
                "meter": fixed or draw(st.sampled_from(METERS)),
                "price": msgspec.to_builtins(price),
                "match": match,
                "free": draw(st.sampled_from(["0", "1000"])),
                "minimum": draw(st.sampled_from([None, "0.123456789"])),
            }
        )
    return drawn


@st.composite
def readings(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Draw usage; `hours` says in which part of the day."""
    reading = st.fixed_dictionaries(
        {
            "model": models, "persona_id": personas, "tokens_in": counts, "tokens_out": counts,
            "cached_tokens": st.none() | counts, "requests": st.integers(1, 1_000), "hours": st.integers(0, 23),
        }
    )  # fmt: skip
    return draw(st.lists(reading, max_size=8))


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    first=charges(), second=st.none() | charges(), used=readings(), discount=st.sampled_from([None, "0.15", "1"]),
    tax=st.sampled_from([[], [{"name": "VAT", "share": "0.19"}]]), credit=st.sampled_from([None, "0.07", "9"]),
    commitment=st.sampled_from([None, "3.3"]),
)  # fmt: skip
def test_for_the_same_usage_the_quote_is_the_invoice(
    office: Desk,
    first: list[Any],
    second: list[Any] | None,
    used: list[Any],
    discount: str | None,
    tax: list[Any],
    credit: str | None,
    commitment: str | None,
) -> None:
    book = f"book-{next(numbers)}"
    office.publish(book, charges=first, commitment=commitment)
    office.next_day()
    if second is not None:
        office.publish(book, charges=second, effective_from=moment_text(office.now + timedelta(hours=11)))
    one = office.customer(book=f"platform.{book}", taxes=tax)
    path, midnight = f"/v1/customers/{one.tenant}", one.read(f"/v1/customers/{one.tenant}")["billed_to"]
    if discount is not None:
        office.operator.made(f"{path}/coupons", {"code": "off", "share": discount})
    if credit is not None:
        office.operator.made(f"{path}/credits", {"amount": money(credit), "source": "promotion"})
    supposed = [_supposed(one, midnight) for one in used]
    office.go(hours=22.9)
    for reading in supposed:
        sent = {name: value for name, value in reading.items() if name != "at"}
        office.use(one, sent | {"occurred_at": reading["at"]})
    by_log = one.made("/v1/quotes", {"tenant": one.tenant})
    by_hand = one.made("/v1/quotes", {"tenant": one.tenant, "usage": [_counted(r) for r in supposed]})
    office.next_day()
    made = office.operator.made("/v1/invoices", {"tenant": one.tenant})
    assert by_log["bill"] == made["bill"]
    assert by_log["evidence"] == made["evidence"]
    assert by_hand["bill"] == made["bill"]
    assert by_log["sheets"] == by_hand["sheets"] == made["sheets"]


def _supposed(reading: dict[str, Any], midnight: str) -> dict[str, Any]:
    hours = reading.pop("hours")
    return {"provider": "p", **reading, "at": f"{midnight[:11]}{hours:02d}:30:00.000000Z"}


def _counted(reading: dict[str, Any]) -> dict[str, Any]:
    return reading | {"cached_tokens": reading["cached_tokens"] or 0}

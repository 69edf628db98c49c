"""Price lists become charges digit by digit, and whatever cannot be charged is said."""

from __future__ import annotations

import json
import os
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.billing.price_books import check_charges
from domain.billing.price_lists import Listed, Wanted, import_prices, read_price_list
from domain.billing.prices import steps_of, total_of
from domain.errors import PriceListInvalidError

SHARED = Path(os.environ.get("SOMA_SHARED_DIR", Path(__file__).resolve().parents[4] / "shared"))


def read(text: str) -> Any:
    """Read JSON as the CLI does."""
    return json.loads(text, parse_float=Decimal)


TABLE = """{
    "sample_spec": {"litellm_provider": "one of many words", "input_cost_per_token": 0.0},
    "acme/small": {"litellm_provider": "acme", "input_cost_per_token": 1.5e-07, "output_cost_per_token": 6e-07,
                   "cache_read_input_token_cost": 7.5e-08, "input_cost_per_token_above_200k_tokens": 3e-07},
    "pictures": {"litellm_provider": "acme", "output_cost_per_image": 0.02},
    "other": {"litellm_provider": "bolt", "input_cost_per_token": 0, "output_cost_per_token": 1E-5}
}"""
VENDOR = """{"vendor": "acme", "models": [{"id": "large", "price_history": [
    {"input": 5, "output": 20, "from_date": null, "to_date": "2026-01-01", "input_cached": null},
    {"input": 3, "output": 15.25, "from_date": "2026-01-01", "to_date": null, "input_cached": 0.3}]}]}"""


def test_a_table_becomes_charges_by_the_million() -> None:
    charges, left_out = import_prices(read_price_list(read(TABLE)), Wanted())
    told = [(c.match.provider, c.match.model, c.meter, c.price.price, c.price.per) for c in charges]
    assert told == [
        ("acme", "small", "tokens_in", "0.15", "1000000"),
        ("acme", "small", "tokens_out", "0.6", "1000000"),
        ("bolt", "other", "tokens_in", "0", "1000000"),
        ("bolt", "other", "tokens_out", "10", "1000000"),
    ]
    assert left_out == [("acme small", "no reading counts input_cost_per_token_above_200k_tokens")]
    check_charges(charges)


def test_a_vendors_list_gives_the_present_prices_and_cached_ones_where_they_count_beside() -> None:
    charges, _ = import_prices(read_price_list(read(VENDOR)), Wanted(cached="beside"))
    assert [(c.meter, c.price.price) for c in charges] == [
        ("tokens_in", "3"), ("tokens_out", "15.25"), ("cached_tokens", "0.3")
    ]  # fmt: skip


def test_providers_models_and_a_factor_choose() -> None:
    listed = read_price_list(read(TABLE))
    wanted = Wanted(frozenset({"acme"}), frozenset({"small"}), Fraction(12, 10))
    assert [c.price.price for c in import_prices(listed, wanted).charges] == ["0.18", "0.72"]
    with pytest.raises(PriceListInvalidError):
        import_prices(listed, Wanted(frozenset({"nobody"})))
    with pytest.raises(PriceListInvalidError, match="digits"):
        import_prices(listed, Wanted(factor=Fraction(1, 3)))


@pytest.mark.parametrize(
    "text",
    ["[]", "{}", '{"a": {"litellm_provider": "p", "input_cost_per_token": "1"}}',
     '{"a": {"litellm_provider": "p", "input_cost_per_token": -1}}',
     '{"a": {"litellm_provider": "p", "input_cost_per_token": true}}', '{"vendor": "v", "models": [{"id": 1}]}'],
)  # fmt: skip
def test_what_is_no_price_list_is_refused(text: str) -> None:
    with pytest.raises(PriceListInvalidError):
        read_price_list(read(text))


@given(st.integers(0, 10**9), st.integers(0, 10**12))
def test_what_a_charge_comes_to_is_tokens_times_the_price_for_one(units: int, tokens: int) -> None:
    each = Decimal(units).scaleb(-15)
    listed = [Listed("p", "m", {"tokens_in": Fraction(each) * 10**6})]
    (charge,), _ = import_prices(listed, Wanted())
    assert total_of(steps_of(charge.price, Fraction(tokens))) == Fraction(each) * tokens * 10**9


def test_the_lists_of_the_shared_data_are_read() -> None:
    place = SHARED / "data" / "llm_prices"
    if not place.is_dir():
        pytest.skip("the shared data directory is not here")
    files = [
        place / "litellm_model_prices_and_context_window.json",
        *sorted((place / "simonw").glob("*.json")),
    ]
    for file in files:
        listed = read_price_list(read(file.read_text()))
        assert listed, file.name
    table = read_price_list(read(files[0].read_text()))
    charges, _ = import_prices(
        table, Wanted(models=frozenset({"gpt-4o-mini"}), providers=frozenset({"openai"}))
    )
    assert [(c.meter, c.price.price) for c in charges] == [("tokens_in", "0.15"), ("tokens_out", "0.6")]

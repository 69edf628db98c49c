"""What is decided about webhooks, through the gate: who may hold one, where it may lead, and how it changes."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import LedgerError
from domain.feeds import webhooks
from domain.feeds.webhooks import (
    ChangeWebhook,
    DisableWebhook,
    RegisterWebhook,
    Webhook,
    WebhookStep,
    check_url,
)
from domain.ledger import Caller
from tests.unit.market.market_maker import LATER, OPERATOR, OWNER, REVIEWER, SERVICE, STRANGER, Market, play

URL = "https://example.com/hooks?to=me"
GIVEN: dict[str, Any] = {
    "size": 7, "count": 0, "count_max": 2, "allow_http": False, "public_key_of": lambda name, n: f"whpk_{name}_{n}",
}  # fmt: skip
ROTATION = {"rotation_s": 3_600, "public_key_of": GIVEN["public_key_of"]}


async def registered(market: Market, caller: Caller = OWNER, **fields: Any) -> Any:
    """Register a webhook."""
    return await market.do(webhooks.register_webhook, RegisterWebhook(url=URL, **fields), caller, **GIVEN)


def refusal(scene: Any) -> LedgerError:
    """Play a scene that must end in a refusal."""
    with pytest.raises(LedgerError) as caught:
        play(scene)
    return caught.value


def test_a_webhook_begins_with_what_comes_next_and_holds_no_secret() -> None:
    async def scene(market: Market) -> None:
        webhook = await registered(market, types=["offer.*"])
        assert (webhook["status"], webhook["start_position"], webhook["tenant"]) == ("active", 7, "acme")
        assert webhook["public_key"] == f"whpk_{webhook['id']}_1"
        assert "secret" not in {name for name in webhook if not name.startswith("secret_")}

    play(scene)


@pytest.mark.parametrize(("before", "steps"), [
    ("active", {"pause": "paused", "resume": None, "delete": "deleted", "disable": "disabled", "rotate": "active"}),
    ("paused", {"pause": None, "resume": "active", "delete": "deleted", "disable": "paused", "rotate": "paused"}),
    ("disabled", {"pause": None, "resume": "active", "delete": "deleted", "disable": "disabled", "rotate": "disabled"}),
    ("deleted", {"pause": None, "resume": None, "delete": None, "disable": "deleted", "rotate": None}),
])  # fmt: skip
def test_every_status_meets_every_step(before: str, steps: dict[str, str | None]) -> None:
    ways = {"paused": "pause", "disabled": "disable", "deleted": "delete"}

    async def do(market: Market, name: str, step: str) -> Any:
        if step == "disable":
            return await market.do(
                webhooks.disable_webhook, DisableWebhook(webhook_id=name, reason="gone"), SERVICE
            )
        use_case = {
            "pause": webhooks.pause_webhook,
            "resume": webhooks.resume_webhook,
            "delete": webhooks.delete_webhook,
            "rotate": webhooks.rotate_secret,
        }[step]
        given = ROTATION if step == "rotate" else {}
        return await market.do(use_case, WebhookStep(webhook_id=name), OWNER, **given)

    for step, after in steps.items():

        async def scene(market: Market, step: str = step, after: str | None = after) -> None:
            name = (await registered(market))["id"]
            if before in ways:
                await do(market, name, ways[before])
            if after is None:
                with pytest.raises(LedgerError) as caught:
                    await do(market, name, step)
                assert caught.value.code == "invalid_status_transition"
            else:
                assert (await do(market, name, step))["status"] == after

        play(scene)


def test_a_change_keeps_what_it_does_not_name_and_one_to_the_same_writes_nothing() -> None:
    async def scene(market: Market) -> None:
        webhook = await registered(market, types=["offer.*"], description="ours")
        change = ChangeWebhook(webhook_id=webhook["id"], streams=["offer/1"])
        changed = await market.do(webhooks.change_webhook, change, OWNER, allow_http=False)
        assert (changed["types"], changed["streams"], changed["url"]) == (["offer.*"], ["offer/1"], URL)
        again = await market.do(webhooks.change_webhook, change, OWNER, allow_http=False)
        assert again["version"] == changed["version"] == 2

    play(scene)


def test_a_rotation_signs_with_both_until_its_time_is_over() -> None:
    async def scene(market: Market) -> None:
        webhook = await registered(market)
        market.now = LATER
        rotated = await market.do(
            webhooks.rotate_secret, WebhookStep(webhook_id=webhook["id"]), OWNER, **ROTATION
        )
        found = Webhook(**{k: v for k, v in rotated.items() if k in Webhook.__struct_fields__})
        assert found.previous_until == "2026-02-01T01:00:00.000000Z"
        assert found.secret_versions("2026-02-01T00:59:59.999999Z") == [2, 1]
        assert found.secret_versions("2026-02-01T01:00:00.000000Z") == [2]

    play(scene)


def test_a_webhook_is_never_sent_more_than_its_tenant_may_read() -> None:
    assert Webhook(id="w", tenant="acme").wish.tenant == "acme"
    assert Webhook(id="w", tenant="acme", types=["offer.*"]).wish.tenant == "acme"
    assert Webhook(id="w", tenant="platform", scope="all").wish.tenant is None


def test_another_tenants_webhook_is_absent_and_a_wrong_role_is_told() -> None:
    async def stranger(market: Market) -> None:
        webhook = await registered(market)
        await market.do(webhooks.pause_webhook, WebhookStep(webhook_id=webhook["id"]), STRANGER)

    async def reviewer(market: Market) -> None:
        await registered(market, REVIEWER)

    async def everything(market: Market) -> None:
        await registered(market, OWNER, scope="all")

    async def colleague(market: Market) -> None:
        webhook = await registered(market, OPERATOR, scope="all")
        billing = Caller("ben", "platform", frozenset(["billing"]))
        change = ChangeWebhook(webhook_id=webhook["id"], url="https://elsewhere.example/")
        await market.do(webhooks.change_webhook, change, billing, allow_http=False)

    async def itself(market: Market) -> None:
        webhook = await registered(market)
        await market.do(
            webhooks.disable_webhook, DisableWebhook(webhook_id=webhook["id"], reason="mine"), OWNER
        )

    assert refusal(stranger).code == "webhook_not_found"
    for scene in (reviewer, everything, colleague, itself):
        assert refusal(scene).code == "forbidden"


def test_so_many_webhooks_and_no_position_ahead_of_the_log() -> None:
    async def one_more(market: Market) -> None:
        await market.do(webhooks.register_webhook, RegisterWebhook(url=URL), OWNER, **(GIVEN | {"count": 2}))

    async def ahead(market: Market) -> None:
        await registered(market, from_position=8)

    assert refusal(one_more).code == "too_many_webhooks"
    assert refusal(ahead).code == "position_ahead"


@pytest.mark.parametrize("url", [
    "https://example.com", "https://example.com/", "https://EXAMPLE.com:8443/a/b?c=d&e=%20", "https://10.0.0.1/",
    "https://[2001:db8::1]:443/x", "https://a/~b;c=d,e", "https://example.com?x",
])  # fmt: skip
def test_a_url_may_be(url: str) -> None:
    check_url(url, allow_http=False)


@pytest.mark.parametrize("url", [
    "http://example.com/", "ftp://example.com/", "https://", "https:///x", "https://a@b/", "https://a:b@c/", "https://a/#f",
    "https://a b/", "https://a\\@b/", "https://a/\n", "https://a\t/", "https://-a/", "https://a-/", "https://ex%61mple.com/",
    "https://пример.рф/", "https://a:123456/", "//a/", "https:/a/", "https://[::1", "https://a/\N{SNOWMAN}",
    "javascript:x",
])  # fmt: skip
def test_a_url_may_not_be(url: str) -> None:
    with pytest.raises(LedgerError) as caught:
        check_url(url, allow_http=False)
    assert caught.value.code == "webhook_url_invalid"


def test_http_is_for_networks_of_ones_own() -> None:
    check_url("http://receiver.internal:8080/hook", allow_http=True)

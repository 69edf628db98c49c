"""Renting over HTTP, from the catalogue to the settlement: with the real policies, the timers, and the watch."""

from __future__ import annotations

import httpx

from domain.values import moment_of
from tests.real.persona.capsule_world import OPERATOR
from tests.real.persona.test_publication_http import until
from tests.real.rental.shop import HOUR_S, RENTER, SELLER, STRANGER, Shop, published


def test_a_rental_goes_from_the_reservation_to_its_settlement(shop: Shop) -> None:
    before = float(shop.wallet("renters")[0])
    rental = shop.made(
        RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": 90}, **{"Idempotency-Key": "r1"}
    )
    assert (rental["status"], rental["minutes"], rental["reserved"]["amount"]) == ("requested", 120, "1.00")
    again = shop.made(RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": 90}, **{"Idempotency-Key": "r1"})
    assert (again["id"], again["receipt"]["repeated"]) == (rental["id"], True)
    path = f"/v1/rentals/{rental['id']}"
    assert shop.read(RENTER, f"{path}/entitlement")["why"] == "not_activated"
    active = shop.made(RENTER, f"{path}/activate", **{"Idempotency-Key": "a1"})
    token = shop.service.app.state.issuer.read_access(active["access_token"])
    assert (token["rental"], token["persona"], token["epoch"]) == (rental["id"], "harbour-pilot", 1)
    assert token["expires_at"] == active["expires_at"]
    assert token["exp"] == int(moment_of(active["expires_at"]).timestamp())
    assert (
        shop.made(RENTER, f"{path}/activate", **{"Idempotency-Key": "a1"})["expires_at"]
        == active["expires_at"]
    )
    assert shop.post(RENTER, f"{path}/activate").json()["code"] == "rental_active"
    granted = shop.read(RENTER, f"{path}/entitlement?epoch=1")
    assert (granted["granted"], granted["expires_at"]) == (True, active["expires_at"])
    assert granted["access_token"]
    longer = shop.made(RENTER, f"{path}/extend", {"minutes": 30})
    assert longer["minutes"] == 180
    assert (
        shop.service.app.state.issuer.read_access(longer["access_token"])["expires_at"]
        == longer["expires_at"]
    )
    shop.wait(3 * HOUR_S)
    # At once, whether a timer has looked or not.
    over = shop.read(RENTER, f"{path}/entitlement?epoch=1")
    assert (over["granted"], over["access_token"]) == (False, None)
    assert over["checked_at"] >= over["expires_at"]
    ended = until(lambda: shop.read(RENTER, path), lambda found: found["status"] == "expired")
    assert (ended["charged"]["amount"], ended["access_epoch"]) == ("1.50", 2)
    assert float(shop.wallet("renters")[0]) == before - 1.5
    assert shop.wallet("renters")[1] == "0.00"
    assert shop.read(SELLER, path)["status"] == "expired"
    metrics = shop.clients[RENTER].get("/metrics").text
    assert 'soma_rental_lateness_seconds_count{kind="rental"}' in metrics


def test_a_quote_is_what_the_rental_reserves(shop: Shop) -> None:
    for minutes in (1, 60, 61, 600):
        quoted = shop.made(RENTER, "/v1/personas/harbour-pilot/rent/quote", {"minutes": minutes})
        made = shop.made(RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": minutes})
        assert (quoted["amount"], quoted["minutes"]) == (made["reserved"], made["minutes"])
        assert quoted["capsule"] == shop.capsule.address
        ended = shop.made(RENTER, f"/v1/rentals/{made['id']}/end")
        assert ended["charged"]["amount"] == "0.00"
    too_long = shop.post(RENTER, "/v1/personas/harbour-pilot/rent/quote", {"minutes": 60 * 24 * 366 + 1})
    assert too_long.status_code == 400
    mine = shop.post(SELLER, "/v1/personas/harbour-pilot/rent/quote", {"minutes": 1})
    assert mine.json()["code"] == "self_dealing"


def test_nobody_is_let_in_at_or_after_the_end_however_often_one_asks(shop: Shop) -> None:
    rental = shop.made(RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": 60})
    active = shop.made(RENTER, f"/v1/rentals/{rental['id']}/activate")
    shop.wait(HOUR_S - 1)
    answers = [shop.read(RENTER, f"/v1/rentals/{rental['id']}/entitlement")]
    while answers[-1]["granted"]:
        answers.append(shop.read(RENTER, f"/v1/rentals/{rental['id']}/entitlement"))
    assert len(answers) > 1
    for one in answers:
        assert one["granted"] == (one["checked_at"] < active["expires_at"])
    assert [one["granted"] for one in answers] == [True] * (len(answers) - 1) + [False]


def test_a_token_of_access_opens_nothing_of_the_api(shop: Shop) -> None:
    rental = shop.made(RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": 60})
    active = shop.made(RENTER, f"/v1/rentals/{rental['id']}/activate")
    with httpx.Client(base_url=shop.service.url, trust_env=False) as client:
        headers = {"Authorization": f"Bearer {active['access_token']}"}
        assert client.get(f"/v1/rentals/{rental['id']}", headers=headers).status_code == 401
    ended = shop.made(RENTER, f"/v1/rentals/{rental['id']}/end")
    assert (ended["status"], ended["charged"]["amount"]) == ("ended", "0.50")
    assert shop.read(RENTER, f"/v1/rentals/{rental['id']}/entitlement?epoch=1")["granted"] is False


def test_strangers_see_nothing_and_a_seller_gets_no_token(shop: Shop) -> None:
    rental = shop.made(RENTER, "/v1/personas/harbour-pilot/rent", {"minutes": 60})
    shop.made(RENTER, f"/v1/rentals/{rental['id']}/activate")
    for path in ("", "/entitlement"):
        answer = shop.clients[STRANGER].get(f"/v1/rentals/{rental['id']}{path}")
        assert (answer.status_code, answer.json()["code"]) == (404, "rental_not_found")
    assert shop.post(STRANGER, f"/v1/rentals/{rental['id']}/end").json()["code"] == "rental_not_found"
    assert shop.read(STRANGER, "/v1/rentals")["items"] == []
    assert rental["id"] in [one["id"] for one in shop.read(SELLER, "/v1/rentals")["items"]]
    seen = shop.read(SELLER, f"/v1/rentals/{rental['id']}/entitlement")
    assert (seen["granted"], seen["access_token"]) == (True, None)
    assert (
        shop.post(SELLER, "/v1/personas/harbour-pilot/rent", {"minutes": 1}).json()["code"] == "self_dealing"
    )
    shop.made(RENTER, f"/v1/rentals/{rental['id']}/end")


def test_a_purchase_is_given_back_or_settled_by_the_timer(shop: Shop) -> None:
    returned = shop.made(RENTER, "/v1/personas/harbour-pilot/purchase")
    assert shop.made(RENTER, f"/v1/purchases/{returned['id']}/return")["status"] == "refunded"
    kept = shop.made(RENTER, "/v1/personas/harbour-pilot/purchase")
    assert shop.read(RENTER, f"/v1/purchases/{kept['id']}/entitlement")["granted"] is True
    shop.wait(14 * 24 * HOUR_S)
    path = f"/v1/purchases/{kept['id']}"
    until(lambda: shop.read(RENTER, path), lambda found: found["status"] == "settled")
    assert shop.post(RENTER, f"{path}/return").json()["code"] == "refund_closed"
    listed = shop.read(SELLER, "/v1/purchases?persona_id=harbour-pilot")["items"]
    assert [one["status"] for one in listed] == ["settled", "refunded"]


def test_a_subscription_is_renewed_by_the_timer_and_ends_when_it_shall_not_be(shop: Shop) -> None:
    made = shop.made(RENTER, "/v1/personas/harbour-pilot/subscribe", {"zone": "Europe/Berlin"})
    path = f"/v1/subscriptions/{made['id']}"
    assert made["access_token"]
    assert shop.read(RENTER, f"{path}/entitlement")["granted"] is True
    shop.wait((moment_of(made["period_end"]) - moment_of(made["period_start"])).total_seconds() + 1)
    renewed = until(lambda: shop.read(RENTER, path), lambda found: found["renewals"] == 1)
    assert renewed["period_start"] == made["period_end"]
    assert shop.made(RENTER, f"{path}/cancel")["cancel_at_end"] is True
    assert shop.made(RENTER, f"{path}/resume")["cancel_at_end"] is False
    assert shop.made(RENTER, f"{path}/change")["status"] == "active"
    shop.made(RENTER, f"{path}/cancel", {"when": "period_end"})
    shop.wait(32 * 24 * HOUR_S)
    assert shop.read(RENTER, f"{path}/entitlement")["granted"] is False
    ended = until(lambda: shop.read(RENTER, path), lambda found: found["status"] == "ended")
    assert ended["reserved"] is None


def test_a_revoked_capsule_ends_what_runs_on_it(shop: Shop) -> None:
    capsule = published(shop.stage, "night-watch")
    rental = shop.made(RENTER, "/v1/personas/night-watch/rent", {"minutes": 600})
    shop.made(RENTER, f"/v1/rentals/{rental['id']}/activate")
    waiting = shop.made(RENTER, "/v1/personas/night-watch/rent", {"minutes": 60})
    subscription = shop.made(RENTER, "/v1/personas/night-watch/subscribe")
    purchase = shop.made(RENTER, "/v1/personas/night-watch/purchase")
    path = f"/v1/rentals/{rental['id']}"
    shop.made(
        OPERATOR, f"/v1/capsules/{capsule.address}/revoke", {"reason": "it misled people", "rentals": "end"}
    )
    assert shop.read(RENTER, f"{path}/entitlement")["why"] == "revoked"
    assert shop.read(RENTER, f"/v1/purchases/{purchase['id']}/entitlement")["why"] == "revoked"
    for one in (path, f"/v1/rentals/{waiting['id']}", f"/v1/purchases/{purchase['id']}"):
        until(lambda one=one: shop.read(RENTER, one), lambda found: found["status"] == "revoked")
    ended = until(
        lambda: shop.read(RENTER, f"/v1/subscriptions/{subscription['id']}"),
        lambda found: found["status"] == "ended",
    )
    assert ended["reserved"] is None
    assert shop.read(RENTER, path)["charged"]["amount"] == "0.50"
    assert shop.wallet("renters")[1] == "0.00"
    events = shop.read(OPERATOR, f"/v1/log/streams/offboarding/{capsule.address.removeprefix('sha3-512:')}")
    (done,) = events["items"]
    assert done["record"]["type"] == "offboarding.completed"

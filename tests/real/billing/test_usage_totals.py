"""What was used, summed up in the database: equal to a plain reading of the log, at every position, corrections too."""

from __future__ import annotations

import random
from datetime import timedelta

from domain.billing.invoices import Source
from domain.values import moment_text
from ops.usage_totals import Stretch, usage_readings, usage_totals
from tests.real.billing.billing_desk import Desk, plain_totals


def test_totals_are_those_of_a_plain_reading_of_the_log_at_every_position(office: Desk) -> None:
    rng = random.Random(7)
    tenants = [office.customer() for _ in range(4)]
    begun = office.now
    moments = [moment_text(begun + timedelta(seconds=30 * n)) for n in range(-20, 21)]
    for _ in range(12):
        for one in tenants:
            readings = [
                {
                    "occurred_at": rng.choice(moments),
                    "provider": rng.choice(["p", "q"]),
                    "model": rng.choice(["m1", "m2"]),
                    "persona_id": rng.choice([None, "guide"]),
                    "tokens_in": rng.randrange(10**6),
                    "tokens_out": rng.randrange(10**12),
                    "cached_tokens": rng.choice([None, 3]),
                    "requests": rng.randrange(1, 9),
                }
                for _ in range(rng.randrange(1, 30))
            ]
            office.use(one, *readings)
            for wrong in rng.sample(one.read("/v1/usage")["items"], 1):
                change = rng.choice(
                    [{"tokens_in": 1}, {"occurred_at": rng.choice(moments)}, {"model": "m3"}, {"requests": 0}]
                )
                body = {"replaces": wrong["version"], "reason": "it was wrong"} | change
                one.made(f"/v1/usage/{wrong['id']}/corrections", body)
    edges = sorted(rng.sample(moments, 6))
    stretches = [
        Stretch(one.tenant, start, end)
        for one in tenants
        for start, end in zip(edges, [*edges[1:], moments[-1]], strict=True)
    ]
    size = office.size
    for bound in (0, 1, size // 3, size // 2, size - 1, size, size + 5):
        found = office.service.run(usage_totals(office.service.runtime.reader.pool, stretches, bound))
        assert found == plain_totals(office.service, stretches, bound)
    assert sum(one.events for used in found.values() for one in used) > 100


def test_the_records_behind_a_total_are_listed_in_order_and_sum_up_to_it(office: Desk) -> None:
    one = office.customer()
    start, end = moment_text(office.now - timedelta(hours=1)), moment_text(office.now + timedelta(hours=1))
    office.use(one, *[{"tokens_in": n} for n in range(1, 30)], {"model": "m2", "tokens_in": 5})
    wrong = one.read("/v1/usage")["items"][5]
    one.made(
        f"/v1/usage/{wrong['id']}/corrections", {"replaces": 1, "reason": "too little", "tokens_in": 1_000}
    )
    pool, bound = office.service.runtime.reader.pool, office.size
    stretch = Stretch(one.tenant, start, end)
    used, _ = office.service.run(usage_totals(pool, [stretch], bound))[stretch]
    source = Source(start, end, "p", "m1", None)
    listed, after = [], -1
    while page := office.service.run(
        usage_readings(pool, one.tenant, [source], bound=bound, after=after, limit=7)
    ):
        listed += page
        after = page[-1].position
    assert [r.position for r in listed] == sorted(r.position for r in listed)
    assert (len(listed), listed[0].position, listed[-1].position) == (used.events, used.first, used.last)
    assert sum(r.data["tokens_in"] for r in listed) == used.tokens_in
    mixed = sum(int(r.address.removeprefix("sha3-512:")[:16], 16) for r in listed) % 2**64
    assert f"{mixed:016x}" == used.fingerprint
    assert listed[-1].version == 2


def test_what_was_known_before_a_correction_stays_known(office: Desk) -> None:
    one = office.customer()
    start, end = moment_text(office.now - timedelta(hours=1)), moment_text(office.now + timedelta(hours=1))
    office.use(one, {"tokens_in": 10})
    before = office.size
    (item,) = one.read("/v1/usage")["items"]
    one.made(f"/v1/usage/{item['id']}/corrections", {"replaces": 1, "reason": "r", "tokens_in": 4})
    pool, stretch = office.service.runtime.reader.pool, Stretch(one.tenant, start, end)
    sums = [
        office.service.run(usage_totals(pool, [stretch], bound))[stretch][0].tokens_in
        for bound in (before, office.size)
    ]
    assert sums == [10, 4]

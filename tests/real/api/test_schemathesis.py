"""Generated requests, good and bad, against every operation of the document: the service does what the document says.

The requests are the same in each run; SOMA_SCHEMATHESIS_EXAMPLES makes others, that many per operation.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import checks
from schemathesis.specs.openapi import checks as promised

from api.app import create_app
from ops.settings import Settings
from tests.real.api.commerce import sold_and_billed
from tests.real.api.world import World, money

EXAMPLES = int(os.environ.get("SOMA_SCHEMATHESIS_EXAMPLES", "0"))
TENANT = "fuzz-lab"
ROLES = ("operator", "owner", "provider")
KEPT = (
    checks.not_a_server_error,
    promised.status_code_conformance,
    promised.content_type_conformance,
    promised.response_headers_conformance,
    promised.response_schema_conformance,
)
REFUSED = (
    promised.negative_data_rejection,
    promised.unsupported_method,
)


def _document() -> dict[str, Any]:
    """Write the document without a service: tests are collected from it before anything runs."""
    with TemporaryDirectory() as data_dir:
        return json.loads(json.dumps(create_app(Settings(data_dir=Path(data_dir))).openapi()))


DOCUMENT = _document()
# The service answers in another thread of this process, and what it draws at random looks to hypothesis like a draw of
# the strategy's own.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

schema = schemathesis.openapi.from_dict(
    DOCUMENT,
    config=schemathesis.Config.from_dict(
        {
            "generation": {"allow-extra-parameters": False},
            "checks": {
                "negative_data_rejection": {
                    "expected-statuses": [400, 401, 403, 404, 405, 409, 412, 413, 415, 422]
                }
            },
        }
    ),
    # A feed has no end, so nothing could be said of its answer; tests/real/feeds speaks to it.
).exclude(path="/v1/log/feed")


@pytest.fixture(scope="module")
def names(world: World) -> dict[str, Any]:
    """Make one of everything, so that generated requests also meet what is there."""
    owner, seller = world.speaker(TENANT, *ROLES), world.provider("fuzz-clinic")
    offer = world.offer(seller)
    world.offer(world.speaker(TENANT, *ROLES))
    done = world.completed(owner)
    fresh = world.intent(owner)
    dispute = owner.made(f"/v1/contracts/{done['id']}/disputes", {"reason": "to be fuzzed"})
    world.deposit(TENANT, "1000")
    world.owner("fuzz-other").made("/v1/accounts", {"currency": "USD"})
    transfer = owner.made("/v1/transfers", {"to_tenant": "fuzz-other", "amount": money("1")})
    event = world.operator.read(f"/v1/log/streams/contract/{done['id']}")["items"][0]
    return sold_and_billed(world, owner) | {
        "offer_id": offer["id"],
        "intent_id": fresh["id"],
        "contract_id": done["id"],
        "dispute_id": dispute["id"],
        "round_id": done["execution_round"],
        "transfer_id": transfer["id"],
        "account": f"wallet.{TENANT}.USD",
        "webhook_id": owner.made("/v1/webhooks", {"url": "https://127.0.0.1/"})["id"],
        "capsule": world.to_be_signed(TENANT, "somebody"),
        "name": "publication",
        "tenant": TENANT,
        "position": event["position"],
        "address": event["address"],
        "kind": "contract",
        "id": done["id"],
    }


def test_the_running_service_gives_the_document_that_is_tested(world: World) -> None:
    assert world.client.get("/openapi.json").json() == DOCUMENT


@schema.parametrize()
@settings(
    max_examples=EXAMPLES or 12,
    derandomize=not EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_the_service_keeps_what_the_document_says(case: Any, world: World, names: dict[str, Any]) -> None:
    token = {"Authorization": f"Bearer {world.token(TENANT, *ROLES)}"}
    with requests.Session() as session:
        session.trust_env = False
        # A list of one value travels as that value, so a list where one value is asked for may be good after all.
        lists = any(isinstance(value, list) for value in (case.query or {}).values())
        checked = KEPT if lists else (*KEPT, *REFUSED)
        case.call_and_validate(world.service.url, session, token, checks=list(checked))
        # Once more about things that are there, and on no condition that would end it early.
        case.path_parameters = {
            name: names.get(name, value) for name, value in (case.path_parameters or {}).items()
        }
        for header in ("If-Match", "Idempotency-Key"):
            case.headers.pop(header, None)
        case.call_and_validate(world.service.url, session, token, checks=list(KEPT))

"""Who asks: every token that is none is refused, and a role opens what it is for and nothing else."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.real.api.world import MISSING, UNSEEN, World, intent_body, money, offer_body, refused


def _claims(world: World, **changed: Any) -> dict[str, Any]:
    read = world.service.settings
    claims = {
        "iss": read.jwt_issuer, "aud": read.jwt_audience, "sub": "mallory", "tenant": "lab", "roles": ["owner"],
        "exp": int(time.time()) + 600,
    } | changed  # fmt: skip
    return {name: value for name, value in claims.items() if value is not MISSING}


def _own_key(world: World) -> Ed25519PrivateKey:
    pem = world.service.settings.issuer_key_path.read_bytes()
    key = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(key, Ed25519PrivateKey)
    return key


def _signed(world: World, **changed: Any) -> str:
    return jwt.encode(_claims(world, **changed), _own_key(world), algorithm="EdDSA")


def _unsigned(world: World) -> str:
    return jwt.encode(_claims(world), None, algorithm="none")  # type: ignore[arg-type]


def _by_public_key(world: World) -> str:
    public = _own_key(world).public_key().public_bytes_raw()
    return jwt.encode(_claims(world), public, algorithm="HS256")


def _changed(world: World) -> str:
    head, _, signature = _signed(world).split(".")
    claims = json.dumps(_claims(world, roles=["operator"])).encode()
    return f"{head}.{base64.urlsafe_b64encode(claims).rstrip(b'=').decode()}.{signature}"


TOKENS: dict[str, Callable[[World], str]] = {
    "none": lambda world: "",
    "only a word": lambda world: "Bearer",
    "another scheme": lambda world: "Basic bGFiOmxhYg==",
    "garbage": lambda world: "Bearer garbage",
    "three parts of garbage": lambda world: "Bearer a.b.c",
    "not ASCII": lambda world: "Bearer \u00e9.\u00e9.\u00e9",
    "too long": lambda world: "Bearer " + "x" * 9_000,
    "expired": lambda world: "Bearer " + _signed(world, exp=int(time.time()) - 60),
    "not yet": lambda world: "Bearer " + _signed(world, nbf=int(time.time()) + 600),
    "without an end": lambda world: "Bearer " + _signed(world, exp=MISSING),
    "of another key": lambda world: (
        "Bearer " + jwt.encode(_claims(world), Ed25519PrivateKey.generate(), algorithm="EdDSA")
    ),
    "unsigned": lambda world: "Bearer " + _unsigned(world),
    "signed with our public key": lambda world: "Bearer " + _by_public_key(world),
    "changed": lambda world: "Bearer " + _changed(world),
    "for others": lambda world: "Bearer " + _signed(world, aud="another-service"),
    "of another issuer": lambda world: "Bearer " + _signed(world, iss="somebody"),
    "without a tenant": lambda world: "Bearer " + _signed(world, tenant=MISSING),
    "of a tenant that cannot be": lambda world: "Bearer " + _signed(world, tenant="Lab/../x"),
    "of a list of tenants": lambda world: "Bearer " + _signed(world, tenant=["lab"]),
    "without a subject": lambda world: "Bearer " + _signed(world, sub=MISSING),
    "of a subject that cannot be": lambda world: "Bearer " + _signed(world, sub="a b"),
    "with roles that are no list": lambda world: "Bearer " + _signed(world, roles="operator"),
    "with roles that are no names": lambda world: "Bearer " + _signed(world, roles=[["operator"]]),
}


@pytest.mark.parametrize("token", list(TOKENS.values()), ids=list(TOKENS))
def test_a_token_that_is_none_is_refused(world: World, token: Callable[[World], str]) -> None:
    headers = {"Authorization": token(world).encode()}
    answer = world.client.get("/v1/offers", headers=headers)
    refused(answer, 401, "unauthorized")
    assert answer.headers["www-authenticate"] == "Bearer"
    refused(world.client.post("/v1/offers", headers=headers, json={}), 401, "unauthorized")


def test_roles_nobody_knows_give_nothing(world: World) -> None:
    headers = {"Authorization": "Bearer " + _signed(world, roles=["root", "OPERATOR", "superuser"])}
    refused(world.client.post("/v1/intents", headers=headers, json=intent_body("lab")), 403, "forbidden")


def test_the_wrong_role_is_refused(world: World) -> None:
    refused(
        world.owner("lab").post("/v1/offers", offer_body("lab") | {"dataset_fingerprint": UNSEEN}),
        403,
        "forbidden",
    )
    refused(world.provider("clinic").post("/v1/intents", intent_body("clinic")), 403, "forbidden")
    deposit = {"tenant": "lab", "amount": money("1")}
    problem = refused(world.owner("lab").post("/v1/deposits", deposit), 403, "forbidden")
    assert problem["details"] == {"roles": ["billing", "operator"]}
    refused(world.owner("lab").get("/v1/trial_balance"), 403, "forbidden")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/v1/offers/{}", "offer_not_found"),
        ("/v1/intents/{}", "round_intent_not_found"),
        ("/v1/contracts/{}", "contract_not_found"),
        ("/v1/disputes/{}", "dispute_not_found"),
        ("/v1/rounds/{}", "round_not_found"),
        ("/v1/accounts/{}", "account_not_found"),
        ("/v1/transfers/{}", "transfer_not_found"),
    ],
)
def test_what_does_not_exist_is_not_found(world: World, path: str, code: str) -> None:
    for name in ("offer-0000000000000000", "x", "wallet.nobody.USD", "..."[:1] + "a"):
        answer = world.operator.get(path.format(name))
        assert answer.status_code == (404 if name[0].isalnum() else 400)
        if name[0].isalnum():
            refused(answer, 404, code)


def test_a_query_parameter_that_does_not_exist_is_refused_by_name(world: World) -> None:
    """A misspelt filter must not look like one that found everything."""
    answer = world.operator.get("/v1/offers?statsu=active")
    assert answer.status_code == 400
    assert answer.json()["code"] == "unknown_field"
    assert "statsu" in answer.json()["detail"]

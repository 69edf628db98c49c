"""A policy engine elsewhere: an Open Policy Agent, asked over its REST API.

OPA holds the policies, so the answer's address is read from OPA too: the text of the one module of the package, before
the question and after it. Where the text changed meanwhile nobody could say which one answered, and it is asked again.
"""

from __future__ import annotations

import time
from typing import Any

import httpx
import msgspec

from domain.errors import PolicyUnavailableError
from domain.trust.judgements import Judgement
from ops import telemetry
from ops.rego_answer import judgement_of
from ops.rego_text import Policy, package_of, policy_of

ENGINE = "opa"
TRIES_MAX = 3


class _Module(msgspec.Struct):
    id: str
    raw: str


class _Modules(msgspec.Struct):
    result: list[_Module]


class _Result(msgspec.Struct):
    result: Any = None


class RemoteOpa:
    """Judges by asking an OPA server."""

    def __init__(self, url: str, token: str | None = None, timeout_s: float = 5.0) -> None:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        # The environment's proxies are not asked: a policy's answer comes from where the settings say.
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/"), headers=headers, timeout=timeout_s, trust_env=False
        )

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Judge an input; three requests, and more only while the policy is being changed.

        Errors: policy_unavailable.
        """
        started = time.perf_counter()
        try:
            judgement = await self._judge(package, question, digest)
        except PolicyUnavailableError:
            telemetry.policy_failed(package)
            raise
        telemetry.policy_judged(package, judgement.allow, judgement.reasons, time.perf_counter() - started)
        return judgement

    async def _judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        before = await self.policy(package)
        for _ in range(TRIES_MAX):
            path = f"/v1/data/{package.replace('.', '/')}/decision"
            told = await self._ask(package, "POST", path, {"input": question})
            after = await self.policy(package)
            if after.digest == before.digest:
                return judgement_of(_read(package, told, _Result).result, before, digest, ENGINE)
            before = after
        raise PolicyUnavailableError(f"the policy {package} changes faster than it answers", package=package)

    async def policy(self, package: str) -> Policy:
        """Read the one module of a package that OPA holds.

        Errors: policy_unavailable.
        """
        held = _read(package, await self._ask(package, "GET", "/v1/policies"), _Modules).result
        found = [module.raw for module in held if package_of(module.raw) == package]
        if len(found) != 1:
            raise PolicyUnavailableError(
                f"the OPA server holds {len(found)} modules of {package}, and one is needed", package=package
            )
        return policy_of(package, found[0].encode())

    async def close(self) -> None:
        await self._client.aclose()

    async def _ask(self, package: str, method: str, path: str, body: dict[str, Any] | None = None) -> bytes:
        try:
            answer = await self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise PolicyUnavailableError(
                "the OPA server does not answer", package=package, internal=str(error)
            ) from error
        if answer.status_code != 200:
            raise PolicyUnavailableError(
                f"the OPA server answers {answer.status_code}", package=package, internal=answer.text[:500]
            )
        return answer.content


def _read(package: str, data: bytes, form: Any) -> Any:
    try:
        return msgspec.json.decode(data, type=form)
    except msgspec.MsgspecError as error:
        raise PolicyUnavailableError(
            "the OPA server answers in another form", package=package, internal=str(error)
        ) from error

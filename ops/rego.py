"""The policy engine inside this process: Rego, compiled once, asked with one input at a time.

Whatever goes wrong, a policy that is missing, one that does not compile, an answer of another form, ends as
`policy_unavailable` and never as an allowance.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import msgspec
import regopy

from domain.errors import PolicyUnavailableError
from domain.trust.judgements import PACKAGES, Judgement
from ops import telemetry
from ops.opa import RemoteOpa
from ops.rego_answer import judgement_of
from ops.rego_text import Policy, read_policy
from ops.settings import Settings

ENGINE = f"regopy {regopy.__version__}"

log = telemetry.logger(__name__)


class PolicyEngine(Protocol):
    """An engine as the service holds it: it judges, shows its policies, and is closed."""

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Judge an input.

        Errors: policy_unavailable.
        """

    async def policy(self, package: str) -> Policy:
        """Give the policy that judges now.

        Errors: policy_unavailable.
        """

    async def close(self) -> None:
        """Let go of what it holds."""


def open_engine(settings: Settings) -> PolicyEngine:
    """Open the engine of the settings: OPA where there is a URL, else the one inside this process."""
    telemetry.policies_known(PACKAGES)
    if settings.opa_url is not None:
        token = settings.opa_token.get_secret_value() if settings.opa_token else None
        return RemoteOpa(settings.opa_url, token, settings.opa_timeout_s)
    return RegoEngine(settings.policy_dir)


class RegoEngine:
    """Judges with policies compiled in this process."""

    def __init__(self, directory: Path | None = None) -> None:
        self._compiled: dict[str, _Compiled] = {}
        self._faults: dict[str, PolicyUnavailableError] = {}
        for package in PACKAGES:
            try:
                self._compiled[package] = _Compiled(read_policy(package, directory))
            except PolicyUnavailableError as fault:
                # The ledger starts all the same; what needs this policy is refused until it is mended.
                self._faults[package] = fault
                log.error("policy_unavailable", package=package, why=str(fault))

    async def judge(self, package: str, question: dict[str, Any], digest: str) -> Judgement:
        """Judge an input, off the loop; about half a millisecond.

        Errors: policy_unavailable.
        """
        started = time.perf_counter()
        try:
            compiled = self._find(package)
            answer = await asyncio.to_thread(compiled.ask, question)
            judgement = judgement_of(answer, compiled.policy, digest, ENGINE)
        except PolicyUnavailableError:
            telemetry.policy_failed(package)
            raise
        telemetry.policy_judged(package, judgement.allow, judgement.reasons, time.perf_counter() - started)
        return judgement

    async def policy(self, package: str) -> Policy:
        return self._find(package).policy

    async def close(self) -> None:
        self._compiled.clear()

    def _find(self, package: str) -> _Compiled:
        found = self._compiled.get(package)
        if found is None:
            fault = self._faults.get(package)
            raise PolicyUnavailableError(
                str(fault) if fault else f"there is no policy {package}", package=package
            )
        return found


class _Compiled:
    """One policy, compiled; asked by one thread at a time, since its input is set beside the question."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._entry = policy.package.replace(".", "/") + "/decision"
        self._lock = Lock()
        self._rego = regopy.Interpreter()
        try:
            self._rego.add_module(policy.package, policy.text)
            self._bundle = self._rego.build(f"answer = data.{policy.package}.decision", [self._entry])
            is_whole = self._bundle.ok()
        except (regopy.RegoError, ValueError, RuntimeError) as error:
            raise PolicyUnavailableError(
                f"the policy {policy.package} does not compile", package=policy.package, internal=str(error)
            ) from error
        if not is_whole:
            raise PolicyUnavailableError(
                f"the policy {policy.package} does not compile", package=policy.package
            )

    def ask(self, question: dict[str, Any]) -> Any:
        # As a term and never as an object: the binding copies the texts of objects without escaping them.
        term = json.dumps(question, ensure_ascii=True)
        try:
            with self._lock:
                self._rego.set_input_term(term)
                told = str(self._rego.query_bundle_entrypoint(self._bundle, self._entry))
            return msgspec.json.decode(told)["expressions"][0]
        except (regopy.RegoError, msgspec.DecodeError, LookupError, TypeError, ValueError) as error:
            raise PolicyUnavailableError(
                f"the policy {self.policy.package} came to no answer",
                package=self.policy.package,
                internal=str(error),
            ) from error

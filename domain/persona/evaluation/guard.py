"""The utility guard asks whether an answer is worth what it costs.

    U  = lam ln p     - mu c     - nu l         what a request is worth
    U0 = lam ln p_min - mu c_max - nu l_max     the least that the constitution accepts
    accepted if and only if U >= U0

p is the chance of a right answer, which the service estimates from what it has measured; a caller never states it.
Since ln p is never positive, a bar at zero would refuse whatever is not certain and free; the bar is therefore drawn by
the constitution, in the same units. What cannot be reckoned is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal, InvalidOperation, localcontext
from typing import Any

import msgspec

from domain.errors import EvaluationSuiteError
from domain.persona.evaluation.statistics import arithmetic, micro_text, micros_of

# Each weight's lowest and highest value.
BOUNDS = {"lam": ("0.1", "5"), "mu": ("0.01", "5"), "nu": ("0.01", "5")}
_NAMES = ("lam", "mu", "nu", "p_min", "c_max", "l_max")


class Weights(msgspec.Struct, frozen=True):
    """The constitution's terms of utility.

    Units: c in thousands of tokens, l in seconds; lam, mu and nu turn nats, those and these into utility.
    """

    lam: Decimal
    mu: Decimal
    nu: Decimal
    p_min: Decimal
    c_max: Decimal
    l_max: Decimal

    @classmethod
    def of(cls, block: Mapping[str, Any]) -> Weights:
        """Read the utility block of a constitution.

        Errors: evaluation_suite_invalid.
        """
        try:
            read = {name: Decimal(_text(block[name])) for name in _NAMES}
        except (KeyError, TypeError, InvalidOperation) as error:
            raise EvaluationSuiteError(
                "the constitution's utility block needs six decimals", needed=list(_NAMES)
            ) from error
        weights = cls(**read)
        if (why := weights._fault()) is not None:
            raise EvaluationSuiteError(f"the constitution's utility block is out of bounds: {why}", why=why)
        return weights

    def _fault(self) -> str | None:
        for name, (low, high) in BOUNDS.items():
            if not Decimal(low) <= getattr(self, name) <= Decimal(high):
                return f"{name} is from {low} to {high}"
        if not 0 < self.p_min < 1:
            return "p_min is between 0 and 1"
        return (
            None if 0 <= self.c_max <= 10**6 and 0 <= self.l_max <= 10**6 else "c_max and l_max are 0 or more"
        )

    @property
    def bound(self) -> int:
        """Give U0 in millionths."""
        return self._utility(self.p_min, self.c_max, self.l_max)

    def utility(self, p_micros: int, cost_micros: int, latency_micros: int) -> int | None:
        """Give U in millionths, or nothing where it cannot be reckoned.

        Units: all in millionths: of certainty, of a thousand tokens, of a second.
        """
        if not 0 < p_micros <= 1_000_000 or cost_micros < 0 or latency_micros < 0:
            return None
        parts = (Decimal(value).scaleb(-6) for value in (p_micros, cost_micros, latency_micros))
        return self._utility(*parts)

    def _utility(self, p: Decimal, cost: Decimal, latency: Decimal) -> int:
        with localcontext(arithmetic()):
            return micros_of(self.lam * p.ln() - self.mu * cost - self.nu * latency)


class Verdict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the guard made of one request; what could not be reckoned is null, and the request then refused."""

    accepted: bool
    utility: str | None
    bound: str | None


def judge(weights: Weights | None, p_micros: int | None, cost_micros: int, latency_micros: int) -> Verdict:
    """Accept a request or refuse it; without weights or an estimate it is refused."""
    if weights is None:
        return Verdict(False, None, None)
    bound = weights.bound
    value = None if p_micros is None else weights.utility(p_micros, cost_micros, latency_micros)
    if value is None:
        return Verdict(False, None, micro_text(bound))
    return Verdict(value >= bound, micro_text(value), micro_text(bound))


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.isascii() or len(value) > 24 or not value.strip() == value:
        raise TypeError("a decimal is written as a string")
    if not all(char.isdigit() or char == "." for char in value):
        raise TypeError("a plain decimal: digits and a point")
    return value

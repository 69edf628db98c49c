"""What an engine may answer: allow, reasons, obligations; anything else is no answer."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from domain.errors import PolicyUnavailableError
from domain.trust.judgements import Judgement
from ops.rego_text import Policy

_Line = Annotated[str, msgspec.Meta(max_length=300)]
_Lines = Annotated[list[_Line], msgspec.Meta(max_length=100)]


class _Answer(msgspec.Struct, forbid_unknown_fields=True):
    allow: bool
    reasons: _Lines
    obligations: _Lines


def judgement_of(answer: Any, policy: Policy, input_digest: str, engine: str) -> Judgement:
    """Take an engine's answer as a judgement, if it is one.

    An answer that allows and gives reasons against says two things at once, so it says nothing.
    Errors: policy_unavailable.
    """
    try:
        read = msgspec.convert(answer, _Answer)
    except msgspec.ValidationError as error:
        raise PolicyUnavailableError(
            f"the policy {policy.package} answers in another form: {error}", package=policy.package
        ) from error
    if read.allow and read.reasons:
        raise PolicyUnavailableError(
            f"the policy {policy.package} allows and gives reasons against", package=policy.package
        )
    return Judgement(
        package=policy.package,
        allow=read.allow,
        reasons=sorted(read.reasons),
        obligations=sorted(read.obligations),
        policy_digest=policy.digest,
        input_digest=input_digest,
        engine=engine,
    )

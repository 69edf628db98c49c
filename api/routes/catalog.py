"""The catalogue of personas over HTTP: search, and what there is to search by."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import Response

from api.http import READ_PROBLEMS, JsonRoute, Limit, Who, answers, json_response, object_of, sees_all
from domain.ledger import Caller, UseCase
from domain.persona import (
    capsules,
    claims,
    evaluations,
    imports,
    personas,
    publication,
    reviewing,
    standing,
    transfers,
)
from ops import telemetry
from ops.catalogue import FACETS, Catalogue, Facet, Found, Scope, Wanted

router = APIRouter(prefix="/v1", tags=["catalogue"], route_class=JsonRoute)

VALUES_MAX = 20
SORTS = {
    "newest": "The latest published first.",
    "name": "By display name.",
    "relevance": "Those that say the words in their name, id or domains first; among equals, the latest published.",
}
Words = Annotated[
    str | None,
    Query(
        min_length=1,
        max_length=200,
        pattern=r"^[^\x00-\x1f]*$",
        description='Words to look for, in any form; "exact phrases", `or` and -without are understood.',
    ),
]
Value = Annotated[str, Query(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f]*$")]
Values = Annotated[
    list[Value],
    Query(
        max_length=VALUES_MAX, description="Given again, any of the values will do; see /v1/catalog/schema."
    ),
]
NONE: list[str] = []


class Search:
    """The query of a search; each facet is a parameter of its own."""

    def __init__(
        self,
        q: Words = None,
        domain: Values = NONE,
        status: Values = NONE,
        review: Values = NONE,
        badge: Values = NONE,
        trust: Values = NONE,
        degraded: Values = NONE,
        pricing: Values = NONE,
        currency: Values = NONE,
        provider: Values = NONE,
        model: Values = NONE,
        tool: Values = NONE,
        scope: Values = NONE,
        embedding: Values = NONE,
        tenant: Values = NONE,
        sort: Annotated[
            Literal["newest", "name", "relevance"] | None,
            Query(description="relevance where words are given, newest otherwise."),
        ] = None,
        counts: Annotated[
            bool | None,
            Query(description="Whether total and facets are counted; on the first page they are."),
        ] = None,
        limit: Limit = 50,
        cursor: Annotated[
            str | None, Query(max_length=2_000, description="`next` of the page before.")
        ] = None,
    ) -> None:
        given = locals()
        words = q if q and q.strip() else None
        chosen = {facet.name: tuple(sorted(set(given[facet.name]))) for facet in FACETS if given[facet.name]}
        order = sort or ("newest" if words is None else "relevance")
        counted = cursor is None if counts is None else counts
        self.wanted = Wanted(Scope(""), words, chosen, order, cursor, limit, counted)


Asked = Annotated[Search, Depends(Search)]


async def found(request: Request, who: Caller, asked: Search) -> Response:
    """Search for whoever asks, and print the page.

    Errors: invalid_cursor, unavailable.
    """
    scope = scope_of(who)
    catalogue: Catalogue = request.app.state.catalogue
    with telemetry.CATALOGUE_SEARCH_SECONDS.time():
        page = await catalogue.search(asked.wanted._replace(scope=scope))
    cards = [card(state, inside=_is_inside(state, scope)) for state in page.states]
    return json_response({"items": cards, "next": page.next, "total": page.total, "facets": _printed(page)})


def scope_of(who: Caller) -> Scope:
    """Say what a caller sees: what is on show, what is its tenant's, and on the platform what waits for review."""
    return Scope(who.tenant, submitted=who.tenant == "platform", all=sees_all(who))


def _is_inside(state: dict[str, Any], scope: Scope) -> bool:
    return scope.all or scope.submitted or state["tenant"] == scope.tenant


def _printed(page: Found) -> dict[str, list[dict[str, Any]]] | None:
    if page.facets is None:
        return None
    return {
        name: [{"value": value, "count": count} for value, count in counts]
        for name, counts in page.facets.items()
    }


# --------------------------------------------------------------------------- what is shown of a persona


class Field(NamedTuple):
    """A member of what is shown of a persona."""

    name: str
    type: str | list[str]
    meaning: str


FIELDS = (
    Field("persona_id", "string", "Its id, given once."),
    Field("display_name", "string", "Its name."),
    Field("summary", "string", "What it is, in a few sentences."),
    Field("domains", "array", "What it is about."),
    Field("tenant", "string", "Whose it is."),
    Field("status", "string", "draft, listed, degraded, suspended, withdrawn or revoked."),
    Field("version", ["string", "null"], "The published version; null before there is one."),
    Field("attestation_hash", ["string", "null"], "The address of its capsule: what was reviewed and signed."),
    Field("published_at", ["string", "null"], "When that version was published."),
    Field("review", "string", "Where the review of the version submitted last stands."),
    Field("compliance", ["object", "null"], "badge: verified, warnings or override; notes: why."),
    Field("trust", ["string", "null"], "verified, or needs_signatures where too few keys still vouch for it."),
    Field("degraded", "array", "Why it is worse than it was; empty if it is not."),
    Field("model", ["object", "null"], "The model box it was made for, and who runs it."),
    Field("tools", "array", "What it may call, and with which access."),
    Field("pricing", "array", "How it can be had, and for how much."),
    Field("item_count", ["integer", "null"], "How many memories it has."),
    Field("embedding_model", ["string", "null"], "What its memories were embedded with."),
    Field("token_estimate", ["object", "null"], "Tokens of its prompts and of a memory, and how they were estimated."),
    Field("versions", "array", "Its versions, oldest first; strangers see those that were published."),
    Field("updated_at", "string", "When any of this changed last."),
)  # fmt: skip
_PUBLISHED = (
    "version", "published_at", "compliance", "trust", "model", "item_count", "embedding_model", "token_estimate",
)  # fmt: skip


def card(state: dict[str, Any], *, inside: bool) -> dict[str, Any]:
    """Print what the catalogue shows of a persona; inside tells whether drafts are shown too."""
    shown = state.get("published") or {}
    versions = [v for v in state["versions"] if inside or v["status"] in personas.SHOWN]
    return {
        "persona_id": state["id"],
        **{
            name: state[name] for name in ("display_name", "summary", "domains", "tenant", "status", "review")
        },
        **{name: shown.get(name) for name in _PUBLISHED},
        "attestation_hash": shown.get("capsule"),
        **{name: shown.get(name, []) for name in ("degraded", "tools", "pricing")},
        "versions": versions,
        "updated_at": state["updated_at"],
    }


CARD = object_of(**{field.name: field.type for field in FIELDS})
COUNTED = {"type": "array", "items": object_of(value="string", count="integer")}
PAGE = object_of(
    items={"type": "array", "items": CARD},
    next=["string", "null"],
    total=["integer", "null"],
    facets={"type": ["object", "null"], "additionalProperties": COUNTED},
)


@router.get("/personas", responses=answers(PAGE))
async def find_personas(request: Request, who: Who, asked: Asked) -> Response:
    """Search personas: those on show, and the caller's own in whatever state."""
    return await found(request, who, asked)


@router.get("/catalog/list", responses=answers(PAGE))
async def list_catalogue(request: Request, who: Who, asked: Asked) -> Response:
    """Search personas by words and facets; whatever is found is counted by every facet."""
    return await found(request, who, asked)


# --------------------------------------------------------------------------- what there is to search by


class Action(NamedTuple):
    """Something that can be done with personas, and the request it takes.

    Its roles are those of the use case; where that is open to all, since refused attempts are written down too, `roles`
    names those that its policy has the request from.
    """

    name: str
    method: str
    path: str
    use_case: UseCase
    roles: tuple[str, ...] = ()

    def shown(self, who: Caller) -> dict[str, Any]:
        """Print the action, and whether the caller has a role for it."""
        allowed: frozenset[str] = frozenset(self.roles) or self.use_case.roles  # type: ignore[attr-defined]
        meaning = (self.use_case.__doc__ or "").partition("\n")[0]
        return {
            "name": self.name, "method": self.method, "path": self.path, "meaning": meaning,
            "roles": sorted(allowed), "allowed": bool(allowed & who.roles),
        }  # fmt: skip


# Whom the policies that ship with the release let attempt these; a house with policies of its own may differ.
_DOWNLOADERS = (*personas.AUTHORS, "reviewer", "auditor")
_CAPSULE = "/v1/capsules/{capsule_id}"
_CLAIM = "/v1/claims/{claim_id}"
ACTIONS = (
    Action("create", "POST", "/v1/personas", personas.create_persona),
    Action("describe", "PATCH", "/v1/personas/{persona_id}", personas.describe_persona),
    Action("evaluate", "POST", "/v1/evaluations", evaluations.request_evaluation),
    Action("export", "POST", "/v1/exports", transfers.request_export, personas.AUTHORS),
    Action("download", "GET", f"{_CAPSULE}/archive", transfers.download_capsule, _DOWNLOADERS),
    Action("import", "POST", "/v1/imports", imports.request_import, personas.AUTHORS),
    Action("submit", "POST", f"{_CAPSULE}/submit", capsules.submit_capsule),
    Action("decide", "POST", "/v1/reviews/{capsule}/decisions", reviewing.decide),
    Action("sign", "POST", "/v1/signings/{capsule}/signatures", reviewing.sign),
    Action("preflight", "GET", f"{_CAPSULE}/preflight", publication.preflight),
    Action("publish", "POST", f"{_CAPSULE}/publish", publication.publish_capsule),
    Action("withdraw", "POST", f"{_CAPSULE}/withdraw", standing.withdraw_capsule),
    Action("suspend", "POST", f"{_CAPSULE}/suspend", standing.suspend_capsule),
    Action("reinstate", "POST", f"{_CAPSULE}/reinstate", publication.reinstate_capsule),
    Action("revoke", "POST", f"{_CAPSULE}/revoke", standing.revoke_capsule),
    Action("claim", "POST", f"{_CAPSULE}/claims", claims.open_claim),
    Action("take up a claim", "POST", f"{_CLAIM}/review", claims.review_claim),
    Action("uphold a claim", "POST", f"{_CLAIM}/uphold", claims.uphold_claim),
    Action("reject a claim", "POST", f"{_CLAIM}/reject", claims.reject_claim),
)

SCHEMA = object_of(
    facets={"type": "array", "items": object_of(
        name="string", title="string", meaning="string", multiple="boolean",
        values={"type": "array", "items": object_of(value="string", count="integer")})},
    fields={"type": "array", "items": object_of(name="string", type=["string", "array"], meaning="string")},
    sorts={"type": "array", "items": object_of(name="string", meaning="string")},
    search=object_of(parameter="string", meaning="string"),
    actions={"type": "array", "items": object_of(
        name="string", method="string", path="string", meaning="string", roles="array", allowed="boolean")},
    total="integer",
)  # fmt: skip


@router.get("/catalog/schema", responses=answers(SCHEMA, READ_PROBLEMS))
async def discover_catalogue(request: Request, who: Who) -> Response:
    """Tell what personas can be searched by, what is shown of them, and what the caller may do with them."""
    catalogue: Catalogue = request.app.state.catalogue
    page = await catalogue.search(Wanted(scope_of(who), limit=1))
    counted = page.facets or {}
    return json_response(
        {
            "facets": [_described(facet, counted.get(facet.name, [])) for facet in FACETS],
            "fields": [field._asdict() for field in FIELDS],
            "sorts": [{"name": name, "meaning": meaning} for name, meaning in SORTS.items()],
            "search": {
                "parameter": "q",
                "meaning": "Words of the name, the summary and the domains, in any form.",
            },
            "actions": [action.shown(who) for action in ACTIONS],
            "total": page.total,
        }
    )


def _described(facet: Facet, counted: list[tuple[str, int]]) -> dict[str, Any]:
    """Describe a facet with the values it can have, and those that the caller's personas have."""
    counts = dict.fromkeys(facet.values, 0) | dict(counted)
    values = [{"value": value, "count": count} for value, count in counts.items()]
    return {
        "name": facet.name, "title": facet.title, "meaning": facet.meaning, "multiple": True, "values": values,
    }  # fmt: skip

"""Billing over HTTP: price books, customers and their credits, and quotes of what a period comes to."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from fastapi import APIRouter, Query
from fastapi.responses import Response

from api.http import (
    WRITE_PROBLEMS,
    AsOf,
    Cursor,
    Id,
    JsonRoute,
    Limit,
    Open,
    Sent,
    Who,
    act,
    answers,
    body_of,
    completed,
    json_response,
    lists,
    reads,
    shows,
    size_as_of,
)
from api.routes.market import listed
from api.routes.money import SEE_ALL_MONEY
from domain.billing import customers, grants
from domain.billing.accounts import PLATFORM
from domain.billing.customers import Customer, Enroll, RedeemCoupon
from domain.billing.grants import Grant, GrantCredit
from domain.billing.price_books import PriceBook, PriceSheet, PublishPrices, publish_prices, sheet_name
from domain.billing.quotes import AskQuote, may_see_book, quote
from domain.errors import (
    CustomerNotFoundError,
    ForbiddenError,
    NotFoundError,
    PriceBookNotFoundError,
)
from domain.fields import Moment
from domain.ledger import Caller
from domain.log.records import Aggregate
from domain.values import Tenant
from ops.reads import RecordFilter
from ops.runtime import Runtime
from projections.billing_counts import NOTHING, count_next

router = APIRouter(prefix="/v1", tags=["billing"], route_class=JsonRoute)

PlanBody = body_of(Enroll, "tenant")
CouponBody = body_of(RedeemCoupon, "tenant")
CreditBody = body_of(GrantCredit, "tenant")
QUOTE = {"$ref": "#/components/schemas/Quote"}

WhoseTenant = Annotated[
    Tenant | None, Query(description="Whose, for those who keep the books; the caller's own without it.")
]


async def load(opened: Runtime, cls: type[Aggregate], name: str, as_of: str | None = None) -> Any:
    """Read an aggregate, now or as it was; None where there is none."""
    stream, size = f"{cls.KIND}/{name}", await size_as_of(opened, as_of)
    if size is not None:
        return await opened.reader.state_at(stream, size)
    loaded = (await opened.reader.load([stream])).get(stream)
    return loaded.aggregate if loaded else None


async def own(
    opened: Runtime,
    who: Caller,
    cls: type[Aggregate],
    name: str,
    missing: type[NotFoundError],
    as_of: str | None = None,
) -> Any:
    """Read what belongs to the caller's tenant, or anything for those who keep the books.

    Errors: the `missing` given, invalid_as_of.
    """
    found = await load(opened, cls, name, as_of)
    if found is None or (found.tenant != who.tenant and not who.roles & SEE_ALL_MONEY):
        raise missing(id=name)
    return found


async def show_own(
    opened: Runtime,
    who: Caller,
    cls: type[Aggregate],
    name: str,
    missing: type[NotFoundError],
    as_of: str | None = None,
) -> Response:
    """Print what belongs to the caller's tenant."""
    return shown(await own(opened, who, cls, name, missing, as_of))


def shown(found: Aggregate) -> Response:
    """Print an aggregate."""
    return json_response(msgspec.to_builtins(found), headers={"ETag": f'"{found.version}"'})


async def list_own(
    opened: Runtime,
    who: Caller,
    kind: str,
    tenant: str | None,
    limit: int,
    cursor: str | None,
    *,
    status: str | None = None,
    owner: str | None = None,
) -> Response:
    """List what belongs to a tenant, or to all of them for those who keep the books.

    Errors: forbidden, invalid_cursor.
    """
    if not who.roles & SEE_ALL_MONEY:
        if tenant not in (None, who.tenant):
            raise ForbiddenError("only who keeps the books sees those of other tenants")
        tenant = who.tenant
    return await listed(opened, RecordFilter(kind, tenant=tenant, owner=owner, status=status), cursor, limit)


# --------------------------------------------------------------------------- price books


@router.post("/price_books", status_code=201, responses=shows(PriceSheet, 201))
async def publish(command: PublishPrices, opened: Open, who: Who, sent: Sent) -> Response:
    """Publish a version of a price book; the first makes the book."""
    return await act(opened, publish_prices, command, who, sent, status=201)


@router.get("/price_books", responses=lists(PriceBook))
async def list_books(
    opened: Open,
    who: Who,
    limit: Limit = 100,
    cursor: Cursor = None,
    tenant: Annotated[
        Tenant | None,
        Query(description="Whose; the caller's own without it. The platform's are for all to see."),
    ] = None,
) -> Response:
    """List price books with their versions."""
    if tenant == PLATFORM:
        return await listed(opened, RecordFilter(PriceBook.KIND, tenant=PLATFORM), cursor, limit)
    return await list_own(opened, who, PriceBook.KIND, tenant, limit, cursor)


async def _book(opened: Runtime, who: Caller, name: str, as_of: str | None = None) -> PriceBook:
    book = await load(opened, PriceBook, name, as_of)
    customer = await load(opened, Customer, who.tenant)
    if book is None or not may_see_book(who, book, customer):
        raise PriceBookNotFoundError(id=name)
    found: PriceBook = book
    return found


@router.get("/price_books/{book}", responses=reads(PriceBook))
async def get_book(book: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show a price book and when its versions came into force."""
    return shown(await _book(opened, who, book, as_of))


@router.get(
    "/price_books/{book}/sheet",
    responses=answers({"$ref": "#/components/schemas/PriceSheet"}, WRITE_PROBLEMS),
)
async def get_sheet_in_force(
    book: Id,
    opened: Open,
    who: Who,
    at: Annotated[Moment | None, Query(description="A moment; now without it.")] = None,
) -> Response:
    """Show the charges in force at a moment."""
    version = (await _book(opened, who, book)).in_force(at or opened.clock())
    return shown(await load(opened, PriceSheet, sheet_name(book, version.number)))


@router.get("/price_books/{book}/versions/{number}", responses=reads(PriceSheet))
async def get_sheet(book: Id, number: Id, opened: Open, who: Who) -> Response:
    """Show the charges of a version; they never change."""
    found = await _book(opened, who, book)
    if number not in {str(version.number) for version in found.versions}:
        raise PriceBookNotFoundError(id=book, number=number)
    return shown(await load(opened, PriceSheet, sheet_name(book, int(number))))


# --------------------------------------------------------------------------- customers


@router.post("/customers", status_code=201, responses=shows(Customer, 201))
async def enroll(command: Enroll, opened: Open, who: Who, sent: Sent) -> Response:
    """Begin to bill a tenant."""
    return await act(opened, customers.enroll, command, who, sent, status=201)


@router.get("/customers", responses=lists(Customer))
async def list_customers(opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List who is billed: everybody for those who keep the books, else the caller's tenant."""
    return await list_own(opened, who, Customer.KIND, None, limit, cursor)


@router.get("/customers/{tenant}", responses=reads(Customer))
async def get_customer(tenant: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show how a tenant is billed, and where its next period begins."""
    return await show_own(opened, who, Customer, tenant, CustomerNotFoundError, as_of)


@router.post("/customers/{tenant}/plan", responses=shows(Customer))
async def replan(tenant: Tenant, body: PlanBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Agree on another plan, which holds from the next period on."""
    return await act(opened, customers.replan, completed(Enroll, body, tenant=tenant), who, sent)


@router.post("/customers/{tenant}/coupons", status_code=201, responses=shows(Customer, 201))
async def redeem(tenant: Tenant, body: CouponBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Grant a discount for the next periods."""
    command = completed(RedeemCoupon, body, tenant=tenant)
    return await act(opened, customers.redeem_coupon, command, who, sent, status=201)


@router.post("/customers/{tenant}/credits", status_code=201, responses=shows(Grant, 201))
async def grant(tenant: Tenant, body: CreditBody, opened: Open, who: Who, sent: Sent) -> Response:  # type: ignore[valid-type]
    """Give credit: bought from the customer's wallet, or as a present."""
    command = completed(GrantCredit, body, tenant=tenant)
    return await act(opened, grants.grant, command, who, sent, status=201)


@router.get("/customers/{tenant}/credits", responses=lists(Grant))
async def list_credits(
    tenant: Id, opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """List a customer's credits, with what is left of each."""
    await own(opened, who, Customer, tenant, CustomerNotFoundError)
    return await listed(opened, RecordFilter(Grant.KIND, tenant=tenant), cursor, limit)


# --------------------------------------------------------------------------- quotes


@router.post("/quotes", responses=answers(QUOTE, WRITE_PROBLEMS))
async def ask_quote(command: AskQuote, opened: Open, who: Who) -> Response:
    """Say what a period comes to; nothing is written. For the same usage it is the bill of the invoice."""

    async def gather() -> dict[str, Any]:
        if command.tenant is None or command.usage is not None:
            return {}
        counted = await count_next(opened.reader, [command.tenant])
        return {"counted": counted.get(command.tenant, NOTHING)}

    answer = await opened.ledger.act(quote, command, who, gather=gather)
    return Response(answer.body, media_type="application/json")

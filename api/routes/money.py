"""Money over HTTP: wallets, earnings, deposits, withdrawals, transfers, postings and the trial balance."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from fastapi.responses import Response

from api.http import (
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
    before_of,
    json_response,
    lists,
    need_role,
    object_of,
    page,
    page_of,
    reads,
    shows,
    size_as_of,
)
from api.routes.market import listed, show
from domain.billing import accounts
from domain.billing.accounts import Account, Payment
from domain.errors import AccountNotFoundError, InvalidCursorError, TransferNotFoundError
from domain.ledger import Caller
from domain.values import print_nano
from ops.balances import Balance
from ops.reads import RecordFilter
from projections.columns_billing import owner_of
from projections.trial_balance import trial_balance as summed_up

router = APIRouter(prefix="/v1", tags=["money"], route_class=JsonRoute)

SEE_ALL_MONEY = frozenset({"operator", "auditor", "billing"})

BALANCE = object_of(
    account="string",
    purpose="string",
    tenant="string",
    currency="string",
    side="string",
    balance="string",
    held="string",
    available="string",
)
POSTING = object_of(
    at="string",
    position="integer",
    leg="integer",
    amount="string",
    hold=["string", "null"],
    balance="string",
    held="string",
)
PURPOSE = object_of(
    purpose="string",
    side="string",
    account_count="integer",
    balance="string",
    held="string",
    available="string",
)
TRIAL = object_of(
    size="integer",
    balanced="boolean",
    currencies={
        "type": "array",
        "items": object_of(
            currency="string",
            debits="string",
            credits="string",
            held="string",
            escrow="string",
            balanced="boolean",
            accounts={"type": "array", "items": PURPOSE},
        ),
    },
)


def _shown(balance: Balance) -> dict[str, Any]:
    currency = balance.currency
    purpose, tenant = owner_of(balance.account)
    return {
        "account": balance.account,
        "purpose": purpose,
        "tenant": tenant,
        "currency": currency,
        "side": balance.side,
        "balance": print_nano(balance.balance_nano, currency),
        "held": print_nano(balance.held_nano, currency),
        "available": print_nano(balance.balance_nano - balance.held_nano, currency),
    }


def _check_own(who: Caller, account: str) -> None:
    if not who.roles & SEE_ALL_MONEY and owner_of(account)[1] != who.tenant:
        raise AccountNotFoundError(account=account)


@router.post("/accounts", status_code=201, responses=shows(Account, 201))
async def open_account(command: accounts.OpenAccount, opened: Open, who: Who, sent: Sent) -> Response:
    """Open the caller's wallet in a currency."""
    return await act(opened, accounts.open_wallet, command, who, sent, status=201)


@router.get("/accounts", responses=answers(page_of(BALANCE)))
async def list_accounts(opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """List balances, now or as of a position or time: the caller's, or everybody's for those who keep the books."""
    balances = await opened.reader.balances(size=await size_as_of(opened, as_of))
    if not who.roles & SEE_ALL_MONEY:
        balances = [b for b in balances if owner_of(b.account)[1] == who.tenant]
    return json_response({"items": [_shown(b) for b in balances], "next": None})


@router.get("/accounts/{account}", responses=answers(BALANCE))
async def get_account(account: Id, opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Show an account's balance, now or as of a position or time."""
    _check_own(who, account)
    return json_response(_shown(await opened.reader.balance(account, await size_as_of(opened, as_of))))


@router.get("/accounts/{account}/postings", responses=answers(page_of(POSTING)))
async def list_postings(
    account: Id, opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None
) -> Response:
    """List what happened to an account, the latest first; debits are positive."""
    _check_own(who, account)
    balance = await opened.reader.balance(account)
    before = _position(cursor)
    rows = await opened.reader.postings(account, before=before, limit=limit + 1)
    for row in rows:
        for name in ("amount", "balance", "held"):
            row[name] = print_nano(int(row.pop(f"{name}_nano")), balance.currency)
    return json_response(page(rows, limit, "at"))


def _position(cursor: str | None) -> tuple[int, int] | None:
    text = before_of(cursor)
    if text is None:
        return None
    position, _, leg = text.partition(".")
    if not (position.isdigit() and leg.isdigit() and len(text) < 30):
        raise InvalidCursorError
    return int(position), int(leg)


@router.post("/deposits", status_code=201, responses=shows(Payment, 201))
async def deposit(command: accounts.Deposit, opened: Open, who: Who, sent: Sent) -> Response:
    """Credit a tenant's wallet with money that reached the platform."""
    return await act(opened, accounts.deposit, command, who, sent, status=201)


@router.post("/withdrawals", status_code=201, responses=shows(Payment, 201))
async def withdraw(command: accounts.Withdraw, opened: Open, who: Who, sent: Sent) -> Response:
    """Pay money out of a tenant's wallet."""
    return await act(opened, accounts.withdraw, command, who, sent, status=201)


@router.post("/transfers", status_code=201, responses=shows(Payment, 201))
async def transfer(command: accounts.TransferMoney, opened: Open, who: Who, sent: Sent) -> Response:
    """Move money from the caller's wallet to another tenant's."""
    return await act(opened, accounts.transfer, command, who, sent, status=201)


@router.post("/earnings/transfers", status_code=201, responses=shows(Payment, 201))
async def transfer_earnings(
    command: accounts.TransferEarnings, opened: Open, who: Who, sent: Sent
) -> Response:
    """Move a part of what the caller's tenant earned into its wallet, where it can be spent."""
    return await act(opened, accounts.transfer_earnings, command, who, sent, status=201)


@router.get("/transfers", responses=lists(Payment))
async def list_transfers(opened: Open, who: Who, limit: Limit = 100, cursor: Cursor = None) -> Response:
    """List the transfers the caller made, the newest first."""
    tenant = None if who.roles & SEE_ALL_MONEY else who.tenant
    return await listed(opened, RecordFilter("transfer", tenant=tenant), cursor, limit)


@router.get("/transfers/{transfer_id}", responses=reads(Payment))
async def get_transfer(transfer_id: Id, opened: Open, who: Who) -> Response:
    """Show a transfer."""
    return await show(opened, who, Payment, transfer_id, TransferNotFoundError, None)


@router.get("/trial_balance", responses=answers(TRIAL))
async def trial_balance(opened: Open, who: Who, as_of: AsOf = None) -> Response:
    """Sum all accounts by currency and purpose, now or as of a position or time.

    Debits must equal credits, and the service says whether they do. `escrow` is what is held on wallets. The answer for
    a position never changes; `size` is the number of records it is of.
    """
    need_role(who, "operator", "auditor", "billing")
    size = await size_as_of(opened, as_of)
    if size is None:
        size = await opened.reader.size()
    return json_response(summed_up(await opened.reader.balances(size=size), size))

"""Money over HTTP: wallets, deposits, withdrawals, transfers, postings and the trial balance."""

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
from ops.reads import Balance, RecordFilter

router = APIRouter(prefix="/v1", tags=["money"], route_class=JsonRoute)

SEE_ALL_MONEY = frozenset({"operator", "auditor", "billing"})

BALANCE = object_of(
    account="string", currency="string", side="string", balance="string", held="string", available="string"
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
TRIAL = object_of(
    balanced="boolean",
    currencies={
        "type": "array",
        "items": object_of(
            currency="string", debits="string", credits="string", held="string", balanced="boolean"
        ),
    },
)


def _shown(balance: Balance) -> dict[str, Any]:
    currency = balance.currency
    return {
        "account": balance.account,
        "currency": currency,
        "side": balance.side,
        "balance": print_nano(balance.balance_nano, currency),
        "held": print_nano(balance.held_nano, currency),
        "available": print_nano(balance.balance_nano - balance.held_nano, currency),
    }


def _check_own(who: Caller, account: str) -> None:
    parts = account.split(".")
    if not who.roles & SEE_ALL_MONEY and (len(parts) != 3 or parts[1] != who.tenant):
        raise AccountNotFoundError(account=account)


@router.post("/accounts", status_code=201, responses=shows(Account, 201))
async def open_account(command: accounts.OpenAccount, opened: Open, who: Who, sent: Sent) -> Response:
    """Open the caller's wallet in a currency."""
    return await act(opened, accounts.open_wallet, command, who, sent, status=201)


@router.get("/accounts", responses=answers(page_of(BALANCE)))
async def list_accounts(opened: Open, who: Who) -> Response:
    """List accounts with their balances: the caller's, or all for those who keep the books."""
    balances = await opened.reader.balances()
    if not who.roles & SEE_ALL_MONEY:
        balances = [b for b in balances if b.account.split(".")[1] == who.tenant]
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
async def trial_balance(opened: Open, who: Who) -> Response:
    """Sum all accounts by currency: debits must equal credits, and the service says whether they do."""
    need_role(who, "operator", "auditor", "billing")
    debits: dict[str, int] = {}
    credited: dict[str, int] = {}
    held: dict[str, int] = {}
    for balance in await opened.reader.balances():
        side = debits if balance.side == "debit" else credited
        side[balance.currency] = side.get(balance.currency, 0) + balance.balance_nano
        held[balance.currency] = held.get(balance.currency, 0) + balance.held_nano
    rows = [
        {
            "currency": currency,
            "debits": print_nano(debits.get(currency, 0), currency),
            "credits": print_nano(credited.get(currency, 0), currency),
            "held": print_nano(held[currency], currency),
            "balanced": debits.get(currency, 0) == credited.get(currency, 0),
        }
        for currency in sorted(held)
    ]
    return json_response({"currencies": rows, "balanced": all(row["balanced"] for row in rows)})

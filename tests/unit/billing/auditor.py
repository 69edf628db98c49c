"""An auditor of commerce who trusts nobody: it reads the log's bytes and computes all money again.

It shares no code with what it audits. Each record that moves money is held against what its event should have moved;
each invoice is rated anew from the readings, prices, coupons and credits that the log held before it; each rental,
subscription and purchase is priced anew from its own records. Anything else than equality is an error.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from fractions import Fraction
from itertools import pairwise
from typing import Any, NamedTuple

from tests.unit.billing.by_hand import (
    ZERO,
    HandBill,
    HandLine,
    HandPart,
    HandTerms,
    bill_of,
    cost,
    lines_of,
    moment,
    number,
    payable,
    payable_up,
    rounded,
    share_of,
    stretch,
    text_of,
)

Data = Any
Moves = dict[str, Fraction]
CENTRAL = "platform"
# Accounts that may be on either side of zero.
FREE = ("revenue", "tax", "promotions", "rounding")


class Version(NamedTuple):
    """A version of a reading. Units: position in the log; mark is the first eight bytes of its address."""

    position: int
    mark: int
    data: Data


class Document(NamedTuple):
    """An invoice or a correction, as this auditor made it."""

    name: str
    tenant: str
    start: str
    end: str
    known_at: int
    bill: HandBill
    owed: Fraction
    tax: Fraction
    parts: list[tuple[str, str, str, Fraction]]
    terms: HandTerms
    readings: frozenset[str]


class Auditor:
    """Reads a log as it grows. What it knows came from the log, and nothing else."""

    def __init__(self) -> None:
        self.size = 0
        self.topics: Counter[str] = Counter()
        self.balances: dict[str, Fraction] = {}
        self.held: dict[str, Fraction] = {}
        self.holds: dict[str, tuple[str, Fraction, str]] = {}
        self.currencies: dict[str, str] = {}
        self.usage: dict[str, dict[str, list[Version]]] = {}
        self.books: dict[str, list[Data]] = {}
        self.sheets: dict[str, Data] = {}
        self.customers: dict[str, Data] = {}
        self.grants: dict[str, Data] = {}
        self.documents: dict[str, Document] = {}
        self.due: dict[str, Fraction] = {}
        self.credited: dict[str, Fraction] = {}
        self.uses: dict[str, Data] = {}
        self.stopped: dict[str, str] = {}
        self.payouts: dict[str, Data] = {}
        self._moved: Moves = defaultdict(Fraction)

    def see(self, rows: Sequence[Any]) -> None:
        """Read the rows that are new: each has the bytes of a record and their address."""
        for row in rows[self.size :]:
            record = json.loads(row.record)
            self._moved = defaultdict(Fraction)
            meaning: Callable[..., None] = getattr(self, "_" + record["type"].replace(".", "_"), _nothing)
            stream = record["stream"].partition("/")[2]
            if record["type"].startswith("usage."):
                self._reading(record, int.from_bytes(row.address[:8], "big"))
            else:
                meaning(record["data"], stream, record["at"], record)
            self._book(record)
            self.topics[record["type"]] += 1
            self.size += 1

    # ------------------------------------------------------------------ the book

    def _book(self, record: Data) -> None:
        """Carry out what a record moves, and hold it against what its event means."""
        moved: Moves = defaultdict(Fraction)
        for entry in record["data"].get("money") or ():
            op = entry["op"]
            if op == "open":
                assert entry["account"] not in self.balances
                self.balances[entry["account"]] = self.held[entry["account"]] = ZERO
                self.currencies[entry["account"]] = entry["currency"]
                assert entry["overdraft"] == entry["account"].startswith(FREE)
            elif op == "hold":
                self._hold(entry)
            else:
                if op != "transfer":
                    self._release(entry["hold"], op)
                self._post(entry, moved)
        for account in {*moved, *self._moved}:
            assert moved[account] == self._moved[account], (record["type"], account)
        for account in moved:
            self._check_limit(account)

    def _hold(self, entry: Data) -> None:
        assert entry["hold"] not in self.holds
        self.holds[entry["hold"]] = (entry["account"], number(entry["amount"]), "pending")
        self.held[entry["account"]] += number(entry["amount"])
        self._check_limit(entry["account"])

    def _release(self, name: str, op: str) -> None:
        account, amount, status = self.holds[name]
        assert status == "pending", "a hold was settled twice"
        self.holds[name] = (account, amount, op)
        self.held[account] -= amount

    def _post(self, entry: Data, moved: Moves) -> None:
        legs = [(leg["account"], number(leg["amount"])) for leg in entry.get("postings", ())]
        assert not sum(amount for _, amount in legs), "postings do not add up to nothing"
        for account, amount in legs:
            assert self.currencies[account] == entry["currency"]
            moved[account] += amount
            self.balances[account] += amount
        if entry["op"] == "post":
            account, reserved, _ = self.holds[entry["hold"]]
            assert sum(amount for name, amount in legs if name == account) <= reserved

    def _check_limit(self, account: str) -> None:
        if not account.startswith(FREE):
            assert self.available(account) >= 0, account

    def balance(self, account: str) -> Fraction:
        """Give a balance on the account's own side, in units of the currency."""
        is_debit = account.startswith(("cash", "receivable", "promotions"))
        return self.balances.get(account, ZERO) * (1 if is_debit else -1)

    def available(self, account: str) -> Fraction:
        """Give what of a balance is not held."""
        return self.balance(account) - self.held.get(account, ZERO)

    def _means(self, currency: str, **moves: Any) -> None:
        """Say what an event should have moved: debits positive, accounts written as purpose__tenant."""
        for name, amount in moves.items():
            purpose, _, tenant = name.partition("__")
            if amount:
                self._moved[f"{purpose}.{tenant}.{currency}"] += amount

    # ------------------------------------------------------------------ plain money

    def _transfer_posted(self, data: Data, name: str, at: str, record: Data) -> None:
        amount = number(data["amount"]["amount"])
        self._moved[data["source"]] += amount
        self._moved[data["target"]] -= amount

    def _payout_requested(self, data: Data, name: str, at: str, record: Data) -> None:
        self.payouts[name] = data | {"tenant": record["tenant"], "open": True}

    def _payout_paid(self, data: Data, name: str, at: str, record: Data) -> None:
        payout = self.payouts[name]
        assert payout["open"], "a payout left twice"
        payout["open"] = False
        amount, currency = number(payout["amount"]["amount"]), payout["amount"]["currency"]
        self._means(currency, **{f"earnings__{payout['tenant']}": amount, f"cash__{CENTRAL}": -amount})

    def _payout_failed(self, data: Data, name: str, at: str, record: Data) -> None:
        assert self.payouts[name]["open"]
        self.payouts[name]["open"] = False

    # ------------------------------------------------------------------ prices and customers

    def _price_book_published(self, data: Data, name: str, at: str, record: Data) -> None:
        assert data["effective_from"] >= at, "a version begins in the past"
        self.books.setdefault(name, []).append(data)

    def _price_sheet_written(self, data: Data, name: str, at: str, record: Data) -> None:
        self.sheets[name] = data

    def _customer_enrolled(self, data: Data, name: str, at: str, record: Data) -> None:
        self.customers[name] = {
            "plan": data["plan"], "next": None, "billed_to": data["billed_to"], "start": data["billed_to"],
            "coupons": [], "grants": [], "carried": ZERO, "documents": [],
        }  # fmt: skip

    def _customer_replanned(self, data: Data, name: str, at: str, record: Data) -> None:
        self.customers[name]["next"] = data["plan"]

    def _customer_coupon_redeemed(self, data: Data, name: str, at: str, record: Data) -> None:
        self.customers[name]["coupons"].append(dict(data["redeemed"]))

    def _customer_credit_added(self, data: Data, name: str, at: str, record: Data) -> None:
        self.customers[name]["grants"].append(data["grant"])

    def _customer_credit_spent(self, data: Data, name: str, at: str, record: Data) -> None:
        assert not self.grants[data["grant"]]["left"]
        self.customers[name]["grants"].remove(data["grant"])

    def _customer_billed(self, data: Data, name: str, at: str, record: Data) -> None:
        customer, document = self.customers[name], self.documents[data["invoice"]]
        assert data["period_end"] == document.end
        assert number(data["carried"]) == document.bill.carried
        customer["billed_to"], customer["carried"] = document.end, document.bill.carried
        customer["plan"], customer["next"] = customer["next"] or customer["plan"], None
        for one in customer["coupons"]:
            one["periods_left"] = one["periods_left"] and one["periods_left"] - 1
        customer["coupons"] = [one for one in customer["coupons"] if one["periods_left"] != 0]

    def _customer_corrected(self, data: Data, name: str, at: str, record: Data) -> None:
        document = self.documents[data["invoice"]]
        before = self.chain(document)[-2]
        change = _rounded_off(document.bill) - _rounded_off(before.bill)
        self.customers[name]["carried"] += change
        assert number(data["carried"]) == self.customers[name]["carried"]

    # ------------------------------------------------------------------ credits

    def _grant_granted(self, data: Data, name: str, at: str, record: Data) -> None:
        amount, tenant = number(data["amount"]["amount"]), record["tenant"]
        self.grants[name] = data | {"id": name, "tenant": tenant, "left": amount, "at": at}
        source = {"paid": f"wallet__{tenant}", "promotion": f"promotions__{CENTRAL}"}.get(data["source"])
        if source is not None:
            self._means(data["amount"]["currency"], **{source: amount, f"credits__{tenant}": -amount})

    def _grant_burned(self, data: Data, name: str, at: str, record: Data) -> None:
        amount, tenant = number(data["amount"]["amount"]), record["tenant"]
        assert (name, amount) in self.documents[data["invoice"]].bill.credits
        self._spend(name, amount)
        self._means(
            data["amount"]["currency"], **{f"credits__{tenant}": amount, f"receivable__{tenant}": -amount}
        )

    def _grant_expired(self, data: Data, name: str, at: str, record: Data) -> None:
        grant, amount = self.grants[name], number(data["amount"]["amount"])
        assert (amount, at >= grant["expires_at"]) == (grant["left"], True)
        self._spend(name, amount)
        target = "promotions" if grant["source"] == "promotion" else "revenue"
        self._means(
            data["amount"]["currency"],
            **{f"credits__{record['tenant']}": amount, f"{target}__{CENTRAL}": -amount},
        )

    def _spend(self, name: str, amount: Fraction) -> None:
        self.grants[name]["left"] -= amount
        assert self.grants[name]["left"] >= 0

    # ------------------------------------------------------------------ usage

    def _reading(self, record: Data, mark: int) -> None:
        versions = self.usage.setdefault(record["tenant"], {}).setdefault(record["stream"], [])
        assert record["version"] == len(versions) + 1
        assert record["data"].get("replaces", record["version"] - 1) == len(versions)
        versions.append(Version(self.size, mark, record["data"]))

    def known(self, tenant: str, start: str, end: str, known_at: int) -> dict[str, Version]:
        """Give the readings of a half-open stretch of time, each by its latest version before a position."""
        found = {}
        for name, versions in self.usage.get(tenant, {}).items():
            before = [version for version in versions if version.position < known_at]
            if before and start <= before[-1].data["occurred_at"] < end:
                found[name] = before[-1]
        return found

    # ------------------------------------------------------------------ invoices

    def chain(self, document: Document) -> list[Document]:
        """List the documents of a period, in their order."""
        names = self.customers[document.tenant]["documents"]
        return [self.documents[n] for n in names if self.documents[n].start == document.start]

    def last_documents(self, tenant: str) -> list[Document]:
        """Give the last document of each period."""
        last = {self.documents[n].start: self.documents[n] for n in self.customers[tenant]["documents"]}
        return list(last.values())

    def rate(
        self,
        tenant: str,
        parts: Sequence[tuple[str, str, str, Fraction]],
        terms: HandTerms,
        known_at: int,
        at: str,
    ) -> tuple[HandBill, dict[str, Version]]:
        """Bill a period as it is known at a position."""
        lines: list[HandLine] = []
        every: dict[str, Version] = {}
        for start, end, sheet, share in parts:
            readings = self.known(tenant, start, end, known_at)
            every |= readings
            rated = {name: version.data for name, version in readings.items()}
            lines += lines_of(HandPart(self.sheets[sheet]["charges"], share, rated))
        return bill_of(lines, terms, at), every

    def _invoice_issued(self, data: Data, name: str, at: str, record: Data) -> None:
        tenant = record["tenant"]
        customer = self.customers[tenant]
        known_at = data["known_at"]
        assert self.known(tenant, "", "~", known_at) == self.known(tenant, "", "~", self.size), (
            "something is left out"
        )
        if data["kind"] == "invoice":
            whole = stretch(
                customer["plan"]["every"],
                customer["plan"]["anchor"],
                customer["plan"]["zone"],
                moment(customer["billed_to"]),
            )
            start, end = customer["billed_to"], text_of(whole[1])
            assert moment(at) >= whole[1] + timedelta(seconds=customer["plan"]["grace_s"])
            parts = self._parts(customer["plan"]["book"], start, end, whole)
            terms = self._terms(customer, parts)
            before = []
        else:
            before = self.chain(self.documents[data["corrects"]])
            assert before[-1].name == data["corrects"], "a document was corrected twice"
            first = before[0]
            start, end, parts = first.start, first.end, first.parts
            terms = first.terms._replace(credits=(), carried=ZERO)
        made, readings = self.rate(tenant, parts, terms, known_at, at)
        assert (data["period_start"], data["period_end"]) == (start, end)
        self._check_sheets(data, parts)
        _check_bill(data["bill"], made, terms.currency)
        _check_evidence(data["evidence"], made, readings)
        self._take(name, data, tenant, made, parts, terms, before, frozenset(readings))

    def _take(
        self, name: str, data: Data, tenant: str, made: HandBill, parts: Any, terms: HandTerms,
        before: Sequence[Document], readings: frozenset[str],
    ) -> None:  # fmt: skip
        tax = sum(made.taxes, ZERO)
        if not before:
            net, rounding = made.net, made.rounding
        else:
            # A period comes to what its last document says, but never to less than was taken back by credit notes.
            kept = max(made.total + _settled(before), sum((self.credited[d.name] for d in before), ZERO))
            owed, rounding = kept - sum((d.owed for d in before), ZERO), ZERO
            tax = number(data["tax"]["amount"])
            if kept == made.total + _settled(before):
                assert tax == sum(made.taxes, ZERO) - sum((d.tax for d in before), ZERO)
            net = owed - tax
        owed = net + tax + rounding
        assert (number(data["owed"]["amount"]), number(data["tax"]["amount"])) == (owed, tax)
        due = made.due if not before else max(ZERO, owed)
        assert number(data["due"]["amount"]) == due
        side = f"{'receivable' if owed >= 0 else 'credits'}__{tenant}"
        self._means(
            terms.currency,
            **{
                side: owed,
                f"revenue__{CENTRAL}": -net,
                f"tax__{CENTRAL}": -tax,
                f"rounding__{CENTRAL}": -rounding,
            },
        )
        self.documents[name] = Document(
            name,
            tenant,
            data["period_start"],
            data["period_end"],
            data["known_at"],
            made,
            owed,
            tax,
            parts,
            terms,
            readings,
        )
        self.customers[tenant]["documents"].append(name)
        # Credits are burned by records of their own, in the same commit.
        self.due[name], self.credited[name] = due, ZERO

    def _parts(self, book: str, start: str, end: str, whole: Any) -> list[tuple[str, str, str, Fraction]]:
        versions = sorted(self.books[book], key=lambda v: (v["effective_from"], v["number"]))
        cuts = sorted(
            {start, end, *(v["effective_from"] for v in versions if start < v["effective_from"] < end)}
        )
        parts = []
        for a, b in pairwise(cuts):
            (*_, in_force) = [v for v in versions if v["effective_from"] <= a]
            parts.append((a, b, f"{book}.v{in_force['number']}", share_of(moment(a), moment(b), whole)))
        return parts

    def _terms(self, customer: Data, parts: Any) -> HandTerms:
        least = [
            number(self.sheets[sheet]["commitment"]) * share
            for _, _, sheet, share in parts
            if self.sheets[sheet]["commitment"] is not None
        ]
        return HandTerms(
            customer["plan"]["currency"],
            rounded(sum(least, ZERO), 9) if least else None,
            [one["coupon"] for one in customer["coupons"]],
            customer["plan"]["taxes"],
            [dict(self.grants[n]) for n in customer["grants"] if self.grants[n]["left"]],
            customer["carried"],
        )

    def _check_sheets(self, data: Data, parts: Any) -> None:
        named = [(one["start"], one["end"], one["sheet"], Fraction(one["share"])) for one in data["sheets"]]
        assert named == parts
        assert all(one["address"] == self.sheets[one["sheet"]]["address"] for one in data["sheets"])

    def _invoice_paid(self, data: Data, name: str, at: str, record: Data) -> None:
        amount = number(data["amount"]["amount"])
        assert amount == self.due[name] > 0
        self.due[name] = ZERO
        tenant = record["tenant"]
        self._means(
            data["amount"]["currency"], **{f"wallet__{tenant}": amount, f"receivable__{tenant}": -amount}
        )

    def _credit_note_issued(self, data: Data, name: str, at: str, record: Data) -> None:
        document, tenant = self.documents[data["invoice"]], record["tenant"]
        amount, before = number(data["amount"]["amount"]), self.credited[data["invoice"]]
        self.credited[data["invoice"]] = after = before + amount
        every = self.chain(document)
        assert 0 < after <= document.owed, "a credit note gives back more than its document billed"
        assert sum(self.credited[d.name] for d in every) <= sum(d.owed for d in every)
        currency = document.terms.currency
        tax = payable(document.tax * after / document.owed, currency) - payable(
            document.tax * before / document.owed, currency
        )
        off_due = min(amount, self.due[data["invoice"]])
        self.due[data["invoice"]] -= off_due
        told = (data["tax"]["amount"], data["off_due"]["amount"], data["returned"]["amount"])
        assert tuple(map(number, told)) == (tax, off_due, amount - off_due)
        moves = {
            f"revenue__{CENTRAL}": amount - tax,
            f"tax__{CENTRAL}": tax,
            f"receivable__{tenant}": -off_due,
        }
        self._means(currency, **moves, **{f"{data['target']}__{tenant}": off_due - amount})

    # ------------------------------------------------------------------ rentals, subscriptions, purchases

    def _rental_requested(self, data: Data, name: str, at: str, record: Data) -> None:
        terms = data["terms"]
        self.uses[name] = {
            "kind": "rental", "renter": data["renter"], "sale": terms["sale"], "price": terms["price"],
            "minutes": data["minutes"], "activated": None, "open": True, "reserved": ZERO,
        }  # fmt: skip
        self._reserve(name, data, self._time_cost(self.uses[name], data["minutes"] * 60))

    def _time_cost(self, use: Data, seconds: int) -> Fraction:
        return payable_up(cost(use["price"], Fraction(seconds)), use["sale"]["currency"])

    def _reserve(self, name: str, data: Data, amount: Fraction) -> None:
        holds = [entry for entry in data["money"] if entry["op"] == "hold"]
        assert sum((number(entry["amount"]) for entry in holds), ZERO) == amount
        assert all(entry["account"].startswith(f"wallet.{self.uses[name]['renter']}.") for entry in holds)
        self.uses[name]["reserved"] += amount

    def _rental_activated(self, data: Data, name: str, at: str, record: Data) -> None:
        use = self.uses[name]
        assert use["activated"] is None
        use["activated"] = at
        assert data["expires_at"] == _later(at, use["minutes"])

    def _rental_extended(self, data: Data, name: str, at: str, record: Data) -> None:
        use = self.uses[name]
        if use["activated"] is not None:
            assert at < _later(use["activated"], use["minutes"]), "what has run out was extended"
        before = self._time_cost(use, use["minutes"] * 60)
        use["minutes"] += data["minutes"]
        self._reserve(name, data, self._time_cost(use, use["minutes"] * 60) - before)

    def _rental_ended(self, data: Data, name: str, at: str, record: Data) -> None:
        use = self.uses[name]
        used_s = 0
        if use["activated"] is not None:
            until = min(at, _later(use["activated"], use["minutes"]), self._stopped(use, data["reason"], at))
            micros = (moment(until) - moment(use["activated"])) // timedelta(microseconds=1)
            used_s = max(0, -(-micros // 1_000_000))
        assert data["used_s"] == used_s
        self._settle(name, data, self._time_cost(use, used_s))
        self._close(name)

    def _stopped(self, use: Data, reason: str, at: str) -> str:
        """Say when the use of a stopped capsule was over."""
        return self.stopped[use["sale"]["capsule"]] if reason == "revoked" else at

    def _settle(self, name: str, data: Data, charged: Fraction) -> None:
        use = self.uses[name]
        sale, currency = use["sale"], use["sale"]["currency"]
        fee = payable(charged * number(sale["fee"]), currency)
        assert (number(data["charged"]["amount"]), number(data["fee"]["amount"])) == (charged, fee)
        assert charged <= use["reserved"]
        moves = {f"wallet__{use['renter']}": charged, f"earnings__{sale['seller']}": fee - charged}
        self._means(currency, **moves, **{f"fees__{CENTRAL}": -fee})

    def _close(self, name: str) -> None:
        assert self.uses[name]["open"], "something ended twice"
        self.uses[name]["open"] = False

    def _subscription_started(self, data: Data, name: str, at: str, record: Data) -> None:
        self.uses[name] = {
            "kind": "subscription", "renter": data["renter"], "open": True, "reserved": ZERO, "changed": False,
        }  # fmt: skip
        self._plan(name, data["plan"])
        whole = self._whole(name, at)
        assert (data["period_start"], data["period_end"]) == (at, text_of(whole[1]))
        self._begin(name, data, at, whole)

    def _plan(self, name: str, plan: Data) -> None:
        self.uses[name] |= {"plan": plan, "sale": plan["sale"]}

    def _whole(self, name: str, at: str) -> Any:
        plan = self.uses[name]["plan"]
        return stretch(plan["every"], plan["anchor"], plan["zone"], moment(at))

    def _begin(self, name: str, data: Data, start: str, whole: Any) -> None:
        use = self.uses[name]
        use |= {"start": start, "end": text_of(whole[1]), "reserved": ZERO}
        exact = number(use["plan"]["price"]["amount"]) * share_of(moment(start), whole[1], whole)
        self._reserve(name, data, payable_up(exact, use["sale"]["currency"]))

    def _subscription_period_settled(self, data: Data, name: str, at: str, record: Data) -> None:
        use = self.uses[name]
        until = max(use["start"], min(data["until"], use["end"]))
        assert data["until"] == until <= at
        piece = (moment(use["start"]), moment(use["end"]))
        exact = use["reserved"] * share_of(piece[0], moment(until), piece)
        charged = min(use["reserved"], payable_up(exact, use["sale"]["currency"]))
        self._settle(name, data, charged)
        use["reserved"], use["settled_to"] = ZERO, until

    def _subscription_renewed(self, data: Data, name: str, at: str, record: Data) -> None:
        use = self.uses[name]
        assert data["period_start"] == use["end"] <= at
        whole = self._whole(name, use["end"])
        assert data["period_end"] == text_of(whole[1])
        self._begin(name, data, use["end"], whole)

    def _subscription_changed(self, data: Data, name: str, at: str, record: Data) -> None:
        whole = self._whole(name, at)
        self._plan(name, data["plan"])
        self._begin(name, data, at, whole)

    def _subscription_ended(self, data: Data, name: str, at: str, record: Data) -> None:
        self._close(name)

    def _purchase_made(self, data: Data, name: str, at: str, record: Data) -> None:
        self.uses[name] = {
            "kind": "purchase", "renter": data["buyer"], "sale": data["sale"], "open": True, "reserved": ZERO,
            "price": number(data["price"]["amount"]), "until": data["refundable_until"],
        }  # fmt: skip
        self._reserve(name, data, self.uses[name]["price"])

    def _purchase_settled(self, data: Data, name: str, at: str, record: Data) -> None:
        assert at >= self.uses[name]["until"]
        self._settle(name, data, self.uses[name]["price"])
        self._close(name)

    def _purchase_refunded(self, data: Data, name: str, at: str, record: Data) -> None:
        assert data["reason"] == "revoked" or at < self.uses[name]["until"]
        self._close(name)

    def _capsule_suspended(self, data: Data, name: str, at: str, record: Data) -> None:
        if data["rentals"] == "end":
            self.stopped[f"sha3-512:{name}"] = at

    def _capsule_revoked(self, data: Data, name: str, at: str, record: Data) -> None:
        if data["rentals"] == "end":
            self.stopped.setdefault(f"sha3-512:{name}", at)

    def _capsule_reinstated(self, data: Data, name: str, at: str, record: Data) -> None:
        self.stopped.pop(f"sha3-512:{name}", None)

    # ------------------------------------------------------------------ what always holds

    def check(self) -> None:
        """Hold everything that was read against everything else."""
        for currency in set(self.currencies.values()):
            of_it = [self.balances[a] for a, c in self.currencies.items() if c == currency]
            assert not sum(of_it, ZERO), "postings do not add up to nothing"
        open_holds: Moves = defaultdict(Fraction)
        for account, amount, status in self.holds.values():
            open_holds[account] += amount if status == "pending" else ZERO
        assert {a: h for a, h in self.held.items() if h} == {a: h for a, h in open_holds.items() if h}
        self._check_wanted()
        for tenant in self.customers:
            self._check_customer(tenant)

    def _check_wanted(self) -> None:
        """See that what is held is held for something that is open."""
        wanted: Moves = defaultdict(Fraction)
        for use in self.uses.values():
            if use["open"]:
                wanted[f"wallet.{use['renter']}.{use['sale']['currency']}"] += use["reserved"]
        for payout in self.payouts.values():
            if payout["open"]:
                account = f"earnings.{payout['tenant']}.{payout['amount']['currency']}"
                wanted[account] += number(payout["amount"]["amount"])
        assert {a: h for a, h in self.held.items() if h} == {a: h for a, h in wanted.items() if h}

    def _check_customer(self, tenant: str) -> None:
        customer = self.customers[tenant]
        documents = [self.documents[name] for name in customer["documents"]]
        currency = customer["plan"]["currency"]
        assert self.balance(f"receivable.{tenant}.{currency}") == sum(self.due[d.name] for d in documents)
        left = sum(grant["left"] for grant in self.grants.values() if grant["tenant"] == tenant)
        assert self.balance(f"credits.{tenant}.{currency}") == left
        ends = customer["start"]
        for last in sorted(self.last_documents(tenant), key=lambda d: d.start):
            assert last.start == ends, "periods overlap, or leave a gap"
            ends = last.end
            every = self.chain(last)
            taken_back = sum(self.credited[d.name] for d in every)
            owed = sum(d.owed for d in every)
            assert owed == max(last.bill.total + _settled(every), owed if taken_back else ZERO)
            assert 0 <= taken_back <= owed, "more was given back than billed"
        assert ends == customer["billed_to"]
        self._check_counted_once(tenant)

    def _check_counted_once(self, tenant: str) -> None:
        """See that each reading is in the last document of one period, as that document knew it, or in none."""
        lasts = self.last_documents(tenant)
        for name, versions in self.usage.get(tenant, {}).items():
            counting = [last for last in lasts if name in last.readings]
            meant = [
                last for last in lasts
                if (known := [v for v in versions if v.position < last.known_at])
                and last.start <= known[-1].data["occurred_at"] < last.end
            ]  # fmt: skip
            assert counting == meant

    def late(self, tenant: str) -> list[str]:
        """Name the last documents of periods for which something came after them."""
        found = []
        for last in self.last_documents(tenant):
            now = self.known(tenant, last.start, last.end, self.size)
            then = self.known(tenant, last.start, last.end, last.known_at)
            if now != then:
                found.append(last.name)
        return found

    def check_all_billed(self) -> None:
        """See that every reading of a period that was billed is in exactly one last document, as it is now."""
        for tenant, customer in self.customers.items():
            assert not self.late(tenant), "a correction is missing"
            for name, versions in self.usage.get(tenant, {}).items():
                at = versions[-1].data["occurred_at"]
                counting = [last for last in self.last_documents(tenant) if name in last.readings]
                assert len(counting) == (customer["start"] <= at < customer["billed_to"])


# --------------------------------------------------------------------------- steps


def _nothing(data: Data, name: str, at: str, record: Data) -> None:
    """Take a record that moves no money by itself."""


def _later(at: str, minutes: int) -> str:
    return text_of(moment(at) + timedelta(minutes=minutes))


def _rounded_off(made: HandBill) -> Fraction:
    """Add up what rounding took of the lines; each was paid as `subtotal` says."""
    return sum((line.exact for line in made.lines), ZERO) - made.subtotal


def _settled(documents: Sequence[Document]) -> Fraction:
    """Give what the first document settled of earlier roundings."""
    return documents[0].bill.rounding


def _check_bill(told: Data, made: HandBill, currency: str) -> None:
    assert told["currency"] == currency
    lines = [(one["charge"], Fraction(one["quantity"]), Fraction(one["exact"])) for one in told["lines"]]
    assert lines == [(line.charge, line.quantity, line.exact) for line in made.lines]
    for one, line in zip(told["lines"], made.lines, strict=True):
        paid = line.paid(currency)
        assert (number(one["amount"]["amount"]), Fraction(one["rounding"])) == (paid, line.exact - paid)
        assert sum((Fraction(step["amount"]) for step in one["steps"]), ZERO) == line.exact
    sums = {name: number(told[name]["amount"]) for name in ("subtotal", "net", "total", "rounding", "due")}
    assert sums == {
        "subtotal": made.subtotal, "net": made.net, "total": made.total, "rounding": made.rounding, "due": made.due,
    }  # fmt: skip
    assert [number(one["amount"]["amount"]) for one in told["discounts"]] == made.discounts
    assert [number(one["amount"]["amount"]) for one in told["taxes"]] == made.taxes
    assert [(one["name"], number(one["amount"]["amount"])) for one in told["credits"]] == made.credits
    assert Fraction(told["carried"]) == made.carried


def _check_evidence(told: Sequence[Data], made: HandBill, readings: Mapping[str, Version]) -> None:
    for shown, line in zip(told, made.lines, strict=True):
        if line.readings is None:
            assert shown is None
            continue
        mine = [readings[name] for name in line.readings]
        assert shown == {
            "events": len(mine),
            "first": min(version.position for version in mine),
            "last": max(version.position for version in mine),
            "fingerprint": f"{sum(version.mark for version in mine) % 2**64:016x}",
        }

"""The book against a slow plain one: sums are zero, nothing is overdrawn, holds end once, refusals leave no trace."""

from __future__ import annotations

import copy
from collections import defaultdict
from fractions import Fraction

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from domain.book import (
    Account,
    Book,
    Entry,
    Expire,
    Hold,
    HoldState,
    Move,
    Open,
    Post,
    Posting,
    Transfer,
    Void,
    names_of,
    payment,
    settlement,
)
from domain.errors import (
    AccountExistsError,
    AccountNotFoundError,
    AmountInvalidError,
    CurrencyMismatchError,
    HoldExceededError,
    HoldExistsError,
    HoldNotFoundError,
    HoldSettledError,
    InsufficientFundsError,
    LedgerError,
    UnbalancedError,
)
from domain.values import Money

NAMES = ["cash", "wallet.a", "wallet.b", "wallet.c", "fees", "euros", "credit"]
HOLDS = ["h1", "h2", "h3"]


class PlainBook:
    """The same rules written down slowly: every figure is summed anew from the whole history of accepted entries."""

    def __init__(self) -> None:
        self.opened: dict[str, Open] = {}
        self.legs: list[tuple[str, Fraction]] = []
        self.holds: dict[str, tuple[str, Fraction, str]] = {}
        self.ended: dict[str, str] = {}

    def balance(self, name: str) -> Fraction:
        debits = sum((amount for account, amount in self.legs if account == name), Fraction(0))
        return debits if self.opened[name].side == "debit" else -debits

    def held(self, name: str) -> Fraction:
        return sum(
            (a for h, (n, a, _) in self.holds.items() if n == name and h not in self.ended), Fraction(0)
        )

    def tried(self, entries: list[Entry]) -> PlainBook | None:
        """Give the book after a group, or None where it breaks a rule."""
        book = copy.deepcopy(self)
        return book if all(book.accepts(entry) for entry in entries) else None

    def accepts(self, entry: Entry) -> bool:
        match entry:
            case Open():
                if entry.account in self.opened:
                    return False
                self.opened[entry.account] = entry
                return True
            case Hold():
                amount = Fraction(entry.amount)
                if amount <= 0 or entry.hold in self.holds or not self.knows(entry.account, entry.currency):
                    return False
                self.holds[entry.hold] = (entry.account, amount, entry.currency)
                return self.covered(entry.account)
            case Void():
                return self.ends(entry.hold, "void")
            case Expire():
                return self.ends(entry.hold, "expired")
            case Post():
                if not self.ends(entry.hold, "posted"):
                    return False
                account, amount, currency = self.holds[entry.hold]
                sign = 1 if self.opened[account].side == "credit" else -1
                paid = sum(
                    (sign * Fraction(p.amount) for p in entry.postings if p.account == account), Fraction(0)
                )
                return currency == entry.currency and paid <= amount and self.moves(entry)
            case Transfer():
                return self.moves(entry)

    def ends(self, hold: str, how: str) -> bool:
        if hold not in self.holds or hold in self.ended:
            return False
        self.ended[hold] = how
        return True

    def moves(self, entry: Transfer | Post) -> bool:
        amounts = [Fraction(p.amount) for p in entry.postings]
        if not amounts or sum(amounts) or 0 in amounts:
            return False
        if not all(self.knows(p.account, entry.currency) for p in entry.postings):
            return False
        self.legs += [(p.account, amount) for p, amount in zip(entry.postings, amounts, strict=True)]
        return all(self.covered(p.account) for p in entry.postings)

    def knows(self, name: str, currency: str) -> bool:
        return name in self.opened and self.opened[name].currency == currency

    def covered(self, name: str) -> bool:
        return self.opened[name].overdraft or self.balance(name) >= self.held(name)


names = st.sampled_from(NAMES)
holds = st.sampled_from(HOLDS)
money_of = st.sampled_from(["USD", "USD", "USD", "EUR"])
amounts = st.one_of(
    st.integers(1, 40).map(str),
    st.sampled_from(["0.000000001", "0.5", "12.50"]),
    st.sampled_from(["0", "-3"]),
)


@st.composite
def postings(draw: st.DrawFn) -> list[Posting]:
    """Draw legs, most of them balanced."""
    legs = [(draw(names), draw(st.integers(-30, 30).filter(bool))) for _ in range(draw(st.integers(1, 4)))]
    if draw(st.integers(0, 9)):
        rest = -sum(amount for _, amount in legs)
        legs += [(draw(names), rest)] if rest else []
    return [Posting(name, str(amount)) for name, amount in legs]


entries = st.one_of(
    st.builds(Open, names, money_of, st.sampled_from(["debit", "credit"]), st.booleans()),
    st.builds(Transfer, money_of, postings()),
    st.builds(lambda a, b, n, c: Transfer(c, [Posting(a, str(n)), Posting(b, str(-n))]), names, names,
              st.integers(1, 30), money_of),
    st.builds(Hold, holds, names, amounts, money_of),
    st.builds(Post, holds, money_of, postings()),
    st.builds(lambda h, a, b, n, c: Post(h, c, [Posting(a, str(n)), Posting(b, str(-n))]), holds, names, names,
              st.integers(1, 15), money_of),
    st.builds(Void, holds),
    st.builds(Expire, holds),
)  # fmt: skip


class BookMachine(RuleBasedStateMachine):
    """Any groups of entries, valid or not, on the book and on the plain one."""

    def __init__(self) -> None:
        super().__init__()
        self.book = Book()
        self.plain = PlainBook()
        self.moves: list[Move] = []
        self.settled: list[str] = []

    @initialize(sum_paid_in=st.integers(0, 60))
    def start(self, sum_paid_in: int) -> None:
        self.run([Open(name, "USD", "credit", False) for name in ("wallet.a", "wallet.b", "fees")])
        self.run([Open("cash", "USD", "debit", False), Open("euros", "EUR", "debit", False)])
        self.run([Open("credit", "USD", "credit", True)])
        if sum_paid_in:
            self.run(
                [Transfer("USD", [Posting("cash", str(sum_paid_in)), Posting("wallet.a", f"-{sum_paid_in}")])]
            )

    @rule(group=st.lists(entries, min_size=1, max_size=3))
    def run(self, group: list[Entry]) -> None:
        before = copy.deepcopy((self.book.accounts, self.book.holds))
        after = self.plain.tried(group)
        if after is None:
            with pytest.raises(LedgerError):
                self.book.apply(group)
            assert (self.book.accounts, self.book.holds) == before
            return
        moves = self.book.apply(group)
        assert len(moves) == len(group)
        self.plain = after
        self.moves += [move for each in moves for move in each]
        self.settled += [entry.hold for entry in group if isinstance(entry, Post | Void | Expire)]

    @invariant()
    def sums_are_zero(self) -> None:
        for currency in {account.currency for account in self.book.accounts.values()}:
            signs = {"debit": 1, "credit": -1}
            states = [a for a in self.book.accounts.values() if a.currency == currency]
            assert sum(signs[a.side] * a.balance_nano for a in states) == 0

    @invariant()
    def nothing_is_overdrawn(self) -> None:
        assert all(a.overdraft or a.available_nano >= 0 for a in self.book.accounts.values())
        assert all(a.held_nano >= 0 for a in self.book.accounts.values())

    @invariant()
    def holds_end_once(self) -> None:
        assert len(self.settled) == len(set(self.settled))
        ended = {name for name, hold in self.book.holds.items() if hold.status != "pending"}
        assert set(self.settled) == ended

    @invariant()
    def figures_are_those_of_the_plain_book(self) -> None:
        nano = 10**9
        assert {n: (a.balance_nano, a.held_nano) for n, a in self.book.accounts.items()} == {
            n: (self.plain.balance(n) * nano, self.plain.held(n) * nano) for n in self.plain.opened
        }
        assert {n: (h.account, h.amount_nano, h.currency, h.status) for n, h in self.book.holds.items()} == {
            n: (account, amount * nano, currency, self.plain.ended.get(n, "pending"))
            for n, (account, amount, currency) in self.plain.holds.items()
        }

    @invariant()
    def moves_carry_the_running_balances(self) -> None:
        summed: dict[str, int] = defaultdict(int)
        last: dict[str, Move] = {}
        for move in self.moves:
            summed[move.account] += move.amount_nano
            side = self.book.accounts[move.account].side
            assert move.balance_nano == (summed[move.account] if side == "debit" else -summed[move.account])
            last[move.account] = move
        assert {n: (m.balance_nano, m.held_nano) for n, m in last.items()} == {
            n: (a.balance_nano, a.held_nano) for n, a in self.book.accounts.items()
        }


TestAnySequence = BookMachine.TestCase
TestAnySequence.settings = settings(max_examples=60, stateful_step_count=25, deadline=None)


def usd(amount: str) -> Money:
    """Make dollars."""
    return Money.parse(amount, "USD")


def a_book(balance: str = "100") -> Book:
    """Make a book of four accounts, with a sum in wallet.a."""
    book = Book()
    book.apply([Open("cash", "USD", "debit", False), Open("euros", "EUR", "credit", False)])
    book.apply([Open(name, "USD", "credit", False) for name in ("wallet.a", "wallet.b", "fees")])
    book.apply([payment("cash", "wallet.a", usd(balance))])
    return book


def balances(book: Book) -> dict[str, str]:
    """Print what each account has."""
    return {
        name: Money.of(a.balance_nano, a.currency).amount
        for name, a in book.accounts.items()
        if a.balance_nano
    }


class TestTransfer:
    def test_a_payment_moves_money_between_wallets(self):
        book = a_book()
        (moves,) = book.apply([payment("wallet.a", "wallet.b", usd("30"))])
        assert balances(book) == {"cash": "100.00", "wallet.a": "70.00", "wallet.b": "30.00"}
        assert [m.balance_nano for m in moves] == [70 * 10**9, 30 * 10**9]

    def test_money_leaves_through_the_cash_account(self):
        book = a_book()
        book.apply([payment("wallet.a", "cash", usd("100"))])
        assert balances(book) == {}

    @pytest.mark.parametrize(
        ("entry", "error"),
        [
            (payment("wallet.a", "wallet.b", usd("100.000000001")), InsufficientFundsError),
            (payment("wallet.b", "wallet.a", usd("1")), InsufficientFundsError),
            (payment("wallet.a", "nobody", usd("1")), AccountNotFoundError),
            (payment("nobody", "wallet.a", usd("1")), AccountNotFoundError),
            (payment("wallet.a", "euros", usd("1")), CurrencyMismatchError),
            (payment("wallet.a", "wallet.b", Money.parse("1", "EUR")), CurrencyMismatchError),
            (payment("wallet.a", "wallet.b", usd("0")), UnbalancedError),
            (Transfer("USD", []), UnbalancedError),
            (Transfer("USD", [Posting("wallet.a", "1")]), UnbalancedError),
            (
                Transfer("USD", [Posting("wallet.a", "1"), Posting("wallet.b", "-0.999999999")]),
                UnbalancedError,
            ),
            (
                Transfer("USD", [Posting("wallet.a", "1.0000000001"), Posting("wallet.b", "-1")]),
                AmountInvalidError,
            ),
            (Transfer("USD", [Posting("wallet.a", "0"), Posting("wallet.b", "0")]), UnbalancedError),
            (Open("cash", "USD", "debit", False), AccountExistsError),
            (Hold("h", "wallet.a", "100.01", "USD"), InsufficientFundsError),
            (Hold("h", "wallet.a", "0", "USD"), AmountInvalidError),
            (Hold("h", "wallet.a", "-1", "USD"), AmountInvalidError),
            (Hold("h", "wallet.a", "1", "EUR"), CurrencyMismatchError),
            (Hold("h", "nobody", "1", "USD"), AccountNotFoundError),
            (Void("h"), HoldNotFoundError),
            (Post("h", "USD", []), HoldNotFoundError),
        ],
    )
    def test_a_refused_entry_takes_its_whole_group_with_it(self, entry, error):
        book = a_book()
        before = copy.deepcopy((book.accounts, book.holds))
        with pytest.raises(error):
            book.apply(
                [payment("wallet.a", "wallet.b", usd("0.000000001")), Open("x", "USD", "debit", True), entry]
            )
        assert (book.accounts, book.holds) == before
        with pytest.raises(error):
            book.apply([entry])
        assert (book.accounts, book.holds) == before

    def test_paying_oneself_changes_nothing_but_needs_the_money(self):
        book = a_book()
        (moves,) = book.apply([payment("wallet.a", "wallet.a", usd("100"))])
        assert [m.balance_nano for m in moves] == [0, 100 * 10**9]
        assert balances(book) == {"cash": "100.00", "wallet.a": "100.00"}
        book.apply([payment("wallet.a", "wallet.a", usd("1000"))])
        assert balances(book) == {"cash": "100.00", "wallet.a": "100.00"}

    def test_an_account_with_overdraft_may_fall_below_zero(self):
        book = a_book()
        book.apply([Open("line", "USD", "credit", True), payment("line", "wallet.b", usd("5"))])
        assert book.accounts["line"] == Account("USD", "credit", True, -5 * 10**9)

    def test_what_an_earlier_entry_of_a_group_brought_a_later_one_may_spend(self):
        book = a_book()
        book.apply([payment("wallet.a", "wallet.b", usd("100")), payment("wallet.b", "fees", usd("100"))])
        assert balances(book) == {"cash": "100.00", "fees": "100.00"}


class TestHold:
    def test_a_hold_reserves_and_a_void_gives_back(self):
        book = a_book()
        book.apply([Hold("h", "wallet.a", "60", "USD")])
        assert book.accounts["wallet.a"].available_nano == 40 * 10**9
        with pytest.raises(InsufficientFundsError):
            book.apply([payment("wallet.a", "wallet.b", usd("40.01"))])
        book.apply([Void("h")])
        assert book.accounts["wallet.a"] == Account("USD", "credit", False, 100 * 10**9, 0)
        assert book.holds["h"].status == "void"

    def test_a_settlement_pays_several_accounts_and_releases_the_rest(self):
        book = a_book()
        book.apply([Hold("h", "wallet.a", "60", "USD")])
        shares = [("wallet.b", usd("40")), ("fees", usd("2.5")), ("euros", usd("0"))]
        (moves,) = book.apply([settlement("h", "wallet.a", shares)])
        assert balances(book) == {"cash": "100.00", "wallet.a": "57.50", "wallet.b": "40.00", "fees": "2.50"}
        assert book.holds["h"] == HoldState("wallet.a", 60 * 10**9, "USD", "posted")
        assert book.accounts["wallet.a"].held_nano == 0
        assert {move.hold for move in moves} == {"h"}

    @pytest.mark.parametrize(
        "ending", [Void("h"), Expire("h"), settlement("h", "wallet.a", [("wallet.b", usd("1"))])]
    )
    @pytest.mark.parametrize(
        "again", [Void("h"), Expire("h"), settlement("h", "wallet.a", [("wallet.b", usd("1"))])]
    )
    def test_a_hold_ends_once(self, ending, again):
        book = a_book()
        book.apply([Hold("h", "wallet.a", "60", "USD"), ending])
        before = copy.deepcopy((book.accounts, book.holds))
        with pytest.raises(HoldSettledError):
            book.apply([again])
        with pytest.raises(HoldExistsError):
            book.apply([Hold("h", "wallet.a", "1", "USD")])
        assert (book.accounts, book.holds) == before

    @pytest.mark.parametrize(
        ("entry", "error"),
        [
            (settlement("h", "wallet.a", [("wallet.b", usd("60.000000001"))]), HoldExceededError),
            (
                settlement("h", "wallet.a", [("wallet.b", usd("40")), ("fees", usd("20.01"))]),
                HoldExceededError,
            ),
            (Post("h", "EUR", [Posting("wallet.a", "1"), Posting("euros", "-1")]), CurrencyMismatchError),
            (settlement("h", "wallet.a", [("euros", usd("1"))]), CurrencyMismatchError),
            (settlement("h", "wallet.a", [("nobody", usd("1"))]), AccountNotFoundError),
            (Post("h", "USD", [Posting("wallet.a", "1"), Posting("wallet.b", "-2")]), UnbalancedError),
            (Post("h", "USD", []), UnbalancedError),
            (Hold("h", "wallet.a", "1", "USD"), HoldExistsError),
            (Hold("i", "wallet.a", "40.01", "USD"), InsufficientFundsError),
        ],
    )
    def test_a_settlement_that_breaks_a_rule_leaves_the_hold_pending(self, entry, error):
        book = a_book()
        book.apply([Hold("h", "wallet.a", "60", "USD")])
        before = copy.deepcopy((book.accounts, book.holds))
        with pytest.raises(error):
            book.apply([entry])
        assert (book.accounts, book.holds) == before

    def test_a_hold_is_not_settled_by_a_transfer_of_another_currency_elsewhere(self):
        book = a_book()
        book.apply([Open("francs", "CHF", "credit", True), Open("more", "CHF", "credit", False)])
        book.apply([Hold("h", "wallet.a", "60", "USD")])
        with pytest.raises(CurrencyMismatchError):
            book.apply([Post("h", "CHF", [Posting("francs", "1"), Posting("more", "-1")])])
        assert book.holds["h"].status == "pending"

    def test_a_hold_on_a_debit_account_is_paid_by_credits(self):
        book = a_book()
        book.apply([Hold("h", "cash", "60", "USD")])
        with pytest.raises(HoldExceededError):
            book.apply([Post("h", "USD", [Posting("cash", "-61"), Posting("wallet.a", "61")])])
        book.apply([Post("h", "USD", [Posting("cash", "-60"), Posting("wallet.a", "60")])])
        assert balances(book) == {"cash": "40.00", "wallet.a": "40.00"}


def test_entries_name_the_accounts_and_holds_they_touch():
    group = [
        Open("a", "USD", "debit", False), payment("b", "c", usd("1")), Hold("h", "d", "1", "USD"),
        settlement("i", "e", [("f", usd("1"))]), Void("j"),
    ]  # fmt: skip
    assert names_of(group) == ({"a", "b", "c", "d", "e", "f"}, {"h", "i", "j"})
    assert names_of([]) == (set(), set())

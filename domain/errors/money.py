"""Refusals about amounts, accounts, transfers and holds."""

from __future__ import annotations

from domain.errors.families import (
    ConflictError,
    InvalidError,
    LedgerError,
    NotFoundError,
    Retry,
    UnprocessableError,
)


class AmountInvalidError(InvalidError, code="invalid_amount"):
    """An amount is a decimal string with at most nine decimals, within the allowed range."""


class CurrencyUnknownError(InvalidError, code="invalid_currency"):
    """The currency is not an ISO 4217 code known to this ledger."""


class AccountNotFoundError(NotFoundError, code="account_not_found"):
    """There is no such account."""


class AccountExistsError(ConflictError, code="account_exists"):
    """The account is open already."""


class InsufficientFundsError(ConflictError, code="insufficient_funds"):
    """The account does not have that much available."""


class CurrencyMismatchError(UnprocessableError, code="currency_mismatch"):
    """Amounts of different currencies cannot be combined."""


class UnbalancedError(UnprocessableError, code="unbalanced_postings"):
    """The postings of a transfer must sum to zero per currency."""


class HoldNotFoundError(NotFoundError, code="hold_not_found"):
    """There is no such hold."""


class HoldExistsError(ConflictError, code="hold_exists"):
    """A hold with this id exists already."""


class HoldSettledError(ConflictError, code="hold_already_settled", retry=Retry.NEVER):
    """The hold was posted, voided or expired before."""


class HoldExceededError(UnprocessableError, code="hold_exceeded"):
    """The legs of a settlement are larger than the hold."""


class TransferNotFoundError(NotFoundError, code="transfer_not_found"):
    """There is no such transfer."""


class SameAccountError(UnprocessableError, code="same_account"):
    """A transfer needs two different accounts."""


class DecimalOverflowError(UnprocessableError, code="decimal_overflow"):
    """An amount has more digits than the column it is to be kept in."""


class ReconciliationRunningError(ConflictError, code="reconciliation_running"):
    """Another reconciliation is under way; there is one at a time."""


class BillingRunningError(ConflictError, code="billing_running"):
    """Another process is billing; one at a time does."""


class ReconciliationNotFoundError(NotFoundError, code="reconciliation_not_found"):
    """There is no such reconciliation."""


class PriceBookInvalidError(UnprocessableError, code="price_book_invalid"):
    """A price in the book is none; `where` names it."""


class TimeZoneUnknownError(InvalidError, code="time_zone_unknown"):
    """The time zone is not one of the IANA database."""


class PriceBookNotFoundError(NotFoundError, code="price_book_not_found"):
    """There is no such price book."""


class PriceNotInForceError(UnprocessableError, code="price_not_in_force"):
    """The price book has no version in force at that time."""


class StartsInPastError(UnprocessableError, code="starts_in_past"):
    """What was used is priced already; a version starts now or later."""


class CustomerNotFoundError(NotFoundError, code="customer_not_found"):
    """The tenant is no customer: nothing was agreed about billing it."""


class CustomerExistsError(ConflictError, code="customer_exists", retry=Retry.NEVER):
    """The tenant is a customer already; another plan is agreed by changing it."""


class CouponInvalidError(UnprocessableError, code="coupon_invalid"):
    """The coupon contradicts itself, or is in use."""


class InvoiceNotFoundError(NotFoundError, code="invoice_not_found"):
    """There is no such invoice."""


class PeriodOpenError(ConflictError, code="period_open"):
    """The period is not over yet, or still waits for late usage."""


class NothingToCorrectError(ConflictError, code="nothing_to_correct"):
    """Nothing came later for this period; its invoices say all there is."""


class InvoiceSettledError(ConflictError, code="invoice_settled", retry=Retry.NEVER):
    """The invoice is paid already."""


class CreditTooLargeError(UnprocessableError, code="credit_too_large"):
    """More cannot be credited than was billed and not credited before."""


class InvoiceTooLargeError(UnprocessableError, code="invoice_too_large"):
    """The invoice has more lines than one document can hold."""


class GrantNotFoundError(NotFoundError, code="grant_not_found"):
    """There is no such grant of credit."""


class TooManyGrantsError(ConflictError, code="too_many_grants"):
    """The customer has as many grants of credit as can be kept; some must be used up first."""


class PayoutNotFoundError(NotFoundError, code="payout_not_found"):
    """There is no such payout."""


class PayoutSettledError(ConflictError, code="payout_settled", retry=Retry.NEVER):
    """The payout was paid, or failed, before."""


class CreditNoteNotFoundError(NotFoundError, code="credit_note_not_found"):
    """There is no such credit note."""


class InvoiceLineNotFoundError(NotFoundError, code="invoice_line_not_found"):
    """The invoice has no line of this number."""


class PriceListInvalidError(UnprocessableError, code="price_list_invalid"):
    """The price list cannot be read as prices of models."""


class QuotaNotFoundError(NotFoundError, code="quota_not_found"):
    """Nothing is limited for this tenant."""


class QuotaExceededError(LedgerError, code="quota_exceeded", status=402):
    """A hard limit has no room for this; `details` says what is left, what would fit, and when the period ends."""


class ReservationNotFoundError(NotFoundError, code="reservation_not_found"):
    """There is no such reservation, or it has ended."""


class TooManyReservationsError(ConflictError, code="too_many_reservations"):
    """As many reservations are open as can be kept; some must be used, released or expire first."""


class StatementTooLargeError(UnprocessableError, code="statement_too_large"):
    """One document cannot hold that many movements: ask for a shorter period, or for CSV, which has no limit."""

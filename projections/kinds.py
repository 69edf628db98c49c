"""Every kind of aggregate and of event there is, for processes that read records and import little else.

A record is told by the class of its event. A class is known once its module was imported, so whoever follows the log
imports them all here; what a process does not know it would have to leave out.
"""

from __future__ import annotations

import domain.billing.accounts
import domain.billing.credit_notes
import domain.billing.customers
import domain.billing.grants
import domain.billing.invoices
import domain.billing.payouts
import domain.billing.price_books
import domain.billing.quotas
import domain.billing.reconciliation
import domain.billing.usage
import domain.feeds.webhooks
import domain.market.contracts
import domain.market.disputes
import domain.market.intents
import domain.market.offers
import domain.market.rounds
import domain.persona.artifacts
import domain.persona.capsules
import domain.persona.claims
import domain.persona.evaluations
import domain.persona.imports
import domain.persona.offboarding
import domain.persona.personas
import domain.persona.reviewing
import domain.persona.transfers
import domain.rental.purchases
import domain.rental.rentals
import domain.rental.subscriptions
import domain.trust.constitutions
import domain.trust.reviews
import domain.trust.signatures
import domain.trust.signers
import domain.trust.training  # noqa: F401

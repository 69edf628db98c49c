"""What the service says about itself: structured lines on stderr, and Prometheus metrics.

Metrics are declared here and nowhere else, so that a dashboard can be checked against one list.
"""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any, TextIO

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    generate_latest,
    start_http_server,
)

from domain.errors import ListenError
from ops.settings import LogFormat, LogLevel

HIDDEN = "***"
_SECRET_KEY = re.compile(
    r"authorization|cookie|token|passw|secret|credential|signature|(^|_)key($|_(?!id$|file$|path$))|^jwt$",
    re.IGNORECASE,
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[A-Za-z0-9._~+/=-]+", re.IGNORECASE)
_URL_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+(?=@)")
_QUERY_SECRET = re.compile(r"(?<=[?&\s])(password|sslpassword|token|access_token)=[^&\s]+", re.IGNORECASE)
_DEPTH_MAX = 8

# --------------------------------------------------------------------------- structured lines


def configure_logging(
    level: LogLevel = LogLevel.INFO, form: LogFormat = LogFormat.JSON, stream: TextIO | None = None
) -> None:
    """Send every line, ours and the libraries', through one pipe that hides secrets."""
    threshold = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.stdlib.ExtraAdder(),
        structlog.processors.format_exc_info,
        redact,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _renderer(form)],
        )
    )
    logging.basicConfig(level=threshold, handlers=[handler], force=True)
    # It tells every URL it asks, with all that stands in it: parameters of queries, names of receivers.
    logging.getLogger("httpx").setLevel(logging.WARNING)


def logger(name: str) -> Any:
    """Give the structured logger of a module."""
    return structlog.stdlib.get_logger(name)


def redact(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Hide what is secret by its key, and credentials inside any text, however deep."""
    return {key: HIDDEN if _is_secret(key, value) else _clean(value) for key, value in event.items()}


def _renderer(form: LogFormat) -> Any:
    if form is LogFormat.CONSOLE:
        return structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    return structlog.processors.JSONRenderer(sort_keys=True, default=str)


def _is_secret(key: object, value: object) -> bool:
    # A count of tokens or a flag gives nothing away.
    return (
        isinstance(key, str) and not isinstance(value, bool | int | float) and bool(_SECRET_KEY.search(key))
    )


def _clean(value: Any, depth: int = 0) -> Any:
    if depth > _DEPTH_MAX:
        return "..."
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    if isinstance(value, str):
        value = _BEARER.sub(rf"\1 {HIDDEN}", value)
        return _QUERY_SECRET.sub(rf"\1={HIDDEN}", _URL_CREDENTIALS.sub(HIDDEN, value))
    if isinstance(value, Mapping):
        return {k: HIDDEN if _is_secret(k, v) else _clean(v, depth + 1) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(item, depth + 1) for item in value]
    return value


# --------------------------------------------------------------------------- metrics

REGISTRY = CollectorRegistry(auto_describe=True)

_FAST_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
_SLOW_S = (0.1, 0.5, 1, 5, 15, 60, 300, 1_800, 7_200, 43_200, 86_400, 604_800)
_COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 4_096, 16_384, 65_536)
_SHARES = (0, 0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1)

LOG_COMMIT_SECONDS = Histogram(
    "soma_log_commit_seconds", "Time of one group commit.", buckets=_FAST_S, registry=REGISTRY
)
LOG_BATCH_EVENTS = Histogram(
    "soma_log_batch_events", "Events in one group commit.", buckets=_COUNTS, registry=REGISTRY
)
LOG_BATCH_COMMANDS = Histogram(
    "soma_log_batch_commands", "Commands in one group commit.", buckets=_COUNTS, registry=REGISTRY
)
LOG_SIZE = Gauge("soma_log_size", "Records in the log.", registry=REGISTRY)
LOG_COMMANDS = Counter("soma_log_commands", "Commands by outcome.", ["outcome"], registry=REGISTRY)

FOLLOWER_POSITION = Gauge(
    "soma_follower_position", "First position a follower has not applied.", ["follower"], registry=REGISTRY
)
FOLLOWER_LAG_RECORDS = Gauge(
    "soma_follower_lag_records", "Records a follower is behind the log.", ["follower"], registry=REGISTRY
)
FOLLOWER_LAG_SECONDS = Gauge(
    "soma_follower_lag_seconds",
    "Age of the oldest record of the last batch, or the time since then; 0 when nothing waits.",
    ["follower"],
    registry=REGISTRY,
)
FOLLOWER_LAG = Histogram(
    "soma_follower_lag",
    "Seconds from the decision of a batch's oldest record to its being applied.",
    ["follower"],
    buckets=(0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.5, 2.5, 5, 10, 30, 60, 300, 3_600, 86_400),
    registry=REGISTRY,
)
FOLLOWER_BATCH_SECONDS = Histogram(
    "soma_follower_batch_seconds",
    "Time to apply one batch.",
    ["follower"],
    buckets=_FAST_S,
    registry=REGISTRY,
)
FOLLOWER_RECORDS = Counter("soma_follower_records", "Records applied.", ["follower"], registry=REGISTRY)
CHILD_STARTS = Counter(
    "soma_child_starts", "Times a process of ours was started.", ["child"], registry=REGISTRY
)
FOLLOWER_FAILURES = Counter(
    "soma_follower_failures",
    "Times a follower had to start over, by code.",
    ["follower", "code"],
    registry=REGISTRY,
)

INGEST_MESSAGES = Counter(
    "soma_ingest_messages",
    "Messages taken from a topic: inserted, duplicate or dead_letter.",
    ["topic", "outcome"],
    registry=REGISTRY,
)
INGEST_LAG = Gauge(
    "soma_ingest_lag_messages", "Messages of a topic that were not taken yet.", ["topic"], registry=REGISTRY
)
DEAD_LETTERS = Counter(
    "soma_dead_letters",
    "Letters kept, each sighting counted, by who could not take them and why.",
    ["source", "code"],
    registry=REGISTRY,
)

HTTP_REQUESTS = Counter(
    "soma_http_requests",
    "Requests by route, method and status.",
    ["route", "method", "status"],
    registry=REGISTRY,
)
HTTP_REQUEST_SECONDS = Histogram(
    "soma_http_request_seconds", "Time to answer a request.", ["route"], buckets=_FAST_S, registry=REGISTRY
)
CATALOGUE_SEARCH_SECONDS = Histogram(
    "soma_catalogue_search_seconds", "Time to find a page of personas.", buckets=_FAST_S, registry=REGISTRY
)

MARKET_OFFERS = Counter("soma_market_offers", "Offers listed.", registry=REGISTRY)
MARKET_MATCHES = Counter("soma_market_matches", "Intents matched.", registry=REGISTRY)
MARKET_MATCH_FAILURES = Counter(
    "soma_market_match_failures", "Offers passed over, by reason.", ["reason"], registry=REGISTRY
)
MARKET_MATCH_SECONDS = Histogram(
    "soma_market_match_seconds", "Time to match one intent.", buckets=_FAST_S, registry=REGISTRY
)
MARKET_MATCH_GAP = Histogram(
    "soma_market_match_gap",
    "Reported distance from the optimum, as a share.",
    buckets=_SHARES,
    registry=REGISTRY,
)
MARKET_ESCROW_HELD = Gauge(
    "soma_market_escrow_held", "Money in escrow, in units of the currency.", ["currency"], registry=REGISTRY
)
MARKET_PAYOUT = Counter(
    "soma_market_payout",
    "Money paid out of escrow, in units of the currency.",
    ["currency"],
    registry=REGISTRY,
)
MARKET_ROUND_SECONDS = Histogram(
    "soma_market_round_seconds", "Time of one training round.", buckets=_SLOW_S, registry=REGISTRY
)
MARKET_DISPUTES_OPEN = Gauge("soma_market_disputes_open", "Disputes that are open now.", registry=REGISTRY)
MARKET_FUNDED_TO_RELEASED_SECONDS = Histogram(
    "soma_market_funded_to_released_seconds",
    "Time from funded escrow to its release.",
    buckets=_SLOW_S,
    registry=REGISTRY,
)

REVIEW_SECONDS = Histogram(
    "soma_trust_review_seconds",
    "Age of a review when it was settled, by what it came to.",
    ["outcome"],
    buckets=_SLOW_S,
    registry=REGISTRY,
)
REVIEW_REFUSALS = Counter(
    "soma_trust_review_refusals",
    "Decisions on reviews that were refused, by code.",
    ["code"],
    registry=REGISTRY,
)
REVIEW_OVERRIDES = Counter(
    "soma_trust_review_overrides", "Reviews an operator settled alone.", registry=REGISTRY
)
SIGNATURES = Counter(
    "soma_trust_signatures",
    "Signatures brought: counted, or why they were refused.",
    ["outcome"],
    registry=REGISTRY,
)
# A series that begins at one has no increase; what alerts are about begins at zero.
for _outcome in ("approved", "rejected", "expired"):
    REVIEW_SECONDS.labels(_outcome)
for _outcome in ("counted", "unknown_key", "bad_signature", "revoked_key"):
    SIGNATURES.labels(_outcome)
SIGNATURE_SECONDS = Histogram(
    "soma_trust_signature_seconds",
    "Time from the request for signatures to a signature.",
    buckets=_SLOW_S,
    registry=REGISTRY,
)

PUBLICATIONS = Counter(
    "soma_persona_publications",
    "Requests to publish or reinstate a capsule: published, or the code of the refusal.",
    ["outcome"],
    registry=REGISTRY,
)
TRUST_LOST = Counter(
    "soma_persona_trust_lost",
    "Published capsules that fell below the threshold when a key was revoked.",
    registry=REGISTRY,
)

RENTAL_LATENESS_SECONDS = Histogram(
    "soma_rental_lateness_seconds",
    "Seconds from a deadline to the commit of what it brings, by kind; access ends at the deadline in any case.",
    ["kind"],
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1, 1.5, 2, 5, 10, 30, 60, 300, 3_600, 86_400),
    registry=REGISTRY,
)
TIMER_FAILURES = Counter(
    "soma_timer_failures",
    "Deadlines whose consequence could not be written; each is tried again.",
    ["kind", "code"],
    registry=REGISTRY,
)
TIMER_WAITING = Gauge(
    "soma_timer_waiting",
    "Deadlines whose consequence could not be written and is tried again, as this process knows them.",
    registry=REGISTRY,
)
TIMER_LEADER = Gauge("soma_timer_leader", "Whether this process leads the timers: 1 or 0.", registry=REGISTRY)
OFFBOARDINGS = Counter(
    "soma_offboardings",
    "Rentals, subscriptions and purchases that ended because their capsule was stopped.",
    ["kind"],
    registry=REGISTRY,
)

BUSINESS_RECORDS = Counter(
    "soma_business_records",
    "Records committed about rentals, subscriptions, purchases, invoices, credit and payouts, by type.",
    ["type"],
    registry=REGISTRY,
)
MONEY_BOOKED = Counter(
    "soma_money_booked",
    "Money this process booked, by purpose of the account, side and currency, in units of the currency.",
    ["purpose", "side", "currency"],
    registry=REGISTRY,
)
# A series that begins at one has no increase; what alerts are about begins at zero.
for _type in (
    "invoice.issued",
    "invoice.paid",
    "invoice.payment_failed",
    "payout.requested",
    "payout.failed",
):
    BUSINESS_RECORDS.labels(_type)
BILLING_RUN_SECONDS = Histogram(
    "soma_billing_run_seconds", "Time of one billing run.", buckets=_SLOW_S, registry=REGISTRY
)
BILLING_RUN_AT = Gauge(
    "soma_billing_run_last_timestamp_seconds",
    "When the last billing run of this process ended.",
    registry=REGISTRY,
)
BILLING_REFUSED = Gauge(
    "soma_billing_refused",
    "Customers and invoices the last billing run could not bill or collect.",
    registry=REGISTRY,
)

RELAY_RECORDS = Counter(
    "soma_relay_records", "Messages committed to Kafka, by topic.", ["topic"], registry=REGISTRY
)
RELAY_TRANSACTIONS = Counter("soma_relay_transactions", "Kafka transactions committed.", registry=REGISTRY)
RELAY_ABORTS = Counter(
    "soma_relay_aborts", "Kafka transactions given up, by code.", ["code"], registry=REGISTRY
)

FEED_SUBSCRIBERS = Gauge("soma_feed_subscribers", "Feeds that are open now.", registry=REGISTRY)
FEED_RECORDS = Counter("soma_feed_records", "Records sent on feeds.", registry=REGISTRY)
FEED_ENDS = Counter("soma_feed_ends", "Feeds that ended, by reason.", ["reason"], registry=REGISTRY)

WEBHOOK_ATTEMPTS = Counter(
    "soma_webhook_attempts", "Messages sent to webhooks, by outcome.", ["outcome"], registry=REGISTRY
)
WEBHOOK_DEAD_LETTERS = Counter(
    "soma_webhook_dead_letters", "Messages given up after the last attempt.", registry=REGISTRY
)
WEBHOOK_SECONDS = Histogram(
    "soma_webhook_seconds", "Time of one attempt to deliver.", buckets=_FAST_S, registry=REGISTRY
)
WEBHOOK_LAG_RECORDS = Gauge(
    "soma_webhook_lag_records", "Records the webhook that is furthest behind has to pass.", registry=REGISTRY
)

ENGINE_RESTARTS = Counter(
    "soma_engine_restarts", "Times the embedded ClickHouse engine had to be started again.", registry=REGISTRY
)

SQL_QUERIES = Counter("soma_sql_queries", "SQL statements by outcome.", ["outcome"], registry=REGISTRY)
SQL_QUERY_SECONDS = Histogram(
    "soma_sql_query_seconds",
    "Time of one SQL statement, its answer sent.",
    buckets=_FAST_S,
    registry=REGISTRY,
)
SQL_ANSWER_BYTES = Counter("soma_sql_answer_bytes", "Bytes of answers to SQL.", registry=REGISTRY)

RECONCILIATIONS = Counter(
    "soma_reconciliations",
    "Reconciliations by outcome: clean, drift or failed.",
    ["outcome"],
    registry=REGISTRY,
)
RECONCILIATION_DIFFERENCES = Gauge(
    "soma_reconciliation_differences", "Differences the last one found, by kind.", ["kind"], registry=REGISTRY
)
RECONCILIATION_DRIFT = Gauge(
    "soma_reconciliation_drift", "Differences of the last one that make a figure wrong.", registry=REGISTRY
)
RECONCILIATION_SECONDS = Gauge(
    "soma_reconciliation_seconds", "How long the last one took.", registry=REGISTRY
)
RECONCILIATION_BOUND = Gauge(
    "soma_reconciliation_bound", "First position the last one did not compare.", registry=REGISTRY
)
RECONCILED_AT = Gauge(
    "soma_reconciliation_last_timestamp_seconds",
    "When the last one over everything ended.",
    registry=REGISTRY,
)
RECONCILED_CLEAN_AT = Gauge(
    "soma_reconciliation_last_clean_timestamp_seconds",
    "When the last clean one over everything ended.",
    registry=REGISTRY,
)
UTILITY_VALUE = Gauge(
    "soma_utility_value",
    "Mean utility of the requests of the last evaluation, by suite; beside it the constitution's bar.",
    ["suite"],
    registry=REGISTRY,
)
UTILITY_BOUND = Gauge(
    "soma_utility_bound",
    "The least utility the constitution accepts, as last used.",
    ["suite"],
    registry=REGISTRY,
)
UTILITY_DECISIONS = Counter(
    "soma_utility_decisions",
    "Requests of evaluations the guard accepted or refused.",
    ["suite", "outcome"],
    registry=REGISTRY,
)
EVALUATIONS = Counter(
    "soma_evaluations",
    "Evaluations by occasion (asked, inspection) and outcome (passed, not_passed, failed).",
    ["occasion", "outcome"],
    registry=REGISTRY,
)
EVALUATION_SECONDS = Histogram(
    "soma_evaluation_seconds", "Time of one evaluation.", ["occasion"], buckets=_SLOW_S, registry=REGISTRY
)

QUOTA_REFUSALS = Counter(
    "soma_quota_refusals", "Reservations that were refused, by code.", ["code"], registry=REGISTRY
)
# A series that begins at one has no increase.
QUOTA_REFUSALS.labels("quota_exceeded")
QUOTA_THRESHOLD_CROSSINGS = Counter(
    "soma_quota_threshold_crossings", "Thresholds of limits that were reached.", registry=REGISTRY
)

DEAD_LETTERS_OPEN = Gauge(
    "soma_dead_letters_open", "Letters that are neither taken in again nor given up.", registry=REGISTRY
)

POLICY_JUDGEMENTS = Counter(
    "soma_policy_judgements",
    "Answers of policies: allowed, denied or unavailable.",
    ["package", "outcome"],
    registry=REGISTRY,
)
POLICY_REASONS = Counter(
    "soma_policy_reasons",
    "Requirements that were not met, by policy.",
    ["package", "rule"],
    registry=REGISTRY,
)
POLICY_SECONDS = Histogram(
    "soma_policy_seconds", "Time to judge one input.", ["package"], buckets=_FAST_S, registry=REGISTRY
)

_RULE = re.compile(r"[a-z][a-z0-9_]{0,39}(?=:|\Z)", re.ASCII)


def policies_known(packages: Sequence[str]) -> None:
    """Begin to count every policy's answers at zero, so that the first failure of one is seen as a rise."""
    for package in packages:
        for outcome in ("allowed", "denied", "unavailable"):
            POLICY_JUDGEMENTS.labels(package, outcome)


def policy_judged(package: str, allow: bool, reasons: list[str], seconds: float) -> None:
    """Count one answer of a policy, and the requirements it found unmet by their names."""
    POLICY_JUDGEMENTS.labels(package, "allowed" if allow else "denied").inc()
    POLICY_SECONDS.labels(package).observe(seconds)
    for reason in reasons:
        # Policies of others may write what they like; what is no name of a rule is counted as one.
        found = _RULE.match(reason)
        POLICY_REASONS.labels(package, found[0] if found else "other").inc()


def policy_failed(package: str) -> None:
    """Count a policy that could not be asked."""
    POLICY_JUDGEMENTS.labels(package if package.startswith("soma.") else "other", "unavailable").inc()


TRANSFERS = Counter(
    "soma_capsule_transfers", "Exports and imports that ended, by how.", ["kind", "status"], registry=REGISTRY
)
TRANSFER_SECONDS = Histogram(
    "soma_capsule_transfer_seconds",
    "Time a worker took for one export or import.",
    ["kind"],
    buckets=_SLOW_S,
    registry=REGISTRY,
)


def batch_committed(outcomes: Mapping[str, int], event_count: int, seconds: float) -> None:
    """Count one group commit.

    Units: seconds from the batch's leaving the queue to its outcome.
    """
    LOG_COMMIT_SECONDS.observe(seconds)
    LOG_BATCH_EVENTS.observe(event_count)
    LOG_BATCH_COMMANDS.observe(sum(outcomes.values()))
    for outcome, count in outcomes.items():
        LOG_COMMANDS.labels(outcome).inc(count)


def serve_metrics(port: int) -> int:
    """Answer /metrics on loopback for a process that has no other HTTP; give the port.

    Errors: cannot_listen.
    """
    try:
        server, _ = start_http_server(port, addr="127.0.0.1", registry=REGISTRY)
    except OSError as error:
        raise ListenError(
            f"cannot listen on 127.0.0.1 port {port}: {error.strerror}", host="127.0.0.1", port=port
        ) from error
    return int(server.server_port)


def exposition() -> bytes:
    """Print the metrics in the Prometheus text format."""
    return generate_latest(REGISTRY)

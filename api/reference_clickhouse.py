"""The page about ClickHouse: the views people read, printed from their DDL, and queries that a test carries out."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

from ops.reconcile_views import view_statements


class Column(NamedTuple):
    """A column of a view."""

    name: str
    type: str
    meaning: str


class View(NamedTuple):
    """A documented view."""

    name: str
    meaning: str
    columns: Sequence[Column]


class Example(NamedTuple):
    """A question people ask, and the query that answers it; it takes its dates and names as parameters."""

    title: str
    remark: str
    query: str


EXAMPLES: tuple[Example, ...] = (
    Example(
        "Revenue by day",
        "What sellers earned and what the platform kept. Periods are half-open: the end is not in them.",
        """SELECT day, currency, sum(earned) AS earned, sum(fees) AS fees
FROM bi.revenue_daily
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY day, currency
ORDER BY day, currency""",
    ),
    Example(
        "Conversion",
        "How many intents became contracts, were funded, and were paid out.",
        """SELECT sum(opened) AS opened, sum(matched) AS matched, sum(funded) AS funded, sum(released) AS released,
    if(opened = 0, NULL, round(toDecimal64(matched, 6) / opened, 4)) AS match_rate
FROM bi.conversion
WHERE day >= {start:Date} AND day < {end:Date}""",
    ),
    Example(
        "Renewals",
        "What happened to subscriptions, by day; without subscriptions in the log there are no rows.",
        """SELECT day, event, sum(subscriptions) AS subscriptions
FROM bi.renewals
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY day, event
ORDER BY day, event""",
    ),
    Example(
        "Escrow at risk",
        "Money that is neither released nor given back, by what it waits for.",
        """SELECT risk, currency, count() AS contracts, sum(amount) AS amount
FROM bi.escrow_at_risk
GROUP BY risk, currency
ORDER BY risk, currency""",
    ),
    Example(
        "Top rejection reasons",
        "Why offers were passed over most often.",
        """SELECT reason, sum(offers) AS offers, sum(matchings) AS matchings
FROM bi.rejection_reasons
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY reason
ORDER BY offers DESC, reason
LIMIT 10""",
    ),
    Example(
        "Usage by model",
        "Requests and tokens, in the hours in which they were used.",
        """SELECT provider, model, sum(requests) AS requests, sum(errors) AS errors, sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out
FROM bi.usage_hourly
WHERE hour >= {start:Date} AND hour < {end:Date}
GROUP BY provider, model
ORDER BY provider, model""",
    ),
    Example(
        "What providers charge",
        "Costs by currency; readings that state no cost have no currency and are left out.",
        """SELECT provider, currency, sum(cost) AS cost
FROM bi.usage_hourly
WHERE hour >= {start:Date} AND hour < {end:Date} AND currency != ''
GROUP BY provider, currency
ORDER BY provider, currency""",
    ),
    Example(
        "Balances as of the end of a day",
        "The last balance of each account before the next day begins.",
        """SELECT account, currency, argMax(balance, day) AS balance
FROM bi.balances_daily
WHERE day < {end:Date}
GROUP BY account, currency
ORDER BY account, currency""",
    ),
    Example(
        "Entries of an account",
        "Every movement, in order; the sum of their amounts is the change of the balance.",
        """SELECT at, position, leg, amount, op, stream
FROM bi.ledger_entries
WHERE account = {account:String} AND at >= {start:Date} AND at < {end:Date}
ORDER BY position, leg""",
    ),
    Example(
        "The books balance",
        "Records whose legs do not sum to zero. There are none. Needs the rows of every tenant.",
        """SELECT position, currency, sum(amount) AS difference
FROM bi.ledger_entries
GROUP BY position, currency
HAVING difference != 0""",
    ),
    Example(
        "What happened to a contract",
        "Its own events, its rounds, its disputes, in the order of the log.",
        """SELECT position, at, event, stream, actor
FROM bi.contract_timeline
WHERE contract_id = {contract_id:String}
ORDER BY position""",
    ),
    Example(
        "What happened to a persona",
        "Its own events, its capsules, their reviews and signatures, in the order of the log.",
        """SELECT position, at, event, stream, actor
FROM bi.persona_timeline
WHERE persona_id = {persona_id:String}
ORDER BY position""",
    ),
    Example(
        "Who let a capsule be published",
        "Each publication: whose keys signed, under which policy and constitution, and whether by an override.",
        """SELECT at, persona_id, persona_version, capsule, signed, threshold, is_override, policy,
    constitution, judged_by
FROM bi.governance
WHERE kind = 'capsule' AND event = 'published' AND at >= {start:Date} AND at < {end:Date}
ORDER BY position""",
    ),
    Example(
        "Attempts that were refused",
        "Exports, imports and downloads that came to nothing, by the code of the refusal.",
        """SELECT kind, code, count() AS attempts
FROM bi.governance
WHERE event IN ('refused', 'failed', 'download_refused') AND at >= {start:Date} AND at < {end:Date}
GROUP BY kind, code
ORDER BY attempts DESC, kind, code""",
    ),
    Example(
        "Costs by day and persona",
        "What was paid for personas, and what was used of models for them; a dashboard begins with this.",
        """SELECT day, persona_id, currency, sum(requests) AS requests, sum(tokens) AS tokens,
    sum(list_cost) AS list_cost, sum(rentals) AS rentals, sum(subscriptions) AS subscriptions,
    sum(purchases) AS purchases, sum(spent) AS spent
FROM bi.costs_daily
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY day, persona_id, currency
ORDER BY day, persona_id, currency""",
    ),
    Example(
        "Costs by provider and model",
        "List costs and quantities; where a provider's charge is not known, the cost is null and the quantity stands.",
        """SELECT provider, model, currency, sum(requests) AS requests, sum(tokens_in) AS tokens_in,
    sum(tokens_out) AS tokens_out, sum(list_cost) AS list_cost
FROM bi.costs
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY provider, model, currency
ORDER BY provider, model, currency""",
    ),
    Example(
        "Usage as it was known",
        "Each reading counts as it stood before a position of the log; corrections after it are left out.",
        """SELECT provider, model, sum(readings) AS readings, sum(requests) AS requests,
    sum(tokens_in) AS tokens_in, sum(tokens_out) AS tokens_out
FROM bi.usage_entries
WHERE position < {position:UInt64} AND hour >= {start:Date} AND hour < {end:Date}
GROUP BY provider, model
HAVING readings > 0
ORDER BY provider, model""",
    ),
    Example(
        "What is open",
        "Documents of which something is still to be paid.",
        """SELECT tenant, number, due_at, open, currency, status, attempts
FROM bi.invoices
WHERE open > 0
ORDER BY due_at, number""",
    ),
    Example(
        "What was billed for a period",
        "By charge, over all documents of the periods: what a correction took back counts against what it bills.",
        """SELECT charge, meter, currency, sum(quantity) AS quantity, sum(amount) AS amount
FROM bi.invoice_lines
WHERE period_start >= {start:Date} AND period_start < {end:Date}
GROUP BY charge, meter, currency
ORDER BY charge, meter, currency""",
    ),
    Example(
        "Revenue of personas",
        "Rentals, periods of subscriptions and purchases, on the day they were settled.",
        """SELECT day, kind, currency, sum(earned) AS earned, sum(fees) AS fees
FROM bi.rental_revenue
WHERE day >= {start:Date} AND day < {end:Date}
GROUP BY day, kind, currency
ORDER BY day, kind, currency""",
    ),
    Example(
        "Renewal rate",
        "Of the subscriptions whose period was over in a month, how many went on.",
        """SELECT month, sum(due) AS due, sum(renewed) AS renewed,
    if(due = 0, NULL, round(toDecimal64(renewed, 6) / due, 4)) AS rate
FROM bi.renewal_rate
WHERE month >= {start:Date} AND month < {end:Date}
GROUP BY month
ORDER BY month""",
    ),
    Example(
        "Recurring revenue",
        "What subscriptions bring in a month as they stand now, and how much of it is going to end.",
        """SELECT persona_id, currency, subscriptions, past_due, ending, mrr
FROM bi.recurring_revenue
ORDER BY persona_id, currency""",
    ),
    Example(
        "How far the tables are",
        "Every record before the position is in them.",
        """SELECT follower, min(position) AS position
FROM bi.watermarks
GROUP BY follower
ORDER BY follower""",
    ),
)

_VIEW = re.compile(
    r"CREATE OR REPLACE VIEW bi\.(\w+)\n\(\n(.*?)\n\)\nDEFINER.*\nCOMMENT '((?:[^']|'')*)'\Z", re.DOTALL
)
_COLUMN = re.compile(r"^ {4}(\w+)\s+(.+?) COMMENT '((?:[^']|'')*)',?$", re.MULTILINE)


def views() -> list[View]:
    """Read the documented views out of the migrations that make them."""
    found = []
    for statement in view_statements().values():
        parts = _VIEW.match(statement)
        assert parts is not None, f"a view that cannot be documented: {statement[:60]}"
        columns = [Column(*column) for column in _COLUMN.findall(parts[2])]
        assert len(columns) == parts[2].count("\n") + 1, f"a column of {parts[1]} has no comment"
        found.append(View(parts[1], parts[3], columns))
    return sorted(found)


INTRODUCTION = """
Billing teams read these views in the database `bi`, with any client that speaks ClickHouse's HTTP dialect: through
the service (`/clickhouse`, your token as the password), or at a ClickHouse server of your own. Each view has a column
`tenant`; whoever belongs to a tenant sees its rows only, auditors and operators see all.

- Rows count once, however often a follower had to send them: views read with FINAL, or from rollups that are
  recomputed and replaced. There is no need to write FINAL yourself.
- Amounts are exact decimals with nine digits after the point; sums do not overflow. Do not cast them to floats.
- Periods are half-open, `>= start AND < end`. Days and hours are UTC.
- What a view shows follows the log by a moment; `watermarks` tells how far it is.
- Meanings of columns never change; new columns are added at the end.
""".strip().splitlines()


def opened_page(opening: Sequence[str], rows: Sequence[tuple[View, Sequence[str]]]) -> str:
    """Put the page together from its opening, and each view with its table of columns."""
    lines = [*opening, *INTRODUCTION, "", "## Questions and queries", ""]
    lines += [
        "Names in braces are parameters, such as `param_start=2026-01-01`. A test asks each of these.",
        "",
    ]
    for example in EXAMPLES:
        lines += [f"### {example.title}", "", example.remark, "", "```sql", example.query, "```", ""]
    lines += ["## Views", ""]
    for view, table in rows:
        lines += [f"### bi.{view.name}", "", view.meaning, "", *table]
    return "\n".join(lines)

"""The log's side of commerce, told in SQL of PostgreSQL: lines of documents, and what was paid for personas.

Read out of the records' own JSON, with no word of how a projection tells them. Lines a correction takes back are those
of the document it corrects; what a sale is about is what its first record says.
"""

from __future__ import annotations

_NANO = "trunc(coalesce({}::numeric, 0) * 1000000000)"
_READ = "SELECT convert_from({}.record, 'UTF8')::jsonb AS r OFFSET 0"


def _nano(value: str) -> str:
    return _NANO.format(f"({value})")


_AMOUNT = _nano("l.line #>> '{amount,amount}'")
_PAID = {name: _nano(f"j.d #>> '{{{name},amount}}'") for name in ("charged", "fee", "released")}

# A quantity is a decimal or a fraction; to nine digits it is rounded half to even.
_QUANTITY = (
    "(SELECT w.whole + CASE WHEN 2 * w.rest > w.den THEN 1 WHEN 2 * w.rest < w.den THEN 0 ELSE mod(w.whole, 2) END"
    " FROM (SELECT n.num, n.den, mod(n.num, n.den) AS rest, div(n.num, n.den) AS whole FROM"
    " (SELECT split_part(l.line ->> 'quantity', '/', 1)::numeric * 1000000000 AS num,"
    " coalesce(nullif(split_part(l.line ->> 'quantity', '/', 2), ''), '1')::numeric AS den) AS n) AS w)"
)
_BACK = "coalesce(jsonb_array_length(b.r #> '{data,bill,lines}'), 0)"
LINES = (
    "SELECT e.position, l.leg, e.address, j.r ->> 'at' AS at, e.tenant, split_part(e.stream, '/', 2) AS invoice_id,"
    " CASE l.sign WHEN 1 THEN 'billed' ELSE 'reversed' END AS entry, l.n AS line, l.line_of,"
    " j.r #>> '{data,period_start}' AS period_start, j.r #>> '{data,period_end}' AS period_end,"
    " l.line ->> 'charge' AS charge, l.line ->> 'meter' AS meter, l.line ->> 'description' AS description,"
    f" l.sign * {_QUANTITY} AS quantity, l.line ->> 'quantity' AS quantity_exact,"
    f" l.sign * {_AMOUNT} AS amount, l.line ->> 'exact' AS exact,"
    " l.line ->> 'rounding' AS rounding, l.line #>> '{amount,currency}' AS currency,"
    " coalesce(l.proof ->> 'events', '0') AS events, coalesce(l.proof ->> 'first', '') AS first,"
    " coalesce(l.proof ->> 'last', '') AS last, coalesce(l.proof ->> 'fingerprint', '') AS fingerprint, e.stream"
    f" FROM events AS e CROSS JOIN LATERAL ({_READ.format('e')}) AS j"
    " LEFT JOIN LATERAL (SELECT convert_from(c.record, 'UTF8')::jsonb AS r FROM events AS c"
    " WHERE c.stream = 'invoice/' || (j.r #>> '{data,corrects}') AND c.version = 1) AS b ON true"
    " CROSS JOIN LATERAL (SELECT o.n - 1 AS leg, o.n - 1 AS n, -1 AS sign, j.r #>> '{data,corrects}' AS line_of,"
    " o.line, NULL::jsonb AS proof FROM jsonb_array_elements(b.r #> '{data,bill,lines}') WITH ORDINALITY AS o(line, n)"
    f" UNION ALL SELECT {_BACK} + o.n - 1, o.n - 1, 1, split_part(e.stream, '/', 2), o.line,"
    " j.r #> ARRAY['data', 'evidence', (o.n - 1)::text]"
    " FROM jsonb_array_elements(j.r #> '{data,bill,lines}') WITH ORDINALITY AS o(line, n)) AS l"
    " WHERE e.type = 'invoice.issued'"
)

_HELD = (
    "(SELECT sum((m ->> 'amount')::numeric) FROM jsonb_array_elements(j.d -> 'money') AS m"
    " WHERE m ->> 'op' = 'hold')"
)
_RESERVED = (
    "CASE WHEN e.type IN ('rental.requested', 'rental.extended') THEN (j.d #>> '{amount,amount}')::numeric"
    " WHEN e.type = 'purchase.made' THEN (j.d #>> '{price,amount}')::numeric"
    f" WHEN e.type LIKE 'subscription.%%' THEN {_HELD} END"
)
_PRICE = (
    "coalesce(j.d #>> '{terms,price,price}', j.d #>> '{plan,price,amount}',"
    " CASE e.type WHEN 'purchase.made' THEN j.d #>> '{price,amount}' END)"
)
SALES = (
    "SELECT e.position, 0::bigint AS leg, e.address, j.r ->> 'at' AS at, e.tenant,"
    " split_part(e.stream, '/', 1) AS kind, split_part(e.stream, '/', 2) AS sale_id,"
    " split_part(e.type, '.', 2) AS event, e.version,"
    " s.sale ->> 'seller' AS seller, s.sale ->> 'persona_id' AS persona_id,"
    " coalesce(CASE e.type WHEN 'subscription.changed' THEN j.d #>> '{plan,sale,capsule}' END, s.sale ->> 'capsule')"
    " AS capsule, s.sale ->> 'currency' AS currency, s.sale ->> 'fee' AS fee_share,"
    f" {_nano(_PRICE)} AS price, coalesce(j.d #>> '{{plan,every}}', '') AS every,"
    f" coalesce(j.d ->> 'minutes', '0') AS minutes, {_nano(_RESERVED)} AS reserved,"
    f" {_PAID['charged']} AS charged, {_PAID['fee']} AS fee,"
    f" {_PAID['released']} AS released, coalesce(j.d ->> 'used_s', '0') AS used_s,"
    " coalesce(j.d ->> 'period_start', '') AS period_start,"
    " coalesce(j.d ->> 'until', j.d ->> 'period_end', '') AS period_end,"
    " coalesce(j.d ->> 'activate_by', j.d ->> 'expires_at', j.d ->> 'refundable_until', j.d ->> 'next_attempt_at', '')"
    " AS expires_at, coalesce(j.d ->> 'reason', '') AS reason, e.stream,"
    f" {_PAID['charged']} AS amount"
    " FROM events AS e JOIN events AS f ON f.stream = e.stream AND f.version = 1"
    " CROSS JOIN LATERAL (SELECT c.r, c.r -> 'data' AS d"
    f" FROM ({_READ.format('e')}) AS c OFFSET 0) AS j"
    " CROSS JOIN LATERAL (SELECT coalesce(d #> '{terms,sale}', d #> '{plan,sale}', d -> 'sale') AS sale"
    " FROM (SELECT convert_from(f.record, 'UTF8')::jsonb -> 'data' AS d OFFSET 0) AS c) AS s"
    " WHERE split_part(e.stream, '/', 1) IN ('rental', 'subscription', 'purchase')"
)

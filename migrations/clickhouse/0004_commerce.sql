-- Why:   usage that was put right, and everything commerce does: what was sold, billed, credited and paid out.
-- Shape: as in 0001 and 0002. Whatever says more than one thing has several rows under its position, told apart by leg.
--        A correction, of a reading or of an invoice, is told as two sides: what it takes back, with the opposite sign,
--        and what holds instead. No row ever changes or is taken away, so sums are right wherever a period is cut.
-- Read:  with FINAL, or through the views below.

-- A correction of a reading is two rows: leg 0 takes back what `reverses` said, with sign -1, in the hour it had said;
-- leg 1 says what holds, in its hour. `version` is that of the record in the stream of the reading.
ALTER TABLE soma.usage
    ADD COLUMN IF NOT EXISTS leg UInt32,
    ADD COLUMN IF NOT EXISTS sign Int8 DEFAULT 1,
    ADD COLUMN IF NOT EXISTS version UInt64 DEFAULT 1,
    ADD COLUMN IF NOT EXISTS reverses UInt64,
    ADD COLUMN IF NOT EXISTS reason String,
    ADD INDEX IF NOT EXISTS by_sign sign TYPE minmax GRANULARITY 1,
    MODIFY ORDER BY (tenant, provider, model, hour, position, leg);

-- What happened to customers: enrolled, replanned, coupon_redeemed, billed, corrected, note_issued, credit_added,
-- credit_spent. A plan is stated by the first two only.
CREATE TABLE IF NOT EXISTS soma.customer_events (
    position   UInt64,
    address    FixedString(64),
    at         DateTime64(6, 'UTC'),
    tenant     LowCardinality(String),
    event      LowCardinality(String),
    version    UInt64,
    book       LowCardinality(String),
    currency   LowCardinality(String),
    zone       LowCardinality(String),
    every      LowCardinality(String),
    anchor     String,
    billed_to  Nullable(DateTime64(6, 'UTC')),
    reference  String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Documents, one row an invoice or a correction. Amounts of the bill are those of the whole period as it stands in this
-- document; owed, tax_owed and due are what this document changes.
CREATE TABLE IF NOT EXISTS soma.invoices (
    invoice_id   String,
    position     UInt64,
    address      FixedString(64),
    at           DateTime64(6, 'UTC'),
    tenant       LowCardinality(String),
    number       String,
    kind         LowCardinality(String),
    corrects     String,
    period_start DateTime64(6, 'UTC'),
    period_end   DateTime64(6, 'UTC'),
    zone         LowCardinality(String),
    known_at     UInt64,
    sheets       Array(String),
    currency     LowCardinality(String),
    lines        UInt32,
    subtotal     Decimal(38, 9),
    discounts    Decimal(38, 9),
    net          Decimal(38, 9),
    tax          Decimal(38, 9),
    total        Decimal(38, 9),
    credits      Decimal(38, 9),
    rounding     Decimal(38, 9),
    owed         Decimal(38, 9),
    tax_owed     Decimal(38, 9),
    due          Decimal(38, 9),
    due_at       DateTime64(6, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, invoice_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Lines of documents. A correction has the lines of the document it corrects with the opposite sign (entry reversed),
-- and its own. quantity_exact, exact and rounding are what the document prints.
CREATE TABLE IF NOT EXISTS soma.invoice_lines (
    invoice_id     String,
    position       UInt64,
    leg            UInt32,
    address        FixedString(64),
    at             DateTime64(6, 'UTC'),
    tenant         LowCardinality(String),
    entry          LowCardinality(String),
    line           UInt32,
    line_of        String,
    period_start   DateTime64(6, 'UTC'),
    period_end     DateTime64(6, 'UTC'),
    charge         LowCardinality(String),
    meter          LowCardinality(String),
    description    String,
    quantity       Decimal(38, 9),
    quantity_exact String,
    amount         Decimal(38, 9),
    exact          String,
    rounding       String,
    currency       LowCardinality(String),
    events         UInt64,
    first          Nullable(UInt64),
    last           Nullable(UInt64),
    fingerprint    String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, invoice_id, position, leg)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- What became of documents: issued, paid, payment_failed, credited, corrected. off_due is by how much less is due.
CREATE TABLE IF NOT EXISTS soma.invoice_events (
    invoice_id      String,
    position        UInt64,
    address         FixedString(64),
    at              DateTime64(6, 'UTC'),
    tenant          LowCardinality(String),
    event           LowCardinality(String),
    version         UInt64,
    amount          Decimal(38, 9),
    off_due         Decimal(38, 9),
    currency        LowCardinality(String),
    reference       String,
    next_attempt_at Nullable(DateTime64(6, 'UTC'))
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, invoice_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Parts of invoices that were taken back.
CREATE TABLE IF NOT EXISTS soma.credit_notes (
    credit_note_id String,
    position       UInt64,
    address        FixedString(64),
    at             DateTime64(6, 'UTC'),
    tenant         LowCardinality(String),
    number         String,
    invoice_id     String,
    amount         Decimal(38, 9),
    tax            Decimal(38, 9),
    off_due        Decimal(38, 9),
    returned       Decimal(38, 9),
    currency       LowCardinality(String),
    target         LowCardinality(String),
    reason         String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, credit_note_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Credit of customers: granted, grown, burned, expired. reference is what it was granted for, or the invoice it paid.
CREATE TABLE IF NOT EXISTS soma.grant_events (
    grant_id   String,
    position   UInt64,
    address    FixedString(64),
    at         DateTime64(6, 'UTC'),
    tenant     LowCardinality(String),
    event      LowCardinality(String),
    version    UInt64,
    source     LowCardinality(String),
    amount     Decimal(38, 9),
    currency   LowCardinality(String),
    priority   UInt32,
    expires_at Nullable(DateTime64(6, 'UTC')),
    reference  String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, grant_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Money that sellers asked for: requested, paid, failed. Only a request states the amount.
CREATE TABLE IF NOT EXISTS soma.payout_events (
    payout_id   String,
    position    UInt64,
    address     FixedString(64),
    at          DateTime64(6, 'UTC'),
    tenant      LowCardinality(String),
    event       LowCardinality(String),
    version     UInt64,
    amount      Decimal(38, 9),
    currency    LowCardinality(String),
    destination String,
    reference   String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, payout_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Rentals, subscriptions and purchases of personas, one row an event; tenant is who uses, seller whose persona it is.
-- What is sold, by whom and in which currency is said by the first event, and repeated here on every one.
CREATE TABLE IF NOT EXISTS soma.sale_events (
    kind         LowCardinality(String),
    sale_id      String,
    position     UInt64,
    address      FixedString(64),
    at           DateTime64(6, 'UTC'),
    tenant       LowCardinality(String),
    event        LowCardinality(String),
    version      UInt64,
    seller       LowCardinality(String),
    persona_id   String,
    capsule      String,
    currency     LowCardinality(String),
    fee_share    String,
    price        Decimal(38, 9),
    every        LowCardinality(String),
    minutes      UInt64,
    reserved     Decimal(38, 9),
    charged      Decimal(38, 9),
    fee          Decimal(38, 9),
    released     Decimal(38, 9),
    used_s       UInt64,
    period_start Nullable(DateTime64(6, 'UTC')),
    period_end   Nullable(DateTime64(6, 'UTC')),
    expires_at   Nullable(DateTime64(6, 'UTC')),
    reason       LowCardinality(String)
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, kind, sale_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- --------------------------------------------------------------------- usage

CREATE OR REPLACE VIEW bi.usage
(
    tenant        LowCardinality(String) COMMENT 'Whose usage it is.',
    provider      LowCardinality(String) COMMENT 'Who runs the model.',
    model         LowCardinality(String) COMMENT 'The model.',
    hour          DateTime('UTC') COMMENT 'The hour of the use, whenever it was recorded.',
    occurred_at   DateTime64(6, 'UTC') COMMENT 'When it was used.',
    recorded_at   DateTime64(6, 'UTC') COMMENT 'When the reading was taken into the log.',
    source        LowCardinality(String) COMMENT 'Who measured it.',
    event_id      String COMMENT 'The id of the reading at its source.',
    rental        String COMMENT 'The rental it belongs to; empty if none was named.',
    persona       String COMMENT 'The persona it belongs to; empty if none was named.',
    status        LowCardinality(String) COMMENT 'ok or error.',
    requests      UInt64 COMMENT 'How many requests the reading sums up.',
    tokens_in     UInt64 COMMENT 'Tokens sent.',
    tokens_out    UInt64 COMMENT 'Tokens received.',
    tokens_cached UInt64 COMMENT 'Tokens sent that were read from a cache; zero if not stated.',
    latency_ms    Nullable(UInt64) COMMENT 'Milliseconds, summed over the requests; null if not measured.',
    cost          Decimal(38, 9) COMMENT 'What the provider charges; zero if not stated.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code; empty if no cost was stated.',
    position      UInt64 COMMENT 'The place of the record in the log.',
    address       String COMMENT 'The address of the record.',
    version       UInt64 COMMENT 'Which version of the reading holds: 1 as it was taken, more where it was put right.',
    reason        String COMMENT 'Why it was put right; empty if it was not.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, provider, model, hour, occurred_at, at AS recorded_at, source, event_id, rental, persona, status, requests,
    tokens_in, tokens_out, tokens_cached, latency_ms, cost, currency, position,
    concat('sha3-512:', lower(hex(address))) AS address, version, reason
FROM soma.usage FINAL
WHERE sign = 1 AND position NOT IN (SELECT reverses FROM soma.usage FINAL WHERE sign = -1)
COMMENT 'Usage readings as they hold now, one row each; what they said before they were put right is in usage_entries.';

CREATE OR REPLACE VIEW bi.usage_entries
(
    tenant        LowCardinality(String) COMMENT 'Whose usage it is.',
    provider      LowCardinality(String) COMMENT 'Who runs the model.',
    model         LowCardinality(String) COMMENT 'The model.',
    hour          DateTime('UTC') COMMENT 'The hour of the use that is counted, or taken back.',
    entry         LowCardinality(String) COMMENT 'taken, reversed (what a correction takes back) or corrected (what holds instead).',
    source        LowCardinality(String) COMMENT 'Who measured it.',
    event_id      String COMMENT 'The id of the reading at its source.',
    version       UInt64 COMMENT 'The number of the record among those of the reading, from 1.',
    reason        String COMMENT 'Why it was put right; empty for a reading as it was taken.',
    reverses      Nullable(UInt64) COMMENT 'The position of the record that is taken back; null otherwise.',
    rental        String COMMENT 'The rental; empty if none was named.',
    persona       String COMMENT 'The persona; empty if none was named.',
    status        LowCardinality(String) COMMENT 'ok or error.',
    readings      Int8 COMMENT '1, or -1 where something is taken back: the sum counts readings that hold.',
    requests      Int64 COMMENT 'Requests; below zero where they are taken back, and so are the columns after it.',
    tokens_in     Int64 COMMENT 'Tokens sent.',
    tokens_out    Int64 COMMENT 'Tokens received.',
    tokens_cached Int64 COMMENT 'Tokens sent that were read from a cache.',
    cost          Decimal(38, 9) COMMENT 'What the provider charges; zero if not stated.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code; empty if no cost was stated.',
    occurred_at   DateTime64(6, 'UTC') COMMENT 'When it was used, as this entry says.',
    recorded_at   DateTime64(6, 'UTC') COMMENT 'When the record came into the log.',
    position      UInt64 COMMENT 'The place of the record in the log: entries before a position are what was known then.',
    leg           UInt32 COMMENT 'Which of the entries of that record.',
    address       String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, provider, model, hour, multiIf(sign = -1, 'reversed', version > 1, 'corrected', 'taken') AS entry, source,
    event_id, version, reason, if(sign = -1, reverses, NULL) AS reverses, rental, persona, status, sign AS readings,
    toInt64(requests) * sign AS requests, toInt64(tokens_in) * sign AS tokens_in, toInt64(tokens_out) * sign AS tokens_out,
    toInt64(tokens_cached) * sign AS tokens_cached, cost * sign AS cost, currency, occurred_at, at AS recorded_at, position,
    leg, concat('sha3-512:', lower(hex(address))) AS address
FROM soma.usage FINAL
COMMENT 'Usage in double entry: every reading as it was taken, and each correction as what it takes back and what holds instead. Sums are what holds; sums of entries before a position are what held there.';

CREATE OR REPLACE VIEW bi.usage_hourly
(
    tenant        LowCardinality(String) COMMENT 'Whose usage it is.',
    provider      LowCardinality(String) COMMENT 'Who runs the model.',
    model         LowCardinality(String) COMMENT 'The model.',
    hour          DateTime('UTC') COMMENT 'The hour of the use. A reading that came late stands in its own hour.',
    currency      LowCardinality(String) COMMENT 'Of the cost; empty for readings that state none, which have a row of their own.',
    readings      UInt64 COMMENT 'How many readings there are.',
    requests      UInt64 COMMENT 'How many requests they sum up.',
    errors        UInt64 COMMENT 'How many of the requests failed.',
    tokens_in     UInt64 COMMENT 'Tokens sent.',
    tokens_out    UInt64 COMMENT 'Tokens received.',
    tokens_cached UInt64 COMMENT 'Tokens sent that were read from a cache.',
    timed         UInt64 COMMENT 'How many requests had their latency measured.',
    latency_ms    UInt64 COMMENT 'Milliseconds, summed over those: latency_ms / timed is the mean.',
    latency_max   UInt64 COMMENT 'The largest mean latency of one reading, in whole milliseconds.',
    cost          Decimal(76, 9) COMMENT 'What providers charge.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, provider, model, hour, currency, readings, requests, errors, tokens_in, tokens_out, tokens_cached, timed,
    latency_ms, latency_max, cost
FROM soma.usage_hourly FINAL
WHERE readings > 0
COMMENT 'Usage by the hour, provider, model and currency, as it holds now: a reading that was put right counts as it was put right, in the hour it has now.';

CREATE OR REPLACE VIEW bi.forecast_inputs
(
    tenant     LowCardinality(String) COMMENT 'Whose usage it is.',
    provider   LowCardinality(String) COMMENT 'Who runs the model.',
    model      LowCardinality(String) COMMENT 'The model.',
    hour       DateTime('UTC') COMMENT 'The hour of the use. An hour without a reading has no row: whether that means none or unknown is for the forecast to say.',
    readings   UInt64 COMMENT 'How many readings there are.',
    requests   UInt64 COMMENT 'How many requests they sum up.',
    errors     UInt64 COMMENT 'How many of the requests failed.',
    tokens_in  UInt64 COMMENT 'Tokens sent.',
    tokens_out UInt64 COMMENT 'Tokens received.',
    tokens     UInt64 COMMENT 'Both together.',
    latency_ms Nullable(Float64) COMMENT 'Mean latency of a request in milliseconds; null if none was measured. An estimate for plans, not an amount.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    h.tenant AS tenant, h.provider AS provider, h.model AS model, h.hour AS hour,
    sum(h.readings) AS readings, sum(h.requests) AS requests, sum(h.errors) AS errors, sum(h.tokens_in) AS tokens_in,
    sum(h.tokens_out) AS tokens_out, sum(h.tokens_in) + sum(h.tokens_out) AS tokens,
    if(sum(h.timed) > 0, sum(h.latency_ms) / sum(h.timed), NULL) AS latency_ms
FROM soma.usage_hourly AS h FINAL
WHERE h.readings > 0
GROUP BY h.tenant, h.provider, h.model, h.hour
COMMENT 'What forecasts are fed with: hours of usage by provider and model, whatever the currency.';

-- --------------------------------------------------------------------- customers and their documents

CREATE OR REPLACE VIEW bi.customers
(
    tenant        LowCardinality(String) COMMENT 'The customer.',
    book          LowCardinality(String) COMMENT 'The price book, as it was last agreed; another one holds from the next period on.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code.',
    zone          LowCardinality(String) COMMENT 'The time zone its days begin in, as it was last agreed.',
    every         LowCardinality(String) COMMENT 'The length of a period: day, week, month or year, as it was last agreed.',
    enrolled_at   DateTime64(6, 'UTC') COMMENT 'When it became a customer.',
    billed_to     DateTime64(6, 'UTC') COMMENT 'Up to when it was billed: where the next period begins.',
    invoices      UInt64 COMMENT 'Documents it was sent, corrections included.',
    credit_notes  UInt64 COMMENT 'Credit notes it was sent.',
    version       UInt64 COMMENT 'How much has happened to it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    c.tenant AS tenant,
    argMaxIf(c.book, c.position, c.event IN ('enrolled', 'replanned')) AS book,
    argMaxIf(c.currency, c.position, c.event IN ('enrolled', 'replanned')) AS currency,
    argMaxIf(c.zone, c.position, c.event IN ('enrolled', 'replanned')) AS zone,
    argMaxIf(c.every, c.position, c.event IN ('enrolled', 'replanned')) AS every,
    min(c.at) AS enrolled_at,
    assumeNotNull(argMaxIf(c.billed_to, c.position, c.event IN ('enrolled', 'billed'))) AS billed_to,
    countIf(c.event IN ('billed', 'corrected')) AS invoices,
    countIf(c.event = 'note_issued') AS credit_notes,
    max(c.version) AS version
FROM soma.customer_events AS c FINAL
GROUP BY c.tenant
COMMENT 'Every tenant that is billed, and what was agreed with it.';

CREATE OR REPLACE VIEW bi.invoices
(
    tenant       LowCardinality(String) COMMENT 'The customer.',
    invoice_id   String COMMENT 'The document.',
    number       String COMMENT 'Its number, as it is printed.',
    kind         LowCardinality(String) COMMENT 'invoice, or correction of one.',
    corrects     String COMMENT 'The document that a correction takes the place of; empty for an invoice.',
    corrected_by String COMMENT 'The document that took the place of this one; empty if none did.',
    status       LowCardinality(String) COMMENT 'issued, paid or overdue.',
    period_start DateTime64(6, 'UTC') COMMENT 'Where the period of the service begins.',
    period_end   DateTime64(6, 'UTC') COMMENT 'Where it ends; half-open.',
    zone         LowCardinality(String) COMMENT 'The time zone whose days the period is made of.',
    issued_at    DateTime64(6, 'UTC') COMMENT 'When the document was issued and booked.',
    known_at     UInt64 COMMENT 'It counts what the log held before this position.',
    sheets       Array(String) COMMENT 'The versions of the price book it was rated by, in the order of the period.',
    currency     LowCardinality(String) COMMENT 'ISO 4217 code.',
    lines        UInt32 COMMENT 'How many lines its bill has.',
    subtotal     Decimal(38, 9) COMMENT 'Sum of those lines.',
    discounts    Decimal(38, 9) COMMENT 'What coupons took off.',
    net          Decimal(38, 9) COMMENT 'subtotal less discounts.',
    tax          Decimal(38, 9) COMMENT 'Taxes on net.',
    total        Decimal(38, 9) COMMENT 'net and tax.',
    credits      Decimal(38, 9) COMMENT 'What was paid by credits when it was issued.',
    rounding     Decimal(38, 9) COMMENT 'What rounding of earlier lines settles here.',
    owed         Decimal(38, 9) COMMENT 'What this document adds to what the customer owes; below zero where a correction gives back. Sums of it are what was billed.',
    tax_owed     Decimal(38, 9) COMMENT 'The tax in owed.',
    due          Decimal(38, 9) COMMENT 'What was to be paid when it was issued.',
    paid         Decimal(38, 9) COMMENT 'What was paid since.',
    credited     Decimal(38, 9) COMMENT 'What credit notes took back.',
    open         Decimal(38, 9) COMMENT 'What is still to be paid.',
    due_at       DateTime64(6, 'UTC') COMMENT 'When it is to be paid.',
    paid_at      Nullable(DateTime64(6, 'UTC')) COMMENT 'When nothing was left to pay; null before, and where nothing was ever due.',
    attempts     UInt64 COMMENT 'How often a payment failed.',
    position     UInt64 COMMENT 'The record that issued it.',
    address      String COMMENT 'The address of that record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    i.tenant AS tenant, i.invoice_id AS invoice_id, i.number AS number, i.kind AS kind, i.corrects AS corrects,
    e.corrected_by AS corrected_by,
    multiIf(i.due - e.off_due <= 0, 'paid', e.gave_up, 'overdue', 'issued') AS status,
    i.period_start AS period_start, i.period_end AS period_end, i.zone AS zone, i.at AS issued_at, i.known_at AS known_at,
    i.sheets AS sheets, i.currency AS currency, i.lines AS lines, i.subtotal AS subtotal, i.discounts AS discounts,
    i.net AS net, i.tax AS tax, i.total AS total, i.credits AS credits, i.rounding AS rounding, i.owed AS owed,
    i.tax_owed AS tax_owed, i.due AS due, e.paid AS paid, e.credited AS credited, i.due - e.off_due AS open,
    i.due_at AS due_at, if(i.due > 0 AND i.due - e.off_due <= 0, e.last_at, NULL) AS paid_at, e.attempts AS attempts,
    i.position AS position, concat('sha3-512:', lower(hex(i.address))) AS address
FROM soma.invoices AS i FINAL
LEFT JOIN
(
    SELECT
        tenant, invoice_id,
        maxIf(reference, event = 'corrected') AS corrected_by,
        sumIf(amount, event = 'paid') AS paid,
        sumIf(amount, event = 'credited') AS credited,
        sum(n.off_due) AS off_due,
        countIf(event = 'payment_failed') AS attempts,
        countIf(event = 'payment_failed' AND next_attempt_at IS NULL) > 0 AS gave_up,
        maxIf(at, n.off_due > 0) AS last_at
    FROM soma.invoice_events AS n FINAL
    GROUP BY tenant, invoice_id
) AS e ON e.tenant = i.tenant AND e.invoice_id = i.invoice_id
COMMENT 'Every invoice and every correction, with what became of it. A correction shows the bill of the whole period anew; what it changes is owed.';

CREATE OR REPLACE VIEW bi.invoice_lines
(
    tenant         LowCardinality(String) COMMENT 'The customer.',
    invoice_id     String COMMENT 'The document.',
    entry          LowCardinality(String) COMMENT 'billed; or reversed, where a correction takes back a line of the document it corrects.',
    line           UInt32 COMMENT 'Which line of its bill, from 0.',
    line_of        String COMMENT 'The document whose line it is: this one, or the corrected one.',
    period_start   DateTime64(6, 'UTC') COMMENT 'Where the period of the service begins.',
    period_end     DateTime64(6, 'UTC') COMMENT 'Where it ends; half-open.',
    charge         LowCardinality(String) COMMENT 'The charge of the price book; commitment for what is missing to a minimum, unpriced for usage that no charge is for.',
    meter          LowCardinality(String) COMMENT 'What is counted: period, tokens_in, tokens_out, cached_tokens, requests, seconds or amount.',
    description    String COMMENT 'What the line says.',
    quantity       Decimal(38, 9) COMMENT 'How much, below zero where it is taken back; rounded half to even where it does not end in nine digits.',
    quantity_exact String COMMENT 'How much, as the document says: a decimal or a fraction, without a sign.',
    amount         Decimal(38, 9) COMMENT 'What it costs, rounded once; below zero where it is taken back.',
    exact          String COMMENT 'What it costs before rounding, as the document says.',
    rounding       String COMMENT 'What rounding took, carried on to a later invoice.',
    currency       LowCardinality(String) COMMENT 'ISO 4217 code.',
    events         UInt64 COMMENT 'How many records the quantity comes from; zero where it counts none, and for what is taken back.',
    first_position Nullable(UInt64) COMMENT 'The first of these records.',
    last_position  Nullable(UInt64) COMMENT 'The last of them.',
    fingerprint    String COMMENT 'The sum of the first eight bytes of their addresses modulo 2^64, in hex.',
    issued_at      DateTime64(6, 'UTC') COMMENT 'When the document was issued.',
    position       UInt64 COMMENT 'The record that issued it.',
    leg            UInt32 COMMENT 'Which of the rows of that record.',
    address        String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, invoice_id, entry, line, line_of, period_start, period_end, charge, meter, description, quantity, quantity_exact,
    amount, exact, rounding, currency, events, first AS first_position, last AS last_position, fingerprint, at AS issued_at,
    position, leg, concat('sha3-512:', lower(hex(address))) AS address
FROM soma.invoice_lines FINAL
COMMENT 'Lines of invoices and corrections. Sums over all documents of a period are what holds for it now.';

CREATE OR REPLACE VIEW bi.credit_notes
(
    tenant         LowCardinality(String) COMMENT 'The customer.',
    credit_note_id String COMMENT 'The credit note.',
    number         String COMMENT 'Its number, as it is printed.',
    invoice_id     String COMMENT 'The invoice of which it takes a part back.',
    amount         Decimal(38, 9) COMMENT 'What it takes back, tax included.',
    tax            Decimal(38, 9) COMMENT 'The tax in it.',
    off_due        Decimal(38, 9) COMMENT 'By how much less is to be paid of the invoice.',
    returned       Decimal(38, 9) COMMENT 'What was paid already and came back.',
    currency       LowCardinality(String) COMMENT 'ISO 4217 code.',
    target         LowCardinality(String) COMMENT 'Where it came back to: credits or wallet.',
    reason         String COMMENT 'The reason that was given.',
    issued_at      DateTime64(6, 'UTC') COMMENT 'When it was issued.',
    position       UInt64 COMMENT 'The record that issued it.',
    address        String COMMENT 'The address of that record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, credit_note_id, number, invoice_id, amount, tax, off_due, returned, currency, target, reason, at AS issued_at,
    position, concat('sha3-512:', lower(hex(address))) AS address
FROM soma.credit_notes FINAL
COMMENT 'Parts of invoices that were taken back.';

CREATE OR REPLACE VIEW bi.grants
(
    tenant     LowCardinality(String) COMMENT 'The customer.',
    grant_id   String COMMENT 'The grant.',
    source     LowCardinality(String) COMMENT 'paid, promotion, correction, or prepaid (reserved ahead of usage).',
    status     LowCardinality(String) COMMENT 'active, burned or expired.',
    amount     Decimal(38, 9) COMMENT 'What was granted, and added to it since.',
    burned     Decimal(38, 9) COMMENT 'What invoices were paid with of it.',
    expired    Decimal(38, 9) COMMENT 'What was left when its time ran out.',
    left       Decimal(38, 9) COMMENT 'What is left of it.',
    currency   LowCardinality(String) COMMENT 'ISO 4217 code.',
    priority   UInt32 COMMENT 'What has less is burned first.',
    granted_at DateTime64(6, 'UTC') COMMENT 'When it was granted.',
    expires_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When what is left of it is gone; null if never.',
    reference  String COMMENT 'What it was granted for.',
    position   UInt64 COMMENT 'The record that granted it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    g.tenant AS tenant, g.grant_id AS grant_id,
    maxIf(g.source, g.event = 'granted') AS source,
    multiIf(countIf(g.event = 'expired') > 0, 'expired', left = 0, 'burned', 'active') AS status,
    sumIf(g.amount, g.event IN ('granted', 'grown')) AS amount,
    sumIf(g.amount, g.event = 'burned') AS burned,
    sumIf(g.amount, g.event = 'expired') AS expired,
    amount - burned - expired AS left,
    maxIf(g.currency, g.event = 'granted') AS currency,
    maxIf(g.priority, g.event = 'granted') AS priority,
    minIf(g.at, g.event = 'granted') AS granted_at,
    maxIf(g.expires_at, g.event = 'granted') AS expires_at,
    maxIf(g.reference, g.event = 'granted') AS reference,
    minIf(g.position, g.event = 'granted') AS position
FROM soma.grant_events AS g FINAL
GROUP BY g.tenant, g.grant_id
COMMENT 'Credit of customers, one row a grant: what is left of it, and where the rest went.';

CREATE OR REPLACE VIEW bi.payout_requests
(
    tenant       LowCardinality(String) COMMENT 'Whose money it is.',
    payout_id    String COMMENT 'The payout.',
    status       LowCardinality(String) COMMENT 'requested, paid or failed.',
    amount       Decimal(38, 9) COMMENT 'What was asked for, and reserved.',
    currency     LowCardinality(String) COMMENT 'ISO 4217 code.',
    destination  String COMMENT 'Where to, by the name that was agreed.',
    reference    String COMMENT 'The reference of the bank, or why it failed; empty before.',
    requested_at DateTime64(6, 'UTC') COMMENT 'When it was asked for.',
    settled_at   Nullable(DateTime64(6, 'UTC')) COMMENT 'When it left, or came back; null before.',
    position     UInt64 COMMENT 'The record that asked for it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    p.tenant AS tenant, p.payout_id AS payout_id, argMax(p.event, p.position) AS status,
    sumIf(p.amount, p.event = 'requested') AS amount,
    maxIf(p.currency, p.event = 'requested') AS currency,
    maxIf(p.destination, p.event = 'requested') AS destination,
    argMax(p.reference, p.position) AS reference,
    minIf(p.at, p.event = 'requested') AS requested_at,
    if(countIf(p.event != 'requested') > 0, maxIf(p.at, p.event != 'requested'), NULL) AS settled_at,
    minIf(p.position, p.event = 'requested') AS position
FROM soma.payout_events AS p FINAL
GROUP BY p.tenant, p.payout_id
COMMENT 'Money on its way out of the platform, as tenants asked for it; what escrow paid to sellers is in payouts.';

-- --------------------------------------------------------------------- rentals, subscriptions, purchases

CREATE OR REPLACE VIEW bi.rentals
(
    tenant       LowCardinality(String) COMMENT 'Who rents.',
    rental_id    String COMMENT 'The rental.',
    seller       LowCardinality(String) COMMENT 'Whose persona it is.',
    persona_id   String COMMENT 'The persona.',
    capsule      String COMMENT 'The address of the version that was rented.',
    status       LowCardinality(String) COMMENT 'requested, active, ended, expired, revoked, cancelled or lapsed, as the log says: whether it may still be used is decided by expires_at.',
    minutes      UInt64 COMMENT 'The time that was paid for, extensions included.',
    price        Decimal(38, 9) COMMENT 'Of a minute, or of a package of minutes.',
    reserved     Decimal(38, 9) COMMENT 'What was put on hold for it.',
    charged      Decimal(38, 9) COMMENT 'What was paid; zero before it ended.',
    fee          Decimal(38, 9) COMMENT 'What of it the platform kept.',
    released     Decimal(38, 9) COMMENT 'What went back to the wallet.',
    currency     LowCardinality(String) COMMENT 'ISO 4217 code.',
    used_s       UInt64 COMMENT 'Seconds that were used; zero before it ended.',
    requested_at DateTime64(6, 'UTC') COMMENT 'When it was asked for.',
    activated_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When its time began to run; null before.',
    expires_at   Nullable(DateTime64(6, 'UTC')) COMMENT 'When its time is over; null before it runs.',
    ended_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'When it was settled; null before.',
    version      UInt64 COMMENT 'How much has happened to it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    s.tenant AS tenant, s.sale_id AS rental_id, any(s.seller) AS seller, any(s.persona_id) AS persona_id,
    any(s.capsule) AS capsule,
    multiIf(countIf(s.event = 'ended') > 0,
        transform(maxIf(s.reason, s.event = 'ended'), ['returned'], ['ended'], maxIf(s.reason, s.event = 'ended')),
        countIf(s.event = 'activated') > 0, 'active', 'requested') AS status,
    sum(s.minutes) AS minutes, sumIf(s.price, s.event = 'requested') AS price, sum(s.reserved) AS reserved,
    sum(s.charged) AS charged, sum(s.fee) AS fee, sum(s.released) AS released, any(s.currency) AS currency,
    sum(s.used_s) AS used_s, minIf(s.at, s.event = 'requested') AS requested_at,
    if(countIf(s.event = 'activated') > 0, minIf(s.at, s.event = 'activated'), NULL) AS activated_at,
    argMaxIf(s.expires_at, s.position, s.event IN ('activated', 'extended') AND s.expires_at IS NOT NULL) AS expires_at,
    if(countIf(s.event = 'ended') > 0, maxIf(s.at, s.event = 'ended'), NULL) AS ended_at,
    max(s.version) AS version
FROM soma.sale_events AS s FINAL
WHERE s.kind = 'rental'
GROUP BY s.tenant, s.sale_id
COMMENT 'Personas rented by the minute, one row a rental.';

CREATE OR REPLACE VIEW bi.subscriptions
(
    tenant          LowCardinality(String) COMMENT 'Who subscribes.',
    subscription_id String COMMENT 'The subscription.',
    seller          LowCardinality(String) COMMENT 'Whose persona it is.',
    persona_id      String COMMENT 'The persona.',
    capsule         String COMMENT 'The address of the version it is for now.',
    status          LowCardinality(String) COMMENT 'active, past_due or ended.',
    price           Decimal(38, 9) COMMENT 'Of a period, as it was last agreed.',
    every           LowCardinality(String) COMMENT 'The length of a period: day, week, month or year.',
    currency        LowCardinality(String) COMMENT 'ISO 4217 code.',
    period_start    DateTime64(6, 'UTC') COMMENT 'Where the period that is paid for begins.',
    period_end      DateTime64(6, 'UTC') COMMENT 'Where it ends; half-open.',
    cancel_at_end   Bool COMMENT 'Whether it will not be renewed.',
    renewals        UInt64 COMMENT 'How often it was renewed.',
    failures        UInt64 COMMENT 'How often a renewal failed.',
    reserved        Decimal(38, 9) COMMENT 'What was put on hold for its periods, all together.',
    charged         Decimal(38, 9) COMMENT 'What was paid for them, all together.',
    fee             Decimal(38, 9) COMMENT 'What of it the platform kept.',
    started_at      DateTime64(6, 'UTC') COMMENT 'When it began.',
    ended_at        Nullable(DateTime64(6, 'UTC')) COMMENT 'When it ended; null before.',
    end_reason      LowCardinality(String) COMMENT 'cancelled, not_renewed, unpaid or revoked; empty before.',
    version         UInt64 COMMENT 'How much has happened to it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    s.tenant AS tenant, s.sale_id AS subscription_id, any(s.seller) AS seller, any(s.persona_id) AS persona_id,
    argMaxIf(s.capsule, s.position, s.event IN ('started', 'changed')) AS capsule,
    multiIf(countIf(s.event = 'ended') > 0, 'ended',
        argMaxIf(s.event, s.position, s.event IN ('started', 'renewed', 'renewal_failed')) = 'renewal_failed', 'past_due',
        'active') AS status,
    argMaxIf(s.price, s.position, s.event IN ('started', 'changed')) AS price,
    argMaxIf(s.every, s.position, s.event IN ('started', 'changed')) AS every,
    any(s.currency) AS currency,
    assumeNotNull(argMaxIf(if(s.event = 'changed', toNullable(s.at), s.period_start), s.position, s.event IN ('started', 'renewed', 'changed'))) AS period_start,
    assumeNotNull(argMaxIf(s.period_end, s.position, s.event IN ('started', 'renewed'))) AS period_end,
    toBool(argMaxIf(s.event, s.position, s.event IN ('cancel_asked', 'resumed')) = 'cancel_asked') AS cancel_at_end,
    countIf(s.event = 'renewed') AS renewals, countIf(s.event = 'renewal_failed') AS failures,
    sum(s.reserved) AS reserved, sum(s.charged) AS charged, sum(s.fee) AS fee,
    minIf(s.at, s.event = 'started') AS started_at,
    if(countIf(s.event = 'ended') > 0, maxIf(s.at, s.event = 'ended'), NULL) AS ended_at,
    maxIf(s.reason, s.event = 'ended') AS end_reason,
    max(s.version) AS version
FROM soma.sale_events AS s FINAL
WHERE s.kind = 'subscription'
GROUP BY s.tenant, s.sale_id
COMMENT 'Personas by the period, one row a subscription as it stands now.';

CREATE OR REPLACE VIEW bi.purchases
(
    tenant           LowCardinality(String) COMMENT 'Who bought.',
    purchase_id      String COMMENT 'The purchase.',
    seller           LowCardinality(String) COMMENT 'Whose persona it is.',
    persona_id       String COMMENT 'The persona.',
    capsule          String COMMENT 'The address of the version that was bought.',
    status           LowCardinality(String) COMMENT 'held, settled, refunded or revoked.',
    price            Decimal(38, 9) COMMENT 'What it costs.',
    charged          Decimal(38, 9) COMMENT 'What was paid; zero before it was settled.',
    fee              Decimal(38, 9) COMMENT 'What of it the platform kept.',
    currency         LowCardinality(String) COMMENT 'ISO 4217 code.',
    bought_at        DateTime64(6, 'UTC') COMMENT 'When it was bought, and the price was put on hold.',
    refundable_until Nullable(DateTime64(6, 'UTC')) COMMENT 'Until when it could be given back.',
    settled_at       Nullable(DateTime64(6, 'UTC')) COMMENT 'When it was paid, or given back; null before.',
    version          UInt64 COMMENT 'How much has happened to it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    s.tenant AS tenant, s.sale_id AS purchase_id, any(s.seller) AS seller, any(s.persona_id) AS persona_id,
    any(s.capsule) AS capsule,
    multiIf(countIf(s.event = 'settled') > 0, 'settled', countIf(s.event = 'refunded' AND s.reason = 'revoked') > 0, 'revoked',
        countIf(s.event = 'refunded') > 0, 'refunded', 'held') AS status,
    sumIf(s.price, s.event = 'made') AS price, sum(s.charged) AS charged, sum(s.fee) AS fee, any(s.currency) AS currency,
    minIf(s.at, s.event = 'made') AS bought_at, maxIf(s.expires_at, s.event = 'made') AS refundable_until,
    if(countIf(s.event != 'made') > 0, maxIf(s.at, s.event != 'made'), NULL) AS settled_at, max(s.version) AS version
FROM soma.sale_events AS s FINAL
WHERE s.kind = 'purchase'
GROUP BY s.tenant, s.sale_id
COMMENT 'Versions of personas that were bought for good, one row a purchase.';

CREATE OR REPLACE VIEW bi.rental_revenue
(
    tenant      LowCardinality(String) COMMENT 'Whose earning or spending it is; the platform has the fees.',
    day         Date COMMENT 'The UTC day on which it was settled.',
    kind        LowCardinality(String) COMMENT 'rental, subscription or purchase.',
    persona_id  String COMMENT 'The persona that was used.',
    currency    LowCardinality(String) COMMENT 'ISO 4217 code.',
    settlements UInt64 COMMENT 'How often something was settled.',
    earned      Decimal(76, 9) COMMENT 'Paid to it as a seller, after fees.',
    spent       Decimal(76, 9) COMMENT 'Paid by it as a user, fees included.',
    fees        Decimal(76, 9) COMMENT 'Kept by the platform; zero in the rows of every other tenant.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, day, kind, persona_id, currency, uniqExact(position_) AS settlements, sum(earned_) AS earned, sum(spent_) AS spent,
    sum(fees_) AS fees
FROM
(
    SELECT seller AS tenant, toDate(at) AS day, kind, persona_id, currency, position AS position_,
        toDecimal256(charged - fee, 9) AS earned_, toDecimal256(0, 9) AS spent_, toDecimal256(0, 9) AS fees_
    FROM soma.sale_events FINAL
    WHERE charged > 0
    UNION ALL
    SELECT tenant, toDate(at), kind, persona_id, currency, position, toDecimal256(0, 9), toDecimal256(charged, 9),
        toDecimal256(0, 9)
    FROM soma.sale_events FINAL
    WHERE charged > 0
    UNION ALL
    SELECT toLowCardinality('platform'), toDate(at), kind, persona_id, currency, position, toDecimal256(0, 9),
        toDecimal256(0, 9), toDecimal256(fee, 9)
    FROM soma.sale_events FINAL
    WHERE charged > 0
)
GROUP BY tenant, day, kind, persona_id, currency
COMMENT 'What personas bring in by day: rentals, periods of subscriptions and purchases, when they are settled.';

CREATE OR REPLACE VIEW bi.renewal_rate
(
    tenant      LowCardinality(String) COMMENT 'The seller whose persona it is.',
    month       Date COMMENT 'The first day of the UTC month in which it was decided.',
    persona_id  String COMMENT 'The persona.',
    due         UInt64 COMMENT 'Periods after which it was decided whether another one follows: renewed, not_renewed and unpaid.',
    renewed     UInt64 COMMENT 'Renewed.',
    not_renewed UInt64 COMMENT 'Over because they were cancelled before.',
    unpaid      UInt64 COMMENT 'Over because they could not be paid.',
    failures    UInt64 COMMENT 'Attempts to renew that failed; another one may have followed.',
    rate        Nullable(Decimal(18, 6)) COMMENT 'renewed / due, from 0 to 1, cut off after six digits; null where nothing was due.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    s.seller AS tenant, toStartOfMonth(s.at) AS month, s.persona_id AS persona_id,
    renewed + not_renewed + unpaid AS due,
    countIf(s.event = 'renewed') AS renewed,
    countIf(s.event = 'ended' AND s.reason = 'not_renewed') AS not_renewed,
    countIf(s.event = 'ended' AND s.reason = 'unpaid') AS unpaid,
    countIf(s.event = 'renewal_failed') AS failures,
    if(due > 0, toDecimal64(renewed, 6) / due, NULL) AS rate
FROM soma.sale_events AS s FINAL
WHERE s.kind = 'subscription'
GROUP BY s.seller, toStartOfMonth(s.at), s.persona_id
HAVING due + failures > 0
COMMENT 'How many subscriptions go on when a period is over, by month and persona.';

CREATE OR REPLACE VIEW bi.recurring_revenue
(
    tenant        LowCardinality(String) COMMENT 'The seller whose persona it is.',
    persona_id    String COMMENT 'The persona.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code.',
    subscriptions UInt64 COMMENT 'Subscriptions that have not ended.',
    past_due      UInt64 COMMENT 'Of these, how many could not be renewed so far.',
    ending        UInt64 COMMENT 'Of these, how many will not be renewed.',
    mrr           Decimal(76, 9) COMMENT 'Their prices put on a month: a year is 12 of them, a week 12/52 and a day 12/365 of one. An estimate of what comes, before fees; not an amount of the books.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    s.seller AS tenant, s.persona_id AS persona_id, s.currency AS currency, count() AS subscriptions,
    countIf(s.status = 'past_due') AS past_due, countIf(s.cancel_at_end) AS ending,
    sum(multiIf(s.every = 'year', toDecimal256(s.price, 9) / 12, s.every = 'week', toDecimal256(s.price, 9) * 52 / 12,
        s.every = 'day', toDecimal256(s.price, 9) * 365 / 12, toDecimal256(s.price, 9))) AS mrr
FROM bi.subscriptions AS s
WHERE s.status != 'ended'
GROUP BY s.seller, s.persona_id, s.currency
COMMENT 'What subscriptions bring in a month as they stand now, by persona.';

-- --------------------------------------------------------------------- costs

CREATE OR REPLACE VIEW bi.costs
(
    tenant              LowCardinality(String) COMMENT 'Whose cost it is.',
    day                 Date COMMENT 'The UTC day of the use.',
    charge_period_start DateTime('UTC') COMMENT 'Where that day begins, as FOCUS names it.',
    charge_period_end   DateTime('UTC') COMMENT 'Where it ends; half-open.',
    provider            LowCardinality(String) COMMENT 'Who runs the model.',
    model               LowCardinality(String) COMMENT 'The model.',
    persona_id          String COMMENT 'The persona it was for; empty if none was named.',
    rental_id           String COMMENT 'The rental it was for; empty if none was named.',
    currency            LowCardinality(String) COMMENT 'Of the cost; empty for readings that state none, which have a row of their own.',
    readings            UInt64 COMMENT 'How many readings hold.',
    requests            UInt64 COMMENT 'How many requests they sum up.',
    errors              UInt64 COMMENT 'How many of the requests failed.',
    tokens_in           UInt64 COMMENT 'Tokens sent.',
    tokens_out          UInt64 COMMENT 'Tokens received.',
    tokens_cached       UInt64 COMMENT 'Tokens sent that were read from a cache.',
    list_cost           Nullable(Decimal(76, 9)) COMMENT 'What the provider charges by its list; null where readings state no cost.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    u.tenant AS tenant, toDate(u.hour) AS day, toDateTime(toDate(u.hour), 'UTC') AS charge_period_start,
    toDateTime(toDate(u.hour) + 1, 'UTC') AS charge_period_end, u.provider AS provider, u.model AS model,
    u.persona AS persona_id, u.rental AS rental_id, u.currency AS currency, toUInt64(sum(u.sign)) AS readings,
    toUInt64(sum(toInt128(u.requests) * u.sign)) AS requests,
    toUInt64(sumIf(toInt128(u.requests) * u.sign, u.status = 'error')) AS errors,
    toUInt64(sum(toInt128(u.tokens_in) * u.sign)) AS tokens_in,
    toUInt64(sum(toInt128(u.tokens_out) * u.sign)) AS tokens_out,
    toUInt64(sum(toInt128(u.tokens_cached) * u.sign)) AS tokens_cached,
    if(u.currency = '', NULL, sum(toDecimal256(u.cost, 9) * u.sign)) AS list_cost
FROM soma.usage AS u FINAL
GROUP BY u.tenant, toDate(u.hour), u.provider, u.model, u.persona, u.rental, u.currency
HAVING readings > 0
COMMENT 'Costs of models by day, in the manner of FOCUS: who used how much of which model for which persona, and what its provider charges for it where that is known. Corrections count in the day they correct.';

CREATE OR REPLACE VIEW bi.costs_daily
(
    tenant        LowCardinality(String) COMMENT 'Who spends.',
    day           Date COMMENT 'The UTC day: of the use for models, of the settlement for personas.',
    persona_id    String COMMENT 'The persona; empty for models that were used for none.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code; empty for usage whose cost is not known.',
    requests      UInt64 COMMENT 'Requests to models.',
    tokens        UInt64 COMMENT 'Tokens sent and received.',
    list_cost     Decimal(76, 9) COMMENT 'What providers charge for these, where readings state it.',
    rentals       Decimal(76, 9) COMMENT 'Paid for rentals.',
    subscriptions Decimal(76, 9) COMMENT 'Paid for periods of subscriptions.',
    purchases     Decimal(76, 9) COMMENT 'Paid for purchases.',
    spent         Decimal(76, 9) COMMENT 'rentals, subscriptions and purchases. What providers charge is not in it: it is invoiced by the price book.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, day, persona_id, currency, sum(requests_) AS requests, sum(tokens_) AS tokens, sum(list_cost_) AS list_cost,
    sumIf(charged_, kind_ = 'rental') AS rentals, sumIf(charged_, kind_ = 'subscription') AS subscriptions,
    sumIf(charged_, kind_ = 'purchase') AS purchases, sum(charged_) AS spent
FROM
(
    SELECT tenant, day, persona_id, currency, 'usage' AS kind_, requests AS requests_, tokens_in + tokens_out AS tokens_,
        ifNull(list_cost, toDecimal256(0, 9)) AS list_cost_, toDecimal256(0, 9) AS charged_
    FROM bi.costs
    UNION ALL
    SELECT tenant, toDate(at), persona_id, currency, kind, toUInt64(0), toUInt64(0), toDecimal256(0, 9),
        toDecimal256(charged, 9)
    FROM soma.sale_events FINAL
    WHERE charged > 0
)
GROUP BY tenant, day, persona_id, currency
COMMENT 'What a tenant spends by day and persona: a dashboard of costs.';

-- Why:   what people read: documented views over the private tables, each with a tenant column to be narrowed by.
-- Shape: `bi` holds views only. They run with the rights of whoever makes them, so that a reader needs none on `soma`.
--        docs/reference/clickhouse.md is printed from this file: the comment of a view is its meaning, that of a
--        column, the column's. A column's meaning never changes; new ones are added at the end.
-- Read:  through FINAL, or through the rollups, so that a batch that was sent twice counts once. Periods are half-open:
--        `at >= start AND at < end`. Days and hours are UTC.

CREATE OR REPLACE VIEW bi.records
(
    tenant        LowCardinality(String) COMMENT 'Whose record it is.',
    position      UInt64 COMMENT 'Its place in the log, from 0, without gaps.',
    address       String COMMENT 'SHA3-512 of its bytes, as everywhere else.',
    address_bytes FixedString(64) COMMENT 'The same as 64 bytes: the fast way to look one up is address_bytes = unhex(...).',
    kind          LowCardinality(String) COMMENT 'The kind of thing it is about, such as contract.',
    stream        String COMMENT 'The thing it is about: kind/id.',
    version       UInt64 COMMENT 'Its number in its stream, from 1.',
    type          LowCardinality(String) COMMENT 'The wire type of the event.',
    schema        UInt16 COMMENT 'The version of the form of its data.',
    at            DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    actor         String COMMENT 'Who caused it.',
    correlation   String COMMENT 'The request it belongs to; empty if none was named.',
    causation     String COMMENT 'The address of the record it follows from; empty if none.',
    record        String COMMENT 'The canonical bytes: what is hashed, and what JSONExtract reads.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    r.tenant AS tenant, r.position AS position, concat('sha3-512:', lower(hex(r.address))) AS address,
    r.address AS address_bytes, r.kind AS kind, r.stream AS stream, r.version AS version, r.type AS type,
    r.schema AS schema, r.at AS at, r.actor AS actor, r.correlation AS correlation, r.causation AS causation,
    r.record AS record
FROM soma.records AS r FINAL
COMMENT 'The log itself, one row a record.';

CREATE OR REPLACE VIEW bi.timeline
(
    tenant       LowCardinality(String) COMMENT 'Whose record it is.',
    subject_kind LowCardinality(String) COMMENT 'What the line is about: contract, intent, offer, seller, persona, account, round, dispute and so on.',
    subject      String COMMENT 'Which one.',
    position     UInt64 COMMENT 'The place of the record in the log.',
    at           DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    event        String COMMENT 'What happened: the type without its kind.',
    type         LowCardinality(String) COMMENT 'The wire type of the event.',
    stream       String COMMENT 'The stream of the record, which may be another thing than the subject.',
    version      UInt64 COMMENT 'Its number in its stream.',
    actor        String COMMENT 'Who caused it.',
    address      String COMMENT 'The address of the record.',
    data         String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, subject_kind, subject, position, at, substring(type, position(type, '.') + 1) AS event, type, stream, version,
    actor, concat('sha3-512:', lower(hex(address))) AS address, data
FROM soma.timelines FINAL
COMMENT 'What happened to a thing, in order. A record stands under every thing it is about; plain transfers and usage readings stand in ledger_entries and usage.';

CREATE OR REPLACE VIEW bi.contract_timeline
(
    tenant      LowCardinality(String) COMMENT 'Whose record it is: the owner of the contract, or who opened a dispute.',
    contract_id String COMMENT 'The contract.',
    position    UInt64 COMMENT 'The place of the record in the log.',
    at          DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    event       String COMMENT 'What happened: the type without its kind.',
    type        LowCardinality(String) COMMENT 'The wire type of the event.',
    stream      String COMMENT 'The contract, the intent that was matched, a round, a dispute, or a seller whose history it entered.',
    actor       String COMMENT 'Who caused it.',
    address     String COMMENT 'The address of the record.',
    data        String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, subject AS contract_id, position, at, substring(type, position(type, '.') + 1) AS event, type, stream, actor,
    concat('sha3-512:', lower(hex(address))) AS address, data
FROM soma.timelines FINAL
WHERE subject_kind = 'contract'
COMMENT 'What happened to a contract, in order: its own events, its rounds and its disputes.';

CREATE OR REPLACE VIEW bi.persona_timeline
(
    tenant     LowCardinality(String) COMMENT 'Whose record it is.',
    persona_id String COMMENT 'The persona.',
    position   UInt64 COMMENT 'The place of the record in the log.',
    at         DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    event      String COMMENT 'What happened: the type without its kind.',
    type       LowCardinality(String) COMMENT 'The wire type of the event.',
    stream     String COMMENT 'The persona itself, or what names it: a purchase, a subscription, a rental.',
    actor      String COMMENT 'Who caused it.',
    address    String COMMENT 'The address of the record.',
    data       String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, subject AS persona_id, position, at, substring(type, position(type, '.') + 1) AS event, type, stream, actor,
    concat('sha3-512:', lower(hex(address))) AS address, data
FROM soma.timelines FINAL
WHERE subject_kind = 'persona'
COMMENT 'What happened to a persona, in order. Empty until the log holds records of personas, or records that name one.';

-- --------------------------------------------------------------------- money

CREATE OR REPLACE VIEW bi.ledger_entries
(
    tenant        LowCardinality(String) COMMENT 'Whose account it is.',
    account       LowCardinality(String) COMMENT 'The account: purpose.tenant.currency.',
    purpose       LowCardinality(String) COMMENT 'wallet, cash, fees and so on.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code.',
    day           Date COMMENT 'The UTC day of at.',
    at            DateTime64(6, 'UTC') COMMENT 'When it was booked.',
    position      UInt64 COMMENT 'The record that moved the money.',
    leg           UInt32 COMMENT 'Which of the moves of that record; (position, leg) names an entry for ever.',
    amount        Decimal(38, 9) COMMENT 'Debits positive, credits negative. All legs of a position sum to zero per currency.',
    op            LowCardinality(String) COMMENT 'transfer, or post where a hold was paid out.',
    hold          String COMMENT 'The hold that was paid out; empty for transfers.',
    type          LowCardinality(String) COMMENT 'The wire type of the event.',
    stream        String COMMENT 'The stream of the record: the transfer, the contract.',
    actor         String COMMENT 'Who caused it.',
    record_tenant LowCardinality(String) COMMENT 'Whose record it is, which need not be whose account it is.',
    address       String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, account, purpose, currency, day, at, position, leg, amount, op, hold, type, stream, actor, record_tenant,
    concat('sha3-512:', lower(hex(address))) AS address
FROM soma.entries FINAL
COMMENT 'Double entry, one row a leg: every movement of money there has been.';

CREATE OR REPLACE VIEW bi.accounts
(
    tenant    LowCardinality(String) COMMENT 'Whose account it is.',
    account   String COMMENT 'Its name: purpose.tenant.currency.',
    purpose   LowCardinality(String) COMMENT 'wallet, cash, fees and so on.',
    currency  LowCardinality(String) COMMENT 'ISO 4217 code.',
    side      LowCardinality(String) COMMENT 'The side on which its balance is positive: debit or credit.',
    overdraft Bool COMMENT 'Whether it may fall below zero.',
    opened_at DateTime64(6, 'UTC') COMMENT 'When it was opened.',
    position  UInt64 COMMENT 'The record that opened it.',
    address   String COMMENT 'The address of that record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, account, purpose, currency, side, overdraft, at AS opened_at, position,
    concat('sha3-512:', lower(hex(address))) AS address
FROM soma.accounts FINAL
COMMENT 'Every account that was opened.';

CREATE OR REPLACE VIEW bi.holds
(
    tenant     LowCardinality(String) COMMENT 'Whose account the money is held in.',
    hold       String COMMENT 'The hold; for escrow this is the id of the contract.',
    account    String COMMENT 'The account.',
    currency   LowCardinality(String) COMMENT 'ISO 4217 code.',
    amount     Decimal(38, 9) COMMENT 'What was reserved.',
    status     LowCardinality(String) COMMENT 'pending, posted, void or expired.',
    paid       Decimal(38, 9) COMMENT 'What a posted one moved out; the rest went back to the account.',
    held_at    DateTime64(6, 'UTC') COMMENT 'When it was placed.',
    settled_at Nullable(DateTime64(6, 'UTC')) COMMENT 'When it ended; null while it is pending.',
    stream     String COMMENT 'The stream it was placed by.',
    position   UInt64 COMMENT 'The record that placed it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    anyIf(h.tenant, h.op = 'hold') AS tenant,
    h.hold AS hold,
    anyIf(h.account, h.op = 'hold') AS account,
    anyIf(h.currency, h.op = 'hold') AS currency,
    sumIf(h.amount, h.op = 'hold') AS amount,
    multiIf(countIf(h.op = 'post') > 0, 'posted', countIf(h.op = 'void') > 0, 'void', countIf(h.op = 'expire') > 0, 'expired', 'pending') AS status,
    sumIf(h.amount, h.op = 'post') AS paid,
    minIf(h.at, h.op = 'hold') AS held_at,
    if(countIf(h.op != 'hold') > 0, maxIf(h.at, h.op != 'hold'), NULL) AS settled_at,
    anyIf(h.stream, h.op = 'hold') AS stream,
    minIf(h.position, h.op = 'hold') AS position
FROM soma.holds AS h FINAL
GROUP BY h.hold
COMMENT 'Money that is or was reserved, one row a hold; a hold ends exactly once.';

CREATE OR REPLACE VIEW bi.balances
(
    tenant    LowCardinality(String) COMMENT 'Whose account it is.',
    account   String COMMENT 'The account: purpose.tenant.currency.',
    purpose   LowCardinality(String) COMMENT 'wallet, cash, fees and so on.',
    currency  LowCardinality(String) COMMENT 'ISO 4217 code.',
    side      LowCardinality(String) COMMENT 'The side on which the balance is positive.',
    balance   Decimal(76, 9) COMMENT 'What the account holds, positive on its side.',
    held      Decimal(76, 9) COMMENT 'What of it is reserved by pending holds.',
    available Decimal(76, 9) COMMENT 'balance less held.',
    entries   UInt64 COMMENT 'How many entries it has.',
    last_day  Nullable(Date) COMMENT 'The last day with an entry; null if there is none.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant,
    account,
    any(purpose_) AS purpose,
    currency,
    max(side_) AS side,
    if(side = 'debit', sum(net_), -sum(net_)) AS balance,
    sum(held_) AS held,
    balance - held AS available,
    sum(entries_) AS entries,
    max(day_) AS last_day
FROM
(
    SELECT tenant, account, purpose AS purpose_, currency, toString(side) AS side_, toDecimal256(0, 9) AS net_,
        toDecimal256(0, 9) AS held_, toUInt64(0) AS entries_, CAST(NULL, 'Nullable(Date)') AS day_
    FROM soma.accounts FINAL
    UNION ALL
    SELECT tenant, account, purpose, currency, '', net, toDecimal256(0, 9), entries, toNullable(day)
    FROM soma.entries_daily FINAL
    UNION ALL
    SELECT tenant, account, toLowCardinality(splitByChar('.', account)[1]), currency, '', toDecimal256(0, 9),
        toDecimal256(amount, 9), toUInt64(0), NULL
    FROM bi.holds
    WHERE status = 'pending'
)
GROUP BY tenant, account, currency
COMMENT 'What every account holds now, summed from the daily rollup; complete up to clickhouse.billing.rollup of watermarks.';

CREATE OR REPLACE VIEW bi.balances_daily
(
    tenant   LowCardinality(String) COMMENT 'Whose account it is.',
    account  String COMMENT 'The account: purpose.tenant.currency.',
    purpose  LowCardinality(String) COMMENT 'wallet, cash, fees and so on.',
    currency LowCardinality(String) COMMENT 'ISO 4217 code.',
    day      Date COMMENT 'The UTC day. A day without entries has no row: its balance is that of the last day before it.',
    entries  UInt64 COMMENT 'Entries of the day.',
    debits   Decimal(76, 9) COMMENT 'Sum of the debits of the day.',
    credits  Decimal(76, 9) COMMENT 'Sum of the credits of the day, as a positive number.',
    change   Decimal(76, 9) COMMENT 'By how much the balance changed over the day, positive on the side of the account.',
    balance  Decimal(76, 9) COMMENT 'The balance at the end of the day, positive on the side of the account.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    d.tenant AS tenant, d.account AS account, d.purpose AS purpose, d.currency AS currency, d.day AS day,
    d.entries AS entries, d.debits AS debits, d.credits AS credits,
    if(a.side = 'debit', d.net, -d.net) AS change,
    sum(if(a.side = 'debit', d.net, -d.net)) OVER (PARTITION BY d.tenant, d.account, d.currency ORDER BY d.day ASC
        ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW) AS balance
FROM soma.entries_daily AS d FINAL
LEFT JOIN (SELECT tenant, account, side FROM soma.accounts FINAL) AS a ON a.tenant = d.tenant AND a.account = d.account
COMMENT 'The balance of every account at the end of each day on which it moved.';

CREATE OR REPLACE VIEW bi.payouts
(
    tenant      LowCardinality(String) COMMENT 'The seller who was paid.',
    payer       LowCardinality(String) COMMENT 'The owner of the contract, whose money it was.',
    contract_id String COMMENT 'The contract.',
    paid        Decimal(38, 9) COMMENT 'What the seller received.',
    fee         Decimal(38, 9) COMMENT 'What the platform kept of the share of this seller.',
    currency    LowCardinality(String) COMMENT 'ISO 4217 code.',
    day         Date COMMENT 'The UTC day of at.',
    at          DateTime64(6, 'UTC') COMMENT 'When the escrow was released.',
    position    UInt64 COMMENT 'The record that released it.',
    leg         UInt32 COMMENT 'Which share of it.',
    address     String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, payer, contract_id, paid, fee, currency, toDate(at) AS day, at, position, leg,
    concat('sha3-512:', lower(hex(address))) AS address
FROM soma.payouts FINAL
COMMENT 'What sellers were paid out of escrow, one row a seller and release.';

CREATE OR REPLACE VIEW bi.revenue_daily
(
    tenant   LowCardinality(String) COMMENT 'Whose revenue or spending it is; the platform has the fees.',
    day      Date COMMENT 'The UTC day of the release.',
    currency LowCardinality(String) COMMENT 'ISO 4217 code.',
    releases UInt64 COMMENT 'Releases of escrow that the tenant was part of.',
    earned   Decimal(76, 9) COMMENT 'Paid to it as a seller, after fees.',
    spent    Decimal(76, 9) COMMENT 'Paid by it as an owner, fees included.',
    fees     Decimal(76, 9) COMMENT 'Kept by the platform; zero in the rows of every other tenant.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, day, currency, uniqExact(position_) AS releases, sum(earned_) AS earned, sum(spent_) AS spent, sum(fees_) AS fees
FROM
(
    SELECT tenant, toDate(at) AS day, currency, position AS position_, toDecimal256(paid, 9) AS earned_,
        toDecimal256(0, 9) AS spent_, toDecimal256(0, 9) AS fees_
    FROM soma.payouts FINAL
    UNION ALL
    SELECT payer, toDate(at), currency, position, toDecimal256(0, 9), toDecimal256(paid, 9) + toDecimal256(fee, 9),
        toDecimal256(0, 9)
    FROM soma.payouts FINAL
    UNION ALL
    SELECT toLowCardinality('platform'), toDate(at), currency, position, toDecimal256(0, 9), toDecimal256(0, 9),
        toDecimal256(fee, 9)
    FROM soma.payouts FINAL
)
GROUP BY tenant, day, currency
COMMENT 'Revenue by day and currency: what sellers earned, what owners spent, what the platform kept.';

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
    address       String COMMENT 'The address of the record.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, provider, model, hour, occurred_at, at AS recorded_at, source, event_id, rental, persona, status, requests,
    tokens_in, tokens_out, tokens_cached, latency_ms, cost, currency, position,
    concat('sha3-512:', lower(hex(address))) AS address
FROM soma.usage FINAL
COMMENT 'Usage readings, one row each.';

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
COMMENT 'Usage by the hour, provider, model and currency.';

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
GROUP BY h.tenant, h.provider, h.model, h.hour
COMMENT 'What forecasts are fed with: hours of usage by provider and model, whatever the currency.';

-- --------------------------------------------------------------------- the market

CREATE OR REPLACE VIEW bi.offers
(
    tenant       LowCardinality(String) COMMENT 'The seller.',
    offer_id     String COMMENT 'The offer.',
    status       LowCardinality(String) COMMENT 'active, paused, retired or expired.',
    node         String COMMENT 'The node the seller trains on.',
    modality     LowCardinality(String) COMMENT 'Of the data.',
    tasks        Array(LowCardinality(String)) COMMENT 'What the data may be used for.',
    price        Decimal(38, 9) COMMENT 'Of one round, as it was last set.',
    currency     LowCardinality(String) COMMENT 'ISO 4217 code.',
    quality      Decimal(18, 6) COMMENT 'From 0 to 1, as the seller declares it.',
    sample_count UInt64 COMMENT 'How many samples the seller states.',
    listed_at    DateTime64(6, 'UTC') COMMENT 'When it was listed.',
    changed_at   DateTime64(6, 'UTC') COMMENT 'When it was last changed.',
    version      UInt64 COMMENT 'How often it was changed, with its listing.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    o.tenant AS tenant,
    o.offer_id AS offer_id,
    transform(argMaxIf(o.event, o.position, o.event != 'revised'), ['listed', 'resumed'], ['active', 'active'], argMaxIf(o.event, o.position, o.event != 'revised')) AS status,
    argMaxIf(o.seller, o.position, has(o.said, 'seller')) AS node,
    argMaxIf(o.modality, o.position, has(o.said, 'modality')) AS modality,
    argMaxIf(o.tasks, o.position, has(o.said, 'tasks')) AS tasks,
    argMaxIf(o.price, o.position, has(o.said, 'price')) AS price,
    argMaxIf(o.currency, o.position, has(o.said, 'price')) AS currency,
    toDecimal64(argMaxIf(o.quality_ppm, o.position, has(o.said, 'quality_ppm')), 6) / 1000000 AS quality,
    argMaxIf(o.sample_count, o.position, has(o.said, 'sample_count')) AS sample_count,
    min(o.at) AS listed_at,
    max(o.at) AS changed_at,
    max(o.version) AS version
FROM soma.offer_events AS o FINAL
GROUP BY o.tenant, o.offer_id
COMMENT 'Every offer as it stands now.';

CREATE OR REPLACE VIEW bi.intents
(
    tenant         LowCardinality(String) COMMENT 'The model owner.',
    intent_id      String COMMENT 'The intent.',
    status         LowCardinality(String) COMMENT 'open, matched, cancelled, closed or expired.',
    task           LowCardinality(String) COMMENT 'What the data is wanted for.',
    budget         Nullable(Decimal(38, 9)) COMMENT 'As it was last set; null is unlimited.',
    currency       LowCardinality(String) COMMENT 'ISO 4217 code.',
    contract_id    String COMMENT 'The contract it was matched into; empty if none.',
    match_failures UInt64 COMMENT 'How often no set of offers fitted.',
    opened_at      DateTime64(6, 'UTC') COMMENT 'When it was opened.',
    changed_at     DateTime64(6, 'UTC') COMMENT 'When anything last happened to it.',
    version        UInt64 COMMENT 'How much has happened to it, with its opening.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    i.tenant AS tenant,
    i.intent_id AS intent_id,
    transform(argMaxIf(i.event, i.position, i.event NOT IN ('amended', 'match_failed')), ['opened'], ['open'], argMaxIf(i.event, i.position, i.event NOT IN ('amended', 'match_failed'))) AS status,
    argMaxIf(i.task, i.position, has(i.said, 'task')) AS task,
    argMaxIf(tuple(i.budget), i.position, has(i.said, 'budget')).1 AS budget,
    anyIf(i.currency, i.event = 'opened') AS currency,
    maxIf(i.contract_id, i.event = 'matched') AS contract_id,
    countIf(i.event = 'match_failed') AS match_failures,
    minIf(i.at, i.event = 'opened') AS opened_at,
    max(i.at) AS changed_at,
    max(i.version) AS version
FROM soma.intent_events AS i FINAL
GROUP BY i.tenant, i.intent_id
COMMENT 'Every intent as it stands now.';

CREATE OR REPLACE VIEW bi.matches
(
    tenant        LowCardinality(String) COMMENT 'The model owner.',
    contract_id   String COMMENT 'The contract a match became.',
    intent_id     String COMMENT 'The intent that was matched.',
    status        LowCardinality(String) COMMENT 'created, funded, bound, completed, round_failed, released or refunded.',
    escrow        LowCardinality(String) COMMENT 'unfunded, locked, released or refunded.',
    amount        Decimal(38, 9) COMMENT 'The agreed sum.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code.',
    paid          Decimal(38, 9) COMMENT 'What sellers received; zero before a release.',
    offers        UInt32 COMMENT 'How many offers it names.',
    fee_ppm       UInt32 COMMENT 'The fee of the platform, in millionths.',
    disputes      UInt64 COMMENT 'Disputes that were opened.',
    disputes_open UInt64 COMMENT 'Disputes that are open now.',
    round_id      String COMMENT 'The round that took it on; empty before.',
    matched_at    DateTime64(6, 'UTC') COMMENT 'When the match was made.',
    funded_at     Nullable(DateTime64(6, 'UTC')) COMMENT 'When the money was put on hold.',
    expires_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'When the escrow goes back if no round has taken it on.',
    settled_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'When the money was released or went back.',
    version       UInt64 COMMENT 'How much has happened to it.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    c.tenant AS tenant,
    c.contract_id AS contract_id,
    anyIf(c.intent_id, c.event = 'created') AS intent_id,
    transform(argMaxIf(c.event, c.position, NOT startsWith(c.event, 'dispute')),
        ['escrow_funded', 'bound_to_round', 'round_completed', 'escrow_released', 'escrow_refunded', 'escrow_expired'],
        ['funded', 'bound', 'completed', 'released', 'refunded', 'refunded'],
        argMaxIf(c.event, c.position, NOT startsWith(c.event, 'dispute'))) AS status,
    multiIf(countIf(c.event = 'escrow_released') > 0, 'released',
        countIf(c.event IN ('escrow_refunded', 'escrow_expired')) > 0, 'refunded',
        countIf(c.event = 'escrow_funded') > 0, 'locked', 'unfunded') AS escrow,
    sumIf(c.amount, c.event = 'created') AS amount,
    anyIf(c.currency, c.event = 'created') AS currency,
    sumIf(c.amount, c.event = 'escrow_released') AS paid,
    maxIf(c.offers, c.event = 'created') AS offers,
    maxIf(c.fee_ppm, c.event = 'created') AS fee_ppm,
    countIf(c.event = 'dispute_opened') AS disputes,
    countIf(c.event = 'dispute_opened') - countIf(c.event = 'dispute_resolved') AS disputes_open,
    argMaxIf(c.detail, c.position, c.event = 'bound_to_round') AS round_id,
    minIf(c.at, c.event = 'created') AS matched_at,
    if(countIf(c.event = 'escrow_funded') > 0, maxIf(c.at, c.event = 'escrow_funded'), NULL) AS funded_at,
    maxIf(c.expires_at, c.event = 'escrow_funded') AS expires_at,
    if(countIf(c.event IN ('escrow_released', 'escrow_refunded', 'escrow_expired')) > 0,
        maxIf(c.at, c.event IN ('escrow_released', 'escrow_refunded', 'escrow_expired')), NULL) AS settled_at,
    max(c.version) AS version
FROM soma.contract_events AS c FINAL
GROUP BY c.tenant, c.contract_id
COMMENT 'Every contract as it stands now: what was matched, for how much, and what became of the money.';

CREATE OR REPLACE VIEW bi.escrow_at_risk
(
    tenant        LowCardinality(String) COMMENT 'The model owner, whose money is held.',
    contract_id   String COMMENT 'The contract.',
    amount        Decimal(38, 9) COMMENT 'What is held.',
    currency      LowCardinality(String) COMMENT 'ISO 4217 code.',
    risk          LowCardinality(String) COMMENT 'disputed, round_failed, overdue (its time has passed and nobody works), waiting (no round yet), in_round, or ready (the round delivered, the release is due).',
    status        LowCardinality(String) COMMENT 'Of the contract.',
    disputes_open UInt64 COMMENT 'Disputes that are open now.',
    funded_at     DateTime64(6, 'UTC') COMMENT 'When the money was put on hold.',
    expires_at    Nullable(DateTime64(6, 'UTC')) COMMENT 'When it goes back by itself if no round has taken it on.',
    age_s         Int64 COMMENT 'Seconds since it was put on hold.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, contract_id, amount, currency,
    multiIf(disputes_open > 0, 'disputed', status = 'round_failed', 'round_failed',
        status = 'funded' AND expires_at <= now64(6, 'UTC'), 'overdue', status = 'funded', 'waiting', status = 'bound', 'in_round',
        'ready') AS risk,
    status, disputes_open, assumeNotNull(funded_at) AS funded_at, expires_at,
    dateDiff('second', assumeNotNull(funded_at), now64(6, 'UTC')) AS age_s
FROM bi.matches
WHERE escrow = 'locked'
COMMENT 'Money in escrow that is neither released nor given back, and what it waits for.';

CREATE OR REPLACE VIEW bi.conversion
(
    tenant         LowCardinality(String) COMMENT 'The model owner.',
    day            Date COMMENT 'The UTC day on which it happened: an intent opened today and matched tomorrow counts on both days.',
    opened         UInt64 COMMENT 'Intents opened.',
    match_failures UInt64 COMMENT 'Matchings that found no set of offers.',
    matched        UInt64 COMMENT 'Intents matched into a contract.',
    withdrawn      UInt64 COMMENT 'Intents cancelled, closed or expired.',
    funded         UInt64 COMMENT 'Contracts funded.',
    released       UInt64 COMMENT 'Contracts paid out.',
    refunded       UInt64 COMMENT 'Contracts whose money went back.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, day,
    countIf(event = 'intent.opened') AS opened,
    countIf(event = 'intent.match_failed') AS match_failures,
    countIf(event = 'intent.matched') AS matched,
    countIf(event IN ('intent.cancelled', 'intent.closed', 'intent.expired')) AS withdrawn,
    countIf(event = 'contract.escrow_funded') AS funded,
    countIf(event = 'contract.escrow_released') AS released,
    countIf(event IN ('contract.escrow_refunded', 'contract.escrow_expired')) AS refunded
FROM
(
    SELECT tenant, toDate(at) AS day, concat('intent.', event) AS event FROM soma.intent_events FINAL
    UNION ALL
    SELECT tenant, toDate(at), concat('contract.', event) FROM soma.contract_events FINAL
)
GROUP BY tenant, day
COMMENT 'From intent to payout, by day.';

CREATE OR REPLACE VIEW bi.rejection_reasons
(
    tenant    LowCardinality(String) COMMENT 'The model owner who looked for offers.',
    day       Date COMMENT 'The UTC day of the matching.',
    reason    LowCardinality(String) COMMENT 'Why an offer was passed over, such as budget_rejected. One offer can have several.',
    outcome   LowCardinality(String) COMMENT 'What the matching came to: matched or failed.',
    offers    UInt64 COMMENT 'How many offers were passed over for it.',
    matchings UInt64 COMMENT 'In how many matchings.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    r.tenant AS tenant, toDate(r.at) AS day, r.reason AS reason, r.outcome AS outcome, sum(r.offers) AS offers,
    uniqExact(r.position) AS matchings
FROM soma.rejections AS r FINAL
GROUP BY r.tenant, toDate(r.at), r.reason, r.outcome
COMMENT 'Why offers were passed over, by day.';

-- --------------------------------------------------------------------- over the mirror

CREATE OR REPLACE VIEW bi.rental_activity
(
    tenant   LowCardinality(String) COMMENT 'Whose record it is.',
    kind     LowCardinality(String) COMMENT 'rental, subscription or purchase.',
    id       String COMMENT 'Which one.',
    event    String COMMENT 'What happened: the type without its kind.',
    at       DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    actor    String COMMENT 'Who caused it.',
    position UInt64 COMMENT 'The place of the record in the log.',
    data     String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, kind, substring(stream, position(stream, '/') + 1) AS id, substring(type, position(type, '.') + 1) AS event, at,
    actor, position, JSONExtractRaw(record, 'data') AS data
FROM soma.records FINAL
WHERE kind IN ('rental', 'subscription', 'purchase')
COMMENT 'Purchases, subscriptions and rentals by time, over the mirror of the log. Empty until the log holds such records.';

CREATE OR REPLACE VIEW bi.renewals
(
    tenant        LowCardinality(String) COMMENT 'Whose subscriptions they are.',
    day           Date COMMENT 'The UTC day.',
    event         String COMMENT 'What happened to them, such as renewed: the type without its kind.',
    subscriptions UInt64 COMMENT 'How many subscriptions it happened to.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, toDate(at) AS day, substring(type, position(type, '.') + 1) AS event, uniqExact(stream) AS subscriptions
FROM soma.records FINAL
WHERE kind = 'subscription'
GROUP BY tenant, day, event
COMMENT 'What happened to subscriptions, by day, over the mirror of the log. Empty until the log holds subscriptions.';

CREATE OR REPLACE VIEW bi.governance_activity
(
    tenant   LowCardinality(String) COMMENT 'Whose record it is.',
    kind     LowCardinality(String) COMMENT 'training (the lock), round, dispute or reconciliation.',
    id       String COMMENT 'Which one.',
    event    String COMMENT 'What happened: the type without its kind.',
    at       DateTime64(6, 'UTC') COMMENT 'When it was decided.',
    actor    String COMMENT 'Who caused it.',
    reason   String COMMENT 'The reason that was given; empty if none.',
    position UInt64 COMMENT 'The place of the record in the log.',
    data     String COMMENT 'The data of the event, as JSON.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    tenant, kind, substring(stream, position(stream, '/') + 1) AS id, substring(type, position(type, '.') + 1) AS event, at,
    actor, JSONExtractString(record, 'data', 'reason') AS reason, position, JSONExtractRaw(record, 'data') AS data
FROM soma.records FINAL
WHERE kind IN ('training', 'round', 'dispute', 'reconciliation')
COMMENT 'Who governed what: the training lock, training rounds, disputes, reconciliations.';

CREATE OR REPLACE VIEW bi.watermarks
(
    tenant     String COMMENT 'Every tenant sees the same figures under its own name; platform sees them too.',
    follower   LowCardinality(String) COMMENT 'Which follower; a name that ends in .rollup is about its rollup.',
    position   UInt64 COMMENT 'Every record before this position is in it.',
    written_at DateTime64(6, 'UTC') COMMENT 'When that was written down.'
)
DEFINER = CURRENT_USER SQL SECURITY DEFINER
AS SELECT
    t.tenant AS tenant, w.`projection` AS follower, argMax(w.position, w.written_at) AS position, max(w.written_at) AS written_at
FROM soma.watermarks AS w
CROSS JOIN (SELECT DISTINCT toString(tenant) AS tenant FROM soma.accounts WHERE tenant != 'platform' UNION ALL SELECT 'platform') AS t
GROUP BY t.tenant, w.`projection`
COMMENT 'Up to which record of the log the tables are complete.';

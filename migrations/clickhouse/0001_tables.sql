-- Why:   what the followers keep in ClickHouse: a mirror of the log, ledger entries, usage, market activity.
--        All of it can be thrown away and rebuilt from the log (`soma rebuild`).
-- Shape: every table is a ReplacingMergeTree whose ORDER BY ends in the position (and leg), and whose partition is a pure
--        function of the event: a batch sent twice meets its twin and collapses. Nothing relies on deduplication tokens
--        or on materialized views, both of which lost rows when a server was killed.
-- Read:  with FINAL, or through the rollups; the views of 0002 do so.

CREATE DATABASE IF NOT EXISTS soma ENGINE = Atomic;

CREATE DATABASE IF NOT EXISTS bi ENGINE = Atomic;

-- The log, one row a record. `record` holds the canonical bytes; the other columns are found in them too.
CREATE TABLE IF NOT EXISTS soma.records (
    position    UInt64 CODEC(Delta, ZSTD(1)),
    address     FixedString(64),
    tenant      LowCardinality(String),
    kind        LowCardinality(String),
    stream      String,
    version     UInt64,
    type        LowCardinality(String),
    schema      UInt16,
    at          DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    actor       String,
    correlation String,
    causation   String,
    record      String CODEC(ZSTD(3)),
    INDEX by_position position TYPE minmax GRANULARITY 1,
    INDEX by_address address TYPE bloom_filter(0.001) GRANULARITY 1,
    INDEX by_stream stream TYPE bloom_filter(0.01) GRANULARITY 1,
    INDEX by_kind kind TYPE set(32) GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(at)
ORDER BY (tenant, type, at, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- What happened to a thing, in order: a record appears under every subject it is about.
CREATE TABLE IF NOT EXISTS soma.timelines (
    subject_kind LowCardinality(String),
    subject      String,
    position     UInt64,
    address      FixedString(64),
    tenant       LowCardinality(String),
    stream       String,
    version      UInt64,
    type         LowCardinality(String),
    at           DateTime64(6, 'UTC'),
    actor        String,
    data         String CODEC(ZSTD(3))
) ENGINE = ReplacingMergeTree
ORDER BY (subject_kind, subject, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- One row a leg that moves money: debits positive, credits negative; the legs of a position sum to zero per currency.
CREATE TABLE IF NOT EXISTS soma.entries (
    position      UInt64 CODEC(Delta, ZSTD(1)),
    leg           UInt32,
    address       FixedString(64),
    at            DateTime64(6, 'UTC') CODEC(Delta, ZSTD(1)),
    day           Date,
    tenant        LowCardinality(String),
    account       LowCardinality(String),
    purpose       LowCardinality(String),
    currency      LowCardinality(String),
    amount        Decimal(38, 9),
    op            LowCardinality(String),
    hold          String,
    type          LowCardinality(String),
    stream        String,
    record_tenant LowCardinality(String),
    actor         String,
    INDEX by_position position TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(day)
ORDER BY (tenant, account, currency, day, position, leg)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- One row an account that was opened: its side says how its balance is read.
CREATE TABLE IF NOT EXISTS soma.accounts (
    account   String,
    tenant    LowCardinality(String),
    purpose   LowCardinality(String),
    currency  LowCardinality(String),
    side      LowCardinality(String),
    overdraft Bool,
    position  UInt64,
    leg       UInt32,
    address   FixedString(64),
    at        DateTime64(6, 'UTC')
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, account, position, leg)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- One row a step of a hold: op is hold, post, void or expire. Only `hold` says the account and the amount reserved;
-- `amount` of a post is what it moved out.
CREATE TABLE IF NOT EXISTS soma.holds (
    hold     String,
    position UInt64,
    leg      UInt32,
    address  FixedString(64),
    at       DateTime64(6, 'UTC'),
    op       LowCardinality(String),
    account  String,
    tenant   LowCardinality(String),
    currency LowCardinality(String),
    amount   Decimal(38, 9),
    type     LowCardinality(String),
    stream   String
) ENGINE = ReplacingMergeTree
ORDER BY (hold, position, leg)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Days of entries, recomputed from them and replaced. x0, x1 and s2 are the order-free fingerprint of the addresses;
-- weighted sums amount x (position + 1), which no two alterations cancel unnoticed. Sums are Decimal(76): they cannot wrap.
CREATE TABLE IF NOT EXISTS soma.entries_daily (
    tenant   LowCardinality(String),
    account  LowCardinality(String),
    purpose  LowCardinality(String),
    currency LowCardinality(String),
    day      Date,
    entries  UInt64,
    debits   Decimal(76, 9),
    credits  Decimal(76, 9),
    net      Decimal(76, 9),
    x0       Int64,
    x1       Int64,
    s2       Int128,
    weighted Int256,
    upto     UInt64
) ENGINE = ReplacingMergeTree(upto)
ORDER BY (tenant, account, currency, day)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- One row a usage reading. The hour is that of the use, not of the record; `at` is when it was recorded. A latency that
-- was not measured is null, not zero.
CREATE TABLE IF NOT EXISTS soma.usage (
    position      UInt64 CODEC(Delta, ZSTD(1)),
    address       FixedString(64),
    at            DateTime64(6, 'UTC'),
    occurred_at   DateTime64(6, 'UTC'),
    hour          DateTime('UTC'),
    tenant        LowCardinality(String),
    source        LowCardinality(String),
    event_id      String,
    provider      LowCardinality(String),
    model         LowCardinality(String),
    rental        String,
    persona       String,
    status        LowCardinality(String),
    requests      UInt64,
    tokens_in     UInt64,
    tokens_out    UInt64,
    tokens_cached UInt64,
    latency_ms    Nullable(UInt64),
    cost          Decimal(38, 9),
    currency      LowCardinality(String),
    INDEX by_position position TYPE minmax GRANULARITY 1
) ENGINE = ReplacingMergeTree
PARTITION BY toYYYYMM(hour)
ORDER BY (tenant, provider, model, hour, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Hours of usage, recomputed and replaced; what forecasts are fed with. currency is empty where no cost was stated.
-- timed counts the requests whose latency was measured: latency_ms is the sum over those.
CREATE TABLE IF NOT EXISTS soma.usage_hourly (
    tenant        LowCardinality(String),
    provider      LowCardinality(String),
    model         LowCardinality(String),
    currency      LowCardinality(String),
    hour          DateTime('UTC'),
    readings      UInt64,
    requests      UInt64,
    errors        UInt64,
    tokens_in     UInt64,
    tokens_out    UInt64,
    tokens_cached UInt64,
    timed         UInt64,
    latency_ms    UInt64,
    latency_max   UInt64,
    cost          Decimal(76, 9),
    x0            Int64,
    s2            Int128,
    upto          UInt64
) ENGINE = ReplacingMergeTree(upto)
ORDER BY (tenant, provider, model, currency, hour)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Offers as they were listed and changed. `said` names the columns that the event states; the others are empty or zero.
CREATE TABLE IF NOT EXISTS soma.offer_events (
    offer_id     String,
    position     UInt64,
    address      FixedString(64),
    at           DateTime64(6, 'UTC'),
    tenant       LowCardinality(String),
    event        LowCardinality(String),
    version      UInt64,
    said         Array(LowCardinality(String)),
    seller       String,
    modality     LowCardinality(String),
    tasks        Array(LowCardinality(String)),
    price        Decimal(38, 9),
    currency     LowCardinality(String),
    quality_ppm  UInt32,
    sample_count UInt64
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, offer_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Intents and what became of them: opened, amended, matched, match_failed, cancelled, closed, expired. `said` names the
-- columns that the event states; a budget that is stated and null is unlimited.
CREATE TABLE IF NOT EXISTS soma.intent_events (
    intent_id   String,
    position    UInt64,
    address     FixedString(64),
    at          DateTime64(6, 'UTC'),
    tenant      LowCardinality(String),
    event       LowCardinality(String),
    version     UInt64,
    said        Array(LowCardinality(String)),
    task        LowCardinality(String),
    budget      Nullable(Decimal(38, 9)),
    currency    LowCardinality(String),
    contract_id String
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, intent_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- How many offers each matching passed over, by reason; outcome is matched or failed.
CREATE TABLE IF NOT EXISTS soma.rejections (
    position  UInt64,
    reason    LowCardinality(String),
    address   FixedString(64),
    at        DateTime64(6, 'UTC'),
    tenant    LowCardinality(String),
    intent_id String,
    outcome   LowCardinality(String),
    offers    UInt64
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, position, reason)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Contracts and their money: created, escrow_funded, bound_to_round, round_completed, escrow_released and so on. detail
-- is the round id a match was for, the round that took it on, the dispute, or the reason of a refund.
CREATE TABLE IF NOT EXISTS soma.contract_events (
    contract_id String,
    position    UInt64,
    address     FixedString(64),
    at          DateTime64(6, 'UTC'),
    tenant      LowCardinality(String),
    event       LowCardinality(String),
    version     UInt64,
    intent_id   String,
    amount      Decimal(38, 9),
    currency    LowCardinality(String),
    offers      UInt32,
    fee_ppm     UInt32,
    detail      String,
    expires_at  Nullable(DateTime64(6, 'UTC'))
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, contract_id, position)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- What sellers were paid out of escrow, and the fee taken; tenant is the seller.
CREATE TABLE IF NOT EXISTS soma.payouts (
    position    UInt64,
    leg         UInt32,
    address     FixedString(64),
    at          DateTime64(6, 'UTC'),
    tenant      LowCardinality(String),
    payer       LowCardinality(String),
    contract_id String,
    paid        Decimal(38, 9),
    fee         Decimal(38, 9),
    currency    LowCardinality(String)
) ENGINE = ReplacingMergeTree
ORDER BY (tenant, position, leg)
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Up to which position each projection is complete: the first position that is not in it yet.
CREATE TABLE IF NOT EXISTS soma.watermarks (
    `projection` LowCardinality(String),
    position   UInt64,
    written_at DateTime64(6, 'UTC') DEFAULT now64(6)
) ENGINE = ReplacingMergeTree(written_at)
ORDER BY `projection`
SETTINGS fsync_after_insert = 1, fsync_part_directory = 1, non_replicated_deduplication_window = 0;

-- Why:   how far each webhook came, what is being sent again, and how each message fared.
-- Locks: none held by others; all tables are new.
-- Takes: milliseconds.
-- Back:  drop the tables; webhooks then start over where they were registered, which sends again what was sent.

-- A lane is a way through the log. Lane 0 is the webhook's own and has no end; every other is a redelivery, and goes when
-- it is done. position is the first one not settled yet; it moves after the effect, by compare-and-set on it and attempt.
CREATE SEQUENCE webhook_lanes;
CREATE TABLE webhook_positions (
    webhook         text COLLATE "C" NOT NULL,
    lane            bigint NOT NULL DEFAULT 0 CHECK (lane >= 0),
    position        bigint NOT NULL CHECK (position >= 0),
    end_position    bigint CHECK (end_position > position OR lane > 0),
    attempt         integer NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    next_attempt_at timestamptz,
    dead_in_row     integer NOT NULL DEFAULT 0 CHECK (dead_in_row >= 0),
    last_error      text NOT NULL DEFAULT '',
    requested_by    text NOT NULL DEFAULT '',
    created_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    updated_at      timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (webhook, lane)
) WITH (fillfactor = 40, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

-- One row for each message of each lane. What is `dead` was given up; once it arrived after all it is `redelivered`.
CREATE TABLE webhook_deliveries (
    webhook     text COLLATE "C" NOT NULL,
    position    bigint NOT NULL,
    lane        bigint NOT NULL,
    type        text COLLATE "C" NOT NULL,
    message_id  text NOT NULL,
    status      text NOT NULL CHECK (status IN ('failing', 'delivered', 'dead', 'redelivered')),
    attempts    integer NOT NULL,
    http_status smallint,
    error       text NOT NULL,
    duration_ms integer NOT NULL,
    first_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (webhook, position, lane)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX webhook_deliveries_status ON webhook_deliveries (webhook, status, position) WHERE status <> 'delivered';
CREATE INDEX webhook_deliveries_old ON webhook_deliveries (last_at) WHERE status IN ('delivered', 'redelivered');

GRANT SELECT, INSERT, UPDATE, DELETE ON webhook_positions, webhook_deliveries TO soma_service;
GRANT USAGE ON SEQUENCE webhook_lanes TO soma_service;

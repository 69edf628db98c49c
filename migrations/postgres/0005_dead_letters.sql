-- Why:   what could not be taken in or projected, kept until somebody decides; and the list of a tenant's usage.
-- Locks: the index reads `events` once and keeps writers out meanwhile; the table is new.
-- Takes: milliseconds, and about a second for each million records of the log.
-- Back:  drop both; the messages are still at their source, and the list is served by a slower scan.

-- One row a message or record that somebody could not take, by where it lay and what it said. digest is the SHA-256 of
-- key and payload: a topic that is made anew starts again at offset 0, with other messages.
-- payload holds at most 65,536 bytes; payload_bytes says how many there were, null for a message without a value.
CREATE TABLE dead_letters (
    id            bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind          text COLLATE "C" NOT NULL CHECK (kind IN ('message', 'projection')),
    source        text COLLATE "C" NOT NULL,
    topic         text COLLATE "C" NOT NULL,
    partition     integer NOT NULL,
    "offset"      bigint NOT NULL,
    digest        bytea NOT NULL CHECK (length(digest) = 32),
    key           bytea,
    headers       jsonb NOT NULL,
    payload       bytea CHECK (length(payload) <= 65536),
    payload_bytes bigint,
    code          text COLLATE "C" NOT NULL,
    detail        text NOT NULL,
    attempts      integer NOT NULL DEFAULT 1,
    first_seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    last_seen_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    state         text COLLATE "C" NOT NULL DEFAULT 'open' CHECK (state IN ('open', 'requeued', 'discarded')),
    closed_by     text,
    note          text,
    CONSTRAINT dead_letters_place UNIQUE (topic, partition, "offset", digest)
);
CREATE INDEX dead_letters_state ON dead_letters (state, id);

GRANT SELECT, INSERT, UPDATE ON dead_letters TO soma_service;

CREATE INDEX events_usage ON events (tenant, position) WHERE type = 'usage.metered';

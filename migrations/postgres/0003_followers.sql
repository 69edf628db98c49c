-- Why:   where each follower of the log stands, for sinks that cannot keep it in a transaction of their own.
-- Locks: none held by others; the table is new.
-- Takes: milliseconds.
-- Back:  drop the table; followers then start over, which changes nothing but the time it takes.

-- position is the first one not applied yet. It is written after the effect, by compare-and-set, by whoever holds the
-- follower's advisory lock. handover asks that leader to let go of the lock at its next step.
CREATE TABLE followers (
    name       text COLLATE "C" PRIMARY KEY,
    position   bigint NOT NULL DEFAULT 0 CHECK (position >= 0),
    handover   boolean NOT NULL DEFAULT false,
    updated_at timestamptz NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 20, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_scale_factor = 0);

GRANT SELECT, INSERT, UPDATE, DELETE ON followers TO soma_service;

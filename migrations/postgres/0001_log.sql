-- Why:   the log itself: records, tree, checkpoints, remembered keys; and who may touch them.
-- Locks: none held by others; all tables are new.
-- Takes: milliseconds.
-- Back:  drop the database; nothing existed before.

-- The role the service works under. It can add to the log, never change it.
DO $$
BEGIN
    IF NOT EXISTS (SELECT 1 FROM pg_roles WHERE rolname = 'soma_service') THEN
        BEGIN
            CREATE ROLE soma_service NOLOGIN;
        EXCEPTION WHEN duplicate_object OR unique_violation THEN
            NULL;  -- another database of this cluster was migrated at the same moment
        END;
    END IF;
    -- Whoever migrates may take the role on; a login of its own for the service is granted it the same way.
    EXECUTE format('GRANT soma_service TO %I', current_user);
END
$$;

-- Which log this database holds. A service with another origin or key refuses to start.
CREATE TABLE log_identity (
    one        boolean PRIMARY KEY DEFAULT true CHECK (one),
    origin     text NOT NULL,
    vkey       text NOT NULL,
    created_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

-- The one row every commit compares and sets: that is what makes several writers safe.
CREATE TABLE log_head (
    one  boolean PRIMARY KEY DEFAULT true CHECK (one),
    size bigint NOT NULL CHECK (size >= 0),
    root bytea NOT NULL CHECK (length(root) = 32)
) WITH (fillfactor = 10, autovacuum_vacuum_threshold = 10000, autovacuum_vacuum_scale_factor = 0);

INSERT INTO log_head (size, root) VALUES (0, sha256(''));

-- Records in log order. `record` holds the canonical bytes; the other columns are found in them too.
CREATE TABLE events (
    position bigint NOT NULL CHECK (position >= 0),
    version  bigint NOT NULL CHECK (version >= 1),
    stream   text COLLATE "C" NOT NULL,
    type     text COLLATE "C" NOT NULL,
    tenant   text COLLATE "C" NOT NULL,
    address  bytea NOT NULL CHECK (length(address) = 64),
    record   bytea NOT NULL CHECK (length(record) <= 65535),
    CONSTRAINT events_position PRIMARY KEY (position),
    CONSTRAINT events_stream_version UNIQUE (stream, version)
) WITH (
    autovacuum_vacuum_threshold = 100000000,
    autovacuum_vacuum_insert_threshold = 1000000,
    autovacuum_analyze_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.01
);
-- Records are small and already dense; compressing them would cost more than it saves.
ALTER TABLE events ALTER COLUMN record SET STORAGE EXTERNAL;
CREATE INDEX events_address ON events USING hash (address);

-- Full hash tiles only; partial ones are computed from records and from `root` of the tiles below.
CREATE TABLE tiles (
    level  smallint NOT NULL CHECK (level BETWEEN 0 AND 63),
    index  bigint NOT NULL CHECK (index >= 0),
    hashes bytea NOT NULL CHECK (length(hashes) = 8192),
    root   bytea NOT NULL CHECK (length(root) = 32),
    PRIMARY KEY (level, index)
);
ALTER TABLE tiles ALTER COLUMN hashes SET STORAGE EXTERNAL;

-- Every head that was ever committed, with the log's signature. This is all that is ever handed out.
CREATE TABLE checkpoints (
    size         bigint PRIMARY KEY,
    root         bytea NOT NULL CHECK (length(root) = 32),
    signature    bytea NOT NULL CHECK (length(signature) = 64),
    committed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX checkpoints_committed_at ON checkpoints (committed_at);

CREATE TABLE witnesses (
    name text NOT NULL,
    vkey text PRIMARY KEY,
    url  text
);

CREATE TABLE cosignatures (
    size       bigint NOT NULL REFERENCES checkpoints,
    vkey       text NOT NULL REFERENCES witnesses,
    line       text NOT NULL,
    at         timestamptz NOT NULL,
    PRIMARY KEY (size, vkey)
);

-- One row for each idempotency key, kept for ever: what was asked (digest) and what was answered.
-- `id` is the SHA-256 of caller and key; a refusal is remembered like a success, with no event.
CREATE TABLE keys (
    id          bytea PRIMARY KEY CHECK (length(id) = 32),
    digest      bytea NOT NULL CHECK (length(digest) = 32),
    status      smallint NOT NULL,
    position    bigint,
    event_count integer NOT NULL,
    answer      bytea NOT NULL
);

CREATE FUNCTION refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION '% is refused: % is part of the log and immutable', TG_OP, TG_TABLE_NAME
        USING ERRCODE = 'restrict_violation';
END
$$;

DO $$
DECLARE
    t text;
BEGIN
    FOREACH t IN ARRAY ARRAY['events', 'tiles', 'checkpoints', 'cosignatures', 'keys', 'log_identity'] LOOP
        EXECUTE format('CREATE TRIGGER immutable BEFORE UPDATE OR DELETE OR TRUNCATE ON %I '
                       'FOR EACH STATEMENT EXECUTE FUNCTION refuse_change()', t);
    END LOOP;
END
$$;

GRANT USAGE ON SCHEMA public TO soma_service;
GRANT SELECT, INSERT ON events, tiles, checkpoints, cosignatures, keys, log_identity, witnesses TO soma_service;
GRANT SELECT, UPDATE ON log_head TO soma_service;
GRANT SELECT ON schema_migrations TO soma_service;

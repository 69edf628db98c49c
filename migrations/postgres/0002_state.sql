-- Why:   what follows the log inside its own transaction: current state, accounts, holds, postings, snapshots.
--        All of it can be thrown away and rebuilt from `events` (`soma ledger rebuild`).
-- Locks: none held by others; all tables are new.
-- Takes: milliseconds.
-- Back:  drop these tables; the log is untouched.

-- One row for each aggregate, as it stands after its latest event.
CREATE TABLE records (
    kind     text COLLATE "C" NOT NULL,
    id       text COLLATE "C" NOT NULL,
    version  bigint NOT NULL,
    address  bytea NOT NULL,
    tenant   text COLLATE "C" NOT NULL,
    owner    text COLLATE "C",
    status   text COLLATE "C" NOT NULL,
    deadline timestamptz,
    parties  text[],
    state    jsonb NOT NULL,
    search   tsvector,
    PRIMARY KEY (kind, id)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX records_status ON records (kind, status, id);
CREATE INDEX records_tenant ON records (kind, tenant, id);
CREATE INDEX records_deadline ON records (deadline) WHERE deadline IS NOT NULL;
CREATE INDEX records_search ON records USING gin (search) WHERE search IS NOT NULL;

-- Balances after the latest posting. Read by the commit, which keeps them exact under the head row's lock.
CREATE TABLE accounts (
    account      text COLLATE "C" PRIMARY KEY,
    currency     text NOT NULL,
    side         text NOT NULL CHECK (side IN ('debit', 'credit')),
    overdraft    boolean NOT NULL,
    balance_nano numeric(38, 0) NOT NULL,
    held_nano    numeric(38, 0) NOT NULL CHECK (held_nano >= 0),
    CONSTRAINT accounts_funds CHECK (overdraft OR balance_nano >= held_nano)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE holds (
    hold        text COLLATE "C" PRIMARY KEY,
    account     text COLLATE "C" NOT NULL,
    currency    text NOT NULL,
    amount_nano numeric(38, 0) NOT NULL CHECK (amount_nano > 0),
    status      text NOT NULL CHECK (status IN ('pending', 'posted', 'void', 'expired'))
) WITH (fillfactor = 80);
CREATE INDEX holds_pending ON holds (account) WHERE status = 'pending';

-- What each event did to each account. `leg` counts within the event; debits are positive.
-- The balance after each leg makes a balance as of any position one index look-up.
CREATE TABLE postings (
    account      text COLLATE "C" NOT NULL,
    position     bigint NOT NULL,
    leg          integer NOT NULL,
    amount_nano  numeric(38, 0) NOT NULL,
    hold         text COLLATE "C",
    balance_nano numeric(38, 0) NOT NULL,
    held_nano    numeric(38, 0) NOT NULL,
    PRIMARY KEY (account, position, leg)
) WITH (autovacuum_vacuum_insert_threshold = 1000000);

-- Snapshots in the shape of the eventsourcing library's aggregate recorder.
CREATE TABLE snapshots (
    originator_id      text COLLATE "C" NOT NULL,
    originator_version bigint NOT NULL,
    topic              text NOT NULL,
    state              bytea NOT NULL,
    PRIMARY KEY (originator_id, originator_version)
);

GRANT SELECT, INSERT, UPDATE ON records, accounts, holds TO soma_service;
GRANT SELECT, INSERT ON postings, snapshots TO soma_service;

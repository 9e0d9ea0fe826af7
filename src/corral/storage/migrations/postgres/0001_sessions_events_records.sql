-- Sessions, their history, and all other records. Times are microseconds since 1970, UTC; documents are JSON.
-- Text compares byte by byte, as it does in Corral.

CREATE SEQUENCE session_numbers AS bigint;

-- What look-ups and lists need, and what the events add up to. `version` grows with every commit that touches the
-- session: a writer that decided on another version is refused. The room left in each page keeps such updates in it.
CREATE TABLE sessions (
    number         bigint PRIMARY KEY,
    id             text COLLATE "C" NOT NULL UNIQUE,
    workspace_id   text COLLATE "C" NOT NULL,
    agent_id       text COLLATE "C" NOT NULL,
    agent_version  bigint NOT NULL,
    environment_id text COLLATE "C" NOT NULL,
    deployment_id  text COLLATE "C",
    status         text COLLATE "C" NOT NULL,
    epoch          bigint NOT NULL,
    version        bigint NOT NULL,
    state          bytea NOT NULL,
    created_at     bigint NOT NULL,
    archived_at    bigint
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX sessions_by_creation ON sessions (workspace_id, created_at, id);
CREATE INDEX sessions_unfinished ON sessions (id) WHERE status IN ('running', 'rescheduling');

-- What the client gave, agent snapshot included: large, and changed only by an update.
CREATE TABLE session_documents (
    session  bigint PRIMARY KEY,
    document bytea NOT NULL
);

-- The log. Rows are stored in the order in which they come, those of many sessions mixed; the partitions keep a
-- session among few others, so that its rows share pages.
CREATE TABLE events (
    session      bigint NOT NULL,
    seq          bigint NOT NULL,
    id           text COLLATE "C" NOT NULL,
    type         text COLLATE "C" NOT NULL,
    processed_at bigint,
    body         bytea NOT NULL,
    private      bytea,
    PRIMARY KEY (session, seq)
) PARTITION BY HASH (session);
DO $$
BEGIN
    FOR part IN 0..15 LOOP
        EXECUTE format(
            'CREATE TABLE events_%s PARTITION OF events FOR VALUES WITH (MODULUS 16, REMAINDER %s)', part, part
        );
    END LOOP;
END $$;
CREATE INDEX events_queued ON events (session, seq) WHERE processed_at IS NULL;

-- Micro-dollars of all sessions, deleted ones included.
CREATE TABLE spending (
    only_one     boolean PRIMARY KEY CHECK (only_one),
    microdollars bigint NOT NULL
);
INSERT INTO spending VALUES (true, 0);

CREATE TABLE records (
    kind         text COLLATE "C" NOT NULL,
    id           text COLLATE "C" NOT NULL,
    workspace_id text COLLATE "C" NOT NULL,
    parent_id    text COLLATE "C",
    unique_key   bytea,
    created_at   bigint NOT NULL,
    archived_at  bigint,
    revision     bigint NOT NULL,
    body         bytea NOT NULL,
    PRIMARY KEY (kind, id)
);
CREATE UNIQUE INDEX records_by_unique_key ON records (kind, workspace_id, unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX records_by_creation ON records (kind, workspace_id, created_at, id);
CREATE INDEX records_by_parent ON records (kind, parent_id, created_at, id) WHERE parent_id IS NOT NULL;

-- Refuses a commit of which a session has moved on since it was decided.
CREATE FUNCTION corral_expect(counted bigint, wanted bigint) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
    IF counted <> wanted THEN
        RAISE EXCEPTION 'a session has moved on' USING ERRCODE = 'CR001';
    END IF;
    RETURN true;
END $$;

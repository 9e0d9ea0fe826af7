-- Sessions, their history, and all other records. Times are microseconds since 1970, UTC; documents are JSON.

-- What look-ups and lists need. A session's row is small because it is written anew at every change of status.
CREATE TABLE sessions (
    number         INTEGER PRIMARY KEY,
    id             TEXT NOT NULL UNIQUE,
    workspace_id   TEXT NOT NULL,
    agent_id       TEXT NOT NULL,
    agent_version  INTEGER NOT NULL,
    environment_id TEXT NOT NULL,
    deployment_id  TEXT,
    status         TEXT NOT NULL,
    epoch          INTEGER NOT NULL,
    created_at     INTEGER NOT NULL,
    archived_at    INTEGER
);
CREATE INDEX sessions_by_creation ON sessions (workspace_id, created_at, id);
CREATE INDEX sessions_unfinished ON sessions (id) WHERE status IN ('running', 'rescheduling');

-- What the client gave, agent snapshot included: large, and changed only by an update.
CREATE TABLE session_documents (
    session  INTEGER PRIMARY KEY,
    document BLOB NOT NULL
);

-- What the events add up to: small, and changed by every commit.
CREATE TABLE session_states (
    session INTEGER PRIMARY KEY,
    state   BLOB NOT NULL
);

-- The log. `position` is the session's number and the event's seq in one integer, so the table itself is the index:
-- one session's rows lie side by side, and an append maintains nothing else.
CREATE TABLE events (
    position     INTEGER PRIMARY KEY,
    id           TEXT NOT NULL,
    type         TEXT NOT NULL,
    processed_at INTEGER,
    body         BLOB NOT NULL,
    private      BLOB,
    session      INTEGER GENERATED ALWAYS AS (position >> 32) VIRTUAL,
    seq          INTEGER GENERATED ALWAYS AS (position & 4294967295) VIRTUAL
);
CREATE INDEX events_queued ON events (position) WHERE processed_at IS NULL;

-- Micro-dollars of all sessions, deleted ones included.
CREATE TABLE spending (
    only         INTEGER PRIMARY KEY CHECK (only = 1),
    microdollars INTEGER NOT NULL
);
INSERT INTO spending VALUES (1, 0);

CREATE TABLE records (
    number       INTEGER PRIMARY KEY,
    kind         TEXT NOT NULL,
    id           TEXT NOT NULL,
    workspace_id TEXT NOT NULL,
    parent_id    TEXT,
    unique_key   TEXT,
    created_at   INTEGER NOT NULL,
    archived_at  INTEGER,
    revision     INTEGER NOT NULL,
    body         BLOB NOT NULL,
    UNIQUE (kind, id)
);
CREATE UNIQUE INDEX records_by_unique_key ON records (kind, workspace_id, unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX records_by_creation ON records (kind, workspace_id, created_at, id);
CREATE INDEX records_by_parent ON records (kind, parent_id, created_at, id) WHERE parent_id IS NOT NULL;

-- Named queries: each begins with `-- name:` and ends where the next begins. What they mean is said where they are used.
-- Everything for many rows takes arrays, so that a commit of any size is one statement.

-- name: schema_version
SELECT max(version) FROM corral_schema;

-- name: take_lock
SELECT pg_try_advisory_lock($1::int, $2::int);

-- name: notify
SELECT pg_notify($1, $2);

-- name: notify_lightly
SELECT set_config('synchronous_commit', 'off', true), pg_notify($1, $2);

-- name: session_numbers
SELECT nextval('session_numbers') AS number FROM generate_series(1, $1::bigint);

-- name: sessions_by_id
SELECT s.id, s.number, s.epoch, s.version, s.state, d.document
FROM unnest($1::text[]) AS wanted (id)
JOIN sessions AS s ON s.id = wanted.id
JOIN session_documents AS d ON d.session = s.number;

-- name: lock_sessions
SELECT s.number
FROM unnest($1::text[]) AS wanted (id)
JOIN sessions AS s ON s.id = wanted.id
ORDER BY s.number FOR UPDATE OF s;

-- name: queued_bodies
SELECT e.session, e.seq, e.body
FROM unnest($1::bigint[], $2::bigint[]) AS wanted (session, seq)
JOIN events AS e ON e.session = wanted.session AND e.seq = wanted.seq;

-- name: are_current
SELECT count(*)
FROM unnest($1::bigint[], $2::bigint[]) AS seen (number, version)
JOIN sessions AS s ON s.number = seen.number AND s.version = seen.version;

-- name: expect_versions
WITH held AS MATERIALIZED (
    SELECT s.number
    FROM unnest($1::bigint[], $2::bigint[]) AS seen (number, version)
    JOIN sessions AS s ON s.number = seen.number AND s.version = seen.version
    ORDER BY s.number FOR UPDATE OF s
)
SELECT corral_expect(count(*), cardinality($1)) FROM held;

-- name: append
WITH changed AS (
    UPDATE sessions AS s
    SET state = n.state, status = n.status, epoch = n.epoch, version = s.version + 1
    FROM unnest($1::advanced_session[]) AS n
    WHERE s.number = n.number AND s.version = n.version
    RETURNING s.number
), guard AS MATERIALIZED (
    SELECT corral_expect(count(*), cardinality($1)) AS ok FROM changed
), added AS (
    INSERT INTO events (session, seq, id, type, processed_at, body, private)
    SELECT session, seq, id, type, processed_at, body, private FROM unnest($2::new_event[])
    WHERE (SELECT ok FROM guard)
), paid AS (
    UPDATE spending SET microdollars = microdollars + $4::bigint WHERE $4::bigint <> 0 AND (SELECT ok FROM guard)
)
SELECT pg_notify('corral_events', notice) FROM unnest($3::text[]) AS told (notice) WHERE (SELECT ok FROM guard);

-- name: append_beside_reads
WITH held AS MATERIALIZED (
    SELECT s.number
    FROM unnest($5::bigint[], $6::bigint[]) AS seen (number, version)
    JOIN sessions AS s ON s.number = seen.number AND s.version = seen.version
    ORDER BY s.number FOR UPDATE OF s
), guard AS MATERIALIZED (
    SELECT corral_expect(count(*), cardinality($5)) AS ok FROM held
), changed AS (
    UPDATE sessions AS s
    SET state = n.state, status = n.status, epoch = n.epoch, version = s.version + 1
    FROM unnest($1::advanced_session[]) AS n
    WHERE s.number = n.number AND (SELECT ok FROM guard)
), added AS (
    INSERT INTO events (session, seq, id, type, processed_at, body, private)
    SELECT session, seq, id, type, processed_at, body, private FROM unnest($2::new_event[])
    WHERE (SELECT ok FROM guard)
), paid AS (
    UPDATE spending SET microdollars = microdollars + $4::bigint WHERE $4::bigint <> 0 AND (SELECT ok FROM guard)
)
SELECT pg_notify('corral_events', notice) FROM unnest($3::text[]) AS told (notice) WHERE (SELECT ok FROM guard);

-- name: has_events
SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bigint[], $3::text[], $4::bytea[]) AS sent (session, seq, id, body)
    JOIN events AS e ON e.session = sent.session AND e.seq = sent.seq AND e.id = sent.id AND e.body = sent.body
);

-- name: has_queued_events
SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bigint[], $3::text[]) AS sent (session, seq, id)
    JOIN events AS e ON e.session = sent.session AND e.seq >= sent.seq AND e.id = sent.id
);

-- name: has_sessions
SELECT EXISTS (SELECT FROM unnest($1::bigint[]) AS sent (number) JOIN sessions AS s ON s.number = sent.number);

-- name: has_documents
SELECT EXISTS (
    SELECT FROM unnest($1::bigint[], $2::bytea[]) AS sent (session, document)
    JOIN session_documents AS d ON d.session = sent.session AND d.document = sent.document
);

-- name: delete_events
DELETE FROM events AS e USING unnest($1::bigint[], $2::bigint[]) AS gone (session, seq)
WHERE e.session = gone.session AND e.seq = gone.seq;

-- name: spending
SELECT microdollars FROM spending;

-- name: insert_session
INSERT INTO sessions (number, id, workspace_id, agent_id, agent_version, environment_id, deployment_id, status, epoch,
                      version, state, created_at, archived_at)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, 1, $10, $11, $12);

-- name: update_session
UPDATE sessions
SET workspace_id = $2, agent_id = $3, agent_version = $4, environment_id = $5, deployment_id = $6, archived_at = $7
WHERE number = $1;

-- name: put_document
INSERT INTO session_documents (session, document) VALUES ($1, $2)
ON CONFLICT (session) DO UPDATE SET document = excluded.document;

-- name: delete_session_events
DELETE FROM events WHERE session = ANY($1::bigint[]);

-- name: delete_session_documents
DELETE FROM session_documents WHERE session = ANY($1::bigint[]);

-- name: delete_sessions
DELETE FROM sessions WHERE number = ANY($1::bigint[]);

-- name: unfinished
SELECT id FROM sessions WHERE status IN ('running', 'rescheduling') ORDER BY id;

-- name: events_asc
SELECT e.seq, e.body, e.private
FROM sessions AS s
LEFT JOIN LATERAL (
    (SELECT false AS queued, seq, body, private FROM events
     WHERE session = s.number AND seq > $2 AND seq < $3 AND processed_at BETWEEN $4 AND $5
       AND ($8::text[] IS NULL OR type = ANY($8))
     ORDER BY seq LIMIT $9)
    UNION ALL
    (SELECT true AS queued, seq, body, private FROM events
     WHERE session = s.number AND processed_at IS NULL AND seq > $6 AND seq < $7
       AND ($8::text[] IS NULL OR type = ANY($8))
     ORDER BY seq LIMIT $9)
) AS e ON true
WHERE s.id = $1
ORDER BY e.queued, e.seq LIMIT $9;

-- name: events_desc
SELECT e.seq, e.body, e.private
FROM sessions AS s
LEFT JOIN LATERAL (
    (SELECT true AS queued, seq, body, private FROM events
     WHERE session = s.number AND processed_at IS NULL AND seq > $6 AND seq < $7
       AND ($8::text[] IS NULL OR type = ANY($8))
     ORDER BY seq DESC LIMIT $9)
    UNION ALL
    (SELECT false AS queued, seq, body, private FROM events
     WHERE session = s.number AND seq > $2 AND seq < $3 AND processed_at BETWEEN $4 AND $5
       AND ($8::text[] IS NULL OR type = ANY($8))
     ORDER BY seq DESC LIMIT $9)
) AS e ON true
WHERE s.id = $1
ORDER BY e.queued DESC, e.seq DESC LIMIT $9;

-- name: rows_between
SELECT e.seq, e.type, e.body
FROM sessions AS s
JOIN events AS e ON e.session = s.number
WHERE s.id = $1 AND e.seq > $2 AND e.seq <= $3
ORDER BY e.seq;

-- name: session_seqs
SELECT s.id, coalesce((SELECT max(seq) FROM events WHERE session = s.number), 0) AS seq
FROM unnest($1::text[]) AS wanted (id)
JOIN sessions AS s ON s.id = wanted.id;

-- name: bodies
SELECT body FROM events WHERE session = $1 ORDER BY processed_at IS NULL, seq;

-- name: sessions_asc
SELECT d.document, s.state
FROM sessions AS s
JOIN session_documents AS d ON d.session = s.number
WHERE s.workspace_id = $1
  AND (s.created_at, s.id) > ($2, $3)
  AND s.created_at BETWEEN $4 AND $5
  AND ($6::text[] IS NULL OR s.status = ANY($6))
  AND ($7::text IS NULL OR s.agent_id = $7)
  AND ($8::bigint IS NULL OR s.agent_version = $8)
  AND ($9::text IS NULL OR s.deployment_id = $9)
  AND ($10 OR s.archived_at IS NULL)
ORDER BY s.created_at, s.id LIMIT $11;

-- name: sessions_desc
SELECT d.document, s.state
FROM sessions AS s
JOIN session_documents AS d ON d.session = s.number
WHERE s.workspace_id = $1
  AND (s.created_at, s.id) < ($2, $3)
  AND s.created_at BETWEEN $4 AND $5
  AND ($6::text[] IS NULL OR s.status = ANY($6))
  AND ($7::text IS NULL OR s.agent_id = $7)
  AND ($8::bigint IS NULL OR s.agent_version = $8)
  AND ($9::text IS NULL OR s.deployment_id = $9)
  AND ($10 OR s.archived_at IS NULL)
ORDER BY s.created_at DESC, s.id DESC LIMIT $11;

-- name: workspaces
SELECT workspace_id FROM sessions UNION SELECT workspace_id FROM records ORDER BY workspace_id;

-- name: record
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records WHERE kind = $1 AND id = $2;

-- name: lock_record
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records WHERE kind = $1 AND id = $2 FOR UPDATE;

-- name: put_record
INSERT INTO records (kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body)
VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
ON CONFLICT (kind, id) DO UPDATE
SET parent_id = excluded.parent_id, unique_key = excluded.unique_key, created_at = excluded.created_at,
    archived_at = excluded.archived_at, revision = excluded.revision, body = excluded.body
WHERE $10
RETURNING kind;

-- name: delete_record
DELETE FROM records WHERE kind = $1 AND id = $2 AND workspace_id = $3 RETURNING kind;

-- name: records_of_workspace
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = $1 AND workspace_id = $2 AND (created_at, id) < ($4, $5)
  AND created_at BETWEEN $6 AND $7
  AND ($3::text IS NULL OR parent_id = $3) AND ($8 OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT $9;

-- name: records_of_parent
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = $1 AND parent_id = $3 AND (created_at, id) < ($4, $5)
  AND created_at BETWEEN $6 AND $7
  AND ($2::text IS NULL OR workspace_id = $2) AND ($8 OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT $9;

-- name: records_of_all
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = $1 AND ($2::text IS NULL OR workspace_id = $2) AND ($3::text IS NULL OR parent_id = $3)
  AND (created_at, id) < ($4, $5)
  AND created_at BETWEEN $6 AND $7 AND ($8 OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT $9;

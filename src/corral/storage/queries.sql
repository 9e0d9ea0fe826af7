-- Named queries: each begins with `-- name:` and ends where the next begins. What they mean is said where they are used.
-- Ranges always have both ends (the caller passes the far ends of the numbers for "no limit"), so that every list is one
-- walk along an index, from the cursor on.

-- name: session_by_id
SELECT s.number, s.epoch, d.document, t.state
FROM sessions AS s
JOIN session_documents AS d ON d.session = s.number
JOIN session_states AS t ON t.session = s.number
WHERE s.id = :id;

-- name: session_number
SELECT number FROM sessions WHERE id = :id;

-- name: insert_session
INSERT INTO sessions (id, workspace_id, agent_id, agent_version, environment_id, deployment_id, status, epoch,
                      created_at, archived_at)
VALUES (:id, :workspace_id, :agent_id, :agent_version, :environment_id, :deployment_id, :status, :epoch,
        :created_at, :archived_at);

-- name: update_session
UPDATE sessions
SET workspace_id = :workspace_id, agent_id = :agent_id, agent_version = :agent_version,
    environment_id = :environment_id, deployment_id = :deployment_id, archived_at = :archived_at
WHERE number = :number;

-- name: update_status
UPDATE sessions SET status = :status, epoch = :epoch WHERE number = :number;

-- name: put_document
INSERT OR REPLACE INTO session_documents (session, document) VALUES (:number, :document);

-- name: put_states
INSERT OR REPLACE INTO session_states (session, state) VALUES (?, ?)

-- name: insert_events
INSERT INTO events (position, id, type, processed_at, body, private) VALUES (?, ?, ?, ?, ?, ?)

-- name: delete_event
DELETE FROM events WHERE position = ?;

-- name: queued_body
SELECT body FROM events WHERE position = ?;

-- name: add_spending
UPDATE spending SET microdollars = microdollars + ?;

-- name: spending
SELECT microdollars FROM spending;

-- name: delete_session_events
DELETE FROM events WHERE position > :low AND position < :high;

-- name: delete_session_document
DELETE FROM session_documents WHERE session = ?;

-- name: delete_session_state
DELETE FROM session_states WHERE session = ?;

-- name: delete_session
DELETE FROM sessions WHERE number = ?;

-- name: unfinished
SELECT id FROM sessions INDEXED BY sessions_unfinished WHERE status IN ('running', 'rescheduling') ORDER BY id;

-- name: processed_events_asc
SELECT position, body, private FROM events
WHERE position > :low AND position < :high AND processed_at BETWEEN :since AND :until
  AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
ORDER BY position LIMIT :limit;

-- name: processed_events_desc
SELECT position, body, private FROM events
WHERE position > :low AND position < :high AND processed_at BETWEEN :since AND :until
  AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
ORDER BY position DESC LIMIT :limit;

-- name: queued_events_asc
SELECT position, body, private FROM events INDEXED BY events_queued
WHERE processed_at IS NULL AND position > :low AND position < :high
  AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
ORDER BY position LIMIT :limit;

-- name: queued_events_desc
SELECT position, body, private FROM events INDEXED BY events_queued
WHERE processed_at IS NULL AND position > :low AND position < :high
  AND (:types IS NULL OR type IN (SELECT value FROM json_each(:types)))
ORDER BY position DESC LIMIT :limit;

-- name: sessions_asc
SELECT d.document, t.state
FROM sessions AS s
JOIN session_documents AS d ON d.session = s.number
JOIN session_states AS t ON t.session = s.number
WHERE s.workspace_id = :workspace_id
  AND (s.created_at, s.id) > (:beyond_at, :beyond_id)
  AND s.created_at BETWEEN :since AND :until
  AND (:statuses IS NULL OR s.status IN (SELECT value FROM json_each(:statuses)))
  AND (:agent_id IS NULL OR s.agent_id = :agent_id)
  AND (:agent_version IS NULL OR s.agent_version = :agent_version)
  AND (:deployment_id IS NULL OR s.deployment_id = :deployment_id)
  AND (:include_archived OR s.archived_at IS NULL)
ORDER BY s.created_at, s.id LIMIT :limit;

-- name: sessions_desc
SELECT d.document, t.state
FROM sessions AS s
JOIN session_documents AS d ON d.session = s.number
JOIN session_states AS t ON t.session = s.number
WHERE s.workspace_id = :workspace_id
  AND (s.created_at, s.id) < (:beyond_at, :beyond_id)
  AND s.created_at BETWEEN :since AND :until
  AND (:statuses IS NULL OR s.status IN (SELECT value FROM json_each(:statuses)))
  AND (:agent_id IS NULL OR s.agent_id = :agent_id)
  AND (:agent_version IS NULL OR s.agent_version = :agent_version)
  AND (:deployment_id IS NULL OR s.deployment_id = :deployment_id)
  AND (:include_archived OR s.archived_at IS NULL)
ORDER BY s.created_at DESC, s.id DESC LIMIT :limit;

-- name: workspaces
SELECT workspace_id FROM sessions UNION SELECT workspace_id FROM records ORDER BY workspace_id;

-- name: record
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records WHERE kind = :kind AND id = :id;

-- name: put_record
INSERT INTO records (kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body)
VALUES (:kind, :id, :workspace_id, :parent_id, :unique_key, :created_at, :archived_at, :revision, :body)
ON CONFLICT (kind, id) DO UPDATE
SET parent_id = excluded.parent_id, unique_key = excluded.unique_key, created_at = excluded.created_at,
    archived_at = excluded.archived_at, revision = excluded.revision, body = excluded.body;

-- name: delete_record
DELETE FROM records WHERE kind = :kind AND id = :id AND workspace_id = :workspace_id;

-- name: records_of_workspace
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = :kind AND workspace_id = :workspace_id AND (created_at, id) < (:beyond_at, :beyond_id)
  AND created_at BETWEEN :since AND :until
  AND (:parent_id IS NULL OR parent_id = :parent_id) AND (:include_archived OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT :limit;

-- name: records_of_parent
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = :kind AND parent_id = :parent_id AND (created_at, id) < (:beyond_at, :beyond_id)
  AND created_at BETWEEN :since AND :until
  AND (:workspace_id IS NULL OR workspace_id = :workspace_id) AND (:include_archived OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT :limit;

-- name: records_of_all
SELECT kind, id, workspace_id, parent_id, unique_key, created_at, archived_at, revision, body
FROM records
WHERE kind = :kind AND (created_at, id) < (:beyond_at, :beyond_id)
  AND created_at BETWEEN :since AND :until AND (:include_archived OR archived_at IS NULL)
ORDER BY created_at DESC, id DESC LIMIT :limit;

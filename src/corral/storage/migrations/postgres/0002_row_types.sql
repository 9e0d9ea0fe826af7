-- What a commit sends, a value for each row: asyncpg looks at every element of every array, and rows are fewer than
-- their columns. Types of their own, so that tables can get columns while older servers run.
CREATE TYPE advanced_session AS (
    number  bigint,
    version bigint,
    state   bytea,
    status  text,
    epoch   bigint
);
CREATE TYPE new_event AS (
    session      bigint,
    seq          bigint,
    id           text,
    type         text,
    processed_at bigint,
    body         bytea,
    private      bytea
);

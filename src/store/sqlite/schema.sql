-- The store as a whole.
CREATE TABLE store (
  one         INTEGER PRIMARY KEY CHECK (one = 1),
  epoch       BLOB    NOT NULL,           -- 16 random bytes: which history this is
  floor       INTEGER NOT NULL,           -- tombstones at or below this revision were dropped
  unrecovered INTEGER NOT NULL,           -- 1 in a backup, and from its restore until it is recovered
  seal        INTEGER NOT NULL            -- CRC-32 of the row, as everywhere
) STRICT;

-- One row a commit; the newest is the head.
CREATE TABLE commits (
  revision INTEGER PRIMARY KEY,
  tag      BLOB    NOT NULL,              -- 16 random bytes, the committer's own
  seal     INTEGER NOT NULL
) STRICT;

-- Where each tenant stands.
CREATE TABLE tenants (
  tenant     TEXT    PRIMARY KEY,
  revision   INTEGER NOT NULL,            -- its last commit
  decided_at INTEGER NOT NULL,            -- the latest instant decided, in microseconds
  sequence   INTEGER NOT NULL,            -- its newest audit entry
  hash       BLOB    NOT NULL,
  seal       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The rows of the feed: each once, at the place of its newest commit.
CREATE TABLE rows (
  place       INTEGER PRIMARY KEY,        -- revision * 2^20 + number within the commit
  kind        INTEGER NOT NULL,           -- 0 tenant, 1 owner, 2 key, 3 removed key
  tenant      TEXT    NOT NULL,
  name        TEXT,                       -- of owners (the principal) and tenants (empty)
  id          BLOB,                       -- of keys, 16 bytes, big endian
  ends        INTEGER,                    -- of keys not revoked: their end in microseconds, or 2^63-1
  legacy      INTEGER,                    -- 1, of legacy keys
  fingerprint TEXT,                       -- of keys
  body        BLOB    NOT NULL,
  seal        INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX rows_by_name ON rows (kind, tenant, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE id IS NOT NULL;
CREATE INDEX rows_of_tenant ON rows (tenant, id) WHERE id IS NOT NULL;
CREATE INDEX rows_by_end ON rows (tenant, ends) WHERE ends IS NOT NULL;
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;
CREATE INDEX rows_legacy ON rows (tenant) WHERE legacy IS NOT NULL;
CREATE INDEX rows_by_fingerprint ON rows (fingerprint) WHERE fingerprint IS NOT NULL;

-- Imported digests, and ids whose tombstones were dropped: taken for ever.
CREATE TABLE digests (
  digest BLOB    PRIMARY KEY,
  id     BLOB    NOT NULL,
  seal   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE gone (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;

-- The audit trail, in the order of commits.
CREATE TABLE audit (
  place    INTEGER PRIMARY KEY,
  tenant   TEXT    NOT NULL,
  sequence INTEGER NOT NULL,
  command  TEXT    NOT NULL,
  key      BLOB,
  body     BLOB    NOT NULL,
  seal     INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX audit_of_tenant ON audit (tenant, sequence);
CREATE INDEX audit_by_command ON audit (command, tenant);
CREATE INDEX audit_by_key ON audit (key) WHERE key IS NOT NULL;

-- The reports of nodes: no part of the history.
CREATE TABLE nodes (
  node     BLOB    PRIMARY KEY,           -- 16 random bytes
  beat     INTEGER NOT NULL,              -- grows with every report
  lease    INTEGER NOT NULL,              -- in microseconds, or 2^63-1
  label    TEXT,
  epoch    BLOB,                          -- what it has applied: all three or none
  revision INTEGER,
  tag      BLOB,
  clock    INTEGER NOT NULL,              -- its own time, in microseconds
  seal     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

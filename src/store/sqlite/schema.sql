-- The store as a whole.
CREATE TABLE store (
  one         INTEGER PRIMARY KEY CHECK (one = 1),
  epoch       BLOB    NOT NULL,           -- 16 random bytes, new for each history
  floor       INTEGER NOT NULL,           -- tombstones at or below this revision were dropped
  restored_from BLOB,                     -- in a backup, and in a restored store until its recovery: the
                                          -- epoch of the store that was backed up
  seal        INTEGER NOT NULL            -- CRC-32 of the row, in every table
) STRICT;

-- One row per commit. The newest row is the head of the store.
CREATE TABLE commits (
  revision INTEGER PRIMARY KEY,
  tag      BLOB    NOT NULL,              -- 16 random bytes, chosen by the committer
  seal     INTEGER NOT NULL
) STRICT;

-- The head of each tenant.
CREATE TABLE tenants (
  tenant     TEXT    PRIMARY KEY,
  revision   INTEGER NOT NULL,            -- the tenant's last commit
  decided_at INTEGER NOT NULL,            -- the latest decision of a commit, in microseconds
  sequence   INTEGER NOT NULL,            -- the number of the newest audit entry
  hash       BLOB    NOT NULL,
  seal       INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- The rows of the feed: one per tenant, owner and key, at the place of the commit that wrote it last.
CREATE TABLE rows (
  place       INTEGER PRIMARY KEY,        -- revision * 2^20 + number within the commit
  kind        INTEGER NOT NULL,           -- 0 tenant, 1 owner, 2 key, 3 removed key
  tenant      TEXT    NOT NULL,
  name        TEXT,                       -- owners: the principal; tenants: empty
  id          BLOB,                       -- keys: 16 bytes, big endian
  class       TEXT,                       -- keys only
  ends        INTEGER,                    -- keys that are not revoked: expiry in microseconds, or 2^63-1
  legacy      INTEGER,                    -- legacy keys: 1
  fingerprint TEXT,                       -- keys only
  body        BLOB    NOT NULL,
  seal        INTEGER NOT NULL
) STRICT;
CREATE UNIQUE INDEX rows_by_name ON rows (kind, tenant, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE id IS NOT NULL;
CREATE INDEX rows_of_tenant ON rows (tenant, id) WHERE id IS NOT NULL;
CREATE INDEX rows_by_class ON rows (tenant, class, ends) WHERE ends IS NOT NULL;
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;
CREATE INDEX rows_legacy ON rows (tenant) WHERE legacy IS NOT NULL;
CREATE INDEX rows_by_fingerprint ON rows (fingerprint) WHERE fingerprint IS NOT NULL;

-- Imported digests, and the ids of removed keys whose tombstones were dropped. No new key can use them.
CREATE TABLE digests (
  digest BLOB    PRIMARY KEY,
  id     BLOB    NOT NULL,
  seal   INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE TABLE gone (id BLOB PRIMARY KEY) STRICT, WITHOUT ROWID;

-- The audit trail, in commit order.
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

-- The latest report of each node. Not part of the history.
CREATE TABLE nodes (
  node     BLOB    PRIMARY KEY,           -- 16 random bytes
  beat     INTEGER NOT NULL,              -- the number of the report, which only grows
  lease    INTEGER NOT NULL,              -- in microseconds, at most 2^63-1
  label    TEXT,
  epoch    BLOB,                          -- the last commit that the node applied; all three columns or none
  revision INTEGER,
  tag      BLOB,
  clock    INTEGER NOT NULL,              -- the node's clock, in microseconds
  seal     INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- Documents that the processes share, such as the policies in use. Not part of the history.
CREATE TABLE documents (
  name    TEXT    PRIMARY KEY,
  version INTEGER NOT NULL,               -- the number of writes, which only grows
  body    BLOB    NOT NULL,
  seal    INTEGER NOT NULL
) STRICT;

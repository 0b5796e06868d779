-- The version of these tables: one row.
CREATE TABLE schema_version (
  one     smallint PRIMARY KEY CHECK (one = 1),
  version integer  NOT NULL
);

-- The head: one row, changed by every commit and locked until it is done, so that the order of
-- revisions is the order of commits. With what is known of the store as a whole.
CREATE TABLE head (
  one         smallint PRIMARY KEY CHECK (one = 1),
  epoch       bytea    NOT NULL,          -- 16 random bytes: which history this is
  floor       bigint   NOT NULL,          -- tombstones at or below this revision were dropped
  unrecovered boolean  NOT NULL,          -- true from a restore until it is recovered
  store_seal  bigint   NOT NULL,          -- CRC-32 of the columns above, as everywhere
  revision    bigint   NOT NULL,          -- the last commit; zero if there was none
  tag         bytea    NOT NULL,          -- 16 random bytes, the committer's own
  commit_seal bigint   NOT NULL
);

-- One row a commit.
CREATE TABLE commits (
  revision bigint PRIMARY KEY,
  tag      bytea  NOT NULL,
  seal     bigint NOT NULL
);

-- Where each tenant stands.
CREATE TABLE tenants (
  tenant     text COLLATE "C" PRIMARY KEY,
  revision   bigint NOT NULL,             -- its last commit
  decided_at bigint NOT NULL,             -- the latest instant decided, in microseconds
  sequence   bigint NOT NULL,             -- its newest audit entry
  hash       bytea  NOT NULL,
  seal       bigint NOT NULL
);

-- The rows of the feed: each once, at the place of its newest commit.
CREATE TABLE rows (
  place       bigint   PRIMARY KEY,       -- revision * 2^20 + number within the commit
  kind        smallint NOT NULL,          -- 0 tenant, 1 owner, 2 key, 3 removed key
  tenant      text COLLATE "C" NOT NULL,
  name        text COLLATE "C",           -- of owners (the principal) and tenants (empty)
  id          bytea,                      -- of keys, 16 bytes, big endian
  ends        bigint,                     -- of keys not revoked: their end in microseconds, or 2^63-1
  legacy      smallint,                   -- 1, of legacy keys
  fingerprint text COLLATE "C",           -- of keys
  body        bytea    NOT NULL,
  seal        bigint   NOT NULL
);
CREATE UNIQUE INDEX rows_by_name ON rows (kind, tenant, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE id IS NOT NULL;
CREATE INDEX rows_of_tenant ON rows (tenant, id) WHERE id IS NOT NULL;
CREATE INDEX rows_by_end ON rows (tenant, ends) WHERE ends IS NOT NULL;
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;
CREATE INDEX rows_legacy ON rows (tenant) WHERE legacy IS NOT NULL;
CREATE INDEX rows_by_fingerprint ON rows (fingerprint) WHERE fingerprint IS NOT NULL;

-- Imported digests, and ids whose tombstones were dropped: taken for ever.
CREATE TABLE digests (
  digest bytea  PRIMARY KEY,
  id     bytea  NOT NULL,
  seal   bigint NOT NULL
);
CREATE TABLE gone (id bytea PRIMARY KEY);

-- The audit trail, in the order of commits.
CREATE TABLE audit (
  place    bigint PRIMARY KEY,
  tenant   text COLLATE "C" NOT NULL,
  sequence bigint NOT NULL,
  command  text COLLATE "C" NOT NULL,
  key      bytea,
  body     bytea  NOT NULL,
  seal     bigint NOT NULL
);
CREATE UNIQUE INDEX audit_of_tenant ON audit (tenant, sequence);
CREATE INDEX audit_by_command ON audit (command, tenant);
CREATE INDEX audit_by_key ON audit (key) WHERE key IS NOT NULL;

-- The reports of nodes: no part of the history.
CREATE TABLE nodes (
  node     bytea  PRIMARY KEY,            -- 16 random bytes
  beat     bigint NOT NULL,               -- grows with every report
  lease    bigint NOT NULL,               -- in microseconds, or 2^63-1
  label    text,
  epoch    bytea,                         -- what it has applied: all three or none
  revision bigint,
  tag      bytea,
  clock    bigint NOT NULL,               -- its own time, in microseconds
  seal     bigint NOT NULL
);

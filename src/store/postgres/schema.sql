-- The version of these tables, and of the oldest build that may use them: one row.
CREATE TABLE schema_version (
  one     smallint PRIMARY KEY CHECK (one = 1),
  version integer  NOT NULL,
  oldest  integer  NOT NULL
);

-- The head: one row. Every commit locks and updates this row, and keeps the lock until the transaction
-- ends. So revisions are assigned in commit order. The row also holds the state of the store as a whole.
CREATE TABLE head (
  one         smallint PRIMARY KEY CHECK (one = 1),
  epoch       bytea    NOT NULL,          -- 16 random bytes that identify the history
  floor       bigint   NOT NULL,          -- tombstones at or below this revision were dropped
  restored_from bytea,                    -- in restored tables until their recovery: the earlier epoch
  store_seal  bigint   NOT NULL,          -- CRC-32 of the columns above, like every seal
  revision    bigint   NOT NULL,          -- of the last commit; zero before the first
  tag         bytea    NOT NULL,          -- of the last commit: 16 random bytes
  commit_seal bigint   NOT NULL
);

-- One row per commit.
CREATE TABLE commits (
  revision bigint PRIMARY KEY,
  tag      bytea  NOT NULL,
  seal     bigint NOT NULL
);

-- The head of each tenant.
CREATE TABLE tenants (
  tenant     text COLLATE "C" PRIMARY KEY,
  revision   bigint NOT NULL,             -- of the tenant's last commit
  decided_at bigint NOT NULL,             -- the time of the latest decision, in microseconds
  sequence   bigint NOT NULL,             -- of the tenant's newest audit entry
  hash       bytea  NOT NULL,
  seal       bigint NOT NULL
);

-- The rows of the feed: the newest version of each tenant, owner, key and tombstone.
CREATE TABLE rows (
  place       bigint   PRIMARY KEY,       -- revision * 2^20 + index of the row in the commit
  kind        smallint NOT NULL,          -- 0 tenant, 1 owner, 2 key, 3 removed key
  tenant      text COLLATE "C" NOT NULL,
  name        text COLLATE "C",           -- the principal of an owner; empty for a tenant
  id          bytea,                      -- 16 bytes, big endian; for keys and removed keys
  class       text COLLATE "C",           -- only for keys
  ends        bigint,                     -- expiry of a key in microseconds, or 2^63-1; null if revoked
  legacy      smallint,                   -- 1 for legacy keys
  fingerprint text COLLATE "C",           -- only for keys
  body        bytea    NOT NULL,
  seal        bigint   NOT NULL
);
CREATE UNIQUE INDEX rows_by_name ON rows (kind, tenant, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX rows_by_id ON rows (id) WHERE id IS NOT NULL;
CREATE INDEX rows_of_tenant ON rows (tenant, id) WHERE id IS NOT NULL;
CREATE INDEX rows_by_class ON rows (tenant, class, ends) WHERE ends IS NOT NULL;
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;
CREATE INDEX rows_legacy ON rows (tenant) WHERE legacy IS NOT NULL;
CREATE INDEX rows_by_fingerprint ON rows (fingerprint) WHERE fingerprint IS NOT NULL;

-- Imported digests, and ids of removed keys whose tombstones were dropped. Neither can be used again.
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

-- The reports of nodes. Reports are not commits, and do not appear in the feed.
CREATE TABLE nodes (
  node     bytea  PRIMARY KEY,            -- 16 random bytes
  beat     bigint NOT NULL,               -- increases with every report
  lease    bigint NOT NULL,               -- in microseconds, or 2^63-1
  label    text,
  epoch    bytea,                         -- the applied position: all three columns or none
  revision bigint,
  tag      bytea,
  clock    bigint NOT NULL,               -- the time of the node's clock, in microseconds
  seal     bigint NOT NULL,
  process  text                           -- a seal of its own and JSON; null in a report of an earlier build
);

-- Documents that the nodes share, such as the policies in use. Documents are not commits, and do not appear in
-- the feed.
CREATE TABLE documents (
  name    text COLLATE "C" PRIMARY KEY,
  version bigint NOT NULL,                -- the number of writes, which only increases
  body    bytea  NOT NULL,
  seal    bigint NOT NULL
);

-- The uses of each key on each day in UTC.
CREATE TABLE usage_days (
  key    bytea  NOT NULL,                 -- 16 bytes, big endian
  day    bigint NOT NULL,                 -- the number of days since 1970-01-01
  counts bytea  NOT NULL,                 -- by outcome and hour, in a packed form
  seal   bigint NOT NULL,
  PRIMARY KEY (key, day)
);
CREATE INDEX usage_days_by_day ON usage_days (day);

-- The first and the last use of each key that was accepted at least once.
CREATE TABLE usage_keys (
  key       bytea  PRIMARY KEY,
  tenant    text COLLATE "C" NOT NULL,
  first_day bigint NOT NULL,
  last_day  bigint NOT NULL,              -- the day of last_at
  last_at   bigint NOT NULL,              -- in microseconds
  seal      bigint NOT NULL
);
CREATE INDEX usage_keys_by_last_day ON usage_keys (tenant, last_day, key);

-- The processes that count uses, each from its start to its end.
CREATE TABLE usage_boots (
  boot       bytea  PRIMARY KEY,          -- 16 random bytes
  node       bytea,                       -- null without a registry
  opened_at  bigint NOT NULL,
  sequence   bigint NOT NULL,             -- of the last batch; zero before the first
  sent_until bigint NOT NULL,             -- the time until which the batches contain every use
  closed_at  bigint,                      -- null while the boot is open
  seal       bigint NOT NULL
);

-- The periods of which uses may be missing.
CREATE TABLE usage_gaps (
  since bigint NOT NULL,
  until bigint NOT NULL,
  boot  bytea  NOT NULL,                  -- empty if the gap is of no single boot
  seal  bigint NOT NULL,
  PRIMARY KEY (since, until, boot)
);

-- The head of the counted uses: no row before the first boot, then one.
CREATE TABLE usage_head (
  one           smallint PRIMARY KEY CHECK (one = 1),
  history       bytea    NOT NULL,        -- the epoch of the keys whose uses are counted
  counted_since bigint   NOT NULL,
  seal          bigint   NOT NULL
);

-- What nodes say of themselves: no part of the history.
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

-- Keys of all tenants by their end, revoked ones left out: what expires next in the whole store.
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;

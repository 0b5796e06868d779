-- Keys of all tenants by their end, revoked ones left out: what expires next in the whole store.
CREATE INDEX rows_by_end_of_all ON rows (ends, id) WHERE ends IS NOT NULL;

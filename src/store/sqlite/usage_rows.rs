//! The statements on single rows of the usage file. The PostgreSQL store writes and reads many rows with one statement.

/// Selects the counts of the key `$1` from the day `$2` to the day `$3`, inclusive, for `read_day`.
pub(super) const DAYS_OF_KEY: &str = "SELECT key, day, counts, seal FROM $s.usage_days \
     WHERE key = $1 AND day BETWEEN $2 AND $3 ORDER BY day";

/// Writes the `day_columns` of a row.
pub(super) const PUT_DAY: &str = "INSERT INTO $s.usage_days (key, day, counts, seal) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (key, day) DO UPDATE SET counts = excluded.counts, seal = excluded.seal";

/// Deletes at most `$2` rows of days before the day `$1`, the oldest first.
pub(super) const PRUNE_DAYS: &str = "DELETE FROM $s.usage_days WHERE (key, day) IN \
     (SELECT key, day FROM $s.usage_days WHERE day < $1 ORDER BY day LIMIT $2)";

/// Selects the row of the key `$1`, for `read_last_use`.
pub(super) const LAST_USE_OF_KEY: &str =
    "SELECT key, tenant, first_day, last_day, last_at, seal FROM $s.usage_keys WHERE key = $1";

/// Writes the `last_use_columns` of a row.
pub(super) const PUT_LAST_USE: &str = "INSERT INTO $s.usage_keys (key, tenant, first_day, last_day, last_at, seal) \
     VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT (key) DO UPDATE SET tenant = excluded.tenant, \
     first_day = excluded.first_day, last_day = excluded.last_day, last_at = excluded.last_at, seal = excluded.seal";

/// The statements that delete everything about the key `$1`.
pub(super) const FORGET_KEY: [&str; 2] = [
    "DELETE FROM $s.usage_days WHERE key = $1",
    "DELETE FROM $s.usage_keys WHERE key = $1",
];

/// Writes the `boot_columns` of a row.
pub(super) const PUT_BOOT: &str = "INSERT INTO $s.usage_boots \
     (boot, node, opened_at, sequence, sent_until, closed_at, seal) VALUES ($1, $2, $3, $4, $5, $6, $7) \
     ON CONFLICT (boot) DO UPDATE SET node = excluded.node, opened_at = excluded.opened_at, \
     sequence = excluded.sequence, sent_until = excluded.sent_until, closed_at = excluded.closed_at, \
     seal = excluded.seal";

/// Deletes the boot `$1`.
pub(super) const REMOVE_BOOT: &str = "DELETE FROM $s.usage_boots WHERE boot = $1";

/// Writes the `gap_columns` of a row.
pub(super) const PUT_GAP: &str = "INSERT INTO $s.usage_gaps (since, until, boot, seal) VALUES ($1, $2, $3, $4) \
     ON CONFLICT (since, until, boot) DO UPDATE SET seal = excluded.seal";

/// Deletes the gap from `$1` to `$2` of the boot `$3`.
pub(super) const REMOVE_GAP: &str =
    "DELETE FROM $s.usage_gaps WHERE since = $1 AND until = $2 AND boot = $3";

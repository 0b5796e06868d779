//! The tables of a usage store: their columns, their decoding, and the statements that both SQL stores run.
//!
//! - `usage_days(key, day, counts, seal)`: the counts of a key on a day. Primary key `(key, day)`, and an index on
//!   `day` for pruning.
//! - `usage_keys(key, tenant, first_day, last_day, last_at, seal)`: the first and the last use of a key. Primary key
//!   `key`, and an index on `(tenant, last_day, key)` for [`by_last_use`].
//! - `usage_boots(boot, node, opened_at, sequence, sent_until, closed_at, seal)`: the boots. `node` and `closed_at` may
//!   be null.
//! - `usage_gaps(since, until, boot, seal)`: the gaps. Primary key `(since, until, boot)`. `boot` is empty if a gap is
//!   of no single boot.
//! - `usage_head(one, history, counted_since, seal)`: one row at most, whose `one` is 1.
//!
//! Each seal covers every other column of its row.

use std::collections::BTreeSet;

use super::cells::{Cells, is_damaged};
use super::seal::Seal;
use super::{Cell, RowFault, Sql, id_bytes, signed};
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::usage::day::{Day, DayCounts, DayError};
use crate::store::usage::{
    Boot, BootId, KeyDay, LastUse, LastUseQuery, UsageGap, UsageLedger, UsagePruning,
};
use crate::store::{Epoch, NodeId};

/// Selects all boots in the order of their ids, for [`read_boot`].
pub(in crate::store) const BOOTS: &str = "SELECT boot, node, opened_at, sequence, sent_until, closed_at, seal \
     FROM $s.usage_boots ORDER BY boot";

/// Selects the boot `$1`, for [`read_boot`].
pub(in crate::store) const BOOT: &str = "SELECT boot, node, opened_at, sequence, sent_until, closed_at, seal \
     FROM $s.usage_boots WHERE boot = $1";

/// Selects all gaps in their order, for [`read_gap`].
pub(in crate::store) const GAPS: &str =
    "SELECT since, until, boot, seal FROM $s.usage_gaps ORDER BY since, until, boot";

/// Selects the head, for [`read_usage_head`].
pub(in crate::store) const USAGE_HEAD: &str =
    "SELECT history, counted_since, seal FROM $s.usage_head WHERE one = 1";

/// Writes the [`usage_head_columns`].
pub(in crate::store) const PUT_USAGE_HEAD: &str = "INSERT INTO $s.usage_head (one, history, counted_since, seal) \
     VALUES (1, $1, $2, $3) ON CONFLICT (one) DO UPDATE SET history = excluded.history, \
     counted_since = excluded.counted_since, seal = excluded.seal";

/// The columns of a row of `usage_days`.
pub(in crate::store) type DayColumns = ([u8; 16], i64, Vec<u8>, i64);

/// Returns the columns to write for the counts of a day, with the seal last.
pub(in crate::store) fn day_columns(key: KeyId, day: Day, counts: &DayCounts) -> DayColumns {
    let (key, day, counts) = (id_bytes(key), i64::from(day.number()), counts.to_bytes());
    let seal = day_seal(key, day, &counts);
    (key, day, counts, seal)
}

fn day_seal(key: [u8; 16], day: i64, counts: &[u8]) -> i64 {
    Seal::default().bytes(key).number(day).bytes(counts).end()
}

/// Decodes a row of the columns `key`, `day`, `counts` and `seal`.
pub(in crate::store) fn read_day(row: &impl Cells) -> Result<KeyDay, RowFault> {
    let what = "the key of counted uses";
    let key = row.exactly(0, what)?;
    let id = KeyId::from_u128(u128::from_be_bytes(key));
    let number = row.number(1, &format!("the day of counted uses of key {id}"))?;
    let day = day_of(number);
    let what = match day {
        Some(day) => format!("the counts of key {id} on {day}"),
        None => format!("the counts of key {id} on day {number}"),
    };
    let counts = row.bytes(2, &what)?;
    if row.number(3, &what)? != day_seal(key, number, counts) {
        return Err(is_damaged(&what));
    }
    let counts = DayCounts::from_bytes(counts).map_err(|error| match error {
        DayError::Version { .. } => RowFault::Refused(
            "the counts of a day have the version of a later build: upgrade this node",
        ),
        DayError::Damaged { .. } => is_damaged(&what),
    })?;
    let day = day.ok_or_else(|| is_damaged(&what))?;
    Ok(KeyDay {
        key: id,
        day,
        counts,
    })
}

fn day_of(number: i64) -> Option<Day> {
    u32::try_from(number).ok().and_then(Day::from_number)
}

/// The columns of a row of `usage_keys`.
pub(in crate::store) type LastUseColumns<'t> = ([u8; 16], &'t str, i64, i64, i64, i64);

/// Returns the columns to write for the uses of a key, with the seal last.
pub(in crate::store) fn last_use_columns(
    key: KeyId,
    tenant: &TenantId,
    uses: LastUse,
) -> LastUseColumns<'_> {
    let (key, tenant) = (id_bytes(key), tenant.as_str());
    let first_day = i64::from(uses.first_day.number());
    let last_day = i64::from(Day::of(uses.at).number());
    let last_at = uses.at.as_micros();
    let seal = last_use_seal(key, tenant, first_day, last_day, last_at);
    (key, tenant, first_day, last_day, last_at, seal)
}

fn last_use_seal(key: [u8; 16], tenant: &str, first_day: i64, last_day: i64, last_at: i64) -> i64 {
    let seal = Seal::default().bytes(key).bytes(tenant);
    seal.number(first_day)
        .number(last_day)
        .number(last_at)
        .end()
}

/// Decodes a row of the columns that [`by_last_use`] selects.
pub(in crate::store) fn read_last_use(row: &impl Cells) -> Result<(KeyId, LastUse), RowFault> {
    let key = row.exactly(0, "the key of a last use")?;
    let id = KeyId::from_u128(u128::from_be_bytes(key));
    let what = format!("the last use of key {id}");
    let tenant = row.text(1, &what)?;
    let (first_day, last_day) = (row.number(2, &what)?, row.number(3, &what)?);
    let last_at = row.number(4, &what)?;
    if row.number(5, &what)? != last_use_seal(key, tenant, first_day, last_day, last_at) {
        return Err(is_damaged(&what));
    }
    let uses = LastUse {
        first_day: day_of(first_day).ok_or_else(|| is_damaged(&what))?,
        at: Timestamp::from_micros(last_at).map_err(|_| is_damaged(&what))?,
    };
    match day_of(last_day) == Some(Day::of(uses.at)) {
        true => Ok((id, uses)),
        false => Err(is_damaged(&what)),
    }
}

/// Selects the rows of a [`LastUseQuery`], in its order.
///
/// The index `(tenant, last_day, key)` holds the rows of a page in one range. One condition compares the day and the
/// key, so that the index scan starts where the last page ended.
pub(in crate::store) fn by_last_use(query: &LastUseQuery) -> Sql {
    let columns = "key, tenant, first_day, last_day, last_at, seal";
    let mut sql = Sql::select(columns, "usage_keys", "1 = 1");
    sql.and("tenant =", query.tenant.as_str());
    let day = |day: Day| i64::from(day.number());
    let after = (query.after).map(|(last, key)| (day(last), id_bytes(key).to_vec()));
    // An empty key is before the first key of a day.
    let beyond = match query.newest_first {
        false => {
            sql.and("last_day <=", day(query.to));
            let start = (day(query.from), Vec::new());
            (">", after.map_or(start.clone(), |after| after.max(start)))
        }
        true => {
            sql.and("last_day >=", day(query.from));
            let start = (day(query.to) + 1, Vec::new());
            ("<", after.map_or(start.clone(), |after| after.min(start)))
        }
    };
    let (than, (last, key)) = beyond;
    let (last, key) = (sql.bind(last), sql.bind(key));
    let order = match query.newest_first {
        false => "last_day, key",
        true => "last_day DESC, key DESC",
    };
    sql.text += &format!(" AND (last_day, key) {than} ({last}, {key}) ORDER BY {order}");
    sql.limit(query.limit.get());
    sql
}

/// The columns of a row of `usage_boots`.
pub(in crate::store) type BootColumns =
    ([u8; 16], Option<[u8; 16]>, i64, i64, i64, Option<i64>, i64);

/// Returns the columns to write for a boot, with the seal last.
pub(in crate::store) fn boot_columns(boot: &Boot) -> Result<BootColumns, RowFault> {
    let id = boot.id.to_u128().to_be_bytes();
    let node = boot.node.map(|node| node.to_u128().to_be_bytes());
    let (opened_at, sequence) = (boot.opened_at.as_micros(), signed(boot.sequence)?);
    let sent_until = boot.sent_until.as_micros();
    let closed_at = boot.closed_at.map(Timestamp::as_micros);
    let seal = Seal::default().bytes(id).maybe(node);
    let seal = seal.number(opened_at).number(sequence).number(sent_until);
    // No instant is negative.
    let seal = seal.number(closed_at.unwrap_or(-1)).end();
    Ok((id, node, opened_at, sequence, sent_until, closed_at, seal))
}

/// Decodes a row of [`BOOTS`] or [`BOOT`].
pub(in crate::store) fn read_boot(row: &impl Cells) -> Result<Boot, RowFault> {
    let id = row.exactly(0, "the id of a boot")?;
    let id = BootId::from_u128(u128::from_be_bytes(id));
    let what = format!("boot {id}");
    let at = |column| {
        let micros = row.number(column, &what)?;
        Timestamp::from_micros(micros).map_err(|_| is_damaged(&what))
    };
    let node = row.exactly_or_null(1, &what)?;
    let sequence = row.number(3, &what)?;
    let boot = Boot {
        id,
        node: node.map(|node| NodeId::from_u128(u128::from_be_bytes(node))),
        opened_at: at(2)?,
        sequence: u64::try_from(sequence).map_err(|_| is_damaged(&what))?,
        sent_until: at(4)?,
        closed_at: match row.cell(5) {
            Cell::Null => None,
            _ => Some(at(5)?),
        },
    };
    let (.., seal) = boot_columns(&boot)?;
    match row.number(6, &what)? == seal {
        true => Ok(boot),
        false => Err(is_damaged(&what)),
    }
}

/// The columns of a row of `usage_gaps`.
pub(in crate::store) type GapColumns = (i64, i64, Vec<u8>, i64);

/// Returns the columns to write for a gap, with the seal last.
pub(in crate::store) fn gap_columns(gap: &UsageGap) -> GapColumns {
    let (since, until) = (gap.from.as_micros(), gap.until.as_micros());
    let boot = gap.boot.map(|boot| boot.to_u128().to_be_bytes().to_vec());
    let boot = boot.unwrap_or_default();
    let seal = Seal::default().number(since).number(until).bytes(&boot);
    (since, until, boot, seal.end())
}

/// Decodes a row of [`GAPS`].
pub(in crate::store) fn read_gap(row: &impl Cells) -> Result<UsageGap, RowFault> {
    let what = "a gap in the counted uses";
    let at = |column| {
        let micros = row.number(column, what)?;
        Timestamp::from_micros(micros).map_err(|_| is_damaged(what))
    };
    let gap = UsageGap {
        from: at(0)?,
        until: at(1)?,
        boot: match row.bytes(2, what)? {
            [] => None,
            _ => Some(BootId::from_u128(u128::from_be_bytes(
                row.exactly(2, what)?,
            ))),
        },
    };
    let (.., seal) = gap_columns(&gap);
    match row.number(3, what)? == seal {
        true => Ok(gap),
        false => Err(is_damaged(what)),
    }
}

/// The columns of the row of `usage_head`, without `one`.
pub(in crate::store) type UsageHeadColumns = ([u8; 16], i64, i64);

/// Returns the columns to write for the head of the ledger, with the seal last.
pub(in crate::store) fn usage_head_columns(
    history: Epoch,
    counted_since: Timestamp,
) -> UsageHeadColumns {
    let (history, since) = (history.0.to_be_bytes(), counted_since.as_micros());
    let seal = Seal::default().number(1).bytes(history).number(since).end();
    (history, since, seal)
}

/// Decodes a row of [`USAGE_HEAD`].
pub(in crate::store) fn read_usage_head(row: &impl Cells) -> Result<(Epoch, Timestamp), RowFault> {
    let what = "the head of the counted uses";
    let history = Epoch(u128::from_be_bytes(row.exactly(0, what)?));
    let since = Timestamp::from_micros(row.number(1, what)?).map_err(|_| is_damaged(what))?;
    let (.., seal) = usage_head_columns(history, since);
    match row.number(2, what)? == seal {
        true => Ok((history, since)),
        false => Err(is_damaged(what)),
    }
}

/// The rows of a ledger that [`UsageLedger::prune`] changes.
#[derive(Debug)]
pub(in crate::store) struct LedgerPruning {
    /// The head to write. `None` if it stays.
    pub(in crate::store) head: Option<(Epoch, Timestamp)>,
    /// The boots to delete.
    pub(in crate::store) boots: Vec<Boot>,
    /// The gaps to delete.
    pub(in crate::store) gaps: Vec<UsageGap>,
}

impl LedgerPruning {
    /// Prunes a ledger, and returns the rows that change.
    pub(in crate::store) fn of(ledger: UsageLedger, pruning: &UsagePruning) -> Self {
        let mut pruned = ledger.clone();
        pruned.prune(pruning.before.start(), pruning.closed_before);
        let is_new_head = pruned.counted_since != ledger.counted_since;
        let head = pruned.history.zip(pruned.counted_since);
        let (mut boots, mut gaps) = (ledger.boots, ledger.gaps);
        let kept_boots: BTreeSet<_> = pruned.boots.iter().map(|boot| boot.id).collect();
        let kept_gaps: BTreeSet<_> = pruned.gaps.iter().collect();
        boots.retain(|boot| !kept_boots.contains(&boot.id));
        gaps.retain(|gap| !kept_gaps.contains(gap));
        Self {
            head: head.filter(|_| is_new_head),
            boots,
            gaps,
        }
    }
}

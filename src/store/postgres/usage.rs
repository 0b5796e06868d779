//! The uses of keys, stored in the tables `usage_days`, `usage_keys`, `usage_boots`, `usage_gaps` and `usage_head`.
//!
//! Writers take their locks in one order, which prevents deadlocks:
//!
//! 1. the row of the table `usage_head`, for all changes of the ledger except batches
//! 2. rows of boots, by id
//! 3. new rows of days, by key and day, and then new last uses, by key
//! 4. existing rows of days, and then existing last uses, in the same order
//!
//! A transaction waits for a new row of another one until the other one ends, as for a lock. Only a row that was removed
//! and inserted again meanwhile breaks the order. The server then rolls one transaction back, which is repeated.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::{BoxFuture, FutureExt};
use tokio_postgres::Row;

use super::PostgresStore;
use super::fault::PostgresFault;
use super::session::{Bundle, OwnedParam, Session, SessionMode, TimeLimit, array, within};
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::core::time::Timestamp;
use crate::core::usage::day::{Day, DayCounts};
use crate::observe::WithSources;
use crate::store::sql::{
    BOOT, BOOTS, Cells, GAPS, LedgerPruning, PUT_USAGE_HEAD, USAGE_HEAD, boot_columns, by_last_use,
    day_columns, gap_columns, id_bytes, last_use_columns, read_boot, read_day, read_gap,
    read_last_use, read_usage_head, usage_head_columns,
};
use crate::store::usage::{
    Boot, BootClosing, BootId, BootOpening, KeyDay, KeyUses, LastUse, LastUseQuery, LedgerChange,
    UsageBatch, UsageError, UsageGap, UsageLedger, UsagePruning, UsageStore,
};
use crate::store::{Epoch, StoreError};

/// 8 attempts to write, as for commits. The server may roll a transaction back because of a concurrent one. Each attempt
/// starts after the other transaction has ended.
const ATTEMPTS: usize = 8;

/// Inserts rows of days. Returns those that did not exist, which are the inserted ones.
const INSERT_DAYS: &str = "INSERT INTO $s.usage_days (key, day, counts, seal) \
     SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bigint[]) AS n (key, day, counts, seal) \
     ORDER BY key, day ON CONFLICT DO NOTHING RETURNING key, day";

/// Locks rows of days in the order of the arrays, and selects them.
///
/// Without the subquery, the server may read the whole table, and lock in another order.
const LOCK_DAYS: &str = "SELECT d.key, d.day, d.counts, d.seal \
     FROM unnest($1::bytea[], $2::bigint[]) AS n (of_key, of_day) CROSS JOIN LATERAL \
     (SELECT key, day, counts, seal FROM $s.usage_days WHERE key = of_key AND day = of_day FOR UPDATE) AS d";

/// Replaces locked rows of days. An insert finds each row through the primary key, whatever the server plans.
const PUT_DAYS: &str = "INSERT INTO $s.usage_days (key, day, counts, seal) \
     SELECT * FROM unnest($1::bytea[], $2::bigint[], $3::bytea[], $4::bigint[]) \
     ON CONFLICT (key, day) DO UPDATE SET counts = excluded.counts, seal = excluded.seal";

/// Inserts last uses. Returns the keys without one before.
const INSERT_LAST_USES: &str = "INSERT INTO $s.usage_keys (key, tenant, first_day, last_day, last_at, seal) \
     SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
     AS n (key, tenant, first_day, last_day, last_at, seal) ORDER BY key ON CONFLICT DO NOTHING RETURNING key";

/// Locks last uses in the order of the array, and selects them.
const LOCK_LAST_USES: &str = "SELECT k.key, k.tenant, k.first_day, k.last_day, k.last_at, k.seal \
     FROM unnest($1::bytea[]) AS n (of_key) CROSS JOIN LATERAL \
     (SELECT key, tenant, first_day, last_day, last_at, seal FROM $s.usage_keys \
     WHERE key = of_key FOR UPDATE) AS k";

/// Replaces locked last uses.
const PUT_LAST_USES: &str = "INSERT INTO $s.usage_keys (key, tenant, first_day, last_day, last_at, seal) \
     SELECT * FROM unnest($1::bytea[], $2::text[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[]) \
     ON CONFLICT (key) DO UPDATE SET tenant = excluded.tenant, first_day = excluded.first_day, \
     last_day = excluded.last_day, last_at = excluded.last_at, seal = excluded.seal";

/// Inserts new boots, and replaces locked ones.
const PUT_BOOTS: &str = "INSERT INTO $s.usage_boots \
     (boot, node, opened_at, sequence, sent_until, closed_at, seal) \
     SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::bigint[], \
     $7::bigint[]) ON CONFLICT (boot) DO UPDATE SET node = excluded.node, opened_at = excluded.opened_at, \
     sequence = excluded.sequence, sent_until = excluded.sent_until, closed_at = excluded.closed_at, \
     seal = excluded.seal";

impl PostgresStore {
    /// Runs `steps` in a transaction that writes. Repeats the transaction if the server rolled it back because of a
    /// concurrent one.
    async fn write_usage<T, F>(
        &self,
        time_limit: TimeLimit,
        doing: &'static str,
        steps: F,
    ) -> Result<T, StoreError>
    where
        T: Send + 'static,
        F: for<'s> Fn(&'s Session) -> BoxFuture<'s, Result<T, PostgresFault>>
            + Send
            + Sync
            + 'static,
    {
        let turn = self.inner.counting.clone().lock_owned().await;
        let database = self.inner.database.clone();
        let run = async move {
            let _turn = turn;
            let mut attempts = 1;
            loop {
                match within(&database, SessionMode::Write, time_limit, &steps).await {
                    Err(fault) if fault.is_contention() && attempts < ATTEMPTS => {
                        tracing::debug!(error = %WithSources(&fault), doing, "trying again");
                        attempts += 1;
                    }
                    done => return done,
                }
            }
        };
        let late = PostgresFault::Unknown(Box::new(PostgresFault::Late));
        self.work(doing, time_limit, late, run).await
    }
}

#[async_trait]
impl UsageStore for PostgresStore {
    async fn open_boot(&self, opening: BootOpening) -> Result<(), StoreError> {
        self.write_usage(TimeLimit::Short, "opening a boot", move |session| {
            async move {
                let first = (opening.history, opening.at);
                let decide = |ledger: &UsageLedger| ledger.open(&opening);
                change_ledger(session, Some(first), decide).await.map(drop)
            }
            .boxed()
        })
        .await
    }

    async fn add(&self, mut batch: UsageBatch) -> Result<(), UsageError> {
        let rows = UsageRows::of(std::mem::take(&mut batch.uses));
        let batch = Arc::new((batch, rows));
        self.write_usage(TimeLimit::Long, "adding counted uses", move |session| {
            let batch = batch.clone();
            async move {
                let (batch, rows) = &*batch;
                add(session, batch, rows.clone()).await
            }
            .boxed()
        })
        .await?
    }

    async fn close_boot(&self, closing: BootClosing) -> Result<bool, StoreError> {
        self.write_usage(TimeLimit::Short, "closing a boot", move |session| {
            async move { change_ledger(session, None, |ledger| ledger.close(&closing)).await }
                .boxed()
        })
        .await
    }

    async fn ledger(&self) -> Result<UsageLedger, StoreError> {
        self.within(
            SessionMode::Read,
            TimeLimit::Short,
            "reading the ledger of counted uses",
            |session| read_ledger(session).boxed(),
        )
        .await
    }

    async fn days(&self, keys: &[KeyId], from: Day, to: Day) -> Result<Vec<KeyDay>, StoreError> {
        let keys = sorted(keys);
        let doing = "reading counted uses";
        self.within(SessionMode::Read, TimeLimit::Long, doing, move |session| {
            async move { days(session, &keys, from, to).await }.boxed()
        })
        .await
    }

    async fn last_uses(&self, keys: &[KeyId]) -> Result<BTreeMap<KeyId, LastUse>, StoreError> {
        let keys = sorted(keys);
        let doing = "reading last uses";
        self.within(SessionMode::Read, TimeLimit::Long, doing, move |session| {
            async move { last_uses(session, &keys).await }.boxed()
        })
        .await
    }

    async fn by_last_use(&self, query: &LastUseQuery) -> Result<Vec<(KeyId, LastUse)>, StoreError> {
        let sql = by_last_use(query);
        let doing = "listing keys by their last use";
        self.within(SessionMode::Read, TimeLimit::Long, doing, move |session| {
            async move {
                let found = session.query_of(&sql).await?;
                found.iter().map(|row| Ok(read_last_use(row)?)).collect()
            }
            .boxed()
        })
        .await
    }

    async fn prune(&self, pruning: UsagePruning) -> Result<usize, StoreError> {
        self.write_usage(TimeLimit::Long, "removing old counts", move |session| {
            async move { prune(session, &pruning).await }.boxed()
        })
        .await
    }

    async fn forget_keys(&self, keys: &[KeyId]) -> Result<(), StoreError> {
        let keys = Arc::new(sorted(keys));
        let doing = "removing the uses of keys";
        self.write_usage(TimeLimit::Long, doing, move |session| {
            let keys = keys.clone();
            async move { forget(session, &keys).await }.boxed()
        })
        .await
    }
}

/// Returns the bytes of ids in ascending order, each once.
fn sorted(keys: &[KeyId]) -> Vec<[u8; 16]> {
    let keys: BTreeSet<_> = keys.iter().map(|key| id_bytes(*key)).collect();
    keys.into_iter().collect()
}

fn slices(keys: &[[u8; 16]]) -> Vec<&[u8]> {
    keys.iter().map(|key| &key[..]).collect()
}

/// Rows of days and last uses, in the order in which they are locked.
#[derive(Clone, Default)]
struct UsageRows {
    days: BTreeMap<(KeyId, Day), DayCounts>,
    last_uses: BTreeMap<KeyId, (TenantId, LastUse)>,
}

impl UsageRows {
    fn of(uses: Vec<KeyUses>) -> Self {
        let mut rows = Self::default();
        for uses in uses {
            let first_day = uses.day;
            if uses.counts.total() > 0 {
                let counts = rows.days.entry((uses.key, first_day)).or_default();
                counts.merge(&uses.counts);
            }
            if let Some(at) = uses.last {
                let new = LastUse { first_day, at };
                let own = rows.last_uses.entry(uses.key);
                let (_, own) = own.or_insert((uses.tenant, new));
                *own = own.merged(new);
            }
        }
        rows
    }

    fn is_empty(&self) -> bool {
        self.days.is_empty() && self.last_uses.is_empty()
    }
}

/// Adds the rows of a batch, unless the rules of its boot refuse the batch. The caller commits the session.
async fn add(
    session: &Session,
    batch: &UsageBatch,
    rows: UsageRows,
) -> Result<Result<(), UsageError>, PostgresFault> {
    let id = batch.boot.to_u128().to_be_bytes();
    let sql = format!("{BOOT} FOR UPDATE");
    let found = session.query(&sql, &[&&id[..]]).await?;
    let Some(boot) = found.first().map(read_boot).transpose()? else {
        return Ok(Err(UsageError::UnknownBoot { boot: batch.boot }));
    };
    let next = match boot.admit(batch) {
        Ok(Some(next)) => next,
        Ok(None) => return Ok(Ok(())),
        Err(refused) => return Ok(Err(refused)),
    };
    let sums = insert_or_merge(session, rows).await?;
    let mut bundle = Bundle::default();
    put_boots(&mut bundle, &[next])?;
    put_days(&mut bundle, PUT_DAYS, &sums);
    put_last_uses(&mut bundle, PUT_LAST_USES, &sums);
    session.run(&bundle).await?;
    Ok(Ok(()))
}

/// Inserts the rows that do not exist. Locks the others, and returns the sums to write into them.
async fn insert_or_merge(
    session: &Session,
    mut rows: UsageRows,
) -> Result<UsageRows, PostgresFault> {
    let mut sums = UsageRows::default();
    // A row that prevents an insert can be removed before it is locked. The next round then inserts it.
    for _ in 0..ATTEMPTS {
        let mut bundle = Bundle::default();
        let days = put_days(&mut bundle, INSERT_DAYS, &rows);
        let last_uses = put_last_uses(&mut bundle, INSERT_LAST_USES, &rows);
        let inserted = session.run(&bundle).await?;
        for row in rows_of(&inserted, days) {
            rows.days.remove(&day_key(row)?);
        }
        for row in rows_of(&inserted, last_uses) {
            rows.last_uses.remove(&key_of(row)?);
        }
        if !rows.is_empty() {
            merge_locked(session, &mut rows, &mut sums).await?;
        }
        if rows.is_empty() {
            return Ok(sums);
        }
    }
    Err(PostgresFault::Refused(
        "the counts of these keys were removed concurrently",
    ))
}

/// Locks those of the rows that exist, and moves them to `sums`, added to what is stored.
async fn merge_locked(
    session: &Session,
    rows: &mut UsageRows,
    sums: &mut UsageRows,
) -> Result<(), PostgresFault> {
    let mut bundle = Bundle::default();
    let days = lock_days(&mut bundle, rows.days.keys());
    let last_uses = (!rows.last_uses.is_empty()).then(|| {
        let keys = rows.last_uses.keys().map(|key| id_bytes(*key).to_vec());
        bundle.add(LOCK_LAST_USES, vec![array(keys)])
    });
    let locked = session.run(&bundle).await?;
    for row in rows_of(&locked, days) {
        let KeyDay { key, day, counts } = read_day(row)?;
        if let Some(mut own) = rows.days.remove(&(key, day)) {
            own.merge(&counts);
            sums.days.insert((key, day), own);
        }
    }
    for row in rows_of(&locked, last_uses) {
        let (key, before) = read_last_use(row)?;
        if let Some((tenant, own)) = rows.last_uses.remove(&key) {
            let is_same_tenant = row.text(1, "the tenant of a key")? == tenant.as_str();
            let own = own.merged(before);
            if own != before || !is_same_tenant {
                sums.last_uses.insert(key, (tenant, own));
            }
        }
    }
    Ok(())
}

/// Returns the rows of a statement that a bundle may lack.
fn rows_of(found: &[Vec<Row>], place: Option<usize>) -> &[Row] {
    let rows = place.and_then(|place| found.get(place));
    rows.map(Vec::as_slice).unwrap_or_default()
}

fn key_of(row: &Row) -> Result<KeyId, PostgresFault> {
    let key = row.exactly(0, "the key of counted uses")?;
    Ok(KeyId::from_u128(u128::from_be_bytes(key)))
}

fn day_key(row: &Row) -> Result<(KeyId, Day), PostgresFault> {
    let key = key_of(row)?;
    let number = row.number(1, "the day of counted uses")?;
    let day = u32::try_from(number).ok().and_then(Day::from_number);
    let day = day.ok_or_else(|| PostgresFault::corrupt("the day of counted uses is damaged"))?;
    Ok((key, day))
}

fn put_days(bundle: &mut Bundle, sql: &str, rows: &UsageRows) -> Option<usize> {
    let columns = rows.days.iter();
    let columns = columns.map(|((key, day), counts)| day_columns(*key, *day, counts));
    let columns: Vec<_> = columns.collect();
    (!columns.is_empty()).then(|| {
        bundle.add(
            sql,
            vec![
                array(columns.iter().map(|(key, ..)| key.to_vec())),
                array(columns.iter().map(|(_, day, ..)| *day)),
                array(columns.iter().map(|(_, _, counts, _)| counts.clone())),
                array(columns.iter().map(|(.., seal)| *seal)),
            ],
        )
    })
}

fn lock_days<'a>(
    bundle: &mut Bundle,
    days: impl ExactSizeIterator<Item = &'a (KeyId, Day)> + Clone,
) -> Option<usize> {
    (days.len() > 0).then(|| bundle.add(LOCK_DAYS, day_params(days)))
}

/// Returns the array of keys and the array of days.
fn day_params<'a>(days: impl Iterator<Item = &'a (KeyId, Day)> + Clone) -> Vec<OwnedParam> {
    vec![
        array(days.clone().map(|(key, _)| id_bytes(*key).to_vec())),
        array(days.map(|(_, day)| i64::from(day.number()))),
    ]
}

fn put_last_uses(bundle: &mut Bundle, sql: &str, rows: &UsageRows) -> Option<usize> {
    let columns = rows.last_uses.iter();
    let columns = columns.map(|(key, (tenant, own))| last_use_columns(*key, tenant, *own));
    let columns: Vec<_> = columns.collect();
    (!columns.is_empty()).then(|| {
        bundle.add(
            sql,
            vec![
                array(columns.iter().map(|(key, ..)| key.to_vec())),
                array(columns.iter().map(|(_, tenant, ..)| (*tenant).to_owned())),
                array(columns.iter().map(|(_, _, first, ..)| *first)),
                array(columns.iter().map(|(_, _, _, last, ..)| *last)),
                array(columns.iter().map(|(.., at, _)| *at)),
                array(columns.iter().map(|(.., seal)| *seal)),
            ],
        )
    })
}

fn put_boots(bundle: &mut Bundle, boots: &[Boot]) -> Result<(), PostgresFault> {
    let columns: Result<Vec<_>, _> = boots.iter().map(boot_columns).collect();
    let columns = columns?;
    bundle.add(
        PUT_BOOTS,
        vec![
            array(columns.iter().map(|(boot, ..)| boot.to_vec())),
            array(
                columns
                    .iter()
                    .map(|(_, node, ..)| node.map(|node| node.to_vec())),
            ),
            array(columns.iter().map(|(_, _, opened_at, ..)| *opened_at)),
            array(columns.iter().map(|(_, _, _, sequence, ..)| *sequence)),
            array(
                columns
                    .iter()
                    .map(|(_, _, _, _, sent_until, ..)| *sent_until),
            ),
            array(columns.iter().map(|(.., closed_at, _)| *closed_at)),
            array(columns.iter().map(|(.., seal)| *seal)),
        ],
    );
    Ok(())
}

fn put_gaps(bundle: &mut Bundle, gaps: &[UsageGap]) {
    let columns: Vec<_> = gaps.iter().map(gap_columns).collect();
    bundle.add(
        "INSERT INTO $s.usage_gaps (since, until, boot, seal) \
         SELECT * FROM unnest($1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[]) ON CONFLICT DO NOTHING",
        vec![
            array(columns.iter().map(|(since, ..)| *since)),
            array(columns.iter().map(|(_, until, ..)| *until)),
            array(columns.iter().map(|(_, _, boot, _)| boot.clone())),
            array(columns.iter().map(|(.., seal)| *seal)),
        ],
    );
}

fn put_head(bundle: &mut Bundle, sql: &str, (history, since): (Epoch, Timestamp)) -> usize {
    let (history, since, seal) = usage_head_columns(history, since);
    bundle.add(
        sql,
        vec![Box::new(history.to_vec()), Box::new(since), Box::new(seal)],
    )
}

/// Reads the ledger. In a session that reads, all rows are of one snapshot.
async fn read_ledger(session: &Session) -> Result<UsageLedger, PostgresFault> {
    let mut bundle = Bundle::default();
    let head = bundle.add(USAGE_HEAD, Vec::new());
    let boots = bundle.add(BOOTS, Vec::new());
    let gaps = bundle.add(GAPS, Vec::new());
    let found = session.run(&bundle).await?;
    let head = rows_of(&found, Some(head)).first();
    let head = head.map(read_usage_head).transpose()?;
    let (boots, gaps) = (rows_of(&found, Some(boots)), rows_of(&found, Some(gaps)));
    let boots: Result<_, _> = boots.iter().map(read_boot).collect();
    let gaps: Result<_, _> = gaps.iter().map(read_gap).collect();
    Ok(UsageLedger {
        history: head.map(|(history, _)| history),
        counted_since: head.map(|(_, since)| since),
        boots: boots?,
        gaps: gaps?,
    })
}

/// Locks the head, and reads the ledger. Until the transaction ends, others change nothing of the ledger except that
/// open boots take batches.
///
/// Without a head, inserts the head `first`, which locks it too. The returned ledger then has none. Without `first`,
/// nothing is locked, because without a head there are no boots.
async fn locked_ledger(
    session: &Session,
    first: Option<(Epoch, Timestamp)>,
) -> Result<UsageLedger, PostgresFault> {
    let lock = format!("{USAGE_HEAD} FOR UPDATE");
    let mut is_new = false;
    if session.query(&lock, &[]).await?.is_empty()
        && let Some(first) = first
    {
        let mut bundle = Bundle::default();
        let insert = "INSERT INTO $s.usage_head (one, history, counted_since, seal) VALUES (1, $1, $2, $3) \
                      ON CONFLICT DO NOTHING RETURNING 1";
        let inserted = put_head(&mut bundle, insert, first);
        let inserted = session.run(&bundle).await?.swap_remove(inserted);
        is_new = !inserted.is_empty();
        if !is_new {
            // Another transaction has inserted the head, and has ended.
            session.query(&lock, &[]).await?;
        }
    }
    let mut ledger = read_ledger(session).await?;
    if is_new {
        (ledger.history, ledger.counted_since) = (None, None);
    }
    Ok(ledger)
}

/// Changes the ledger as `decide` says. Returns false if `decide` returns `None`. The caller commits the session.
async fn change_ledger(
    session: &Session,
    first: Option<(Epoch, Timestamp)>,
    decide: impl Fn(&UsageLedger) -> Option<LedgerChange>,
) -> Result<bool, PostgresFault> {
    let mut ledger = locked_ledger(session, first).await?;
    let Some(change) = decide(&ledger) else {
        return Ok(false);
    };
    // A boot that changes may be taking a batch, so the decision is repeated after the batch. The other boots need not
    // wait for theirs.
    let boots = lock_boots(session, change.boots.iter().map(|boot| boot.id)).await?;
    ledger.apply(LedgerChange {
        boots,
        ..LedgerChange::default()
    });
    let Some(change) = decide(&ledger) else {
        return Ok(false);
    };
    let mut bundle = Bundle::default();
    if let Some(head) = change.head {
        put_head(&mut bundle, PUT_USAGE_HEAD, head);
    }
    put_boots(&mut bundle, &change.boots)?;
    put_gaps(&mut bundle, &change.gaps);
    session.run(&bundle).await?;
    Ok(true)
}

/// Locks boots, and returns those that exist.
async fn lock_boots(
    session: &Session,
    boots: impl Iterator<Item = BootId>,
) -> Result<Vec<Boot>, PostgresFault> {
    let ids: Vec<_> = boots.map(|boot| boot.to_u128().to_be_bytes()).collect();
    let sql = "SELECT boot, node, opened_at, sequence, sent_until, closed_at, seal FROM $s.usage_boots \
               WHERE boot = ANY($1) ORDER BY boot FOR UPDATE";
    let found = session.query(sql, &[&slices(&ids)]).await?;
    found.iter().map(|row| Ok(read_boot(row)?)).collect()
}

async fn days(
    session: &Session,
    keys: &[[u8; 16]],
    from: Day,
    to: Day,
) -> Result<Vec<KeyDay>, PostgresFault> {
    let sql = "SELECT key, day, counts, seal FROM $s.usage_days \
               WHERE key = ANY($1) AND day BETWEEN $2 AND $3 ORDER BY key, day";
    let (from, to) = (i64::from(from.number()), i64::from(to.number()));
    let found = session.query(sql, &[&slices(keys), &from, &to]).await?;
    found.iter().map(|row| Ok(read_day(row)?)).collect()
}

async fn last_uses(
    session: &Session,
    keys: &[[u8; 16]],
) -> Result<BTreeMap<KeyId, LastUse>, PostgresFault> {
    let sql = "SELECT key, tenant, first_day, last_day, last_at, seal FROM $s.usage_keys \
               WHERE key = ANY($1)";
    let found = session.query(sql, &[&slices(keys)]).await?;
    found.iter().map(|row| Ok(read_last_use(row)?)).collect()
}

/// Removes old counts, and returns the number of removed rows. The caller commits the session.
async fn prune(session: &Session, pruning: &UsagePruning) -> Result<usize, PostgresFault> {
    let ledger = locked_ledger(session, None).await?;
    let LedgerPruning { head, boots, gaps } = LedgerPruning::of(ledger, pruning);
    let mut bundle = Bundle::default();
    if let Some(head) = head {
        put_head(&mut bundle, PUT_USAGE_HEAD, head);
    }
    if !boots.is_empty() {
        let ids = boots.iter().map(|boot| boot.id.to_u128().to_be_bytes());
        let sql = "DELETE FROM $s.usage_boots WHERE boot = ANY($1)";
        bundle.add(sql, vec![array(ids.map(|id| id.to_vec()))]);
    }
    if !gaps.is_empty() {
        let columns: Vec<_> = gaps.iter().map(gap_columns).collect();
        bundle.add(
            "DELETE FROM $s.usage_gaps AS g USING unnest($1::bigint[], $2::bigint[], $3::bytea[]) \
             AS n (since, until, boot) WHERE g.since = n.since AND g.until = n.until AND g.boot = n.boot",
            vec![
                array(columns.iter().map(|(since, ..)| *since)),
                array(columns.iter().map(|(_, until, ..)| *until)),
                array(columns.iter().map(|(_, _, boot, _)| boot.clone())),
            ],
        );
    }
    let old = bundle.add(
        "SELECT key, day FROM $s.usage_days WHERE day < $1 ORDER BY day LIMIT $2",
        vec![
            Box::new(i64::from(pruning.before.number())),
            Box::new(i64::try_from(pruning.limit.get()).unwrap_or(i64::MAX)),
        ],
    );
    let old = session.run(&bundle).await?.swap_remove(old);
    let old: Result<BTreeSet<_>, _> = old.iter().map(day_key).collect();
    let old = old?;
    // The index has the rows in another order than that of the locks.
    let mut bundle = Bundle::default();
    if lock_days(&mut bundle, old.iter()).is_none() {
        return Ok(0);
    }
    let removed = bundle.add(
        "DELETE FROM $s.usage_days AS d USING unnest($1::bytea[], $2::bigint[]) AS n (key, day) \
         WHERE d.key = n.key AND d.day = n.day RETURNING 1",
        day_params(old.iter()),
    );
    let found = session.run(&bundle).await?;
    Ok(rows_of(&found, Some(removed)).len())
}

/// Removes all rows of keys. The caller commits the session.
async fn forget(session: &Session, keys: &[[u8; 16]]) -> Result<(), PostgresFault> {
    let mut bundle = Bundle::default();
    for sql in [
        "SELECT count(*) FROM (SELECT 1 FROM $s.usage_days WHERE key = ANY($1) ORDER BY key, day FOR UPDATE) AS d",
        "SELECT count(*) FROM (SELECT 1 FROM $s.usage_keys WHERE key = ANY($1) ORDER BY key FOR UPDATE) AS k",
        "DELETE FROM $s.usage_days WHERE key = ANY($1)",
        "DELETE FROM $s.usage_keys WHERE key = ANY($1)",
    ] {
        bundle.add(sql, vec![array(keys.iter().map(|key| key.to_vec()))]);
    }
    session.run(&bundle).await.map(drop)
}

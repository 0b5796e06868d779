//! Commits, applied within one transaction.
//!
//! Locks are taken in one order everywhere: the rows of tenants by name, then the head. From the lock
//! of the head to the end of the transaction nobody else commits, so that what is checked there holds.

use std::collections::{BTreeMap, HashMap};

use futures_util::future::{BoxFuture, FutureExt, try_join_all};
use tokio_postgres::Statement;

use super::fault::Fault;
use super::head::{self, HEAD, Head, TENANTS};
use super::link::{Bound, STANDING, Tx, check_standing};
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::view::Revision;
use crate::store::rows::{
    self, AuditColumns, CommitRow, Fields, KEY, TenantHead, digest_holder, digest_seal, id_bytes,
    id_of,
};
use crate::store::{Commit, CommitError, Row, RowKey};

/// What became of a commit: its revision, or why it was refused, with nothing written.
pub(super) type Verdict = Result<Revision, CommitError>;

/// Checks commits against what the transaction sees, and writes those that pass at the next
/// revisions. The verdicts hold once the transaction is committed.
pub(super) async fn apply(tx: &Tx<'_>, commits: &[&Commit]) -> Result<Vec<Verdict>, Fault> {
    let mut tenants: Vec<&str> = commits.iter().map(|one| one.tenant.as_str()).collect();
    tenants.sort_unstable();
    tenants.dedup();
    let lock = format!("{TENANTS} ORDER BY tenant FOR UPDATE");
    let mut heads = HashMap::new();
    for row in &tx.query(&lock, &[&tenants]).await? {
        let (tenant, head) = head::tenant(row)?;
        heads.insert(tenant, head);
    }
    let outdated = |commit: &Commit| {
        let head = heads.get(&commit.tenant);
        head.is_some_and(|head| head.revision != commit.expected)
    };
    if commits.iter().all(|commit| outdated(commit)) {
        // A tenant that is locked stays where it is: the head need not wait for this.
        let refused = |_: &&Commit| Err(CommitError::Conflict);
        return Ok(commits.iter().map(refused).collect());
    }
    let mut batch = Batch::begin(tx, &tenants, heads, commits).await?;
    let mut verdicts = Vec::new();
    for commit in commits {
        verdicts.push(batch.add(commit)?);
    }
    if verdicts.iter().any(Result::is_ok) {
        batch.write(tx).await?;
    }
    Ok(verdicts)
}

/// Who has a key's id.
enum Holder {
    Tenant(String),
    /// Nobody any more, or what is no key.
    Gone,
}

/// What the transaction sees, with what it is about to write on top.
struct Batch {
    head: Head,
    tenants: HashMap<TenantId, TenantHead>,
    holders: HashMap<KeyId, Holder>,
    digests: HashMap<Digest, KeyId>,
    written: Written,
}

/// What goes into the tables.
#[derive(Default)]
pub(super) struct Written {
    pub(super) commits: Vec<CommitRow>,
    pub(super) tenants: BTreeMap<TenantId, TenantHead>,
    pub(super) rows: BTreeMap<RowKey, (i64, Fields)>,
    pub(super) audit: Vec<(i64, AuditColumns<String, Vec<u8>>)>,
    pub(super) digests: Vec<(Digest, KeyId)>,
    /// Ids that stay taken without a tombstone. No commit writes any.
    pub(super) gone: Vec<KeyId>,
}

impl Batch {
    /// Locks the head, and reads what the commits may collide with after that.
    async fn begin(
        tx: &Tx<'_>,
        names: &[&str],
        mut tenants: HashMap<TenantId, TenantHead>,
        commits: &[&Commit],
    ) -> Result<Self, Fault> {
        let puts = || commits.iter().flat_map(|commit| &commit.effects.puts);
        let ids: Vec<[u8; 16]> = puts().map(|record| id_bytes(record.id)).collect();
        let ids: Vec<&[u8]> = ids.iter().map(|id| &id[..]).collect();
        let imported: HashMap<[u8; 32], Digest> = (commits.iter())
            .flat_map(|commit| commit.imported())
            .map(|(digest, _)| (*digest.as_bytes(), digest))
            .collect();
        let wanted: Vec<&[u8]> = imported.keys().map(|digest| &digest[..]).collect();
        let locked = format!("{HEAD} FOR UPDATE");
        let head = tx.prepare(&locked).await?;
        let missing = tx.prepare(TENANTS).await?;
        let sql = "SELECT id, kind, tenant FROM $s.rows WHERE id = ANY($1)";
        let standing = tx.prepare(sql).await?;
        let gone = tx
            .prepare("SELECT id FROM $s.gone WHERE id = ANY($1)")
            .await?;
        let sql = "SELECT digest, id, seal FROM $s.digests WHERE digest = ANY($1)";
        let taken = tx.prepare(sql).await?;
        let version = tx.prepare(STANDING).await?;
        let (names, ids, wanted): ([Bound<'_>; 1], [Bound<'_>; 1], [Bound<'_>; 1]) =
            ([&names], [&ids], [&wanted]);
        // Sent at once, and run in this order: all but the first see what was committed before it.
        let found = try_join_all([
            tx.query_with(&head, &[]),
            tx.query_with(&missing, &names),
            tx.query_with(&standing, &ids),
            tx.query_with(&gone, &ids),
            tx.query_with(&taken, &wanted),
            tx.query_with(&version, &[]),
        ]);
        let [head, missing, standing, gone, taken, version] = &found.await?[..] else {
            return Err(Fault::Refused("answers are missing"));
        };
        // Tables are changed under the lock of the head: they may have been while it was waited for.
        check_standing(version)?;
        for row in missing {
            // One that was not there when tenants were locked may be there now.
            let (tenant, head) = head::tenant(row)?;
            tenants.insert(tenant, head);
        }
        let mut holders = HashMap::new();
        for row in standing {
            let (kind, tenant): (i16, String) = (row.try_get(1)?, row.try_get(2)?);
            let holder = match i64::from(kind) {
                KEY => Holder::Tenant(tenant),
                _ => Holder::Gone,
            };
            holders.extend(id_of(row.try_get(0)?).map(|id| (id, holder)));
        }
        for row in gone {
            holders.extend(id_of(row.try_get(0)?).map(|id| (id, Holder::Gone)));
        }
        let mut digests = HashMap::new();
        for row in taken {
            let bytes: &[u8] = row.try_get(0)?;
            let digest = <[u8; 32]>::try_from(bytes).ok();
            if let Some(digest) = digest.and_then(|digest| imported.get(&digest)) {
                let holder = digest_holder(digest, row.try_get(1)?, row.try_get(2)?)?;
                digests.insert(*digest, holder);
            }
        }
        Ok(Self {
            head: Head::of(head)?,
            tenants,
            holders,
            digests,
            written: Written::default(),
        })
    }

    /// Takes a commit along, unless it is refused.
    fn add(&mut self, commit: &Commit) -> Result<Verdict, Fault> {
        let before = self.tenants.get(&commit.tenant).copied();
        let at = before.map_or(Revision::ZERO, |head| head.revision);
        let writable = |record: &crate::core::record::KeyRecord| match self.holders.get(&record.id)
        {
            None => true,
            Some(Holder::Tenant(tenant)) => tenant == record.tenant.as_str(),
            Some(Holder::Gone) => false,
        };
        let holder = |digest: &Digest| self.digests.get(digest).copied();
        if let Err(refused) = commit.check(at, writable, holder) {
            return Ok(Err(refused));
        }
        let mut numbered = Vec::new();
        let next = Revision(self.head.cursor.revision.0 + 1);
        for (number, row) in commit.rows().enumerate() {
            numbered.push((rows::place(next, number)?, Fields::of(&row)?, row));
        }
        let mut entries = Vec::new();
        for (number, entry) in commit.effects.audit.iter().enumerate() {
            entries.push((rows::place(next, number)?, AuditColumns::of(entry)?));
        }
        // Nothing of a commit that cannot be written is taken along.
        let (revision, row) = self.head.advance(commit.tag, commit.decided_at)?;
        self.written.commits.push(row);
        self.written.audit.extend(entries);
        for (place, fields, row) in numbered {
            let holder = match &row {
                Row::Key(record) => Some((record.id, Holder::Tenant(record.tenant.to_string()))),
                Row::Removed { key, .. } => Some((*key, Holder::Gone)),
                _ => None,
            };
            self.holders.extend(holder);
            self.written.rows.insert(row.key(), (place, fields));
        }
        for (digest, key) in commit.imported() {
            if self.digests.insert(digest, key).is_none() {
                self.written.digests.push((digest, key));
            }
        }
        let after = TenantHead::after(before, commit, revision);
        self.tenants.insert(commit.tenant.clone(), after);
        self.written.tenants.insert(commit.tenant.clone(), after);
        Ok(Ok(revision))
    }

    async fn write(self, tx: &Tx<'_>) -> Result<(), Fault> {
        let Some(last) = self.written.commits.last().copied() else {
            return Ok(());
        };
        let rows = &self.written.rows;
        let keys: Vec<&[u8]> = (rows.values())
            .filter_map(|(_, fields)| fields.id.as_ref().map(|id| &id[..]))
            .collect();
        let named: Vec<(&Fields, &str)> = (rows.values())
            .filter_map(|(_, fields)| Some((fields, fields.name.as_deref()?)))
            .collect();
        let mut script = Script::new(tx);
        let none_stands = keys.is_empty();
        script.add(
            none_stands,
            "DELETE FROM $s.rows WHERE id = ANY($1)",
            vec![boxed(keys.iter().map(|id| id.to_vec()))],
        );
        script.add(
            named.is_empty(),
            "DELETE FROM $s.rows AS r \
             USING unnest($1::smallint[], $2::text[], $3::text[]) AS n (kind, tenant, name) \
             WHERE r.kind = n.kind AND r.tenant = n.tenant AND r.name = n.name",
            vec![
                boxed(named.iter().map(|(fields, _)| small(fields.kind))),
                boxed(named.iter().map(|(fields, _)| fields.tenant.to_string())),
                boxed(named.iter().map(|(_, name)| (*name).to_owned())),
            ],
        );
        self.written.insert(&mut script)?;
        script.add(
            false,
            "UPDATE $s.head SET revision = $1, tag = $2, newest = $3, commit_seal = $4 \
             WHERE one = 1",
            vec![
                Box::new(last.revision),
                Box::new(last.tag.to_vec()),
                Box::new(last.newest),
                Box::new(last.seal()),
            ],
        );
        script.run().await
    }
}

impl Written {
    /// Adds what is written: rows that stand nowhere else, entries, commits, and where tenants stand.
    pub(super) fn insert(&self, script: &mut Script<'_, '_>) -> Result<(), Fault> {
        let Self {
            commits,
            tenants,
            rows,
            audit,
            digests,
            gone,
        } = self;
        script.add(
            gone.is_empty(),
            "INSERT INTO $s.gone (id) SELECT * FROM unnest($1::bytea[])",
            vec![boxed(gone.iter().map(|id| id_bytes(*id).to_vec()))],
        );
        let seals = rows.values().map(|(place, fields)| fields.seal(*place));
        script.add(
            rows.is_empty(),
            "INSERT INTO $s.rows \
             (place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal) \
             SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::text[], $4::text[], \
             $5::bytea[], $6::bigint[], $7::smallint[], $8::text[], $9::bytea[], $10::bigint[])",
            vec![
                boxed(rows.values().map(|(place, _)| *place)),
                boxed(rows.values().map(|(_, row)| small(row.kind))),
                boxed(rows.values().map(|(_, row)| row.tenant.to_string())),
                boxed(rows.values().map(|(_, row)| row.name.clone())),
                boxed(rows.values().map(|(_, row)| row.id.map(|id| id.to_vec()))),
                boxed(rows.values().map(|(_, row)| row.ends)),
                boxed(rows.values().map(|(_, row)| row.legacy.map(small))),
                boxed(rows.values().map(|(_, row)| row.fingerprint.clone())),
                boxed(rows.values().map(|(_, row)| row.body.clone())),
                boxed(seals),
            ],
        );
        script.add(
            digests.is_empty(),
            "INSERT INTO $s.digests (digest, id, seal) \
             SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) ON CONFLICT DO NOTHING",
            vec![
                boxed(digests.iter().map(|(digest, _)| digest.as_bytes().to_vec())),
                boxed(digests.iter().map(|(_, id)| id_bytes(*id).to_vec())),
                boxed(
                    (digests.iter())
                        .map(|(digest, id)| digest_seal(digest.as_bytes(), &id_bytes(*id))),
                ),
            ],
        );
        script.add(
            audit.is_empty(),
            "INSERT INTO $s.audit (place, tenant, sequence, command, key, body, seal) \
             SELECT * FROM unnest($1::bigint[], $2::text[], $3::bigint[], $4::text[], \
             $5::bytea[], $6::bytea[], $7::bigint[])",
            vec![
                boxed(audit.iter().map(|(place, _)| *place)),
                boxed(audit.iter().map(|(_, entry)| entry.tenant.clone())),
                boxed(audit.iter().map(|(_, entry)| entry.sequence)),
                boxed(audit.iter().map(|(_, entry)| entry.command.clone())),
                boxed(audit.iter().map(|(_, entry)| entry.key.clone())),
                boxed(audit.iter().map(|(_, entry)| entry.body.clone())),
                boxed(audit.iter().map(|(place, entry)| entry.seal(*place))),
            ],
        );
        let mut columns = Vec::new();
        for (tenant, head) in tenants {
            let hash = head.audit.hash.as_bytes().to_vec();
            columns.push((tenant.to_string(), head.columns(tenant)?, hash));
        }
        script.add(
            columns.is_empty(),
            "INSERT INTO $s.tenants (tenant, revision, decided_at, sequence, hash, seal) \
             SELECT * FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[], \
             $5::bytea[], $6::bigint[]) \
             ON CONFLICT (tenant) DO UPDATE SET revision = excluded.revision, \
             decided_at = excluded.decided_at, sequence = excluded.sequence, \
             hash = excluded.hash, seal = excluded.seal",
            vec![
                boxed(columns.iter().map(|(tenant, ..)| tenant.clone())),
                boxed(columns.iter().map(|(_, numbers, _)| numbers.0)),
                boxed(columns.iter().map(|(_, numbers, _)| numbers.1)),
                boxed(columns.iter().map(|(_, numbers, _)| numbers.2)),
                boxed(columns.iter().map(|(.., hash)| hash.clone())),
                boxed(columns.iter().map(|(_, numbers, _)| numbers.3)),
            ],
        );
        script.add(
            commits.is_empty(),
            "INSERT INTO $s.commits (revision, tag, newest, seal) \
             SELECT * FROM unnest($1::bigint[], $2::bytea[], $3::bigint[], $4::bigint[])",
            vec![
                boxed(commits.iter().map(|row| row.revision)),
                boxed(commits.iter().map(|row| row.tag.to_vec())),
                boxed(commits.iter().map(|row| row.newest)),
                boxed(commits.iter().map(CommitRow::seal)),
            ],
        );
        Ok(())
    }
}

fn small(number: i64) -> i16 {
    // Kinds and marks are single digits.
    i16::try_from(number).unwrap_or(-1)
}

type Column = Box<dyn tokio_postgres::types::ToSql + Sync + Send>;

fn boxed<T>(column: impl Iterator<Item = T>) -> Column
where
    Vec<T>: tokio_postgres::types::ToSql + Sync + Send + 'static,
{
    Box::new(column.collect::<Vec<T>>())
}

/// Statements that are sent at once, and run in their order.
pub(super) struct Script<'t, 'c> {
    tx: &'t Tx<'c>,
    steps: Vec<(&'static str, Vec<Column>)>,
}

impl<'t, 'c> Script<'t, 'c> {
    pub(super) const fn new(tx: &'t Tx<'c>) -> Self {
        Self {
            tx,
            steps: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, needless: bool, sql: &'static str, with: Vec<Column>) {
        if !needless {
            self.steps.push((sql, with));
        }
    }

    pub(super) async fn run(self) -> Result<(), Fault> {
        let mut ready: Vec<(Statement, Vec<Bound<'_>>)> = Vec::new();
        for (sql, with) in &self.steps {
            let with = with.iter().map(|column| -> Bound<'_> { &**column });
            ready.push((self.tx.prepare(sql).await?, with.collect()));
        }
        let steps = ready.iter().map(|(statement, with)| -> BoxFuture<'_, _> {
            self.tx.execute_with(statement, with).boxed()
        });
        // Few enough that each is first polled in its turn, which sends it.
        try_join_all(steps).await.map(drop)
    }
}

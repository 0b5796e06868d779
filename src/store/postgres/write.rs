//! Applies a group of commits in one transaction. Each commit is checked against the rows that the
//! transaction sees. A commit that passes is written at the next revision.
//!
//! Every writer takes its locks in one order, which prevents deadlocks: the rows of tenants by name, then the
//! head. No other node commits while the head is locked, so the checks stay valid until `COMMIT`.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::fault::PostgresFault;
use super::head::{self, HEAD, TENANTS};
use super::session::{Bundle, OwnedParam, Session, VERSIONED, array, check_version};
use crate::core::id::KeyId;
use crate::core::secret::Digest;
use crate::core::tenant::TenantId;
use crate::core::text::PrincipalId;
use crate::core::view::Revision;
use crate::store::sql::{
    AuditColumns, CommitRow, DIGEST_COLUMNS, Head, KEY, OWNER, RowColumns, TENANT, TenantHead,
    digest_seal, id_bytes, id_of, place, read_digest, revision_of, signed,
};
use crate::store::{Commit, CommitError, Row, RowKey};

/// The result of one commit: its revision if it was accepted, and the error if it was refused. A refused
/// commit writes nothing.
pub(super) type CommitResult = Result<Revision, CommitError>;

/// The present use of a key id, which decides whether a commit may write a key with this id.
enum IdClaim {
    /// The id belongs to a key of the named tenant. Only that tenant may replace the key's record.
    Tenant(String),
    /// The id belongs to a removed key, or to a row of another kind. No commit may write a key with it.
    Removed,
}

/// The commits of one transaction: the rows they are checked against, and the rows they will write.
pub(super) struct CommitBatch {
    head: Head,
    tenants: HashMap<TenantId, TenantHead>,
    /// The ids of keys that the commits write, and that were in the tables before this transaction.
    existing: HashSet<KeyId>,
    claims: HashMap<KeyId, IdClaim>,
    digests: HashMap<Digest, KeyId>,
    /// The revision of each guarded row. If a guarded row does not exist, this map has no entry for it.
    guarded: HashMap<RowKey, Revision>,
    new_rows: NewRows,
    /// The tenants whose oldest audit entries are removed, with the number of the newest entry to remove.
    pruned: Vec<(String, i64)>,
}

/// The rows that the commits' guards name.
struct GuardedRows<'a> {
    /// Rows of tenants and owners, as kind, tenant and name.
    named: BTreeSet<(i16, &'a TenantId, &'a str)>,
    keys: BTreeSet<KeyId>,
}

impl<'a> GuardedRows<'a> {
    fn of(commits: &[&'a Commit]) -> Self {
        let (mut named, mut keys) = (BTreeSet::new(), BTreeSet::new());
        for guard in commits.iter().flat_map(|commit| &commit.guards) {
            match &guard.row {
                RowKey::Tenant(tenant) => drop(named.insert((small(TENANT), tenant, ""))),
                RowKey::Owner(tenant, owner) => {
                    named.insert((small(OWNER), tenant, owner.as_str()));
                }
                RowKey::Key(id) => drop(keys.insert(*id)),
            }
        }
        Self { named, keys }
    }
}

type OwnedRow = RowColumns<String, Vec<u8>>;

/// The rows to insert into the tables.
#[derive(Default)]
pub(super) struct NewRows {
    pub(super) commits: Vec<CommitRow>,
    pub(super) tenants: BTreeMap<TenantId, TenantHead>,
    pub(super) rows: BTreeMap<RowKey, (i64, OwnedRow)>,
    pub(super) audit: Vec<(i64, AuditColumns<String, Vec<u8>>)>,
    pub(super) digests: Vec<(Digest, KeyId)>,
    /// Ids of removed keys whose tombstones were dropped. Only a copy of a whole store inserts such ids.
    pub(super) gone: Vec<KeyId>,
}

/// Returns two statements: one locks the tenants' rows, and the other locks the head row.
///
/// If every commit of the batch expects an outdated revision, the second statement locks nothing. All of them
/// will be refused as conflicts: their tenants are locked, so their revisions cannot change.
fn locks() -> (String, String) {
    let tenants = format!("{TENANTS} ORDER BY tenant FOR UPDATE");
    let head = format!(
        "{HEAD} AND EXISTS (SELECT 1 FROM unnest($1::text[], $2::bigint[]) AS e (tenant, at) \
         LEFT JOIN $s.tenants AS t ON t.tenant = e.tenant WHERE t.tenant IS NULL OR t.revision = e.at) \
         FOR UPDATE OF head"
    );
    (tenants, head)
}

impl CommitBatch {
    /// Locks the tenants and the head, and then reads every row that the checks need. Returns `None` if every
    /// commit expects an outdated revision and will be refused.
    pub(super) async fn begin(
        session: &Session,
        commits: &[&Commit],
    ) -> Result<Option<Self>, PostgresFault> {
        let names: BTreeSet<&str> = commits
            .iter()
            .map(|commit| commit.tenant.as_str())
            .collect();
        let fresh = commits
            .iter()
            .filter(|commit| commit.expected == Revision::ZERO);
        let fresh: BTreeSet<&str> = fresh.map(|commit| commit.tenant.as_str()).collect();
        let mut expected = Vec::new();
        for commit in commits {
            // No tenant has a revision above `i64::MAX`. Use -1 instead, which also matches no tenant.
            let at = signed(commit.expected.0).unwrap_or(-1);
            expected.push((commit.tenant.to_string(), at));
        }
        let puts = commits.iter().flat_map(|commit| &commit.effects.puts);
        let ids: Vec<Vec<u8>> = puts.map(|record| id_bytes(record.id).to_vec()).collect();
        let imported: HashSet<Digest> = (commits.iter())
            .flat_map(|commit| commit.imported())
            .map(|(digest, _)| digest)
            .collect();
        let texts = |names: &BTreeSet<&str>| array(names.iter().map(|name| (*name).to_owned()));
        let (lock_tenants, lock_head) = locks();
        // The locks come first. Under READ COMMITTED, each statement after the head lock sees every commit of
        // the transactions that held the lock before.
        let mut bundle = Bundle::default();
        let locked = bundle.add(lock_tenants, vec![texts(&names)]);
        let both = vec![
            array(expected.iter().map(|(tenant, _)| tenant.clone())),
            array(expected.iter().map(|(_, at)| *at)),
        ];
        let head = bundle.add(lock_head, both);
        let version = bundle.add(VERSIONED, Vec::new());
        // A tenant without a row cannot be locked. So another transaction may have created the tenant before
        // this one locked the head. Read such tenants again.
        let missing = (!fresh.is_empty()).then(|| bundle.add(TENANTS, vec![texts(&fresh)]));
        let id_rows = (!ids.is_empty()).then(|| {
            let sql = "SELECT id, kind, tenant FROM $s.rows WHERE id = ANY($1) \
                       UNION ALL SELECT id, NULL, NULL FROM $s.gone WHERE id = ANY($1)";
            bundle.add(sql, vec![array(ids.into_iter())])
        });
        let taken = (!imported.is_empty()).then(|| {
            let sql = format!("SELECT {DIGEST_COLUMNS} FROM $s.digests WHERE digest = ANY($1)");
            let digests = imported.iter().map(|digest| digest.as_bytes().to_vec());
            bundle.add(sql, vec![array(digests)])
        });
        let guards = GuardedRows::of(commits);
        let named = (!guards.named.is_empty()).then(|| {
            let sql = "SELECT r.kind, r.tenant, r.name, r.place \
                       FROM unnest($1::smallint[], $2::text[], $3::text[]) AS g (of_kind, of_tenant, who) \
                       CROSS JOIN LATERAL (SELECT kind, tenant, name, place FROM $s.rows \
                       WHERE kind = of_kind AND tenant = of_tenant AND name = who OFFSET 0) AS r";
            let kinds = guards.named.iter().map(|(kind, ..)| *kind);
            let tenants = guards.named.iter().map(|(_, tenant, _)| tenant.to_string());
            let names = guards.named.iter().map(|(.., name)| (*name).to_owned());
            bundle.add(sql, vec![array(kinds), array(tenants), array(names)])
        });
        let acting = (!guards.keys.is_empty()).then(|| {
            let sql = "SELECT id, place FROM $s.rows WHERE id = ANY($1)";
            let ids = guards.keys.iter().map(|id| id_bytes(*id).to_vec());
            bundle.add(sql, vec![array(ids)])
        });
        let found = session.run(&bundle).await?;
        let rows_of = |place: Option<usize>| {
            let rows = place.and_then(|place| found.get(place));
            rows.map(Vec::as_slice).unwrap_or_default()
        };
        // Check the version and the mark of the tables while the head is locked. A migration or a restore also
        // locks the head, and may have committed just before this transaction got the lock.
        check_version(rows_of(Some(version)), session.allows_unrecovered())?;
        let mut tenants = HashMap::new();
        for row in rows_of(Some(locked)).iter().chain(rows_of(missing)) {
            let (tenant, head) = TenantHead::read(row)?;
            tenants.insert(tenant, head);
        }
        let outdated = |commit: &&Commit| {
            let head = tenants.get(&commit.tenant);
            head.is_some_and(|head| head.revision != commit.expected)
        };
        let head = rows_of(Some(head));
        if head.is_empty() && commits.iter().all(outdated) {
            return Ok(None);
        }
        let mut claims = HashMap::new();
        for row in rows_of(id_rows) {
            let (kind, tenant): (Option<i16>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
            let holder = match (kind.map(i64::from), tenant) {
                (Some(KEY), Some(tenant)) => IdClaim::Tenant(tenant),
                _ => IdClaim::Removed,
            };
            claims.extend(id_of(row.try_get(0)?).map(|id| (id, holder)));
        }
        let mut digests = HashMap::new();
        for row in rows_of(taken) {
            let (digest, holder) = read_digest(row)?;
            digests.insert(digest, holder);
        }
        let mut guarded = HashMap::new();
        for row in rows_of(named) {
            let (kind, tenant, name): (i16, &str, &str) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            // A row whose tenant or owner name is malformed needs no entry, because no guard can name such a
            // row.
            let key = TenantId::new(tenant)
                .ok()
                .and_then(|tenant| match i64::from(kind) {
                    TENANT => Some(RowKey::Tenant(tenant)),
                    _ => Some(RowKey::Owner(tenant, PrincipalId::new(name).ok()?)),
                });
            guarded.extend(key.zip(Some(revision_of(row.try_get(3)?))));
        }
        for row in rows_of(acting) {
            let key = id_of(row.try_get(0)?).map(RowKey::Key);
            guarded.extend(key.zip(Some(revision_of(row.try_get(1)?))));
        }
        Ok(Some(Self {
            head: head::of(head)?,
            tenants,
            existing: claims.keys().copied().collect(),
            claims,
            digests,
            guarded,
            new_rows: NewRows::default(),
            pruned: Vec::new(),
        }))
    }

    /// Checks a commit, and adds the commit to the batch if the checks pass.
    pub(super) fn add(&mut self, commit: &Commit) -> Result<CommitResult, PostgresFault> {
        let before = self.tenants.get(&commit.tenant).copied();
        let at = before.map_or(Revision::ZERO, |head| head.revision);
        let writable = |record: &crate::core::record::KeyRecord| match self.claims.get(&record.id) {
            None => true,
            Some(IdClaim::Tenant(tenant)) => tenant == record.tenant.as_str(),
            Some(IdClaim::Removed) => false,
        };
        let holder = |digest: &Digest| self.digests.get(digest).copied();
        // An earlier commit of the same batch may change the guarded row. So look in the batch's own rows
        // first.
        let row_at = |row: &RowKey| match self.new_rows.rows.get(row) {
            Some((place, _)) => revision_of(*place),
            None => self.guarded.get(row).copied().unwrap_or_default(),
        };
        if let Err(refused) = commit.check((self.head.store.epoch, at), row_at, writable, holder) {
            return Ok(Err(refused));
        }
        let mut numbered = Vec::new();
        let next = Revision(self.head.last.revision.0 + 1);
        for (number, row) in commit.rows().enumerate() {
            numbered.push((place(next, number)?, RowColumns::of(&row)?, row));
        }
        let pruned = commit.effects.prune.map(signed).transpose()?;
        let mut entries = Vec::new();
        for (number, entry) in commit.effects.audit.iter().enumerate() {
            entries.push((place(next, number)?, AuditColumns::of(entry)?));
        }
        // Nothing below can fail. So the batch contains the whole commit or nothing of it.
        let row = self.head.advance(commit.tag);
        let revision = row.revision;
        self.new_rows.commits.push(row);
        self.new_rows.audit.extend(entries);
        self.pruned
            .extend(pruned.map(|through| (commit.tenant.to_string(), through)));
        for (place, fields, row) in numbered {
            let holder = match &row {
                Row::Key(record) => Some((record.id, IdClaim::Tenant(record.tenant.to_string()))),
                Row::Removed { key, .. } => Some((*key, IdClaim::Removed)),
                _ => None,
            };
            self.claims.extend(holder);
            self.new_rows.rows.insert(row.key(), (place, fields));
        }
        for (digest, key) in commit.imported() {
            if self.digests.insert(digest, key).is_none() {
                self.new_rows.digests.push((digest, key));
            }
        }
        let after = TenantHead::after(before, commit, revision);
        self.tenants.insert(commit.tenant.clone(), after);
        self.new_rows.tenants.insert(commit.tenant.clone(), after);
        Ok(Ok(revision))
    }

    /// Writes the accepted commits durably. Fails like [`Session::commit_bundle`].
    pub(super) async fn write(self, session: Session) -> Result<(), PostgresFault> {
        let last = self.new_rows.commits.last().copied();
        let rows = &self.new_rows.rows;
        let mut bundle = Bundle::default();
        // For a tombstone, always delete the old row of its key, because the batch did not read whether such
        // a row exists.
        let replaced = |(key, (_, fields)): (&RowKey, &(i64, OwnedRow))| match key {
            RowKey::Key(id) if fields.kind != KEY || self.existing.contains(id) => {
                Some(id_bytes(*id).to_vec())
            }
            _ => None,
        };
        let replaced: Vec<_> = rows.iter().filter_map(replaced).collect();
        if !replaced.is_empty() {
            let sql = "DELETE FROM $s.rows WHERE id = ANY($1)";
            bundle.add(sql, vec![array(replaced.into_iter())]);
        }
        let named: Vec<(&OwnedRow, &str)> = (rows.values())
            .filter_map(|(_, fields)| Some((fields, fields.name.as_deref()?)))
            .collect();
        if !named.is_empty() {
            bundle.add(
                "DELETE FROM $s.rows AS r \
                 USING unnest($1::smallint[], $2::text[], $3::text[]) AS n (kind, tenant, name) \
                 WHERE r.kind = n.kind AND r.tenant = n.tenant AND r.name = n.name",
                vec![
                    array(named.iter().map(|(fields, _)| small(fields.kind))),
                    array(named.iter().map(|(fields, _)| fields.tenant.clone())),
                    array(named.iter().map(|(_, name)| (*name).to_owned())),
                ],
            );
        }
        self.new_rows.insert(&mut bundle, last)?;
        if !self.pruned.is_empty() {
            // After the inserts: an entry of this batch may be pruned too.
            bundle.add(
                // Without `OFFSET 0`, the server may join with the whole table.
                "DELETE FROM $s.audit WHERE place = ANY(ARRAY( \
                 SELECT e.place FROM unnest($1::text[], $2::bigint[]) AS p (of_tenant, through) \
                 CROSS JOIN LATERAL (SELECT place FROM $s.audit \
                 WHERE tenant = of_tenant AND sequence <= through OFFSET 0) AS e))",
                vec![
                    array(self.pruned.iter().map(|(tenant, _)| tenant.clone())),
                    array(self.pruned.iter().map(|(_, through)| *through)),
                ],
            );
        }
        session.commit_bundle(bundle).await
    }
}

impl NewRows {
    /// Adds the statements that insert these rows to `bundle`. If `head` is given, the head moves to that
    /// commit. The tables must not contain the rows yet.
    pub(super) fn insert(
        &self,
        bundle: &mut Bundle,
        head: Option<CommitRow>,
    ) -> Result<(), PostgresFault> {
        let Self {
            commits,
            tenants,
            rows,
            audit,
            digests,
            gone,
        } = self;
        if !gone.is_empty() {
            let sql = "INSERT INTO $s.gone (id) SELECT * FROM unnest($1::bytea[])";
            bundle.add(
                sql,
                vec![array(gone.iter().map(|id| id_bytes(*id).to_vec()))],
            );
        }
        if !digests.is_empty() {
            let seal = |(digest, id): &(Digest, KeyId)| digest_seal(digest, *id);
            bundle.add(
                "INSERT INTO $s.digests (digest, id, seal) \
                 SELECT * FROM unnest($1::bytea[], $2::bytea[], $3::bigint[]) \
                 ON CONFLICT DO NOTHING",
                vec![
                    array(digests.iter().map(|(digest, _)| digest.as_bytes().to_vec())),
                    array(digests.iter().map(|(_, id)| id_bytes(*id).to_vec())),
                    array(digests.iter().map(seal)),
                ],
            );
        }
        let mut columns = Vec::new();
        for (tenant, head) in tenants {
            columns.push((tenant.to_string(), head.columns(tenant)?));
        }
        let commits: Vec<_> = commits
            .iter()
            .map(CommitRow::columns)
            .collect::<Result<_, _>>()?;
        let mut with = vec![
            array(rows.values().map(|(place, _)| *place)),
            array(rows.values().map(|(_, row)| small(row.kind))),
            array(rows.values().map(|(_, row)| row.tenant.clone())),
            array(rows.values().map(|(_, row)| row.name.clone())),
            array(rows.values().map(|(_, row)| row.id.clone())),
            array(rows.values().map(|(_, row)| row.class.clone())),
            array(rows.values().map(|(_, row)| row.ends)),
            array(rows.values().map(|(_, row)| row.legacy.map(small))),
            array(rows.values().map(|(_, row)| row.fingerprint.clone())),
            array(rows.values().map(|(_, row)| row.body.clone())),
            array(rows.values().map(|(place, row)| row.seal(*place))),
            array(audit.iter().map(|(place, _)| *place)),
            array(audit.iter().map(|(_, entry)| entry.tenant.clone())),
            array(audit.iter().map(|(_, entry)| entry.sequence)),
            array(audit.iter().map(|(_, entry)| entry.command.clone())),
            array(audit.iter().map(|(_, entry)| entry.key.clone())),
            array(audit.iter().map(|(_, entry)| entry.body.clone())),
            array(audit.iter().map(|(place, entry)| entry.seal(*place))),
            array(columns.iter().map(|(tenant, ..)| tenant.clone())),
            array(columns.iter().map(|(_, head)| head.0)),
            array(columns.iter().map(|(_, head)| head.1)),
            array(columns.iter().map(|(_, head)| head.2)),
            array(columns.iter().map(|(_, head)| head.3.to_vec())),
            array(columns.iter().map(|(_, head)| head.4)),
            array(commits.iter().map(|(revision, ..)| *revision)),
            array(commits.iter().map(|(_, tag, _)| tag.to_vec())),
            array(commits.iter().map(|(.., seal)| *seal)),
        ];
        match head {
            Some(last) => {
                let (revision, tag, seal) = last.columns()?;
                let moves: [OwnedParam; 3] =
                    [Box::new(revision), Box::new(tag.to_vec()), Box::new(seal)];
                with.extend(moves);
                bundle.add(format!("{INSERT} {MOVE_HEAD}"), with);
            }
            None => {
                bundle.add(format!("{INSERT} SELECT 1"), with);
            }
        }
        Ok(())
    }
}

/// Inserts into all tables with one statement, which costs the server less than one statement per table.
const INSERT: &str = "WITH r AS (INSERT INTO $s.rows \
     (place, kind, tenant, name, id, class, ends, legacy, fingerprint, body, seal) \
     SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::text[], $4::text[], $5::bytea[], \
     $6::text[], $7::bigint[], $8::smallint[], $9::text[], $10::bytea[], $11::bigint[])), \
     a AS (INSERT INTO $s.audit (place, tenant, sequence, command, key, body, seal) \
     SELECT * FROM unnest($12::bigint[], $13::text[], $14::bigint[], $15::text[], $16::bytea[], \
     $17::bytea[], $18::bigint[])), \
     t AS (INSERT INTO $s.tenants (tenant, revision, decided_at, sequence, hash, seal) \
     SELECT * FROM unnest($19::text[], $20::bigint[], $21::bigint[], $22::bigint[], $23::bytea[], \
     $24::bigint[]) ON CONFLICT (tenant) DO UPDATE SET revision = excluded.revision, \
     decided_at = excluded.decided_at, sequence = excluded.sequence, hash = excluded.hash, \
     seal = excluded.seal), \
     c AS (INSERT INTO $s.commits (revision, tag, seal) \
     SELECT * FROM unnest($25::bigint[], $26::bytea[], $27::bigint[]))";

/// Moves the head to the last commit.
const MOVE_HEAD: &str =
    "UPDATE $s.head SET revision = $28, tag = $29, commit_seal = $30 WHERE one = 1";

fn small(number: i64) -> i16 {
    // All callers pass a kind or a flag, which is a single digit. So the conversion cannot fail.
    i16::try_from(number).unwrap_or(-1)
}

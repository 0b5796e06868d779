//! Applies commits within one transaction. Each commit is checked against the rows that the transaction
//! sees. If it passes, it is written at the next revision.
//!
//! Locks are taken in one order: the rows of tenants by name, then the head. From the lock of the head
//! to the end of the transaction no other node commits, so that the checks stay true.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use super::fault::Fault;
use super::head::{self, HEAD, TENANTS};
use super::session::{Bundle, Column, Session, VERSIONED, array, check_version};
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

/// The revision of a commit, or the reason why it was refused, with nothing written.
pub(super) type Verdict = Result<Revision, CommitError>;

/// The holder of a key's id.
enum Holder {
    Tenant(String),
    /// A removed key, or a row that is no key.
    Gone,
}

/// The commits of one transaction: the rows that the transaction sees, and those that it will write.
pub(super) struct Batch {
    head: Head,
    tenants: HashMap<TenantId, TenantHead>,
    /// The keys of these commits that had a row before.
    standing: HashSet<KeyId>,
    holders: HashMap<KeyId, Holder>,
    digests: HashMap<Digest, KeyId>,
    /// The revisions of guarded rows. A row without a revision does not exist.
    guarded: HashMap<RowKey, Revision>,
    written: Written,
}

/// The rows that guard commits.
struct Guards<'a> {
    /// Rows of tenants and owners: kind, tenant and name.
    named: BTreeSet<(i16, &'a TenantId, &'a str)>,
    keys: BTreeSet<KeyId>,
}

impl<'a> Guards<'a> {
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
pub(super) struct Written {
    pub(super) commits: Vec<CommitRow>,
    pub(super) tenants: BTreeMap<TenantId, TenantHead>,
    pub(super) rows: BTreeMap<RowKey, (i64, OwnedRow)>,
    pub(super) audit: Vec<(i64, AuditColumns<String, Vec<u8>>)>,
    pub(super) digests: Vec<(Digest, KeyId)>,
    /// Ids that stay taken without a tombstone. Only a copy writes these.
    pub(super) gone: Vec<KeyId>,
}

/// Returns a statement that locks tenants, and a statement that locks the head. The second locks nothing
/// if each of these tenants has a newer revision. Then all commits are outdated, since a locked tenant
/// does not change.
fn locks() -> (String, String) {
    let tenants = format!("{TENANTS} ORDER BY tenant FOR UPDATE");
    let head = format!(
        "{HEAD} AND EXISTS (SELECT 1 FROM unnest($1::text[], $2::bigint[]) AS e (tenant, at) \
         LEFT JOIN $s.tenants AS t ON t.tenant = e.tenant WHERE t.tenant IS NULL OR t.revision = e.at) \
         FOR UPDATE OF head"
    );
    (tenants, head)
}

impl Batch {
    /// Locks the rows that the commits change, then reads the rows that they may collide with. `None` if
    /// all commits are outdated.
    pub(super) async fn begin(
        session: &Session,
        commits: &[&Commit],
    ) -> Result<Option<Self>, Fault> {
        let names: BTreeSet<&str> = commits.iter().map(|one| one.tenant.as_str()).collect();
        let fresh = commits.iter().filter(|one| one.expected == Revision::ZERO);
        let fresh: BTreeSet<&str> = fresh.map(|one| one.tenant.as_str()).collect();
        let mut expected = Vec::new();
        for commit in commits {
            // A revision too large for the table matches no tenant, and neither does -1.
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
        // In this order: all statements but the first see every commit that returned before the head was
        // locked.
        let mut bundle = Bundle::default();
        let locked = bundle.add(lock_tenants, vec![texts(&names)]);
        let both = vec![
            array(expected.iter().map(|(tenant, _)| tenant.clone())),
            array(expected.iter().map(|(_, at)| *at)),
        ];
        let head = bundle.add(lock_head, both);
        let version = bundle.add(VERSIONED, Vec::new());
        // A tenant that had no row when tenants were locked may have one now.
        let missing = (!fresh.is_empty()).then(|| bundle.add(TENANTS, vec![texts(&fresh)]));
        let standing = (!ids.is_empty()).then(|| {
            let sql = "SELECT id, kind, tenant FROM $s.rows WHERE id = ANY($1) \
                       UNION ALL SELECT id, NULL, NULL FROM $s.gone WHERE id = ANY($1)";
            bundle.add(sql, vec![array(ids.into_iter())])
        });
        let taken = (!imported.is_empty()).then(|| {
            let sql = format!("SELECT {DIGEST_COLUMNS} FROM $s.digests WHERE digest = ANY($1)");
            let digests = imported.iter().map(|digest| digest.as_bytes().to_vec());
            bundle.add(sql, vec![array(digests)])
        });
        let guards = Guards::of(commits);
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
        let answer = |place: Option<usize>| {
            let rows = place.and_then(|place| found.get(place));
            rows.map(Vec::as_slice).unwrap_or_default()
        };
        // Checked under the lock of the head: a migration takes the same lock, and may just have
        // committed.
        check_version(answer(Some(version)))?;
        let mut tenants = HashMap::new();
        for row in answer(Some(locked)).iter().chain(answer(missing)) {
            let (tenant, head) = TenantHead::read(row)?;
            tenants.insert(tenant, head);
        }
        let outdated = |commit: &&Commit| {
            let head = tenants.get(&commit.tenant);
            head.is_some_and(|head| head.revision != commit.expected)
        };
        let head = answer(Some(head));
        if head.is_empty() && commits.iter().all(outdated) {
            return Ok(None);
        }
        let mut holders = HashMap::new();
        for row in answer(standing) {
            let (kind, tenant): (Option<i16>, Option<String>) = (row.try_get(1)?, row.try_get(2)?);
            let holder = match (kind.map(i64::from), tenant) {
                (Some(KEY), Some(tenant)) => Holder::Tenant(tenant),
                _ => Holder::Gone,
            };
            holders.extend(id_of(row.try_get(0)?).map(|id| (id, holder)));
        }
        let mut digests = HashMap::new();
        for row in answer(taken) {
            let (digest, holder) = read_digest(row)?;
            digests.insert(digest, holder);
        }
        let mut guarded = HashMap::new();
        for row in answer(named) {
            let (kind, tenant, name): (i16, &str, &str) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            // A row with a malformed name guards nothing: no commit can name it.
            let key = TenantId::new(tenant)
                .ok()
                .and_then(|tenant| match i64::from(kind) {
                    TENANT => Some(RowKey::Tenant(tenant)),
                    _ => Some(RowKey::Owner(tenant, PrincipalId::new(name).ok()?)),
                });
            guarded.extend(key.zip(Some(revision_of(row.try_get(3)?))));
        }
        for row in answer(acting) {
            let key = id_of(row.try_get(0)?).map(RowKey::Key);
            guarded.extend(key.zip(Some(revision_of(row.try_get(1)?))));
        }
        Ok(Some(Self {
            head: head::of(head)?,
            tenants,
            standing: holders.keys().copied().collect(),
            holders,
            digests,
            guarded,
            written: Written::default(),
        }))
    }

    /// Adds a commit, unless it is refused.
    pub(super) fn add(&mut self, commit: &Commit) -> Result<Verdict, Fault> {
        let before = self.tenants.get(&commit.tenant).copied();
        let at = before.map_or(Revision::ZERO, |head| head.revision);
        let writable = |record: &crate::core::record::KeyRecord| match self.holders.get(&record.id)
        {
            None => true,
            Some(Holder::Tenant(tenant)) => tenant == record.tenant.as_str(),
            Some(Holder::Gone) => false,
        };
        let holder = |digest: &Digest| self.digests.get(digest).copied();
        // An earlier commit of the same transaction may have written the row.
        let row_at = |row: &RowKey| match self.written.rows.get(row) {
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
        let mut entries = Vec::new();
        for (number, entry) in commit.effects.audit.iter().enumerate() {
            entries.push((place(next, number)?, AuditColumns::of(entry)?));
        }
        // From here on nothing fails, so that a commit is never added in part.
        let row = self.head.advance(commit.tag);
        let revision = row.revision;
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

    /// Writes the accepted commits, and makes them durable. See [`Session::commit_bundle`].
    pub(super) async fn write(self, session: Session) -> Result<(), Fault> {
        let last = self.written.commits.last().copied();
        let rows = &self.written.rows;
        let mut bundle = Bundle::default();
        // A removed key may or may not have a row, so the deletion always includes its id.
        let replaced = |(key, (_, fields)): (&RowKey, &(i64, OwnedRow))| match key {
            RowKey::Key(id) if fields.kind != KEY || self.standing.contains(id) => {
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
        self.written.insert(&mut bundle, last)?;
        session.commit_bundle(bundle).await
    }
}

impl Written {
    /// Adds the statements that insert these rows, and that move the head if there is a new head. The
    /// tables must not contain the rows yet.
    pub(super) fn insert(&self, bundle: &mut Bundle, head: Option<CommitRow>) -> Result<(), Fault> {
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
                let moves: [Column; 3] =
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

/// Inserts everything in one statement: that costs the server less than one statement per table.
const INSERT: &str = "WITH r AS (INSERT INTO $s.rows \
     (place, kind, tenant, name, id, ends, legacy, fingerprint, body, seal) \
     SELECT * FROM unnest($1::bigint[], $2::smallint[], $3::text[], $4::text[], $5::bytea[], \
     $6::bigint[], $7::smallint[], $8::text[], $9::bytea[], $10::bigint[])), \
     a AS (INSERT INTO $s.audit (place, tenant, sequence, command, key, body, seal) \
     SELECT * FROM unnest($11::bigint[], $12::text[], $13::bigint[], $14::text[], $15::bytea[], \
     $16::bytea[], $17::bigint[])), \
     t AS (INSERT INTO $s.tenants (tenant, revision, decided_at, sequence, hash, seal) \
     SELECT * FROM unnest($18::text[], $19::bigint[], $20::bigint[], $21::bigint[], $22::bytea[], \
     $23::bigint[]) ON CONFLICT (tenant) DO UPDATE SET revision = excluded.revision, \
     decided_at = excluded.decided_at, sequence = excluded.sequence, hash = excluded.hash, \
     seal = excluded.seal), \
     c AS (INSERT INTO $s.commits (revision, tag, seal) \
     SELECT * FROM unnest($24::bigint[], $25::bytea[], $26::bigint[]))";

/// Moves the head to the last of the commits.
const MOVE_HEAD: &str =
    "UPDATE $s.head SET revision = $27, tag = $28, commit_seal = $29 WHERE one = 1";

fn small(number: i64) -> i16 {
    // Kinds and flags are single digits.
    i16::try_from(number).unwrap_or(-1)
}

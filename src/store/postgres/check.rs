//! What is broken in the tables, and how large they are.

use super::fault::Fault;
use super::head::{self, Head};
use super::link::Tx;
use super::{nodes, rows};
use crate::store::rows::{AUDIT_COLUMNS, COLUMNS};
use crate::store::{IntegrityReport, Stats};

/// How many rows come at a time. A judgement.
const SOME: usize = 2048;

/// Each tenant's head, with how many entries its trail has and the number of the newest one.
const TRAILS: &str = "SELECT t.tenant, t.revision, t.decided_at, t.sequence, t.hash, t.seal, \
     coalesce(a.entries, 0), coalesce(a.newest, 0) \
     FROM $s.tenants AS t LEFT JOIN \
     (SELECT tenant, count(*) AS entries, max(sequence) AS newest FROM $s.audit GROUP BY tenant) AS a \
     ON a.tenant = t.tenant ORDER BY t.tenant";

const HEADLESS: &str = "SELECT tenant FROM $s.rows UNION SELECT tenant FROM $s.audit \
     EXCEPT SELECT tenant FROM $s.tenants";

/// Reads everything, and names what is broken.
pub(super) async fn check(tx: &Tx<'_>) -> Result<IntegrityReport, Fault> {
    let mut report = IntegrityReport::default();
    if let Err(damage) = damage(Head::read(tx).await)? {
        report.add(damage);
    }
    let sql = format!("SELECT {COLUMNS} FROM $s.rows ORDER BY place");
    tx.each(&sql, SOME, |row| {
        report.row(damage(rows::change(row))?);
        Ok(())
    })
    .await?;
    let sql = format!("SELECT {AUDIT_COLUMNS} FROM $s.audit ORDER BY place");
    tx.each(&sql, SOME, |row| {
        report.entry(rows::entry(row)?);
        Ok(())
    })
    .await?;
    tx.each(TRAILS, SOME, |row| {
        match damage(head::tenant(row))? {
            Ok((tenant, head)) => {
                let trail = (row.try_get(6)?, row.try_get(7)?);
                report.trail(tenant.as_str(), &head, trail);
            }
            Err(damage) => report.add(damage),
        }
        Ok(())
    })
    .await?;
    tx.each(HEADLESS, SOME, |row| {
        report.headless(row.try_get(0)?);
        Ok(())
    })
    .await?;
    let sql = "SELECT digest, id, seal FROM $s.digests";
    tx.each(sql, SOME, |row| {
        report.digest(row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
        Ok(())
    })
    .await?;
    for fault in nodes::check(tx).await? {
        report.add(fault);
    }
    Ok(report)
}

/// What was read, or what damage it has. Any other fault says nothing of the tables.
pub(super) fn damage<T>(read: Result<T, Fault>) -> Result<Result<T, String>, Fault> {
    match read {
        Ok(read) => Ok(Ok(read)),
        Err(Fault::Corrupt(what)) => Ok(Err(what)),
        Err(fault) => Err(fault),
    }
}

pub(super) async fn stats(tx: &Tx<'_>) -> Result<Stats, Fault> {
    let head = Head::read(tx).await?.cursor;
    let sql = "SELECT count(*) FILTER (WHERE kind = 2), count(*) FILTER (WHERE kind = 3), \
               count(*) FILTER (WHERE kind = 1), count(*) FILTER (WHERE kind = 0), \
               (SELECT count(*) FROM $s.audit), current_setting('server_version') FROM $s.rows";
    let counted = tx.query(sql, &[]).await?;
    let counted = counted
        .first()
        .ok_or(Fault::Refused("nothing was counted"))?;
    let count = |column: usize| -> Result<u64, Fault> {
        Ok(counted.try_get::<_, i64>(column)?.unsigned_abs())
    };
    let version: &str = counted.try_get(5)?;
    let sql = "SELECT coalesce(sum(pg_total_relation_size(c.oid)), 0)::bigint \
               FROM pg_catalog.pg_class AS c \
               JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
               WHERE n.nspname = $1 AND c.relkind = 'r'";
    let bytes = tx.query(sql, &[&tx.schema().name()]).await?;
    let bytes = bytes.first().map(|row| row.try_get(0)).transpose()?;
    Ok(Stats {
        head,
        keys: count(0)?,
        removed: count(1)?,
        owners: count(2)?,
        tenants: count(3)?,
        audit: count(4)?,
        bytes: bytes.map_or(0, i64::unsigned_abs),
        engine: format!(
            "PostgreSQL {}",
            version.split(' ').next().unwrap_or(version)
        ),
    })
}

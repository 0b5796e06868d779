//! Checks who controls the tables of a store: their owners, and parts that the store did not create.

use deadpool_postgres::Transaction;

use super::fault::PostgresFault;
use super::schema::Schema;

/// Selects the tables of the store.
const OURS: &str = "WITH ours AS (\
     SELECT c.oid AS id, c.relname::text AS name, c.relowner, c.relkind, c.relpersistence, c.relrowsecurity \
     FROM pg_catalog.pg_class AS c JOIN pg_catalog.pg_namespace AS n ON n.oid = c.relnamespace \
     WHERE n.nspname = $1 AND c.relname::text = ANY($2::text[])) ";

/// Selects the schema and the tables that belong to neither the connecting role nor the role `$3`.
const OWNERS: &str = "SELECT what, r.rolname::text FROM (\
     SELECT 'the schema' AS what, nspowner AS owner FROM pg_catalog.pg_namespace WHERE nspname = $1 \
     UNION ALL SELECT 'the table ' || name, relowner FROM ours) AS o \
     JOIN pg_catalog.pg_roles AS r ON r.oid = owner \
     WHERE r.rolname <> current_user AND r.rolname::text <> $3 ORDER BY 1 LIMIT 1";

/// Selects what `schema.sql` does not create: code that a statement runs, rows that it reads from elsewhere, and
/// rows that it does not see or that a crash removes.
const PARTS: &str = "SELECT name, kind, part FROM (\
     SELECT name, 'the trigger' AS kind, tgname::text AS part \
     FROM ours JOIN pg_catalog.pg_trigger ON tgrelid = id WHERE NOT tgisinternal \
     UNION ALL SELECT name, 'the rule', rulename::text \
     FROM ours JOIN pg_catalog.pg_rewrite ON ev_class = id \
     UNION ALL SELECT name, 'the default of column', attname::text \
     FROM ours JOIN pg_catalog.pg_attribute ON attrelid = id WHERE atthasdef AND NOT attisdropped \
     UNION ALL SELECT name, 'the child or parent', c.relname::text \
     FROM ours JOIN pg_catalog.pg_inherits ON id IN (inhrelid, inhparent) \
     JOIN pg_catalog.pg_class AS c ON c.oid IN (inhrelid, inhparent) AND c.oid <> id \
     UNION ALL SELECT name, 'the policy', 'row level security' FROM ours WHERE relrowsecurity \
     UNION ALL SELECT name, 'the kind', relkind::text || relpersistence::text \
     FROM ours WHERE relkind <> 'r' OR relpersistence <> 'p') AS p ORDER BY 1, 2, 3 LIMIT 1";

/// Fails if another role than the connecting one and `owner` owns the schema or a table, or if a table has a
/// part that the store did not create.
///
/// Such a role could make revoked keys work again, and could run code with the rights of the connecting role.
pub(super) async fn check(
    tx: &Transaction<'_>,
    schema: &Schema,
    owner: Option<&str>,
) -> Result<(), PostgresFault> {
    let (name, tables) = (schema.name(), Schema::tables());
    // No role has an empty name.
    let owner = owner.unwrap_or_default();
    let owners = format!("{OURS}{OWNERS}");
    if let Some(row) = tx.query_opt(&owners, &[&name, &tables, &owner]).await? {
        return Err(PostgresFault::Owner {
            object: row.try_get(0)?,
            owner: row.try_get(1)?,
        });
    }
    let parts = format!("{OURS}{PARTS}");
    if let Some(row) = tx.query_opt(&parts, &[&name, &tables]).await? {
        let (kind, part): (&str, &str) = (row.try_get(1)?, row.try_get(2)?);
        return Err(PostgresFault::Foreign {
            table: row.try_get(0)?,
            // Another role chose the name, so control characters are escaped.
            part: format!("{kind} {part:?}"),
        });
    }
    Ok(())
}

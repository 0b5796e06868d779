//! Detects a connection pooler that keeps no prepared statements between transactions, or no transactions.

use tokio_postgres::error::SqlState;

use super::fault::PostgresFault;
use super::session::{Database, WaitLimit};
use crate::observe::WithSources;

/// Fails if the server connection has changed between two uses of a prepared statement, and the pooler did not
/// prepare the statement again. Also fails if the pooler refuses transactions.
///
/// A pooler in transaction mode gives `reading` another server connection while `writing` holds the one on
/// which the statement was prepared.
///
/// Succeeds if nothing can be observed: without a second connection, or if the pooler has only one server
/// connection. An affected call then fails, and its error names the reason.
pub(super) async fn check_statements(
    reading: &Database,
    writing: &Database,
) -> Result<(), PostgresFault> {
    let shared = matches!(reading.wait_limit, WaitLimit::Store);
    if shared && reading.pool.status().max_size < 2 {
        return Ok(());
    }
    let mut prepared = reading.connection().await?;
    let client = prepared.object()?;
    let statement = client.prepare("SELECT 1").await?;
    client.query_one(&statement, &[]).await?;
    let mut holder = match writing.connection().await {
        Ok(holder) => holder,
        Err(fault) => {
            tracing::warn!(error = %WithSources(&fault), "could not open a second connection: commits need their own");
            prepared.give_back();
            return Ok(());
        }
    };
    // Until `ROLLBACK`, the pooler keeps a server connection for `holder`.
    let begun = holder.object()?.batch_execute("BEGIN").await;
    begun.map_err(|error| match error.code() {
        // The response of PgBouncer in statement mode. The server itself never refuses a `BEGIN`.
        Some(&SqlState::PROTOCOL_VIOLATION) => PostgresFault::Pooler,
        _ => error.into(),
    })?;
    holder.object()?.batch_execute("SELECT 1").await?;
    let found = client.query_one(&statement, &[]);
    match tokio::time::timeout(reading.timeouts.connection, found).await {
        Ok(found) => found?,
        // Every server connection is taken. Dropping both connections closes them.
        Err(_) => return Ok(()),
    };
    holder.object()?.batch_execute("ROLLBACK").await?;
    holder.give_back();
    prepared.give_back();
    Ok(())
}

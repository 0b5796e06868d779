//! Connections and transactions: each with its timeouts, and none kept after something went wrong.

use std::time::Duration;

use deadpool_postgres::{Object, Pool, Transaction};
use futures_util::future::try_join;
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Row, Statement};

use super::fault::Fault;
use super::schema::{Schema, VERSION};

/// What a statement is bound to.
pub(super) type Bound<'a> = &'a (dyn ToSql + Sync);

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle: Duration,
    /// One call as a whole, and the wait for its commit once more.
    pub(super) request: Duration,
    /// A free connection, or a new one.
    pub(super) connection: Duration,
}

/// The way to the database.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) pool: Pool,
    pub(super) schema: Schema,
    pub(super) timeouts: Timeouts,
}

/// What must hold of a server and of its tables.
pub(super) const STANDING: &str =
    "SELECT version, pg_is_in_recovery() FROM $s.schema_version WHERE one = 1";

/// A commit that is told must be on disk, whatever the database does by default.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local');";

/// Refuses what [`STANDING`] found, unless it is a primary with tables of this build's version.
pub(super) fn check_standing(found: &[Row]) -> Result<(), Fault> {
    let found = found.first();
    let found = found.ok_or_else(|| Fault::corrupt("the schema's version is missing"))?;
    if found.try_get(1)? {
        return Err(Fault::Standby);
    }
    match found.try_get(0)? {
        VERSION => Ok(()),
        found => Err(Fault::version(found)),
    }
}

/// A connection. It is closed when dropped, whatever it was doing, unless it is given back.
pub(super) struct Conn {
    object: Option<Object>,
}

impl Conn {
    /// Back to the pool, with nothing under way.
    pub(super) fn give_back(mut self) {
        drop(self.object.take());
    }

    pub(super) fn object(&mut self) -> Result<&mut Object, Fault> {
        self.object
            .as_mut()
            .ok_or(Fault::Refused("the connection was given back"))
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// A transaction; rolled back when dropped.
pub(super) struct Tx<'c> {
    tx: Transaction<'c>,
    schema: &'c Schema,
}

impl Link {
    pub(super) async fn connection(&self) -> Result<Conn, Fault> {
        let wait = tokio::time::timeout(self.timeouts.connection, self.pool.get());
        let object = wait.await.map_err(|_| Fault::Exhausted)??;
        Ok(Conn {
            object: Some(object),
        })
    }

    /// Begins to read, all of it as of one instant, no earlier than now.
    pub(super) async fn snapshot<'c>(&'c self, conn: &'c mut Conn) -> Result<Tx<'c>, Fault> {
        let begin = conn.object()?.build_transaction().read_only(true);
        let begin = begin.isolation_level(IsolationLevel::RepeatableRead);
        self.begun(begin.start().await?, "").await
    }

    /// Begins to write. Every statement sees what was committed before it.
    pub(super) async fn writing<'c>(&'c self, conn: &'c mut Conn) -> Result<Tx<'c>, Fault> {
        let begin = conn.object()?.build_transaction();
        let begin = begin.isolation_level(IsolationLevel::ReadCommitted);
        self.begun(begin.start().await?, DURABLE).await
    }

    /// Begins to write what others cannot read: nothing is asked of the tables' version, which stays
    /// locked until the end. It is told.
    pub(super) async fn apart<'c>(&'c self, conn: &'c mut Conn) -> Result<(Tx<'c>, i32), Fault> {
        let begin = conn.object()?.build_transaction();
        let begin = begin.isolation_level(IsolationLevel::ReadCommitted);
        let tx = Tx {
            tx: begin.start().await?,
            schema: &self.schema,
        };
        tx.tx.batch_execute(&(self.settings() + DURABLE)).await?;
        let found = tx.query(&format!("{STANDING} FOR UPDATE"), &[]).await?;
        match check_standing(&found) {
            Ok(()) => Ok((tx, VERSION)),
            Err(Fault::Copying | Fault::Version { .. }) => {
                let found = found.first().map(|row| row.try_get(0)).transpose()?;
                Ok((tx, found.unwrap_or_default()))
            }
            Err(fault) => Err(fault),
        }
    }

    async fn begun<'c>(&'c self, tx: Transaction<'c>, more: &'static str) -> Result<Tx<'c>, Fault> {
        let tx = Tx {
            tx,
            schema: &self.schema,
        };
        let timeouts = self.settings() + more;
        let version = tx.prepare(STANDING).await?;
        let settings = async { Ok(tx.tx.batch_execute(&timeouts).await?) };
        let ((), found) = try_join(settings, tx.query_with(&version, &[])).await?;
        check_standing(&found)?;
        Ok(tx)
    }

    /// Settings of one transaction, so that they stay on no connection that the host uses as well.
    pub(super) fn settings(&self) -> String {
        let Timeouts {
            statement,
            lock,
            idle,
            ..
        } = self.timeouts;
        // Zero would be no timeout at all.
        let millis = |timeout: Duration| timeout.as_millis().clamp(1, i32::MAX as u128);
        format!(
            "SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {};",
            millis(statement),
            millis(lock),
            millis(idle)
        )
    }
}

impl<'c> Tx<'c> {
    /// A statement, in which `$s` stands for the schema.
    pub(super) async fn prepare(&self, sql: &str) -> Result<Statement, Fault> {
        let sql = sql.replace("$s.", self.schema.prefix());
        Ok(self.tx.prepare_cached(&sql).await?)
    }

    pub(super) fn schema(&self) -> &'c Schema {
        self.schema
    }

    pub(super) async fn query(&self, sql: &str, with: &[Bound<'_>]) -> Result<Vec<Row>, Fault> {
        let statement = self.prepare(sql).await?;
        self.query_with(&statement, with).await
    }

    pub(super) async fn query_with(
        &self,
        statement: &Statement,
        with: &[Bound<'_>],
    ) -> Result<Vec<Row>, Fault> {
        Ok(self.tx.query(statement, with).await?)
    }

    pub(super) async fn execute(&self, sql: &str, with: &[Bound<'_>]) -> Result<u64, Fault> {
        let statement = self.prepare(sql).await?;
        self.execute_with(&statement, with).await
    }

    pub(super) async fn execute_with(
        &self,
        statement: &Statement,
        with: &[Bound<'_>],
    ) -> Result<u64, Fault> {
        Ok(self.tx.execute(statement, with).await?)
    }

    /// Looks at rows as they come, some at a time, until `look` has seen enough.
    pub(super) async fn each(
        &self,
        sql: &str,
        with: &[Bound<'_>],
        some: i32,
        mut look: impl FnMut(&Row) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let statement = self.prepare(sql).await?;
        let portal = self.tx.bind(&statement, with).await?;
        loop {
            let rows = self.tx.query_portal(&portal, some).await?;
            for row in &rows {
                if look(row)? {
                    return Ok(());
                }
            }
            if i32::try_from(rows.len()).is_ok_and(|got| got < some) {
                return Ok(());
            }
        }
    }

    /// Lets each statement of the transaction take as long as it needs.
    pub(super) async fn be_patient(&self) -> Result<(), Fault> {
        Ok(self
            .tx
            .batch_execute("SET LOCAL statement_timeout = 0")
            .await?)
    }

    /// Ends a snapshot. The server need not be waited for: nothing was written.
    pub(super) fn end(self) {
        drop(self);
    }

    /// Makes what was written durable. [`Fault::Unknown`] if it may or may not have been.
    pub(super) async fn commit(self) -> Result<(), Fault> {
        let committed = self.tx.commit().await;
        committed.map_err(|error| Fault::from(error).of_commit())
    }
}

//! Connections and transactions: each with its timeouts, and none kept after something went wrong.

use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Object, Pool, Transaction};
use futures_util::future::{BoxFuture, FutureExt, join, join3, poll_immediate, try_join};
use tokio::sync::Mutex;
use tokio_postgres::types::ToSql;
use tokio_postgres::{IsolationLevel, Portal, Row, RowStream, Statement};

use super::fault::{Fault, PoolExhausted};
use super::heartbeat::{Heartbeats, SERVER};
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

/// Who sees to it that nobody waits for a connection for ever.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// A pool of the store's own, which also tells one that is not free from one that cannot be made.
    OfPool,
    /// The store, since a host's pool may wait for ever.
    OfStore,
}

impl Timeouts {
    /// The server's own, of a statement, a lock and an idle transaction, as it is told them.
    pub(super) fn in_millis(&self) -> [String; 3] {
        // Zero would be no timeout at all.
        let millis = |timeout: Duration| timeout.as_millis().clamp(1, i32::MAX as u128);
        [self.statement, self.lock, self.idle].map(|timeout| millis(timeout).to_string())
    }
}

/// The way to the database.
#[derive(Clone)]
pub(super) struct Link {
    pub(super) pool: Pool,
    pub(super) patience: Patience,
    pub(super) schema: Schema,
    pub(super) timeouts: Timeouts,
    /// In strict mode.
    pub(super) heartbeats: Option<Arc<Heartbeats>>,
    /// True if reads come with the server's clock.
    pub(super) server_clock: bool,
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

/// A transaction. Nothing that it is asked is told unless it began as it should. One that is neither
/// ended nor committed ends with its connection.
pub(super) struct Tx<'c> {
    client: &'c ClientWrapper,
    schema: &'c Schema,
    begun: Mutex<Begun<'c>>,
    /// In strict mode, unless nothing is concluded from it.
    heartbeats: Option<&'c Heartbeats>,
}

/// How a transaction began.
enum Begun<'c> {
    /// The server was told, and has not answered yet.
    Asked(BoxFuture<'c, Result<Option<String>, Fault>>),
    /// On which server, in strict mode.
    Well(Option<String>),
    Badly,
}

impl Link {
    pub(super) async fn connection(&self) -> Result<Conn, Fault> {
        let object = match self.patience {
            Patience::OfPool => self.pool.get().await?,
            Patience::OfStore => {
                let wait = tokio::time::timeout(self.timeouts.connection, self.pool.get());
                wait.await.map_err(|_| Fault::Exhausted(PoolExhausted))??
            }
        };
        Ok(Conn {
            object: Some(object),
        })
    }

    /// Begins to read, all of it as of one instant, no earlier than now.
    pub(super) async fn snapshot<'c>(&'c self, conn: &'c mut Conn) -> Result<Tx<'c>, Fault> {
        self.begin(conn, "ISOLATION LEVEL REPEATABLE READ, READ ONLY", "")
            .await
    }

    /// Begins to read what nothing is concluded from: it is told without a proof.
    pub(super) async fn glance<'c>(&'c self, conn: &'c mut Conn) -> Result<Tx<'c>, Fault> {
        let mut tx = self.snapshot(conn).await?;
        tx.heartbeats = None;
        Ok(tx)
    }

    /// Begins to write. Every statement sees what was committed before it.
    pub(super) async fn writing<'c>(&'c self, conn: &'c mut Conn) -> Result<Tx<'c>, Fault> {
        self.begin(conn, "ISOLATION LEVEL READ COMMITTED", DURABLE)
            .await
    }

    /// Begins to write what others cannot read: nothing is asked of the tables' version, which stays
    /// locked until the end. It is told.
    pub(super) async fn apart<'c>(&'c self, conn: &'c mut Conn) -> Result<(Tx<'c>, i32), Fault> {
        let client: &ClientWrapper = conn.object()?;
        let begin = "START TRANSACTION ISOLATION LEVEL READ COMMITTED; ";
        let begin = format!("{begin}{}{DURABLE}", self.settings());
        client.batch_execute(&begin).await?;
        let server = match &self.heartbeats {
            Some(_) => Some(server_of(&client.query(SERVER, &[]).await?)?),
            None => None,
        };
        let tx = Tx {
            client,
            schema: &self.schema,
            begun: Mutex::new(Begun::Well(server)),
            heartbeats: self.heartbeats.as_deref(),
        };
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

    /// Sends what begins a transaction. The answer is waited for with that to its first statement.
    async fn begin<'c>(
        &'c self,
        conn: &'c mut Conn,
        mode: &str,
        more: &str,
    ) -> Result<Tx<'c>, Fault> {
        let client: &ClientWrapper = conn.object()?;
        let standing = STANDING.replace("$s.", self.schema.prefix());
        let standing = client.prepare_cached(&standing).await?;
        let who = match &self.heartbeats {
            Some(_) => Some(client.prepare_cached(SERVER).await?),
            None => None,
        };
        let begin = format!("START TRANSACTION {mode}; {}{more}", self.settings());
        let mut asked = async move {
            let with: [Bound<'_>; 0] = [];
            let begun = client.batch_execute(&begin);
            let server = async {
                match &who {
                    Some(who) => client.query(who, &[]).await.map(Some),
                    None => Ok(None),
                }
            };
            let (begun, found, server) = join3(begun, client.query(&standing, &with), server).await;
            begun?;
            check_standing(&found?)?;
            server?.as_deref().map(server_of).transpose()
        }
        .boxed();
        let begun = match poll_immediate(&mut asked).await {
            None => Begun::Asked(asked),
            Some(done) => Begun::Well(done?),
        };
        Ok(Tx {
            client,
            schema: &self.schema,
            begun: Mutex::new(begun),
            heartbeats: self.heartbeats.as_deref(),
        })
    }

    /// Begins to look through rows some at a time, in a snapshot.
    pub(super) async fn listing<'c>(&'c self, conn: &'c mut Conn) -> Result<Listing<'c>, Fault> {
        let begin = conn.object()?.build_transaction().read_only(true);
        let begin = begin.isolation_level(IsolationLevel::RepeatableRead);
        let tx = begin.start().await?;
        let standing = STANDING.replace("$s.", self.schema.prefix());
        let standing = tx.prepare_cached(&standing).await?;
        let settings = self.settings();
        let settings = tx.batch_execute(&settings);
        let ((), found) = try_join(settings, tx.query(&standing, &[])).await?;
        check_standing(&found)?;
        let server = match &self.heartbeats {
            Some(_) => Some(server_of(&tx.query(SERVER, &[]).await?)?),
            None => None,
        };
        Ok(Listing {
            tx,
            link: self,
            server,
        })
    }

    /// Waits until what was read or written on `server` may be told: in strict mode, not before the
    /// synchronous standby is known to have followed until now.
    pub(super) async fn prove(&self, server: Option<&str>) -> Result<(), Fault> {
        prove(self.heartbeats.as_deref(), server).await
    }

    /// Settings of one transaction, so that they stay on no connection that the host uses as well.
    pub(super) fn settings(&self) -> String {
        let [statement, lock, idle] = self.timeouts.in_millis();
        format!(
            "SET LOCAL statement_timeout = {statement}; SET LOCAL lock_timeout = {lock}; \
             SET LOCAL idle_in_transaction_session_timeout = {idle};"
        )
    }
}

impl<'c> Tx<'c> {
    /// A statement, in which `$s` stands for the schema.
    pub(super) async fn prepare(&self, sql: &str) -> Result<Statement, Fault> {
        let sql = sql.replace("$s.", self.schema.prefix());
        Ok(self.client.prepare_cached(&sql).await?)
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
        self.after_begin(self.client.query(statement, with)).await
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
        self.after_begin(self.client.execute(statement, with)).await
    }

    /// Asks at once, and tells the answer if the transaction began well.
    async fn after_begin<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Fault> {
        // In this order: what is polled first is sent, whatever the other waits for.
        let (answer, begun) = join(asked, self.begun()).await;
        begun?;
        Ok(answer?)
    }

    async fn begun(&self) -> Result<(), Fault> {
        let mut begun = self.begun.lock().await;
        let done = match &mut *begun {
            Begun::Well(_) => return Ok(()),
            Begun::Badly => return Err(Fault::Refused("the transaction did not begin")),
            Begun::Asked(asked) => asked.await,
        };
        match done {
            Ok(server) => {
                *begun = Begun::Well(server);
                Ok(())
            }
            Err(fault) => {
                *begun = Begun::Badly;
                Err(fault)
            }
        }
    }

    /// Looks at all rows that a statement without parameters finds, `some` at a time.
    pub(super) async fn each(
        &self,
        sql: &str,
        some: usize,
        mut look: impl FnMut(&Row) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let client = self.client().await?;
        let sql = sql.replace("$s.", self.schema.prefix());
        let declare = format!("DECLARE all_rows NO SCROLL CURSOR FOR {sql}");
        client.batch_execute(&declare).await?;
        let fetch = format!("FETCH {some} FROM all_rows");
        let fetch = client.prepare(&fetch).await?;
        loop {
            let rows = client.query(&fetch, &[]).await?;
            rows.iter().try_for_each(&mut look)?;
            if rows.len() < some {
                return Ok(client.batch_execute("CLOSE all_rows").await?);
            }
        }
    }

    /// Lets each statement of the transaction take as long as it needs.
    pub(super) async fn be_patient(&self) -> Result<(), Fault> {
        let client = self.client().await?;
        Ok(client
            .batch_execute("SET LOCAL statement_timeout = 0")
            .await?)
    }

    /// Its connection, once it began.
    pub(super) async fn client(&self) -> Result<&'c ClientWrapper, Fault> {
        self.begun().await?;
        Ok(self.client)
    }

    pub(super) const fn schema(&self) -> &'c Schema {
        self.schema
    }

    /// Whatever it was asked before is proven by this, in strict mode.
    async fn prove(self) -> Result<(), Fault> {
        if self.heartbeats.is_none() {
            return Ok(());
        }
        match self.begun.into_inner() {
            Begun::Well(server) => prove(self.heartbeats, server.as_deref()).await,
            _ => Err(Fault::Refused("the transaction did not begin")),
        }
    }

    /// Ends a snapshot. Only then may be told what was read: in strict mode, not before it is proven.
    /// Else the server need not be waited for: nothing was written.
    pub(super) async fn end(self) -> Result<(), Fault> {
        // Sent when first polled.
        drop(self.client.batch_execute("ROLLBACK").now_or_never());
        self.prove().await
    }

    /// Makes what was written durable. [`Fault::Unknown`] if it may or may not have been; in strict mode
    /// also if the standby may not have it, since the wait for it was cancelled.
    pub(super) async fn commit(self) -> Result<(), Fault> {
        self.begun().await?;
        let committed = self.client.batch_execute("COMMIT").await;
        committed.map_err(|error| Fault::from(error).of_commit())?;
        let proven = self.prove().await;
        proven.map_err(|fault| Fault::Unknown(Box::new(fault)))
    }
}

async fn prove(heartbeats: Option<&Heartbeats>, server: Option<&str>) -> Result<(), Fault> {
    match (heartbeats, server) {
        (None, _) => Ok(()),
        (Some(heartbeats), Some(server)) => heartbeats.prove(server).await,
        (Some(_), None) => Err(UNNAMED),
    }
}

const UNNAMED: Fault = Fault::Refused("the server does not tell who it is");

/// The server that [`SERVER`] found.
pub(super) fn server_of(found: &[Row]) -> Result<String, Fault> {
    let server = found.first().map(|row| row.try_get(0)).transpose()?;
    server.ok_or(UNNAMED)
}

/// A snapshot that is looked through.
pub(super) struct Listing<'c> {
    tx: Transaction<'c>,
    link: &'c Link,
    /// In strict mode.
    server: Option<String>,
}

impl<'c> Listing<'c> {
    pub(super) fn schema(&self) -> &'c Schema {
        &self.link.schema
    }

    /// A statement, in which `$s` stands for the schema.
    async fn prepare(&self, sql: &str) -> Result<Statement, Fault> {
        let sql = sql.replace("$s.", self.link.schema.prefix());
        Ok(self.tx.prepare_cached(&sql).await?)
    }

    /// Few rows, all at once.
    pub(super) async fn query(&self, sql: &str) -> Result<Vec<Row>, Fault> {
        let statement = self.prepare(sql).await?;
        Ok(self.tx.query(&statement, &[]).await?)
    }

    /// Looks at rows as they come, some at a time, until `look` has seen enough.
    pub(super) async fn each(
        &self,
        sql: &str,
        with: &[Bound<'_>],
        some: i32,
        mut look: impl FnMut(&Row) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let portal = self.portal(sql, with).await?;
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

    /// Rows that are to be read some at a time, with [`go_on`](Self::go_on).
    pub(super) async fn portal(&self, sql: &str, with: &[Bound<'_>]) -> Result<Portal, Fault> {
        let statement = self.prepare(sql).await?;
        Ok(self.tx.bind(&statement, with).await?)
    }

    /// Asks for the next rows of a portal, without waiting for any.
    pub(super) async fn go_on(&self, portal: &Portal, some: i32) -> Result<RowStream, Fault> {
        Ok(self.tx.query_portal_raw(portal, some).await?)
    }

    /// Ends it. Only then may be told what was read: in strict mode, not before it is proven. Else the
    /// server need not be waited for.
    pub(super) async fn end(self) -> Result<(), Fault> {
        let Self { tx, link, server } = self;
        drop(tx);
        link.prove(server.as_deref()).await
    }
}

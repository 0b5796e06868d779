//! Sessions. Each is one transaction on a connection of its own.
//!
//! A statement is sent when it is first polled, after the `BEGIN` of its transaction. So a call makes
//! one round trip, however many statements the call runs concurrently.
//!
//! Invariants: an answer is returned only if the transaction began well. A connection goes back to the
//! pool only after its transaction ended well. Any other connection is closed, and the server rolls
//! back.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Object, Pool};
use futures_util::future::{
    BoxFuture, FutureExt, Shared, join, join3, maybe_done, try_join, try_join_all,
};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, RowStream, Statement};

use super::fault::{Fault, PoolExhausted};
use super::heartbeat::{Heartbeats, SERVER, Server};
use super::rows::{Bound, bound};
use super::schema::{Schema, VERSION};
use crate::store::sql::Sql;

/// 24 hours, the limit of a call that reads everything: an operator waits for the call and can cancel
/// it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The settings of a copy: no statement timeout, and ten minutes between two steps, since the source is
/// read in between. A judgement.
const PATIENCE: &str = "SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = '10min'";

/// The timeouts of one store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle: Duration,
    /// The limit of one call as a whole, and again of the wait for its commit.
    pub(super) request: Duration,
    /// The limit of the wait for a free connection, and of opening a new one.
    pub(super) connection: Duration,
}

/// The time that a call may take.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Takes {
    /// At most the request timeout.
    Moment,
    /// Six times the request timeout: a listing may read many rows to find few.
    While,
    /// A day: the call reads everything, for an operator.
    AsLongAsItNeeds,
}

/// The side that limits the wait for a connection.
#[derive(Clone, Copy, Debug)]
pub(super) enum Patience {
    /// The store's own pool limits the wait, and distinguishes a busy connection from a failed one.
    OfPool,
    /// The store limits the wait, since a host's pool may wait without a limit.
    OfStore,
}

/// The pool and the settings for one database.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) pool: Pool,
    pub(super) patience: Patience,
    pub(super) schema: Schema,
    pub(super) timeouts: Timeouts,
    /// The handle of the heartbeat task; `None` unless in strict mode.
    pub(super) heartbeats: Option<Arc<Heartbeats>>,
    /// Whether reads return the server's clock.
    pub(super) server_clock: bool,
}

impl Database {
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

    pub(super) fn limit(&self, takes: Takes) -> Duration {
        let limit = match takes {
            Takes::Moment => self.timeouts.request,
            Takes::While => self.timeouts.request.saturating_mul(6),
            Takes::AsLongAsItNeeds => LONGEST,
        };
        // A more distant `Instant` might not be representable.
        limit.min(LONGEST)
    }

    /// Returns the statements that set the timeouts of one transaction. The settings end with the
    /// transaction, since the host may use the connection as well.
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

    /// Waits until the caller may report what was read or written on `server`. In strict mode, that is
    /// after the synchronous standby has acknowledged a heartbeat that began after this call. Otherwise
    /// returns immediately.
    async fn prove(&self, server: Option<Server>) -> Result<(), Fault> {
        match (&self.heartbeats, server) {
            (Some(heartbeats), Some(server)) => heartbeats.prove(&server).await,
            _ => Ok(()),
        }
    }
}

/// A connection of the pool. A connection that is dropped without `give_back` is closed.
pub(super) struct Conn {
    object: Option<Object>,
}

impl Conn {
    /// Returns the connection to the pool. The connection must have no open transaction.
    pub(super) fn give_back(mut self) {
        drop(self.object.take());
    }

    pub(super) fn object(&mut self) -> Result<&mut Object, Fault> {
        self.object.as_mut().ok_or(GIVEN_BACK)
    }

    fn client(&self) -> Result<&ClientWrapper, Fault> {
        self.object.as_deref().ok_or(GIVEN_BACK)
    }
}

const GIVEN_BACK: Fault = Fault::Refused("the connection was given back");

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// The kind of a session's transaction.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum Mode {
    /// Reads one snapshot, taken after the session began.
    Read,
    /// Reads one snapshot whose result is only a hint, so that strict mode needs no heartbeat.
    Hint,
    /// Writes. Each statement sees what was committed before that statement.
    Write,
    /// Writes. The steps themselves check the version of the tables, under a lock; see [`VERSIONED`].
    Commit,
}

impl Mode {
    pub(super) const fn writes(self) -> bool {
        matches!(self, Self::Write | Self::Commit)
    }

    const fn begin(self) -> &'static str {
        match self {
            Self::Read | Self::Hint => {
                "START TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY; \
                 SET LOCAL cursor_tuple_fraction = 1; "
            }
            Self::Write | Self::Commit => "START TRANSACTION ISOLATION LEVEL READ COMMITTED; ",
        }
    }
}

/// Makes the server wait for the disk before it reports a commit, whatever the database's default.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local');";

/// Finds the version of the tables, and whether the server is a standby.
pub(super) const VERSIONED: &str =
    "SELECT version, pg_is_in_recovery() FROM $s.schema_version WHERE one = 1";

/// Checks the answer to [`VERSIONED`]: the server must be a primary, and the tables must have this
/// build's version.
pub(super) fn check_version(found: &[Row]) -> Result<(), Fault> {
    let found = found.first();
    let found = found.ok_or_else(|| Fault::corrupt("the schema's version is missing"))?;
    if found.try_get(1)? {
        return Err(Fault::Standby);
    }
    match found.try_get(0)? {
        VERSION => Ok(()),
        found => Err(Fault::version(found, VERSION)),
    }
}

/// A parameter that lives as long as its statement is in flight.
pub(super) type Column = Box<dyn ToSql + Sync + Send>;

/// Collects one column of the rows into an array, for a statement that takes arrays.
pub(super) fn array<T>(column: impl Iterator<Item = T>) -> Column
where
    Vec<T>: ToSql + Sync + Send + 'static,
{
    Box::new(column.collect::<Vec<T>>())
}

/// Statements that are sent together and run in their order. `$s.` stands for the schema.
#[derive(Default)]
pub(super) struct Bundle(Vec<(String, Vec<Column>)>);

impl Bundle {
    /// Adds a statement and returns its index.
    pub(super) fn add(&mut self, sql: impl Into<String>, with: Vec<Column>) -> usize {
        self.0.push((sql.into(), with));
        self.0.len() - 1
    }

    /// Returns a future for each statement, which sends the statement when first polled. There are so
    /// few futures that they are first polled in their order.
    fn sent<'a>(
        &'a self,
        ready: &'a [Statement],
        client: &'a ClientWrapper,
    ) -> impl Iterator<Item = BoxFuture<'a, Result<Vec<Row>, tokio_postgres::Error>>> {
        self.0.iter().zip(ready).map(move |((_, with), statement)| {
            let run = async move {
                let with: Vec<Bound<'_>> = with
                    .iter()
                    .map(|column| -> Bound<'_> { &**column })
                    .collect();
                client.query(statement, &with).await
            };
            run.boxed()
        })
    }
}

/// The pending start of a transaction. Returns the server of the transaction, in strict mode.
type Begun = Shared<BoxFuture<'static, Result<Option<Server>, Fault>>>;

/// One transaction. If a session is dropped without [`end`](Self::end) or [`commit`](Self::commit), its
/// connection is closed, and the server rolls back.
pub(super) struct Session {
    database: Arc<Database>,
    conn: Arc<Conn>,
    begun: Begun,
}

impl Session {
    /// Sends the beginning of a transaction. The answer is awaited together with that of the first
    /// statement.
    pub(super) async fn begin(database: &Arc<Database>, mode: Mode) -> Result<Self, Fault> {
        let conn = Arc::new(database.connection().await?);
        let client = conn.client()?;
        let version = match mode {
            Mode::Commit => None,
            _ => {
                let sql = VERSIONED.replace("$s.", database.schema.prefix());
                Some(client.prepare_cached(&sql).await?)
            }
        };
        let server = match database.heartbeats {
            Some(_) if mode != Mode::Hint => Some(client.prepare_cached(SERVER).await?),
            _ => None,
        };
        let durable = if mode.writes() { DURABLE } else { "" };
        let begin = format!("{}{}{durable}", mode.begin(), database.settings());
        let begun = begin_on(conn.clone(), begin, version, server);
        let begun = begun.boxed().shared();
        // The first poll sends the statements.
        drop(begun.clone().now_or_never());
        Ok(Self {
            database: database.clone(),
            conn,
            begun,
        })
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.database.schema
    }

    /// Prepares a statement, in which `$s.` stands for the schema.
    async fn prepare(&self, sql: &str) -> Result<Statement, Fault> {
        let sql = sql.replace("$s.", self.database.schema.prefix());
        Ok(self.conn.client()?.prepare_cached(&sql).await?)
    }

    pub(super) async fn query(&self, sql: &str, with: &[Bound<'_>]) -> Result<Vec<Row>, Fault> {
        let statement = self.prepare(sql).await?;
        self.after_begin(self.conn.client()?.query(&statement, with))
            .await
    }

    /// Like [`query`](Self::query), for a statement that both SQL stores share.
    pub(super) async fn query_of(&self, sql: &Sql) -> Result<Vec<Row>, Fault> {
        self.query(&sql.text, &bound(&sql.with)).await
    }

    pub(super) async fn execute(&self, sql: &str, with: &[Bound<'_>]) -> Result<u64, Fault> {
        let statement = self.prepare(sql).await?;
        self.after_begin(self.conn.client()?.execute(&statement, with))
            .await
    }

    /// Runs the statements of a bundle, and returns the rows that each of them found.
    pub(super) async fn run(&self, bundle: &Bundle) -> Result<Vec<Vec<Row>>, Fault> {
        let ready = self.prepare_all(bundle).await?;
        let sent = try_join_all(bundle.sent(&ready, self.conn.client()?));
        self.after_begin(sent).await
    }

    async fn prepare_all(&self, bundle: &Bundle) -> Result<Vec<Statement>, Fault> {
        let mut ready = Vec::new();
        for (sql, _) in &bundle.0 {
            ready.push(self.prepare(sql).await?);
        }
        Ok(ready)
    }

    /// Sends a statement, and returns its answer if the transaction began well.
    async fn after_begin<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, Fault> {
        // In this order: the statement must be sent even while the beginning of the transaction is
        // awaited.
        let (answer, begun) = join(asked, self.begun.clone()).await;
        begun?;
        Ok(answer?)
    }

    /// Opens the session's only cursor, on the rows that a statement finds.
    pub(super) async fn open(&self, sql: &str, with: &[Bound<'_>]) -> Result<(), Fault> {
        self.execute(&declare(sql), with).await.map(drop)
    }

    /// Asks for the next rows of the cursor.
    pub(super) async fn fetch(&self, some: usize) -> Result<RowStream, Fault> {
        let nothing: [(i32, Type); 0] = [];
        // The statement is not prepared, because its columns depend on the cursor.
        let fetch = fetch(some);
        let fetched = self.conn.client()?.query_typed_raw(&fetch, nothing);
        self.after_begin(fetched).await
    }

    /// Hands the rows that a statement finds to `look`, `some` at a time, until `look` returns `false`.
    pub(super) async fn each(
        &self,
        sql: &str,
        with: &[Bound<'_>],
        some: usize,
        mut look: impl FnMut(&Row) -> Result<bool, Fault>,
    ) -> Result<(), Fault> {
        let client = self.conn.client()?;
        let declare = self.prepare(&declare(sql)).await?;
        let fetch = fetch(some);
        // In this order: the server must open the cursor before it reads the first rows.
        let (_, mut rows) = try_join(
            self.after_begin(client.execute(&declare, with)),
            self.after_begin(client.query_typed(&fetch, &[])),
        )
        .await?;
        loop {
            for row in &rows {
                if !look(row)? {
                    return self.close();
                }
            }
            if rows.len() < some {
                return self.close();
            }
            rows = client.query_typed(&fetch, &[]).await?;
        }
    }

    /// Sends the `CLOSE` of the cursor without awaiting the answer. If it fails, the next statement
    /// fails too.
    fn close(&self) -> Result<(), Fault> {
        let close = self.conn.client()?.batch_execute("CLOSE found");
        drop(close.now_or_never());
        Ok(())
    }

    /// Lets each statement take as long as it needs.
    pub(super) async fn be_patient(&self) -> Result<(), Fault> {
        self.after_begin(self.conn.client()?.batch_execute(PATIENCE))
            .await
    }

    /// Ends the session with nothing written. In strict mode this call also waits until a heartbeat was
    /// acknowledged. Only after that may the caller report what was read.
    pub(super) async fn end(self) -> Result<(), Fault> {
        let server = self.begun.clone().await?;
        // The first poll sends the `ROLLBACK`. Nothing was written, so the answer is not awaited.
        drop(self.conn.client()?.batch_execute("ROLLBACK").now_or_never());
        self.database.prove(server).await?;
        self.give_back();
        Ok(())
    }

    /// Commits the transaction durably. Fails with [`Fault::Unknown`] if the commit may or may not have
    /// taken effect. In strict mode a cancelled wait for the standby is that fault too, since the
    /// standby may not have the commit.
    pub(super) async fn commit(self) -> Result<(), Fault> {
        self.commit_bundle(Bundle::default()).await
    }

    /// Sends the last statements of a transaction together with its `COMMIT`. See
    /// [`commit`](Self::commit).
    pub(super) async fn commit_bundle(self, bundle: Bundle) -> Result<(), Fault> {
        let server = self.begun.clone().await?;
        let ready = self.prepare_all(&bundle).await?;
        self.send_and_commit(&bundle, &ready).await?;
        let proven = self.database.prove(server).await;
        proven.map_err(|fault| Fault::Unknown(Box::new(fault)))?;
        self.give_back();
        Ok(())
    }

    async fn send_and_commit(&self, bundle: &Bundle, ready: &[Statement]) -> Result<(), Fault> {
        let client = self.conn.client()?;
        let mut written = pin!(maybe_done(try_join_all(bundle.sent(ready, client))));
        let _sent = poll_fn(|cx| Poll::Ready(written.as_mut().poll(cx))).await;
        // A statement that cannot be encoded fails here. Without this check the others would be
        // committed without it.
        if let Some(Err(_)) = written.as_mut().output_mut() {
            let unsent = written.take_output().and_then(Result::err);
            return Err(unsent.map_or(Fault::Refused("a statement was not sent"), Fault::from));
        }
        let ((), committed) = join(written.as_mut(), client.batch_execute("COMMIT")).await;
        let written = written.take_output().unwrap_or_else(|| Ok(Vec::new()));
        match written.map_err(Fault::from) {
            Ok(_) => committed.map_err(|error| Fault::from(error).of_commit()),
            // The COMMIT of a transaction with a failed statement rolls it back.
            Err(refused @ Fault::Server { .. }) => Err(refused),
            Err(lost) => Err(Fault::Unknown(Box::new(lost))),
        }
    }

    /// Returns the connection to the pool. After a failed proof the connection is closed instead, since
    /// a new one may reach another server.
    fn give_back(self) {
        let Self { conn, begun, .. } = self;
        // The future is complete, and no longer holds the connection.
        drop(begun);
        if let Some(conn) = Arc::into_inner(conn) {
            conn.give_back();
        }
    }
}

fn declare(sql: &str) -> String {
    format!("DECLARE found NO SCROLL CURSOR FOR {sql}")
}

fn fetch(some: usize) -> String {
    format!("FETCH {some} FROM found")
}

async fn begin_on(
    conn: Arc<Conn>,
    begin: String,
    version: Option<Statement>,
    server: Option<Statement>,
) -> Result<Option<Server>, Fault> {
    let client = conn.client()?;
    let begin = client.batch_execute(&begin);
    let (begun, version, server) = join3(begin, ask(client, version), ask(client, server)).await;
    begun?;
    if let Some(found) = version? {
        check_version(&found)?;
    }
    let Some(found) = server? else {
        return Ok(None);
    };
    let server: Option<&str> = found.first().map(|row| row.try_get(0)).transpose()?;
    let unnamed = Fault::Refused("the server does not report when it started");
    Ok(Some(server.ok_or(unnamed)?.into()))
}

async fn ask(
    client: &ClientWrapper,
    statement: Option<Statement>,
) -> Result<Option<Vec<Row>>, tokio_postgres::Error> {
    match statement {
        Some(statement) => client.query(&statement, &[]).await.map(Some),
        None => Ok(None),
    }
}

/// Runs steps in a transaction, and ends the transaction. If the steps fail, they are dropped with their
/// session.
pub(super) async fn within<T, F>(
    database: &Arc<Database>,
    mode: Mode,
    takes: Takes,
    steps: F,
) -> Result<T, Fault>
where
    F: for<'s> FnOnce(&'s Session) -> BoxFuture<'s, Result<T, Fault>>,
{
    let session = Session::begin(database, mode).await?;
    if takes == Takes::AsLongAsItNeeds {
        session.be_patient().await?;
    }
    let done = steps(&session).await?;
    match mode.writes() {
        true => session.commit().await?,
        false => session.end().await?,
    }
    Ok(done)
}

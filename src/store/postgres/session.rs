//! Sessions: one transaction on one pooled connection.
//!
//! The driver sends a statement when its future is first polled, after the `BEGIN` of its transaction.
//! Statements that are polled concurrently are pipelined and share one round trip.
//!
//! Invariants:
//!
//! - A session returns rows only if its `BEGIN` and the checks sent with it succeeded.
//! - A connection returns to the pool only after its transaction ended. Any other connection is closed, and
//!   the server rolls its transaction back.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use deadpool_postgres::{ClientWrapper, Object, Pool};
use futures_util::future::{
    BoxFuture, Either, FutureExt, Shared, join, join3, maybe_done, select, try_join, try_join_all,
};
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Row, RowStream, Statement};

use super::fault::{PoolExhausted, PostgresFault};
use super::heartbeat::{Heartbeats, SERVER_ID, ServerId};
use super::hosts;
use super::rows::{SqlParam, params};
use super::schema::Schema;
use crate::store::sql::{Sql, StoreRow, TablesVersion};

/// 24 hours, the time limit of a call that reads the whole store. An operator runs such a call and can
/// cancel it.
const LONGEST: Duration = Duration::from_secs(24 * 60 * 60);

/// The timeouts of a transaction that reads or copies the whole store. A statement may take any time. The
/// transaction may be idle for ten minutes, because a copy reads the source store between two statements.
const LONG_TIMEOUTS: &str = "SET LOCAL statement_timeout = 0; \
     SET LOCAL idle_in_transaction_session_timeout = '10min'";

/// The timeouts of one store.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timeouts {
    pub(super) statement: Duration,
    pub(super) lock: Duration,
    pub(super) idle: Duration,
    /// The time limit of one call. Waiting for the `COMMIT` may take the same time again.
    pub(super) request: Duration,
    /// The time limit of waiting for a free connection, and again of opening a new one.
    pub(super) connection: Duration,
}

/// The time limit of a call.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum TimeLimit {
    /// The request timeout.
    Short,
    /// Six times the request timeout. For example, a listing may read many rows to find a few.
    Long,
    /// 24 hours, without a statement timeout: an operator's call that reads the whole store.
    Day,
}

/// The component that ends a wait for a pooled connection after the connection timeout.
#[derive(Clone, Copy, Debug)]
pub(super) enum WaitLimit {
    /// The pool ends the wait, because the store created it with timeouts. Such a pool returns different
    /// errors if all connections are busy and if a new connection fails.
    Pool,
    /// The store ends the wait, because a pool that the host provides may have no timeouts.
    Store,
}

/// A connection pool with the settings of its store.
#[derive(Clone)]
pub(super) struct Database {
    pub(super) pool: Pool,
    pub(super) wait_limit: WaitLimit,
    pub(super) schema: Schema,
    pub(super) timeouts: Timeouts,
    /// The handle of the heartbeat task. `Some` only in strict mode.
    pub(super) heartbeats: Option<Arc<Heartbeats>>,
    /// True if the store's reads include the time of the server's clock.
    pub(super) server_clock: bool,
    /// True if transactions may use tables that wait for recovery.
    pub(super) allows_unrecovered: bool,
}

impl Database {
    pub(super) async fn connection(&self) -> Result<Conn, PostgresFault> {
        let object = match self.wait_limit {
            WaitLimit::Pool => hosts::pooled(self.pool.get()).await?,
            WaitLimit::Store => {
                let wait = tokio::time::timeout(self.timeouts.connection, self.pool.get());
                wait.await
                    .map_err(|_| PostgresFault::Exhausted(PoolExhausted))??
            }
        };
        Ok(Conn {
            object: Some(object),
        })
    }

    pub(super) fn limit(&self, time_limit: TimeLimit) -> Duration {
        let limit = match time_limit {
            TimeLimit::Short => self.timeouts.request,
            TimeLimit::Long => self.timeouts.request.saturating_mul(6),
            TimeLimit::Day => LONGEST,
        };
        // Limit the time to a day: `Instant::now() + limit` could overflow with a larger value.
        limit.min(LONGEST)
    }

    /// Returns the statements that set the timeouts and the search path of the current transaction. The host
    /// may share the pool, so the settings must not outlive the transaction.
    ///
    /// The default search path has schemas in which other roles may create functions. A function there with
    /// exactly the types of a call replaces one of the server that converts them.
    pub(super) fn settings(&self) -> String {
        let Timeouts {
            statement,
            lock,
            idle,
            ..
        } = self.timeouts;
        // PostgreSQL reads 0 as "no timeout".
        let millis = |timeout: Duration| timeout.as_millis().clamp(1, i32::MAX as u128);
        format!(
            "SET LOCAL search_path = pg_catalog; SET LOCAL statement_timeout = {}; SET LOCAL lock_timeout = {}; \
             SET LOCAL idle_in_transaction_session_timeout = {};",
            millis(statement),
            millis(lock),
            millis(idle)
        )
    }

    /// In strict mode, waits until the synchronous standby acknowledges a heartbeat on `server` that began
    /// after this call. Without this acknowledgement, a transaction on `server` must not be reported as
    /// successful.
    ///
    /// Outside strict mode, returns immediately.
    async fn prove(&self, server: Option<ServerId>) -> Result<(), PostgresFault> {
        match (&self.heartbeats, server) {
            (Some(heartbeats), Some(server)) => heartbeats.prove(&server).await,
            _ => Ok(()),
        }
    }
}

/// A pooled connection. Dropping it without [`give_back`](Self::give_back) closes the connection.
pub(super) struct Conn {
    object: Option<Object>,
}

impl Conn {
    /// Returns the connection to the pool. The connection must have no open transaction.
    pub(super) fn give_back(mut self) {
        drop(self.object.take());
    }

    pub(super) fn object(&mut self) -> Result<&mut Object, PostgresFault> {
        self.object.as_mut().ok_or(GIVEN_BACK)
    }

    fn client(&self) -> Result<&ClientWrapper, PostgresFault> {
        self.object.as_deref().ok_or(GIVEN_BACK)
    }
}

const GIVEN_BACK: PostgresFault =
    PostgresFault::Refused("the connection was already returned to the pool");

impl Drop for Conn {
    fn drop(&mut self) {
        if let Some(object) = self.object.take() {
            drop(Object::take(object));
        }
    }
}

/// The kind of a session's transaction.
#[derive(Clone, Copy, Eq, PartialEq)]
pub(super) enum SessionMode {
    /// Reads one snapshot, which is taken after the session began.
    Read,
    /// Reads one snapshot, of which only a hint is derived. So strict mode skips the heartbeat for it.
    Hint,
    /// Writes. Each statement sees all transactions that were committed before the statement began.
    Write,
    /// Writes, like `Write`. The caller itself must run [`VERSIONED`] under a lock and check the result.
    Commit,
}

impl SessionMode {
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

/// Sets `synchronous_commit` to `on` if the server's default is `off` or `local`. So `COMMIT` waits for the
/// fsync and for the synchronous standbys. Any other default stays in force.
const DURABLE: &str = "SELECT set_config('synchronous_commit', 'on', true) \
     WHERE current_setting('synchronous_commit') IN ('off', 'local');";

/// Selects the versions of the tables, whether the server is a standby, and the store's own row.
pub(super) const VERSIONED: &str = "SELECT v.version, v.oldest, pg_is_in_recovery(), h.epoch, h.floor, h.restored_from, \
     h.store_seal FROM $s.schema_version AS v LEFT JOIN $s.head AS h ON h.one = v.one WHERE v.one = 1";

/// Checks the row that [`VERSIONED`] selects. The server must be the primary, and this build must be allowed to
/// use the tables. Unless `allows_unrecovered`, the tables must not wait for recovery. The check is needed in each
/// transaction, because a restore can happen while connections are open.
pub(super) fn check_version(found: &[Row], allows_unrecovered: bool) -> Result<(), PostgresFault> {
    version(found)?.check()?;
    // Other reads detect a missing or damaged row, unless the damage sets the mark.
    let Some(found) = found.first() else {
        return Ok(());
    };
    let marked = found.try_get::<_, Option<&[u8]>>(5)?.is_some();
    if marked && !allows_unrecovered {
        StoreRow::read(found, 3)?;
        return Err(PostgresFault::Unrecovered);
    }
    Ok(())
}

/// Reads the versions from the row that [`VERSIONED`] selects. The server must be the primary.
pub(super) fn version(found: &[Row]) -> Result<TablesVersion, PostgresFault> {
    let found = found.first();
    let found = found.ok_or_else(|| PostgresFault::corrupt("the schema's version is missing"))?;
    if found.try_get(2)? {
        return Err(PostgresFault::Standby);
    }
    Ok(TablesVersion {
        version: found.try_get(0)?,
        oldest: found.try_get(1)?,
    })
}

/// A statement parameter that owns its value.
pub(super) type OwnedParam = Box<dyn ToSql + Sync + Send>;

/// Collects values into one array parameter, for statements that read rows with `unnest`.
pub(super) fn array<T>(column: impl Iterator<Item = T>) -> OwnedParam
where
    Vec<T>: ToSql + Sync + Send + 'static,
{
    Box::new(column.collect::<Vec<T>>())
}

/// Statements that are pipelined: sent together, and run by the server in this order. In the SQL text, `$s.`
/// is a placeholder for the schema.
#[derive(Default)]
pub(super) struct Bundle(Vec<(String, Vec<OwnedParam>)>);

impl Bundle {
    /// Adds a statement and returns its index.
    pub(super) fn add(&mut self, sql: impl Into<String>, with: Vec<OwnedParam>) -> usize {
        self.0.push((sql.into(), with));
        self.0.len() - 1
    }

    /// Returns one future per statement, in the order of the statements. A future sends its statement when it
    /// is first polled.
    ///
    /// The caller joins the futures with `try_join_all`, which polls up to 30 futures in order. A bundle has
    /// fewer statements than that, so the statements are sent in order.
    fn sent<'a>(
        &'a self,
        ready: &'a [Statement],
        client: &'a ClientWrapper,
    ) -> impl Iterator<Item = BoxFuture<'a, Result<Vec<Row>, tokio_postgres::Error>>> {
        self.0.iter().zip(ready).map(move |((_, with), statement)| {
            let run = async move {
                let with: Vec<SqlParam<'_>> = with
                    .iter()
                    .map(|column| -> SqlParam<'_> { &**column })
                    .collect();
                client.query(statement, &with).await
            };
            run.boxed()
        })
    }
}

/// The `BEGIN` of a transaction, whose response may not have arrived yet. In strict mode, the future returns
/// the server that began the transaction.
type PendingBegin = Shared<BoxFuture<'static, Result<Option<ServerId>, PostgresFault>>>;

/// One transaction. If a session is dropped without [`end`](Self::end) or [`commit`](Self::commit), its
/// connection is closed, and the server rolls back.
pub(super) struct Session {
    database: Arc<Database>,
    conn: Arc<Conn>,
    begun: PendingBegin,
}

impl Session {
    /// Sends the `BEGIN` of a transaction, and does not wait for the response. The first statement waits for
    /// both responses, which saves a round trip.
    pub(super) async fn begin(
        database: &Arc<Database>,
        mode: SessionMode,
    ) -> Result<Self, PostgresFault> {
        let conn = Arc::new(database.connection().await?);
        let client = conn.client()?;
        let version = match mode {
            SessionMode::Commit => None,
            _ => {
                let sql = VERSIONED.replace("$s.", database.schema.prefix());
                Some(client.prepare_cached(&sql).await?)
            }
        };
        let server = match database.heartbeats {
            Some(_) if mode != SessionMode::Hint => Some(client.prepare_cached(SERVER_ID).await?),
            _ => None,
        };
        let durable = if mode.writes() { DURABLE } else { "" };
        let begin = format!("{}{}{durable}", mode.begin(), database.settings());
        let begun = begin_on(
            conn.clone(),
            begin,
            (version, database.allows_unrecovered),
            server,
        );
        let begun = begun.boxed().shared();
        // The first poll sends `BEGIN` and the checks. The response is awaited later.
        drop(begun.clone().now_or_never());
        Ok(Self {
            database: database.clone(),
            conn,
            begun,
        })
    }

    /// Returns whether this transaction may use tables that wait for recovery.
    pub(super) fn allows_unrecovered(&self) -> bool {
        self.database.allows_unrecovered
    }

    pub(super) fn schema(&self) -> &Schema {
        &self.database.schema
    }

    /// Prepares a statement. In `sql`, `$s.` is a placeholder for the schema.
    async fn prepare(&self, sql: &str) -> Result<Statement, PostgresFault> {
        let sql = sql.replace("$s.", self.database.schema.prefix());
        let prepared = pin!(self.conn.client()?.prepare_cached(&sql));
        // The driver stops reading once a few parts of a response wait for their receiver. So the response to
        // `BEGIN`, which comes first, is received meanwhile.
        let prepared = match select(prepared, self.begun.clone()).await {
            Either::Left((prepared, _)) => prepared,
            Either::Right((begun, prepared)) => {
                begun?;
                prepared.await
            }
        };
        match prepared {
            Ok(statement) => Ok(statement),
            // In an aborted transaction every statement fails. The error of the `BEGIN`, or of the checks sent with
            // it, is the cause.
            Err(error) => {
                self.begun.clone().await?;
                Err(error.into())
            }
        }
    }

    pub(super) async fn query(
        &self,
        sql: &str,
        with: &[SqlParam<'_>],
    ) -> Result<Vec<Row>, PostgresFault> {
        let statement = self.prepare(sql).await?;
        self.after_begin(self.conn.client()?.query(&statement, with))
            .await
    }

    /// Runs a statement that is shared with the SQLite store. See [`query`](Self::query).
    pub(super) async fn query_of(&self, sql: &Sql) -> Result<Vec<Row>, PostgresFault> {
        self.query(&sql.text, &params(&sql.with)).await
    }

    pub(super) async fn execute(
        &self,
        sql: &str,
        with: &[SqlParam<'_>],
    ) -> Result<u64, PostgresFault> {
        let statement = self.prepare(sql).await?;
        self.after_begin(self.conn.client()?.execute(&statement, with))
            .await
    }

    /// Runs the statements of a bundle, and returns one list of rows per statement.
    pub(super) async fn run(&self, bundle: &Bundle) -> Result<Vec<Vec<Row>>, PostgresFault> {
        let ready = self.prepare_all(bundle).await?;
        let sent = try_join_all(bundle.sent(&ready, self.conn.client()?));
        self.after_begin(sent).await
    }

    async fn prepare_all(&self, bundle: &Bundle) -> Result<Vec<Statement>, PostgresFault> {
        let mut ready = Vec::new();
        for (sql, _) in &bundle.0 {
            ready.push(self.prepare(sql).await?);
        }
        Ok(ready)
    }

    /// Sends a statement. Returns the result of the statement only if the `BEGIN` of the transaction
    /// succeeded.
    async fn after_begin<T>(
        &self,
        asked: impl Future<Output = Result<T, tokio_postgres::Error>>,
    ) -> Result<T, PostgresFault> {
        // `join` polls both futures, so the statement is sent without waiting for the response to `BEGIN`.
        let (answer, begun) = join(asked, self.begun.clone()).await;
        begun?;
        Ok(answer?)
    }

    /// Opens a cursor on the rows that `sql` selects.
    pub(super) async fn open(
        &self,
        sql: &str,
        with: &[SqlParam<'_>],
    ) -> Result<RowCursor, PostgresFault> {
        let cursor = self.cursor(sql);
        self.execute(&cursor.declare(), with).await?;
        Ok(cursor)
    }

    /// Fetches up to `some` more rows from the cursor.
    pub(super) async fn fetch(
        &self,
        cursor: &RowCursor,
        some: usize,
    ) -> Result<RowStream, PostgresFault> {
        let nothing: [(i32, Type); 0] = [];
        // Parsed each time: the server can name the columns of `FETCH` only while the cursor is open.
        let fetch = cursor.fetch(some);
        let fetched = self.conn.client()?.query_typed_raw(&fetch, nothing);
        self.after_begin(fetched).await
    }

    /// Calls `look` with each row that the query in `sql` selects, until `look` returns `false`. The rows are
    /// fetched in batches of `some` rows.
    pub(super) async fn each(
        &self,
        sql: &str,
        with: &[SqlParam<'_>],
        some: usize,
        mut look: impl FnMut(&Row) -> Result<bool, PostgresFault>,
    ) -> Result<(), PostgresFault> {
        let client = self.conn.client()?;
        let cursor = self.cursor(sql);
        let declare = self.prepare(&cursor.declare()).await?;
        let fetch = cursor.fetch(some);
        // `DECLARE` comes first: `try_join` polls, and so sends, its futures in order.
        let (_, mut rows) = try_join(
            self.after_begin(client.execute(&declare, with)),
            self.after_begin(client.query_typed(&fetch, &[])),
        )
        .await?;
        loop {
            for row in &rows {
                if !look(row)? {
                    return self.close(&cursor);
                }
            }
            if rows.len() < some {
                return self.close(&cursor);
            }
            rows = client.query_typed(&fetch, &[]).await?;
        }
    }

    fn cursor(&self, sql: &str) -> RowCursor {
        RowCursor::new(sql.replace("$s.", self.database.schema.prefix()))
    }

    /// Sends `CLOSE` for the cursor without awaiting the response. A failed `CLOSE` aborts the transaction,
    /// so the next statement reports the failure.
    fn close(&self, cursor: &RowCursor) -> Result<(), PostgresFault> {
        let close = cursor.close();
        let close = self.conn.client()?.batch_execute(&close);
        drop(close.now_or_never());
        Ok(())
    }

    /// Replaces the transaction's timeouts by [`LONG_TIMEOUTS`].
    pub(super) async fn extend_timeouts(&self) -> Result<(), PostgresFault> {
        self.after_begin(self.conn.client()?.batch_execute(LONG_TIMEOUTS))
            .await
    }

    /// Rolls the transaction back. In strict mode, also waits for a heartbeat that confirms the reads.
    ///
    /// The caller must discard the rows if this method fails.
    pub(super) async fn end(self) -> Result<(), PostgresFault> {
        let server = self.begun.clone().await?;
        // The first poll sends the `ROLLBACK`. Do not wait for the response, because the transaction wrote
        // nothing.
        drop(self.conn.client()?.batch_execute("ROLLBACK").now_or_never());
        self.database.prove(server).await?;
        self.give_back();
        Ok(())
    }

    /// Commits the transaction durably.
    ///
    /// Fails with [`PostgresFault::Unknown`] if the commit may or may not have taken effect. In strict mode,
    /// also fails with `Unknown` if no heartbeat confirms the commit, since the standby may not have it.
    pub(super) async fn commit(self) -> Result<(), PostgresFault> {
        self.commit_bundle(Bundle::default()).await
    }

    /// Sends the last statements of a transaction and its `COMMIT` in one round trip. Fails like
    /// [`commit`](Self::commit).
    pub(super) async fn commit_bundle(self, bundle: Bundle) -> Result<(), PostgresFault> {
        let server = self.begun.clone().await?;
        let ready = self.prepare_all(&bundle).await?;
        self.send_and_commit(&bundle, &ready).await?;
        let proven = self.database.prove(server).await;
        proven.map_err(|fault| PostgresFault::Unknown(Box::new(fault)))?;
        self.give_back();
        Ok(())
    }

    async fn send_and_commit(
        &self,
        bundle: &Bundle,
        ready: &[Statement],
    ) -> Result<(), PostgresFault> {
        let client = self.conn.client()?;
        let mut written = pin!(maybe_done(try_join_all(bundle.sent(ready, client))));
        let _sent = poll_fn(|cx| Poll::Ready(written.as_mut().poll(cx))).await;
        // A statement whose parameters cannot be encoded fails here, before `COMMIT` is sent. Otherwise
        // the transaction would be committed without that statement.
        if let Some(Err(_)) = written.as_mut().output_mut() {
            let unsent = written.take_output().and_then(Result::err);
            return Err(unsent.map_or(
                PostgresFault::Refused("a statement was not sent"),
                PostgresFault::from,
            ));
        }
        let ((), committed) = join(written.as_mut(), client.batch_execute("COMMIT")).await;
        let written = written.take_output().unwrap_or_else(|| Ok(Vec::new()));
        match written.map_err(PostgresFault::from) {
            Ok(_) => committed.map_err(|error| PostgresFault::from(error).of_commit()),
            // A statement failed on the server. PostgreSQL turns the `COMMIT` of an aborted transaction
            // into a rollback.
            Err(refused @ PostgresFault::Server { .. }) => Err(refused),
            Err(lost) => Err(PostgresFault::Unknown(Box::new(lost))),
        }
    }

    /// Returns the connection to the pool. If a heartbeat failed, this method is not called, and the
    /// connection is closed. A new connection may then reach the current primary.
    fn give_back(self) {
        let Self { conn, begun, .. } = self;
        // `begun` holds a reference to the connection. Drop it first, so that `conn` is the last reference.
        drop(begun);
        if let Some(conn) = Arc::into_inner(conn) {
            conn.give_back();
        }
    }
}

/// A cursor on the rows of one query. The query's text determines the cursor's name.
///
/// A pooler shares prepared statements between connections by their text. With one name for all cursors, a
/// `FETCH` would be prepared with the columns of one query and used for another.
pub(super) struct RowCursor {
    name: String,
    sql: String,
}

impl RowCursor {
    fn new(sql: String) -> Self {
        let hash = Sha256::digest(&sql);
        let name = hash[..8]
            .iter()
            .fold("rows_".to_owned(), |name, byte| format!("{name}{byte:02x}"));
        Self { name, sql }
    }

    fn declare(&self) -> String {
        let Self { name, sql } = self;
        format!("DECLARE {name} NO SCROLL CURSOR FOR {sql}")
    }

    fn fetch(&self, some: usize) -> String {
        format!("FETCH {some} FROM {}", self.name)
    }

    fn close(&self) -> String {
        format!("CLOSE {}", self.name)
    }
}

async fn begin_on(
    conn: Arc<Conn>,
    begin: String,
    (version, allows_unrecovered): (Option<Statement>, bool),
    server: Option<Statement>,
) -> Result<Option<ServerId>, PostgresFault> {
    let client = conn.client()?;
    let begin = client.batch_execute(&begin);
    let (begun, version, server) = join3(begin, ask(client, version), ask(client, server)).await;
    begun?;
    if let Some(found) = version? {
        check_version(&found, allows_unrecovered)?;
    }
    let Some(found) = server? else {
        return Ok(None);
    };
    let server: Option<&str> = found.first().map(|row| row.try_get(0)).transpose()?;
    let unnamed = PostgresFault::Refused("the server did not report its start time");
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

/// Runs `steps` in a transaction, then commits or ends the transaction. If `steps` fail, the session is
/// dropped, and the server rolls back.
pub(super) async fn within<T, F>(
    database: &Arc<Database>,
    mode: SessionMode,
    time_limit: TimeLimit,
    steps: F,
) -> Result<T, PostgresFault>
where
    F: for<'s> FnOnce(&'s Session) -> BoxFuture<'s, Result<T, PostgresFault>>,
{
    let session = Session::begin(database, mode).await?;
    if time_limit == TimeLimit::Day {
        session.extend_timeouts().await?;
    }
    let done = steps(&session).await?;
    match mode.writes() {
        true => session.commit().await?,
        false => session.end().await?,
    }
    Ok(done)
}

//! The transaction of a commit: two bundles of statements, each sent at once, so that the server is
//! waited for twice. The first locks and reads; the second writes, and makes it durable.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::OnceLock;
use std::task::Poll;

use deadpool_postgres::ClientWrapper;
use futures_util::future::{BoxFuture, FutureExt, join, maybe_done, try_join_all};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Row, Statement};

use super::fault::Fault;
use super::heartbeat::SERVER;
use super::link::{Bound, Link, Tx, server_of};
use super::schema::Schema;

/// What is begun with. Every statement sees what was committed before it.
const BEGIN: &str = "START TRANSACTION ISOLATION LEVEL READ COMMITTED";

/// Settings of one transaction, so that they stay on no connection that the host uses as well. A commit
/// that is told must be on disk, whatever the database does by default.
const SETTINGS: &str = "SELECT set_config('statement_timeout', $1, true), \
     set_config('lock_timeout', $2, true), \
     set_config('idle_in_transaction_session_timeout', $3, true), \
     CASE WHEN current_setting('synchronous_commit') IN ('off', 'local') \
     THEN set_config('synchronous_commit', 'on', true) END";

/// What a statement is bound to, for as long as it is on its way.
pub(super) type Column = Box<dyn ToSql + Sync + Send>;

/// A column of the rows that a statement is given as arrays.
pub(super) fn array<T>(column: impl Iterator<Item = T>) -> Column
where
    Vec<T>: ToSql + Sync + Send + 'static,
{
    Box::new(column.collect::<Vec<T>>())
}

/// Statements that are sent at once, and run in their order. `$s.` stands for the schema.
#[derive(Default)]
pub(super) struct Bundle(Vec<(String, Vec<Column>)>);

impl Bundle {
    /// Adds a statement, and tells its place.
    pub(super) fn add(&mut self, sql: impl Into<String>, with: Vec<Column>) -> usize {
        self.0.push((sql.into(), with));
        self.0.len() - 1
    }

    /// Runs them within a transaction.
    pub(super) async fn run(&self, tx: &Tx<'_>) -> Result<(), Fault> {
        let client = tx.client().await?;
        let ready = self.prepare(tx.schema(), client).await?;
        try_join_all(self.sent(&ready, client)).await?;
        Ok(())
    }

    async fn prepare(
        &self,
        schema: &Schema,
        client: &ClientWrapper,
    ) -> Result<Vec<Statement>, Fault> {
        let mut ready = Vec::new();
        for (sql, _) in &self.0 {
            let sql = sql.replace("$s.", schema.prefix());
            ready.push(client.prepare_cached(&sql).await?);
        }
        Ok(ready)
    }

    /// Each is sent when it is first polled. There are few enough that this is in their order.
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

/// A transaction on a connection that is closed unless it ends well.
pub(super) struct Exchange<'c> {
    link: &'c Link,
    client: &'c ClientWrapper,
    /// Known once it began, in strict mode.
    server: OnceLock<String>,
}

impl<'c> Exchange<'c> {
    pub(super) const fn new(link: &'c Link, client: &'c ClientWrapper) -> Self {
        let server = OnceLock::new();
        Self {
            link,
            client,
            server,
        }
    }

    /// The server on which it began, in strict mode: for [`Link::prove`].
    pub(super) fn server(&self) -> Option<String> {
        self.server.get().cloned()
    }

    /// Begins, and tells what each statement found.
    pub(super) async fn begin(&self, bundle: Bundle) -> Result<Vec<Vec<Row>>, Fault> {
        let mut settings = Bundle::default();
        let timeouts = self.link.timeouts.in_millis();
        settings.add(
            SETTINGS,
            timeouts
                .map(|timeout| -> Column { Box::new(timeout) })
                .into(),
        );
        if self.link.heartbeats.is_some() {
            settings.add(SERVER, Vec::new());
        }
        let set = settings.prepare(&self.link.schema, self.client).await?;
        let ready = bundle.prepare(&self.link.schema, self.client).await?;
        let begin = async {
            self.client.batch_execute(BEGIN).await?;
            Ok(Vec::new())
        };
        let before = settings.sent(&set, self.client);
        let before: Vec<_> = [begin.boxed()].into_iter().chain(before).collect();
        let behind = before.len();
        let steps = before.into_iter().chain(bundle.sent(&ready, self.client));
        let mut found = try_join_all(steps).await?;
        let asked = found.split_off(behind);
        if let Some(server) = found.pop().filter(|_| self.link.heartbeats.is_some()) {
            let _known = self.server.set(server_of(&server)?);
        }
        Ok(asked)
    }

    /// Writes, and commits. Afterwards it is durable, or certainly rolled back, or told as
    /// [`Fault::Unknown`].
    pub(super) async fn commit(&self, bundle: Bundle) -> Result<(), Fault> {
        let ready = bundle.prepare(&self.link.schema, self.client).await?;
        let mut written = pin!(maybe_done(try_join_all(bundle.sent(&ready, self.client))));
        let _sent = poll_fn(|cx| Poll::Ready(written.as_mut().poll(cx))).await;
        // What cannot even be put into a message fails at once. The rest of the bundle would be committed.
        if let Some(Err(_)) = written.as_mut().output_mut() {
            let unsent = written.take_output().and_then(Result::err);
            return Err(unsent.map_or(Fault::Refused("a statement was not sent"), Fault::from));
        }
        let commit = self.client.batch_execute("COMMIT");
        let ((), committed) = join(written.as_mut(), commit).await;
        let written = written.take_output().unwrap_or_else(|| Ok(Vec::new()));
        match written.map_err(Fault::from) {
            Ok(_) => committed.map_err(|error| Fault::from(error).of_commit()),
            // To commit a transaction in which a statement failed is to roll it back.
            Err(refused @ Fault::Server { .. }) => Err(refused),
            Err(lost) => Err(Fault::Unknown(Box::new(lost))),
        }
    }

    /// Ends it with nothing written. The server need not be waited for.
    pub(super) fn end(self) {
        let _sent = self.client.batch_execute("ROLLBACK").now_or_never();
    }
}

//! Heartbeats for strict mode. A heartbeat is a small commit that a synchronous standby must acknowledge.
//!
//! After a failover, the former primary may not notice that a standby was promoted, and may still answer
//! reads. But no standby acknowledges its commits. So a call returns only after a heartbeat on the same
//! server was acknowledged. This heartbeat must begin after the call's own reads and writes.
//!
//! Invariants:
//!
//! - A heartbeat counts only if this task received the response to its `COMMIT`, and no warning.
//! - The setting `synchronous_standby_names` must not be empty, neither before nor after the heartbeat.
//! - A call never relies on a heartbeat that began before the call's own statements ended.
//! - A heartbeat writes no row, because a visible row would not prove an acknowledgement. The server also
//!   makes a row visible after a cancelled wait or a restart.
//!
//! `docs/propagation.md` shows why these rules suffice.

use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::future::try_join;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, CancelToken, Client, SimpleQueryMessage, Socket};

use super::fault::PostgresFault;
use super::hosts::Hosts;
use crate::observe::WithSources;

/// Selects the time at which the server process started. It identifies the server, because a copy of the
/// server starts at another time. It also changes when the server restarts.
pub(super) const SERVER_ID: &str = "SELECT extract(epoch FROM pg_postmaster_start_time())::text";

/// The channel on which the heartbeat task answers a caller that waits for a heartbeat.
type HeartbeatWaiter = oneshot::Sender<Result<ServerId, PostgresFault>>;

/// The start time of a server, as [`SERVER_ID`] selects it.
pub(super) type ServerId = Arc<str>;

/// The handle of the heartbeat task. Dropping the handle ends the task.
pub(super) struct Heartbeats {
    waiters: mpsc::UnboundedSender<HeartbeatWaiter>,
}

impl Heartbeats {
    pub(super) fn start(
        connector: Arc<dyn HeartbeatConnector>,
        limit: Duration,
        runtime: &Handle,
    ) -> Self {
        let (waiters, waiting) = mpsc::unbounded_channel();
        let task = HeartbeatTask {
            connector,
            limit,
            connection: None,
        };
        drop(runtime.spawn(task.serve(waiting)));
        Self { waiters }
    }

    /// Waits for a heartbeat on `server` that begins after this call. A heartbeat that is already in flight
    /// does not count.
    ///
    /// `Ok` means that `server` was still the primary. So all transactions that ended on `server` before this
    /// call are confirmed.
    pub(super) async fn prove(&self, server: &str) -> Result<(), PostgresFault> {
        match &*self.next().await? == server {
            true => Ok(()),
            false => Err(PostgresFault::Elsewhere),
        }
    }

    /// Waits until the standby acknowledges a heartbeat that begins after this call. Returns the server on
    /// which that heartbeat ran.
    async fn next(&self) -> Result<ServerId, PostgresFault> {
        const ENDED: PostgresFault = PostgresFault::Refused("the heartbeat task has ended");
        let (answer, answered) = oneshot::channel();
        self.waiters.send(answer).map_err(|_| ENDED)?;
        answered.await.unwrap_or(Err(ENDED))
    }
}

/// The state of the heartbeat task.
struct HeartbeatTask {
    connector: Arc<dyn HeartbeatConnector>,
    /// The time limit of one heartbeat, including the time to open a connection.
    limit: Duration,
    connection: Option<HeartbeatConnection>,
}

impl HeartbeatTask {
    async fn serve(mut self, mut waiting: mpsc::UnboundedReceiver<HeartbeatWaiter>) {
        while let Some(first) = waiting.recv().await {
            let mut waiters = vec![first];
            while let Ok(waiter) = waiting.try_recv() {
                waiters.push(waiter);
            }
            waiters.retain(|waiter| !waiter.is_closed());
            if waiters.is_empty() {
                continue;
            }
            let beat = self.beat().await;
            if let Err(fault) = &beat {
                tracing::debug!(error = %WithSources(fault), "heartbeat failed");
            }
            for waiter in waiters {
                drop(waiter.send(beat.clone()));
            }
        }
    }

    async fn beat(&mut self) -> Result<ServerId, PostgresFault> {
        let made = tokio::time::timeout(self.limit, self.try_beat()).await;
        let late = || match self.connection {
            Some(_) => PostgresFault::Unacknowledged,
            None => PostgresFault::Late,
        };
        let made = made.unwrap_or_else(|_| Err(late()));
        if made.is_err() {
            self.give_up();
        }
        made
    }

    async fn try_beat(&mut self) -> Result<ServerId, PostgresFault> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = self.connector.connect().await?;
                // Store the connection before the heartbeat starts. If the heartbeat hangs, `give_up` finds
                // the connection here and cancels the statement.
                self.connection.insert(connected)
            }
        };
        connection.beat().await
    }

    /// Drops the connection after a failed heartbeat, and cancels the statement that runs on it. Without the
    /// cancellation, the server could wait for the standby indefinitely.
    fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            let token = connection.client.cancel_token();
            let (connector, limit) = (self.connector.clone(), self.limit);
            // The cancellation runs in its own task, and its failure is ignored: the connection is dropped in
            // any case.
            drop(tokio::spawn(async move {
                let _ = tokio::time::timeout(limit, connector.cancel(token)).await;
            }));
        }
    }
}

/// Opens heartbeat connections and cancels their statements. A trait, so that the heartbeat task need not
/// have the TLS connector as a type parameter.
#[async_trait]
pub(super) trait HeartbeatConnector: Send + Sync {
    async fn connect(&self) -> Result<HeartbeatConnection, PostgresFault>;

    /// Cancels the statement that runs on a connection.
    async fn cancel(&self, token: CancelToken);
}

/// Opens a connection to the server without a pool. A pooled connection would not pass on the server's
/// warnings, and a heartbeat must see them.
pub(super) struct DirectConnector<T>(pub(super) Arc<Hosts<T>>);

#[async_trait]
impl<T> HeartbeatConnector for DirectConnector<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    async fn connect(&self) -> Result<HeartbeatConnection, PostgresFault> {
        let (client, mut connection) = self.0.connect().await?;
        let warnings = Arc::new(AtomicU64::new(0));
        let counted = warnings.clone();
        // The driver counts a warning before it passes on the response that follows the warning. So when
        // `simple_query` returns, the warnings of its statement are already counted.
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notice(notice) = message {
                    tracing::debug!(code = notice.code().code(), "the server sent a warning");
                    counted.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(HeartbeatConnection {
            client,
            driver,
            warnings,
            settings: None,
        })
    }

    async fn cancel(&self, token: CancelToken) {
        if let Err(error) = token.cancel_query(self.0.tls.clone()).await {
            let fault = PostgresFault::from(error);
            tracing::debug!(error = %WithSources(&fault), "cannot cancel a heartbeat");
        }
    }
}

/// A connection that is used only for heartbeats.
pub(super) struct HeartbeatConnection {
    client: Client,
    driver: JoinHandle<()>,
    /// The number of warnings that the server sent on this connection.
    warnings: Arc<AtomicU64>,
    /// The settings that were read after the last heartbeat. `None` before the first heartbeat.
    settings: Option<StandbySettings>,
}

impl Drop for HeartbeatConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The settings that decide whether a commit waits for a standby, and the identity of the server.
#[derive(Clone, Debug, Eq, PartialEq)]
struct StandbySettings {
    /// The value of `synchronous_standby_names`. Commits wait for no standby if it is empty.
    standbys: String,
    /// The time at which the server last loaded its settings. If someone empties `synchronous_standby_names`,
    /// the server stops waiting for the standby. A changed time shows that this may have happened.
    read_at: String,
    server: ServerId,
}

/// Selects the fields of [`StandbySettings`].
const STANDBY_SETTINGS: &str = "SELECT current_setting('synchronous_standby_names'), \
     pg_conf_load_time()::text, extract(epoch FROM pg_postmaster_start_time())::text";

/// A transaction that writes to the write-ahead log, but to no table.
///
/// The database role may have settings that hide warnings, or that let commits return without waiting for a
/// standby. The transaction overrides both settings.
const BEAT: &str = "BEGIN; SET LOCAL client_min_messages = warning; \
     SET LOCAL synchronous_commit = on; \
     SELECT pg_logical_emit_message(true, 'keyward', ''); COMMIT";

impl HeartbeatConnection {
    async fn beat(&mut self) -> Result<ServerId, PostgresFault> {
        let before = match self.settings.take() {
            Some(settings) => settings,
            None => self.read_settings().await?,
        };
        // If no standby is configured, a commit returns immediately and proves nothing.
        before.check()?;
        let warnings = self.warnings.load(Ordering::Acquire);
        // Send two messages, because the server loads changed settings only between two messages. So the
        // second message also shows a change that came during the first.
        let (_, after) = try_join(self.ask(BEAT), self.read_settings()).await?;
        let warned = self.warnings.load(Ordering::Acquire) != warnings;
        acknowledged(&before, &after, warned)?;
        let server = after.server.clone();
        self.settings = Some(after);
        Ok(server)
    }

    async fn read_settings(&self) -> Result<StandbySettings, PostgresFault> {
        let found = self.ask(STANDBY_SETTINGS).await?;
        let row = found.into_iter().next().map(Vec::into_iter);
        let mut row = row.into_iter().flatten().flatten();
        match (row.next(), row.next(), row.next()) {
            (Some(standbys), Some(read_at), Some(server)) => Ok(StandbySettings {
                standbys,
                read_at,
                server: server.into(),
            }),
            _ => Err(PostgresFault::Refused(
                "the server does not report its settings",
            )),
        }
    }

    /// Sends statements as one message, and returns the selected rows as text.
    async fn ask(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, PostgresFault> {
        let mut found = Vec::new();
        for message in self.client.simple_query(sql).await? {
            if let SimpleQueryMessage::Row(row) = message {
                let text = |at| row.get(at).map(str::to_owned);
                found.push((0..row.len()).map(text).collect());
            }
        }
        Ok(found)
    }
}

impl StandbySettings {
    fn check(&self) -> Result<(), PostgresFault> {
        match self.standbys.trim().is_empty() {
            true => Err(PostgresFault::NoStandby),
            false => Ok(()),
        }
    }
}

/// Checks that the standby acknowledged a commit. `before` and `after` are the settings that were read before
/// and after the commit.
///
/// `warned` is true if the server sent a warning in between. The server sends a warning if it stops waiting
/// for the standby early.
fn acknowledged(
    before: &StandbySettings,
    after: &StandbySettings,
    warned: bool,
) -> Result<(), PostgresFault> {
    before.check()?;
    after.check()?;
    match warned || before != after {
        true => Err(PostgresFault::Unacknowledged),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(standbys: &str, read_at: &str) -> StandbySettings {
        StandbySettings {
            standbys: standbys.to_owned(),
            read_at: read_at.to_owned(),
            server: "since 9:00".into(),
        }
    }

    #[test]
    fn a_commit_counts_if_the_server_sent_no_warning_and_kept_its_settings() {
        let same = settings("b", "10:00");
        acknowledged(&same, &same, false).unwrap();
    }

    #[test]
    fn a_commit_that_may_not_have_waited_for_a_standby_does_not_count() {
        let (set, later) = (settings("b", "10:00"), settings("b", "10:01"));
        let none = settings(" ", "10:00");
        for (before, after, warned) in [
            (&set, &set, true),
            // The server has loaded its settings again, so `standbys` may have been empty for a moment.
            (&set, &later, false),
            (&set, &settings("a", "10:00"), false),
        ] {
            let refused = acknowledged(before, after, warned).unwrap_err();
            assert!(
                matches!(refused, PostgresFault::Unacknowledged),
                "{refused:?}"
            );
        }
        for (before, after) in [(&none, &none), (&set, &none), (&none, &set)] {
            let refused = acknowledged(before, after, false).unwrap_err();
            assert!(matches!(refused, PostgresFault::NoStandby), "{refused:?}");
        }
    }
}

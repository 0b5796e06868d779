//! Strict mode: heartbeats that commit only after the synchronous standby has them.
//!
//! A former primary still answers reads after its standby was promoted, because it cannot know of the
//! promotion. But no standby acknowledges its commits. So the result of a read or write is returned only
//! after a heartbeat on the same server was acknowledged. That heartbeat must have begun after the read
//! or write.
//!
//! Invariants: a heartbeat counts only if this task received the answer to the heartbeat's `COMMIT`
//! without a warning. A synchronous standby must have been set before and after. A commit that other
//! sessions can see proves nothing: a cancelled wait or a restarted server makes a commit visible too.
//! Hence a heartbeat writes nothing visible. Each caller is served by a heartbeat that began after the
//! call. See `docs/propagation.md`.

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
use tokio_postgres::{AsyncMessage, CancelToken, Client, Config, SimpleQueryMessage, Socket};

use super::fault::Fault;

/// Selects the start time of the server, which distinguishes this run of the server from any other
/// server, copies included.
pub(super) const SERVER: &str = "SELECT extract(epoch FROM pg_postmaster_start_time())::text";

/// The channel of a caller that waits for a heartbeat.
type Call = oneshot::Sender<Result<Server, Fault>>;

/// The start time that [`SERVER`] finds.
pub(super) type Server = Arc<str>;

/// The handle of the task that makes heartbeats, which ends when the handle is dropped.
pub(super) struct Heartbeats {
    calls: mpsc::UnboundedSender<Call>,
}

impl Heartbeats {
    pub(super) fn start(reach: Arc<dyn Reach>, limit: Duration, runtime: &Handle) -> Self {
        let (calls, waiting) = mpsc::unbounded_channel();
        let heart = Heart {
            reach,
            limit,
            connection: None,
        };
        drop(runtime.spawn(heart.serve(waiting)));
        Self { calls }
    }

    /// Waits for a heartbeat on `server` that begins after this call. That heartbeat proves earlier
    /// reads and writes on `server`. A heartbeat already in flight does not count.
    pub(super) async fn prove(&self, server: &str) -> Result<(), Fault> {
        match &*self.next().await? == server {
            true => Ok(()),
            false => Err(Fault::Elsewhere),
        }
    }

    /// Waits until the standby acknowledges a heartbeat that begins after this call. Returns the server
    /// of that heartbeat.
    async fn next(&self) -> Result<Server, Fault> {
        const ENDED: Fault = Fault::Refused("the task that makes heartbeats has ended");
        let (answer, answered) = oneshot::channel();
        self.calls.send(answer).map_err(|_| ENDED)?;
        answered.await.unwrap_or(Err(ENDED))
    }
}

/// The state of the task that makes heartbeats.
struct Heart {
    reach: Arc<dyn Reach>,
    /// The time limit of one heartbeat, a new connection included.
    limit: Duration,
    connection: Option<HeartbeatConnection>,
}

impl Heart {
    async fn serve(mut self, mut waiting: mpsc::UnboundedReceiver<Call>) {
        while let Some(first) = waiting.recv().await {
            let mut calls = vec![first];
            while let Ok(call) = waiting.try_recv() {
                calls.push(call);
            }
            calls.retain(|call| !call.is_closed());
            if calls.is_empty() {
                continue;
            }
            let beat = self.beat().await;
            if let Err(fault) = &beat {
                tracing::debug!(%fault, "no heartbeat");
            }
            for call in calls {
                drop(call.send(beat.clone()));
            }
        }
    }

    async fn beat(&mut self) -> Result<Server, Fault> {
        let made = tokio::time::timeout(self.limit, self.try_beat()).await;
        let late = || match self.connection {
            Some(_) => Fault::Unacknowledged,
            None => Fault::Late,
        };
        let made = made.unwrap_or_else(|_| Err(late()));
        if made.is_err() {
            self.give_up();
        }
        made
    }

    async fn try_beat(&mut self) -> Result<Server, Fault> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            None => {
                let connected = self.reach.connect().await?;
                // The connection is stored first, so that a heartbeat that hangs can be cancelled.
                self.connection.insert(connected)
            }
        };
        connection.beat().await
    }

    /// Drops the connection after a failure, and cancels its statement: the server could wait for the
    /// standby without end.
    fn give_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            let token = connection.client.cancel_token();
            let (reach, limit) = (self.reach.clone(), self.limit);
            // The cancellation is not awaited, and has no effect if the server cannot be reached.
            drop(tokio::spawn(async move {
                let _ = tokio::time::timeout(limit, reach.cancel(token)).await;
            }));
        }
    }
}

/// A way to reach the server.
#[async_trait]
pub(super) trait Reach: Send + Sync {
    async fn connect(&self) -> Result<HeartbeatConnection, Fault>;

    /// Cancels the statement of a connection.
    async fn cancel(&self, token: CancelToken);
}

/// A way to the server without a pool. The server's warnings on each connection are counted.
pub(super) struct Direct<T> {
    pub(super) config: Config,
    pub(super) tls: T,
}

#[async_trait]
impl<T> Reach for Direct<T>
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    async fn connect(&self) -> Result<HeartbeatConnection, Fault> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let warnings = Arc::new(AtomicU64::new(0));
        let counted = warnings.clone();
        // A warning is counted before the answer that follows the warning is passed on.
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notice(notice) = message {
                    tracing::debug!(code = notice.code().code(), "the server warns");
                    counted.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(HeartbeatConnection {
            client,
            driver,
            warnings,
            standing: None,
        })
    }

    async fn cancel(&self, token: CancelToken) {
        if let Err(error) = token.cancel_query(self.tls.clone()).await {
            let fault = Fault::from(error);
            tracing::debug!(%fault, "a heartbeat could not be cancelled");
        }
    }
}

/// A connection for heartbeats alone.
pub(super) struct HeartbeatConnection {
    client: Client,
    driver: JoinHandle<()>,
    /// The number of warnings so far.
    warnings: Arc<AtomicU64>,
    /// The settings after the last heartbeat; `None` before the first.
    standing: Option<Standing>,
}

impl Drop for HeartbeatConnection {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// The settings that decide whether a commit waits for a standby, and the identity of the server.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Standing {
    /// `synchronous_standby_names`; empty if no commit waits.
    standbys: String,
    /// The time at which the server last read its settings. A change of the settings ends all waits.
    read_at: String,
    server: Server,
}

/// Selects the fields of a [`Standing`].
const STANDING: &str = "SELECT current_setting('synchronous_standby_names'), \
     pg_conf_load_time()::text, extract(epoch FROM pg_postmaster_start_time())::text";

/// A transaction that writes to the write-ahead log and to no table. The transaction overrides the
/// role's settings, which may hide warnings, or let commits return without waiting.
const BEAT: &str = "BEGIN; SET LOCAL client_min_messages = warning; \
     SET LOCAL synchronous_commit = on; \
     SELECT pg_logical_emit_message(true, 'keyward', ''); COMMIT";

impl HeartbeatConnection {
    async fn beat(&mut self) -> Result<Server, Fault> {
        let before = match self.standing.take() {
            Some(standing) => standing,
            None => self.standing().await?,
        };
        // Without a standby a commit returns immediately, and proves nothing.
        before.check()?;
        let warnings = self.warnings.load(Ordering::Acquire);
        // Two messages, so that the second reads the settings that changed during the first.
        let (_, after) = try_join(self.ask(BEAT), self.standing()).await?;
        let warned = self.warnings.load(Ordering::Acquire) != warnings;
        acknowledged(&before, &after, warned)?;
        let server = after.server.clone();
        self.standing = Some(after);
        Ok(server)
    }

    async fn standing(&self) -> Result<Standing, Fault> {
        let found = self.ask(STANDING).await?;
        let row = found.into_iter().next().map(Vec::into_iter);
        let mut row = row.into_iter().flatten().flatten();
        match (row.next(), row.next(), row.next()) {
            (Some(standbys), Some(read_at), Some(server)) => Ok(Standing {
                standbys,
                read_at,
                server: server.into(),
            }),
            _ => Err(Fault::Refused("the server does not report its settings")),
        }
    }

    /// Runs statements that are sent as one message. Returns the rows they found, as text.
    async fn ask(&self, sql: &str) -> Result<Vec<Vec<Option<String>>>, Fault> {
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

impl Standing {
    fn check(&self) -> Result<(), Fault> {
        match self.standbys.trim().is_empty() {
            true => Err(Fault::NoStandby),
            false => Ok(()),
        }
    }
}

/// Checks that the standby acknowledged a commit that returned between two reads of the settings.
/// `warned` is true if the server sent a warning in between. The server sends one when it ends a wait.
fn acknowledged(before: &Standing, after: &Standing, warned: bool) -> Result<(), Fault> {
    before.check()?;
    after.check()?;
    match warned || before != after {
        true => Err(Fault::Unacknowledged),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn standing(standbys: &str, read_at: &str) -> Standing {
        Standing {
            standbys: standbys.to_owned(),
            read_at: read_at.to_owned(),
            server: "since 9:00".into(),
        }
    }

    #[test]
    fn what_was_waited_for_without_a_warning_and_under_the_same_settings_counts() {
        let same = standing("b", "10:00");
        acknowledged(&same, &same, false).unwrap();
    }

    #[test]
    fn nothing_counts_that_may_not_have_been_waited_for() {
        let (set, later) = (standing("b", "10:00"), standing("b", "10:01"));
        let none = standing(" ", "10:00");
        for (before, after, warned) in [
            (&set, &set, true),
            // The settings were read again: `standbys` may have been empty in between.
            (&set, &later, false),
            (&set, &standing("a", "10:00"), false),
        ] {
            let refused = acknowledged(before, after, warned).unwrap_err();
            assert!(matches!(refused, Fault::Unacknowledged), "{refused:?}");
        }
        for (before, after) in [(&none, &none), (&set, &none), (&none, &set)] {
            let refused = acknowledged(before, after, false).unwrap_err();
            assert!(matches!(refused, Fault::NoStandby), "{refused:?}");
        }
    }
}

//! Strict mode: heartbeats that commit only once the synchronous standby has them.
//!
//! A former primary whose standby was promoted goes on answering reads, and cannot tell. What it can
//! not do is have a commit acknowledged. So whatever was read or written is told only when a heartbeat
//! that began after it, on the same server, was acknowledged.
//!
//! Invariants: a heartbeat counts only if its `COMMIT` was answered to the task here, without a warning
//! and with a synchronous standby set before and after. What others can see of it proves nothing, since
//! a wait that was cancelled and a server that was restarted make it visible as well: hence it writes
//! nothing that can be seen. Whoever waits is served by one that began after the call. See
//! `docs/propagation.md`.

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

/// Tells one run of a server from every other server, copies of it included: when it began.
pub(super) const SERVER: &str = "SELECT extract(epoch FROM pg_postmaster_start_time())::text";

/// Who waits for a heartbeat.
type Call = oneshot::Sender<Result<Server, Fault>>;

/// What [`SERVER`] tells.
type Server = Arc<str>;

/// The way to the task that makes heartbeats. It ends when this is gone.
pub(super) struct Heartbeats {
    calls: mpsc::UnboundedSender<Call>,
}

impl Heartbeats {
    pub(super) fn start(reach: Arc<dyn Reach>, limit: Duration, runtime: &Handle) -> Self {
        let (calls, waiting) = mpsc::unbounded_channel();
        let heart = Heart {
            reach,
            limit,
            session: None,
        };
        drop(runtime.spawn(heart.serve(waiting)));
        Self { calls }
    }

    /// Has what was read or written on `server` before this call proven by a heartbeat that begins
    /// after it. One that is on its way serves nobody who comes later.
    pub(super) async fn prove(&self, server: &str) -> Result<(), Fault> {
        match &*self.next().await? == server {
            true => Ok(()),
            false => Err(Fault::Elsewhere),
        }
    }

    /// The server of a heartbeat that begins after this call, once the standby has it.
    async fn next(&self) -> Result<Server, Fault> {
        const ENDED: Fault = Fault::Refused("the task that makes heartbeats has ended");
        let (answer, answered) = oneshot::channel();
        self.calls.send(answer).map_err(|_| ENDED)?;
        answered.await.unwrap_or(Err(ENDED))
    }
}

/// The task.
struct Heart {
    reach: Arc<dyn Reach>,
    /// How long one heartbeat may take, a new connection included.
    limit: Duration,
    session: Option<Session>,
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
        let late = || match self.session {
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
        let session = match &mut self.session {
            Some(session) => session,
            None => {
                let connected = self.reach.connect().await?;
                // Kept before anything hangs, so that what hangs can be cancelled.
                self.session.insert(connected)
            }
        };
        session.beat().await
    }

    /// Lets go of a connection on which anything went wrong. What the server still does on it is
    /// cancelled, or it would wait for the standby for ever.
    fn give_up(&mut self) {
        if let Some(session) = self.session.take() {
            let token = session.client.cancel_token();
            let (reach, limit) = (self.reach.clone(), self.limit);
            // Nobody waits for this. It is in vain if the server is out of reach.
            drop(tokio::spawn(async move {
                let _ = tokio::time::timeout(limit, reach.cancel(token)).await;
            }));
        }
    }
}

/// How the server is reached.
#[async_trait]
pub(super) trait Reach: Send + Sync {
    async fn connect(&self) -> Result<Session, Fault>;

    /// Has the server give up what it does on a connection.
    async fn cancel(&self, token: CancelToken);
}

/// A server that is reached by connections of this module's own, whose warnings are seen.
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
    async fn connect(&self) -> Result<Session, Fault> {
        let (client, mut connection) = self.config.connect(self.tls.clone()).await?;
        let warnings = Arc::new(AtomicU64::new(0));
        let counted = warnings.clone();
        // Counted before the answer that comes after it is passed on.
        let driver = tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notice(notice) = message {
                    tracing::debug!(code = notice.code().code(), "the server warns");
                    counted.fetch_add(1, Ordering::Release);
                }
            }
        });
        Ok(Session {
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

/// A connection that heartbeats are made on, and nothing else.
pub(super) struct Session {
    client: Client,
    driver: JoinHandle<()>,
    /// How many came so far.
    warnings: Arc<AtomicU64>,
    /// As it was after the last heartbeat.
    standing: Option<Standing>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// What decides whether a commit waits for a standby, and where.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Standing {
    /// `synchronous_standby_names`; empty where nobody is waited for.
    standbys: String,
    /// When the server last read its settings. It lets go of who waits when they change.
    read_at: String,
    server: Server,
}

/// What a [`Standing`] is made of.
const STANDING: &str = "SELECT current_setting('synchronous_standby_names'), \
     pg_conf_load_time()::text, extract(epoch FROM pg_postmaster_start_time())::text";

/// A transaction that writes to the log and to no table. The role's own settings may hide warnings, or
/// have commits wait for nobody.
const BEAT: &str = "BEGIN; SET LOCAL client_min_messages = warning; \
     SET LOCAL synchronous_commit = on; \
     SELECT pg_logical_emit_message(true, 'keyward', ''); COMMIT";

impl Session {
    async fn beat(&mut self) -> Result<Server, Fault> {
        let before = match self.standing.take() {
            Some(standing) => standing,
            None => self.standing().await?,
        };
        // Without one a commit is answered at once: nothing needs to be tried.
        before.check()?;
        let warnings = self.warnings.load(Ordering::Acquire);
        // Two messages, since settings that changed in the course of one are seen by the next.
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
            _ => Err(Fault::Refused("the server does not tell its settings")),
        }
    }

    /// Runs statements that are sent as one message. Tells what they found, as text.
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

/// Whether a commit that was answered between two looks at the settings was acknowledged by the
/// standby. `warned` tells that the server warned meanwhile: it does when it stops to wait.
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
            // Read again: it may have been empty in between.
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

//! Notifies other nodes of commits, and listens for their commits on a separate connection.
//! Notifications are only hints: a connection can be silent for many reasons, so followers poll as
//! well.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{BoxFuture, Either, FutureExt, select};
use tokio::sync::mpsc;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Config, Socket};

use super::fault::Fault;
use super::session::Database;

/// 1 second before a lost connection is opened again. A judgement.
const PAUSE: Duration = Duration::from_secs(1);

/// 5 seconds for an answer, if the configuration has no connect timeout. A judgement.
const PATIENCE: Duration = Duration::from_secs(5);

/// A listening task that has not started. The task takes two events, and ends when the last handle of
/// the first event is dropped.
pub(super) type Later = Box<dyn FnOnce(Weak<Event>, Arc<Event>) -> BoxFuture<'static, ()> + Send>;

/// Returns a task that listens on `channel`. For each message, the task notifies its first event. The
/// task ends when its second event is notified.
pub(super) fn later<T>(config: Config, tls: T, channel: String) -> Later
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    Box::new(move |moved, stop| {
        let listening = async move {
            loop {
                let stopped = stop.listen();
                if moved.strong_count() == 0 {
                    return;
                }
                let hear = pin!(hear(&config, tls.clone(), &channel, &moved));
                match select(hear, stopped).await {
                    Either::Left((Ok(()), _)) => {}
                    Either::Left((Err(fault), _)) => {
                        tracing::debug!(%fault, "lost the connection that listens for other nodes' commits; opening it again");
                    }
                    Either::Right(_) => return,
                }
                notify(&moved);
                tokio::time::sleep(PAUSE).await;
            }
        };
        listening.boxed()
    })
}

fn notify(moved: &Weak<Event>) {
    if let Some(moved) = moved.upgrade() {
        moved.notify(usize::MAX);
    }
}

/// Notifies `moved` for each message, until the connection ends.
async fn hear<T>(config: &Config, tls: T, channel: &str, moved: &Weak<Event>) -> Result<(), Fault>
where
    T: MakeTlsConnect<Socket>,
{
    let patience = config.get_connect_timeout().copied().unwrap_or(PATIENCE);
    // The configured timeout is for one address, and does not cover the handshake.
    let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
    let longest = patience.saturating_mul(hosts.max(1).saturating_mul(4));
    let connect = tokio::time::timeout(longest, config.connect(tls));
    let (client, mut connection) = connect.await.map_err(|_| Fault::Late)??;
    let messages = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(_) = message? {
                notify(moved);
            }
        }
        Ok(())
    };
    let listen = async {
        client.batch_execute(&format!("LISTEN {channel}")).await?;
        // No message came for commits before `LISTEN`, so the waiters must read the head again.
        notify(moved);
        loop {
            tokio::time::sleep(patience).await;
            // A connection that was lost silently looks like an idle one.
            let alive = tokio::time::timeout(patience, client.batch_execute("")).await;
            alive.map_err(|_| Fault::Late)??;
        }
    };
    match select(pin!(messages), pin!(listen)).await {
        Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
    }
}

/// Starts a task that notifies other nodes once for each message on the returned channel. The task ends
/// when the last sender is dropped.
pub(super) fn hints(database: Arc<Database>, runtime: &tokio::runtime::Handle) -> mpsc::Sender<()> {
    let (sender, mut hints) = mpsc::channel(1);
    let task = async move {
        while let Some(()) = hints.recv().await {
            hint(&database).await;
        }
    };
    drop(runtime.spawn(task));
    sender
}

/// Notifies other nodes of a commit. A hint: nothing depends on its arrival.
async fn hint(database: &Database) {
    let notify = async {
        let mut conn = database.connection().await?;
        // A hint need not be on disk.
        let channel = database.schema.channel();
        let sql = format!(
            "BEGIN; {} SET LOCAL synchronous_commit = off; NOTIFY {channel}; COMMIT",
            database.settings()
        );
        conn.object()?.batch_execute(&sql).await?;
        conn.give_back();
        Ok::<_, Fault>(())
    };
    match tokio::time::timeout(database.timeouts.request, notify).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => tracing::debug!(%fault, "could not wake the other nodes after a commit"),
        Err(_) => tracing::debug!("could not wake the other nodes after a commit in time"),
    }
}

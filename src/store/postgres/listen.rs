//! Sends `NOTIFY` to other nodes after commits, and listens for their notifications on a separate connection.
//!
//! Notifications are only hints. They can be lost without an error, so followers also poll.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{BoxFuture, Either, FutureExt, select};
use tokio::sync::mpsc;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::{AsyncMessage, Socket};

use super::fault::PostgresFault;
use super::hosts::Hosts;
use super::session::Database;
use crate::observe::WithSources;

/// 1 second of waiting before a lost connection is opened again. Otherwise a node would reconnect in a tight
/// loop while the server is down.
const PAUSE: Duration = Duration::from_secs(1);

/// A listening task that has not started. Its first argument is the event that the task notifies. Its second
/// argument is the event that stops the task. See [`listener`].
pub(super) type PendingListener =
    Box<dyn FnOnce(Weak<Event>, Arc<Event>) -> BoxFuture<'static, ()> + Send>;

/// Returns a task that listens on `channel`. For each message, the task notifies the waiters of its first
/// event.
///
/// After `timeout` without a response, the task opens another connection. The task ends when its second event is
/// notified, or when the last `Arc` of the first event is dropped.
pub(super) fn listener<T>(
    hosts: Arc<Hosts<T>>,
    channel: String,
    timeout: Duration,
) -> PendingListener
where
    T: MakeTlsConnect<Socket> + Clone + Send + Sync + 'static,
    T::TlsConnect: Send,
    T::Stream: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    Box::new(move |moved, stop| {
        let task = async move {
            loop {
                let stopped = stop.listen();
                if moved.strong_count() == 0 {
                    return;
                }
                let receive = pin!(receive(&hosts, &channel, timeout, &moved));
                match select(receive, stopped).await {
                    Either::Left((Ok(()), _)) => {}
                    Either::Left((Err(fault), _)) => {
                        tracing::debug!(error = %WithSources(&fault), "lost the connection that listens for notifications, reconnecting");
                    }
                    Either::Right(_) => return,
                }
                notify(&moved);
                tokio::time::sleep(PAUSE).await;
            }
        };
        task.boxed()
    })
}

fn notify(moved: &Weak<Event>) {
    if let Some(moved) = moved.upgrade() {
        moved.notify(usize::MAX);
    }
}

/// Connects and listens on `channel`. Notifies `moved` for each message, until the connection ends.
async fn receive<T>(
    hosts: &Hosts<T>,
    channel: &str,
    timeout: Duration,
    moved: &Weak<Event>,
) -> Result<(), PostgresFault>
where
    T: MakeTlsConnect<Socket> + Clone,
{
    let (client, mut connection) = hosts.connect().await?;
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
        // This connection received no messages about commits before its `LISTEN`. So wake the waiters, who
        // then read the head of the store again.
        notify(moved);
        loop {
            tokio::time::sleep(timeout).await;
            // A lost connection looks like an idle one until the client sends something. So send an empty
            // statement.
            let alive = tokio::time::timeout(timeout, client.batch_execute("")).await;
            alive.map_err(|_| PostgresFault::Late)??;
        }
    };
    match select(pin!(messages), pin!(listen)).await {
        Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
    }
}

/// Starts a task that sends one `NOTIFY` for each message on the returned channel. The task ends when the
/// last sender is dropped.
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

/// Sends a `NOTIFY` to the other nodes. Best effort: correctness does not depend on its delivery.
async fn hint(database: &Database) {
    let notify = async {
        let mut conn = database.connection().await?;
        // Turn `synchronous_commit` off, so that this commit does not wait for the disk. A lost hint does no
        // harm.
        let channel = database.schema.channel();
        let sql = format!(
            "BEGIN; {} SET LOCAL synchronous_commit = off; NOTIFY {channel}; COMMIT",
            database.settings()
        );
        conn.object()?.batch_execute(&sql).await?;
        conn.give_back();
        Ok::<_, PostgresFault>(())
    };
    match tokio::time::timeout(database.timeouts.request, notify).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => {
            tracing::debug!(error = %WithSources(&fault), "could not send a commit hint to the other nodes")
        }
        Err(_) => tracing::debug!("timed out while sending a commit hint to the other nodes"),
    }
}

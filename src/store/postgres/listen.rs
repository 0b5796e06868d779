//! Telling other nodes of commits, and hearing of theirs on a connection of its own. Hints only: a
//! connection can be silent for many reasons, so that followers poll as well.

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
use super::link::Link;

/// How long a lost connection is left alone. A judgement.
const PAUSE: Duration = Duration::from_secs(1);

/// How long an answer is waited for where connecting may take any time. A judgement.
const PATIENCE: Duration = Duration::from_secs(5);

/// A task that has not begun. It ends once nobody holds the event any more.
pub(super) type Later = Box<dyn FnOnce(Weak<Event>, Arc<Event>) -> BoxFuture<'static, ()> + Send>;

/// How to listen on `channel`: it passes on what comes to the first event, until the second tells it to
/// stop.
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
                        tracing::debug!(%fault, "not told of other nodes' commits for now");
                    }
                    Either::Right(_) => return,
                }
                tell(&moved);
                tokio::time::sleep(PAUSE).await;
            }
        };
        listening.boxed()
    })
}

fn tell(moved: &Weak<Event>) {
    if let Some(moved) = moved.upgrade() {
        moved.notify(usize::MAX);
    }
}

/// Passes on what comes, until the connection ends.
async fn hear<T>(config: &Config, tls: T, channel: &str, moved: &Weak<Event>) -> Result<(), Fault>
where
    T: MakeTlsConnect<Socket>,
{
    let patience = config.get_connect_timeout().copied().unwrap_or(PATIENCE);
    // The configured timeout is for one address, and does not cover what is said first.
    let hosts = u32::try_from(config.get_hosts().len()).unwrap_or(u32::MAX);
    let longest = patience.saturating_mul(hosts.max(1).saturating_mul(4));
    let connect = tokio::time::timeout(longest, config.connect(tls));
    let (client, mut connection) = connect.await.map_err(|_| Fault::Late)??;
    let messages = async {
        while let Some(message) = poll_fn(|context| connection.poll_message(context)).await {
            if let AsyncMessage::Notification(_) = message? {
                tell(moved);
            }
        }
        Ok(())
    };
    let listen = async {
        client.batch_execute(&format!("LISTEN {channel}")).await?;
        // What was committed before is not told: whoever waits looks again.
        tell(moved);
        loop {
            tokio::time::sleep(patience).await;
            // A connection that was lost without a word looks like one over which nothing comes.
            let alive = tokio::time::timeout(patience, client.batch_execute("")).await;
            alive.map_err(|_| Fault::Late)??;
        }
    };
    match select(pin!(messages), pin!(listen)).await {
        Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
    }
}

/// Starts a task that tells other nodes whenever it is told. It ends once nobody can tell it anything.
pub(super) fn hints(link: Arc<Link>, runtime: &tokio::runtime::Handle) -> mpsc::Sender<()> {
    let (told, mut to_tell) = mpsc::channel(1);
    let task = async move {
        while let Some(()) = to_tell.recv().await {
            hint(&link).await;
        }
    };
    drop(runtime.spawn(task));
    told
}

/// Tells other nodes that something was committed. A hint: nothing depends on its coming.
async fn hint(link: &Link) {
    let notify = async {
        let mut conn = link.connection().await?;
        // Nobody waits for the disk to have a hint.
        let channel = link.schema.channel();
        let sql = format!(
            "BEGIN; {} SET LOCAL synchronous_commit = off; NOTIFY {channel}; COMMIT",
            link.settings()
        );
        conn.object()?.batch_execute(&sql).await?;
        conn.give_back();
        Ok::<_, Fault>(())
    };
    match tokio::time::timeout(link.timeouts.request, notify).await {
        Ok(Ok(())) => {}
        Ok(Err(fault)) => tracing::debug!(%fault, "other nodes were not told of a commit"),
        Err(_) => tracing::debug!("other nodes were not told of a commit in time"),
    }
}

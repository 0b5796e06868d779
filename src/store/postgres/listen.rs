//! Hearing of other nodes' commits, on a connection of its own. A hint only: a connection can be silent
//! for many reasons, so that followers poll as well.

use std::future::poll_fn;
use std::sync::{Arc, Weak};
use std::time::Duration;

use event_listener::Event;
use futures_util::future::{Either, select};
use tokio_postgres::{AsyncMessage, Config, NoTls};

use super::fault::Fault;

/// How long a lost connection is left alone. A judgement.
const PAUSE: Duration = Duration::from_secs(1);

/// Listens until nobody holds `moved` any more.
pub(super) async fn run(config: Config, channel: String, moved: Weak<Event>, stop: Arc<Event>) {
    loop {
        let stopped = stop.listen();
        if moved.strong_count() == 0 {
            return;
        }
        let hear = hear(&config, &channel, &moved);
        match select(std::pin::pin!(hear), stopped).await {
            Either::Left((Ok(()), _)) => {}
            Either::Left((Err(fault), _)) => {
                tracing::debug!(%fault, "not told of other nodes' commits for now");
            }
            Either::Right(_) => return,
        }
        tell(&moved);
        tokio::time::sleep(PAUSE).await;
    }
}

fn tell(moved: &Weak<Event>) {
    if let Some(moved) = moved.upgrade() {
        moved.notify(usize::MAX);
    }
}

/// Passes on what comes, until the connection ends.
async fn hear(config: &Config, channel: &str, moved: &Weak<Event>) -> Result<(), Fault> {
    let (client, mut connection) = config.connect(NoTls).await?;
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
        std::future::pending::<Result<(), Fault>>().await
    };
    match select(std::pin::pin!(messages), std::pin::pin!(listen)).await {
        Either::Left((ended, _)) | Either::Right((ended, _)) => ended,
    }
}

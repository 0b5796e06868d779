//! Streams all rows of one snapshot to a node that starts. Rows are decoded while later rows arrive.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::Poll;

use futures_util::TryStreamExt;
use futures_util::future::{FutureExt, poll_immediate, try_join};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Row, RowStream};

use super::fault::PostgresFault;
use super::head;
use super::rows::changes;
use super::session::{Database, Session, SessionMode};
use crate::store::ScanPage;
use crate::store::sql::{COLUMNS, Head, REMOVED};

/// 256 rows per page. The memory of such a page is still in the CPU cache when a later page reuses it. The
/// number is an estimate.
const PAGE_ROWS: usize = 256;

/// At most 16 pages are read ahead, so that the reading task and the consumer rarely wait for each other. The
/// number is an estimate.
pub(super) const PAGES_AHEAD: usize = 16;

/// The task that decodes a page.
pub(super) type PendingPage = JoinHandle<Result<ScanPage, PostgresFault>>;

/// Starts decoding a page in a task of its own. Decoding takes most of the time of a scan, so pages are
/// decoded concurrently. `head` must have been read before the rows.
fn decode(head: Head, rows: Vec<Row>) -> PendingPage {
    tokio::spawn(async move {
        Ok(ScanPage {
            head: head.cursor(),
            rows: changes(&rows)?,
            next: None,
        })
    })
}

/// Sends all rows to `pages`, in the order in which the server reads the table. Returns early if the receiver
/// is dropped.
///
/// One `FETCH` reads `limit` rows, so the statement timeout does not depend on the size of the store. If the
/// receiver stops reading, the server ends the transaction after the idle timeout.
pub(super) async fn everything(
    database: &Arc<Database>,
    limit: NonZeroUsize,
    pages: &mpsc::Sender<PendingPage>,
) -> Result<(), PostgresFault> {
    let time_limit = database.timeouts.request;
    let begin = async {
        let session = Session::begin(database, SessionMode::Read).await?;
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE kind <> {REMOVED}");
        let (head, cursor) = try_join(head::read(&session), session.open(&sql, &[])).await?;
        let first = session.fetch(&cursor, limit.get()).await?;
        Ok::<_, PostgresFault>((session, head, cursor, first))
    };
    let begun = timeout(time_limit, begin)
        .await
        .map_err(|_| PostgresFault::Late)?;
    let (session, head, cursor, mut coming) = begun?;
    let mut sent_any = false;
    loop {
        // Polling sends the next `FETCH` before the current rows are read, so the server does not wait for
        // this node.
        let mut following = session.fetch(&cursor, limit.get()).boxed();
        let early = poll_immediate(&mut following).await;
        let mut came = 0;
        let mut stream = pin!(coming);
        loop {
            let most = limit.get().min(PAGE_ROWS);
            let rows = timeout(time_limit, next_rows(stream.as_mut(), most)).await;
            let rows = rows.map_err(|_| PostgresFault::Late)??;
            came += rows.len();
            let done = rows.len() < most;
            // The receiver needs the head of the store. So if the store is empty, send one page without rows.
            if !rows.is_empty() || !sent_any {
                sent_any = true;
                if pages.send(decode(head, rows)).await.is_err() {
                    return Ok(());
                }
            }
            if done {
                break;
            }
        }
        if came < limit.get() {
            break;
        }
        let following = async {
            match early {
                Some(following) => following,
                None => following.await,
            }
        };
        let following = timeout(time_limit, following).await;
        coming = following.map_err(|_| PostgresFault::Late)??;
    }
    // In strict mode `end` fails if no heartbeat confirms the reads. The caller must then discard all pages.
    session.end().await
}

/// Returns the next `most` rows, or fewer at the end of the stream.
async fn next_rows(
    mut stream: Pin<&mut RowStream>,
    most: usize,
) -> Result<Vec<Row>, PostgresFault> {
    let mut rows = Vec::with_capacity(most);
    while rows.len() < most
        && let Some(row) = stream.try_next().await?
    {
        rows.push(row);
    }
    Ok(rows)
}

/// Yields once to the executor. Unlike `tokio::task::yield_now`, works on any executor.
pub(super) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

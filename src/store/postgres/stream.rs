//! All rows in one stream, for a node that starts: one snapshot, decoded while it arrives.

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

use super::fault::Fault;
use super::head;
use super::rows::changes;
use super::session::{Database, Mode, Session};
use crate::store::ScanPage;
use crate::store::sql::{COLUMNS, Head, REMOVED};

/// 256 rows are decoded at a time. A judgement: records have many parts, and the next batch reuses
/// memory that is still in the cache.
const BATCH: usize = 256;

/// 16 batches may be read ahead. A judgement: enough that neither side waits for the other.
pub(super) const AHEAD: usize = 16;

/// A batch that is being decoded.
pub(super) type Page = JoinHandle<Result<ScanPage, Fault>>;

/// Decodes rows in a separate task, while other rows are read and taken: decoding is most of the work.
/// `head` was read before the rows.
fn page(head: Head, rows: Vec<Row>) -> Page {
    tokio::spawn(async move {
        Ok(ScanPage {
            head: head.cursor(),
            rows: changes(&rows)?,
            next: None,
        })
    })
}

/// Sends all rows in the order of the table. Ends early if the receiver is dropped.
///
/// The server reads `limit` rows per statement, so that the statement timeout suffices for any number of
/// rows. If the rows are not taken, the server waits between statements until its idle timeout.
pub(super) async fn everything(
    database: &Arc<Database>,
    limit: NonZeroUsize,
    pages: &mpsc::Sender<Page>,
) -> Result<(), Fault> {
    let patience = database.timeouts.request;
    let begin = async {
        let session = Session::begin(database, Mode::Read).await?;
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE kind <> {REMOVED}");
        let (head, ()) = try_join(head::read(&session), session.open(&sql, &[])).await?;
        let first = session.fetch(limit.get()).await?;
        Ok::<_, Fault>((session, head, first))
    };
    let begun = timeout(patience, begin).await.map_err(|_| Fault::Late)?;
    let (session, head, mut coming) = begun?;
    let mut sent_any = false;
    loop {
        // The next `FETCH` is sent before the current rows are read, so that the server never waits for
        // a request.
        let mut following = session.fetch(limit.get()).boxed();
        let early = poll_immediate(&mut following).await;
        let mut came = 0;
        let mut stream = pin!(coming);
        loop {
            let most = limit.get().min(BATCH);
            let rows = timeout(patience, some(stream.as_mut(), most)).await;
            let rows = rows.map_err(|_| Fault::Late)??;
            came += rows.len();
            let done = rows.len() < most;
            // An empty store sends one empty page.
            if !rows.is_empty() || !sent_any {
                sent_any = true;
                if pages.send(page(head, rows)).await.is_err() {
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
        let following = timeout(patience, following).await;
        coming = following.map_err(|_| Fault::Late)??;
    }
    // The receiver must conclude nothing from the rows before this call succeeds.
    session.end().await
}

/// Returns the next rows, fewer than `most` only at the end.
async fn some(mut stream: Pin<&mut RowStream>, most: usize) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::with_capacity(most);
    while rows.len() < most
        && let Some(row) = stream.try_next().await?
    {
        rows.push(row);
    }
    Ok(rows)
}

/// Yields once to other tasks of whatever executor runs this one.
pub(super) async fn let_others_run() {
    let mut gave_way = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut gave_way, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

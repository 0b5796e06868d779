//! Everything at once, for a node that starts: one snapshot, read as it comes.

use std::future::poll_fn;
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::task::Poll;

use futures_util::TryStreamExt;
use futures_util::future::try_join;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_postgres::{Row, RowStream};

use super::fault::Fault;
use super::head::{HEAD, Head};
use super::link::Link;
use super::rows;
use crate::store::ScanPage;
use crate::store::rows::{COLUMNS, REMOVED};

/// How many rows are made into records at a time. Few enough that the memory of one batch is still at
/// hand for the next: records have many parts. A judgement.
const BATCH: usize = 256;

/// How many batches may be read before they are taken. A judgement: enough that neither side waits for
/// the other.
pub(super) const AHEAD: usize = 16;

/// Rows on their way to be records.
pub(super) type Page = JoinHandle<Result<ScanPage, Fault>>;

/// Makes records of rows as the server sent them, beside whoever reads and whoever takes them: that is
/// the most part of the work. `head` is where the store stood before.
fn page(head: Head, rows: Vec<Row>) -> Page {
    tokio::spawn(async move {
        Ok(ScanPage {
            head: head.cursor,
            rows: rows::changes(&rows)?,
            next: None,
        })
    })
}

/// Sends all rows in the order in which the table has them. Ends early if nobody takes them any more.
///
/// `limit` rows at a time are a statement of their own to the server, within its timeout, however many
/// there are in all. Where they are not taken, the server waits in between until it thinks the node
/// idle.
pub(super) async fn everything(
    link: &Link,
    limit: NonZeroUsize,
    pages: &mpsc::Sender<Page>,
) -> Result<(), Fault> {
    let patience = link.timeouts.request;
    let mut conn = link.connection().await?;
    let begin = async {
        let listing = link.listing(&mut conn).await?;
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE kind <> {REMOVED}");
        let (head, portal) = try_join(listing.query(HEAD), listing.portal(&sql, &[])).await?;
        Ok::<_, Fault>((listing, Head::of(&head)?, portal))
    };
    let (listing, head, portal) = timeout(patience, begin).await.map_err(|_| Fault::Late)??;
    let asked = i32::try_from(limit.get()).unwrap_or(i32::MAX);
    let mut coming = listing.go_on(&portal, asked).await?;
    let mut sent_any = false;
    loop {
        // Asked for before these are read: the server does not wait to be asked.
        let following = listing.go_on(&portal, asked).await?;
        let mut came = 0;
        let mut stream = pin!(coming);
        loop {
            let most = limit.get().min(BATCH);
            let rows = timeout(patience, some(stream.as_mut(), most)).await;
            let rows = rows.map_err(|_| Fault::Late)??;
            came += rows.len();
            let done = rows.len() < most;
            // Where there is no row at all, that is told.
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
        coming = following;
    }
    // Whoever takes the rows concludes nothing from them before this call ends well.
    listing.end().await?;
    conn.give_back();
    Ok(())
}

/// The next rows, fewer than `most` at the end alone.
async fn some(mut stream: Pin<&mut RowStream>, most: usize) -> Result<Vec<Row>, Fault> {
    let mut rows = Vec::with_capacity(most);
    while rows.len() < most
        && let Some(row) = stream.try_next().await?
    {
        rows.push(row);
    }
    Ok(rows)
}

/// Gives way to other tasks once, whatever runs this one.
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

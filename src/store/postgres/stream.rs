//! Everything at once, for a node that starts: one snapshot, read as it comes.

use std::num::NonZeroUsize;

use futures_util::TryStreamExt;
use futures_util::future::try_join;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::fault::Fault;
use super::head::Head;
use super::link::Link;
use super::rows;
use crate::store::ScanPage;
use crate::store::rows::{COLUMNS, REMOVED};

/// How many pages may be read before they are taken. A judgement: enough that neither side waits for
/// the other.
pub(super) const AHEAD: usize = 2;

/// Sends all rows in the order in which the table has them, some at a time. Ends early if nobody takes
/// them any more.
///
/// Each page is a statement of its own to the server, within its timeout, however many there are. Where
/// pages are not taken, the server waits between two of them until it thinks the node idle.
pub(super) async fn everything(
    link: &Link,
    limit: NonZeroUsize,
    pages: &mpsc::Sender<ScanPage>,
) -> Result<(), Fault> {
    let patience = link.timeouts.request;
    let mut conn = link.connection().await?;
    let begin = async {
        let tx = link.snapshot(&mut conn).await?;
        let sql = format!("SELECT {COLUMNS} FROM $s.rows WHERE kind <> {REMOVED}");
        let (head, portal) = try_join(Head::read(&tx), tx.portal(&sql, &[])).await?;
        Ok::<_, Fault>((tx, head, portal))
    };
    let (tx, head, portal) = timeout(patience, begin).await.map_err(|_| Fault::Late)??;
    let some = i32::try_from(limit.get()).unwrap_or(i32::MAX);
    let mut coming = tx.go_on(&portal, some).await?;
    loop {
        // Asked for before this one is read: the server does not wait to be asked.
        let following = tx.go_on(&portal, some).await?;
        let mut page = Vec::with_capacity(limit.get().min(MOST_AT_ONCE));
        let read = async {
            let mut rows = std::pin::pin!(coming);
            while let Some(row) = rows.try_next().await? {
                page.push(rows::change(&row)?);
            }
            Ok::<_, Fault>(())
        };
        timeout(patience, read).await.map_err(|_| Fault::Late)??;
        let done = page.len() < limit.get();
        let page = ScanPage {
            head: head.cursor,
            newest: head.newest,
            rows: page,
            next: None,
        };
        if pages.send(page).await.is_err() {
            return Ok(());
        }
        if done {
            break;
        }
        coming = following;
    }
    tx.end();
    conn.give_back();
    Ok(())
}

/// For how many rows room is made before they come.
const MOST_AT_ONCE: usize = 8192;

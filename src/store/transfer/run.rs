//! Runs a copy: writes all items, compares them, checks that the source is unchanged, and commits.

use std::num::NonZeroUsize;

use super::{
    Copied, CopyError, CopyPage, CopyPhase, CopyProgress, CopySource, CopyTarget, Item, Origin,
    Part,
};

/// Copies `from` into `to`, which must be empty. Reads and writes `page` items at a time, and reports
/// each page to `progress`.
///
/// The copy is one transaction of the target. Before the transaction commits, the copy is compared with its
/// source item by item. A write to the source during the copy makes the copy fail, and a later write is
/// missing from the target. So first stop everything that uses the source.
///
/// # Errors
///
/// [`CopyError`]. The transaction rolls back, also if the future is dropped or the process is killed.
pub async fn copy(
    from: &dyn CopySource,
    to: &dyn CopyTarget,
    page: NonZeroUsize,
    mut progress: impl FnMut(CopyProgress) + Send,
) -> Result<Copied, CopyError> {
    let origin = from.origin().await?;
    let mut copy = to.begin(&origin).await?;
    for phase in [CopyPhase::Copying, CopyPhase::Comparing] {
        for part in Part::ALL {
            let mut at = CopyProgress {
                phase,
                part,
                done: 0,
                total: origin.counts.of(part),
            };
            progress(at);
            let mut after = None;
            loop {
                let read = unmoved(&origin, from.page(part, after.as_ref(), page).await?)?;
                if phase == CopyPhase::Comparing {
                    let written = copy.written(part, after.as_ref(), page).await?;
                    if let Err(differs) = compare(&read, &written) {
                        let now = from.origin().await?;
                        return Err(match now.document_writes == origin.document_writes {
                            true => differs,
                            false => CopyError::SourceMoved,
                        });
                    }
                }
                let Some(last) = read.last().cloned() else {
                    break;
                };
                at.done += u64::try_from(read.len()).unwrap_or_default();
                if phase == CopyPhase::Copying {
                    copy.write(read).await?;
                }
                progress(at);
                after = Some(last);
            }
        }
    }
    let now = from.origin().await?;
    let unmoved = origin.is_where(now.head, now.floor)
        && origin.restored_from == now.restored_from
        && origin.document_writes == now.document_writes;
    if !unmoved {
        return Err(CopyError::SourceMoved);
    }
    Ok(Copied {
        head: copy.commit(&now).await?,
        counts: now.counts,
        unrecovered: now.restored_from.is_some(),
    })
}

/// Returns the items of a page. Fails if the source was changed since the copy began.
fn unmoved(origin: &Origin, page: CopyPage) -> Result<Vec<Item>, CopyError> {
    match origin.is_where(page.head, page.floor) {
        true => Ok(page.items),
        false => Err(CopyError::SourceMoved),
    }
}

fn compare(read: &[Item], written: &[Item]) -> Result<(), CopyError> {
    let same = read
        .iter()
        .zip(written)
        .take_while(|(read, written)| read == written);
    let at = same.count();
    match read.get(at).or_else(|| written.get(at)) {
        Some(first) => Err(CopyError::Differs(first.to_string())),
        None => Ok(()),
    }
}

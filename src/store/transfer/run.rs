//! The course of a copy: write what is missing, compare everything, look whether the source stood still.

use std::num::NonZeroUsize;

use super::{Copied, CopyError, Export, Import, Item, Origin, Page, Part, Progress, Step};

/// Copies `from` into `to`, which must be empty, or hold the part of the same copy that an earlier
/// attempt wrote. `page` items are read and written at a time; `progress` hears of each page.
///
/// The copy is compared with its source item by item before it becomes a store. Whoever writes to the
/// source meanwhile makes it fail; whoever writes to it afterwards writes to the source alone. So stop
/// all that use it first.
///
/// # Errors
///
/// [`CopyError`]. Interrupted, dropped or killed, the copy goes on where it was when it is called
/// again; until it is done, the target opens for nothing else.
pub async fn copy(
    from: &dyn Export,
    to: &dyn Import,
    page: NonZeroUsize,
    mut progress: impl FnMut(Progress) + Send,
) -> Result<Copied, CopyError> {
    let origin = from.origin().await?;
    let there = to.begin(&origin).await?;
    for part in Part::ALL {
        let mut told = Told::new(Step::Copying, part, &origin, there.of(part), &mut progress);
        let mut after = to.last(part).await?;
        loop {
            let read = from.page(part, after.as_ref(), page).await?;
            let items = still(&origin, read)?;
            if items.is_empty() {
                break;
            }
            to.write(&items).await?;
            told.more(&items);
            after = items.into_iter().next_back();
        }
    }
    for part in Part::ALL {
        let mut told = Told::new(Step::Comparing, part, &origin, 0, &mut progress);
        compare(from, to, &origin, part, page, |items| told.more(items)).await?;
    }
    let now = from.origin().await?;
    if !origin.is_where(now.head, now.floor) || origin.unrecovered != now.unrecovered {
        return Err(CopyError::SourceMoved);
    }
    let head = to.finish(&now).await?;
    Ok(Copied {
        head,
        counts: now.counts,
        unrecovered: now.unrecovered,
    })
}

async fn compare(
    from: &dyn Export,
    to: &dyn Import,
    origin: &Origin,
    part: Part,
    page: NonZeroUsize,
    mut same: impl FnMut(&[Item]) + Send,
) -> Result<(), CopyError> {
    let mut after = None;
    loop {
        let read = still(origin, from.page(part, after.as_ref(), page).await?)?;
        let written = to.written(part, after.as_ref(), page).await?.items;
        if read != written {
            return Err(CopyError::Differs(first_difference(&read, &written)));
        }
        if read.is_empty() {
            return Ok(());
        }
        same(&read);
        after = read.into_iter().next_back();
    }
}

/// The items of a page, if the source stands where it stood.
fn still(origin: &Origin, page: Page) -> Result<Vec<Item>, CopyError> {
    match origin.is_where(page.head, page.floor) {
        true => Ok(page.items),
        false => Err(CopyError::SourceMoved),
    }
}

fn first_difference(read: &[Item], written: &[Item]) -> String {
    let pairs = read.iter().zip(written);
    let differs = pairs.filter(|(read, written)| read != written);
    let mut differs = differs.map(|(read, _)| read);
    let shorter = read.len().min(written.len());
    let longer = || read.get(shorter).or_else(|| written.get(shorter));
    let first = differs.next().or_else(longer);
    first.map_or_else(String::new, Item::to_string)
}

/// Tells how far one part has come.
struct Told<'p, F> {
    at: Progress,
    progress: &'p mut F,
}

impl<'p, F: FnMut(Progress)> Told<'p, F> {
    fn new(step: Step, part: Part, origin: &Origin, done: u64, progress: &'p mut F) -> Self {
        let total = origin.counts.of(part);
        let at = Progress {
            step,
            part,
            done,
            total,
        };
        progress(at);
        Self { at, progress }
    }

    fn more(&mut self, items: &[Item]) {
        let more = u64::try_from(items.len()).unwrap_or(u64::MAX);
        self.at.done = self.at.done.saturating_add(more);
        (self.progress)(self.at);
    }
}

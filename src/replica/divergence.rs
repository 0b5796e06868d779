//! A store that went back in time: within one epoch, it lacks a commit that this process knows. Someone copied a
//! backup back, or a failover lost commits. Revocations may be lost, so revoked keys would verify again.
//!
//! Invariants:
//!
//! - Once this process has noticed the loss, it accepts no key and executes no command.
//! - The index keeps every row that it had. In particular, it keeps every revocation.
//! - Only a sync ends this state, and only if the store has the commit again, or a new epoch. New commits of the
//!   store and a scan of its rows do not end this state. The sync then reads all rows again, because commits of
//!   this process may have gone to the wrong history.

use std::num::NonZeroUsize;

use super::confirmations::ObservedReport;
use super::{Replica, SyncState};
use crate::clock::Clock;
use crate::observe;
use crate::store::{Changes, ChangesError, Cursor, FoundKey, RowKey, StoreError, StoreErrorKind};

/// A page of one row: enough to learn whether the store has a commit.
pub(super) const PROBE: NonZeroUsize = NonZeroUsize::MIN;

/// The next step of the operator.
const NEXT_STEP: &str = "if this is the wrong server, switch back to the right one; otherwise run `keyctl \
     start-new-epoch`, and then `keyctl recover` with the audit trail of the lost history";

/// The source of every error of a replica whose store went back in time.
#[derive(Debug, thiserror::Error)]
#[error("the store went back in time and lacks commit {}, which this process knows: {NEXT_STEP}", lost.revision)]
struct HistoryLost {
    lost: Cursor,
}

pub(super) fn history_lost(lost: Cursor) -> StoreError {
    let kind = StoreErrorKind::Unavailable;
    StoreError::new(kind, "checking the store's history").with_source(HistoryLost { lost })
}

impl Replica {
    /// Checks that this process has not found that the store went back in time.
    ///
    /// # Errors
    ///
    /// [`StoreError`] with the lost commit, and with the next step of the operator.
    pub(crate) fn check_history(&self) -> Result<(), StoreError> {
        self.newest_known().map(drop)
    }

    /// Returns the newest position of the store that this process knows. A read that begins afterwards must
    /// find a store that has this position.
    pub(crate) fn newest_known(&self) -> Result<Option<Cursor>, StoreError> {
        let progress = self.progress();
        match progress.diverged {
            Some(lost) => Err(history_lost(lost)),
            None => Ok(progress.newest),
        }
    }

    /// Reads changes after a position that this process knows, and the server's time. Returns `None` if the
    /// changes were compacted, or if the position belongs to another epoch.
    pub(super) async fn page(
        &self,
        after: Cursor,
        limit: NonZeroUsize,
    ) -> Result<Option<Changes>, StoreError> {
        let asked = self.clock.monotonic();
        let page = self.store.changes(after, limit).await;
        self.count_answer();
        match page {
            Ok(page) => {
                self.clock.saw_server(page.server_time, asked);
                Ok(Some(page))
            }
            Err(ChangesError::Compacted) => Ok(None),
            Err(ChangesError::Store(error)) => Err(error),
            Err(ChangesError::Diverged) => {
                // The head is only logged. Without the head, the line still names the lost commit.
                let head = self.store.scan(None, PROBE).await;
                let head = head.ok().map(|page| page.head);
                self.diverge(&mut self.progress(), after, head);
                Err(self.settle(after).await)
            }
        }
    }

    /// Decides where the newest commit of this process went, if the store lacks the older position `lost`. The
    /// store lacks a commit to the lost history too, and has a commit that this process made to the wrong
    /// history. Returns the error for the position that the right store must have.
    ///
    /// Without an answer of the store nothing is decided, and the right store must have both positions.
    async fn settle(&self, lost: Cursor) -> StoreError {
        let Some(newest) = self.newer_than(lost) else {
            return history_lost(lost);
        };
        let answer = self.store.changes(newest, PROBE).await;
        self.count_answer();
        let mut progress = self.progress();
        match answer {
            Err(ChangesError::Diverged) => {
                progress.diverged = Some(newest);
                return history_lost(newest);
            }
            Ok(_) => progress.newest = Some(lost),
            Err(ChangesError::Compacted | ChangesError::Store(_)) => {}
        }
        history_lost(lost)
    }

    /// Returns the newest position that this process knows, if it is newer than `lost` and of the same epoch.
    fn newer_than(&self, lost: Cursor) -> Option<Cursor> {
        let newest = self.progress().newest;
        newest.filter(|newest| newest.epoch == lost.epoch && newest.revision > lost.revision)
    }

    /// Checks that the store has the position `known`, which this process knew before it read a page from
    /// `cursor` to `head`. Reads nothing if one of the two is this position.
    ///
    /// A commit of this process can be newer than everything that this process has read. A failover may lose this
    /// commit. The next commits of other processes then take its revision.
    pub(super) async fn check_known(
        &self,
        known: Option<Cursor>,
        [cursor, head]: [Cursor; 2],
    ) -> Result<(), StoreError> {
        let unproven = known.filter(|known| *known != cursor && *known != head);
        match unproven.filter(|known| known.epoch == head.epoch) {
            Some(known) => self.page(known, PROBE).await.map(drop),
            None => Ok(()),
        }
    }

    /// Returns whether this process knows a position of the store.
    pub(super) fn has_memory(&self) -> bool {
        let progress = self.progress();
        progress.newest.is_some() || progress.diverged.is_some()
    }

    /// Checks that the store has the positions that live nodes report. For a process that knows no position of
    /// the store itself: it may have started after the store went back in time.
    ///
    /// Nodes that stopped are left out. Otherwise one node that had followed the wrong server would keep others
    /// from starting on the right one, long after it was stopped.
    ///
    /// # Errors
    ///
    /// [`StoreError`] if the store lacks a position, or if it or the registry did not answer.
    pub(super) async fn check_peers(&self) -> Result<(), StoreError> {
        let Some(peers) = self.read_reports().await.transpose()? else {
            return Ok(());
        };
        let now = self.clock.now();
        let mut checked = Vec::new();
        for ObservedReport { report, .. } in peers {
            let is_live = report.clock.saturating_add(report.lease) >= now;
            let applied = report
                .applied
                .filter(|own| is_live && !checked.contains(own));
            let Some(applied) = applied else { continue };
            if let Err(error) = self.page(applied, PROBE).await {
                if self.check_history().is_err() {
                    let label = report.label.as_ref().map(tracing::field::display);
                    tracing::error!(node = %report.node, label, "this live node has the commit that the store lacks");
                }
                return Err(error);
            }
            checked.push(applied);
        }
        Ok(())
    }

    /// Compares the row of a key that was read from the store with the positions and rows that this process knew.
    /// Returns the position that the store lacks, if any.
    pub(super) fn lost_by(
        &self,
        progress: &SyncState,
        known: Option<Cursor>,
        fetched: &FoundKey,
    ) -> Option<Cursor> {
        let head = fetched.head;
        let same_epoch = |own: &Cursor| own.epoch == head.epoch;
        let lacks = |known: &Cursor| {
            let other_tag = head.revision == known.revision && head.tag != known.tag;
            head.revision < known.revision || other_tag
        };
        if let Some(known) = known.filter(same_epoch).filter(lacks) {
            return Some(known);
        }
        let RowKey::Key(key) = fetched.change.row.key() else {
            return None;
        };
        let cursor = progress.cursor.filter(same_epoch)?;
        let applied = self.view.load().revision_of(key)?;
        // A store whose head includes the commit of the applied row returns that row or a newer one.
        let is_older = fetched.change.revision < applied && applied <= head.revision;
        let mut own = [Some(cursor), progress.newest].into_iter().flatten();
        own.find(|own| is_older && same_epoch(own) && own.revision >= applied)
    }

    /// Ends freshness, and records the position that the store lacks. Keeps the index and the cursor. Logs only
    /// the first such position.
    pub(super) fn diverge(&self, progress: &mut SyncState, lost: Cursor, head: Option<Cursor>) {
        self.end_freshness(progress);
        if progress.diverged.is_some() {
            return;
        }
        progress.diverged = Some(lost);
        let head = head.map(|head| (head.revision, head.tag));
        tracing::error!(
            lost = %lost.revision,
            tag = format_args!("{:032x}", lost.tag.0),
            epoch = format_args!("{:032x}", lost.epoch.0),
            head = head.map(|(revision, _)| tracing::field::display(revision)),
            head_tag = head.map(|(_, tag)| tracing::field::display(format!("{:032x}", tag.0))),
            "the store went back in time: it lacks a commit that this process knows, so this process accepts no \
             key and executes no command; {NEXT_STEP}"
        );
    }

    /// Ends the divergence, if there is one and the store has the lost position again, or another epoch. The
    /// caller must then read all rows.
    ///
    /// # Errors
    ///
    /// [`StoreError`] of the store, or because the store still lacks the position.
    pub(super) async fn await_history(&self) -> Result<(), StoreError> {
        let Some(lost) = self.progress().diverged else {
            return Ok(());
        };
        let mut newest = None;
        // A newer position is left if no store has answered where that commit went.
        for position in [Some(lost), self.newer_than(lost)].into_iter().flatten() {
            let answer = self.store.changes(position, PROBE).await;
            self.count_answer();
            match answer {
                Ok(_) => newest = Some(position),
                Err(ChangesError::Diverged) if position == lost => {
                    return Err(self.settle(lost).await);
                }
                Err(ChangesError::Diverged) => return Err(history_lost(position)),
                Err(ChangesError::Store(error)) => return Err(error),
                // The store may have dropped the tombstones beyond the position, in the same epoch.
                Err(ChangesError::Compacted) => {
                    let head = self.store.scan(None, PROBE).await?.head;
                    if head.epoch == lost.epoch {
                        return Err(history_lost(position));
                    }
                    newest = None;
                    break;
                }
            }
        }
        let ended = match newest {
            Some(_) => "the store has the lost commit again, reading all rows",
            None => "the store has a new epoch, reading all rows",
        };
        tracing::info!(lost = %lost.revision, "{ended}");
        observe::resynced();
        let mut progress = self.progress();
        // The reports since then may have gone to the registry of the wrong store.
        self.end_freshness(&mut progress);
        progress.diverged = None;
        // Heads of the wrong history are not positions of this one.
        progress.newest = newest;
        progress.reset_position(self.clock.monotonic());
        Ok(())
    }
}

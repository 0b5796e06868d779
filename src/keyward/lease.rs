//! Leases: a job of which a deployment runs one at a time, such as the sending of webhooks.
//!
//! A lease is two [documents](crate::store::Documents) of the store: one names the holder, and its version is
//! the fencing number; the other is written at each renewal. No clocks are compared. A holder counts its term
//! from the moment at which it sent a renewal. Another process takes a lease over only after it has seen no
//! renewal for a whole term, by its own clock, from the moment at which it received what it compares with. The
//! second moment is never earlier than the first, so the two terms do not overlap.

use std::sync::Arc;
use std::time::Duration;

use super::Keyward;
use crate::clock::Clock;
use crate::core::invalid::Invalid;
use crate::core::policy::Propagation;
use crate::core::text::NodeLabel;
use crate::store::{
    DocumentError, DocumentGuard, DocumentName, DocumentWrite, Documents, Epoch, KeyStore,
    StoreError,
};
use crate::timekeeper::Timekeeper;

/// The error of a [`Lease`].
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LeaseError {
    /// The name of the lease is malformed.
    #[error(transparent)]
    Name(#[from] Invalid),
    /// The store has no documents, so that processes cannot agree on a holder.
    #[error("the store has no documents, which a lease needs")]
    NoDocuments,
    /// The store failed. The lease may or may not be held: call [`hold`](Lease::hold) again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A lease: at most one process holds it at a time.
///
/// A process that pauses for longer than its term may act on a lease that it no longer holds. So write the
/// results of the work with the lease's [`Fence`], and send its [number](Fence::number) to services that can
/// refuse a lower one.
///
/// # Examples
///
/// ```
/// # pollster::block_on(async {
/// use keyward::store::{DocumentWrite, Documents, MemoryStore};
/// use keyward::{Keyward, PepperRing};
///
/// let store = MemoryStore::new();
/// let keys = Keyward::builder(store.clone(), PepperRing::generate()?).build().await?;
///
/// let mut lease = keys.lease("webhooks", "host-1".try_into()?)?;
/// if let Some(fence) = lease.hold().await? {
///     // Do a part of the work, then write its result. The write fails if another process took over.
///     let write = DocumentWrite::new("app.webhooks.cursor".try_into()?, 0, b"...".to_vec());
///     store.write_document(fence.guard(write)).await?;
/// }
/// lease.release().await?; // the next process need not wait for the term to pass
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// # }).unwrap();
/// ```
#[derive(Debug)]
pub struct Lease {
    store: Arc<dyn KeyStore>,
    clock: Arc<Timekeeper>,
    /// The document that names the holder.
    holder: DocumentName,
    /// The document that each renewal writes.
    beat: DocumentName,
    own: NodeLabel,
    term: Duration,
    state: LeaseState,
}

#[derive(Debug)]
enum LeaseState {
    /// This process has not looked at the lease yet.
    New,
    /// Another process holds the lease, as far as this process knows.
    Waiting {
        /// The versions of the two documents.
        seen: LeaseVersions,
        /// The monotonic time at which this process first received these versions.
        since: Duration,
    },
    /// This process holds the lease until its term ends.
    Holding {
        fence: Fence,
        beat: u64,
        /// The term that the others know, from when this process took the lease.
        term: Duration,
        /// The monotonic time at which the last successful renewal was sent.
        renewed: Duration,
    },
}

/// The state of the two documents of a lease.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct LeaseVersions {
    epoch: Epoch,
    holder: u64,
    beat: u64,
    is_held: bool,
    /// The holder's term. Zero if nobody holds the lease.
    term: Duration,
}

/// The proof that a process held a lease. Writes that name it fail once another process has taken the lease.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fence {
    lease: DocumentGuard,
    epoch: Epoch,
}

impl Fence {
    /// Returns the fencing number: it increases each time the lease changes hands. It also increases across a
    /// restore from a backup that contains the lease. Otherwise, and after a failover to a replica that lacked
    /// the latest writes, numbers may repeat.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.lease.version
    }

    /// Adds this fence to a write, so that the store refuses the write once another process has taken the
    /// lease, and after the store was restored from a backup.
    #[must_use]
    pub fn guard(&self, mut write: DocumentWrite) -> DocumentWrite {
        write.guards.push(self.lease.clone());
        write.epoch = Some(self.epoch);
        write
    }
}

impl Lease {
    /// 10 s: the default term. A job whose holder was killed pauses for about this long.
    pub const DEFAULT_TERM: Duration = Duration::from_secs(10);

    /// Sets the time for which a renewal holds the lease, at least one second and at most a day. Defaults to
    /// [`DEFAULT_TERM`](Self::DEFAULT_TERM). A process waits for the holder's term if that is longer than its
    /// own. A lease that this process holds keeps its term until it is taken again.
    #[must_use]
    pub fn with_term(mut self, term: Duration) -> Self {
        self.term = term.clamp(Duration::from_secs(1), Duration::from_secs(24 * 60 * 60));
        self
    }

    /// Takes or renews the lease. Returns its fence if this process holds it now, and `None` if another
    /// process does. Call it about three times within a term, also while waiting for the lease.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]. A lease that this process held is still held until its term ends.
    pub async fn hold(&mut self) -> Result<Option<Fence>, LeaseError> {
        // A renewal after the end of the term succeeds only if nobody has taken the lease.
        if !self.renew().await? {
            self.take().await?;
        }
        Ok(self.fence())
    }

    /// Returns whether this process holds the lease and its term has not ended.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.fence().is_some()
    }

    /// Returns the fence if this process holds the lease and its term has not ended.
    #[must_use]
    pub fn fence(&self) -> Option<Fence> {
        let LeaseState::Holding {
            fence,
            term,
            renewed,
            ..
        } = &self.state
        else {
            return None;
        };
        let age = self.clock.monotonic().saturating_sub(*renewed);
        (age < *term).then(|| fence.clone())
    }

    /// Gives the lease back, if this process holds it, so that another process can take it immediately.
    ///
    /// # Errors
    ///
    /// [`LeaseError`]. This process no longer holds the lease in any case, and another process can take it after a
    /// term.
    pub async fn release(&mut self) -> Result<(), LeaseError> {
        let state = std::mem::replace(&mut self.state, LeaseState::New);
        let LeaseState::Holding { fence, .. } = state else {
            return Ok(());
        };
        let write = DocumentWrite {
            name: self.holder.clone(),
            expected: fence.number(),
            body: Vec::new(),
            guards: Vec::new(),
            epoch: Some(fence.epoch),
        };
        match self.documents()?.write_document(write).await {
            Err(DocumentError::Store(error)) => Err(error.into()),
            // After a conflict, another process has the lease.
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Renews the lease if this process was its last holder. Returns `false` if it was not, or if another
    /// process has taken the lease since.
    async fn renew(&mut self) -> Result<bool, LeaseError> {
        let LeaseState::Holding {
            fence, beat, term, ..
        } = &self.state
        else {
            return Ok(false);
        };
        let (fence, beat, term) = (fence.clone(), *beat, *term);
        if self.write_beat(&fence, beat, term).await? {
            return Ok(true);
        }
        // Another process took over, or an earlier renewal was applied although its reply was lost. The
        // documents show which of the two.
        let seen = self.read().await?;
        let still_own = (seen.epoch, seen.holder) == (fence.epoch, fence.number());
        let renewed = still_own && self.write_beat(&fence, seen.beat, term).await?;
        if !renewed {
            self.state = LeaseState::New;
        }
        Ok(renewed)
    }

    /// Writes the beat after `beat`. Returns `false` if the lease or its beat has another version.
    async fn write_beat(
        &mut self,
        fence: &Fence,
        beat: u64,
        term: Duration,
    ) -> Result<bool, LeaseError> {
        let sent = self.clock.monotonic();
        let write = DocumentWrite::new(self.beat.clone(), beat, Vec::new());
        match self.documents()?.write_document(fence.guard(write)).await {
            Ok(beat) => {
                self.state = LeaseState::Holding {
                    fence: fence.clone(),
                    beat,
                    term,
                    renewed: sent,
                };
                Ok(true)
            }
            Err(DocumentError::Store(error)) => Err(error.into()),
            Err(_) => Ok(false),
        }
    }

    /// Takes the lease if nobody holds it, or if its holder has not renewed it for a whole term.
    async fn take(&mut self) -> Result<(), LeaseError> {
        let seen = self.read().await?;
        let now = self.clock.monotonic();
        let silent = match &self.state {
            LeaseState::Waiting {
                seen: before,
                since,
            } if *before == seen => now.saturating_sub(*since),
            _ => {
                self.state = LeaseState::Waiting { seen, since: now };
                Duration::ZERO
            }
        };
        // The holder counts its term by its own clock, which may be slower.
        let term = self.term.max(seen.term);
        if seen.is_held && silent <= Propagation::by_any_clock(term) {
            return Ok(());
        }
        let sent = self.clock.monotonic();
        let write = DocumentWrite {
            name: self.holder.clone(),
            expected: seen.holder,
            body: format!("{} {}", self.term.as_millis(), self.own).into_bytes(),
            // A holder that renewed since keeps the lease.
            guards: vec![DocumentGuard {
                name: self.beat.clone(),
                version: seen.beat,
            }],
            epoch: Some(seen.epoch),
        };
        match self.documents()?.write_document(write).await {
            Ok(version) => {
                let lease = DocumentGuard {
                    name: self.holder.clone(),
                    version,
                };
                self.state = LeaseState::Holding {
                    fence: Fence {
                        lease,
                        epoch: seen.epoch,
                    },
                    beat: seen.beat,
                    term: self.term,
                    renewed: sent,
                };
                Ok(())
            }
            Err(DocumentError::Store(error)) => Err(error.into()),
            Err(_) => Ok(()),
        }
    }

    async fn read(&self) -> Result<LeaseVersions, LeaseError> {
        let documents = self.documents()?;
        let holder = documents.document(&self.holder).await?;
        let beat = documents.document(&self.beat).await?;
        // The content of a held lease is the holder's term in milliseconds, and its name.
        let body = holder.document.as_ref().map(|document| &*document.body);
        let body = body.unwrap_or_default();
        let millis = body.split(|byte| *byte == b' ').next();
        let millis = millis.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
        Ok(LeaseVersions {
            epoch: holder.epoch,
            is_held: !body.is_empty(),
            term: Duration::from_millis(millis.unwrap_or_default()),
            holder: holder.document.map_or(0, |document| document.version),
            beat: beat.document.map_or(0, |document| document.version),
        })
    }

    fn documents(&self) -> Result<&dyn Documents, LeaseError> {
        self.store.documents().ok_or(LeaseError::NoDocuments)
    }
}

impl Keyward {
    /// Returns the lease `name`, which this process does not hold yet. `own` names this process for operators.
    /// The name has up to 117 bytes of `a-z 0-9 _ - .`.
    ///
    /// # Errors
    ///
    /// [`LeaseError::Name`] if the name is malformed, and [`LeaseError::NoDocuments`] if the store has no
    /// documents.
    pub fn lease(&self, name: &str, own: NodeLabel) -> Result<Lease, LeaseError> {
        let store = self.inner.store.clone();
        if store.documents().is_none() {
            return Err(LeaseError::NoDocuments);
        }
        DocumentName::new(name)?;
        // Two prefixes, so that no lease's beat has the name of another lease.
        let holder = DocumentName::new(format!("{}{name}", DocumentName::LEASE))?;
        let beat = DocumentName::new(format!("lease-beat.{name}"))?;
        Ok(Lease {
            store,
            clock: self.inner.time.clone(),
            holder,
            beat,
            own,
            term: Lease::DEFAULT_TERM,
            state: LeaseState::New,
        })
    }
}

//! The settings that all processes of a store must agree on: the policies, and the bytes of each pepper.
//!
//! A build compares this process's settings with those in the store's [documents](Documents) before it writes
//! anything. So a process with another policy, or with peppers of its own, is refused when it starts and not
//! when a customer's key fails.
//!
//! A store that can be read and not written still starts a process, which then verifies keys.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::build_error::BuildError;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::policy::{self, MovedTenant, OutdatedPolicy, Policies};
use crate::core::text::PepperId;
use crate::observe::WithSources;
use crate::store::{
    Document, DocumentError, DocumentName, DocumentWrite, Documents, KeyStore, StoreErrorKind,
};

/// 16 attempts to write a document that other processes write too. Each failed attempt means that another
/// process succeeded, and a process writes each document at most once at its start.
const ATTEMPTS: usize = 16;

/// The format of the document of peppers. A build refuses any other number.
const FORMAT: u32 = 1;

/// The check values of all peppers that any process has used, by the pepper's id. A check value does not
/// reveal its pepper.
#[derive(Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct PepperChecks {
    keyward_peppers: u32,
    /// The peppers under which processes have digested new secrets, in the order in which they became current. A
    /// digest moves only to a later pepper of this list.
    current: Vec<PepperId>,
    peppers: BTreeMap<PepperId, String>,
}

impl PepperChecks {
    /// Returns the check values of the first process. The order is that of its ring, because the store has no
    /// order before. Keys may have been created before the store had documents.
    fn first(ring: &PepperRing) -> Self {
        let current = ring.retired().iter().chain([ring.current()]);
        Self {
            keyward_peppers: FORMAT,
            current: current.map(Pepper::id).cloned().collect(),
            peppers: check_values(ring),
        }
    }

    fn to_document(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a map of strings has a JSON form")
    }

    fn read(text: &[u8]) -> Result<Self, BuildError> {
        let unreadable = |problem| BuildError::Unreadable {
            what: "check values of peppers",
            problem,
        };
        let read: Self =
            serde_json::from_slice(text).map_err(|error| unreadable(error.to_string()))?;
        match read.keyward_peppers {
            FORMAT => Ok(read),
            found => Err(unreadable(format!("has format {found}, expected {FORMAT}"))),
        }
    }

    /// Adds the check values of this process's ring. Returns the newest pepper that another process creates keys
    /// with, if the ring lacks it. With `replaces_lost`, the ring may share no pepper with the store.
    fn merge(
        mut self,
        ring: &PepperRing,
        replaces_lost: bool,
    ) -> Result<(Self, Option<PepperId>), BuildError> {
        let own = check_values(ring);
        let mut shared = replaces_lost;
        for (id, value) in &own {
            if let Some(stored) = self.peppers.get(id) {
                if !bool::from(stored.as_bytes().ct_eq(value.as_bytes())) {
                    return Err(BuildError::PepperDiffers { pepper: id.clone() });
                }
                shared = true;
            }
        }
        if !shared {
            return Err(BuildError::UnrelatedPeppers {
                own: own.into_keys().collect(),
                stored: self.peppers.into_keys().collect(),
            });
        }
        let newest = self.current.last().filter(|_| !replaces_lost);
        let lacked = newest.filter(|newest| ring.live(newest).is_none()).cloned();
        // A process that was not restarted since a rotation still has an older pepper as its current one.
        let current = ring.current().id();
        if !self.current.contains(current) {
            self.current.push(current.clone());
        }
        // Earlier versions did not list the older peppers of the first process. A retired pepper that no process
        // had before is not older: its host has yet to make it the current one.
        let is_unlisted =
            |id: &&PepperId| self.peppers.contains_key(*id) && !self.current.contains(id);
        let retired = ring.retired().iter().map(Pepper::id);
        let unlisted: Vec<_> = retired.filter(is_unlisted).cloned().collect();
        self.current.splice(..0, unlisted);
        if replaces_lost {
            // A prepared pepper that is lost must not hold up later rotations.
            let current = &self.current;
            self.peppers.retain(|id, _| current.contains(id));
        }
        self.peppers.extend(own);
        Ok((self, lacked))
    }
}

/// The ids of the peppers of a store's processes, as the store remembers them.
#[derive(Clone, Debug)]
pub struct StoredPeppers {
    current: Vec<PepperId>,
    all: BTreeSet<PepperId>,
}

impl StoredPeppers {
    /// Reads the ids. `None` if no process has stored its peppers, or if the store has no documents.
    ///
    /// # Errors
    ///
    /// [`BuildError`] of the store, or because it holds the peppers in an unknown form.
    pub async fn read(store: &dyn KeyStore) -> Result<Option<Self>, BuildError> {
        let Some(documents) = store.documents() else {
            return Ok(None);
        };
        let stored = documents.document(&DocumentName::PEPPERS).await?.document;
        let checks = stored.map(|stored| PepperChecks::read(&stored.body));
        Ok(checks.transpose()?.map(|checks| Self {
            current: checks.current,
            all: checks.peppers.into_keys().collect(),
        }))
    }

    /// Adds the peppers of a process to those of the store, as [`build`](crate::KeywardBuilder::build) does, and
    /// returns them all. With `replaces_lost`, the ring may share no pepper with the store, and prepared peppers that it
    /// lacks are forgotten. Returns `None` for a store without documents.
    ///
    /// # Errors
    ///
    /// [`BuildError`], also if the store cannot be written.
    pub async fn add(
        store: &dyn KeyStore,
        ring: &PepperRing,
        replaces_lost: bool,
    ) -> Result<Option<Self>, BuildError> {
        let Some(documents) = store.documents() else {
            return Ok(None);
        };
        let decide = |stored: Option<&[u8]>| decide_peppers(stored, ring, replaces_lost);
        let name = DocumentName::PEPPERS;
        let known = documents.document(&name).await?.document;
        update(documents, name, known, decide).await?;
        Self::read(store).await
    }

    /// Returns the pepper that most recently became the current one of a process.
    ///
    /// Any process must be able to verify keys under this pepper. A pepper file that lacks it is out of date.
    #[must_use]
    pub fn newest(&self) -> Option<&PepperId> {
        self.current.last()
    }

    /// Returns the peppers that never were the current one of a process: those that were prepared for a rotation.
    pub fn prepared(&self) -> impl Iterator<Item = &PepperId> {
        self.all.iter().filter(|id| !self.current.contains(id))
    }
}

fn check_values(ring: &PepperRing) -> BTreeMap<PepperId, String> {
    let check = |pepper: &Pepper| (pepper.id().clone(), hexadecimal(&pepper.check_value()));
    ring.all().map(check).collect()
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A decision about one document: the content to write, if any, and the setting to use.
type DocumentDecision<T> = Result<(Option<Vec<u8>>, T), BuildError>;

/// The result of comparing a ring with the peppers of the store.
struct AgreedPeppers {
    /// The order in which peppers became current, oldest first.
    order: Vec<PepperId>,
    /// The current pepper of another process, if the ring lacks it.
    lacked: Option<PepperId>,
}

fn decide_peppers(
    stored: Option<&[u8]>,
    ring: &PepperRing,
    replaces_lost: bool,
) -> DocumentDecision<AgreedPeppers> {
    let (checks, lacked) = match stored {
        Some(text) => PepperChecks::read(text)?.merge(ring, replaces_lost)?,
        None => (PepperChecks::first(ring), None),
    };
    let document = checks.to_document();
    let order = checks.current;
    Ok((Some(document), AgreedPeppers { order, lacked }))
}

/// The policies to use, and the differences from those of the store, to be logged once.
struct AgreedPolicies {
    in_use: Policies,
    outdated: Vec<OutdatedPolicy>,
    moved: Vec<MovedTenant>,
    /// The reason why the policies in the store cannot be read, if this process has its own.
    unreadable: Option<String>,
    /// True if neither this process nor the store has a policy.
    is_default: bool,
}

impl AgreedPolicies {
    fn new(in_use: Policies) -> Self {
        Self {
            in_use,
            outdated: Vec::new(),
            moved: Vec::new(),
            unreadable: None,
            is_default: false,
        }
    }

    /// Logs the differences, and returns the policies.
    fn logged(self) -> Policies {
        if let Some(problem) = self.unreadable {
            tracing::warn!(
                problem,
                "the policies in the store cannot be read, so they are not compared with those of this process"
            );
        }
        if self.is_default {
            tracing::info!("no policy is set, and the store has none: the standard policy applies");
        }
        self.outdated.iter().for_each(warn_of_outdated);
        self.moved.iter().for_each(log_moved);
        self.in_use
    }
}

fn decide_policies(
    stored: Option<&[u8]>,
    own: Option<&Policies>,
) -> DocumentDecision<AgreedPolicies> {
    let written = |policies: &Policies| {
        let written = policy::to_document(policies);
        written.map_err(|problem| BuildError::PolicyNotStorable { problem })
    };
    let stored = match stored.map(policy::from_document).transpose() {
        Ok(stored) => stored,
        Err(problem) => {
            let what = "policies";
            let Some(own) = own else {
                return Err(BuildError::Unreadable { what, problem });
            };
            // A newer version of this crate may have written them. A deployment must be able to go back.
            let agreed = AgreedPolicies {
                unreadable: Some(problem),
                ..AgreedPolicies::new(own.clone())
            };
            return Ok((None, agreed));
        }
    };
    match (stored, own) {
        (None, None) => {
            let agreed = AgreedPolicies {
                is_default: true,
                ..AgreedPolicies::new(Policies::default())
            };
            Ok((None, agreed))
        }
        (Some(stored), None) => Ok((None, AgreedPolicies::new(stored))),
        (None, Some(own)) => Ok((Some(written(own)?), AgreedPolicies::new(own.clone()))),
        (Some(stored), Some(own)) => {
            let merged = policy::merge(&stored, own)?;
            let changed = !merged.stored.same_as(&stored);
            let write = changed.then(|| written(&merged.stored)).transpose()?;
            let agreed = AgreedPolicies {
                outdated: merged.outdated,
                moved: merged.moved,
                ..AgreedPolicies::new(merged.in_use)
            };
            Ok((write, agreed))
        }
    }
}

/// Compares the ring and the policies with those of the store, and adds them to the store. Returns the ring with
/// the order of its peppers, and the policies to use.
pub(super) async fn agree(
    store: &dyn KeyStore,
    ring: PepperRing,
    replaces_lost: bool,
    own: Option<&Policies>,
) -> Result<(PepperRing, Policies), BuildError> {
    let Some(documents) = store.documents() else {
        return Ok((ring, own.cloned().unwrap_or_default()));
    };
    let peppers = |stored: Option<&[u8]>| decide_peppers(stored, &ring, replaces_lost);
    let policies = |stored: Option<&[u8]>| decide_policies(stored, own);
    // Decides about both before it writes either.
    let known = documents.document(&DocumentName::PEPPERS).await?.document;
    let (_, agreed) = peppers(body_of(known.as_ref()))?;
    let stored = documents.document(&DocumentName::POLICIES).await?.document;
    let (_, decided) = policies(body_of(stored.as_ref()))?;
    // The first process must store its pepper: the next one has nothing else to compare with.
    let is_first = known.is_none();
    let written = update(documents, DocumentName::PEPPERS, known, peppers).await;
    let agreed = match is_first {
        true => written?,
        false => remembered(written)?.unwrap_or(agreed),
    };
    let written = update(documents, DocumentName::POLICIES, stored, policies).await;
    let policies = remembered(written)?.unwrap_or(decided);
    if let Some(pepper) = agreed.lacked {
        tracing::warn!(
            %pepper,
            "this process lacks the pepper that another one creates keys with, so it refuses those keys; \
             deploy the current pepper file"
        );
    }
    Ok((ring.with_order(agreed.order), policies.logged()))
}

/// Turns a failed write into a log line and `None`: a process that cannot write can still verify keys.
fn remembered<T>(written: Result<T, BuildError>) -> Result<Option<T>, BuildError> {
    match written {
        Err(BuildError::Store(error)) => {
            tracing::warn!(
                error = %WithSources(&error),
                "the settings of this process could not be stored for the others"
            );
            Ok(None)
        }
        written => written.map(Some),
    }
}

/// Compares the policies with those of the store, and adds them to the store. Returns the policies to use.
pub(super) async fn agree_on_policies(
    store: &dyn KeyStore,
    own: Policies,
) -> Result<Policies, BuildError> {
    let Some(documents) = store.documents() else {
        return Ok(own);
    };
    let decide = |stored: Option<&[u8]>| decide_policies(stored, Some(&own));
    let name = DocumentName::POLICIES;
    let stored = documents.document(&name).await?.document;
    let agreed = update(documents, name, stored, decide).await?;
    Ok(agreed.logged())
}

fn warn_of_outdated(outdated: &OutdatedPolicy) {
    let OutdatedPolicy {
        name,
        tenant,
        own,
        stored,
    } = outdated;
    let tenant = tenant.as_ref().map(tracing::field::display);
    tracing::warn!(
        policy = %name,
        tenant,
        own,
        stored,
        "this process uses an older policy than the store holds; deploy the newer one"
    );
}

fn log_moved(moved: &MovedTenant) {
    let MovedTenant { tenant, from, to } = moved;
    tracing::info!(%tenant, %from, %to, "this process gives the tenant another policy");
}

fn body_of(document: Option<&Document>) -> Option<&[u8]> {
    document.map(|document| &*document.body)
}

/// Writes the content that `decide` returns, unless it returns none or the stored content. `stored` is the
/// document as it was read. Reads it and decides again if another process has written it since.
async fn update<T>(
    documents: &dyn Documents,
    name: DocumentName,
    mut stored: Option<Document>,
    decide: impl Fn(Option<&[u8]>) -> DocumentDecision<T>,
) -> Result<T, BuildError> {
    let mut attempts = ATTEMPTS;
    loop {
        let (write, result) = decide(body_of(stored.as_ref()))?;
        let is_other = |write: &Vec<u8>| body_of(stored.as_ref()) != Some(write);
        let Some(body) = write.filter(is_other) else {
            return Ok(result);
        };
        let expected = stored.map_or(0, |document| document.version);
        let write = DocumentWrite::new(name.clone(), expected, body);
        attempts -= 1;
        match documents.write_document(write).await {
            Ok(_) => return Ok(result),
            Err(DocumentError::Conflict { .. }) if attempts > 0 => {}
            // The write may have been applied. If so, the next read finds it.
            Err(DocumentError::Store(error))
                if error.kind() == StoreErrorKind::Indeterminate && attempts > 0 => {}
            Err(error) => return Err(error.into()),
        }
        stored = documents.document(&name).await?.document;
    }
}

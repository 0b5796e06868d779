//! The settings that all processes of a store must agree on: the policies, and the bytes of each pepper.
//!
//! A build compares this process's settings with those in the store's [documents](Documents) before it writes
//! anything else. So a process with another policy, or with a pepper of its own, is refused when it starts and
//! not when a customer's key fails.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use super::build_error::BuildError;
use crate::core::pepper::{Pepper, PepperRing};
use crate::core::policy::{self, OutdatedPolicy, Policies};
use crate::core::text::PepperId;
use crate::store::{
    DocumentError, DocumentName, DocumentWrite, Documents, KeyStore, StoreErrorKind,
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
    peppers: BTreeMap<PepperId, String>,
}

impl PepperChecks {
    fn of(peppers: &PepperRing) -> Self {
        let check = |pepper: &Pepper| (pepper.id().clone(), hexadecimal(&pepper.check_value()));
        Self {
            keyward_peppers: FORMAT,
            peppers: peppers.all().map(check).collect(),
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

    /// Adds the check values of this process's ring. With `replaces_lost`, the ring may share no pepper with
    /// the store.
    fn merge(mut self, own: Self, replaces_lost: bool) -> Result<Self, BuildError> {
        let mut shared = self.peppers.is_empty() || replaces_lost;
        for (id, value) in &own.peppers {
            if let Some(stored) = self.peppers.get(id) {
                if !bool::from(stored.as_bytes().ct_eq(value.as_bytes())) {
                    return Err(BuildError::PepperDiffers { pepper: id.clone() });
                }
                shared = true;
            }
        }
        if !shared {
            return Err(BuildError::UnrelatedPeppers {
                own: own.peppers.into_keys().collect(),
                stored: self.peppers.into_keys().collect(),
            });
        }
        self.peppers.extend(own.peppers);
        Ok(self)
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Compares the ring with the peppers that other processes of this store have used, and adds it to them.
pub(super) async fn agree_on_peppers(
    store: &dyn KeyStore,
    peppers: &PepperRing,
    replaces_lost: bool,
) -> Result<(), BuildError> {
    let Some(documents) = store.documents() else {
        return Ok(());
    };
    update(documents, DocumentName::PEPPERS, |stored| {
        let stored = match stored {
            Some(text) => PepperChecks::read(text)?,
            None => PepperChecks {
                keyward_peppers: FORMAT,
                peppers: BTreeMap::new(),
            },
        };
        let merged = stored.merge(PepperChecks::of(peppers), replaces_lost)?;
        Ok((Some(merged.to_document()), ()))
    })
    .await
}

/// Returns the policies to use: this process's own or, if it names none, those of the store. Adds its own
/// policies to those of the store.
pub(super) async fn agree_on_policies(
    store: &dyn KeyStore,
    own: Option<Policies>,
) -> Result<Policies, BuildError> {
    let Some(documents) = store.documents() else {
        return Ok(own.unwrap_or_default());
    };
    update(documents, DocumentName::POLICIES, |stored| {
        let unreadable = |problem| BuildError::Unreadable {
            what: "policies",
            problem,
        };
        let stored = stored.map(|text| policy::from_document(text).map_err(unreadable));
        match (stored.transpose()?, &own) {
            (None, None) => Ok((None, Policies::default())),
            (Some(stored), None) => Ok((None, stored)),
            (stored, Some(own)) => {
                let written = |policies: &Policies| {
                    policy::to_document(policies)
                        .map_err(|problem| BuildError::PolicyNotStorable { problem })
                };
                let Some(stored) = stored else {
                    return Ok((Some(written(own)?), own.clone()));
                };
                let merged = policy::merge(&stored, own)?;
                for outdated in &merged.outdated {
                    warn(outdated);
                }
                let changed = !merged.policies.same_as(&stored);
                let write = changed.then(|| written(&merged.policies)).transpose()?;
                Ok((write, own.clone()))
            }
        }
    })
    .await
}

fn warn(outdated: &OutdatedPolicy) {
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

/// Reads a document, and writes the content that `decide` returns, unless it returns none or the same
/// content. Starts over if another process wrote the document meanwhile.
async fn update<T>(
    documents: &dyn Documents,
    name: DocumentName,
    decide: impl Fn(Option<&[u8]>) -> Result<(Option<Vec<u8>>, T), BuildError>,
) -> Result<T, BuildError> {
    let mut attempts = ATTEMPTS;
    loop {
        let stored = documents.document(&name).await?.document;
        let body = stored.as_ref().map(|document| &*document.body);
        let (write, result) = decide(body)?;
        let Some(body) = write.filter(|write| body != Some(write)) else {
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
    }
}

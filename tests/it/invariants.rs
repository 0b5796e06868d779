//! Two invariants of stored data, checked after random commands. The checks must also catch the data of
//! broken stores.

use std::num::NonZeroUsize;
use std::sync::Arc;

use keyward::audit::{AuditHead, verify_chain};
use keyward::pepper::{Pepper, PepperId};
use keyward::store::{AuditQuery, Change, KeyStore, MemoryStore, Row};
use keyward::{PepperRing, token};
use keyward_conformance::model::{Facade, ModelStep, policy, run};
use keyward_conformance::{Reached, strategies};
use proptest::test_runner::{Config, TestCaseError, TestRunner};
use support::*;

const CAP: usize = 3;

/// Returns a store's rows and audit trail after random commands. Notes whether any row was written.
fn after(steps: &[ModelStep], written: &Reached) -> (Vec<Change>, Vec<keyward::store::AuditRow>) {
    let store = MemoryStore::new();
    // The outcome is ignored: another test compares it with the model.
    let _ = run(
        &mut Facade::new(Arc::new(store.clone()), policy(CAP)),
        CAP,
        steps,
    );
    let limit = NonZeroUsize::new(100_000).unwrap();
    let rows = wait(store.scan(None, limit)).unwrap().rows;
    written.note(!rows.is_empty());
    let everything = AuditQuery::all().with(|query| query.limit = limit);
    (rows, wait(store.audit(&everything)).unwrap().rows)
}

fn holds(check: impl Fn(&[Change], &[keyward::store::AuditRow]) -> Result<(), String>) {
    let config = Config {
        cases: 64,
        failure_persistence: None,
        ..Config::default()
    };
    let written = Reached::new("a written row");
    let result = TestRunner::new(config).run(&strategies::steps(40), |steps| {
        let (rows, audit) = after(&steps, &written);
        check(&rows, &audit).map_err(TestCaseError::fail)
    });
    result.unwrap();
}

/// Invariant 6: the entries of each tenant form one intact chain, and the commit of every row has an entry.
fn audited(rows: &[Change], audit: &[keyward::store::AuditRow]) -> Result<(), String> {
    let pepper = Pepper::new(PepperId::new("model").unwrap(), &[7; Pepper::MIN_LEN]).unwrap();
    let ring = PepperRing::new(pepper);
    for path in ["acme", "acme/web", "other"] {
        let tenant = tenant(path);
        let chain = audit
            .iter()
            .map(|row| &row.entry)
            .filter(|entry| entry.tenant == tenant);
        let chain: Vec<_> = chain.collect();
        verify_chain(&tenant, AuditHead::GENESIS, chain, &ring, None)
            .map_err(|error| error.to_string())?;
    }
    let has_entry = |change: &Change| audit.iter().any(|row| row.revision == change.revision);
    match rows.iter().find(|change| !has_entry(change)) {
        Some(change) => Err(format!("no entry at revision {}", change.revision)),
        None => Ok(()),
    }
}

/// Invariant 7: no record, row or entry contains the text of a secret.
fn silent(rows: &[Change], audit: &[keyward::store::AuditRow]) -> Result<(), String> {
    let mut said = format!("{rows:?}{audit:?}");
    for change in rows {
        if let Row::Key(record) = &change.row {
            said += &String::from_utf8_lossy(&record.to_bytes());
        }
    }
    let prefix = token::TokenPrefix::new("sk_live_").unwrap();
    let secrets = regex::Regex::new(&token::scanner_pattern(&prefix)).unwrap();
    if secrets.is_match(&said) {
        Err("a secret is stored".to_owned())
    } else {
        Ok(())
    }
}

#[test]
fn invariant_6_every_change_has_its_entry_in_an_intact_chain() {
    holds(audited);
    // The check catches a store that loses an entry, and a store that writes a row without an entry.
    holds(|rows, audit| {
        let (mut lost, mut silent) = (audit.to_vec(), rows.to_vec());
        if lost.len() > 1 {
            lost.remove(0);
            if audited(rows, &lost).is_ok() {
                return Err("a lost entry was not caught".to_owned());
            }
        }
        if let Some(change) = silent.first_mut() {
            change.revision.0 += 1_000_000;
            if audited(&silent, audit).is_ok() {
                return Err("a row without an entry was not caught".to_owned());
            }
        }
        Ok(())
    });
}

#[test]
fn invariant_7_no_secret_is_stored() {
    holds(silent);
    // The check catches a store that keeps the text of a secret key.
    let world = TestService::new();
    let key = world.some_key();
    let limit = NonZeroUsize::new(100).unwrap();
    let mut rows = wait(world.store.scan(None, limit)).unwrap().rows;
    assert_eq!(silent(&rows, &[]), Ok(()));
    for change in &mut rows {
        if let Row::Key(record) = &mut change.row {
            record.published = Some(key.secret.expose().to_owned());
        }
    }
    assert!(silent(&rows, &[]).is_err());
}

//! Runs the conformance suite on every store. The suite must also catch broken stores.

use std::collections::BTreeSet;
use std::sync::Arc;

use keyward::store::usage::UsageStore;
use keyward::store::{KeyStore, MemoryStore, NodeRegistry};
use keyward_conformance::broken::{
    BrokenDocuments, BrokenRegistry, BrokenStore, BrokenUsage, DocumentDefect, RegistryDefect,
    StoreDefect, UsageDefect,
};
use keyward_conformance::{
    CLAUSES, DOCUMENTS_CLAUSES, REGISTRY_CLAUSES, USAGE_CLAUSES, check, check_documents,
    check_registry, check_usage, violations,
};

#[cfg(feature = "sqlite")]
use support::folder::folder;

keyward_conformance::suite! {
    mod memory;
    block_on = pollster::block_on;
    store = MemoryStore::new();
}

keyward_conformance::suite! {
    mod dyn_store;
    block_on = pollster::block_on;
    store = Arc::new(MemoryStore::new()) as Arc<dyn KeyStore>;
}

#[cfg(feature = "sqlite")]
keyward_conformance::suite! {
    mod sqlite;
    block_on = pollster::block_on;
    store = folder(1);
}

// Two instances on one file, used in turn like two processes.
#[cfg(feature = "sqlite")]
keyward_conformance::suite! {
    mod sqlite_twice;
    block_on = pollster::block_on;
    store = folder(2);
}

keyward_conformance::registry_suite! {
    mod memory_registry;
    block_on = pollster::block_on;
    registry = MemoryStore::new();
}

keyward_conformance::registry_suite! {
    mod dyn_registry;
    block_on = pollster::block_on;
    registry = Arc::new(MemoryStore::new()) as Arc<dyn NodeRegistry>;
}

#[cfg(feature = "sqlite")]
keyward_conformance::registry_suite! {
    mod sqlite_registry;
    block_on = pollster::block_on;
    registry = folder(1);
}

#[cfg(feature = "sqlite")]
keyward_conformance::registry_suite! {
    mod sqlite_registry_twice;
    block_on = pollster::block_on;
    registry = folder(2);
}

keyward_conformance::documents_suite! {
    mod memory_documents;
    block_on = pollster::block_on;
    documents = MemoryStore::new();
}

#[cfg(feature = "sqlite")]
keyward_conformance::documents_suite! {
    mod sqlite_documents;
    block_on = pollster::block_on;
    documents = folder(1);
}

#[cfg(feature = "sqlite")]
keyward_conformance::documents_suite! {
    mod sqlite_documents_twice;
    block_on = pollster::block_on;
    documents = folder(2);
}

keyward_conformance::usage_suite! {
    mod memory_usage;
    block_on = pollster::block_on;
    usage = MemoryStore::new();
}

keyward_conformance::usage_suite! {
    mod dyn_usage;
    block_on = pollster::block_on;
    usage = Arc::new(MemoryStore::new()) as Arc<dyn UsageStore>;
}

#[test]
fn every_defect_of_documents_is_caught_by_the_clause_it_breaks() {
    let mut catching = BTreeSet::new();
    for &defect in DocumentDefect::ALL {
        let clause = defect.caught_by();
        let make = || BrokenDocuments::new(defect);
        let found = pollster::block_on(check_documents(clause, &make));
        assert!(
            matches!(&found, Some(Err(violation)) if violation.clause == clause),
            "{defect:?} and {clause}: {found:?}"
        );
        catching.insert(clause);
    }
    assert_eq!(catching, DOCUMENTS_CLAUSES.iter().copied().collect());
    assert_eq!(catching.len(), DOCUMENTS_CLAUSES.len());
}

#[test]
fn every_defect_of_usage_is_caught_by_the_clause_it_breaks() {
    let mut catching = BTreeSet::new();
    for &defect in UsageDefect::ALL {
        let clause = defect.caught_by();
        let make = || BrokenUsage::new(defect);
        let found = pollster::block_on(check_usage(clause, &make));
        assert!(
            matches!(&found, Some(Err(violation)) if violation.clause == clause),
            "{defect:?} and {clause}: {found:?}"
        );
        catching.insert(clause);
    }
    assert_eq!(catching, USAGE_CLAUSES.iter().copied().collect());
    assert_eq!(catching.len(), USAGE_CLAUSES.len());
}

#[test]
fn every_defect_of_a_registry_is_caught_by_the_clause_it_breaks() {
    let mut catching = BTreeSet::new();
    for &defect in RegistryDefect::ALL {
        let clause = defect.caught_by();
        let make = || BrokenRegistry::new(defect);
        let found = pollster::block_on(check_registry(clause, &make));
        assert!(
            matches!(&found, Some(Err(violation)) if violation.clause == clause),
            "{defect:?} and {clause}: {found:?}"
        );
        catching.insert(clause);
    }
    assert_eq!(catching, REGISTRY_CLAUSES.iter().copied().collect());
    assert_eq!(catching.len(), REGISTRY_CLAUSES.len());
}

#[test]
fn every_defect_is_caught_by_the_clause_it_breaks() {
    let missed: Vec<_> = StoreDefect::ALL
        .iter()
        .filter_map(|&defect| missed(defect).err())
        .collect();
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

fn missed(defect: StoreDefect) -> Result<(), String> {
    let clause = defect.caught_by();
    let make = || BrokenStore::new(MemoryStore::new(), defect);
    match pollster::block_on(check(clause, &make)) {
        Some(Err(violation)) if violation.clause == clause => Ok(()),
        Some(Err(violation)) => Err(format!("{defect:?}: {clause} names another: {violation}")),
        Some(Ok(())) => Err(format!("{defect:?} passes {clause}")),
        None => Err(format!("{defect:?} names no clause: {clause}")),
    }
}

#[test]
fn every_clause_catches_a_defect() {
    let catching: BTreeSet<_> = StoreDefect::ALL
        .iter()
        .map(|defect| defect.caught_by())
        .collect();
    let all: BTreeSet<_> = CLAUSES.iter().copied().collect();
    assert_eq!(catching, all);
    assert_eq!(all.len(), CLAUSES.len(), "no clause is listed twice");
}

#[test]
fn a_report_names_every_clause_that_a_store_breaks() {
    let broken = || BrokenStore::new(MemoryStore::new(), StoreDefect::WaitFails);
    let found = pollster::block_on(violations(&broken));
    assert!(
        found
            .iter()
            .any(|violation| violation.clause == "waiting_does_not_fail")
    );
    assert!(pollster::block_on(violations(&MemoryStore::new)).is_empty());
    assert!(pollster::block_on(check("no such clause", &MemoryStore::new)).is_none());
}

#[test]
fn a_custom_store_fits_in_150_lines() {
    let lines = include_str!("../../examples/custom_store/src/main.rs")
        .lines()
        .count();
    assert!(lines < 150, "it has {lines}");
}

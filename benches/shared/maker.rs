//! Commits for the benchmarks of stores, like those of real commands.
#![allow(clippy::unwrap_used, reason = "a benchmark panics on failure")]

use std::collections::HashMap;
use std::time::Duration;

use keyward::audit::{AuditEntry, AuditHash};
use keyward::clocks::SystemClock;
use keyward::key::{Credential, Digest, Fingerprint, KeyRecord, Owner};
use keyward::policy::Policy;
use keyward::store::{
    AuditQuery, Commit, CommitTag, Effects, KeyQuery, KeyStore, MemoryStore, Revision,
};
use keyward::{
    Actor, Clock, CreateKey, KeyId, Keyward, PepperRing, PrincipalId, Role, TenantId, days,
    profiles,
};
use pollster::block_on;

/// Makes commits like those of real commands: varies the record and the audit entry that [`Keyward::create`]
/// wrote.
pub struct CommitGenerator {
    record: KeyRecord,
    entry: AuditEntry,
    made: u64,
    random: u64,
    tenants: HashMap<TenantId, (Revision, u64)>,
}

impl CommitGenerator {
    pub fn new() -> Self {
        let store = MemoryStore::new();
        let keys = keyward(store.clone());
        block_on(keys.create(&admin("template"), new_key())).unwrap();
        let tenant = tenant("template");
        let query = KeyQuery::tenant(tenant.clone(), SystemClock.now());
        let record = block_on(store.list(&query)).unwrap().keys.remove(0);
        let trail = block_on(store.audit(&AuditQuery::tenant(tenant))).unwrap();
        let entry = trail.rows.last().unwrap().entry.clone();
        Self {
            record,
            entry,
            made: 0,
            random: 1,
            tenants: HashMap::new(),
        }
    }

    /// Seeds the generator, so that it draws other ids than generators with other seeds.
    pub fn seed(&mut self, seed: u64) {
        self.random = self
            .random
            .wrapping_add(seed.wrapping_mul(0xd134_2543_de82_ef95));
    }

    /// Returns the next random number (SplitMix64).
    pub fn random(&mut self) -> u64 {
        self.random = self.random.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.random;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        for chunk in bytes.chunks_mut(8) {
            chunk.copy_from_slice(&self.random().to_le_bytes()[..chunk.len()]);
        }
        bytes
    }

    fn record(&mut self, tenant: &TenantId) -> KeyRecord {
        self.made += 1;
        let later = Duration::from_millis(self.made / 10);
        let at = self.record.created.at.saturating_add(later);
        let digest = Digest::from_bytes(self.bytes());
        let mut record = self.record.clone().with(|key| {
            key.id = KeyId::from_parts(at, self.bytes());
            key.tenant = tenant.clone();
            key.name = format!("key {}", self.made).parse().unwrap();
            key.owner = Owner::Principal(principal(self.made % 10));
            key.fingerprint = Fingerprint::of_sha256(&digest);
        });
        record.created.at = at;
        record.updated.at = at;
        if let Credential::Peppered { digest: own, .. } = &mut record.credential {
            *own = digest;
        }
        record
    }

    pub fn commit(&mut self, tenant: &TenantId, puts: Vec<KeyRecord>) -> Commit {
        let (expected, sequence) = self.tenants.get(tenant).copied().unwrap_or_default();
        let first = &puts[0];
        let entry = AuditEntry {
            tenant: tenant.clone(),
            sequence: sequence + 1,
            at: first.updated.at,
            command: first.id.to_string().parse().unwrap(),
            key: Some(first.id),
            hash: AuditHash::from_bytes(self.bytes()),
            ..self.entry.clone()
        };
        Commit {
            tenant: tenant.clone(),
            epoch: None,
            expected,
            guards: Vec::new(),
            tag: CommitTag(u128::from_le_bytes(self.bytes())),
            decided_at: entry.at,
            effects: Effects {
                puts,
                audit: vec![entry],
                ..Effects::default()
            },
        }
    }

    pub fn fresh(&mut self, tenant: &TenantId, keys: usize) -> Commit {
        let puts = (0..keys).map(|_| self.record(tenant)).collect();
        self.commit(tenant, puts)
    }

    /// Resets the generator for a new store, in which no tenant has a commit yet.
    pub fn start_new_epoch(&mut self) {
        self.tenants.clear();
    }

    /// Records the revision of a tenant's commit. The tenant's next commit expects this revision.
    pub fn record_commit(&mut self, tenant: &TenantId, revision: Revision) {
        let own = self.tenants.entry(tenant.clone()).or_default();
        *own = (revision, own.1 + 1);
    }

    /// Fills a store with keys, 1,000 per commit. Returns a random tenth of the records with their tenants.
    pub fn fill(
        &mut self,
        store: &impl KeyStore,
        keys: usize,
        tenant_of: impl Fn(usize) -> TenantId,
    ) -> Vec<(TenantId, KeyRecord)> {
        let mut sample = Vec::new();
        for number in 0..keys / 1000 {
            let tenant = tenant_of(number);
            let commit = self.fresh(&tenant, 1000);
            // Selects a random tenth of the records for the caller to change later.
            for record in &commit.effects.puts {
                if self.random().is_multiple_of(10) {
                    sample.push((tenant.clone(), record.clone()));
                }
            }
            let revision = block_on(store.commit(commit)).unwrap();
            self.record_commit(&tenant, revision);
        }
        sample
    }
}

pub fn tenant(name: &str) -> TenantId {
    TenantId::new(name).unwrap()
}

pub fn principal(number: u64) -> PrincipalId {
    PrincipalId::new(format!("user-{number}@example.com")).unwrap()
}

pub fn admin(of: &str) -> Actor {
    Actor::new(tenant(of), principal(0), Role::ADMIN)
}

pub fn new_key() -> CreateKey {
    CreateKey::new("nightly export")
        .description("Reads last night's reports for the warehouse")
        .scopes(["reports:read", "exports:write"])
        .metadata([("team", "data"), ("ticket", "OPS-1234")])
        .expires_in(days(90))
}

pub fn keyward(store: impl KeyStore) -> Keyward {
    let mut spec = profiles::standard();
    spec.caps.clear();
    let builder = Keyward::builder(store, PepperRing::generate().unwrap());
    block_on(builder.policy(Policy::new(spec).unwrap()).build()).unwrap()
}

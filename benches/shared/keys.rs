//! Keys with typical records. All data of a key is derived from its number. Each tenant has 50 keys and five
//! owners.

use std::collections::BTreeSet;
use std::time::Duration;

use hmac::{Hmac, KeyInit, Mac};
use keyward::key::{
    AddressAllowlist, Author, ClassName, Credential, Description, Digest, Environment, Fingerprint,
    Hint, ImportScheme, KeyFacts, KeyName, KeyRecord, KeyState, KeyType, LastAction, Lineage,
    Metadata, Owner, Stamp,
};
use keyward::pepper::{Pepper, PepperId};
use keyward::store::{Change, OwnerRecord, Revision, Row};
use keyward::token::{self, TokenPrefix};
use keyward::{KeyId, PepperRing, PrincipalId, Role, ScopeSet, TenantId, Timestamp, days};
use sha2::Sha256;

use crate::mixed;

/// The pepper's bytes. They are fixed, so that digests can be computed without the crate under test.
pub const PEPPER: [u8; 32] = *b"a pepper for measuring, 32 bytes";
/// Length of a token without its prefix: 60 characters for id, secret and checksum.
pub const BODY: usize = 60;
/// Length of the hashed part of a token: 54 characters of id and secret.
pub const ID_AND_SECRET: usize = 54;
/// Length of a secret key's token with its prefix: 68 characters.
pub const WIDTH: usize = 68;

const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const KEYS_OF_A_TENANT: u64 = 50;
const OWNERS_OF_A_TENANT: u64 = 5;
/// The creation time of the first key: 2025-01-01, in milliseconds since the Unix epoch.
const FIRST_MILLIS: u64 = 1_735_689_600_000;

/// A bit in the random part of an id. It is set only in ids that belong to no key.
const STRANGER: u64 = 1 << 63;

/// The scope that every measured verification requires.
pub const SCOPE: &str = "reports:read";
const OTHER_SCOPES: [&str; 11] = [
    "billing:read",
    "billing:write",
    "deployments:read",
    "deployments:write",
    "events:read",
    "events:write",
    "exports:read",
    "exports:write",
    "members:read",
    "reports:write",
    "webhooks:write",
];

/// The kinds of keys, by the way a key is found and checked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum KeyKind {
    /// Found by id. The secret is hashed with the pepper.
    Secret,
    /// Found by id. The token is public.
    Publishable,
    /// Found by the digest of the whole token.
    Imported,
}

/// A set of keys. Tokens and records are computed on demand, not stored.
#[derive(Clone, Debug)]
pub struct Keys {
    kind: KeyKind,
    tenants: u64,
    mac: Hmac<Sha256>,
    prefix: TokenPrefix,
    class: ClassName,
    pepper: PepperId,
    allowlist: AddressAllowlist,
    first: Timestamp,
}

impl Keys {
    /// Creates a set for up to `most` keys, with 50 keys in each tenant.
    pub fn new(kind: KeyKind, most: u64) -> Self {
        let (prefix, class) = match kind {
            KeyKind::Secret | KeyKind::Imported => ("sk_live_", "secret"),
            KeyKind::Publishable => ("pk_live_", "publishable"),
        };
        let millis = i64::try_from(FIRST_MILLIS).unwrap();
        Self {
            kind,
            tenants: most.div_ceil(KEYS_OF_A_TENANT),
            mac: <Hmac<Sha256> as KeyInit>::new_from_slice(&PEPPER).unwrap(),
            prefix: TokenPrefix::new(prefix).unwrap(),
            class: ClassName::new(class).unwrap(),
            pepper: PepperId::new("p1").unwrap(),
            allowlist: AddressAllowlist::default(),
            first: Timestamp::from_micros(millis * 1000).unwrap(),
        }
    }

    pub fn peppers(&self) -> PepperRing {
        PepperRing::new(Pepper::new(self.pepper.clone(), &PEPPER).unwrap())
    }

    /// Returns the creation time of the first key, which lies before every measured run.
    pub const fn first(&self) -> Timestamp {
        self.first
    }

    /// Returns the id of key `number`. Ids sort in the order of the numbers. So the store can list keys in id
    /// order without storing the ids.
    pub fn id(&self, number: u64) -> KeyId {
        Self::id_of(number, mixed(number) & !STRANGER)
    }

    /// Returns an id that belongs to no key, with the timestamp of key `number`.
    pub fn stranger(&self, number: u64, random: u64) -> KeyId {
        Self::id_of(number, random | STRANGER)
    }

    fn id_of(number: u64, random: u64) -> KeyId {
        let low = u128::from(random) << 16 | u128::from(mixed(random) & 0xffff);
        KeyId::from_u128(u128::from(FIRST_MILLIS + number) << 80 | low)
    }

    /// Returns the number of the key with this id.
    pub fn number(id: KeyId) -> u64 {
        u64::try_from(id.to_u128() >> 80).unwrap() - FIRST_MILLIS
    }

    /// Returns the token of key `number`.
    pub fn token(&self, number: u64) -> String {
        match self.kind {
            KeyKind::Imported => format!(
                "legacy:{:048x}",
                u128::from(mixed(number)) << 64 | u128::from(number)
            ),
            KeyKind::Secret | KeyKind::Publishable => self.compose(self.id(number), mixed(!number)),
        }
    }

    /// Makes a token with this id and a secret derived from `seed`.
    pub fn compose(&self, id: KeyId, seed: u64) -> String {
        let mut token = String::with_capacity(WIDTH);
        token.push_str(self.prefix.as_str());
        token.push_str(&id.to_string());
        for part in 0..4 {
            let mut random = mixed(seed.wrapping_add(part));
            for _ in 0..8 {
                token.push(char::from(DIGITS[(random % 62) as usize]));
                random /= 62;
            }
        }
        let checksum = token::checksum(&token);
        token.push_str(&checksum);
        token
    }

    fn credential(&self, token: &str) -> Credential {
        if self.kind == KeyKind::Imported {
            return Credential::Imported {
                scheme: ImportScheme::Sha256,
                digest: Digest::sha256(token),
            };
        }
        let message = &token.as_bytes()[token.len() - BODY..][..ID_AND_SECRET];
        let mac = self.mac.clone().chain_update(message).finalize();
        Credential::Peppered {
            pepper: self.pepper.clone(),
            digest: Digest::from_bytes(mac.into_bytes().into()),
        }
    }

    /// Returns the record of key `number` after the key was changed `changes` times.
    pub fn record(&self, number: u64, changes: u64) -> KeyRecord {
        let token = self.token(number);
        let own = mixed(number ^ 0x5c0e);
        let others = OTHER_SCOPES.len() as u64;
        let scopes = [
            SCOPE,
            OTHER_SCOPES[(own % others) as usize],
            OTHER_SCOPES[((own / others) % others) as usize],
        ];
        let metadata = [
            ("team", format!("team {}", own % 20)),
            ("ticket", format!("OPS-{number}")),
        ];
        let created = Stamp {
            at: self.first.saturating_add(Duration::from_millis(number)),
            by: Author::Principal(self.owner_of(number)),
        };
        let peppered = self.kind != KeyKind::Imported;
        let public = self.kind == KeyKind::Publishable;
        let credential = self.credential(&token);
        let lineage = Lineage {
            first: self.id(number),
            since: created.at,
            created_by: None,
        };
        KeyRecord {
            facts: KeyFacts {
                id: self.id(number),
                tenant: self.tenant(number % self.tenants),
                class: self.class.clone(),
                key_type: if public {
                    KeyType::Publishable
                } else {
                    KeyType::Secret
                },
                environment: Environment::LIVE,
                name: KeyName::new(format!("nightly export {number}")).unwrap(),
                description: Some(
                    Description::new("Reads last night's reports for the warehouse").unwrap(),
                ),
                purpose: None,
                metadata: Metadata::new(metadata).unwrap(),
                owner: Owner::Principal(self.owner_of(number)),
                bound: BTreeSet::new(),
                manages: false,
                scopes: ScopeSet::parse(scopes).unwrap(),
                allowlist: self.allowlist.clone(),
                resource: None,
                exposed_at: None,
                updated: created.clone(),
                // Each change moves the expiry. So a benchmark can check whether the newest change has
                // arrived.
                expires_at: Some(
                    created
                        .at
                        .saturating_add(days(10_000) + Duration::from_secs(changes)),
                ),
                created,
                last_action: LastAction::Created,
                legacy: false,
                predecessor: None,
                succession: None,
                hint: Hint::new(format!("{}…{}", self.prefix, &token[token.len() - 4..])).unwrap(),
                fingerprint: Fingerprint::of_token(&token),
                published: public.then_some(token),
            },
            prefix: peppered.then(|| self.prefix.clone()),
            makers: Vec::new(),
            lineage,
            state: KeyState::Enabled,
            credential,
        }
    }

    fn tenant(&self, tenant: u64) -> TenantId {
        // Padded to a fixed width, so that names sort in numeric order.
        TenantId::new(format!("customer-{tenant:07}")).unwrap()
    }

    fn principal(owner: u64) -> PrincipalId {
        PrincipalId::new(format!("user-{owner}@example.com")).unwrap()
    }

    fn owner_of(&self, number: u64) -> PrincipalId {
        Self::principal(number / self.tenants % OWNERS_OF_A_TENANT)
    }

    pub const fn owners(&self) -> u64 {
        self.tenants * OWNERS_OF_A_TENANT
    }

    /// Returns the owner at position `place` of a scan.
    pub fn owner_row(&self, place: u64) -> OwnerRecord {
        let owner = Self::principal(place % OWNERS_OF_A_TENANT);
        OwnerRecord {
            tenant: self.tenant(place / OWNERS_OF_A_TENANT),
            role: Some(Role::DEVELOPER),
            removed_at: None,
            raised_from: Default::default(),
            updated: Stamp {
                at: self.first,
                by: Author::Principal(owner.clone()),
            },
            owner,
        }
    }

    /// Returns the position of an owner in a scan.
    pub fn place(tenant: &TenantId, owner: &PrincipalId) -> u64 {
        let tenant: u64 = tenant.as_str()["customer-".len()..].parse().unwrap();
        let owner = u64::from(owner.as_str().as_bytes()["user-".len()] - b'0');
        tenant * OWNERS_OF_A_TENANT + owner
    }

    pub fn change(&self, revision: Revision, number: u64, changes: u64) -> Change {
        Change {
            revision,
            row: Row::Key(Box::new(self.record(number, changes))),
        }
    }
}

//! The implementations that keyward is compared with.
//!
//! All peers check the same: the secret, and the key's class, expiry, scope, and whether the key is disabled.
//! All of them keep the same accounts. A crate that only verifies a secret against a hash has a map of
//! accounts in front of it.

use std::collections::{HashMap, HashSet};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use shared::Random;
use shared::batch::Batch;
use shared::keys::SCOPE;
use shared::mixed;

/// An implementation of key verification.
pub(crate) trait Peer {
    fn name(&self) -> &'static str;

    /// Returns whether the peer is what people write by themselves. keyward's goals compare it with the
    /// fastest of those.
    fn is_own(&self) -> bool {
        false
    }

    /// Returns random valid tokens.
    fn batch(&self, random: &mut Random) -> Batch;

    /// Returns the key's account if the key is valid and has the scope `scope`.
    fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>>;
}

/// Verifies the tokens of a batch one after another. Returns the number of accepted tokens.
pub(crate) fn run(peer: &dyn Peer, batch: &Batch) -> usize {
    let nothing = black_box(0);
    let (mut at, mut granted) = (0, 0);
    while at < batch.len() {
        // The conversion to text is measured too, because a service reads a request's header as text.
        let text = std::str::from_utf8(batch.at(at)).unwrap_or_default();
        let account = black_box(peer.verify(text, SCOPE));
        granted += usize::from(account.is_some());
        let word = account.map_or(0, |account| account.number as usize);
        at += 1 + (word & nothing);
    }
    granted
}

/// The class of a key.
#[derive(Clone, Copy, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub(crate) enum Class {
    Secret,
    Publishable,
}

/// The data that a service keeps about a key in addition to the key's hash.
#[allow(dead_code, reason = "a service reads these fields after verification")]
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) number: u64,
    pub(crate) tenant: String,
    pub(crate) name: String,
    class: Class,
    scopes: Vec<String>,
    expires: SystemTime,
    disabled: AtomicBool,
}

/// 90 days until a key expires.
const LIFETIME: Duration = Duration::from_secs(90 * 24 * 60 * 60);

fn scopes() -> Vec<String> {
    [SCOPE, "exports:write", "events:read"]
        .map(str::to_owned)
        .into()
}

impl Account {
    fn new(number: u64) -> Arc<Self> {
        Arc::new(Self {
            number,
            tenant: format!("customer-{}", number % 1000),
            name: format!("nightly export {number}"),
            class: Class::Secret,
            scopes: scopes(),
            expires: SystemTime::now() + LIFETIME,
            disabled: AtomicBool::new(false),
        })
    }

    fn allows(&self, scope: &str) -> bool {
        !self.disabled.load(Ordering::Relaxed)
            && self.class == Class::Secret
            && SystemTime::now() < self.expires
            && self.scopes.iter().any(|own| own == scope)
    }
}

/// The accounts of all peers.
pub(crate) type Accounts = [Arc<Account>];

pub(crate) fn accounts(count: u64) -> Vec<Arc<Account>> {
    (0..count).map(Account::new).collect()
}

/// The hash and the account of a key.
type Entry<H> = (H, Arc<Account>);
type Locked<I, H> = RwLock<HashMap<I, Entry<H>>>;

const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Returns `count` pseudo-random characters derived from `seed`.
fn letters(seed: u64, count: u64) -> String {
    let letter = |at| char::from(BASE58[(mixed(mixed(seed) ^ at) % 58) as usize]);
    (0..count).map(letter).collect()
}

/// A verifier as people write it: tokens in keyward's format, the `hmac` crate, a map by id, the system time.
pub(crate) mod mapped {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::Sha256;
    use subtle::ConstantTimeEq;

    use super::{Account, Accounts, Arc, Batch, Entry, Locked, Peer, Random};
    use shared::keys::{BODY, ID_AND_SECRET, KeyKind, Keys, PEPPER};

    /// A map from ids to digests and accounts.
    pub(crate) trait Map: FromIterator<(String, Entry<[u8; 32]>)> {
        const NAME: &'static str;

        /// Returns the result of `check` on the entry with this id; `None` if there is none.
        fn check<T>(
            &self,
            id: &str,
            check: impl FnOnce(&Entry<[u8; 32]>) -> Option<T>,
        ) -> Option<T>;
    }

    /// A map behind a lock.
    pub(crate) struct LockedMap(Locked<String, [u8; 32]>);

    impl FromIterator<(String, Entry<[u8; 32]>)> for LockedMap {
        fn from_iter<I: IntoIterator<Item = (String, Entry<[u8; 32]>)>>(all: I) -> Self {
            Self(super::RwLock::new(all.into_iter().collect()))
        }
    }

    impl Map for LockedMap {
        const NAME: &'static str = "RwLock<HashMap> by id, hmac";

        fn check<T>(
            &self,
            id: &str,
            check: impl FnOnce(&Entry<[u8; 32]>) -> Option<T>,
        ) -> Option<T> {
            check(self.0.read().unwrap().get(id)?)
        }
    }

    impl Map for dashmap::DashMap<String, Entry<[u8; 32]>> {
        const NAME: &'static str = "dashmap 6.2 by id, hmac";

        fn check<T>(
            &self,
            id: &str,
            check: impl FnOnce(&Entry<[u8; 32]>) -> Option<T>,
        ) -> Option<T> {
            check(self.get(id)?.value())
        }
    }

    impl Map for papaya::HashMap<String, Entry<[u8; 32]>> {
        const NAME: &'static str = "papaya 0.2 by id, hmac";

        fn check<T>(
            &self,
            id: &str,
            check: impl FnOnce(&Entry<[u8; 32]>) -> Option<T>,
        ) -> Option<T> {
            check(self.pin().get(id)?)
        }
    }

    pub(crate) struct Stack<M> {
        keys: Keys,
        count: u64,
        mac: Hmac<Sha256>,
        map: M,
    }

    /// Splits a token into its id and the bytes that are hashed.
    fn parts(token: &str) -> Option<(&str, &[u8])> {
        let body = token.get(token.len().checked_sub(BODY)?..)?;
        Some((body.get(..22)?, body.get(..ID_AND_SECRET)?.as_bytes()))
    }

    impl<M: Map> Stack<M> {
        pub(crate) fn new(accounts: &Accounts) -> Self {
            let count = accounts.len() as u64;
            let keys = Keys::new(KeyKind::Secret, count);
            let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&PEPPER).unwrap();
            let entry = |account: &Arc<Account>| {
                let token = keys.token(account.number);
                let (id, message) = parts(&token).unwrap();
                let digest = mac.clone().chain_update(message).finalize().into_bytes();
                (id.to_owned(), (digest.into(), account.clone()))
            };
            let map = accounts.iter().map(entry).collect();
            Self {
                keys,
                count,
                mac,
                map,
            }
        }
    }

    impl<M: Map> Peer for Stack<M> {
        fn name(&self) -> &'static str {
            M::NAME
        }

        fn is_own(&self) -> bool {
            true
        }

        fn batch(&self, random: &mut Random) -> Batch {
            Batch::valid(&self.keys, self.count, crate::BATCH, random)
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let (id, message) = parts(presented)?;
            self.map.check(id, |(stands, account)| {
                let digest = self.mac.clone().chain_update(message).finalize();
                let same = bool::from(digest.into_bytes().as_slice().ct_eq(stands));
                (same && account.allows(scope)).then(|| account.clone())
            })
        }
    }
}

/// A verifier with a cache, as people write it: accounts by the SHA-256 of the token, in keyward's format.
pub(crate) mod cached {
    use sha2::{Digest, Sha256};

    use super::{Account, Accounts, Arc, Batch, Peer, Random};
    use shared::keys::{KeyKind, Keys};

    /// A cache of accounts.
    pub(crate) trait Cache {
        const NAME: &'static str;

        /// Makes a cache with room for twice as many entries as `count`, so that it evicts none.
        fn with_room(count: usize) -> Self;
        fn put(&self, digest: [u8; 32], account: Arc<Account>);
        fn find(&self, digest: &[u8; 32]) -> Option<Arc<Account>>;
    }

    impl Cache for quick_cache::sync::Cache<[u8; 32], Arc<Account>> {
        const NAME: &'static str = "quick_cache 0.7 by SHA-256";

        fn with_room(count: usize) -> Self {
            Self::new(2 * count)
        }

        fn put(&self, digest: [u8; 32], account: Arc<Account>) {
            self.insert(digest, account);
        }

        fn find(&self, digest: &[u8; 32]) -> Option<Arc<Account>> {
            self.get(digest)
        }
    }

    impl Cache for moka::sync::Cache<[u8; 32], Arc<Account>> {
        const NAME: &'static str = "moka 0.12 by SHA-256";

        fn with_room(count: usize) -> Self {
            Self::new(2 * count as u64)
        }

        fn put(&self, digest: [u8; 32], account: Arc<Account>) {
            self.insert(digest, account);
        }

        fn find(&self, digest: &[u8; 32]) -> Option<Arc<Account>> {
            self.get(digest)
        }
    }

    pub(crate) struct Stack<C> {
        keys: Keys,
        count: u64,
        cache: C,
    }

    impl<C: Cache> Stack<C> {
        pub(crate) fn new(accounts: &Accounts) -> Self {
            let count = accounts.len() as u64;
            let keys = Keys::new(KeyKind::Secret, count);
            let cache = C::with_room(accounts.len());
            for account in accounts {
                let digest = Sha256::digest(keys.token(account.number));
                cache.put(digest.into(), account.clone());
            }
            Self { keys, count, cache }
        }
    }

    impl<C: Cache> Peer for Stack<C> {
        fn name(&self) -> &'static str {
            C::NAME
        }

        fn is_own(&self) -> bool {
            true
        }

        fn batch(&self, random: &mut Random) -> Batch {
            Batch::valid(&self.keys, self.count, crate::BATCH, random)
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let digest = Sha256::digest(presented).into();
            let account = self.cache.find(&digest)?;
            account.allows(scope).then_some(account)
        }
    }
}

/// Signed tokens, by the crate `jsonwebtoken`. They carry the account, so there is no map of accounts. But a
/// service that can disable a token needs a list of the disabled ones.
pub(crate) mod signed {
    use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation, decode, encode};

    use super::{
        Account, Arc, AtomicBool, Batch, Class, Deserialize, HashSet, LIFETIME, Peer, Random,
        RwLock, Serialize, SystemTime, scopes,
    };
    use shared::keys::PEPPER;

    #[derive(Deserialize, Serialize)]
    struct Claims {
        jti: String,
        sub: u64,
        tenant: String,
        name: String,
        class: Class,
        scopes: Vec<String>,
        exp: u64,
    }

    pub(crate) struct Stack {
        name: &'static str,
        tokens: Vec<String>,
        key: DecodingKey,
        validation: Validation,
        disabled: RwLock<HashSet<String>>,
    }

    /// The number of tokens: 1,000. There is no map, so more of them make no difference.
    const TOKENS: u64 = 1_000;

    /// The first key pair of RFC 8032, section 7.1.
    const ED25519_SECRET: &str = "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60";
    const ED25519_PUBLIC: &str = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
    /// The bytes of PKCS #8 in front of such a secret (RFC 8410, section 7).
    const PKCS8: &str = "302e020100300506032b657004220420";

    fn bytes(hex: &str) -> Vec<u8> {
        let byte = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        (0..hex.len()).step_by(2).map(byte).collect()
    }

    impl Stack {
        pub(crate) fn hs256() -> Self {
            let name = "jsonwebtoken 12, HS256";
            let keys = (
                EncodingKey::from_secret(&PEPPER).unwrap(),
                DecodingKey::from_secret(&PEPPER).unwrap(),
            );
            Self::new(name, Algorithm::HS256, keys)
        }

        pub(crate) fn eddsa() -> Self {
            let name = "jsonwebtoken 12, EdDSA";
            let signing = EncodingKey::from_ed_der(&bytes(&(PKCS8.to_owned() + ED25519_SECRET)));
            let keys = (signing, DecodingKey::from_ed_der(&bytes(ED25519_PUBLIC)));
            Self::new(name, Algorithm::EdDSA, keys)
        }

        fn new(
            name: &'static str,
            algorithm: Algorithm,
            (signing, key): (EncodingKey, DecodingKey),
        ) -> Self {
            let end = SystemTime::now() + LIFETIME;
            let end = end.duration_since(SystemTime::UNIX_EPOCH).unwrap();
            // Numbers of equal length, so that all tokens have the same length.
            let token = |number: u64| {
                let claims = Claims {
                    jti: format!("key-{number}"),
                    sub: number,
                    tenant: format!("customer-{:03}", number % 1000),
                    name: format!("nightly export {number}"),
                    class: Class::Secret,
                    scopes: scopes(),
                    exp: end.as_secs(),
                };
                encode(&Header::new(algorithm), &claims, &signing).unwrap()
            };
            Self {
                name,
                tokens: (100_000..100_000 + TOKENS).map(token).collect(),
                key,
                validation: Validation::new(algorithm),
                disabled: RwLock::default(),
            }
        }
    }

    impl Peer for Stack {
        fn name(&self) -> &'static str {
            self.name
        }

        fn batch(&self, random: &mut Random) -> Batch {
            let token = |_| &self.tokens[random.below(TOKENS) as usize];
            Batch::new((0..TOKENS).map(token))
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let claims = decode::<Claims>(presented, &self.key, &self.validation)
                .ok()?
                .claims;
            let disabled = self.disabled.read().unwrap().contains(&claims.jti);
            let fits = !disabled
                && claims.class == Class::Secret
                && claims.scopes.iter().any(|own| own == scope);
            fits.then(|| {
                Arc::new(Account {
                    number: claims.sub,
                    tenant: claims.tenant,
                    name: claims.name,
                    class: claims.class,
                    scopes: claims.scopes,
                    expires: SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(claims.exp),
                    disabled: AtomicBool::new(false),
                })
            })
        }
    }
}

/// The crate `prefixed-api-key`, used as in its README, with a map by short token.
pub(crate) mod prefixed {
    use prefixed_api_key::rand::rngs::OsRng;
    use prefixed_api_key::sha2::Sha256;
    use prefixed_api_key::{PrefixedApiKey, PrefixedApiKeyController};

    use super::{Account, Accounts, Arc, Batch, Locked, Peer, Random, letters};

    pub(crate) struct Stack {
        count: u64,
        controller: PrefixedApiKeyController<OsRng, Sha256>,
        map: Locked<String, String>,
    }

    /// Makes a key with the default lengths of `prefixed-api-key`.
    fn key(number: u64) -> PrefixedApiKey {
        let (short, long) = (letters(number, 11), letters(!number, 33));
        PrefixedApiKey::new("mycompany".to_owned(), short, long)
    }

    impl Stack {
        pub(crate) fn new(accounts: &Accounts) -> Self {
            let controller = PrefixedApiKeyController::configure()
                .prefix("mycompany".to_owned())
                .seam_defaults()
                .finalize()
                .unwrap();
            let entry = |account: &Arc<Account>| {
                let key = key(account.number);
                let hash = controller.long_token_hashed(&key);
                (key.short_token().to_owned(), (hash, account.clone()))
            };
            let map = accounts.iter().map(entry).collect();
            Self {
                map: super::RwLock::new(map),
                count: accounts.len() as u64,
                controller,
            }
        }
    }

    impl Peer for Stack {
        fn name(&self) -> &'static str {
            "prefixed-api-key 0.3, RwLock<HashMap>"
        }

        fn batch(&self, random: &mut Random) -> Batch {
            let token = |_| key(random.below(self.count)).to_string();
            Batch::new((0..crate::BATCH).map(token))
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let key = PrefixedApiKey::from_string(presented).ok()?;
            let map = self.map.read().unwrap();
            let (hash, account) = map.get(key.short_token())?;
            let same = self.controller.check_hash(&key, hash);
            (same && account.allows(scope)).then(|| account.clone())
        }
    }
}

/// The crate `api-keys-simplified`, used as in its README, with a map by key id.
pub(crate) mod argon {
    use api_keys_simplified::{
        ApiKeyManagerV0, Environment, ExposeSecret, KeyStatus, SecureString,
    };

    use super::{Account, Accounts, Arc, Batch, Locked, Peer, Random, letters};

    /// The number of real keys: 4, because hashing a million takes hours. Placeholders fill the rest of the
    /// map. The time to find a key in the map does not matter next to a hash that takes 25 ms.
    const REAL: usize = 4;

    pub(crate) struct Stack {
        manager: ApiKeyManagerV0,
        tokens: Vec<String>,
        map: Locked<String, Arc<str>>,
    }

    impl Stack {
        pub(crate) fn new(accounts: &Accounts) -> Self {
            let manager = ApiKeyManagerV0::init_default_config("sk").unwrap();
            let mut tokens = Vec::new();
            let (real, others) = accounts.split_at(REAL);
            let mut map: std::collections::HashMap<_, _> = others
                .iter()
                .map(|account| {
                    let hash: Arc<str> = "never looked at".into();
                    (letters(account.number, 32), (hash, account.clone()))
                })
                .collect();
            for account in real {
                let key = manager.generate(Environment::production()).unwrap();
                let id = manager.extract_key_id(key.key());
                let hash = key.expose_hash().hash().as_str().into();
                map.insert(id, (hash, account.clone()));
                tokens.push(key.key().expose_secret().to_owned());
            }
            Self {
                map: super::RwLock::new(map),
                manager,
                tokens,
            }
        }
    }

    impl Peer for Stack {
        fn name(&self) -> &'static str {
            "api-keys-simplified 0.5 (argon2)"
        }

        fn batch(&self, _: &mut Random) -> Batch {
            Batch::new(&self.tokens)
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let key = SecureString::from(presented.to_owned());
            let map = self.map.read().unwrap();
            let (hash, account) = map.get(&self.manager.extract_key_id(&key))?;
            let status = self.manager.verify(&key, hash).ok()?;
            (status == KeyStatus::Valid && account.allows(scope)).then(|| account.clone())
        }
    }
}

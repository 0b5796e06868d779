//! The implementations that keyward is compared with.
//!
//! Each peer finds a key's data in a map behind a lock. The crates under comparison only verify a secret
//! against a hash, and leave this map to their users. All maps hold the same data: account, scopes and
//! expiry.

use std::collections::HashMap;
use std::hint::black_box;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime};

use shared::Random;
use shared::batch::Batch;
use shared::keys::SCOPE;
use shared::mixed;

/// An implementation of key verification.
pub(crate) trait Peer {
    fn name(&self) -> &str;

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

/// The data that a service keeps about a key in addition to the key's hash.
#[allow(dead_code, reason = "a service reads these fields after verification")]
#[derive(Debug)]
pub(crate) struct Account {
    pub(crate) number: u64,
    pub(crate) tenant: String,
    pub(crate) name: String,
    scopes: Vec<String>,
    expires: SystemTime,
}

impl Account {
    fn new(number: u64) -> Arc<Self> {
        let scopes = [SCOPE, "exports:write", "events:read"];
        Arc::new(Self {
            number,
            tenant: format!("customer-{}", number % 1000),
            name: format!("nightly export {number}"),
            scopes: scopes.map(str::to_owned).into(),
            expires: SystemTime::now() + Duration::from_secs(90 * 24 * 60 * 60),
        })
    }

    fn allows(&self, scope: &str) -> bool {
        SystemTime::now() < self.expires && self.scopes.iter().any(|own| own == scope)
    }
}

/// The hash and the account of a key.
type Entry<H> = (H, Arc<Account>);
type Map<I, H> = RwLock<HashMap<I, Entry<H>>>;

const BASE58: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";

/// Returns `count` pseudo-random characters derived from `seed`.
fn letters(seed: u64, count: u64) -> String {
    let letter = |at| char::from(BASE58[(mixed(mixed(seed) ^ at) % 58) as usize]);
    (0..count).map(letter).collect()
}

/// A hand-written peer: the `hmac` crate, tokens in keyward's format, a hash map and the system time.
pub(crate) mod plain {
    use hmac::{Hmac, KeyInit, Mac};
    use sha2::Sha256;
    use subtle::ConstantTimeEq;

    use super::{Account, Arc, Batch, Map, Peer, Random};
    use shared::keys::{BODY, ID_AND_SECRET, KeyKind, Keys, PEPPER};

    pub(crate) struct Stack {
        keys: Keys,
        count: u64,
        mac: Hmac<Sha256>,
        map: Map<String, [u8; 32]>,
    }

    /// Splits a token into its id and the bytes that are hashed.
    fn parts(token: &str) -> Option<(&str, &[u8])> {
        let body = token.get(token.len().checked_sub(BODY)?..)?;
        Some((body.get(..22)?, body.get(..ID_AND_SECRET)?.as_bytes()))
    }

    impl Stack {
        pub(crate) fn new(count: u64) -> Self {
            let keys = Keys::new(KeyKind::Secret, count);
            let mac = <Hmac<Sha256> as KeyInit>::new_from_slice(&PEPPER).unwrap();
            let entry = |number| {
                let token = keys.token(number);
                let (id, message) = parts(&token).unwrap();
                let digest = mac.clone().chain_update(message).finalize().into_bytes();
                (id.to_owned(), (digest.into(), Account::new(number)))
            };
            let map = (0..count).map(entry).collect();
            Self {
                map: super::RwLock::new(map),
                keys,
                count,
                mac,
            }
        }
    }

    impl Peer for Stack {
        fn name(&self) -> &str {
            "RwLock<HashMap>, hmac crate, SystemTime"
        }

        fn batch(&self, random: &mut Random) -> Batch {
            Batch::valid(&self.keys, self.count, crate::BATCH, random)
        }

        fn verify(&self, presented: &str, scope: &str) -> Option<Arc<Account>> {
            let (id, message) = parts(presented)?;
            let map = self.map.read().unwrap();
            let (stands, account) = map.get(id)?;
            let digest = self.mac.clone().chain_update(message).finalize();
            let same = bool::from(digest.into_bytes().as_slice().ct_eq(stands));
            (same && account.allows(scope)).then(|| account.clone())
        }
    }
}

/// The crate `prefixed-api-key`, used as in its README, with a map by short token.
pub(crate) mod prefixed {
    use prefixed_api_key::rand::rngs::OsRng;
    use prefixed_api_key::sha2::Sha256;
    use prefixed_api_key::{PrefixedApiKey, PrefixedApiKeyController};

    use super::{Account, Arc, Batch, Map, Peer, Random, letters};

    pub(crate) struct Stack {
        count: u64,
        controller: PrefixedApiKeyController<OsRng, Sha256>,
        map: Map<String, String>,
    }

    /// Makes a key with the default lengths of `prefixed-api-key`.
    fn key(number: u64) -> PrefixedApiKey {
        let (short, long) = (letters(number, 11), letters(!number, 33));
        PrefixedApiKey::new("mycompany".to_owned(), short, long)
    }

    impl Stack {
        pub(crate) fn new(count: u64) -> Self {
            let controller = PrefixedApiKeyController::configure()
                .prefix("mycompany".to_owned())
                .seam_defaults()
                .finalize()
                .unwrap();
            let entry = |number| {
                let key = key(number);
                let hash = controller.long_token_hashed(&key);
                (key.short_token().to_owned(), (hash, Account::new(number)))
            };
            let map = (0..count).map(entry).collect();
            Self {
                map: super::RwLock::new(map),
                count,
                controller,
            }
        }
    }

    impl Peer for Stack {
        fn name(&self) -> &str {
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

    use super::{Account, Arc, Batch, Map, Peer, Random, letters};

    /// The number of real keys: 4, because hashing a million takes hours. Placeholders fill the rest of the
    /// map. The time to find a key in the map does not matter next to a hash that takes 25 ms.
    const REAL: u64 = 4;

    pub(crate) struct Stack {
        manager: ApiKeyManagerV0,
        tokens: Vec<String>,
        map: Map<String, Arc<str>>,
    }

    impl Stack {
        pub(crate) fn new(count: u64) -> Self {
            let manager = ApiKeyManagerV0::init_default_config("sk").unwrap();
            let mut tokens = Vec::new();
            let mut map: std::collections::HashMap<_, _> = (REAL..count)
                .map(|number| {
                    let hash: Arc<str> = "never looked at".into();
                    (letters(number, 32), (hash, Account::new(number)))
                })
                .collect();
            for number in 0..REAL {
                let key = manager.generate(Environment::production()).unwrap();
                let id = manager.extract_key_id(key.key());
                let hash = key.expose_hash().hash().as_str().into();
                map.insert(id, (hash, Account::new(number)));
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
        fn name(&self) -> &str {
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

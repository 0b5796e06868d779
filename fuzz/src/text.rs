//! Targets that parse text: tokens, URLs, documents, lines and names.

use std::fmt::{Debug, Display};
use std::str::FromStr;
use std::sync::LazyLock;

use keyward::command::{CommandId, LeakSource};
use keyward::key::{
    AddressAllowlist, ClassName, Description, Digest, Fingerprint, Hint, KeyName, Metadata, Purpose,
};
use keyward::policy::{Policy, PolicySpec};
use keyward::store::{MemoryStore, PostgresStore};
use keyward::token;
use keyward::web::TenantPath;
use keyward::{
    Actor, CreateKey, KeyId, Keyward, Need, PepperRing, PrincipalId, Role, Scope, ScopeSet, Secret,
    TenantId, Timestamp,
};

/// A service with one key.
pub(crate) struct OneKey {
    pub(crate) keys: Keyward,
    pub(crate) id: KeyId,
    pub(crate) secret: Secret,
}

pub(crate) static ONE_KEY: LazyLock<OneKey> = LazyLock::new(|| {
    pollster::block_on(async {
        let ring = PepperRing::generate().unwrap();
        let keys = Keyward::builder(MemoryStore::new(), ring)
            .build()
            .await
            .unwrap();
        let tenant = TenantId::new("acme").unwrap();
        let admin = Actor::new(tenant, PrincipalId::new("alice").unwrap(), Role::ADMIN);
        let created = keys
            .create(&admin, CreateKey::new("one").scope("*:*"))
            .await
            .unwrap();
        OneKey {
            keys,
            id: created.id,
            secret: created.secret,
        }
    })
});

/// Parses a token and verifies it, also with its checksum corrected. Only the text of the one key that exists is
/// accepted.
pub fn token(input: &[u8]) {
    token_as_it_is(input);
    if let Ok(text) = std::str::from_utf8(input.trim_ascii())
        && let Some((before, _)) = text.split_at_checked(text.len().saturating_sub(6))
    {
        token_as_it_is(format!("{before}{}", token::checksum(before)).as_bytes());
    }
}

fn token_as_it_is(input: &[u8]) {
    if let Ok(parsed) = token::parse(input) {
        let text = std::str::from_utf8(input.trim_ascii()).unwrap();
        let (before, checksum) = text.split_at(text.len() - 6);
        assert_eq!(token::checksum(before), checksum);
        assert!(before.contains(&parsed.id().to_string()), "{text}");
    }
    let verified = ONE_KEY.keys.verify(input, &Need::any());
    let is_the_key = input.trim_ascii() == ONE_KEY.secret.expose().as_bytes();
    assert_eq!(verified.is_ok(), is_the_key);
}

/// Parses a connection string. No error repeats it.
pub fn database_url(input: &[u8]) {
    let Ok(url) = std::str::from_utf8(input) else {
        return;
    };
    let options = PostgresStore::options(url);
    // A password that cannot occur in a message by accident.
    let secret = "hunter2-swordfish";
    if let Err(error) = options.check() {
        let shown = format!("{error} {error:?}");
        assert!(!shown.contains(secret));
    }
    assert!(!format!("{options:?}").contains(secret));
}

/// Distinguishes the name of a file from a connection string. Text in which the driver finds a password never names a
/// file.
pub fn store_location(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    let is_connection = keyctl::is_connection_string(text);
    if let Ok(config) = tokio_postgres::Config::from_str(text) {
        assert!(
            is_connection || config.get_password().is_none(),
            "{text:?} holds a password and would be a file"
        );
    }
}

/// Parses a policy. A valid one is written and read again as the same policy.
pub fn policy(input: &[u8]) {
    let Ok(spec) = serde_json::from_slice::<PolicySpec>(input) else {
        return;
    };
    let written = serde_json::to_string(&spec).unwrap();
    let again: PolicySpec = serde_json::from_str(&written).unwrap();
    assert_eq!(again, spec, "{written}");
    let valid = Policy::new(spec);
    assert_eq!(Policy::new(again).is_ok(), valid.is_ok());
}

/// Parses a pepper document. Neither a ring nor an error shows a key.
pub fn pepper(input: &[u8]) {
    let shown = match PepperRing::from_json(input) {
        Ok(ring) => format!("{ring:?}"),
        Err(error) => format!("{error:?} {error}"),
    };
    // The keys of the corpus. A pepper's id, which is shown, has at most 32 characters.
    for digits in ["0f", "ab"] {
        assert!(!shown.contains(&digits.repeat(17)), "{shown}");
    }
}

/// Checks a line of `keyctl import`. No error repeats its content.
pub fn import_line(input: &[u8]) {
    if let Err(error) = keyctl::check_import_line(input) {
        assert!(!error.contains("hunter2"), "{error}");
    }
}

/// Reads a line of an exported audit trail. An entry survives its line, and a message repeats no part of a line.
pub fn audit_line(input: &[u8]) {
    match keyctl::check_audit_line(input) {
        Ok(entry) => {
            let line = serde_json::to_vec(&entry).unwrap();
            assert_eq!(keyctl::check_audit_line(&line).unwrap(), entry);
        }
        Err(error) => assert!(!error.contains("hunter2"), "{error}"),
    }
}

/// Parses `text`, and checks that what a value displays parses to the same value.
fn round_trip<T>(text: &str)
where
    T: FromStr + Display + PartialEq + Debug,
    T::Err: Debug + Display,
{
    match text.parse::<T>() {
        Ok(value) => {
            let shown = value.to_string();
            assert_eq!(shown.parse::<T>().unwrap(), value, "{text:?} {shown:?}");
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// Parses text as every kind of name, identifier, scope, network and instant.
pub fn text(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else {
        return;
    };
    round_trip::<KeyName>(text);
    round_trip::<Description>(text);
    round_trip::<Purpose>(text);
    round_trip::<ClassName>(text);
    round_trip::<Hint>(text);
    round_trip::<CommandId>(text);
    round_trip::<LeakSource>(text);
    round_trip::<PrincipalId>(text);
    round_trip::<TenantId>(text);
    round_trip::<Scope>(text);
    round_trip::<Timestamp>(text);
    round_trip::<KeyId>(text);
    round_trip::<Fingerprint>(text);
    drop(text.parse::<Digest>());
    if let Ok(list) = AddressAllowlist::parse(text.split(' ')) {
        let networks: Vec<_> = list.iter().map(ToString::to_string).collect();
        let again = AddressAllowlist::parse(networks.iter().map(String::as_str)).unwrap();
        assert_eq!(again, list);
    }
    if let Ok(scopes) = ScopeSet::parse(text.split(' ')) {
        let shown = scopes.to_string();
        assert_eq!(ScopeSet::parse(shown.split_whitespace()).unwrap(), scopes);
    }
    if let Ok(pairs) = serde_json::from_str::<Metadata>(text) {
        let written = serde_json::to_string(&pairs).unwrap();
        assert_eq!(serde_json::from_str::<Metadata>(&written).unwrap(), pairs);
    }
    if let Some((template, path)) = text.split_once('\n')
        && let Ok(template) = template.parse::<TenantPath>()
        && let Some(tenant) = template.tenant(path)
    {
        assert_eq!(TenantId::new(tenant.as_str()).unwrap(), tenant);
    }
}

//! Encrypted connections, which must reach the intended server or fail.

use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use keyward::store::postgres::{ConnectError, PostgresOptions};
use keyward::store::{KeyStore, LoadRequest, PostgresStore, Revision};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa,
    KeyPair,
};
use tokio_postgres::NoTls;

use crate::connecting::full_text;
use support::postgres::{Server, TestSchema, on_runtime, open};
use support::raw::{ALL, next};
use support::*;

/// The password of the database user `alice`.
const PASSWORD: &str = "hunter2 correct";

/// A certificate authority that a test creates, with its self-signed certificate.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self(CertifiedIssuer::self_signed(authority, key).unwrap())
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    /// Returns a certificate that this authority has signed, and its private key.
    fn signed(&self, params: &CertificateParams) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.0).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    fn server(&self, name: &str) -> (String, String) {
        self.signed(&CertificateParams::new([name.to_owned()]).unwrap())
    }

    fn client(&self, user: &str) -> (String, String) {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.signed(&params)
    }
}

/// A server that offers encryption, with a certificate for the host name `db.test`.
struct Encrypting {
    server: Server,
    authority: Authority,
}

impl Encrypting {
    /// Returns a server that all tests share. Each test creates its own schema on it.
    fn shared() -> &'static Self {
        static SHARED: OnceLock<Encrypting> = OnceLock::new();
        SHARED.get_or_init(Self::start)
    }

    fn start() -> Self {
        let authority = Authority::new();
        let (certificate, key) = authority.server("db.test");
        let access = "local all all trust\n\
                      hostssl all alice 127.0.0.1/32 scram-sha-256\n\
                      hostssl all carol 127.0.0.1/32 cert\n\
                      host all postgres 127.0.0.1/32 trust\n";
        let server = Server::on_loopback(
            "fsync = off\nssl = on\nssl_ca_file = 'ca.pem'",
            &[
                ("server.crt", &certificate),
                ("server.key", &key),
                ("ca.pem", &authority.pem()),
                ("pg_hba.conf", access),
            ],
        );
        TestSchema::at(server.url()).run(&format!(
            "CREATE ROLE alice LOGIN PASSWORD '{PASSWORD}'; CREATE ROLE carol LOGIN; \
             GRANT CREATE ON DATABASE postgres TO alice, carol"
        ));
        Self { server, authority }
    }

    /// Returns a URL that connects `user` to the server under the host name `host`.
    fn url(&self, user: &str, host: &str) -> String {
        let port = self.server.port();
        format!("host={host} hostaddr=127.0.0.1 port={port} user={user} dbname=postgres")
    }

    fn place(&self) -> TestSchema {
        TestSchema::at(self.server.url())
    }
}

fn options(url: &str, place: &TestSchema) -> PostgresOptions {
    PostgresStore::options(url).schema(&place.schema)
}

/// Returns `true` or `false` for each connection of the application `name` whose last statement begins with
/// `statement`: whether it is encrypted.
fn encrypted(place: &TestSchema, name: &str, statement: &str) -> Vec<String> {
    place.ask(&format!(
        "SELECT ssl::text FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) \
         WHERE application_name = '{name}' AND query LIKE '{statement}%'"
    ))
}

#[test]
fn all_connections_are_encrypted_under_every_setting_that_requests_it() {
    let there = Encrypting::shared();
    let (roots, place) = (there.authority.pem(), there.place());
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, &roots).unwrap();
    let file = format!("sslrootcert={}", file.path().display());
    for (number, words, roots) in [
        (0, "sslmode=require", Some(&roots)),
        (1, "sslmode=verify-ca", Some(&roots)),
        (2, "sslmode=verify-full", Some(&roots)),
        // The server is on this machine, so encryption is optional by default. The root certificates alone
        // must make it mandatory.
        (3, "sslmode=prefer", Some(&roots)),
        (4, "", Some(&roots)),
        (5, &*file, None),
        (6, &*format!("sslmode=verify-full {file}"), None),
    ] {
        let url = there.url("postgres", "db.test");
        let options = options(
            &format!("{url} application_name=all{number} {words}"),
            &place,
        );
        let store = open(match roots {
            Some(roots) => options.root_certificates(roots.as_bytes()),
            None => options,
        });
        let store = store.unwrap();
        let at = wait(store.scan(None, ALL)).unwrap().head;
        wait(store.commit(next(&tenant(&format!("t{number}")), Revision::ZERO).1)).unwrap();
        wait(store.wait_past(at)).unwrap();
        let name = format!("all{number}");
        until(|| !encrypted(&place, &name, "LISTEN").is_empty());
        for statement in ["LISTEN", "COMMIT", ""] {
            let encrypted = encrypted(&place, &name, statement);
            assert!(!encrypted.is_empty(), "{statement}");
            assert!(encrypted.iter().all(|ssl| ssl == "true"), "{encrypted:?}");
        }
    }
}

/// Waits until `done` returns true.
fn until(mut done: impl FnMut() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

/// Checks that the store cannot connect with these options. Returns the full text of the error.
fn refused(options: PostgresOptions) -> String {
    let options = options.connection_timeout(Duration::from_secs(60));
    let error = open(options).unwrap_err();
    let failed = matches!(error, ConnectError::Database(_) | ConnectError::Denied(_));
    assert!(failed, "{error:?}");
    full_text(&error)
}

#[test]
fn a_certificate_of_an_untrusted_authority_is_refused() {
    let there = Encrypting::shared();
    let place = there.place();
    let url = there.url("postgres", "db.test");
    for words in [
        "sslmode=require",
        "sslmode=verify-ca",
        "sslmode=verify-full",
    ] {
        let options = options(&format!("{url} {words}"), &place);
        let stranger = Authority::new().pem();
        let error = refused(options.clone().root_certificates(stranger));
        assert!(error.contains("invalid peer certificate"), "{error}");
        open(options.root_certificates(there.authority.pem())).unwrap();
    }
    // The certificates of the operating system do not include the authority that this test has created.
    let options = options(&format!("{url} sslrootcert=system"), &place);
    // If the operating system has no certificates at all, the error is `Certificates` instead.
    match open(options) {
        Err(ConnectError::Certificates(_)) => {}
        refused => {
            let error = full_text(&refused.unwrap_err());
            assert!(error.contains("invalid peer certificate"), "{error}");
        }
    }
}

#[test]
fn a_certificate_of_another_host_is_refused() {
    let there = Encrypting::shared();
    let place = there.place();
    for words in [
        "sslmode=require",
        "sslmode=verify-ca",
        "sslmode=verify-full",
        "",
    ] {
        for host in ["other.test", "localhost", "127.0.0.1"] {
            let url = format!("{} {words}", there.url("postgres", host));
            let options = options(&url, &place).root_certificates(there.authority.pem());
            let error = refused(options);
            assert!(
                error.contains("not valid for name"),
                "{host} {words}: {error}"
            );
        }
    }
}

#[test]
fn a_server_without_encryption_is_refused_if_encryption_is_requested() {
    let server = Server::on_loopback("fsync = off", &[]);
    let place = TestSchema::at(server.url());
    let port = server.port();
    let url = format!("host=localhost hostaddr=127.0.0.1 port={port} user=postgres");
    for words in [
        "sslmode=require",
        "sslmode=verify-ca",
        "sslmode=verify-full",
        "",
    ] {
        let options = options(&format!("{url} {words}"), &place);
        let options = options.root_certificates(Authority::new().pem());
        let error = refused(options);
        assert!(error.contains("does not support TLS"), "{words}: {error}");
    }
    let own = options(&url, &place).connect_tls(NoTls);
    let error = full_text(&on_runtime(own).unwrap_err());
    assert!(error.contains("does not support TLS"), "{error}");
    // A connection to this machine may be unencrypted, both by default and with `sslmode=disable`.
    let store = open(options(&url, &place)).unwrap();
    wait(store.load(&tenant("acme"), &LoadRequest::none())).unwrap();
    let plain = format!("{url} sslmode=disable");
    open(options(&plain, &place).root_certificates("-")).unwrap();
    on_runtime(options(&plain, &place).connect_tls(NoTls)).unwrap();
}

#[test]
fn unencrypted_connections_to_other_machines_need_an_explicit_setting() {
    let server = Server::on_loopback("fsync = off", &[]);
    let place = TestSchema::at(server.url());
    // The address 0.0.0.0 leads to this machine, but the store does not consider it local.
    let port = server.port();
    let away = format!("host=db.test hostaddr=0.0.0.0 port={port} user=postgres");
    for words in ["", "sslmode=allow", "sslmode=prefer"] {
        let options = options(&format!("{away} {words}"), &place);
        let error = refused(options.root_certificates(Authority::new().pem()));
        assert!(error.contains("does not support TLS"), "{words}: {error}");
    }
    open(options(&format!("{away} sslmode=disable"), &place)).unwrap();
    for url in ["host=/tmp,db.example", "host=/tmp sslmode=require"] {
        let trusting = options(url, &place).root_certificates(Authority::new().pem());
        let refused = open(trusting).unwrap_err();
        assert!(matches!(refused, ConnectError::Unencrypted), "{refused:?}");
    }
}

#[test]
fn a_client_presents_its_certificate() {
    let there = Encrypting::shared();
    let place = there.place();
    let url = there.url("carol", "db.test");
    let trusting = |url: &str| options(url, &place).root_certificates(there.authority.pem());
    let (certificate, key) = there.authority.client("carol");
    let store = open(trusting(&url).client_certificate(&*certificate, &*key)).unwrap();
    wait(store.commit(next(&tenant("acme"), Revision::ZERO).1)).unwrap();
    let folder = tempfile::TempDir::new().unwrap();
    std::fs::write(folder.path().join("c"), &certificate).unwrap();
    std::fs::write(folder.path().join("k"), &key).unwrap();
    let folder = folder.path().display();
    let named = format!("{url} sslcert={folder}/c sslkey={folder}/k");
    open(trusting(&named)).unwrap();

    let (others, key) = there.authority.client("alice");
    refused(trusting(&url).client_certificate(others, key));
    refused(trusting(&url));
    for half in ["sslcert", "sslkey"] {
        let half = open(trusting(&format!("{url} {half}={folder}/c")));
        assert!(
            matches!(half, Err(ConnectError::Certificates(_))),
            "{half:?}"
        );
    }
}

#[test]
fn a_password_is_bound_to_the_encrypted_channel() {
    let there = Encrypting::shared();
    let place = there.place();
    let url = there.url("alice", "db.test");
    let words = format!("{url} password='{PASSWORD}' channel_binding=require");
    let options = options(&words, &place).root_certificates(there.authority.pem());
    open(options).unwrap();
}

#[test]
fn unusable_certificates_are_reported_and_not_shown() {
    let there = Encrypting::shared();
    let place = there.place();
    let url = there.url("postgres", "db.test");
    let with = |words: &str| options(&format!("{url} {words}"), &place);
    let (certificate, key) = there.authority.client("carol");
    let cut = |pem: &str| pem[..pem.len() / 2].to_owned();
    let own = with("").root_certificates(there.authority.pem());
    for options in [
        with("sslrootcert=/nowhere/at/all"),
        with("").root_certificates(""),
        with("").root_certificates("hunter2"),
        with("").root_certificates(&*key),
        with("").root_certificates(cut(&there.authority.pem())),
        own.clone().client_certificate(&*certificate, &*certificate),
        own.clone().client_certificate(&*certificate, cut(&key)),
        own.clone().client_certificate(&*key, &*key),
        own.clone().client_certificate(cut(&certificate), &*key),
    ] {
        let error = open(options).unwrap_err();
        assert!(matches!(error, ConnectError::Certificates(_)), "{error:?}");
        let text = full_text(&error);
        let shown = key.lines().find(|line| text.contains(*line));
        assert!(shown.is_none() && !text.contains("hunter2"), "{text}");
        assert!(!text.contains("/nowhere"), "{text}");
    }
    let twice = on_runtime(own.connect_tls(NoTls));
    assert!(
        matches!(twice, Err(ConnectError::Certificates(_))),
        "{twice:?}"
    );
    let over_a_file = format!("{} sslmode=require", there.server.url());
    let refused = open(options(&over_a_file, &place).root_certificates(there.authority.pem()));
    assert!(
        matches!(refused, Err(ConnectError::Unencrypted)),
        "{refused:?}"
    );
}

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn no_log_contains_a_password() {
    use tracing_subscriber::util::SubscriberInitExt;

    // The driver logs every statement, and the server's setup contains a password. The setup therefore runs
    // before the log is captured.
    let there = Encrypting::shared();
    let log = Log::default();
    let writer = log.clone();
    // The subscriber is global, because the driver logs on threads of its own.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish()
        .init();
    let place = there.place();
    let trusting = |url: &str| options(url, &place).root_certificates(there.authority.pem());
    let alice = there.url("alice", "db.test");
    let words = format!("{alice} password='{PASSWORD}'");
    let store = open(trusting(&words)).unwrap();
    let said = format!("{:?} {store:?}", trusting(&words));
    wait(store.commit(next(&tenant("logged"), Revision::ZERO).1)).unwrap();
    wait(store.load(&tenant("logged"), &LoadRequest::none())).unwrap();
    let wrong = "hunter2 wrong";
    let port = there.server.port();
    let url =
        format!("postgres://alice:hunter2%20wrong@db.test:{port}/postgres?hostaddr=127.0.0.1");
    let mut errors = refused(trusting(&format!("{alice} password='{wrong}'")));
    errors += &refused(trusting(&url));
    errors += &refused(
        options(&format!("{url}&sslmode=require"), &place)
            .root_certificates(Authority::new().pem()),
    );
    errors += &full_text(&open(options(&format!("{url}&{wrong}=1"), &place)).unwrap_err());
    assert!(
        errors.contains("password authentication failed"),
        "{errors}"
    );
    let logged = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains(&place.schema),
        "the store's log lines were captured"
    );
    assert!(
        logged.contains("START TRANSACTION"),
        "the driver's log lines were captured"
    );
    for text in [said, errors, logged] {
        assert!(!text.contains("hunter2"), "{text}");
    }
}

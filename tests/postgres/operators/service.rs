//! The example `service` on a database. Two processes stand for services on two machines.

use serde_json::json;

use crate::operators::database::uri;
use support::postgres::TestSchema;
use support::served::ServiceProcess;

#[test]
fn services_over_one_database_share_keys_and_print_the_admin_key_once() {
    let place = TestSchema::at(uri());
    let folder = tempfile::tempdir().unwrap();
    let variables = [
        ("SERVICE_DATABASE", &*place.url),
        ("SERVICE_SCHEMA", &place.schema),
    ];
    let one = ServiceProcess::start_with(folder.path(), &variables);
    let admin = one.admin_key();
    let other = ServiceProcess::start_with(folder.path(), &variables);
    assert!(other.lines_to_try().is_empty(), "{:?}", other.printed);
    assert!(
        !folder.path().join("data/keys.db").exists(),
        "keys are only in the database"
    );

    let reader = json!({ "name": "made", "scopes": ["reports:read"], "expires_in_days": 1 });
    let (status, made) = one.ask(&admin, "POST /v1/keys", Some(reader));
    assert_eq!(status, 201, "{made}");
    let (id, secret) = (
        made["id"].as_str().unwrap(),
        made["secret"].as_str().unwrap(),
    );
    let reads = |service: &ServiceProcess| service.ask(secret, "GET /v1/reports", None).0;
    assert_eq!((reads(&one), reads(&other)), (200, 200));
    let (status, revoked) = other.ask(&admin, &format!("POST /v1/keys/{id}/revoke"), None);
    assert_eq!(status, 200, "{revoked}");
    assert_eq!(reads(&other), 401);
    // The service `one` gets notice of the revocation by a notification, or else at its next poll.
    assert!(
        (0..20_000).any(|_| reads(&one) == 401),
        "the other service still accepts the key"
    );

    let output = [one.printed.clone(), other.printed.clone()]
        .concat()
        .join("\n");
    let logged = one.stop() + &other.stop();
    for output in [output, logged] {
        assert!(!output.contains("hunter2"), "the output shows the password");
    }
}

#[test]
fn the_service_refuses_a_database_whose_pepper_is_lost() {
    let place = TestSchema::at(uri());
    let folder = tempfile::tempdir().unwrap();
    let variables = [
        ("SERVICE_DATABASE", &*place.url),
        ("SERVICE_SCHEMA", &place.schema),
    ];
    ServiceProcess::start_with(folder.path(), &variables).stop();
    std::fs::remove_file(folder.path().join("data/pepper")).unwrap();
    let mut again = support::served::command(folder.path(), "127.0.0.1:0");
    let again = again.envs(variables).output().unwrap();
    assert!(!again.status.success());
    assert!(
        !folder.path().join("data/pepper").exists(),
        "no new pepper is created"
    );
    let output = String::from_utf8(again.stderr).unwrap();
    assert!(!output.contains("hunter2"), "the output shows the password");
}

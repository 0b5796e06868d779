//! The example `service` as its users run it: a real process, its printed commands in a shell, and signals.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

use keyward::command::DeleteKey;
use keyward::store::{NodeRegistry, SqliteStore};
use keyward::{Actor, CreateKey, KeyId, Keyward, PepperFile, Reason, Role, TenantId};
use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;

use support::served::{ServiceProcess, answer, command};

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn create(scopes: &[&str], days: u32) -> Option<Value> {
    Some(json!({ "name": "made", "scopes": scopes, "expires_in_days": days }))
}

#[test]
fn the_printed_commands_of_the_first_run_work_and_no_later_run_prints_the_key() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let lines = service.lines_to_try();
    let script: String = lines
        .iter()
        .map(|line| format!("{line}\necho\necho --\n"))
        .collect();
    let mut shell = Command::new("sh");
    shell.args(["-euc", &script]).current_dir(folder.path());
    // Ignores an HTTP proxy that is configured on this machine.
    let ran = shell
        .env("NO_PROXY", "*")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let out = String::from_utf8(ran.stdout).unwrap();
    let err = String::from_utf8(ran.stderr).unwrap();
    assert!(ran.status.success() && err.is_empty(), "{out}{err}");

    let answers = out.split("\n--\n").map(str::trim).zip(&lines);
    let answers: Vec<_> = answers.filter(|(text, _)| !text.is_empty()).collect();
    let json = |at: usize| serde_json::from_str::<Value>(answers[at].0).unwrap();
    let what: Vec<_> = answers.iter().map(|(text, _)| *text).collect();
    assert_eq!(what.len(), 12, "{what:#?}");
    assert_eq!((what[0], what[1]), ("up", "ready"));
    let json = |at: usize| json(at + 1);
    assert_eq!(json(1)["status"], 401);
    assert_eq!(json(2)["title"], "Q3");
    let reader = json(3);
    assert_eq!(json(4)[0]["title"], "Q3");
    assert_eq!(
        (&json(5)["status"], &json(5)["title"]),
        (&json!(403), &json!("Insufficient scope"))
    );
    assert_eq!(json(6)["replaces"]["id"], reader["id"]);
    assert_ne!(json(6)["secret"], reader["secret"]);
    assert_eq!(
        json(7),
        json(4),
        "the old key works during its grace period"
    );
    assert_eq!(json(8)["id"], reader["id"]);
    assert_eq!(
        (&json(9)["status"], &json(9)["title"]),
        (&json!(401), &json!("Invalid API key"))
    );
    let status = |key: &Value| key["status"].clone();
    let all: Vec<_> = json(10)["keys"]
        .as_array()
        .unwrap()
        .iter()
        .map(status)
        .collect();
    assert_eq!(all, ["active", "revoked", "active"], "{}", what[11]);

    let admin = service.admin_key();
    let secrets = [
        &admin,
        reader["secret"].as_str().unwrap(),
        json(6)["secret"].as_str().unwrap(),
    ]
    .map(str::to_owned);
    let mut logged = service.stop();
    let again = ServiceProcess::start(folder.path());
    assert!(again.lines_to_try().is_empty(), "{:?}", again.printed);
    let printed = again.printed.join("\n");
    assert!(
        printed.contains("delete"),
        "the message explains how to start over: {printed}"
    );
    assert_eq!(again.ask(&admin, "GET /v1/reports", None), (200, json!([])));
    logged += &again.stop();
    for secret in secrets {
        // The secret part of the token, without the prefix and the id.
        let hidden = &secret[secret.len() - 32..];
        for (where_, text) in [
            ("the log", &logged),
            ("the output of a later run", &printed),
        ] {
            assert!(!text.contains(hidden), "a secret is in {where_}");
        }
    }
}

const JSON: &str = "content-type: application/json\r\n";
const CLOSE: &str = "connection: close\r\n";
const EMPTY: &str = "content-length: 0\r\n";

/// Returns the head of a request whose body follows later.
fn head(path: &str, key: &str, more: &str) -> String {
    format!("POST {path} HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {key}\r\n{more}\r\n")
}

/// Creates a key with all scopes. Returns its secret, the admin key, and its id.
fn stolen(service: &ServiceProcess) -> (String, String, String) {
    let admin = service.admin_key();
    let (status, made) = service.ask(&admin, "POST /v1/keys", create(&["*:*"], 30));
    assert_eq!(status, 201, "{made}");
    let text = |field: &str| made[field].as_str().unwrap().to_owned();
    (text("secret"), admin, text("id"))
}

/// The key is revoked before the body of its request arrives, so the request creates no key.
#[test]
fn a_slow_body_gains_nothing_for_a_key_revoked_in_flight() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let (key, admin, id) = stolen(&service);
    let body = br#"{"name": "mine", "scopes": ["*:*"]}"#;
    let length = format!(
        "{JSON}{CLOSE}content-length: {}\r\nexpect: 100-continue\r\n",
        body.len()
    );
    let mut stream = service.connect();
    stream
        .write_all(head("/v1/keys", &key, &length).as_bytes())
        .unwrap();
    // The server has accepted the request, and the handler waits for the body.
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut read = vec![0; go_on.len()];
    stream.read_exact(&mut read).unwrap();
    assert_eq!(String::from_utf8(read).unwrap(), go_on);

    let (status, _) = service.ask(&admin, &format!("POST /v1/keys/{id}/revoke"), None);
    assert_eq!(status, 200);
    stream.write_all(body).unwrap();
    let (status, refused) = answer(&mut stream);
    assert_eq!(status, 401, "{refused}");
    let (_, listed) = service.ask(&admin, "GET /v1/keys", None);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn a_long_stream_gains_nothing_for_a_key_revoked_in_flight() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let (key, admin, id) = stolen(&service);
    let mut stream = service.connect();
    let chunked = format!("{JSON}{CLOSE}transfer-encoding: chunked\r\n");
    let chunked = head("/v1/keys", &key, &chunked);
    stream.write_all(chunked.as_bytes()).unwrap();
    let chunk = |text: &str| format!("{:x}\r\n{text}\r\n", text.len());
    stream
        .write_all(chunk(r#"{"name": "mine","#).as_bytes())
        .unwrap();
    // Once another connection gets this answer, the server has read the first chunk or refused the request.
    let (status, _) = service.ask(&admin, &format!("POST /v1/keys/{id}/revoke"), None);
    assert_eq!(status, 200);
    let rest = chunk(r#" "scopes": ["*:*"]}"#) + "0\r\n\r\n";
    stream.write_all(rest.as_bytes()).unwrap();
    let (status, refused) = answer(&mut stream);
    assert_eq!(status, 401, "{refused}");
    let (_, listed) = service.ask(&admin, "GET /v1/keys", None);
    assert_eq!(listed["keys"].as_array().unwrap().len(), 2, "{listed}");
}

#[test]
fn requests_pipelined_after_a_revocation_are_refused() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let (key, admin, id) = stolen(&service);
    let body = r#"{"name": "mine", "scopes": ["*:*"]}"#;
    let length = format!("{JSON}content-length: {}\r\n", body.len());
    let revoke = head(&format!("/v1/keys/{id}/revoke"), &admin, EMPTY);
    let make = head("/v1/keys", &key, &length) + body;
    let rotate = format!("{CLOSE}{EMPTY}");
    let rotate = head(&format!("/v1/keys/{id}/rotate"), &key, &rotate);
    let mut stream = service.connect();
    // One write sends all requests. The server handles them one after another.
    let all = revoke + &make + &rotate;
    stream.write_all(all.as_bytes()).unwrap();
    let mut answers = String::new();
    stream.read_to_string(&mut answers).unwrap();
    let statuses = answers.match_indices("HTTP/1.1 ").map(|(at, found)| {
        let from = at + found.len();
        answers[from..from + 3].parse::<u16>().unwrap()
    });
    let statuses: Vec<_> = statuses.collect();
    assert_eq!(statuses, [200, 401, 401]);
}

/// Attack: a key of the environment `test` tries to create and rotate live keys.
#[test]
fn a_test_key_makes_only_test_keys_and_rotates_no_live_key() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let (live, _, id) = stolen(&service);
    // The key is created through the store, because the service has no way to set an environment.
    let data = folder.path().join("data");
    let key = pollster::block_on(async {
        let store = SqliteStore::open(data.join("keys.db")).await.unwrap();
        let peppers = PepperFile::open(data.join("pepper")).unwrap().ring();
        let keys = Keyward::builder(store, peppers).build().await.unwrap();
        let acme = TenantId::new("acme").unwrap();
        let alice = Actor::new(acme, "alice".try_into().unwrap(), Role::ADMIN);
        let draft = CreateKey::new("trial").environment("test").scope("*:*");
        let created = keys.create(&alice, draft).await.unwrap();
        created.secret.expose().to_owned()
    });
    assert!(key.starts_with("sk_test_") && live.starts_with("sk_live_"));
    let (status, made) = service.ask(&key, "POST /v1/keys", create(&["*:*"], 30));
    assert_eq!(status, 201, "{made}");
    assert!(made["secret"].as_str().unwrap().starts_with("sk_test_"));
    let (status, refused) = service.ask(&key, &format!("POST /v1/keys/{id}/rotate"), None);
    assert_eq!(status, 403, "{refused}");
}

#[test]
fn a_stopping_service_finishes_requests_in_flight_and_leaves_the_registry() {
    let folder = folder();
    let mut service = ServiceProcess::start(folder.path());
    let key = service.admin_key();
    let mut stream = service.connect();
    let body = br#"{"title": "late"}"#;
    let head = format!(
        "POST /v1/reports HTTP/1.1\r\nhost: test\r\nauthorization: Bearer {key}\r\n\
         content-type: application/json\r\ncontent-length: {}\r\nexpect: 100-continue\r\n\r\n",
        body.len(),
    );
    stream.write_all(head.as_bytes()).unwrap();
    // The handler is waiting for the body.
    let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut interim = vec![0; go_on.len()];
    stream.read_exact(&mut interim).unwrap();
    assert_eq!(String::from_utf8(interim).unwrap(), go_on);

    service.signal(Signal::TERM);
    service.wait_for("stopping");
    let refused = (0..100_000).any(|_| TcpStream::connect(service.address).is_err());
    assert!(refused, "the service still accepts connections");
    stream.write_all(body).unwrap();
    let (status, report) = answer(&mut stream);
    assert_eq!((status, &report["title"]), (201, &json!("late")));
    let logged = service.ended();
    assert!(logged.contains("stopped"), "{logged}");

    let file = folder.path().join("data/keys.db");
    let store = pollster::block_on(SqliteStore::open(file)).unwrap();
    let nodes = pollster::block_on(store.nodes()).unwrap();
    assert!(nodes.is_empty(), "{nodes:?}");
}

#[test]
fn ctrl_c_stops_the_service_too() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    service.signal(Signal::INT);
    assert!(service.ended().contains("stopped"));
}

#[test]
fn no_key_grants_more_than_it_has() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let admin = service.admin_key();
    let made =
        |by: &str, scopes: &[&str], days| service.ask(by, "POST /v1/keys", create(scopes, days));
    let secret = |(status, key): (u16, Value)| {
        assert_eq!(status, 201, "{key}");
        key["secret"].as_str().unwrap().to_owned()
    };
    // An admin key for 30 days, and a key that may only manage keys.
    let deputy = secret(made(&admin, &["*:*"], 30));
    let narrowed = secret(made(&admin, &["keys:manage"], 30));
    let reader = secret(made(&deputy, &["reports:read"], 20));

    let refused = |(status, problem): (u16, Value), words: &str| {
        let detail = problem["detail"].as_str().unwrap();
        assert_eq!(status, 403, "{problem}");
        assert!(detail.contains(words), "{problem}");
    };
    refused(
        made(&deputy, &["reports:read"], 60),
        "more than its own lifetime",
    );
    refused(made(&narrowed, &["reports:read"], 20), "may not");
    refused(made(&narrowed, &["keys:manage"], 20), "may not");
    refused(made(&reader, &["reports:read"], 20), "keys:manage");
    assert_eq!(service.ask(&reader, "GET /v1/keys", None).0, 403);
    service.stop();
}

#[test]
fn malformed_requests_get_an_error_and_a_repeated_command_is_executed_once() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let admin = service.admin_key();
    let listed = || {
        let (status, list) = service.ask(&admin, "GET /v1/keys", None);
        assert_eq!(status, 200);
        list["keys"].as_array().unwrap().len()
    };
    let status = |path: &str, body| service.ask(&admin, path, body).0;
    assert_eq!(status("POST /v1/keys", create(&["nonsense"], 1)), 400);
    assert_eq!(
        status("POST /v1/keys", Some(json!({ "name": "no scopes" }))),
        422
    );
    let unknown = "0000000000000000000000";
    assert_eq!(
        status(&format!("POST /v1/keys/{unknown}/revoke"), None),
        404
    );
    assert_eq!(
        status(&format!("POST /v1/keys/{unknown}/rotate"), None),
        404
    );
    let (misplaced, problem) = service.ask(&admin, &format!("GET /v1/keys?after={unknown}"), None);
    assert_eq!(misplaced, 400);
    let of = "urn:problem-type:keyward:position-of-another-kind";
    assert_eq!(problem["type"], of, "{problem}");
    assert_eq!(status("POST /v1/keys/short/revoke", None), 400);
    assert_eq!(listed(), 1);

    let bearer = format!("Bearer {admin}");
    let again = [
        ("authorization", bearer.as_str()),
        ("idempotency-key", "first"),
    ];
    let post = || service.ask_with(&again, "POST /v1/keys", create(&["reports:read"], 1));
    let (first, created) = post();
    let (second, problem) = post();
    assert_eq!((first, second), (201, 409), "{problem}");
    let id = created["id"].as_str().unwrap();
    assert!(
        problem["detail"].as_str().unwrap().contains(id),
        "{problem}"
    );
    assert_eq!(listed(), 2);
    let spaced = [
        ("authorization", bearer.as_str()),
        ("idempotency-key", "a b"),
    ];
    let refused = service.ask_with(&spaced, "POST /v1/keys", create(&["reports:read"], 1));
    assert_eq!(refused.0, 400, "{refused:?}");

    let (status, rotated) = service.ask(&admin, &format!("POST /v1/keys/{id}/rotate"), None);
    assert_eq!(status, 201, "{rotated}");
    let old = created["secret"].as_str().unwrap();
    assert_eq!(
        service.ask(old, "GET /v1/reports", None).0,
        401,
        "without a grace period, the old key ends immediately"
    );
    service.stop();
}

#[test]
fn a_page_goes_on_after_the_last_key_was_deleted() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let admin = service.admin_key();
    let made = || {
        service
            .ask(&admin, "POST /v1/keys", create(&["reports:read"], 1))
            .1
    };
    let ids: Vec<_> = (0..3)
        .map(|_| made()["id"].as_str().unwrap().to_owned())
        .collect();
    let page = |query: &str| {
        let (status, page) = service.ask(&admin, &format!("GET /v1/keys{query}"), None);
        assert_eq!(status, 200, "{page}");
        let listed = page["keys"].as_array().unwrap().iter();
        let listed: Vec<_> = listed
            .map(|key| key["id"].as_str().unwrap().to_owned())
            .collect();
        (listed, page["next"].as_str().map(str::to_owned))
    };
    let (first, next) = page("?limit=2");
    assert_eq!(first[1], ids[0], "after the admin key");
    let next = next.unwrap();
    delete_behind_the_service(folder.path(), &ids[0]);
    let (second, next) = page(&format!("?limit=1&after={next}"));
    assert_eq!(second, [ids[1].clone()]);
    let (third, next) = page(&format!("?limit=1&after={}", next.unwrap()));
    assert_eq!((third, next), (vec![ids[2].clone()], None));
    service.stop();
}

/// Deletes a key in another process, as an operator does.
fn delete_behind_the_service(folder: &std::path::Path, id: &str) {
    let data = folder.join("data");
    pollster::block_on(async {
        let store = SqliteStore::open(data.join("keys.db")).await.unwrap();
        let peppers = PepperFile::open(data.join("pepper")).unwrap().ring();
        let keys = Keyward::builder(store, peppers).build().await.unwrap();
        let host = Actor::application(TenantId::new("acme").unwrap());
        let id: KeyId = id.parse().unwrap();
        keys.revoke(&host, id, Reason::Unused).await.unwrap();
        keys.delete(&host, id, DeleteKey::typed("made"))
            .await
            .unwrap();
    });
}

/// `Option<Json<_>>` would ignore these bodies: the grace would be lost, and the old key would end.
#[test]
fn a_body_without_its_content_type_is_refused_and_changes_nothing() {
    let folder = folder();
    let service = ServiceProcess::start(folder.path());
    let admin = service.admin_key();
    let (_, key) = service.ask(&admin, "POST /v1/keys", create(&["reports:read"], 1));
    let (id, secret) = (key["id"].as_str().unwrap(), key["secret"].as_str().unwrap());
    let post = |path: &str, body: &str, more: &str| {
        let length = format!("{CLOSE}{more}content-length: {}\r\n", body.len());
        let mut stream = service.connect();
        let request = head(path, &admin, &length) + body;
        stream.write_all(request.as_bytes()).unwrap();
        answer(&mut stream).0
    };
    let rotate = format!("/v1/keys/{id}/rotate");
    let revoke = format!("/v1/keys/{id}/revoke");
    let report = r#"{"title": "Q3"}"#;
    for (path, body) in [
        (rotate.as_str(), r#"{"grace_hours": 1}"#),
        (&revoke, r#"{"reason": "compromised"}"#),
        ("/v1/keys", r#"{"name": "x", "scopes": []}"#),
        ("/v1/reports", report),
    ] {
        assert_eq!(post(path, body, ""), 415, "{path}");
        assert_eq!(post(path, body, "content-type: text/plain\r\n"), 415);
    }
    assert_eq!(post(&revoke, r#"{"reason": "compromised"}"#, JSON), 422);
    assert_eq!(
        service.ask(secret, "GET /v1/reports", None),
        (200, json!([]))
    );
    assert_eq!(post(&rotate, r#"{"grace_hours": 1}"#, JSON), 201);
    assert_eq!(service.ask(secret, "GET /v1/reports", None).0, 200);
    assert_eq!(post(&revoke, "", ""), 200);
}

#[test]
fn a_service_killed_while_it_created_its_files_starts_again() {
    for left in ["keys.db", "pepper"] {
        let folder = folder();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).unwrap();
        match left {
            "keys.db" => drop(pollster::block_on(SqliteStore::open(data.join(left))).unwrap()),
            _ => drop(PepperFile::create(data.join(left)).unwrap()),
        }
        let service = ServiceProcess::start(folder.path());
        let admin = service.admin_key();
        assert_eq!(
            service.ask(&admin, "GET /v1/reports", None).0,
            200,
            "{left}"
        );
        service.stop();
    }
}

#[test]
fn a_lost_pepper_is_never_replaced_once_there_are_keys() {
    let folder = folder();
    ServiceProcess::start(folder.path()).stop();
    let pepper = folder.path().join("data/pepper");
    std::fs::remove_file(&pepper).unwrap();
    let failed = command(folder.path(), "127.0.0.1:0").output().unwrap();
    assert!(!failed.status.success());
    assert!(!pepper.exists());
}

#[test]
fn a_second_service_on_the_same_folder_refuses_what_the_first_revoked() {
    let folder = folder();
    let one = ServiceProcess::start(folder.path());
    let other = ServiceProcess::start(folder.path());
    assert!(other.lines_to_try().is_empty());
    let admin = one.admin_key();
    let (_, key) = one.ask(&admin, "POST /v1/keys", create(&["reports:read"], 1));
    let secret = key["secret"].as_str().unwrap();
    assert_eq!(other.ask(secret, "GET /v1/reports", None).0, 200, "at once");
    let id = key["id"].as_str().unwrap();
    assert_eq!(
        one.ask(&admin, &format!("POST /v1/keys/{id}/revoke"), None)
            .0,
        200
    );
    let refuses = |_| other.ask(secret, "GET /v1/reports", None).0 == 401;
    assert!((0..1_000_000).any(refuses));
    one.stop();
    other.stop();
}

#[test]
fn a_taken_port_does_not_waste_the_admin_key() {
    let folder = folder();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let failed = command(folder.path(), &address).output().unwrap();
    assert!(!failed.status.success());
    let service = ServiceProcess::start(folder.path());
    let admin = service.admin_key();
    assert_eq!(service.ask(&admin, "GET /v1/reports", None).0, 200);
    service.stop();
}

//! The whole life cycle of keys, with the most verbose logging. No log, output, debug text, error, record,
//! feed, audit entry or list contains a secret.

use std::num::NonZeroUsize;

use keyward::command::{BulkFilter, DeleteKey, ImportKey, LeakSource};
use keyward::key::Digest;
use keyward::store::{AuditQuery, KeyQuery, KeyStore};
use keyward::{Actor, Keyward, Need, Reason, Role, RotateKey, UpdateKey, days, hours};
use support::captured::Captured;
use support::*;

/// All output so far, and every secret that must not be in it.
#[derive(Default)]
struct Witness {
    said: String,
    secrets: Vec<String>,
}

impl Witness {
    fn hear(&mut self, what: impl std::fmt::Debug) {
        self.said += &format!("{what:?}\n{what:#?}\n");
    }

    fn hear_error(&mut self, error: &(dyn std::error::Error + 'static)) {
        let mut cause = Some(error);
        while let Some(error) = cause {
            self.said += &format!("{error}\n{error:?}\n");
            cause = error.source();
        }
    }

    fn keep(&mut self, secret: &str) {
        self.secrets.push(secret.to_owned());
    }
}

fn live_through_everything(world: &TestService, witness: &mut Witness) {
    let keys: &Keyward = &world.keys;
    let alice: Actor = admin();
    let hear = |witness: &mut Witness, result: Result<String, keyward::CommandError>| match result {
        Ok(said) => witness.hear(said),
        Err(error) => witness.hear_error(&error),
    };

    let created = world
        .create(&alice, reader("first").expires_in(days(90)))
        .unwrap();
    witness.hear(&created);
    witness.keep(created.secret.expose());
    let replaced = wait(keys.replace_lost(&alice, created.id)).unwrap();
    witness.hear(&replaced);
    witness.keep(replaced.secret.expose());
    for how in [
        RotateKey::on_first_use(hours(1)),
        RotateKey::grace(hours(1)),
    ] {
        match wait(keys.rotate(&alice, created.id, how)) {
            Ok(rotated) => {
                witness.hear(&rotated);
                witness.keep(rotated.secret.expose());
                witness.hear(keys.verify(rotated.secret.expose(), &reading()).unwrap());
            }
            Err(error) => witness.hear_error(&error),
        }
        wait(keys.run_maintenance()).unwrap();
    }
    let imported_token = "legacy-token-9f8e7d6c5b4a";
    witness.keep(imported_token);
    let import = ImportKey::sha256(Digest::sha256(imported_token), reader("imported"));
    witness.hear(&import);
    witness.hear(wait(keys.import(&alice, import)).unwrap());
    witness.hear(keys.verify(imported_token, &reading()).unwrap());

    let doomed = world.some_key();
    witness.keep(doomed.secret.expose());
    let wrong = with_other_secret(doomed.secret.expose());
    witness.keep(&wrong);
    for presented in [
        doomed.secret.expose(),
        &wrong,
        &doomed.secret.expose()[1..],
        "sk_live_x",
    ] {
        for need in [
            reading(),
            Need::scope("billing:write").unwrap(),
            Need::any().for_tenant(tenant("x")),
        ] {
            match keys.verify(presented, &need) {
                Ok(grant) => {
                    witness.hear(&grant);
                    witness.hear(grant.actor());
                    let info = wait(keys.key_for_grant(&grant)).unwrap();
                    witness.hear(&info);
                    witness.said += &serde_json::to_string(&info).unwrap();
                }
                Err(rejection) => {
                    witness.hear_error(&rejection);
                    witness.said += &rejection.public_message();
                }
            }
            if let Err(rejection) = wait(keys.verify_fresh(presented, &need)) {
                witness.hear_error(&rejection);
            }
        }
    }
    // A user pasted a secret into the field for a name.
    let pasted = format!("\u{7}{}", doomed.secret.expose());
    hear(
        witness,
        world
            .create(&alice, reader(&pasted))
            .map(|made| format!("{made:?}")),
    );
    let scoped = reader("x").scope(doomed.secret.expose());
    hear(
        witness,
        world.create(&alice, scoped).map(|made| format!("{made:?}")),
    );
    let typed = DeleteKey::typed(doomed.secret.expose());
    hear(
        witness,
        wait(keys.delete(&alice, doomed.id, typed)).map(|done| format!("{done:?}")),
    );

    let leaked = world.some_key();
    witness.keep(leaked.secret.expose());
    let source = LeakSource::new("a public repository").unwrap();
    witness.hear(wait(keys.report_leaked_token(leaked.secret.expose(), source)).unwrap());
    let update = UpdateKey::new().name("renamed").scopes(["reports:*"]);
    hear(
        witness,
        wait(keys.update(&alice, created.id, update)).map(|done| format!("{done:?}")),
    );
    let bob = actor("acme", "bob", Role::DEVELOPER);
    let bobs = world.create(&bob, reader("bob's")).unwrap();
    witness.keep(bobs.secret.expose());
    let removed = wait(keys.remove_owner(&alice, &tenant("acme"), who("bob")));
    witness.hear(removed.unwrap());
    let class = BulkFilter::all().class(class("publishable"));
    let many = wait(keys.revoke_many(&alice, &tenant("acme"), class, Reason::Unused));
    witness.hear(many.unwrap());
    let again = wait(keys.revoke(&alice, leaked.id, Reason::Lost.confirmed()));
    hear(witness, again.map(|done| format!("{done:?}")));
    witness.hear(wait(keys.close_tenant(&alice, &tenant("acme"))).unwrap());
}

fn look_everywhere(world: &TestService, witness: &mut Witness) {
    witness.hear(&world.keys);
    witness.hear(&world.store);
    let limit = NonZeroUsize::new(1000).unwrap();
    let scanned = wait(world.store.scan(None, limit)).unwrap();
    for change in &scanned.rows {
        if let keyward::store::Row::Key(record) = &change.row {
            witness.said += &String::from_utf8_lossy(&record.to_bytes());
        }
    }
    witness.hear(scanned);
    witness.hear(wait(world.store.list(&KeyQuery::all(at(START)))).unwrap());
    let audit = wait(
        world
            .store
            .audit(&AuditQuery::all().with(|query| query.limit = limit)),
    )
    .unwrap();
    for row in &audit.rows {
        witness.said += &String::from_utf8_lossy(&row.entry.to_bytes());
    }
    witness.hear(audit);
}

#[test]
fn trap_15_no_secret_is_in_any_output() {
    let captured = Captured::default();
    let log = captured.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || log.clone())
        .finish();
    let world = TestService::new();
    let mut witness = Witness::default();
    // The subscriber is set for all threads. Otherwise a thread without a subscriber could reach a call site
    // first and disable that call site for every thread.
    tracing::subscriber::set_global_default(subscriber).unwrap();
    live_through_everything(&world, &mut witness);
    look_everywhere(&world, &mut witness);
    let logged = String::from_utf8(captured.0.lock().unwrap().clone()).unwrap();
    assert!(
        logged.contains("committed"),
        "the log was captured: {logged}"
    );
    assert!(
        witness.secrets.len() >= 8 && witness.said.len() > 20_000,
        "the outputs and secrets were recorded"
    );

    for secret in &witness.secrets {
        // Searches for the second half of the token, so that part of a secret is found too.
        let middle = &secret[secret.len() / 2..secret.len() - 6];
        for (place, text) in [("a log", &logged), ("an output", &witness.said)] {
            let found = text.find(middle).map(|at| &text[at.saturating_sub(80)..at]);
            assert_eq!(found, None, "a secret is in {place}");
        }
    }
}

#[test]
fn the_witness_detects_a_secret_in_the_output() {
    let world = TestService::new();
    let created = world.some_key();
    let mut witness = Witness::default();
    witness.hear(created.secret.expose());
    let secret = created.secret.expose();
    assert!(
        witness
            .said
            .contains(&secret[secret.len() / 2..secret.len() - 6])
    );
}

//! The strategies of the conformance crate fit the policy that they are given, and a run that reaches nothing
//! fails.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};

use keyward::command::{CommandOutcome, Request};
use keyward::key::{ClassName, Environment};
use keyward::policy::{KeyClass, Policy, PolicySpec};
use keyward::token::TokenPrefix;
use keyward::{CreateKey, Denial, Role, ScopeSet, days, profiles};
use keyward_conformance::{Reached, strategies};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use support::*;

/// Runs `check` on values of `strategy`, which are the same in every run.
fn on_each<S: Strategy>(cases: u32, strategy: &S, check: impl Fn(S::Value)) {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
    let mut runner = TestRunner::new_with_rng(config, rng);
    let run = runner.run(strategy, |value| {
        check(value);
        Ok(())
    });
    run.unwrap();
}

/// Returns a policy whose only class has no default environment, a short maximum lifetime and a narrow ceiling.
/// Its keys need a purpose.
fn narrow() -> PolicySpec {
    let prefix = |text| TokenPrefix::new(text).unwrap();
    let ceiling = ScopeSet::parse(["orders:read", "orders:write"]).unwrap();
    let class = KeyClass::secret(prefix("a_"), ceiling, [Role::ADMIN]).with(|class| {
        let environments = [("blue", "blue_"), ("green", "green_")];
        let environments = environments.map(|(name, text)| (environment(name), prefix(text)));
        class.prefixes = BTreeMap::from(environments);
        class.lifetime.max = Some(days(2));
    });
    profiles::standard().with(|spec| {
        spec.name = "narrow".parse().unwrap();
        spec.default_class = "only".parse().unwrap();
        spec.classes = BTreeMap::from([(spec.default_class.clone(), class)]);
        spec.purpose_required = true;
    })
}

#[test]
fn a_generated_key_is_refused_only_at_the_cap_whatever_the_policy() {
    let created = Reached::new("a created key");
    let of_policy = |policy: Policy| {
        let keys = prop::collection::vec(strategies::new_keys(&policy), 1..4);
        (Just(policy), keys)
    };
    let narrow = Just(Policy::new(narrow()).unwrap());
    let policies = prop_oneof![3 => strategies::policies(), 1 => narrow];
    proptest!(|((policy, drafts) in policies.prop_flat_map(of_policy))| {
        let world = TestService::with_policies(policy);
        for draft in drafts {
            match world.create(&host(), draft) {
                Ok(_) => created.note(true),
                error => {
                    let denied = denied(error);
                    prop_assert!(matches!(denied, Denial::CapReached { .. }), "{}", denied);
                }
            }
        }
    });
}

#[test]
fn keys_of_every_class_and_environment_are_generated() {
    for spec in [profiles::amplitude_products(), profiles::guide(), narrow()] {
        let pairs = |(name, class): (&ClassName, &KeyClass)| {
            let environments = class.prefixes.keys().cloned();
            let name = name.clone();
            Vec::from_iter(environments.map(move |own| (name.clone(), own)))
        };
        let all: BTreeSet<(ClassName, Environment)> = spec.classes.iter().flat_map(pairs).collect();
        let policy = Policy::new(spec).unwrap();
        let world = TestService::with_policies(policy.clone());
        on_each(90, &strategies::new_keys(&policy), |draft| {
            world.create(&host(), draft).unwrap();
        });
        let found = listed(&world, &host());
        let found = found
            .iter()
            .map(|key| (key.class.clone(), key.environment.clone()));
        assert_eq!(BTreeSet::from_iter(found), all);
    }
}

#[test]
fn generated_commands_create_and_rotate_keys_of_the_policy() {
    let policy = Policy::new(profiles::guide()).unwrap();
    let world = TestService::with_policies(policy.clone());
    let key = world.create(&host(), purposeful("key")).unwrap().id;
    let (created, rotated) = (Reached::new("a created key"), Reached::new("a rotated key"));
    on_each(100, &strategies::commands(&policy, vec![key]), |command| {
        let id = world.keys.manager().command_id().unwrap();
        let request = Request::new(id, host(), tenant("acme"), command);
        let outcome = wait(world.keys.manager().execute(request)).map(|landed| landed.outcome);
        created.note(matches!(outcome, Ok(CommandOutcome::Issued { .. })));
        rotated.note(matches!(outcome, Ok(CommandOutcome::Rotated { .. })));
    });
}

fn purposeful(name: &str) -> CreateKey {
    reader(name).purpose("a test")
}

/// The classes of one policy lack the environments of another, so every command is refused.
#[test]
fn a_run_whose_keys_are_all_refused_fails() {
    let world = TestService::with_policy(narrow());
    let run = || {
        let created = Reached::new("a created key");
        on_each(64, &strategies::new_keys(&Policy::default()), |draft| {
            created.note(world.create(&host(), draft).is_ok());
        });
        assert_eq!(created.count(), 0);
    };
    let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
    assert_eq!(
        panic.downcast_ref::<String>().unwrap(),
        "none of 64 cases reached a created key: check that the generated values fit the policy"
    );
    let created = Reached::new("a created key");
    on_each(64, &strategies::new_keys(&Policy::default()), |_| {
        created.note(false)
    });
    created.note(true);
    assert_eq!(created.count(), 1);
}

//! Checks with two nodes on one store. Each kind of store has tests that call these functions.

use keyward::key::RotationReason;
use keyward::{
    Clock, Denial, Keyward, ManualClock, Need, Reason, Role, RotateKey, VerifyError, days, hours,
};

use crate::*;

/// A new key works immediately on the node that created it, even if the other node has just written the row
/// of the key's owner.
pub fn a_key_works_where_it_was_created(a: &Keyward, b: &Keyward) {
    wait(b.create(&admin(), reader("first"))).unwrap();
    let key = wait(a.create(&admin(), reader("second"))).unwrap();
    let verdict = a.verify(key.secret.expose(), &reading());
    assert!(verdict.is_ok(), "{verdict:?}");
}

/// A node counts the first use of a key locally. The node records the use with its next command on that key,
/// or when it deregisters. If no node records the use, a compromised predecessor ends at its deadline.
pub fn first_uses_are_not_lost(a: &Keyward, b: &Keyward, clock: &ManualClock) {
    let how = || {
        let how = RotateKey::on_first_use(hours(1)).no_later_than(hours(24));
        how.because(RotationReason::Compromise)
    };
    let end_of = |key| wait(a.key(&host(), key)).unwrap().expires_at;
    let rotated = |name: &str| {
        let old = wait(a.create(&admin(), reader(name))).unwrap();
        let new = wait(a.rotate(&admin(), old.id, how())).unwrap();
        wait(b.sync()).unwrap();
        (old, new)
    };
    let now = || keyward::Clock::now(clock);

    let (old, new) = rotated("ended by the node that counted");
    b.verify(new.secret.expose(), &Need::any()).unwrap();
    wait(b.revoke(&admin(), new.id, Reason::Lost)).unwrap();
    assert_eq!(end_of(old.id), Some(now().saturating_add(hours(1))));

    let (old, new) = rotated("ended by the other node");
    b.verify(new.secret.expose(), &Need::any()).unwrap();
    wait(a.revoke(&admin(), new.id, Reason::Lost)).unwrap();
    assert_eq!(end_of(old.id), Some(now().saturating_add(hours(24))));

    let (old, new) = rotated("recorded at the end");
    b.verify(new.secret.expose(), &Need::any()).unwrap();
    wait(b.deregister()).unwrap();
    assert_eq!(end_of(old.id), Some(now().saturating_add(hours(1))));
}

/// A node, together with the clock that it reads.
type Node<'a> = (&'a Keyward, &'a ManualClock);

const YEARS: std::time::Duration = std::time::Duration::from_secs(10 * 365 * 24 * 60 * 60);

/// A wrong clock affects only one tenant. Node `b`, whose clock is ten years ahead, commits in the tenant
/// `globex`. The function `again` starts another node with the correct clock.
pub fn a_clock_ten_years_ahead_decides_for_its_own_tenant_alone(
    (a, right): Node<'_>,
    (b, wrong): Node<'_>,
    again: &dyn Fn() -> Keyward,
) {
    let globex = || actor("globex", "gina", Role::ADMIN);
    let ninety_days = |name| reader(name).expires_in(days(90));
    let create = |keys: &Keyward, by: &keyward::Actor, key| wait(keys.create(by, key)).unwrap();
    let old = create(a, &admin(), ninety_days("old"));
    let compromised = create(a, &admin(), ninety_days("compromised"));
    let theirs = create(a, &globex(), ninety_days("theirs"));
    let lasting = create(a, &globex(), reader("lasting").never_expires());
    wait(b.sync()).unwrap();
    wrong.set_wall(wrong.now().saturating_add(YEARS));
    create(b, &globex(), reader("from the future"));
    wait(a.sync()).unwrap();

    let restarted = again();
    for keys in [a, &restarted] {
        let verify = |key: &keyward::command::Created| keys.verify(key.secret.expose(), &reading());
        verify(&old).unwrap();
        let new = create(keys, &admin(), ninety_days("new"));
        assert_eq!(new.expires_at, Some(right.now().saturating_add(days(90))));
        // In `globex`, the times of the two nodes contradict each other. A node cannot know which clock is
        // wrong, so it refuses a key that expires.
        let unsure = verify(&theirs).unwrap_err();
        assert!(
            matches!(unsure, VerifyError::ClockUnsure { .. }),
            "{unsure}"
        );
        verify(&lasting).unwrap();
        let created = denied(wait(keys.create(&globex(), reader("new"))));
        assert!(matches!(created, Denial::TenantAhead { .. }), "{created}");
        let ahead: Vec<_> = keys
            .tenants_ahead()
            .into_iter()
            .map(|(own, _)| own)
            .collect();
        assert_eq!(ahead, [tenant("globex")]);
    }
    let how = RotateKey::grace(hours(1)).because(RotationReason::Compromise);
    wait(a.rotate(&admin(), compromised.id, how)).unwrap();
    right.advance(hours(1));
    wait(a.sync()).unwrap();
    let ended = a
        .verify(compromised.secret.expose(), &reading())
        .unwrap_err();
    assert!(matches!(ended, VerifyError::Expired { .. }), "{ended}");
    // A command that only takes away access, such as a revocation, is allowed even if the clocks contradict
    // each other.
    wait(a.revoke(&globex(), lasting.id, Reason::Lost)).unwrap();
    let ended = a.verify(lasting.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(ended, VerifyError::Revoked { .. }), "{ended}");
}

/// A repair sets back the time that a wrong clock has recorded for a tenant. The repair takes effect on the
/// node itself, on other nodes, and on nodes that start later.
pub fn the_time_of_a_tenant_is_repaired(
    (a, right): Node<'_>,
    (b, wrong): Node<'_>,
    again: &dyn Fn() -> Keyward,
) {
    let globex = || actor("globex", "gina", Role::ADMIN);
    let create = |keys: &Keyward, key| wait(keys.create(&globex(), key)).unwrap();
    let key = create(a, reader("key").expires_in(days(90)));
    wait(b.sync()).unwrap();
    wrong.set_wall(wrong.now().saturating_add(YEARS));
    let future = create(b, reader("from the future"));
    wait(a.sync()).unwrap();
    let (place, host) = (tenant("globex"), || {
        keyward::Actor::application(tenant("globex"))
    });
    let repaired = wait(a.repair_time(&host(), &place)).unwrap();
    assert_eq!(repaired.set_back, Some((wrong.now(), right.now())));
    wrong.set_wall(right.now());
    wait(b.sync()).unwrap();
    right.advance(std::time::Duration::from_secs(1));
    let later = again();
    for keys in [a, &later] {
        keys.verify(key.secret.expose(), &reading()).unwrap();
        let new = create(keys, reader("new").expires_in(days(90)));
        assert_eq!(new.expires_at, Some(right.now().saturating_add(days(90))));
        assert_eq!(keys.tenants_ahead(), []);
        let again = wait(keys.repair_time(&host(), &place)).unwrap();
        assert_eq!(again.set_back, None);
    }
    // The audit trail is still one valid chain, although the recorded times went back.
    let head = wait(a.verify_audit(&host(), &place, None)).unwrap();
    assert!(head.sequence > 0);
    // The key that was created with the wrong clock keeps its creation time in the future, so that an
    // operator can find it.
    let future = wait(a.key(&host(), future.id)).unwrap();
    assert_eq!(
        future.created.at,
        right
            .now()
            .saturating_add(YEARS)
            .saturating_sub(std::time::Duration::from_secs(1))
    );
    right.advance(days(91));
    wait(a.sync()).unwrap();
    let ended = a.verify(key.secret.expose(), &reading()).unwrap_err();
    assert!(matches!(ended, VerifyError::Expired { .. }), "{ended}");
}

//! What two nodes owe each other, whatever store they share.

use keyward::{Keyward, ManualClock, Need, Reason, Replacement, RotationReason, hours};

use crate::support::*;

/// A key works on the node that created it, though the other one wrote its owner's row a moment before.
pub(crate) fn a_key_works_where_it_was_created(a: &Keyward, b: &Keyward) {
    wait(b.create(&admin(), reader("first"))).unwrap();
    let key = wait(a.create(&admin(), reader("second"))).unwrap();
    let verdict = a.verify(key.secret.expose(), &reading());
    assert!(verdict.is_ok(), "{verdict:?}");
}

/// A first use is recorded by the node that counted it: along with its own command about the key, or when it
/// leaves. A compromised key ends in any case.
pub(crate) fn first_uses_are_not_lost(a: &Keyward, b: &Keyward, clock: &ManualClock) {
    let how = || {
        let how = Replacement::on_first_use(hours(1)).no_later_than(hours(24));
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
    wait(b.leave()).unwrap();
    assert_eq!(end_of(old.id), Some(now().saturating_add(hours(1))));
}

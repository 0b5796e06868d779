//! Clauses of `wait_past`. Waiting is a hint, and must do no harm.

use super::Violation;
use super::fixtures::{Desk, Running, STEPS, key};
use keyward::store::KeyStore;

/// A working store does not fail a wait. Waiting is a hint: it may never resolve, or resolve
/// without a change. Nothing else depends on it, so no other behaviour is required.
pub async fn waiting_does_not_fail<S: KeyStore>(make: &impl Fn() -> S) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "waiting_does_not_fail");
    let before = desk.head().await?;
    let batch = desk.batch("acme").put(key(1));
    let revision = desk.land(batch).await?;
    let head = desk.head().await?;
    for cursor in [before, head] {
        let mut waiting = Running::new(desk.store.wait_past(cursor));
        // One poll only: a future that waits for a commit would never resolve.
        waiting.steps(1).await;
        if let Some(Err(error)) = waiting.output() {
            return Err(desk.fail(format!("waiting past {cursor:?} failed: {error}")));
        }
    }
    let page = desk.changes(before, 1).await?;
    desk.same(
        "head after waits that were dropped",
        page.head.revision,
        revision,
    )
}

/// A pending wait blocks no commit and no read. The wait may be dropped or resumed afterwards.
pub async fn waiting_holds_up_no_commit<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), Violation> {
    let mut desk = Desk::new(make, "waiting_holds_up_no_commit");
    let head = desk.head().await?;
    let first = desk.batch("acme").put(key(1));
    let second = desk.batch("globex").put(key(2));
    let (landed, later) = {
        let mut waiting = Running::new(desk.store.wait_past(head));
        waiting.steps(1).await;
        let landed = waiting
            .let_pass(desk.store.commit(first.commit.clone()))
            .await;
        waiting.let_pass(desk.changes(head, STEPS)).await?;
        waiting.steps(1).await;
        let later = waiting
            .let_pass(desk.store.commit(second.commit.clone()))
            .await;
        if let Some(Err(error)) = waiting.output() {
            return Err(desk.fail(format!("waiting failed: {error}")));
        }
        (landed, later)
    };
    for (batch, answer) in [(first, landed), (second, later)] {
        match answer {
            Ok(revision) => desk.landed(&batch, revision),
            Err(error) => {
                return Err(desk.fail(format!("a commit failed beside a wait: {error}")));
            }
        }
    }
    desk.agrees("after commits beside a wait").await
}

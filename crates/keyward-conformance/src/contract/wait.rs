//! Clauses of `wait_past`. Nodes use it only as a hint, so it may return early or never, but it must not
//! block other calls.

use super::ClauseViolation;
use super::fixtures::{PolledFuture, STEPS, StoreFixture, key};
use keyward::store::KeyStore;

/// `wait_past` returns no error while the store works. The call may stay pending forever, or return although
/// nothing has changed.
pub async fn waiting_does_not_fail<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "waiting_does_not_fail");
    let before = fixture.head().await?;
    let batch = fixture.batch("acme").put(key(1));
    let revision = fixture.commit(batch).await?;
    let head = fixture.head().await?;
    for cursor in [before, head] {
        let mut waiting = PolledFuture::new(fixture.store.wait_past(cursor));
        // Poll only once: `wait_past` may stay pending until the next commit, and this check makes no other
        // commit.
        waiting.steps(1).await;
        if let Some(Err(error)) = waiting.output() {
            return Err(fixture.fail(format!("waiting past {cursor:?} failed: {error}")));
        }
    }
    let page = fixture.changes(before, 1).await?;
    fixture.same(
        "head after waits that were dropped",
        page.head.revision,
        revision,
    )
}

/// A pending call of `wait_past` blocks neither commits nor reads. The caller may drop the pending call, or
/// continue to poll it afterwards.
pub async fn waiting_holds_up_no_commit<S: KeyStore>(
    make: &impl Fn() -> S,
) -> Result<(), ClauseViolation> {
    let mut fixture = StoreFixture::new(make, "waiting_holds_up_no_commit");
    let head = fixture.head().await?;
    let first = fixture.batch("acme").put(key(1));
    let second = fixture.batch("globex").put(key(2));
    let (landed, later) = {
        let mut waiting = PolledFuture::new(fixture.store.wait_past(head));
        waiting.steps(1).await;
        let landed = waiting
            .let_pass(fixture.store.commit(first.commit.clone()))
            .await;
        waiting.let_pass(fixture.changes(head, STEPS)).await?;
        waiting.steps(1).await;
        let later = waiting
            .let_pass(fixture.store.commit(second.commit.clone()))
            .await;
        if let Some(Err(error)) = waiting.output() {
            return Err(fixture.fail(format!("waiting failed: {error}")));
        }
        (landed, later)
    };
    for (batch, answer) in [(first, landed), (second, later)] {
        match answer {
            Ok(revision) => fixture.record_commit(&batch, revision),
            Err(error) => {
                return Err(fixture.fail(format!("a commit failed during a wait: {error}")));
            }
        }
    }
    fixture.check_contents("after commits during a wait").await
}

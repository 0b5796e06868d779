//! The outcome under which a request is counted. All layers and extractors that see a request share it, so
//! that the request counts once.

use std::sync::{Arc, Mutex, PoisonError};

use http::request::Parts;

use crate::observe;

const ACCEPTED: &str = "accepted";
const ANONYMOUS: &str = "anonymous";

/// The outcome of a request so far. The outermost layer inserts it into the request's extensions.
#[derive(Clone, Debug, Default)]
struct RequestOutcome(Arc<Mutex<Option<&'static str>>>);

impl RequestOutcome {
    fn change(&self, next: impl FnOnce(Option<&'static str>) -> &'static str) {
        let mut outcome = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *outcome = Some(next(*outcome));
    }
}

/// Counts a request on drop, under the last outcome that was recorded. A request without an outcome does not
/// count: its client went away before a verdict.
///
/// The outermost layer holds this value until the response begins, or until the request is cancelled.
#[derive(Debug)]
pub(super) struct CountOnDrop(RequestOutcome);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        let outcome = *self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(outcome) = outcome {
            observe::http_request(outcome);
        }
    }
}

/// Begins to observe a request. `None` if a layer around this one counts the request.
pub(super) fn begin(request: &mut Parts) -> Option<CountOnDrop> {
    if request.extensions.get::<RequestOutcome>().is_some() {
        return None;
    }
    let outcome = RequestOutcome::default();
    request.extensions.insert(outcome.clone());
    Some(CountOnDrop(outcome))
}

/// Records that a layer or an extractor refused the request. Counts immediately if no tower layer observes the
/// request.
pub(super) fn refused(request: &Parts, outcome: &'static str) {
    match request.extensions.get::<RequestOutcome>() {
        Some(recorded) => recorded.change(|_| outcome),
        None => observe::http_request(outcome),
    }
}

/// Records that a layer accepted the request's key. With `again`, a layer around this one accepted the same
/// key.
pub(super) fn accepted(request: &Parts, again: bool) {
    match request.extensions.get::<RequestOutcome>() {
        Some(recorded) => recorded.change(|_| ACCEPTED),
        None if again => {}
        None => observe::http_request(ACCEPTED),
    }
}

/// Records that a layer forwarded the request without a key.
pub(super) fn anonymous(request: &Parts) {
    match request.extensions.get::<RequestOutcome>() {
        Some(recorded) => recorded.change(|before| before.unwrap_or(ANONYMOUS)),
        None => observe::http_request(ANONYMOUS),
    }
}

/// Records that an extractor accepted the key. This revokes the refusal of an earlier extractor: a handler may
/// try one scope, and then another.
#[cfg(feature = "axum")]
pub(super) fn extracted(request: &Parts) {
    if let Some(recorded) = request.extensions.get::<RequestOutcome>() {
        recorded.change(|_| ACCEPTED);
    }
}

//! The context of a request: what the layers around one service and the extractors behind them share.
//!
//! They share one outcome, so that the request counts once.

use std::cell::RefCell;
use std::iter;
use std::ptr;
use std::sync::{Arc, Mutex, PoisonError};

use http::Extensions;

use super::settings::Settings;
use crate::core::id::KeyId;
use crate::core::tenant::TenantId;
use crate::observe;
use crate::verifier::Grant;

const ACCEPTED: &str = "accepted";
const ANONYMOUS: &str = "anonymous";

/// The context that a layer gives to a request when it forwards the request.
///
/// The grant holds the context, because every further extension costs an allocation. A request without a
/// grant has the context as an extension of its own.
#[derive(Default)]
pub(super) struct RequestContext {
    /// The settings of the layer. An extractor uses them to answer a refused request as the layer would.
    /// `None` only in a spare context.
    pub(super) settings: Option<Arc<Settings>>,
    /// The key that the layer has accepted. `None` if the request has no key.
    accepted: Option<AcceptedKey>,
    /// The context from the layer around this one.
    outer: Option<Arc<Self>>,
    /// The outcome so far. `None` if the request does not count by this context.
    outcome: Option<Mutex<&'static str>>,
}

/// An accepted key, with the tenant of the request.
pub(super) struct AcceptedKey {
    pub(super) key: KeyId,
    pub(super) tenant: Option<TenantId>,
}

/// The context of a request without a grant.
#[derive(Clone)]
struct WithoutGrant(Arc<RequestContext>);

impl RequestContext {
    /// Returns the context of a request. `None` if no layer has forwarded the request.
    pub(super) fn of(extensions: &Extensions) -> Option<&Self> {
        let granted = extensions.get::<Grant>().and_then(Grant::attached);
        let granted = granted.and_then(|context| context.downcast_ref());
        granted.or_else(|| Some(&*extensions.get::<WithoutGrant>()?.0))
    }

    /// Removes the grant of a layer around this one from the extensions. Its context stays.
    pub(super) fn keep_without_grant(extensions: &mut Extensions) {
        if let Some(grant) = extensions.remove::<Grant>()
            && let Some(context) = grant.attached()
            && let Ok(context) = context.clone().downcast()
        {
            extensions.insert(WithoutGrant(context));
        }
    }

    /// Returns this context and those of the layers around, from the inside out.
    fn and_outer(&self) -> impl Iterator<Item = &Self> {
        iter::successors(Some(self), |context| context.outer.as_deref())
    }

    /// Returns the keys that a layer with the verifier of `settings` has accepted for this request, each with
    /// the settings of that layer.
    pub(super) fn accepted(
        &self,
        settings: &Settings,
    ) -> impl Iterator<Item = (&AcceptedKey, &Settings)> {
        let verifier = settings.keys.verifier();
        self.and_outer()
            .filter_map(|context| Some((context.accepted.as_ref()?, context.settings.as_deref()?)))
            .filter(move |(_, own)| ptr::eq(own.keys.verifier(), verifier))
    }

    /// Returns the ids of these keys.
    pub(super) fn accepted_keys(&self, settings: &Settings) -> Vec<KeyId> {
        self.accepted(settings).map(|(own, _)| own.key).collect()
    }

    /// Returns the outcome under which the request counts. `None` if no tower layer observes the request.
    fn outcome(&self) -> Option<&Mutex<&'static str>> {
        self.and_outer()
            .find_map(|context| context.outcome.as_ref())
    }
}

fn record(outcome: &Mutex<&'static str>, next: &'static str) {
    *outcome.lock().unwrap_or_else(PoisonError::into_inner) = next;
}

/// Inserts the layer's context, and the grant if there is one, into the extensions of a request. The tenant is
/// that of the request.
///
/// With `observed`, the returned guard counts the request; `None` if a layer around this one counts it.
/// Without `observed`, the request counts immediately, unless a layer around this one has accepted the key.
pub(super) fn insert(
    extensions: &mut Extensions,
    settings: &Arc<Settings>,
    granted: Option<(Grant, Option<TenantId>)>,
    observed: bool,
) -> Option<CountOnDrop> {
    let (grant, accepted) = match granted {
        Some((grant, tenant)) => {
            let key = grant.key_id();
            (Some(grant), Some(AcceptedKey { key, tenant }))
        }
        None => (None, None),
    };
    let outer = extensions.remove::<WithoutGrant>().map(|outer| outer.0);
    let around = outer.as_deref();
    let first = accepted.as_ref().map_or(ANONYMOUS, |_| ACCEPTED);
    let shared = around.and_then(RequestContext::outcome);
    let counts = observed && shared.is_none();
    match (shared, &accepted) {
        (Some(shared), Some(_)) => record(shared, ACCEPTED),
        (None, own) if !counts => {
            let earlier = around.map_or_else(Vec::new, |around| around.accepted_keys(settings));
            let again = own.as_ref().is_some_and(|own| earlier.contains(&own.key));
            if !again {
                observe::http_request(first);
            }
        }
        _ => {}
    }
    let context = with_spare(RequestContext {
        settings: Some(settings.clone()),
        accepted,
        outer,
        outcome: counts.then(|| Mutex::new(first)),
    });
    let count = counts.then(|| CountOnDrop(Some(context.clone())));
    match grant {
        Some(mut grant) => {
            grant.attach(context);
            extensions.insert(grant);
        }
        None => {
            extensions.insert(WithoutGrant(context));
        }
    }
    count
}

/// Records that a layer or an extractor refused the request. Counts immediately if no tower layer observes the
/// request.
pub(super) fn refused(extensions: &Extensions, next: &'static str) {
    match RequestContext::of(extensions).and_then(RequestContext::outcome) {
        Some(outcome) => record(outcome, next),
        None => observe::http_request(next),
    }
}

/// Records that an extractor accepted the key. This revokes the refusal of an earlier extractor: a handler may
/// try one scope, and then another.
#[cfg(feature = "axum")]
pub(super) fn extracted(extensions: &Extensions) {
    if let Some(outcome) = RequestContext::of(extensions).and_then(RequestContext::outcome) {
        record(outcome, ACCEPTED);
    }
}

/// Counts a request on drop, under the last outcome that was recorded.
///
/// The outermost layer holds this value until the response begins, or until the request is cancelled.
pub(super) struct CountOnDrop(Option<Arc<RequestContext>>);

impl Drop for CountOnDrop {
    fn drop(&mut self) {
        let Some(mut context) = self.0.take() else {
            return;
        };
        // Nothing else refers to the context if the service has dropped the request. Then no lock is needed.
        let Some(own) = Arc::get_mut(&mut context) else {
            if let Some(outcome) = &context.outcome {
                observe::http_request(*outcome.lock().unwrap_or_else(PoisonError::into_inner));
            }
            return;
        };
        if let Some(outcome) = &mut own.outcome {
            observe::http_request(outcome.get_mut().unwrap_or_else(PoisonError::into_inner));
        }
        *own = RequestContext::default();
        let _ = SPARE.try_with(|spare| {
            let mut spare = spare.borrow_mut();
            if spare.len() < MOST_SPARE {
                spare.push(context);
            }
        });
    }
}

/// The largest number of spare contexts of a thread: 64, less than 16 KiB.
const MOST_SPARE: usize = 64;

thread_local! {
    /// Contexts of requests that have ended. A later request on the same thread takes one instead of
    /// allocating.
    static SPARE: RefCell<Vec<Arc<RequestContext>>> = const { RefCell::new(Vec::new()) };
}

/// Moves a context into a spare allocation, or else into a new one.
fn with_spare(context: RequestContext) -> Arc<RequestContext> {
    let spare = SPARE.try_with(|spare| spare.borrow_mut().pop());
    if let Ok(Some(mut spare)) = spare
        && let Some(own) = Arc::get_mut(&mut spare)
    {
        *own = context;
        return spare;
    }
    Arc::new(context)
}

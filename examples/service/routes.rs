//! The routes, each with the scope that a request needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use keyward::policy::DEFAULT_STALENESS_BOUND;
use keyward::web::{KeywardLayer, RequiredScope, Scoped};
use keyward::{KeyId, Keyward, Need, Scope, TenantId};
use serde::{Deserialize, Serialize};

use crate::management;

const KEYS_MANAGE: Scope = Scope::from_static("keys:manage");

/// Returns all routes. Each requires a key, except `/health` and `/ready`.
pub(crate) fn router(keys: &Keyward) -> Router {
    let keyed = KeywardLayer::new(keys.clone());
    // Here the layer accepts any valid key, and each handler's signature requires a scope.
    let reports = Router::new()
        .route("/v1/reports", get(list).post(add))
        .with_state(Reports::default())
        .route_layer(keyed.clone());
    // For the management routes, the layer itself requires one scope.
    let managing = keyed.require(Need::from(KEYS_MANAGE));
    let management = management::router(keys).route_layer(managing);
    Router::new()
        .route("/health", get(health))
        .route("/ready", get(ready).with_state(keys.clone()))
        .merge(reports)
        .merge(management)
}

pub(crate) async fn health() -> &'static str {
    "up\n"
}

/// Responds 503 while requests with keys get 503, so that a load balancer sends them to other nodes.
/// `/health` stays 200 during that time: a restart would not help.
async fn ready(State(keys): State<Keyward>) -> (StatusCode, &'static str) {
    match keys.freshness().is_fresh_for(DEFAULT_STALENESS_BOUND) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "keys are stale\n"),
    }
}

/// The reports of all tenants, in memory.
#[derive(Clone, Default)]
struct Reports(Arc<Mutex<HashMap<TenantId, Vec<Report>>>>);

#[derive(Clone, Serialize)]
struct Report {
    title: String,
    /// The key of the request that added the report.
    key: KeyId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct NewReport {
    title: String,
}

struct ReportsRead;

impl RequiredScope for ReportsRead {
    const SCOPE: Scope = Scope::from_static("reports:read");
}

struct ReportsWrite;

impl RequiredScope for ReportsWrite {
    const SCOPE: Scope = Scope::from_static("reports:write");
}

/// Returns the reports of one tenant. The tenant comes from the key, never from the request.
async fn list(key: Scoped<ReportsRead>, State(reports): State<Reports>) -> Json<Vec<Report>> {
    let all = reports.0.lock().unwrap_or_else(PoisonError::into_inner);
    Json(all.get(key.tenant()).cloned().unwrap_or_default())
}

async fn add(
    key: Scoped<ReportsWrite>,
    State(reports): State<Reports>,
    Json(NewReport { title }): Json<NewReport>,
) -> (StatusCode, Json<Report>) {
    let key_id = key.key_id();
    let report = Report { title, key: key_id };
    let mut all = reports.0.lock().unwrap_or_else(PoisonError::into_inner);
    let own = all.entry(key.tenant().clone()).or_default();
    own.push(report.clone());
    (StatusCode::CREATED, Json(report))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use axum::body::Body;
    use axum::http::Request;
    use keyward::store::SqliteStore;
    use keyward::{Actor, CreateKey, ManualClock, PepperRing, Role, Timestamp};
    use tower::ServiceExt;

    use super::*;

    type TestResult = crate::Fallible<()>;

    async fn status(app: &Router, path: &str, key: &str) -> crate::Fallible<StatusCode> {
        let request = Request::get(path).header("x-api-key", key);
        let answer = app.clone().oneshot(request.body(Body::empty())?).await?;
        Ok(answer.status())
    }

    #[pollster::test]
    async fn a_node_is_ready_exactly_while_requests_with_keys_are_served() -> TestResult {
        let clock = Arc::new(ManualClock::at(Timestamp::UNIX_EPOCH));
        let folder = tempfile::tempdir()?;
        let store = SqliteStore::open(folder.path().join("keys.db")).await?;
        let builder = Keyward::builder(store, PepperRing::generate()?).clock(clock.clone());
        let keys = builder.build().await?;
        let alice = Actor::new("acme".try_into()?, "alice".try_into()?, Role::ADMIN);
        let key = CreateKey::new("reader").scope("reports:read");
        let created = keys.create(&alice, key).await?;
        let (app, key) = (router(&keys), created.secret.expose());

        let both = async || -> crate::Fallible<_> {
            let ready = status(&app, "/ready", key).await?;
            Ok((ready, status(&app, "/v1/reports", key).await?))
        };
        keys.sync().await?;
        clock.advance(DEFAULT_STALENESS_BOUND);
        assert_eq!(both().await?, (StatusCode::OK, StatusCode::OK));
        clock.advance(Duration::from_millis(1));
        let unavailable = StatusCode::SERVICE_UNAVAILABLE;
        assert_eq!(both().await?, (unavailable, unavailable));
        assert_eq!(status(&app, "/health", key).await?, StatusCode::OK);
        keys.sync().await?;
        assert_eq!(both().await?, (StatusCode::OK, StatusCode::OK));
        Ok(())
    }
}

//! The routes, each with the scope that a request needs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use keyward::http::{KeywardLayer, RequiredScope, Scoped};
use keyward::{KeyId, Keyward, Need, Scope, TenantId};
use serde::{Deserialize, Serialize};

use crate::management;

const KEYS_MANAGE: Scope = Scope::from_static("keys:manage");

/// Returns all routes. Each requires a key, except `/health`.
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
        .merge(reports)
        .merge(management)
}

pub(crate) async fn health() -> &'static str {
    "up\n"
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

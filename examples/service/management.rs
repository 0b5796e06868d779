//! Routes that manage keys: create, list, rotate, revoke.
//!
//! The actor is the request's key. It cannot create a key with more scopes or a later expiry than its own. A
//! key with fewer scopes than its owner's role does not act with that role, so it cannot create keys.

use std::num::NonZeroUsize;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request, State};
use axum::http::request::Parts;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use keyward::command::{CommandId, Invocation};
use keyward::store::KeyPosition;
use keyward::{
    Actor, CreateKey, Grant, KeyId, KeyInfo, Keyward, Reason, RotateKey, Timestamp, days, hours,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

type Answer<T> = Result<T, Failure>;

pub(crate) fn router(keys: &Keyward) -> Router {
    Router::new()
        .route("/v1/keys", get(list).post(create))
        .route("/v1/keys/{id}/rotate", post(rotate))
        .route("/v1/keys/{id}/revoke", post(revoke))
        .with_state(keys.clone())
}

/// The acting key, and the command id if the client chose one. A command repeated with the same
/// `Idempotency-Key` changes nothing.
struct Caller {
    actor: Actor,
    command_id: Option<CommandId>,
}

impl Caller {
    fn invocation(&self) -> Invocation<'_> {
        match &self.command_id {
            Some(id) => self.actor.with_command_id(id.clone()),
            None => Invocation::from(&self.actor),
        }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Response;

    async fn from_request_parts(request: &mut Parts, state: &S) -> Result<Self, Response> {
        let grant = <Grant as FromRequestParts<S>>::from_request_parts(request, state).await;
        let actor = grant.map_err(IntoResponse::into_response)?.actor();
        let named = request.headers.get("idempotency-key");
        let parse = |name: &[u8]| CommandId::new(String::from_utf8_lossy(name));
        let command_id = named.map(|name| parse(name.as_bytes())).transpose();
        match command_id {
            Ok(command_id) => Ok(Self { actor, command_id }),
            Err(invalid) => {
                Err(Failure::from(keyward::CommandError::from(invalid)).into_response())
            }
        }
    }
}

/// A JSON body that may be absent. A body without its content type is refused (415). `Option<Json<T>>` would
/// ignore that body and the settings in it.
struct Given<T>(T);

impl<T, S> FromRequest<S> for Given<T>
where
    T: Default + DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = Response;

    async fn from_request(request: Request, state: &S) -> Result<Self, Response> {
        let (head, body) = request.into_parts();
        let body = Bytes::from_request(Request::new(body), state).await;
        let body = body.map_err(IntoResponse::into_response)?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        let request = Request::from_parts(head, body.into());
        let given = Json::from_request(request, state).await;
        let Json(given) = given.map_err(IntoResponse::into_response)?;
        Ok(Self(given))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    name: String,
    scopes: Vec<String>,
    /// The lifetime in days. `None` selects the longest one that the policy and the caller's own key allow.
    expires_in_days: Option<u32>,
}

async fn create(
    State(keys): State<Keyward>,
    caller: Caller,
    Json(wanted): Json<Wanted>,
) -> Answer<Response> {
    let scopes = wanted.scopes.iter().map(String::as_str);
    let mut key = CreateKey::new(wanted.name).scopes(scopes);
    if let Some(lifetime) = wanted.expires_in_days {
        key = key.expires_in(days(lifetime));
    }
    let created = keys.create(caller.invocation(), key).await?;
    Ok(issued(&Issued {
        id: created.id,
        secret: created.secret.expose(),
        expires_at: created.expires_at,
        replaces: None,
    }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Page {
    /// The `next` of the previous page. Stays valid even if the keys of that page are deleted.
    after: Option<String>,
    /// The number of keys per page, at most 100.
    limit: Option<NonZeroUsize>,
}

#[derive(Serialize)]
struct Listed {
    keys: Vec<KeyInfo>,
    /// Keys whose stored bytes are damaged.
    corrupt: Vec<KeyId>,
    /// The value of `?after=` that returns the next page. `None` on the last page.
    next: Option<KeyPosition>,
}

async fn list(
    State(keys): State<Keyward>,
    Caller { actor, .. }: Caller,
    Query(Page { after, limit }): Query<Page>,
) -> Answer<Json<Listed>> {
    let mut query = keys.query(actor.tenant());
    query.after = after.as_deref().map(str::parse).transpose()?;
    query.limit = limit.map_or(query.limit, |limit| limit.min(query.limit));
    let page = keys.list(&actor, &query).await?;
    Ok(Json(Listed {
        keys: page.keys,
        corrupt: page.corrupt,
        next: page.next,
    }))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rotation {
    /// The number of hours for which the old key keeps working. `None` ends it immediately.
    grace_hours: Option<u32>,
}

async fn rotate(
    State(keys): State<Keyward>,
    caller: Caller,
    Path(id): Path<KeyId>,
    Given(Rotation { grace_hours }): Given<Rotation>,
) -> Answer<Response> {
    let how = match grace_hours {
        Some(grace) => RotateKey::grace(hours(grace)),
        None => RotateKey::immediate(),
    };
    let rotated = keys.rotate(caller.invocation(), id, how).await?;
    Ok(issued(&Issued {
        id: rotated.id,
        secret: rotated.secret.expose(),
        expires_at: rotated.expires_at,
        replaces: Some(Replaced {
            id: rotated.predecessor,
            works_until: rotated.until,
        }),
    }))
}

/// A revocation has no settings. A body with any is refused, because its sender expects an effect.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Revocation {}

#[derive(Serialize)]
struct Revoked {
    id: KeyId,
    /// The instant from which every process refuses the key. This process already refuses the key.
    refused_everywhere_by: Timestamp,
}

async fn revoke(
    State(keys): State<Keyward>,
    caller: Caller,
    Path(id): Path<KeyId>,
    Given(Revocation {}): Given<Revocation>,
) -> Answer<Json<Revoked>> {
    let receipt = keys
        .revoke(caller.invocation(), id, Reason::NoLongerNeeded)
        .await?;
    let refused_everywhere_by = receipt.no_later_than();
    Ok(Json(Revoked {
        id,
        refused_everywhere_by,
    }))
}

/// A new key. Its secret is shown only here.
#[derive(Serialize)]
struct Issued<'a> {
    id: KeyId,
    secret: &'a str,
    expires_at: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    replaces: Option<Replaced>,
}

#[derive(Serialize)]
struct Replaced {
    id: KeyId,
    works_until: Timestamp,
}

/// Returns a response that contains a secret. Its `no-store` header keeps caches from storing the secret.
fn issued(key: &Issued<'_>) -> Response {
    let kept = [(header::CACHE_CONTROL, "no-store")];
    (StatusCode::CREATED, kept, Json(key)).into_response()
}

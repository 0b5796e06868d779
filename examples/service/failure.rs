//! Responses to commands that failed.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use keyward::{CommandError, Denial};
use serde_json::json;

/// The cause of a failed command, sent as problem details (RFC 9457).
pub(crate) struct Failure(CommandError);

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        Self(error)
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = status(&self.0);
        let detail = match &self.0 {
            CommandError::Denied(denied) => denied.to_string(),
            // The command may or may not have committed. A retry with the same id applies it at most once.
            error => {
                tracing::error!(%error, "a change failed");
                "try again with the same Idempotency-Key".to_owned()
            }
        };
        let body = json!({
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": detail,
        });
        let mut answer = (status, body.to_string()).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(header::CONTENT_TYPE, problem);
        answer
    }
}

fn status(error: &CommandError) -> StatusCode {
    let CommandError::Denied(denied) = error else {
        return StatusCode::SERVICE_UNAVAILABLE;
    };
    match denied {
        Denial::Invalid(_)
        | Denial::UnknownClass { .. }
        | Denial::Environment { .. }
        | Denial::ScopeNotAllowed { .. }
        | Denial::Expiry { .. } => StatusCode::BAD_REQUEST,
        Denial::NotFound | Denial::TenantNotFound => StatusCode::NOT_FOUND,
        // The key that the client used became invalid during the request.
        Denial::ActingKey { .. } | Denial::ActorExpired => StatusCode::UNAUTHORIZED,
        Denial::Forbidden { .. }
        | Denial::SupportOnly { .. }
        | Denial::HostOnly { .. }
        | Denial::NotEntitled { .. }
        | Denial::ExceedsActor { .. }
        | Denial::RoleDrift { .. }
        | Denial::SelfRotation { .. }
        | Denial::TooManyMakers { .. } => StatusCode::FORBIDDEN,
        // A conflict with the current state: the cap is reached, the key is revoked, the command is already
        // applied.
        _ => StatusCode::CONFLICT,
    }
}

//! Responses to requests that failed.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use keyward::store::PositionError;
use keyward::{CommandError, ErrorKind, WithSources};
use serde_json::json;

/// The cause of a failed request, sent as problem details (RFC 9457).
pub(crate) struct Failure {
    code: &'static str,
    kind: ErrorKind,
    message: String,
}

impl From<CommandError> for Failure {
    fn from(error: CommandError) -> Self {
        let (code, kind) = (error.code(), error.kind());
        if let ErrorKind::Unavailable | ErrorKind::Internal = kind {
            tracing::error!(error = %WithSources(&error), code, "a change failed");
        }
        Self {
            code,
            kind,
            message: error.public_message(),
        }
    }
}

impl From<PositionError> for Failure {
    fn from(error: PositionError) -> Self {
        Self {
            code: error.code(),
            kind: error.kind(),
            message: error.public_message(),
        }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let Self {
            code,
            kind,
            message,
        } = self;
        let status = StatusCode::from_u16(kind.http_status());
        let status = status.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = json!({
            "type": format!("urn:problem-type:keyward:{code}"),
            "title": status.canonical_reason(),
            "status": status.as_u16(),
            "detail": message,
        });
        let mut answer = (status, body.to_string()).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        answer.headers_mut().insert(header::CONTENT_TYPE, problem);
        answer
    }
}

//! The layer as a middleware of actix-web: what to copy into a service.
//!
//! actix-web has the types of `http` 0.2, and the layer those of `http` 1. Names and bytes are the same in
//! both, and are copied.

use std::convert::Infallible;

use actix_web::body::{EitherBody, MessageBody, SizedStream};
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::error::{ErrorBadRequest, HttpError};
use actix_web::http::StatusCode;
use actix_web::http::header::{HeaderValue, VARY};
use actix_web::middleware::Next;
use actix_web::{Error, HttpMessage, HttpResponse, web};
use futures_util::stream;
use http::request::{Parts, Request};
use keyward::http::{KeywardLayer, PeerAddr};

/// Lets only requests with a fitting key through, which then have the grant in their extensions.
///
/// To be wrapped around a resource or a scope:
/// `.wrap(from_fn(move |request, next| keyed(layer.clone(), request, next)))`.
pub(crate) async fn keyed<B: MessageBody>(
    layer: KeywardLayer,
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let mut parts = parts(&request).map_err(ErrorBadRequest)?;
    match layer.authenticate(&mut parts).await {
        Ok(grant) => {
            // None where the layer lets requests without a key through.
            if let Some(grant) = grant {
                request.extensions_mut().insert(grant);
            }
            let mut response = next.call(request).await?;
            if let Some(vary) = layer.vary() {
                let vary = HeaderValue::from_bytes(vary.as_bytes())?;
                response.headers_mut().append(VARY, vary);
            }
            Ok(response.map_into_left_body())
        }
        Err(refusal) => {
            let answer = answer(layer.respond(&refusal, &parts))?;
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}

/// What the layer looks at: all of a request but its body.
fn parts(request: &ServiceRequest) -> Result<Parts, http::Error> {
    let mut copy = Request::builder()
        .method(request.method().as_str())
        .uri(request.uri().to_string());
    // Each value by itself: of two keys in one request, both have to be seen.
    for (name, value) in request.headers() {
        copy = copy.header(name.as_str(), value.as_bytes());
    }
    let (mut parts, ()) = copy.body(())?.into_parts();
    // The peer of the socket, never what headers say: `KeywardLayer::trust` is for proxies.
    if let Some(peer) = request.peer_addr() {
        parts.extensions.insert(PeerAddr(peer.ip()));
    }
    Ok(parts)
}

/// A refusal as actix-web has it.
fn answer(refusal: http::Response<web::Bytes>) -> Result<HttpResponse, HttpError> {
    let (head, body) = refusal.into_parts();
    let mut answer = HttpResponse::build(StatusCode::from_u16(head.status.as_u16())?);
    for (name, value) in &head.headers {
        answer.append_header((name.as_str(), value.as_bytes()));
    }
    // To HEAD it is told how long the body would be. actix-web tells the length of what it is given, and
    // sends nothing of it.
    let length = head.headers.get(http::header::CONTENT_LENGTH);
    match length.and_then(|length| length.to_str().ok()?.parse().ok()) {
        Some(length) if body.is_empty() => {
            let unsent = stream::empty::<Result<_, Infallible>>();
            Ok(answer.body(SizedStream::new(length, unsent)))
        }
        _ => Ok(answer.body(body)),
    }
}

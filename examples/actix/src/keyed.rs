//! The keyward layer as an actix-web middleware. Copy this file into a service.
//!
//! actix-web uses the types of `http` 0.2, and the layer uses those of `http` 1. Header names and values are
//! the same in both versions, so this module copies them.

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
use keyward::Grant;
use keyward::web::{KeywardLayer, PeerAddr};

/// Forwards a request only if the layer accepts it, and puts the key's grant into the request's extensions.
///
/// Wrap this function around a resource or a scope: `.wrap(from_fn(move |request, next| keyed(layer.clone(),
/// request, next)))`.
pub(crate) async fn keyed<B: MessageBody>(
    layer: KeywardLayer,
    mut request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<EitherBody<B>>, Error> {
    let mut parts = parts(&request).map_err(ErrorBadRequest)?;
    match layer.authenticate(&mut parts).await {
        Ok(grant) => {
            // A middleware around this one may have accepted another key.
            request.extensions_mut().remove::<Grant>();
            // `grant` is `None` if an optional layer forwards a request without a key.
            if let Some(grant) = grant {
                request.extensions_mut().insert(grant);
            }
            // The layer removes a key from the query. It also notes what it did, for a layer around the handler.
            request.head_mut().uri = parts.uri.to_string().parse().map_err(ErrorBadRequest)?;
            request
                .extensions_mut()
                .insert(LayerExtensions(parts.extensions));
            let mut response = next.call(request).await?;
            if let Some(vary) = layer.vary() {
                let vary = HeaderValue::from_bytes(vary.as_bytes())?;
                let headers = response.headers_mut();
                if !headers.get_all(VARY).any(|own| *own == vary) {
                    headers.append(VARY, vary);
                }
            }
            Ok(response.map_into_left_body())
        }
        Err(refusal) => {
            let answer = answer(layer.respond(&refusal, &parts))?;
            Ok(request.into_response(answer).map_into_right_body())
        }
    }
}

/// The extensions that an outer layer left, which an inner layer reads.
#[derive(Clone)]
struct LayerExtensions(http::Extensions);

/// Returns the parts of the request that the layer reads: everything except the body.
fn parts(request: &ServiceRequest) -> Result<Parts, http::Error> {
    let mut copy = Request::builder()
        .method(request.method().as_str())
        .uri(request.uri().to_string());
    // Copies every value of a header, because the layer refuses a request with two different keys and so must
    // see both.
    for (name, value) in request.headers() {
        copy = copy.header(name.as_str(), value.as_bytes());
    }
    let (mut parts, ()) = copy.body(())?.into_parts();
    if let Some(outer) = request.extensions().get::<LayerExtensions>() {
        parts.extensions = outer.0.clone();
    }
    // Passes on the address of the socket's peer, never an address from a header. Behind a proxy, set
    // `KeywardLayer::trusted_proxies`.
    if let Some(peer) = request.peer_addr() {
        parts.extensions.insert(PeerAddr(peer.ip()));
    }
    Ok(parts)
}

/// Converts a refusal into an actix-web response.
fn answer(refusal: http::Response<web::Bytes>) -> Result<HttpResponse, HttpError> {
    let (head, body) = refusal.into_parts();
    let mut answer = HttpResponse::build(StatusCode::from_u16(head.status.as_u16())?);
    for (name, value) in &head.headers {
        answer.append_header((name.as_str(), value.as_bytes()));
    }
    // A response to HEAD states the length of the body that GET would get. actix-web takes that length from
    // the body, and does not send the body.
    let length = head.headers.get(http::header::CONTENT_LENGTH);
    match length.and_then(|length| length.to_str().ok()?.parse().ok()) {
        Some(length) if body.is_empty() => {
            let unsent = stream::empty::<Result<_, Infallible>>();
            Ok(answer.body(SizedStream::new(length, unsent)))
        }
        _ => Ok(answer.body(body)),
    }
}

//! The tower service that [`KeywardLayer`](super::KeywardLayer) wraps around an inner service.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, HeaderValue};
use http::request::Parts;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::admission::{Admission, AdmissionResult, Forward, admit, decide, prepare};
use super::body::ResponseBody;
use super::context::CountOnDrop;
use super::refusal;
use super::settings::Settings;

/// A tower service that forwards a request only if its API key is accepted.
///
/// The service never reads the request body. If the local index contains the key, the key is verified
/// synchronously, without boxing a future. For any other key, the service reads the store.
#[derive(Clone, Debug)]
pub struct KeywardService<S> {
    settings: Arc<Settings>,
    inner: S,
}

impl<S> KeywardService<S> {
    pub(super) const fn new(settings: Arc<Settings>, inner: S) -> Self {
        Self { settings, inner }
    }

    /// Returns the inner service.
    pub const fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone> KeywardService<S> {
    /// Takes the inner service on which `poll_ready` succeeded, and leaves a fresh clone in its place. Only
    /// the taken service may be called: it holds what `poll_ready` reserved, such as a permit or a place in a
    /// queue.
    fn take_ready(&mut self) -> S {
        let fresh = self.inner.clone();
        mem::replace(&mut self.inner, fresh)
    }
}

impl<S, B, ResBody> Service<Request<B>> for KeywardService<S>
where
    S: Service<Request<B>, Response = Response<ResBody>> + Clone,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S, B>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> ResponseFuture<S, B> {
        if !self.settings.enabled {
            let state = ResponseState::Inner {
                future: self.inner.call(request),
                span: tracing::Span::none(),
                headers: CacheHeaders::default(),
                count: None,
            };
            return ResponseFuture { state };
        }
        let (mut parts, body) = request.into_parts();
        prepare(&self.settings, &mut parts);
        let state = match decide(&self.settings, &parts, false) {
            Admission::Done(verdict) => {
                let state = pass(&self.settings, verdict, (parts, body), &mut self.inner);
                if matches!(state, ResponseState::Refused { .. }) {
                    // The request is refused, so the inner service is not called. Drop the ready service,
                    // which releases its reservation.
                    drop(self.take_ready());
                }
                state
            }
            Admission::NeedsStore(pending) => {
                let settings = self.settings.clone();
                let verdict = async move { pending.verdict(&settings).await }.boxed();
                // Drop the ready service, which releases its reservation, while the store is read. Otherwise
                // requests with made-up keys could hold all reservations.
                drop(self.take_ready());
                let inner = self.inner.clone();
                let waiting = Some(Box::new((self.settings.clone(), inner, parts, body)));
                ResponseState::Verifying { verdict, waiting }
            }
        };
        ResponseFuture { state }
    }
}

/// Forwards an authorized request, and answers a refused one.
fn pass<S, B>(
    settings: &Arc<Settings>,
    verdict: AdmissionResult,
    (mut parts, body): (Parts, B),
    inner: &mut S,
) -> ResponseState<S, B>
where
    S: Service<Request<B>>,
{
    match admit(settings, verdict, &mut parts, true) {
        Ok(Forward {
            span,
            in_query,
            count,
        }) => {
            let request = Request::from_parts(parts, body);
            let future = span.in_scope(|| inner.call(request));
            let headers = CacheHeaders {
                vary: settings.vary.clone(),
                in_query,
            };
            ResponseState::Inner {
                future,
                span,
                headers,
                count,
            }
        }
        Err(refusal) => {
            let answer = Some(settings.respond(&refusal, &parts));
            ResponseState::Refused { answer }
        }
    }
}

pin_project! {
    /// The response of a [`KeywardService`].
    pub struct ResponseFuture<S, B>
    where
        S: Service<Request<B>>,
    {
        #[pin]
        state: ResponseState<S, B>,
    }
}

pin_project! {
    #[project = ResponseStateProjection]
    enum ResponseState<S, B>
    where
        S: Service<Request<B>>,
    {
        // The key is being verified with a read of the store. Until the verdict, the state holds the request,
        // and an inner service that is not ready.
        Verifying {
            verdict: BoxFuture<'static, AdmissionResult>,
            waiting: Option<Box<(Arc<Settings>, S, Parts, B)>>,
        },
        // The key was accepted. Waits until the inner service is ready. If that takes time, verifies again
        // before the call, because the key may have been revoked.
        Readying {
            waited: bool,
            waiting: Option<Box<(Arc<Settings>, S, AdmissionResult, Parts, B)>>,
        },
        Inner {
            #[pin]
            future: S::Future,
            span: tracing::Span,
            headers: CacheHeaders,
            // `None` if a layer around this one counts the request.
            count: Option<CountOnDrop>,
        },
        Refused {
            answer: Option<Response<Bytes>>,
        },
    }
}

impl<S, B, ResBody> Future for ResponseFuture<S, B>
where
    S: Service<Request<B>, Response = Response<ResBody>>,
{
    type Output = Result<Response<ResponseBody<ResBody>>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let next = match this.state.as_mut().project() {
                ResponseStateProjection::Verifying { verdict, waiting } => {
                    let verdict = ready!(verdict.poll_unpin(context));
                    let (settings, mut inner, parts, body) = *waiting
                        .take()
                        .expect("the request is taken once, by the poll that gets the verdict");
                    match verdict {
                        Ok(_) => ResponseState::Readying {
                            waited: false,
                            waiting: Some(Box::new((settings, inner, verdict, parts, body))),
                        },
                        Err(_) => pass(&settings, verdict, (parts, body), &mut inner),
                    }
                }
                ResponseStateProjection::Readying { waited, waiting } => {
                    let inner = waiting.as_mut().map(|waiting| &mut waiting.1);
                    let ready =
                        inner.map_or(Poll::Ready(Ok(())), |inner| inner.poll_ready(context));
                    *waited |= ready.is_pending();
                    ready!(ready)?;
                    let (settings, mut inner, verdict, parts, body) = *waiting
                        .take()
                        .expect("the request is taken once, when the inner service is ready");
                    match waited.then(|| decide(&settings, &parts, true)) {
                        None => pass(&settings, verdict, (parts, body), &mut inner),
                        Some(Admission::Done(verdict)) => {
                            pass(&settings, verdict, (parts, body), &mut inner)
                        }
                        // The inner service stays ready during this read: the client holds a valid key.
                        Some(Admission::NeedsStore(pending)) => {
                            let own = settings.clone();
                            let verdict = async move { pending.verdict(&own).await }.boxed();
                            let waiting = Some(Box::new((settings, inner, parts, body)));
                            ResponseState::Verifying { verdict, waiting }
                        }
                    }
                }
                ResponseStateProjection::Inner {
                    future,
                    span,
                    headers,
                    count,
                } => {
                    let polled = {
                        let _entered = span.enter();
                        future.poll(context)
                    };
                    let mut response = ready!(polled)?;
                    headers.add_to(&mut response);
                    drop(count.take());
                    let span = mem::replace(span, tracing::Span::none());
                    return Poll::Ready(Ok(response.map(|body| ResponseBody::inner(body, span))));
                }
                ResponseStateProjection::Refused { answer } => {
                    let answer = answer
                        .take()
                        .expect("a completed future is not polled again");
                    return Poll::Ready(Ok(answer.map(ResponseBody::refusal)));
                }
            };
            this.state.set(next);
        }
    }
}

/// The headers that stop a shared cache from serving one client's response to another client.
///
/// Without them, a shared cache protects only responses to requests with `Authorization` (RFC 9111,
/// section 3.5). If the key was in the query, the response must be `private` (RFC 6750, section 2.3).
#[derive(Default)]
struct CacheHeaders {
    vary: Option<HeaderValue>,
    in_query: bool,
}

impl CacheHeaders {
    fn add_to<B>(&mut self, response: &mut Response<B>) {
        let headers = response.headers_mut();
        if let Some(vary) = self.vary.take() {
            refusal::add_vary(headers, vary);
        }
        if self.in_query && !headers.contains_key(CACHE_CONTROL) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("private"));
        }
    }
}

impl<S, B> fmt::Debug for ResponseFuture<S, B>
where
    S: Service<Request<B>>,
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

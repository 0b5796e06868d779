//! The service that the layer makes of another.

use std::fmt;
use std::mem;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use http::header::{CACHE_CONTROL, HeaderValue, VARY};
use http::request::Parts;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use super::admission::{Admitted, Begun, Verdict};
use super::body::ResponseBody;
use super::layer::KeywardLayer;

/// A service that only requests with a fitting API key reach.
///
/// Of a request's body nothing is read here. A key that this node knows is verified without waiting
/// and without a box; the store is asked where it cannot tell.
#[derive(Clone, Debug)]
pub struct KeywardService<S> {
    layer: KeywardLayer,
    inner: S,
}

impl<S> KeywardService<S> {
    pub(super) const fn new(layer: KeywardLayer, inner: S) -> Self {
        Self { layer, inner }
    }

    /// The inner service.
    pub const fn inner(&self) -> &S {
        &self.inner
    }
}

impl<S: Clone> KeywardService<S> {
    /// The inner service that was made ready; a fresh one takes its place. What it holds for the call
    /// (a permit, a place in a queue) goes with it.
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
        let (parts, body) = request.into_parts();
        let state = match self.layer.begin(&parts) {
            Begun::Settled(verdict) => {
                let state = pass(&self.layer, verdict, (parts, body), &mut self.inner);
                if matches!(state, State::Refused { .. }) {
                    // It was made ready for a call that does not come.
                    drop(self.take_ready());
                }
                state
            }
            Begun::Asking(asking) => {
                let layer = self.layer.clone();
                let verdict = async move { asking.verdict(&layer).await }.boxed();
                let inner = self.take_ready();
                let waiting = Some((self.layer.clone(), inner, parts, body));
                State::Asking { verdict, waiting }
            }
        };
        ResponseFuture { state }
    }
}

/// Hands a request on if it passes, and answers it if not.
fn pass<S, B>(
    layer: &KeywardLayer,
    verdict: Verdict,
    (mut parts, body): (Parts, B),
    inner: &mut S,
) -> State<S, B>
where
    S: Service<Request<B>>,
{
    match layer.admit(verdict, &mut parts) {
        Ok(Admitted { span, in_query }) => {
            let request = Request::from_parts(parts, body);
            let future = span.in_scope(|| inner.call(request));
            let dress = Dress {
                vary: layer.vary().cloned(),
                in_query,
            };
            State::Inner {
                future,
                span,
                dress,
            }
        }
        Err(refusal) => {
            let answer = Some(layer.respond(&refusal, &parts));
            State::Refused { answer }
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
        state: State<S, B>,
    }
}

pin_project! {
    #[project = StateOf]
    enum State<S, B>
    where
        S: Service<Request<B>>,
    {
        // The store is asked, while the request and the service that was made ready wait.
        Asking {
            verdict: BoxFuture<'static, Verdict>,
            waiting: Option<(KeywardLayer, S, Parts, B)>,
        },
        Inner {
            #[pin]
            future: S::Future,
            span: tracing::Span,
            dress: Dress,
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
                StateOf::Asking { verdict, waiting } => {
                    let verdict = ready!(verdict.poll_unpin(context));
                    let (layer, mut inner, parts, body) =
                        waiting.take().expect("polled no more once it is ready");
                    pass(&layer, verdict, (parts, body), &mut inner)
                }
                StateOf::Inner {
                    future,
                    span,
                    dress,
                } => {
                    let _entered = span.enter();
                    let mut response = ready!(future.poll(context))?;
                    dress.put_on(&mut response);
                    return Poll::Ready(Ok(response.map(ResponseBody::inner)));
                }
                StateOf::Refused { answer } => {
                    let answer = answer.take().expect("polled no more once it is ready");
                    return Poll::Ready(Ok(answer.map(ResponseBody::refusal)));
                }
            };
            this.state.set(next);
        }
    }
}

/// Tells caches what the answer depends on: a shared one keeps what was asked for with
/// `Authorization` to itself, and knows nothing of other headers (RFC 9111, section 3.5). What was
/// asked for with a key in the query no shared cache may keep (RFC 6750, section 2.3).
struct Dress {
    vary: Option<HeaderValue>,
    in_query: bool,
}

impl Dress {
    fn put_on<B>(&mut self, response: &mut Response<B>) {
        let headers = response.headers_mut();
        if let Some(vary) = self.vary.take() {
            headers.append(VARY, vary);
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

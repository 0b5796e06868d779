//! The response body: the inner service's body, or the body of a refusal.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

pin_project! {
    /// The body of a response: the inner service's body, or the body of a refusal.
    #[derive(Debug)]
    pub struct ResponseBody<B> {
        #[pin]
        source: BodySource<B>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = BodySourceProjection]
    enum BodySource<B> {
        // The span of the request's key. The inner service's body is polled inside it.
        Inner { #[pin] body: B, span: tracing::Span },
        Refusal { body: Option<Bytes> },
    }
}

impl<B> ResponseBody<B> {
    pub(super) const fn inner(body: B, span: tracing::Span) -> Self {
        let source = BodySource::Inner { body, span };
        Self { source }
    }

    pub(super) fn refusal(body: Bytes) -> Self {
        let body = Some(body).filter(|body| !body.is_empty());
        let source = BodySource::Refusal { body };
        Self { source }
    }
}

/// Creates an empty body. `tower_http`'s `CorsLayer` requires this trait, because it answers a preflight with
/// a default body.
impl<B> Default for ResponseBody<B> {
    fn default() -> Self {
        Self::refusal(Bytes::new())
    }
}

impl<B> Body for ResponseBody<B>
where
    B: Body,
    B::Data: From<Bytes>,
{
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match self.project().source.project() {
            BodySourceProjection::Inner { body, span } => {
                let _entered = span.enter();
                body.poll_frame(context)
            }
            BodySourceProjection::Refusal { body } => {
                let all = body.take().map(|body| Ok(Frame::data(body.into())));
                Poll::Ready(all)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            BodySource::Inner { body, .. } => body.is_end_stream(),
            BodySource::Refusal { body } => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            BodySource::Inner { body, .. } => body.size_hint(),
            BodySource::Refusal { body } => {
                SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64))
            }
        }
    }
}

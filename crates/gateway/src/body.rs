//! The body of an answer that keeps something for as long as it is on its way.

use std::pin::Pin;
use std::task::{Context, Poll};

use actix_web::body::{BodySize, BoxBody, MessageBody};
use bytes::Bytes;

/// `body`, and `held` until it is dropped: with its last piece, or when nobody takes it any more.
pub(crate) fn holding(body: BoxBody, held: impl Unpin + 'static) -> BoxBody {
    BoxBody::new(Holding { body, _held: held })
}

struct Holding<T> {
    body: BoxBody,
    _held: T,
}

impl<T: Unpin> MessageBody for Holding<T> {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Pin::new(&mut self.body).poll_next(context)
    }
}

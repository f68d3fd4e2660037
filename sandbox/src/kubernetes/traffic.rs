//! How much is answered: bytes of bodies, as they are sent.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt as _;
use hyper::body::{Frame, SizeHint};

use super::lock;
use crate::http::Body;

/// By verb and resource.
#[derive(Debug, Default)]
pub(super) struct Traffic(Mutex<BTreeMap<(String, String), Arc<AtomicU64>>>);

struct Counted {
    body: Body,
    sent: Arc<AtomicU64>,
}

// === impl Traffic ===

impl Traffic {
    /// Counts what of the response is sent.
    pub(super) fn count(&self, verb: &str, resource: &str, response: Response<Body>) -> Response<Body> {
        let sent = lock(&self.0).entry((verb.to_owned(), resource.to_owned())).or_default().clone();
        response.map(|body| Counted { body, sent }.boxed())
    }

    pub(super) fn sent(&self) -> BTreeMap<(String, String), u64> {
        lock(&self.0).iter().map(|(of, sent)| (of.clone(), sent.load(Ordering::Relaxed))).collect()
    }
}

// === impl Counted ===

impl hyper::body::Body for Counted {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            self.sent.fetch_add(u64::try_from(data.len()).unwrap_or(u64::MAX), Ordering::Relaxed);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

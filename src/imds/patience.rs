//! A connection that is not waited for longer than its client may take.
//!
//! Owns the time limits of reading and writing, and the end of a connection. hyper's own limit begins when a connection is
//! idle, so it cannot tell one that rests from one that sends its request a byte at a time; for what a client does
//! not read it has none. Invariant: whatever is waited for here is waited for within a limit.

use std::{
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

use super::limits::Limits;
use crate::metrics::{Closed, Metrics};

/// How long and how much is read and thrown away before a connection is closed of which not all was read: a client
/// that still sends would lose the answer that says why.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 256 * 1024;

/// How far a connection is. The stream and whoever answers share it, in one task.
#[derive(Debug)]
pub(super) struct Progress {
    start: Instant,
    /// How many requests have come.
    requests: AtomicU64,
    /// A request is being answered.
    answering: AtomicBool,
    /// Bytes have come since the last request.
    unanswered: AtomicBool,
    /// The last request announced a body.
    body: AtomicBool,
    /// Milliseconds from the start to the last request.
    last: AtomicU64,
}

/// The stream of a connection.
pub(super) struct Patient<'a, S> {
    stream: S,
    progress: &'a Progress,
    metrics: &'a Metrics,
    request_timeout: Duration,
    idle_timeout: Duration,
    /// One for all that is waited for: there is only ever one thing.
    timer: Pin<Box<Sleep>>,
    /// What it is set for, and after how many requests.
    waiting_for: Option<(Closed, u64)>,
    /// What is written is not taken. The timer is for that then; hyper handles no further request before it is.
    blocked: bool,
    /// Bytes that may still come after our end; none before it.
    lingering: Option<usize>,
}

// === impl Progress ===

impl Progress {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            start: now,
            requests: AtomicU64::new(0),
            answering: AtomicBool::new(false),
            unanswered: AtomicBool::new(false),
            body: AtomicBool::new(false),
            last: AtomicU64::new(0),
        }
    }

    /// A request's head has come.
    pub(super) fn request(&self, now: Instant, body: bool) {
        self.requests.fetch_add(1, Relaxed);
        self.answering.store(true, Relaxed);
        self.unanswered.store(false, Relaxed);
        self.body.store(body, Relaxed);
        let last = now.saturating_duration_since(self.start).as_millis();
        self.last.store(u64::try_from(last).unwrap_or(u64::MAX), Relaxed);
    }

    /// Its answer is there, and with it all that was read of its body.
    pub(super) fn answered(&self) {
        self.answering.store(false, Relaxed);
        self.unanswered.store(false, Relaxed);
    }

    pub(super) fn has_begun(&self) -> bool {
        self.requests.load(Relaxed) > 0
    }

    pub(super) fn is_answering(&self) -> bool {
        self.answering.load(Relaxed)
    }

    /// Whether a part of a request has come that nobody answers yet.
    fn has_begun_to_come(&self) -> bool {
        self.unanswered.load(Relaxed) && !self.is_answering()
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed))
    }
}

// === impl Patient ===

impl<'a, S> Patient<'a, S> {
    pub(super) fn new(stream: S, progress: &'a Progress, limits: &Limits, metrics: &'a Metrics) -> Self {
        Self {
            stream,
            progress,
            metrics,
            request_timeout: limits.request_timeout,
            idle_timeout: limits.idle_timeout,
            timer: Box::pin(tokio::time::sleep(limits.idle_timeout)),
            waiting_for: None,
            blocked: false,
            lingering: None,
        }
    }

    /// Waits until the client is late.
    fn poll_late(&mut self, cx: &mut Context<'_>, why: Closed) -> Poll<io::Error> {
        // Rest is measured from the last request, to which the timer is set only once it has run off: to set it anew
        // for each request would cost each request.
        let since = if why == Closed::Idle { 0 } else { self.progress.requests.load(Relaxed) };
        if self.waiting_for != Some((why, since)) {
            self.waiting_for = Some((why, since));
            let limit = if why == Closed::Idle { self.idle_timeout } else { self.request_timeout };
            self.timer.as_mut().reset(Instant::now() + limit);
        }
        loop {
            ready!(self.timer.as_mut().poll(cx));
            let now = Instant::now();
            let due = match why {
                // An answer has a limit of its own, and rest begins with it.
                Closed::Idle if self.progress.is_answering() => now + self.idle_timeout,
                Closed::Idle => self.progress.last() + self.idle_timeout,
                _ => now,
            };
            if due <= now {
                self.metrics.closed(why);
                return Poll::Ready(io::ErrorKind::TimedOut.into());
            }
            self.timer.as_mut().reset(due);
        }
    }

    fn poll_written(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if written.is_pending() {
            self.blocked = true;
            return self.poll_late(cx, Closed::SlowReader).map(Err);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<'_, S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        if let Poll::Ready(read) = Pin::new(&mut this.stream).poll_read(cx, buffer) {
            if buffer.filled().len() > before {
                this.progress.unanswered.store(true, Relaxed);
            }
            return Poll::Ready(read);
        }
        if this.blocked {
            return Poll::Pending;
        }
        let late = if this.progress.has_begun_to_come() { Closed::SlowRequest } else { Closed::Idle };
        this.poll_late(cx, late).map(Err)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Patient<'_, S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(cx, buffer);
        this.poll_written(cx, written)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(cx, buffers);
        this.poll_written(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// Called once all is written.
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if std::mem::take(&mut this.blocked) {
            this.waiting_for = None;
        }
        Pin::new(&mut this.stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut left = match this.lingering {
            Some(left) => left,
            None => {
                ready!(Pin::new(&mut this.stream).poll_shutdown(cx))?;
                let all_read = !this.progress.unanswered.load(Relaxed) && !this.progress.body.load(Relaxed);
                if all_read {
                    return Poll::Ready(Ok(()));
                }
                this.timer.as_mut().reset(Instant::now() + LINGER);
                LINGER_BYTES
            }
        };
        let mut thrown_away = [0; 4096];
        while left > 0 {
            this.lingering = Some(left);
            let mut buffer = ReadBuf::new(&mut thrown_away);
            match Pin::new(&mut this.stream).poll_read(cx, &mut buffer) {
                Poll::Ready(Ok(())) if !buffer.filled().is_empty() => left = left.saturating_sub(buffer.filled().len()),
                Poll::Ready(_) => break,
                Poll::Pending => return this.timer.as_mut().poll(cx).map(Ok),
            }
        }
        Poll::Ready(Ok(()))
    }
}

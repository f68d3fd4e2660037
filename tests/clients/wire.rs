//! What a pod and the metadata service said to each other, as it went over the pod's own link.
//!
//! Frames are copied by the kernel as a packet capture gets them; nothing is in their way, and neither the client nor
//! the daemon can tell. They are put together again when all is over.

use std::{
    collections::{BTreeMap, HashMap},
    fmt, io,
    os::fd::{AsRawFd as _, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use nix::sys::{
    socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, setsockopt, socket,
        sockopt::{RcvBufForce, ReceiveTimeout},
    },
    time::{TimeVal, TimeValLike as _},
};
use sandbox::{network::METADATA_ADDRESS, sandbox::Pod};

/// How often a silent capture looks whether it is over.
const LOOK: i64 = 50;
/// Frames that wait for this process; more is lost than the test notices, so it is plenty.
const BUFFER: usize = 16 << 20;
/// Frames come as large as they were handed to the link.
const LARGEST_FRAME: usize = 1 << 17;

/// A capture that goes on.
pub(crate) struct Wire {
    over: Arc<AtomicBool>,
    reader: JoinHandle<Vec<Connection>>,
}

/// One connection to the metadata service.
struct Connection {
    opened: Duration,
    sent: Stream,
    received: Stream,
}

/// One direction of a connection.
#[derive(Default)]
struct Stream {
    next: u32,
    bytes: Vec<u8>,
    /// Up to which byte there was something by when.
    arrivals: Vec<(usize, Duration)>,
    early: BTreeMap<u32, (Vec<u8>, Duration)>,
}

/// A request, and what was answered.
#[derive(Clone, Debug)]
pub(crate) struct Exchange {
    pub(crate) method: String,
    pub(crate) path: String,
    /// Whether it brought a session token, as version 2 does.
    pub(crate) token: bool,
    pub(crate) user_agent: Option<String>,
    /// `None`: the connection ended without an answer.
    pub(crate) status: Option<u16>,
    /// When it was asked, counted from the start of the capture.
    pub(crate) asked: Duration,
    pub(crate) answered: Option<Duration>,
}

/// All that was said.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) connections: usize,
    /// When the first connection was opened, counted from the start of the capture.
    pub(crate) contact: Option<Duration>,
    /// In the order in which they were asked.
    pub(crate) exchanges: Vec<Exchange>,
}

impl Wire {
    /// Captures from now on; `contact` is run when the pod first turns to the metadata service.
    pub(crate) fn tap(pod: &Pod, contact: impl FnOnce() + Send + 'static) -> Self {
        let open = || socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll);
        let socket = pod.network().enter(open).unwrap().unwrap();
        setsockopt(&socket, RcvBufForce, &BUFFER).unwrap();
        setsockopt(&socket, ReceiveTimeout, &TimeVal::milliseconds(LOOK)).unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let reader = thread::spawn({
            let over = Arc::clone(&over);
            move || read(&socket, &over, contact)
        });
        Self { over, reader }
    }

    /// Ends the capture.
    pub(crate) fn end(self) -> Traffic {
        self.over.store(true, Ordering::Relaxed);
        let connections = self.reader.join().unwrap();
        let mut exchanges: Vec<_> = connections.iter().flat_map(Connection::exchanges).collect();
        exchanges.sort_by_key(|exchange| exchange.asked);
        let contact = connections.iter().map(|connection| connection.opened).min();
        Traffic { connections: connections.len(), contact, exchanges }
    }
}

fn read(socket: &OwnedFd, over: &AtomicBool, contact: impl FnOnce()) -> Vec<Connection> {
    let start = Instant::now();
    let mut contact = Some(contact);
    let (mut connections, mut open) = (Vec::<Connection>::new(), HashMap::<u16, usize>::new());
    let mut frame = vec![0; LARGEST_FRAME];
    loop {
        let length = match recv(socket.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(length) => length,
            Err(errno) => match io::Error::from(errno).kind() {
                // All that had come has been read.
                io::ErrorKind::WouldBlock if over.load(Ordering::Relaxed) => return connections,
                io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => continue,
                _ => panic!("the capture failed: {errno}"),
            },
        };
        let at = start.elapsed();
        let Some(segment) = Segment::of(&frame[..length]) else { continue };
        if segment.opens && segment.from_pod {
            if let Some(contact) = contact.take() {
                contact();
            }
            // The first packet of a connection can come twice.
            let known = open
                .get(&segment.port)
                .is_some_and(|index| connections[*index].sent.next == segment.number.wrapping_add(1));
            if !known {
                open.insert(segment.port, connections.len());
                let (sent, received) = Default::default();
                connections.push(Connection { opened: at, sent, received });
            }
        }
        if let Some(index) = open.get(&segment.port) {
            let connection = &mut connections[*index];
            let stream = if segment.from_pod { &mut connection.sent } else { &mut connection.received };
            stream.take(&segment, at);
        }
    }
}

/// A TCP segment between the pod and the metadata service.
struct Segment<'a> {
    from_pod: bool,
    /// The pod's.
    port: u16,
    number: u32,
    opens: bool,
    payload: &'a [u8],
}

impl<'a> Segment<'a> {
    fn of(frame: &'a [u8]) -> Option<Self> {
        let be16 = |bytes: &[u8], at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        if be16(frame, 12)? != 0x0800 {
            return None;
        }
        let packet = frame.get(14..)?;
        let packet = packet.get(..usize::from(be16(packet, 2)?))?;
        let segment = packet.get(usize::from(packet.first()? & 0xf) * 4..)?;
        let service = METADATA_ADDRESS.octets();
        let (from_pod, to_pod) = (packet.get(16..20)? == service, packet.get(12..16)? == service);
        if packet.get(9) != Some(&6) || !(from_pod || to_pod) {
            return None;
        }
        Some(Self {
            from_pod,
            port: be16(segment, if from_pod { 0 } else { 2 })?,
            number: u32::from_be_bytes(segment.get(4..8)?.try_into().ok()?),
            opens: segment.get(13)? & 0x02 != 0,
            payload: segment.get(usize::from(segment.get(12)? >> 4) * 4..)?,
        })
    }
}

impl Stream {
    fn take(&mut self, segment: &Segment<'_>, at: Duration) {
        if segment.opens {
            self.next = segment.number.wrapping_add(1);
            return;
        }
        if segment.payload.is_empty() {
            return;
        }
        self.early.insert(segment.number, (segment.payload.to_vec(), at));
        // What came twice is skipped, what came too early waits. Numbers begin anew after the last.
        let is_due = |next: u32, number: u32| next.wrapping_sub(number) <= u32::MAX / 2;
        while let Some(number) = self.early.keys().copied().find(|number| is_due(self.next, *number)) {
            let Some((payload, at)) = self.early.remove(&number) else { return };
            let skip = self.next.wrapping_sub(number) as usize;
            if let Some(new) = payload.get(skip..).filter(|new| !new.is_empty()) {
                self.bytes.extend_from_slice(new);
                self.next = self.next.wrapping_add(new.len() as u32);
                self.arrivals.push((self.bytes.len(), at));
            }
        }
    }

    /// When this byte was there.
    fn arrival(&self, byte: usize) -> Option<Duration> {
        self.arrivals.iter().find(|(up_to, _)| *up_to > byte).map(|(_, at)| *at)
    }
}

impl Connection {
    fn exchanges(&self) -> Vec<Exchange> {
        let requests = messages(&self.sent.bytes, |_, _| true);
        let answers = messages(&self.received.bytes, |number, _| {
            requests.get(number).is_none_or(|request| request.word(0) != Some("HEAD"))
        });
        let mut exchanges = Vec::new();
        for (number, request) in requests.iter().enumerate() {
            let answer = answers.get(number);
            let asked = self.sent.arrival(request.start).unwrap_or(self.opened);
            exchanges.push(Exchange {
                method: request.word(0).unwrap_or_default().to_owned(),
                path: request.word(1).unwrap_or_default().to_owned(),
                token: request.header("x-aws-ec2-metadata-token").is_some(),
                user_agent: request.header("user-agent").map(str::to_owned),
                status: answer.and_then(|answer| answer.word(1)?.parse().ok()),
                asked,
                answered: answer.and_then(|answer| self.received.arrival(answer.end - 1)),
            });
        }
        exchanges
    }
}

/// An HTTP message: a request or an answer.
struct Message {
    start: usize,
    end: usize,
    head: String,
}

impl Message {
    fn word(&self, number: usize) -> Option<&str> {
        self.head.lines().next()?.split(' ').nth(number)
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().skip(1).find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.trim().eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// The messages of one direction. The answer to a HEAD has no body, whatever its length: `has_body` says so by its number.
fn messages(bytes: &[u8], has_body: impl Fn(usize, &Message) -> bool) -> Vec<Message> {
    let mut messages = Vec::new();
    let mut start = 0;
    while let Some(length) = find(&bytes[start..], b"\r\n\r\n") {
        let body = start + length + 4;
        let mut message = Message { start, end: body, head: String::from_utf8_lossy(&bytes[start..body]).into_owned() };
        // An answer that is none yet: to `Expect`.
        if message.head.starts_with("HTTP/1.1 100") {
            start = body;
            continue;
        }
        if has_body(messages.len(), &message) {
            let chunked = message.header("transfer-encoding").is_some_and(|value| value.contains("chunked"));
            let length = message.header("content-length").and_then(|length| length.parse().ok());
            message.end = match length {
                _ if chunked => find(&bytes[body..], b"0\r\n\r\n").map_or(bytes.len(), |end| body + end + 5),
                Some(length) => bytes.len().min(body.saturating_add(length)),
                None => body,
            };
        }
        start = message.end;
        messages.push(message);
    }
    messages
}

fn find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    bytes.windows(wanted.len()).position(|window| window == wanted)
}

impl Exchange {
    /// The request in a word or two.
    fn name(&self) -> String {
        let path = self.path.split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>();
        let what = match path.get(1..).unwrap_or_default() {
            ["api", "token"] => "token",
            ["meta-data", "iam", "security-credentials"] => "role",
            ["meta-data", "iam", "security-credentials", _] => "keys",
            ["meta-data", "placement", "region"] => "region",
            ["meta-data", "placement", "availability-zone"] => "zone",
            ["dynamic", "instance-identity", "document"] => "document",
            _ => &self.path,
        };
        let method = if self.method == "GET" { String::new() } else { format!("{} ", self.method) };
        let status = match self.status {
            Some(200) => String::new(),
            Some(status) => format!(" {status}"),
            None => " (no answer)".to_owned(),
        };
        format!("{method}{what}{status}")
    }
}

impl fmt::Display for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { method, path, token, user_agent, status, asked, answered } = self;
        let version = if *token { "with a session token" } else { "without a session token" };
        // What follows is of the machine that it runs on.
        let user_agent = user_agent.as_deref().and_then(|agent| agent.split(' ').next()).unwrap_or("nobody");
        write!(f, "{:7.3} s: {method} {path} {version}, of {user_agent}: ", asked.as_secs_f64())?;
        match (status, answered) {
            (Some(status), Some(at)) => write!(f, "{status} at {:.3} s", at.as_secs_f64()),
            _ => write!(f, "no answer"),
        }
    }
}

impl Traffic {
    /// The requests in order, with what was answered where it was not 200; repeated ones once.
    pub(crate) fn story(&self) -> String {
        let mut story: Vec<(String, u32)> = Vec::new();
        for name in self.exchanges.iter().map(Exchange::name) {
            match story.last_mut() {
                Some((last, count)) if *last == name => *count += 1,
                _ => story.push((name, 1)),
            }
        }
        words(story)
    }

    /// How often each was asked and answered with what, in the order of the first of them.
    pub(crate) fn summary(&self) -> String {
        let mut counts: Vec<(String, u32)> = Vec::new();
        for name in self.exchanges.iter().map(Exchange::name) {
            match counts.iter_mut().find(|(known, _)| *known == name) {
                Some((_, count)) => *count += 1,
                None => counts.push((name, 1)),
            }
        }
        words(counts)
    }

    /// Which version of the service's protocol was spoken.
    pub(crate) fn version(&self) -> &'static str {
        let gets = || self.exchanges.iter().filter(|exchange| exchange.method == "GET");
        match (gets().any(|exchange| exchange.token), gets().any(|exchange| !exchange.token)) {
            (true, true) => "v1 and v2",
            (true, false) => "v2",
            (false, true) => "v1",
            (false, false) => "–",
        }
    }

    /// From the first contact to the last answer.
    pub(crate) fn span(&self) -> Option<Duration> {
        let last = self.exchanges.iter().filter_map(|exchange| exchange.answered).max()?;
        last.checked_sub(self.contact?)
    }

    /// How often the credentials themselves were handed out.
    pub(crate) fn keys(&self) -> usize {
        let handed_out = |exchange: &&Exchange| exchange.name() == "keys";
        self.exchanges.iter().filter(handed_out).count()
    }
}

fn words(counted: Vec<(String, u32)>) -> String {
    let words = counted.into_iter().map(|(name, count)| if count == 1 { name } else { format!("{count} × {name}") });
    words.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;

//! One rtnetlink socket for questions and announcements, read in the order in which the kernel wrote.
//!
//! So whatever was announced before a question was asked has been heard when its answer is there. An answer is
//! told from an announcement by the socket's own port; other programs use the same sequence numbers.

use std::{collections::VecDeque, io, time::Duration};

use bytes::BytesMut;
use netlink_packet_route::RouteNetlinkMessage;
use rtnetlink::{
    MulticastGroup,
    packet_core::{
        ErrorMessage, NLM_F_DUMP, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage, NetlinkPayload,
    },
    proto::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_ROUTE},
};

const LARGEST_DATAGRAM: usize = 64 * 1024;
/// Asked for; the kernel gives no more than `net.core.rmem_max`.
const RECEIVE_BUFFER: i32 = 4 * 1024 * 1024;
/// The kernel answers at once, unless the answer was lost.
const TIME_LIMIT: Duration = Duration::from_secs(5);
const ENOBUFS: i32 = 105;

/// What the kernel announces.
#[derive(Debug)]
pub(super) enum Event {
    /// Something changed.
    Message(RouteNetlinkMessage),
    /// Some announcements were lost, or not understood.
    Overrun,
}

/// A question had no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskError {
    /// The kernel answered with an error.
    #[error("the kernel refuses: {0}")]
    Refused(ErrorMessage),
    /// The socket is of no more use.
    #[error(transparent)]
    Broken(#[from] io::Error),
}

pub(super) struct Socket {
    socket: TokioSocket,
    port: u32,
    sequence: u32,
    datagram: BytesMut,
    unread: VecDeque<NetlinkMessage<RouteNetlinkMessage>>,
    events: VecDeque<Event>,
}

impl Socket {
    pub(super) fn open(groups: &[MulticastGroup]) -> io::Result<Self> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = groups.iter().fold(0, |bits, group| bits | 1 << (*group as u32 - 1));
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        socket.socket_mut().set_rx_buf_sz(RECEIVE_BUFFER)?;
        let mut own = SocketAddr::new(0, 0);
        socket.socket_mut().get_address(&mut own)?;
        Ok(Self {
            socket,
            port: own.port_number(),
            sequence: 0,
            datagram: BytesMut::with_capacity(LARGEST_DATAGRAM),
            unread: VecDeque::new(),
            events: VecDeque::new(),
        })
    }

    /// The next announcement. Nothing is lost when the wait for it is given up.
    pub(super) async fn event(&mut self) -> io::Result<Event> {
        loop {
            if let Some(event) = self.heard() {
                return Ok(event);
            }
            self.receive().await?;
        }
    }

    /// An announcement that was read already.
    pub(super) fn heard(&mut self) -> Option<Event> {
        while let Some(message) = self.unread.pop_front() {
            self.announced(message);
        }
        self.events.pop_front()
    }

    /// The answer to a question.
    pub(super) async fn ask(&mut self, question: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, AskError> {
        self.answer(question, NLM_F_REQUEST).await
    }

    /// All that there is of a kind.
    pub(super) async fn list(&mut self, question: RouteNetlinkMessage) -> Result<Vec<RouteNetlinkMessage>, AskError> {
        self.answer(question, NLM_F_REQUEST | NLM_F_DUMP).await
    }

    async fn answer(
        &mut self,
        question: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<Vec<RouteNetlinkMessage>, AskError> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut message = NetlinkMessage::from(question);
        message.header.flags = flags;
        message.header.sequence_number = self.sequence;
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes).await?;
        let answered = tokio::time::timeout(TIME_LIMIT, self.collect()).await;
        answered.unwrap_or_else(|_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into()))
    }

    async fn collect(&mut self) -> Result<Vec<RouteNetlinkMessage>, AskError> {
        let mut answer = Vec::new();
        loop {
            while let Some(message) = self.unread.pop_front() {
                if message.header.port_number != self.port {
                    self.announced(message);
                    continue;
                }
                // That of a question which was given up.
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                let more = message.header.flags & NLM_F_MULTIPART != 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(message) => answer.push(message),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(AskError::Refused(error)),
                    NetlinkPayload::Done(_) | NetlinkPayload::Error(_) => return Ok(answer),
                    _ => {}
                }
                if !more {
                    return Ok(answer);
                }
            }
            self.receive().await?;
        }
    }

    fn announced(&mut self, message: NetlinkMessage<RouteNetlinkMessage>) {
        if message.header.port_number != self.port
            && let NetlinkPayload::InnerMessage(message) = message.payload
        {
            self.events.push_back(Event::Message(message));
        }
    }

    async fn receive(&mut self) -> io::Result<()> {
        self.datagram.clear();
        self.datagram.reserve(LARGEST_DATAGRAM);
        match self.socket.recv(&mut self.datagram).await {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(ENOBUFS) => {
                self.events.push_back(Event::Overrun);
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        let mut rest = &self.datagram[..];
        while !rest.is_empty() {
            let Some(length) = NetlinkBuffer::new_checked(&rest).ok().map(|buffer| buffer.length() as usize) else {
                self.events.push_back(Event::Overrun);
                break;
            };
            match NetlinkMessage::deserialize(rest) {
                Ok(message) => self.unread.push_back(message),
                // One link of a listing that is not understood is a link that we do not know: nobody is served there.
                Err(_) if NetlinkBuffer::new(&rest).port_number() == self.port => {}
                Err(_) => self.events.push_back(Event::Overrun),
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }
}

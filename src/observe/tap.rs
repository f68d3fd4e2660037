//! A packet socket on all links of this network namespace.

use std::{
    io::{self, Read as _},
    net::IpAddr,
};

use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{Interest, unix::AsyncFd};

use super::{filter, packet::FirstPacket};

/// Packets that are read at once.
pub(super) const BATCH: usize = 256;
const LONGEST: usize = 128;
/// `ETH_P_ALL`.
const EVERY_PROTOCOL: u16 = 3;

/// Sees first packets to some addresses.
#[derive(Debug)]
pub(super) struct Tap {
    socket: AsyncFd<Socket>,
}

impl Tap {
    /// For these addresses; needs `CAP_NET_RAW`.
    pub(super) fn open(addresses: &[IpAddr]) -> io::Result<Self> {
        // All protocols: what eBPF programs take from a link (Cilium) is seen before they do, and only so. Without the link's
        // own header ("cooked"), so that all kinds of links look the same.
        let protocol = Protocol::from(i32::from(EVERY_PROTOCOL.to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking(), Some(protocol))?;
        // Packets of all kinds may have come before there was a filter.
        socket.attach_filter(&filter::of_nothing())?;
        drain(&socket)?;
        socket.attach_filter(&filter::of(addresses))?;
        #[expect(deprecated, reason = "sound for a socket, which keeps its descriptor as long as it lives")]
        let socket = AsyncFd::with_interest(socket, Interest::READABLE)?;
        Ok(Self { socket })
    }

    /// What has come, or else the next that comes; at most a batch. Nothing is lost when the wait for it is given up.
    pub(super) async fn read(&self) -> io::Result<Vec<FirstPacket>> {
        let mut packets = Vec::new();
        let mut bytes = [0; LONGEST];
        while packets.is_empty() {
            let mut ready = self.socket.readable().await?;
            while packets.len() < BATCH
                && let Ok(read) = ready.try_io(|socket| socket.get_ref().read(&mut bytes))
            {
                packets.extend(bytes.get(..read?).and_then(FirstPacket::read));
            }
        }
        Ok(packets)
    }
}

fn drain(mut socket: &Socket) -> io::Result<()> {
    let mut nothing = [0];
    loop {
        match socket.read(&mut nothing) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

//! Where a connection was meant to go before the redirect (`SO_ORIGINAL_DST`).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// The destination that the client named; `None` if the kernel does not know of a redirect.
#[must_use]
pub fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let address = getsockopt(stream, sockopt::OriginalDst).ok()?;
    let ip = Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr));
    Some(SocketAddr::new(IpAddr::V4(ip), u16::from_be(address.sin_port)))
}

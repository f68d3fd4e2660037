//! Where a connection was meant to go before the redirect (`SO_ORIGINAL_DST`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

/// The destination that the client named; `None` if the kernel does not know of a redirect.
#[must_use]
pub fn destination(stream: &TcpStream) -> Option<SocketAddr> {
    let (ip, port) = if stream.local_addr().ok()?.is_ipv4() {
        let address = getsockopt(stream, sockopt::OriginalDst).ok()?;
        (IpAddr::V4(Ipv4Addr::from(u32::from_be(address.sin_addr.s_addr))), address.sin_port)
    } else {
        let address = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        (IpAddr::V6(Ipv6Addr::from(address.sin6_addr.s6_addr)), address.sin6_port)
    };
    Some(SocketAddr::new(ip, u16::from_be(port)))
}

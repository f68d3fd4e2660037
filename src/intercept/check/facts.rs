//! What is to be seen on the node: read, nothing more.

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use futures::TryStreamExt as _;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::intercept::{
    listing::{Listing, Read},
    nft, obstacles, own_addresses,
    unseen::Own,
};

const PATIENCE: Duration = Duration::from_secs(3);
const LONGEST_ANSWER: u64 = 64 * 1024;
/// `TCP_LISTEN` in the kernel's table of sockets.
const LISTENS: &str = "0A";

/// All that findings follow from.
#[derive(Debug)]
pub struct Facts {
    pub(super) listing: Listing,
    /// Which tables of iptables are the node's.
    pub(super) own_tables: Own,
    /// All of nftables.
    pub(super) ruleset: Read<String>,
    /// The node's own addresses.
    pub(super) own: Vec<IpAddr>,
    /// Where somebody listens.
    pub(super) listening: Result<Vec<SocketAddr>, String>,
    pub(super) links: Result<Vec<Link>, String>,
    pub(super) cilium: bool,
    /// What the daemon says that it lacks.
    pub(super) readiness: Result<Vec<String>, String>,
}

/// A link of the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) kind: Kind,
    /// The link whose port it is.
    pub(super) controller: Option<u32>,
    /// The reverse path filter in force: 1 is the strict one.
    pub(super) reverse_path: Option<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Bridge,
    Veth,
    Other,
}

impl Facts {
    /// Reads them; `admin` is where the daemon tells whether it is ready.
    pub async fn read(admin: SocketAddr) -> Self {
        let readiness = match tokio::time::timeout(PATIENCE, readiness(admin)).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(_elapsed) => Err(format!("no answer within {} s", PATIENCE.as_secs())),
        };
        Self {
            listing: Listing::read().await,
            own_tables: Own::read().await,
            ruleset: nft::list_all().await,
            own: own_addresses().unwrap_or_default(),
            listening: listening(),
            links: links().await,
            cilium: obstacles::is_cilium_here(),
            readiness,
        }
    }
}

async fn readiness(admin: SocketAddr) -> io::Result<Vec<String>> {
    let mut stream = TcpStream::connect(admin).await?;
    stream.write_all(format!("GET /readyz HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(LONGEST_ANSWER).read_to_end(&mut answer).await?;
    let answer = String::from_utf8_lossy(&answer);
    let not_understood = || io::Error::new(io::ErrorKind::InvalidData, "what answers there is no daemon of ours");
    let (head, body) = answer.split_once("\r\n\r\n").ok_or_else(not_understood)?;
    match head.split(' ').nth(1) {
        Some("200") => Ok(Vec::new()),
        Some("503") => Ok(body.lines().map(str::to_owned).collect()),
        _ => Err(not_understood()),
    }
}

fn listening() -> Result<Vec<SocketAddr>, String> {
    let mut sockets = Vec::new();
    for file in ["/proc/net/tcp", "/proc/net/tcp6"] {
        match fs::read_to_string(file) {
            Ok(table) => sockets.extend(table.lines().filter_map(listens_at)),
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound && file.ends_with('6') => {}
            Err(error) => return Err(format!("{file}: {error}")),
        }
    }
    Ok(sockets)
}

/// Where the socket of a line of the kernel's table listens, if it does. Addresses are words as the machine has them.
pub(super) fn listens_at(line: &str) -> Option<SocketAddr> {
    let mut words = line.split_whitespace().skip(1);
    let (address, port) = words.next()?.split_once(':')?;
    if words.nth(1)? != LISTENS {
        return None;
    }
    let word = |at: usize| u32::from_str_radix(address.get(at..at + 8)?, 16).ok().map(u32::to_ne_bytes);
    let ip = match address.len() {
        8 => IpAddr::V4(Ipv4Addr::from(word(0)?)),
        32 => {
            let words = [word(0)?, word(8)?, word(16)?, word(24)?];
            let mut bytes = [0; 16];
            bytes.chunks_exact_mut(4).zip(words).for_each(|(bytes, word)| bytes.copy_from_slice(&word));
            IpAddr::V6(Ipv6Addr::from(bytes))
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

async fn links() -> Result<Vec<Link>, String> {
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let messages = handle.link().get().execute().try_collect::<Vec<_>>().await.map_err(|error| error.to_string())?;
    Ok(messages.iter().filter_map(link).collect())
}

fn link(message: &LinkMessage) -> Option<Link> {
    let attributes = &message.attributes;
    let name = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.clone()),
        _ => None,
    })?;
    let controller = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Controller(index) => Some(*index),
        _ => None,
    });
    let kind = attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
            LinkInfo::Kind(InfoKind::Bridge) => Some(Kind::Bridge),
            LinkInfo::Kind(InfoKind::Veth) => Some(Kind::Veth),
            _ => None,
        }),
        _ => None,
    });
    // The stricter by number of what is set for the link and for all: 2 is the lax one.
    let setting = |link: &str| {
        fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{link}/rp_filter")).ok()?.trim().parse::<u8>().ok()
    };
    let reverse_path = setting("all").zip(setting(&name)).map(|(all, own)| all.max(own));
    let kind = kind.unwrap_or(Kind::Other);
    Some(Link { name, index: message.header.index, kind, controller, reverse_path })
}

//! The links of this node: the shell between the kernel and the directory.
//!
//! Owns one rtnetlink socket, which hears of links, neighbours and routes, and looks up which link leads to an
//! address. What that means for a pod is the index's affair. A bridge's port or a link's state says nothing
//! for certain: what counts is the end of a link, or another link or hardware address for the address.

use std::{
    collections::{BTreeSet, HashSet},
    io,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use netlink_packet_route::{
    AddressFamily, RouteNetlinkMessage,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState},
    route::{RouteAddress, RouteAttribute, RouteMessage, RouteType},
};
use rtnetlink::{MulticastGroup, RouteMessageBuilder};

use super::{
    binding::{Link, Reason},
    directory::Directory,
    netlink::{AskError, Event, Socket},
};
use crate::{clock, metrics::Metrics};

const GROUPS: [MulticastGroup; 4] =
    [MulticastGroup::Link, MulticastGroup::Neigh, MulticastGroup::Ipv4Route, MulticastGroup::Ipv6Route];

/// The index of `lo`, in every network namespace.
const LOOPBACK: u32 = 1;

/// After the socket broke.
const PAUSE: Duration = Duration::from_millis(100);
/// It is a new trouble when it was well for so long.
const QUIET: Duration = Duration::from_secs(60);

/// Tells the directory of this node's links; ends only when there is no socket to be had.
pub async fn keep(directory: Arc<Directory>, metrics: Arc<Metrics>) {
    let mut first = true;
    let mut told = None::<Instant>;
    loop {
        let socket = match Socket::open(&GROUPS) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::error!(%error, "links cannot be watched");
                return;
            }
        };
        let (directory, metrics) = (&directory, &metrics);
        let mut watch = Watch { socket, bridges: HashSet::new(), a_route_ended: false, directory, metrics };
        let Err(error) = watch.run(&mut first).await;
        directory.doubt_all(now());
        metrics.link_overruns.inc();
        let broke = clock::now().monotonic;
        // What lasts is said once: each time less than this after the last.
        if told.is_none_or(|before| broke.duration_since(before) > QUIET) {
            tracing::warn!(%error, "the watch of links broke; all are looked at again");
        }
        told = Some(broke);
        // Whatever broke it may last: nobody is served meanwhile, and no core is burnt.
        tokio::time::sleep(PAUSE).await;
    }
}

struct Watch<'a> {
    socket: Socket,
    bridges: HashSet<u32>,
    /// And perhaps its link with it.
    a_route_ended: bool,
    directory: &'a Directory,
    metrics: &'a Metrics,
}

impl Watch<'_> {
    async fn run(&mut self, first: &mut bool) -> Result<std::convert::Infallible, AskError> {
        self.list(first).await?;
        loop {
            if self.hear_all() {
                self.start_anew(first).await?;
            }
            let wanted = self.directory.wanted();
            if std::mem::take(&mut self.a_route_ended) && !wanted.is_empty() {
                self.until_links_are_settled().await?;
                if self.hear_all() {
                    self.start_anew(first).await?;
                    // All are looked for again.
                    continue;
                }
            }
            for (address, on_behalf) in wanted {
                let link = self.leading_to(address).await?;
                // What was announced before the look comes first.
                if self.hear_all() {
                    self.start_anew(first).await?;
                    break;
                }
                self.count(&self.directory.looked(address, &on_behalf, link, now()));
            }
            tokio::select! {
                event = self.socket.event() => if self.hear(event?) {
                    self.start_anew(first).await?;
                },
                () = self.directory.something_wanted() => {}
            }
        }
    }

    /// In the middle of a link's end the kernel tells of its IPv6 routes', and leads elsewhere already. A question about
    /// links waits for the whole.
    async fn until_links_are_settled(&mut self) -> Result<(), io::Error> {
        let mut question = LinkMessage::default();
        question.header.index = LOOPBACK;
        known(self.socket.ask(RouteNetlinkMessage::GetLink(question)).await).map(drop)
    }

    /// After news was lost. Until all has been looked at again nobody is served.
    async fn start_anew(&mut self, first: &mut bool) -> Result<(), AskError> {
        self.directory.doubt_all(now());
        self.metrics.link_overruns.inc();
        self.list(first).await
    }

    /// All links as they are now; all addresses are looked at again.
    async fn list(&mut self, first: &mut bool) -> Result<(), AskError> {
        let listed = self.socket.list(RouteNetlinkMessage::GetLink(LinkMessage::default())).await?;
        let mut all = BTreeSet::new();
        self.bridges.clear();
        for message in listed {
            if let RouteNetlinkMessage::NewLink(link) = message {
                all.insert(link.header.index);
                self.note_kind(&link);
            }
        }
        self.count(&self.directory.links_are(&all, *first, now()));
        *first = false;
        self.directory.look_again(|_, _| true);
        Ok(())
    }

    /// Hears all that was read; whether something was lost.
    fn hear_all(&mut self) -> bool {
        let mut lost = false;
        while let Some(event) = self.socket.heard() {
            lost |= self.hear(event);
        }
        lost
    }

    fn hear(&mut self, event: Event) -> bool {
        let message = match event {
            Event::Message(message) => message,
            Event::Overrun => return true,
        };
        match message {
            // A bridge speaks of its ports in messages of its own family.
            RouteNetlinkMessage::NewLink(link) if link.header.interface_family != AddressFamily::Bridge => {
                self.note_kind(&link);
                self.directory.link_appeared(link.header.index, now());
            }
            RouteNetlinkMessage::DelLink(link) if link.header.interface_family == AddressFamily::Bridge => {
                self.count(&self.directory.link_left(link.header.index, now()));
            }
            RouteNetlinkMessage::DelLink(link) => {
                self.bridges.remove(&link.header.index);
                self.count(&self.directory.link_ended(link.header.index, now()));
            }
            RouteNetlinkMessage::NewNeighbour(neighbour) => self.hear_neighbour(&neighbour),
            RouteNetlinkMessage::NewRoute(route) => self.directory.look_again(|address, _| covers(&route, address)),
            RouteNetlinkMessage::DelRoute(route) => {
                self.a_route_ended = true;
                self.directory.look_again(|address, _| covers(&route, address));
            }
            _ => {}
        }
        false
    }

    fn hear_neighbour(&self, neighbour: &NeighbourMessage) {
        let index = neighbour.header.ifindex;
        if neighbour.header.family == AddressFamily::Bridge {
            let mac = mac(neighbour);
            self.directory.look_again(|_, link| {
                link.is_some_and(|link| link.mac.is_some() && link.mac == mac && link.index != index)
            });
        } else if self.bridges.contains(&index) {
            let of = destination(neighbour);
            self.directory.look_again(|address, _| Some(address) == of);
        }
    }

    fn note_kind(&mut self, link: &LinkMessage) {
        let is_bridge = |info: &LinkInfo| matches!(info, LinkInfo::Kind(InfoKind::Bridge));
        let mut infos = link.attributes.iter().filter_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => Some(infos),
            _ => None,
        });
        if infos.any(|infos| infos.iter().any(is_bridge)) {
            self.bridges.insert(link.header.index);
        }
    }

    fn count(&self, suspended: &[Reason]) {
        for reason in suspended {
            self.metrics.suspensions.with_label_values(&[reason.label()]).inc();
            match reason {
                Reason::LinkGone => tracing::debug!("a pod's link ended; nobody is served on its address"),
                Reason::LinkChanged | Reason::MacChanged => {
                    tracing::warn!(reason = reason.label(), "another link leads to a pod's address; it is not served");
                }
            }
        }
    }

    /// The link that leads to `address`; `None` where there is none, or nobody has answered for it yet.
    async fn leading_to(&mut self, address: IpAddr) -> Result<Option<Link>, io::Error> {
        let question = match address {
            IpAddr::V4(address) => {
                RouteMessageBuilder::<std::net::Ipv4Addr>::new().destination_prefix(address, 32).build()
            }
            IpAddr::V6(address) => {
                RouteMessageBuilder::<std::net::Ipv6Addr>::new().destination_prefix(address, 128).build()
            }
        };
        let answer = known(self.socket.ask(RouteNetlinkMessage::GetRoute(question)).await)?;
        let out = answer.iter().find_map(|message| match message {
            RouteNetlinkMessage::NewRoute(route) if route.header.kind == RouteType::Unicast => {
                route.attributes.iter().find_map(|attribute| match attribute {
                    RouteAttribute::Oif(index) => Some(*index),
                    _ => None,
                })
            }
            _ => None,
        });
        match out {
            Some(bridge) if self.bridges.contains(&bridge) => self.port(bridge, address).await,
            Some(index) => Ok(Some(Link { index, mac: None })),
            None => Ok(None),
        }
    }

    /// The bridge's port behind which `address` answers.
    async fn port(&mut self, bridge: u32, address: IpAddr) -> Result<Option<Link>, io::Error> {
        let family = if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let neighbours = self.neighbours(family).await?;
        let found = neighbours.iter().find(|neighbour| {
            neighbour.header.ifindex == bridge && answers(neighbour) && destination(neighbour) == Some(address)
        });
        let Some(mac_address) = found.and_then(mac) else { return Ok(None) };
        let ports = self.neighbours(AddressFamily::Bridge).await?;
        let port = ports.iter().find(|entry| {
            entry.header.ifindex != bridge
                && mac(entry) == Some(mac_address)
                && entry.attributes.contains(&NeighbourAttribute::Controller(bridge))
        });
        Ok(port.map(|entry| Link { index: entry.header.ifindex, mac: Some(mac_address) }))
    }

    async fn neighbours(&mut self, family: AddressFamily) -> Result<Vec<NeighbourMessage>, io::Error> {
        let mut question = NeighbourMessage::default();
        question.header.family = family;
        let listed = known(self.socket.list(RouteNetlinkMessage::GetNeighbour(question)).await)?;
        let neighbours = listed.into_iter().filter_map(|message| match message {
            RouteNetlinkMessage::NewNeighbour(neighbour) => Some(neighbour),
            _ => None,
        });
        Ok(neighbours.collect())
    }
}

/// What the kernel refuses to say (no route, an unreachable one) it does not know.
fn known(answer: Result<Vec<RouteNetlinkMessage>, AskError>) -> Result<Vec<RouteNetlinkMessage>, io::Error> {
    match answer {
        Ok(answer) => Ok(answer),
        Err(AskError::Refused(_)) => Ok(Vec::new()),
        Err(AskError::Broken(error)) => Err(error),
    }
}

fn answers(neighbour: &NeighbourMessage) -> bool {
    use NeighbourState::{Delay, Noarp, Permanent, Probe, Reachable, Stale};
    matches!(neighbour.header.state, Reachable | Stale | Delay | Probe | Permanent | Noarp)
}

fn destination(neighbour: &NeighbourMessage) -> Option<IpAddr> {
    neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(IpAddr::V4(*address)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => Some(IpAddr::V6(*address)),
        _ => None,
    })
}

fn mac(neighbour: &NeighbourMessage) -> Option<[u8; 6]> {
    neighbour.attributes.iter().find_map(|attribute| match attribute {
        NeighbourAttribute::LinkLayerAddress(bytes) => bytes.as_slice().try_into().ok(),
        _ => None,
    })
}

fn covers(route: &RouteMessage, address: IpAddr) -> bool {
    let length = u32::from(route.header.destination_prefix_length);
    let to = route.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Destination(RouteAddress::Inet(to)) => Some(IpAddr::V4(*to)),
        RouteAttribute::Destination(RouteAddress::Inet6(to)) => Some(IpAddr::V6(*to)),
        _ => None,
    });
    match (to, address) {
        (Some(IpAddr::V4(to)), IpAddr::V4(address)) => {
            let mask = u32::MAX.checked_shl(32 - length.min(32)).unwrap_or_default();
            u32::from(to) & mask == u32::from(address) & mask
        }
        (Some(IpAddr::V6(to)), IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - length.min(128)).unwrap_or_default();
            u128::from(to) & mask == u128::from(address) & mask
        }
        (Some(_), _) => false,
        // A default route's.
        (None, address) => (route.header.address_family == AddressFamily::Inet) == address.is_ipv4(),
    }
}

fn now() -> u64 {
    clock::now().unix_seconds()
}

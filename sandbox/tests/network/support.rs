//! A network of one's own for each test, and servers that say who asks.

use std::{
    fs,
    io::{self, Read as _, Write as _},
    net::{IpAddr, SocketAddr, TcpListener, TcpStream},
    thread,
    time::{Duration, Instant},
};

use sandbox::{
    network::{Families, Namespace, Network, PodNetwork},
    packages,
};

pub(crate) const SHAPES: [PodNetwork; 2] = [PodNetwork::Routed, PodNetwork::Bridge];

pub(crate) fn network(shape: PodNetwork) -> Network {
    network_with(shape, Families::V4)
}

pub(crate) fn network_with(shape: PodNetwork, families: Families) -> Network {
    let ready =
        packages::require_root().and_then(|()| packages::ensure(&packages::NETWORK, &mut |line| eprintln!("{line}")));
    ready.unwrap_or_else(|error| panic!("{error}"));
    Network::with_families(shape, families).unwrap_or_else(|error| panic!("{error}"))
}

/// Tells every caller the address that it is seen with.
pub(crate) fn echo_peers(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> u16 {
    let address = address.into();
    let listener = namespace.enter(|| TcpListener::bind((address, port))).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip().to_string();
            stream.write_all(peer.as_bytes()).ok();
        }
    });
    port
}

/// The address that a caller from this namespace is seen with.
pub(crate) fn seen_as(namespace: &Namespace, address: impl Into<IpAddr>, port: u16) -> io::Result<IpAddr> {
    let address = address.into();
    let connect = || {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut seen = String::new();
        stream.read_to_string(&mut seen)?;
        seen.parse().map_err(io::Error::other)
    };
    let started = Instant::now();
    let seen = namespace.enter(connect).unwrap();
    // A packet that was lost is sent again after a second: no link may be handed out that loses the first.
    assert!(started.elapsed() < Duration::from_millis(900), "{address} took {:?}", started.elapsed());
    seen
}

pub(crate) fn run(namespace: &Namespace, command: &str) -> String {
    let words: Vec<_> = command.split(' ').collect();
    let output = namespace.command(words[0]).args(&words[1..]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn link_names(namespace: &Namespace) -> Vec<String> {
    let table = namespace.enter(|| fs::read_to_string("/proc/thread-self/net/dev")).unwrap().unwrap();
    table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect()
}

//! The cgroup of a socket of this network namespace, by `sock_diag`: one question about one connection.
//!
//! Source: `sock_diag(7)`; `INET_DIAG_CGROUP_ID` is in Linux since 5.7.

use std::{
    io,
    net::{IpAddr, SocketAddr},
};

use bytes::BytesMut;
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagMessage,
    inet::{ExtensionFlags, InetRequest, InetResponse, SocketId, StateFlags, nlas::Nla},
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};
use rtnetlink::packet_core::{NLM_F_REQUEST, NetlinkMessage, NetlinkPayload, Nla as _};

use super::CgroupId;

const INET_DIAG_CGROUP_ID: u16 = 21;
/// `INET_DIAG_NOCOOKIE`: whichever socket it is.
const ANY_COOKIE: [u8; 8] = [0xff; 8];
/// More than an answer has.
const LARGEST_ANSWER: usize = 4096;

/// The cgroup of the process that made the socket which is connected from `local` to `remote`, as that socket names them.
/// `None` if there is no such socket, or its owner has closed it.
///
/// # Errors
/// When the kernel cannot be asked, or does not say.
pub fn cgroup_of(local: SocketAddr, remote: SocketAddr) -> io::Result<Option<CgroupId>> {
    let socket = Socket::new(NETLINK_SOCK_DIAG)?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    socket.set_non_blocking(true)?;
    let mut question = NetlinkMessage::from(SockDiagMessage::InetRequest(InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: 0,
            cookie: ANY_COOKIE,
        },
    }));
    question.header.flags = NLM_F_REQUEST;
    question.finalize();
    let mut bytes = vec![0; question.buffer_len()];
    question.serialize(&mut bytes);
    socket.send(&bytes, 0)?;
    // The kernel has answered before the question is sent.
    let mut answer = BytesMut::with_capacity(LARGEST_ANSWER);
    socket.recv(&mut answer, 0)?;
    let answer = NetlinkMessage::<SockDiagMessage>::deserialize(&answer).map_err(io::Error::other)?;
    match answer.payload {
        NetlinkPayload::InnerMessage(SockDiagMessage::InetResponse(found)) if is(&found, local, remote) => {
            let cgroup = found.nlas.iter().find_map(cgroup).map(CgroupId);
            cgroup.map(Some).ok_or_else(|| io::Error::other("the kernel names no cgroup of a socket"))
        }
        NetlinkPayload::Error(error) if error.raw_code() != -(nix::errno::Errno::ENOENT as i32) => Err(error.to_io()),
        _ => Ok(None),
    }
}

/// Whether it is that connection, and somebody has it. Asked for a connection that is gone, the kernel names whatever
/// listens on its port.
fn is(found: &InetResponse, local: SocketAddr, remote: SocketAddr) -> bool {
    let SocketId { source_port, destination_port, source_address, destination_address, .. } = &found.header.socket_id;
    // A client of both families has addresses of the one mapped to the other.
    let end = |address: &IpAddr, port: &u16| SocketAddr::new(address.to_canonical(), *port);
    found.header.inode != 0
        && end(source_address, source_port) == local
        && end(destination_address, destination_port) == remote
}

fn cgroup(attribute: &Nla) -> Option<u64> {
    let Nla::Other(attribute) = attribute else { return None };
    let mut value = [0; size_of::<u64>()];
    if attribute.kind() != INET_DIAG_CGROUP_ID || attribute.value_len() != value.len() {
        return None;
    }
    attribute.emit_value(&mut value);
    Some(u64::from_ne_bytes(value))
}

#[cfg(test)]
mod tests {
    use std::{
        net::{Ipv4Addr, Ipv6Addr, TcpListener, TcpStream},
        time::Instant,
    };

    use super::*;

    fn connected(ip: IpAddr) -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        (client, server)
    }

    fn of(stream: &TcpStream) -> Option<CgroupId> {
        cgroup_of(stream.local_addr().unwrap(), stream.peer_addr().unwrap()).unwrap()
    }

    #[test]
    fn the_cgroup_of_a_socket_is_told_until_it_is_closed() {
        for ip in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            let (client, server) = connected(ip);
            assert!(of(&client).is_some());
            assert_eq!(of(&client), of(&server), "both are this process's");
            let (local, remote) = (client.local_addr().unwrap(), client.peer_addr().unwrap());
            // Its end has something to say yet, but nobody has it.
            drop(client);
            assert_eq!(cgroup_of(local, remote).unwrap(), None);
            drop(server);
            assert_eq!(cgroup_of(local, remote).unwrap(), None);
        }
    }

    #[test]
    fn half_a_close_is_none() {
        let (client, _server) = connected(Ipv4Addr::LOCALHOST.into());
        client.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(of(&client).is_some());
    }

    #[test]
    fn who_listens_on_the_port_of_a_connection_that_is_gone_is_not_taken_for_its_maker() {
        for (any, elsewhere) in [("127.0.0.1:0", "169.254.169.254:80"), ("[::1]:0", "[fd00:ec2::254]:80")] {
            let listener = TcpListener::bind(any).unwrap();
            assert_eq!(cgroup_of(listener.local_addr().unwrap(), elsewhere.parse().unwrap()).unwrap(), None);
        }
    }

    #[test]
    #[ignore = "figures: see docs/host-network.md"]
    fn what_a_question_costs() {
        const TIMES: u32 = 20_000;
        let (client, _server) = connected(Ipv4Addr::LOCALHOST.into());
        let start = Instant::now();
        for _ in 0..TIMES {
            of(&client).unwrap();
        }
        eprintln!("{:?} a question", start.elapsed() / TIMES);
        let folder = tempfile::tempdir().unwrap();
        let below = folder.path().join("kubepods.slice/kubepods-poda.slice/a.scope");
        std::fs::create_dir_all(&below).unwrap();
        for number in 0..750 {
            let others = format!("kubepods.slice/kubepods-podb{:x}.slice/{number}.scope", number / 3);
            std::fs::create_dir_all(folder.path().join(others)).unwrap();
        }
        let tree = super::super::Tree::at(folder.path().to_owned());
        let id = CgroupId(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(below).unwrap()));
        let start = Instant::now();
        tree.pod(id).unwrap();
        eprintln!("{:?} for a cgroup that was not met before, among 750 containers", start.elapsed());
        let start = Instant::now();
        for _ in 0..TIMES {
            tree.known_pod(id).unwrap();
        }
        eprintln!("{:?} for one that was", start.elapsed() / TIMES);
    }
}

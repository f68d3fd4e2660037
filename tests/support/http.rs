//! HTTP/1.1 by hand, as little as a test needs: what is sent is what stands here.

use std::{
    io::{self, Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream},
    os::fd::AsRawFd as _,
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::{
        socket::{
            AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt::SendTimeout,
        },
        time::TimeVal,
    },
};
use sandbox::network::Namespace;

/// After so long nobody answers: the daemon's own limit is below a second, and machines are slow.
const SILENCE: Duration = Duration::from_secs(10);

pub struct Connection(pub TcpStream);

#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap()
    }
}

impl Connection {
    /// A connection; it and its reads wait for [`SILENCE`].
    pub fn open(namespace: &Namespace, server: SocketAddr) -> io::Result<Self> {
        let stream = namespace.enter(|| TcpStream::connect_timeout(&server, SILENCE)).unwrap()?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self(stream))
    }

    /// The same from `source`, which must be an address of the namespace; tried for a second, or one packet and its
    /// repetition.
    pub fn open_from(namespace: &Namespace, source: Ipv4Addr, server: SocketAddrV4) -> io::Result<Self> {
        let made = namespace.enter(|| {
            let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
            setsockopt(&socket, SendTimeout, &TimeVal::new(1, 500_000))?;
            bind(socket.as_raw_fd(), &SockaddrIn::from(SocketAddrV4::new(source, 0)))?;
            connect(socket.as_raw_fd(), &SockaddrIn::from(server))?;
            Ok::<_, Errno>(TcpStream::from(socket))
        });
        let stream = made.unwrap()?;
        stream.set_read_timeout(Some(SILENCE))?;
        Ok(Self(stream))
    }

    pub fn send(&mut self, method: &str, path: &str, headers: &[(&str, &str)]) -> io::Result<()> {
        let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
        self.send_bytes(format!("{method} {path} HTTP/1.1\r\nHost: 169.254.169.254\r\n{headers}\r\n").as_bytes())
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }

    /// The next answer; an error where the connection is closed or silent.
    pub fn answer(&mut self) -> io::Result<Answer> {
        let mut answer = self.answer_to_head()?;
        let length = answer.header("content-length").map_or(0, |length| length.parse().unwrap());
        answer.body = vec![0; length];
        self.0.read_exact(&mut answer.body)?;
        Ok(answer)
    }

    /// The next answer where no body follows, whatever its length is said to be.
    pub fn answer_to_head(&mut self) -> io::Result<Answer> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Ok(Answer { status, head, body: Vec::new() })
    }

    /// Everything that comes until the other side closes, in time or not at all.
    pub fn rest(&mut self) -> io::Result<Vec<u8>> {
        let mut rest = Vec::new();
        match self.0.read_to_end(&mut rest) {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => Err(error),
            _ => Ok(rest),
        }
    }

    /// Whether the other side has closed.
    pub fn is_closed(&mut self) -> bool {
        match self.0.read(&mut [0]) {
            Ok(0) => true,
            Ok(_) => panic!("something was sent"),
            Err(error) => error.kind() == io::ErrorKind::ConnectionReset,
        }
    }
}

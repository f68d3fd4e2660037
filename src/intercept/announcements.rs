//! What the kernel announces of changed rules, ours and others': routing rules always, and those of nftables, which are
//! also iptables' of that variant. Of changes in the tables of before it says nothing.

use std::io;

use bytes::BytesMut;
use futures::{Stream, StreamExt as _, stream::BoxStream};
use rtnetlink::{
    MulticastGroup,
    proto::sys::{AsyncSocket as _, AsyncSocketExt as _, SocketAddr, TokioSocket, protocols::NETLINK_NETFILTER},
};

/// `NFNLGRP_NFTABLES`, as a bit.
const NFTABLES: u32 = 1 << (7 - 1);
/// `NFNL_SUBSYS_NFTABLES`: the upper half of a message's type.
const SUBSYSTEM: u8 = 10;
/// `NFT_MSG_NEWGEN`: the end of a change, which names no table.
const NEW_GENERATION: u8 = 15;
/// Of a message's head and of what each of netfilter's begins with.
const HEAD: usize = 16 + 4;
/// The attribute that names the table, of whatever is in it.
const TABLE_NAME: u16 = 1;

const LARGEST_DATAGRAM: usize = 64 * 1024;
/// Announcements that count as one.
const LARGEST_CHUNK: usize = 1024;

/// The announcements of changed routing rules; ends when the socket breaks.
///
/// # Errors
/// When the kernel gives no socket for them.
pub(super) fn routing_rules() -> io::Result<BoxStream<'static, ()>> {
    let groups = [MulticastGroup::Ipv4Rule, MulticastGroup::Ipv6Rule];
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    tokio::spawn(connection);
    Ok(messages.ready_chunks(LARGEST_CHUNK).map(drop).boxed())
}

/// The announcements of changes in these tables of nftables, several at once as one; ends when the socket breaks.
///
/// # Errors
/// When the kernel gives no socket for them.
pub(super) fn of_tables(tables: &'static [&'static str]) -> io::Result<BoxStream<'static, ()>> {
    Ok(nftables(tables)?.ready_chunks(LARGEST_CHUNK).map(drop).boxed())
}

fn nftables(tables: &'static [&'static str]) -> io::Result<impl Stream<Item = ()>> {
    let mut socket = TokioSocket::new(NETLINK_NETFILTER)?;
    socket.socket_mut().bind(&SocketAddr::new(0, NFTABLES))?;
    let state = (socket, BytesMut::with_capacity(LARGEST_DATAGRAM));
    Ok(futures::stream::unfold(state, move |(socket, mut datagram)| async move {
        loop {
            datagram.clear();
            datagram.reserve(LARGEST_DATAGRAM);
            match socket.recv(&mut datagram).await {
                Ok(()) if datagram.is_empty() => return None,
                Ok(()) if !messages(&datagram).any(|message| is_of(message, tables)) => {}
                Ok(()) => return Some(((), (socket, datagram))),
                // More came than there was room for: anything may have changed.
                Err(error) if error.raw_os_error() == Some(nix::errno::Errno::ENOBUFS as i32) => {
                    return Some(((), (socket, datagram)));
                }
                Err(_) => return None,
            }
        }
    }))
}

/// The messages of a datagram, each with its head.
fn messages(datagram: &[u8]) -> impl Iterator<Item = &[u8]> {
    split(datagram, |bytes| {
        let length = bytes.first_chunk().map(|length| u32::from_ne_bytes(*length))?;
        usize::try_from(length).ok().filter(|length| *length >= HEAD)
    })
}

/// Whether a message is of a change in one of the tables.
fn is_of(message: &[u8], tables: &[&str]) -> bool {
    // The type, in the machine's own order: the subsystem and what is told.
    let Some([a, b]) = message.get(4..6).and_then(|kind| kind.first_chunk()) else { return false };
    let [told, subsystem] = u16::from_ne_bytes([*a, *b]).to_le_bytes();
    if subsystem != SUBSYSTEM || told == NEW_GENERATION {
        return false;
    }
    let mut attributes = split(message.get(HEAD..).unwrap_or_default(), |bytes| {
        let length = bytes.first_chunk().map(|length| u16::from_ne_bytes(*length))?;
        Some(usize::from(length)).filter(|length| *length >= 4)
    });
    attributes.any(|attribute| {
        let kind = attribute.get(2..4).and_then(|kind| kind.first_chunk()).map(|kind| u16::from_ne_bytes(*kind));
        let name = attribute.get(4..).unwrap_or_default();
        kind == Some(TABLE_NAME) && tables.iter().any(|table| name.strip_suffix(b"\0") == Some(table.as_bytes()))
    })
}

/// What is one after the other, each saying its own length, and beginning at a multiple of four.
fn split(bytes: &[u8], length: impl Fn(&[u8]) -> Option<usize>) -> impl Iterator<Item = &[u8]> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = length(rest)?;
        let one = rest.get(..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(one)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = vec![0; 4];
        for (kind, value) in attributes {
            body.extend(u16::try_from(value.len() + 4).unwrap().to_ne_bytes());
            body.extend(kind.to_ne_bytes());
            body.extend(*value);
            body.resize(body.len().next_multiple_of(4), 0);
        }
        let mut message = u32::try_from(body.len() + 16).unwrap().to_ne_bytes().to_vec();
        message.extend(kind.to_ne_bytes());
        message.extend([0; 10]);
        message.extend(body);
        message
    }

    #[test]
    fn only_changes_in_the_tables_that_matter_are_told() {
        let (delete_table, new_rule, new_generation) = (0x0a02, 0x0a06, 0x0a0f);
        for (kind, attributes, told) in [
            (delete_table, &[(1, &b"kube2irsa\0"[..])][..], true),
            (new_rule, &[(1, b"filter\0"), (2, b"INPUT\0")], true),
            (new_rule, &[(1, b"nat\0"), (2, b"filter\0")], false),
            (new_rule, &[(2, b"filter\0"), (3, &[0; 8])], false),
            (delete_table, &[(1, b"kube2irsa-not\0")], false),
            (delete_table, &[(1, b"kube2irsa")], false),
            (new_generation, &[(1, b"filter\0")], false),
            (0x0102, &[(1, b"filter\0")], false),
            (new_rule, &[], false),
        ] {
            let message = message(kind, attributes);
            assert_eq!(is_of(&message, &["kube2irsa", "filter"]), told, "{kind:x} {attributes:?}");
            // What is cut off, or nonsense, is nothing that happened.
            for length in 0..message.len() {
                assert_eq!(messages(&message[..length]).count(), 0);
                is_of(&message[..length], &["filter"]);
            }
        }
        let two = [message(new_rule, &[(1, b"nat\0")]), message(delete_table, &[(1, b"kube2irsa\0")])].concat();
        assert_eq!(messages(&two).count(), 2);
        assert!(messages(&two).any(|message| is_of(message, &["kube2irsa"])));
    }
}

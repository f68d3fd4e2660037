//! The first packet of a connection, as far as it says who connects and where to. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FirstPacket {
    /// Who connects.
    pub(super) source: IpAddr,
    /// Where to.
    pub(super) to: IpAddr,
    /// The source's port.
    pub(super) port: u16,
    /// The sequence number, which a repeated packet keeps and another connection does not have.
    pub(super) sequence: u32,
}

impl FirstPacket {
    /// Reads what the filter let through: a packet that begins with its IP header.
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let first = *bytes.first()?;
        let (source, to, header) = if first >> 4 == 4 {
            let address = |at| Some(IpAddr::V4(Ipv4Addr::from_octets(*bytes.get(at..)?.first_chunk()?)));
            (address(12)?, address(16)?, usize::from(first & 0xf) * 4)
        } else {
            let address = |at| Some(IpAddr::V6(Ipv6Addr::from_octets(*bytes.get(at..)?.first_chunk()?)));
            (address(8)?, address(24)?, 40)
        };
        let segment = bytes.get(header..)?;
        let port = u16::from_be_bytes(*segment.first_chunk()?);
        let sequence = u32::from_be_bytes(*segment.get(4..)?.first_chunk()?);
        Some(Self { source: source.to_canonical(), to, port, sequence })
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// The packet in full, with so many bytes of options in an IPv4 header.
    pub(in crate::observe) fn bytes(packet: FirstPacket, options: u8) -> Vec<u8> {
        let mut bytes = match (packet.source, packet.to) {
            (IpAddr::V4(source), IpAddr::V4(to)) => {
                let words = 5 + options / 4;
                let head = [0x40 | words, 0, 0, words * 4 + 20, 0, 0, 0x40, 0, 64, 6, 0, 0];
                let options = vec![1; options.into()];
                [&head[..], &source.octets(), &to.octets(), &options].concat()
            }
            (IpAddr::V6(source), IpAddr::V6(to)) => {
                [&[0x60, 0, 0, 0, 0, 20, 6, 64][..], &source.octets(), &to.octets()].concat()
            }
            other => panic!("{other:?}"),
        };
        bytes.extend(packet.port.to_be_bytes());
        bytes.extend(80_u16.to_be_bytes());
        bytes.extend(packet.sequence.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]);
        bytes
    }

    #[test]
    fn what_is_cut_off_is_no_packet_and_nothing_panics() {
        let v4 = FirstPacket {
            source: "10.0.0.1".parse().unwrap(),
            to: "169.254.169.254".parse().unwrap(),
            port: 1,
            sequence: 2,
        };
        let v6 = FirstPacket { source: "fd00::1".parse().unwrap(), to: "fd00:ec2::254".parse().unwrap(), ..v4 };
        for (packet, options, enough) in [(v4, 0, 28), (v4, 40, 68), (v6, 0, 48)] {
            let bytes = bytes(packet, options);
            for length in 0..bytes.len() {
                let expected = (length >= enough).then_some(packet);
                assert_eq!(FirstPacket::read(&bytes[..length]), expected, "{length}");
            }
        }
    }
}

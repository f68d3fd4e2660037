//! What the kernel lets through to us: a program of classic BPF over a packet that begins with its IP header. Pure.
//!
//! Only first packets (SYN without ACK) of TCP to port 80 of the addresses that are observed, that came in for the node to
//! forward: not what leaves it, what a switch floods to it or what a bridge's port has for the bridge. All else costs the
//! node this program and nothing more.

use std::net::IpAddr;

use socket2::SockFilter;

/// A first packet's headers, with all options of IPv4.
const KEPT_BYTES: u32 = 60 + 20;
const PORT: u32 = 80;
const TCP: u32 = 6;
const FIN_SYN_RST_ACK: u32 = 0b1_0111;
const SYN: u32 = 0b0_0010;
/// In the IPv4 header's field of flags: what is not the first fragment.
const FRAGMENT_OFFSET: u32 = 0x1fff;
const IPV6_HEADER_BYTES: u32 = 40;

// linux/filter.h: beyond this "offset" lies what the kernel itself knows of the packet.
const KNOWN: u32 = (-0x1000_i32).cast_unsigned();
const ETHERTYPE: u32 = KNOWN;
const PACKET_TYPE: u32 = KNOWN + 4;
const HAS_VLAN_TAG: u32 = KNOWN + 48;
/// `PACKET_HOST`: addressed to the link that it came by.
const TO_US: u32 = 0;
const ETHERTYPE_IPV4: u32 = 0x0800;
const ETHERTYPE_IPV6: u32 = 0x86dd;

/// The whole program for these addresses.
pub(super) fn of(addresses: &[IpAddr]) -> Vec<SockFilter> {
    let mut program = incoming();
    program.extend(first_packets_to(addresses));
    program
}

/// Drops everything.
pub(super) fn of_nothing() -> Vec<SockFilter> {
    vec![give(0)]
}

/// A frame with a VLAN's tag is seen again, without it, on the VLAN's own link.
fn incoming() -> Vec<SockFilter> {
    let mut program = vec![load_word(PACKET_TYPE)];
    program.extend(drop_unless(TO_US));
    program.push(load_word(HAS_VLAN_TAG));
    program.extend(drop_unless(0));
    program.extend([load_word(ETHERTYPE), if_equal(ETHERTYPE_IPV4, 2, 0)]);
    program.extend(drop_unless(ETHERTYPE_IPV6));
    program
}

fn first_packets_to(addresses: &[IpAddr]) -> Vec<SockFilter> {
    let (v4, v6) = (first_packets_v4(addresses), first_packets_v6(addresses));
    let mut program = vec![load_byte(0), shift_right(4), if_equal(4, 0, 1), jump(1), jump(length(&v4))];
    program.extend(v4);
    program.extend(drop_unless(6));
    program.extend(v6);
    program
}

fn first_packets_v4(addresses: &[IpAddr]) -> Vec<SockFilter> {
    let mut program = vec![load_byte(9)];
    program.extend(drop_unless(TCP));
    program.extend([load_half(6), if_any_bit(FRAGMENT_OFFSET, 0, 1), give(0)]);
    let words = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some([u32::from(*address)]),
        IpAddr::V6(_) => None,
    });
    program.extend(drop_unless_one_of(16, &words.collect::<Vec<_>>()));
    program.push(index_by_ipv4_header());
    program.extend(first_segment());
    program
}

/// Behind extension headers, which no client of these addresses sends, nothing is looked for.
fn first_packets_v6(addresses: &[IpAddr]) -> Vec<SockFilter> {
    let mut program = vec![load_byte(6)];
    program.extend(drop_unless(TCP));
    let words = addresses.iter().filter_map(|address| match address {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            // Four words, the first one first.
            Some([96, 64, 32, 0].map(|shift| u32::try_from(bits >> shift & u128::from(u32::MAX)).unwrap_or_default()))
        }
    });
    program.extend(drop_unless_one_of(24, &words.collect::<Vec<_>>()));
    program.push(index(IPV6_HEADER_BYTES));
    program.extend(first_segment());
    program
}

/// The TCP header is where the index says.
fn first_segment() -> Vec<SockFilter> {
    let mut program = vec![load_half_at_index(2)];
    program.extend(drop_unless(PORT));
    program.extend([load_byte_at_index(13), and(FIN_SYN_RST_ACK)]);
    program.extend(drop_unless(SYN));
    program.push(give(KEPT_BYTES));
    program
}

/// Goes on behind all of it where the words at the offset are those of one of the choices.
fn drop_unless_one_of<const WORDS: usize>(offset: u32, choices: &[[u32; WORDS]]) -> Vec<SockFilter> {
    let mut program = vec![give(0)];
    // From the last one on, each before what it passes over.
    for words in choices.iter().rev() {
        let mut choice = Vec::new();
        let mut words_left = u8::try_from(WORDS).unwrap_or_default();
        for (word, at) in words.iter().zip((offset..).step_by(4)) {
            words_left -= 1;
            // One that differs leads behind the words that are left, and behind the jump.
            choice.extend([load_word(at), if_equal(*word, 0, 2 * words_left + 1)]);
        }
        choice.push(jump(length(&program)));
        choice.append(&mut program);
        program = choice;
    }
    program
}

fn drop_unless(value: u32) -> [SockFilter; 2] {
    [if_equal(value, 1, 0), give(0)]
}

fn length(program: &[SockFilter]) -> u32 {
    u32::try_from(program.len()).unwrap_or(u32::MAX)
}

// The instructions, by their codes of linux/bpf_common.h.

const fn load_word(offset: u32) -> SockFilter {
    SockFilter::new(0x20, 0, 0, offset)
}

const fn load_half(offset: u32) -> SockFilter {
    SockFilter::new(0x28, 0, 0, offset)
}

const fn load_byte(offset: u32) -> SockFilter {
    SockFilter::new(0x30, 0, 0, offset)
}

const fn load_half_at_index(offset: u32) -> SockFilter {
    SockFilter::new(0x48, 0, 0, offset)
}

const fn load_byte_at_index(offset: u32) -> SockFilter {
    SockFilter::new(0x50, 0, 0, offset)
}

const fn index(value: u32) -> SockFilter {
    SockFilter::new(0x01, 0, 0, value)
}

/// Four times the lower half of the first byte.
const fn index_by_ipv4_header() -> SockFilter {
    SockFilter::new(0xb1, 0, 0, 0)
}

const fn shift_right(bits: u32) -> SockFilter {
    SockFilter::new(0x74, 0, 0, bits)
}

const fn and(bits: u32) -> SockFilter {
    SockFilter::new(0x54, 0, 0, bits)
}

/// Passes over as many instructions, if so and otherwise.
const fn if_equal(value: u32, so: u8, otherwise: u8) -> SockFilter {
    SockFilter::new(0x15, so, otherwise, value)
}

const fn if_any_bit(bits: u32, so: u8, otherwise: u8) -> SockFilter {
    SockFilter::new(0x45, so, otherwise, bits)
}

const fn jump(over: u32) -> SockFilter {
    SockFilter::new(0x05, 0, 0, over)
}

/// Ends the program; with so many bytes of the packet.
const fn give(bytes: u32) -> SockFilter {
    SockFilter::new(0x06, 0, 0, bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use socket2::{Domain, Socket, Type};

    use super::*;
    use crate::{
        intercept::{CONTAINER, METADATA_V4, METADATA_V6, POD_IDENTITY_V6},
        observe::packet::{self, FirstPacket},
    };

    /// What the kernel's own interpreter makes of a packet.
    fn let_through(addresses: &[IpAddr], packet: &[u8]) -> Option<Vec<u8>> {
        let (from, to) = Socket::pair(Domain::UNIX, Type::DGRAM, None).unwrap();
        to.attach_filter(&first_packets_to(addresses)).unwrap();
        to.set_nonblocking(true).unwrap();
        // One that the filter drops is refused to the sender.
        from.send(packet).ok();
        let mut bytes = [0; 256];
        (&to).read(&mut bytes).ok().map(|length| bytes[..length].to_vec())
    }

    fn observed() -> Vec<IpAddr> {
        vec![METADATA_V4.into(), METADATA_V6.into(), CONTAINER, POD_IDENTITY_V6]
    }

    #[test]
    fn first_packets_to_the_addresses_pass_and_can_be_read() {
        for (to, options) in [(0, 0), (2, 0), (0, 40), (1, 0), (3, 0)] {
            let to = observed()[to];
            let source = if to.is_ipv4() { "10.244.0.10" } else { "fd00:10:244::10" }.parse().unwrap();
            let sent = FirstPacket { source, to, port: 41_000, sequence: 0x0102_0304 };
            let bytes = packet::tests::bytes(sent, options);
            let got = let_through(&observed(), &bytes).unwrap_or_else(|| panic!("{sent:?}"));
            assert_eq!(FirstPacket::read(&got), Some(sent));
        }
    }

    #[test]
    fn nothing_else_passes() {
        let v4 = FirstPacket {
            source: "10.244.0.10".parse().unwrap(),
            to: METADATA_V4.into(),
            port: 41_000,
            sequence: 0x0102_0304,
        };
        let v6 = FirstPacket { source: "fd00:10:244::10".parse().unwrap(), to: METADATA_V6.into(), ..v4 };
        let (v4, v6) = (packet::tests::bytes(v4, 0), packet::tests::bytes(v6, 0));
        let changed = |bytes: &[u8], at: usize, byte: u8| {
            let mut bytes = bytes.to_vec();
            assert_ne!(bytes[at], byte);
            bytes[at] = byte;
            bytes
        };
        for (packet, what) in [
            (changed(&v4, 19, 253), "another address"),
            (changed(&v4, 16, 10), "another address"),
            (changed(&v4, 9, 17), "UDP"),
            (changed(&v4, 7, 1), "a later fragment"),
            (changed(&v4, 23, 81), "another port"),
            (changed(&v4, 22, 80), "another port"),
            (changed(&v4, 33, 0x12), "an answer: SYN and ACK"),
            (changed(&v4, 33, 0x10), "ACK"),
            (changed(&v4, 33, 0x03), "SYN and FIN"),
            (changed(&v4, 33, 0x06), "SYN and RST"),
            (changed(&v4, 0, 0x55), "another version"),
            (v4[..33].to_vec(), "cut off"),
            (changed(&v6, 39, 0x55), "another address"),
            (changed(&v6, 24, 0xfe), "another address"),
            (changed(&v6, 30, 1), "another address"),
            (changed(&v6, 6, 17), "UDP"),
            (changed(&v6, 43, 81), "another port"),
            (changed(&v6, 53, 0x12), "an answer: SYN and ACK"),
            (v6[..53].to_vec(), "cut off"),
            (Vec::new(), "nothing"),
        ] {
            assert_eq!(let_through(&observed(), &packet), None, "{what}: {packet:02x?}");
        }
        assert!(let_through(&observed(), &changed(&v4, 33, 0xc2)).is_some(), "SYN that offers ECN");
        for bytes in [&v4, &v6] {
            assert!(let_through(&observed(), bytes).is_some());
            assert!(let_through(&[], bytes).is_none());
            assert!(let_through(&[CONTAINER, POD_IDENTITY_V6], bytes).is_none());
        }
    }
}

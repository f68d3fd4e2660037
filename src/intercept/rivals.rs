//! Which of other programs' rules keep packets for an address from ours that come behind them.
//!
//! Pure, and only as far as one rule says it: where a jump to a chain of another program's leads is not followed. A rule
//! that is limited by more than protocol and port (a link, a mark) counts where it names the address or a range with it,
//! so that what kube-proxy and CNI plugins put before all others counts for nothing.

use std::net::IpAddr;

use super::Family;

/// The metadata service's.
const PORT: u16 = 80;
/// Targets after which a chain of `nat` says no more.
const ENDS: [&str; 8] = ["ACCEPT", "DNAT", "DROP", "NETMAP", "NFQUEUE", "REDIRECT", "REJECT", "RETURN"];
/// Targets after which the next rule is looked at.
const GOES_ON: [&str; 11] =
    ["CLASSIFY", "CONNMARK", "CONNSECMARK", "DSCP", "LOG", "MARK", "NFLOG", "SECMARK", "SET", "TOS", "TRACE"];
/// Matches that say no more than what is read here.
const PLAIN_MATCHES: [&str; 4] = ["comment", "iprange", "multiport", "tcp"];
/// Words of `nft` that limit a rule by no more than protocol, port and destination.
const PLAIN_WORDS: [&str; 13] =
    ["meta", "l4proto", "protocol", "tcp", "th", "dport", "ip", "ip6", "daddr", "counter", "packets", "bytes", "log"];

/// How a rule comes to be for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// It names it, or a range with it.
    Named,
    /// It is for all.
    All,
    /// By what cannot be seen here: what is in a set, say.
    Perhaps,
}

/// Whether a rule of `nat PREROUTING`, as `-S` prints it, leaves none of the address's packets to the rules behind it.
pub(super) fn takes(rule: &str, address: IpAddr) -> Option<Reach> {
    let rule = Rule::read(rule, address)?;
    let ends = ENDS.contains(&rule.target.as_str());
    rule.reach().filter(|reach| ends || *reach == Reach::Named && !GOES_ON.contains(&rule.target.as_str()))
}

/// Whether a rule of `raw` or `mangle` has the address's packets dropped, or never redirected.
pub(super) fn loses(rule: &str, address: IpAddr) -> Option<Reach> {
    let rule = Rule::read(rule, address)?;
    let loses = ["DROP", "NOTRACK", "TPROXY"].contains(&rule.target.as_str()) || rule.target == "CT" && rule.no_track;
    rule.reach().filter(|_| loses)
}

/// Whether what stands before its `verdict` in a rule of nftables lets the address's packets come to that.
pub(super) fn reaches(rule: &str, verdict: &str, address: IpAddr) -> Option<Reach> {
    let words = rule.split_whitespace().map(|word| word.trim_end_matches(',')).take_while(|word| *word != verdict);
    let words = words.collect::<Vec<_>>();
    let mut destination = Destination::Any;
    let (mut has_port, mut is_limited) = (false, false);
    let mut at = 0;
    while let Some(word) = words.get(at) {
        let before = at.checked_sub(1).and_then(|at| words.get(at)).copied();
        at += 1;
        if !PLAIN_WORDS.contains(word) {
            // A number is of a match that was told before, or of a counter.
            is_limited |= word.starts_with(|c: char| c.is_ascii_alphabetic() || c == '"' || c == '@');
            continue;
        }
        if !["daddr", "dport", "l4proto", "protocol"].contains(word) {
            continue;
        }
        let (is_not, values) = Values::read(&words, &mut at);
        match *word {
            "daddr" if before == Some(if address.is_ipv4() { "ip" } else { "ip6" }) => {
                destination = match values {
                    Values::Unseen => Destination::Unseen,
                    Values::Seen(values) => Destination::of(values.iter().any(|value| covers(value, address)), is_not),
                };
            }
            // Of the other family.
            "daddr" => return None,
            "dport" if before == Some("udp") || !values.fit(is_not, |value| has(value, PORT)) => return None,
            "dport" => has_port = true,
            _ if !values.fit(is_not, |value| value == "tcp") => return None,
            _ => {}
        }
    }
    match destination {
        Destination::Named => Some(Reach::Named),
        Destination::Elsewhere => None,
        Destination::Any if !is_limited => Some(Reach::All),
        Destination::Any if !has_port => None,
        Destination::Any | Destination::AllBut | Destination::Unseen => Some(Reach::Perhaps),
    }
}

/// Whether a rule of `INPUT`, as `-S` prints it, may keep out what is for a port; `false` also for a jump, which may.
pub(super) fn may_keep_out(rule: &str, port: u16) -> bool {
    rule == "-P INPUT DROP"
        || Rule::read_for(rule, None, port).is_some_and(|rule| ["DROP", "REJECT"].contains(&rule.target.as_str()))
}

/// Whether an address is one of these: as iptables and `nft` print an address, a prefix, a mask or a range.
#[must_use]
pub fn covers(addresses: &str, address: IpAddr) -> bool {
    let bits =
        |text: &str| text.parse::<IpAddr>().ok().filter(|other| other.is_ipv4() == address.is_ipv4()).map(number);
    if let Some((first, last)) = addresses.split_once('-') {
        return bits(first).zip(bits(last)).is_some_and(|(first, last)| (first..=last).contains(&number(address)));
    }
    let (network, length) =
        addresses.split_once('/').map_or((addresses, None), |(network, length)| (network, Some(length)));
    let whole = u32::from(Family::of(address).address_bits());
    let mask = match length.map(|length| (length.parse::<u32>(), bits(length))) {
        None => Some(u128::MAX),
        Some((Ok(length), _)) => Some(u128::MAX.checked_shl(whole.saturating_sub(length)).unwrap_or_default()),
        Some((Err(_), mask)) => mask,
    };
    bits(network).zip(mask).is_some_and(|(network, mask)| network & mask == number(address) & mask)
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

/// Whether a port is one of these: `80`, `80,443`, `80:90` or `80-90`.
fn has(ports: &str, port: u16) -> bool {
    ports.split(',').any(|ports| {
        let (first, last) = ports.split_once([':', '-']).unwrap_or((ports, ports));
        first.parse().ok().zip(last.parse().ok()).is_some_and(|(first, last)| (first..=last).contains(&port))
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Destination {
    Any,
    Named,
    Elsewhere,
    AllBut,
    Unseen,
}

impl Destination {
    fn of(covers: bool, is_not: bool) -> Self {
        match (covers, is_not) {
            (true, false) => Self::Named,
            (false, true) => Self::AllBut,
            _ => Self::Elsewhere,
        }
    }
}

/// What of a rule of iptables matters, if it can be for the address's packets by protocol and port.
struct Rule {
    destination: Destination,
    /// By more than is told here.
    is_limited: bool,
    target: String,
    no_track: bool,
}

// === impl Rule ===

impl Rule {
    fn read(rule: &str, address: IpAddr) -> Option<Self> {
        Self::read_for(rule, Some(address), PORT)
    }

    fn read_for(rule: &str, address: Option<IpAddr>, port: u16) -> Option<Self> {
        // What is in quotes is a comment or a text that is looked for in packets.
        let quoted = rule.replace("\\\"", "");
        let unquoted = quoted.split('"').enumerate().map(|(at, text)| if at % 2 == 0 { text } else { "_" });
        let unquoted = unquoted.collect::<String>();
        let mut words = unquoted.strip_prefix("-A ")?.split_whitespace().skip(1);
        let mut read =
            Self { destination: Destination::Any, is_limited: false, target: String::new(), no_track: false };
        let mut is_not = false;
        while let Some(word) = words.next() {
            match word {
                "!" => {
                    is_not = true;
                    continue;
                }
                "-d" | "--dst-range" => {
                    let addresses = words.next()?;
                    if let Some(address) = address {
                        read.destination = Destination::of(covers(addresses, address), is_not);
                    }
                }
                "-p" if ["tcp", "all"].contains(&words.next()?) == is_not => return None,
                "--dport" | "--dports" if has(words.next()?, port) == is_not => return None,
                "-p" | "--dport" | "--dports" => {}
                "-m" => read.is_limited |= !PLAIN_MATCHES.contains(&words.next()?),
                "--comment" => drop(words.next()),
                "-j" | "-g" => {
                    words.next()?.clone_into(&mut read.target);
                    read.no_track = words.any(|word| word == "--notrack");
                    break;
                }
                word => read.is_limited |= word.starts_with('-'),
            }
            is_not = false;
        }
        Some(read)
    }

    fn reach(&self) -> Option<Reach> {
        match self.destination {
            Destination::Named => Some(Reach::Named),
            Destination::Any if !self.is_limited => Some(Reach::All),
            Destination::AllBut => Some(Reach::All),
            Destination::Any | Destination::Elsewhere | Destination::Unseen => None,
        }
    }
}

/// What a match of `nft` compares with.
enum Values<'a> {
    Seen(Vec<&'a str>),
    /// A set of its own, or more than one field at once.
    Unseen,
}

// === impl Values ===

impl<'a> Values<'a> {
    /// Whether they are those that it must not be, and they.
    fn read(words: &[&'a str], at: &mut usize) -> (bool, Self) {
        let is_not = words.get(*at) == Some(&"!=");
        *at += usize::from(is_not);
        let first = words.get(*at).copied().unwrap_or(".");
        *at += 1;
        let values = if first == "{" {
            let inside = words.iter().skip(*at).copied().take_while(|word| *word != "}").collect::<Vec<_>>();
            *at += inside.len() + 1;
            Self::Seen(inside)
        } else if first.starts_with('@') || [".", "&", "map", "vmap"].contains(&first) {
            Self::Unseen
        } else {
            Self::Seen(vec![first])
        };
        (is_not, values)
    }

    fn fit(&self, is_not: bool, fits: impl Fn(&str) -> bool) -> bool {
        match self {
            Self::Seen(values) => values.iter().any(|value| fits(value)) != is_not,
            Self::Unseen => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4() -> IpAddr {
        "169.254.169.254".parse().unwrap()
    }

    #[test]
    fn an_address_is_in_prefixes_masks_and_ranges() {
        for (addresses, address, is_in) in [
            ("169.254.169.254", "169.254.169.254", true),
            ("169.254.169.254/32", "169.254.169.254", true),
            ("169.254.169.253/32", "169.254.169.254", false),
            ("169.254.169.0/24", "169.254.169.254", true),
            ("169.254.0.0/16", "169.254.170.2", true),
            ("169.254.168.0/24", "169.254.169.254", false),
            ("0.0.0.0/0", "169.254.169.254", true),
            ("169.0.169.0/255.0.255.0", "169.254.169.254", true),
            ("169.0.168.0/255.0.255.0", "169.254.169.254", false),
            ("169.254.169.1-169.254.169.254", "169.254.169.254", true),
            ("169.254.169.1-169.254.169.9", "169.254.169.254", false),
            ("fd00:ec2::/32", "fd00:ec2::254", true),
            ("fd00::/8", "169.254.169.254", false),
            ("::/0", "fd00:ec2::254", true),
            ("::/0", "169.254.169.254", false),
            ("name", "169.254.169.254", false),
        ] {
            assert_eq!(covers(addresses, address.parse().unwrap()), is_in, "{addresses} {address}");
        }
    }

    #[test]
    fn a_rule_of_iptables_takes_what_it_names_or_all_where_it_ends_the_chain() {
        for (rule, reach) in [
            (
                "-d 169.254.169.254/32 -i eni+ -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181",
                Some(Reach::Named),
            ),
            ("-d 169.254.169.0/24 -p tcp -m tcp --dport 80 -j DNAT --to-destination 10.0.0.1:8181", Some(Reach::Named)),
            ("-d 169.254.0.0/16 -m mark --mark 0x1 -j SOME-CHAIN", Some(Reach::Named)),
            ("-m iprange --dst-range 169.254.169.1-169.254.169.254 -j RETURN", Some(Reach::Named)),
            ("-d 169.254.169.0/24 -j MARK --set-xmark 0x1/0x1", None),
            ("-d 169.254.169.0/24 -p udp -m udp --dport 53 -j DNAT --to-destination 10.0.0.1:53", None),
            ("-d 169.254.169.0/24 -p tcp -m tcp --dport 443 -j DNAT --to-destination 10.0.0.1:53", None),
            ("-d 10.0.0.0/8 -p tcp -j ACCEPT", None),
            ("-p tcp -m tcp --dport 80 -j REDIRECT --to-ports 9999", Some(Reach::All)),
            ("-p tcp -m multiport --dports 80,443 -j REDIRECT --to-ports 9999", Some(Reach::All)),
            ("-p tcp -m multiport --dports 8000:8080,443 -j REDIRECT --to-ports 9999", None),
            ("-p tcp -m tcp --dport 81 -j RETURN", None),
            ("-p tcp -m tcp ! --dport 81 -j REDIRECT --to-ports 1", Some(Reach::All)),
            ("! -p udp -j ACCEPT", Some(Reach::All)),
            ("-m comment --comment \"-d 10.0.0.0/8 \\\" -i\" -j ACCEPT", Some(Reach::All)),
            ("-j ACCEPT", Some(Reach::All)),
            ("! -d 10.0.0.0/8 -i cni0 -p tcp -j REDIRECT --to-ports 9999", Some(Reach::All)),
            ("! -d 169.254.0.0/16 -p tcp -j REDIRECT --to-ports 9999", None),
            ("! -d 10.0.0.0/8 -j KUBE-MARK", None),
            // Those of kube-proxy, Calico, the VPC CNI, Docker and Cilium.
            ("-m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES", None),
            ("-m comment --comment \"cali:6gwbT8clXdHdC1b1\" -j cali-PREROUTING", None),
            ("-i eni+ -m comment --comment \"AWS, outbound connections\" -j AWS-CONNMARK-CHAIN-0", None),
            ("-m comment --comment \"AWS, CONNMARK\" -j CONNMARK --restore-mark --nfmask 0x80 --ctmask 0x80", None),
            ("-m addrtype --dst-type LOCAL -j DOCKER", None),
            ("-m comment --comment \"cilium-feeder: CILIUM_PRE_nat\" -j CILIUM_PRE_nat", None),
            ("-i docker0 -j RETURN", None),
            ("-m mark --mark 0x4000/0x4000 -j ACCEPT", None),
        ] {
            assert_eq!(takes(&format!("-A PREROUTING {rule}"), v4()), reach, "{rule}");
        }
        assert_eq!(takes("-P PREROUTING ACCEPT", v4()), None);
        let v6 = "fd00:ec2::254".parse().unwrap();
        assert_eq!(
            takes("-A PREROUTING -d fd00:ec2::/32 -p tcp -j DNAT --to-destination [fd00::1]:1", v6),
            Some(Reach::Named)
        );
    }

    #[test]
    fn a_rule_before_nat_loses_packets_where_it_drops_or_does_not_track_them() {
        for (rule, reach) in [
            ("-d 169.254.169.254/32 -j NOTRACK", Some(Reach::Named)),
            ("-d 169.254.0.0/16 -i eni+ -p tcp -j DROP", Some(Reach::Named)),
            ("-p tcp -m tcp --dport 80 -j CT --notrack", Some(Reach::All)),
            ("-d 169.254.0.0/16 -j CT --zone 1", None),
            ("-d 169.254.0.0/16 -j ACCEPT", None),
            ("-i eni+ -j DROP", None),
            ("-m rpfilter --invert -j DROP", None),
        ] {
            assert_eq!(loses(&format!("-A PREROUTING {rule}"), v4()), reach, "{rule}");
        }
    }

    #[test]
    fn a_rule_of_nftables_reaches_what_it_names_and_perhaps_what_is_in_a_set() {
        for (rule, reach) in [
            ("ip daddr 169.254.169.254 tcp dport 80 redirect to :8181", Some(Reach::Named)),
            ("iifname \"eni*\" ip daddr 169.254.0.0/16 tcp dport 80 redirect to :8181", Some(Reach::Named)),
            ("ip daddr { 10.0.0.1, 169.254.169.0/24 } tcp dport { 80, 443 } redirect to :8181", Some(Reach::Named)),
            ("ip daddr { 10.0.0.1, 10.0.0.2-10.0.0.9 } tcp dport 80 redirect to :8181", None),
            ("ip daddr 169.254.169.254 tcp dport { 53, 443 } redirect to :8181", None),
            ("ip daddr 169.254.169.254 udp dport 80 redirect to :8181", None),
            ("ip daddr @metadata tcp dport 80 redirect to :8181", Some(Reach::Perhaps)),
            ("ip daddr . tcp dport @metadata redirect to :8181", Some(Reach::Perhaps)),
            ("ip daddr != 10.0.0.0/8 tcp dport 80 redirect to :8181", Some(Reach::Perhaps)),
            ("ip daddr != 169.254.0.0/16 tcp dport 80 redirect to :8181", None),
            ("ip6 daddr ::/0 tcp dport 80 redirect to :8181", None),
            ("meta l4proto tcp tcp dport 80 counter packets 0 bytes 0 redirect to :8181", Some(Reach::All)),
            ("tcp dport 80-90 counter redirect to :8181", Some(Reach::All)),
            ("tcp dport != 81 redirect to :8181", Some(Reach::All)),
            ("iifname \"eni*\" tcp dport 80 redirect to :8181", Some(Reach::Perhaps)),
            ("meta l4proto udp redirect to :8181", None),
            ("iifname \"eni*\" redirect to :8181", None),
            ("tcp dport 81 redirect to :8181", None),
            ("redirect to :8181", Some(Reach::All)),
        ] {
            assert_eq!(reaches(rule, "redirect", v4()), reach, "{rule}");
        }
    }

    #[test]
    fn a_rule_of_input_may_keep_a_port_out() {
        for (rule, may) in [
            ("-P INPUT DROP", true),
            ("-P INPUT ACCEPT", false),
            ("-A INPUT -i docker0 -j ACCEPT", false),
            ("-A INPUT -p tcp -m tcp --dport 22 -j DROP", false),
            ("-A INPUT -p udp -j DROP", false),
            ("-A INPUT -s 10.0.0.0/8 -j REJECT --reject-with icmp-port-unreachable", true),
            ("-A INPUT -p tcp -m tcp --dport 9000:9200 -j DROP", true),
        ] {
            assert_eq!(may_keep_out(rule, 9169), may, "{rule}");
        }
    }
}

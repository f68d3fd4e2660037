//! This node: its rules as `rules check` sees them, where the kernel would route a pod's packets, and the real metadata service.

use std::{
    io,
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use futures::TryStreamExt as _;
use http::Uri;
use netlink_packet_route::{
    AddressFamily,
    link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage},
    neighbour::{NeighbourAddress, NeighbourAttribute},
    route::{RouteAddress, RouteAttribute, RouteMessage},
};
use rtnetlink::RouteMessageBuilder;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use super::{checks, checks::Check, report::Report};
use crate::{
    intercept::check::{self, Expected, Mark, Subject},
    operator::inventory::Read,
};

const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
const TIME_LIMIT: Duration = Duration::from_secs(3);
/// More than a node has pods.
const MOST_PODS: usize = 512;

/// What is to be seen on the node.
#[derive(Debug)]
pub(super) struct NodeFacts {
    /// Its name, if that is known.
    pub(super) name: Option<String>,
    /// What `rules check` says.
    pub(super) rules: Vec<check::Finding>,
    /// For each of pods' addresses, how the kernel would route its packets to the real metadata service.
    pub(super) ways: Read<Vec<Way>>,
    /// Whether the guard is wanted.
    pub(super) guards: bool,
    /// The real metadata service; `None` where there is none.
    pub(super) metadata: Option<Read<Metadata>>,
}

/// How a pod's packets would be routed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) address: Ipv4Addr,
    pub(super) link: String,
    /// They would be sent on, and not refused.
    pub(super) passes: bool,
}

/// What the real metadata service does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// The status of an answer to a request without a token.
    pub(super) without_token: u16,
}

// === impl NodeFacts ===

impl NodeFacts {
    pub(super) async fn read(name: Option<String>, expected: &Expected, metadata: Option<&Uri>) -> Self {
        let rules = check::findings(expected, &check::Facts::read(expected.admin).await);
        let metadata = match metadata {
            Some(endpoint) => Some(ask(endpoint).await.map_err(|error| error.to_string())),
            None => None,
        };
        Self { name, rules, ways: ways().await, guards: expected.wanted.is_some(), metadata }
    }
}

async fn ask(endpoint: &Uri) -> io::Result<Metadata> {
    let unusable = || io::Error::new(io::ErrorKind::InvalidInput, "has no host");
    let host = endpoint.host().ok_or_else(unusable)?.trim_matches(['[', ']']);
    let port = endpoint.port_u16().unwrap_or(80);
    let answer = async {
        let mut stream = TcpStream::connect((host, port)).await?;
        // What needs no token is the same to both versions of the protocol.
        let request = format!("GET /latest/meta-data/ HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        stream.take(64 * 1024).read_to_end(&mut answer).await?;
        let status = String::from_utf8_lossy(&answer).split(' ').nth(1).and_then(|status| status.parse().ok());
        let without_token =
            status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "what answers there speaks no HTTP"))?;
        Ok(Metadata { without_token })
    };
    tokio::time::timeout(TIME_LIMIT, answer).await.unwrap_or_else(|_elapsed| Err(io::ErrorKind::TimedOut.into()))
}

/// Asks the kernel for each pod's address and the link that leads to it.
async fn ways() -> Read<Vec<Way>> {
    let words = |error: rtnetlink::Error| error.to_string();
    let (connection, handle, _) = rtnetlink::new_connection().map_err(|error| error.to_string())?;
    tokio::spawn(connection);
    let links = handle.link().get().execute().try_collect::<Vec<_>>().await.map_err(words)?;
    let routes = RouteMessageBuilder::<Ipv4Addr>::new().build();
    let routes = handle.route().get(routes).execute().try_collect::<Vec<_>>().await.map_err(words)?;
    let neighbours = handle.neighbours().get().execute().try_collect::<Vec<_>>().await.map_err(words)?;
    let on_links = neighbours.iter().filter(|neighbour| neighbour.header.family == AddressFamily::Inet);
    let on_links = on_links.filter_map(|neighbour| {
        let address = neighbour.attributes.iter().find_map(|attribute| match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => Some(*address),
            _ => None,
        })?;
        Some((address, neighbour.header.ifindex))
    });
    let mut pods = routes.iter().filter_map(routed).chain(on_links).collect::<Vec<_>>();
    pods.sort_unstable();
    pods.dedup();
    let mut ways = Vec::new();
    for (address, index) in pods.into_iter().take(MOST_PODS) {
        let Some(link) = links.iter().find(|link| link.header.index == index).and_then(of_pods) else { continue };
        let question = RouteMessageBuilder::<Ipv4Addr>::new()
            .destination_prefix(METADATA, 32)
            .source_prefix(address, 32)
            .input_interface(index)
            .build();
        // Prohibited, unreachable, or from where it cannot be: whatever the error, it is not sent on.
        let passes = handle.route().get(question).execute().try_next().await.is_ok_and(|route| route.is_some());
        ways.push(Way { address, link, passes });
    }
    Ok(ways)
}

/// The name of a link that leads to pods: a veth, or a bridge.
fn of_pods(link: &LinkMessage) -> Option<String> {
    let leads_to_pods = link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => {
            infos.iter().any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Bridge)))
        }
        _ => false,
    });
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) if leads_to_pods => Some(name.clone()),
        _ => None,
    })
}

/// One address alone, and the link that a route leads to it by, without a gateway.
fn routed(route: &RouteMessage) -> Option<(Ipv4Addr, u32)> {
    if route.header.destination_prefix_length != 32
        || route.header.kind != netlink_packet_route::route::RouteType::Unicast
    {
        return None;
    }
    let (mut address, mut index) = (None, None);
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(to)) => address = Some(*to),
            RouteAttribute::Oif(to) => index = Some(*to),
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_) => return None,
            _ => {}
        }
    }
    address.zip(index)
}

/// What follows from it.
pub(super) fn look(node: &NodeFacts, report: &mut Report) {
    if let Some(name) = &node.name {
        report.seen("node", name);
    }
    for finding in &node.rules {
        match finding.mark {
            Mark::Ok => {}
            Mark::Unknown => report.unseen("a part of the node's rules", &finding.text),
            Mark::Warn if finding.subject == Subject::Others => {
                report.find(&checks::NODE_FOREIGN, &finding.text, mend(finding.subject));
            }
            Mark::Warn => report.find(&checks::NODE_RULES_NOTE, &finding.text, "docs/interception.md"),
            Mark::Fail => report.find(of(finding.subject), &finding.text, mend(finding.subject)),
        }
    }
    match &node.ways {
        Err(why) => report.unseen("how the kernel routes pods' packets", why),
        Ok(ways) => {
            let held = ways.iter().filter(|way| !way.passes).count();
            if !ways.is_empty() && node.guards {
                report.seen("guard", format!("{held} of {} ways of pods' are refused by the kernel", ways.len()));
            }
            for way in ways.iter().filter(|way| way.passes && node.guards) {
                let (address, link) = (IpAddr::V4(way.address), &way.link);
                report.find(
                    &checks::NODE_GUARD_PASSED,
                    format!("what {address} sends to {METADATA} by {link} would be sent on"),
                    "ip rule; the daemon puts its rules back: look into its log for why it does not",
                );
            }
        }
    }
    match &node.metadata {
        None => {}
        Some(Err(why)) => report.find(
            &checks::IMDS_SILENT,
            format!("{METADATA}: {why}"),
            "turn it on: aws ec2 modify-instance-metadata-options --http-endpoint enabled; off EC2: --imds-endpoint off",
        ),
        Some(Ok(Metadata { without_token: status })) if !matches!(status, 200 | 401) => {
            let mend = "aws ec2 describe-instances: MetadataOptions.HttpEndpoint must be enabled; off EC2: --imds-endpoint off";
            report.find(&checks::IMDS_SILENT, format!("{METADATA} answers {status}"), mend);
        }
        Some(Ok(metadata)) => {
            if metadata.without_token == 200 {
                report.find(
                    &checks::IMDS_V1,
                    "HttpTokens is optional on this node",
                    "aws ec2 modify-instance-metadata-options --http-tokens required --http-put-response-hop-limit 1 --instance-id ID",
                );
            }
            report.unseen(
                "the hop limit of the metadata service",
                "the node sees no packet's; aws ec2 describe-instances --query 'Reservations[].Instances[].MetadataOptions' does",
            );
        }
    }
}

fn of(subject: Subject) -> &'static Check {
    match subject {
        Subject::Guard => &checks::NODE_GUARD,
        Subject::Redirect => &checks::NODE_REDIRECT,
        Subject::Obstacles => &checks::NODE_OBSTACLE,
        Subject::Others => &checks::NODE_FOREIGN,
        Subject::HostNetwork => &checks::NODE_HOST_NETWORK,
        Subject::Daemon => &checks::NODE_DAEMON,
        Subject::Leftovers => &checks::NODE_LEFTOVERS,
        Subject::Addresses => &checks::NODE_RULES_NOTE,
    }
}

fn mend(subject: Subject) -> &'static str {
    match subject {
        Subject::Guard | Subject::Redirect => {
            "the daemon puts it back within a second: kubectl logs of its pod says why it cannot"
        }
        Subject::Obstacles => "docs/interception.md, \"What may be in the way\"",
        Subject::Others => {
            "take it out once we serve every node and its pods' roles are annotated, not before (docs/migrate.md)"
        }
        Subject::HostNetwork => "kubectl logs of the daemon's pod says why; docs/host-network.md",
        Subject::Daemon => "kubectl describe pod, and kubectl logs --previous, of the daemon's pod on this node",
        Subject::Leftovers => "kube2irsa rules remove",
        Subject::Addresses => "docs/interception.md, \"Whose address: links\"",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(rules: &[(Subject, Mark)], ways: Vec<Way>, metadata: Option<Read<Metadata>>) -> NodeFacts {
        let rules = rules.iter().map(|(subject, mark)| check::Finding {
            subject: *subject,
            mark: *mark,
            text: format!("{subject:?}"),
        });
        NodeFacts { name: None, rules: rules.collect(), ways: Ok(ways), guards: true, metadata }
    }

    fn found(node: &NodeFacts) -> (Vec<&'static str>, usize) {
        let mut report = Report::default();
        look(node, &mut report);
        let report = report.close();
        (report.findings.iter().map(|finding| finding.check.id).collect(), report.not_looked_at.len())
    }

    #[test]
    fn what_rules_check_finds_has_an_id_by_its_subject() {
        for (subject, id) in [
            (Subject::Guard, "node-guard"),
            (Subject::Redirect, "node-redirect"),
            (Subject::Obstacles, "node-obstacle"),
            (Subject::Others, "node-foreign-rules"),
            (Subject::HostNetwork, "node-host-network"),
            (Subject::Daemon, "node-daemon"),
            (Subject::Leftovers, "node-leftovers"),
        ] {
            assert_eq!(found(&facts(&[(subject, Mark::Fail)], Vec::new(), None)), (vec![id], 0));
            assert_eq!(found(&facts(&[(subject, Mark::Ok)], Vec::new(), None)), (vec![], 0));
            assert_eq!(found(&facts(&[(subject, Mark::Unknown)], Vec::new(), None)), (vec![], 1), "never well");
        }
        assert_eq!(found(&facts(&[(Subject::Addresses, Mark::Warn)], Vec::new(), None)).0, ["node-rules-note"]);
        assert_eq!(found(&facts(&[(Subject::Others, Mark::Warn)], Vec::new(), None)).0, ["node-foreign-rules"]);
    }

    #[test]
    fn a_packet_that_would_be_sent_on_has_passed_the_guard() {
        let way = |passes| Way { address: [10, 244, 0, 2].into(), link: "veth0".to_owned(), passes };
        assert_eq!(found(&facts(&[], vec![way(false)], None)).0, Vec::<&str>::new());
        assert_eq!(found(&facts(&[], vec![way(false), way(true)], None)).0, ["node-guard-passed"]);
        let observed = NodeFacts { guards: false, ..facts(&[], vec![way(true)], None) };
        assert_eq!(found(&observed).0, Vec::<&str>::new(), "none is wanted");
    }

    #[test]
    fn the_metadata_service_is_to_answer_with_a_token_alone() {
        let found = |metadata| found(&facts(&[], Vec::new(), Some(metadata))).0;
        assert_eq!(found(Ok(Metadata { without_token: 401 })), Vec::<&str>::new());
        assert_eq!(found(Ok(Metadata { without_token: 200 })), ["node-metadata-v1"]);
        assert_eq!(found(Err("timed out".to_owned())), ["node-metadata-silent"]);
        assert_eq!(found(Ok(Metadata { without_token: 403 })), ["node-metadata-silent"], "it is turned off");
    }
}

//! The node's own translation of addresses, and Services.

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};

use sandbox::{
    network::{NODE_ADDRESS, STS_ADDRESS},
    sandbox::{LISTEN, METADATA, NODE, Pod, Sandbox},
};

use super::{
    SHAPES, UNKNOWN, exposed, gets_the_node_role, pod, role, sh,
    support::{Daemon, ROLE_NAME, http::Connection, metric, sandbox_with, sdk_on_node},
};

/// The address that a server outside sees of the pod.
fn seen_outside(sandbox: &Sandbox, pod: &Pod) -> IpAddr {
    let server = SocketAddr::from((STS_ADDRESS, 7777));
    let listener = sandbox.outside().enter(|| TcpListener::bind(server).unwrap()).unwrap();
    let _connection = Connection::open(pod.network(), server).unwrap();
    listener.accept().unwrap().1.ip()
}

#[test]
fn masquerading_whatever_it_catches_leaves_the_pods_address_to_who_is_redirected() {
    let rules = [
        "iptables -w -t nat -A POSTROUTING -j MASQUERADE",
        "nft 'add table inet translation; \
         add chain inet translation post { type nat hook postrouting priority 90; }; \
         add rule inet translation post masquerade'",
    ];
    for (shape, rule) in SHAPES.into_iter().flat_map(|shape| rules.map(|rule| (shape, rule))) {
        let sandbox = sandbox_with(shape);
        let (web, other) = (pod(&sandbox, "web"), pod(&sandbox, "other"));
        sh(sandbox.node(), "iptables -w -t nat -F POSTROUTING");
        assert_eq!(seen_outside(&sandbox, &web), web.addresses().v4().unwrap());
        sh(sandbox.node(), rule);
        assert_eq!(seen_outside(&sandbox, &web), NODE_ADDRESS, "{rule}");
        exposed(&web);

        let _daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!(role(&web), Ok("web".to_owned()), "{shape:?}, {rule}");
        assert_eq!(role(&other), Ok("other".to_owned()), "{shape:?}, {rule}");
        assert_eq!(metric(&sandbox, UNKNOWN), 0.0);
    }
}

#[test]
fn where_the_node_changes_the_source_of_what_it_is_sent_a_pod_gets_nothing() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let (web, other) = (pod(&sandbox, "web"), pod(&sandbox, "other"));
        let _daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!(role(&web), Ok("web".to_owned()));
        for source in [NODE_ADDRESS, Ipv4Addr::new(10, 244, 0, 77)] {
            let rule = format!("INPUT -s {} -p tcp -j SNAT --to-source {source}", web.addresses().v4().unwrap());
            sh(sandbox.node(), &format!("iptables -w -t nat -A {rule}"));
            let before = metric(&sandbox, UNKNOWN);
            assert_eq!(role(&web), Err(404), "{shape:?}: as {source}");
            assert_eq!(metric(&sandbox, UNKNOWN), before + 1.0);
            assert_eq!(role(&other), Ok("other".to_owned()));
            sh(sandbox.node(), &format!("iptables -w -t nat -D {rule}"));
        }
        assert_eq!(role(&web), Ok("web".to_owned()));
    }
}

/// A Service's address, and the rules that lead from it, as kube-proxy writes them.
const SERVICE: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::new(10, 96, 0, 50)), 80);

fn service_leads_to(sandbox: &Sandbox, target: SocketAddr) {
    let rules = format!(
        "for chain in PREROUTING OUTPUT; do \
         iptables -w -t nat -I $chain -d {} -p tcp --dport 80 -j DNAT --to-destination {target}; done",
        SERVICE.ip()
    );
    sh(sandbox.node(), &rules);
}

#[test]
fn a_service_that_leads_to_the_metadata_service_or_to_us_leads_nowhere() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let web = pod(&sandbox, "web");
        sh(sandbox.node(), "iptables -w -t nat -A POSTROUTING -j MASQUERADE");
        service_leads_to(&sandbox, METADATA);
        assert!(gets_the_node_role(web.network(), SERVICE), "without us a pod must get the node's role by it");

        let _daemon = Daemon::ready(&sandbox, &[]);
        let before = sandbox.cloud.imds.credential_requests();
        let refused = Connection::open(web.network(), SERVICE).err().unwrap();
        println!("{shape:?}: {refused}");
        assert_eq!(sandbox.cloud.imds.credential_requests(), before);
        assert!(gets_the_node_role(sandbox.node(), SERVICE), "the node itself goes on as ever");

        service_leads_to(&sandbox, LISTEN);
        let mut let_in = Connection::open(web.network(), SERVICE).unwrap();
        assert!(let_in.send("GET", ROLE_NAME, &[]).is_err() || let_in.is_closed());
        assert_eq!(metric(&sandbox, "kube2irsa_direct_connections_total"), 1.0);
        assert_eq!(role(&web), Ok("web".to_owned()));
    }
}

#[test]
fn a_pod_that_asks_itself_or_our_port_is_refused_and_so_is_the_node_which_has_the_real_service() {
    for shape in SHAPES {
        let sandbox = sandbox_with(shape);
        let web = pod(&sandbox, "web");
        exposed(&web);
        // On the node's network, with a role: what asks from there cannot be told to be this pod.
        sandbox.add_service_account("team-a", "agent", "agent").unwrap();
        let agent = sandbox::kubernetes::NewPod::new("team-a", "agent").service_account("agent").node(NODE);
        sandbox.cloud.kubernetes.create_pod(agent.host_network());
        sandbox.cloud.kubernetes.run_pod("team-a", "agent", &[NODE_ADDRESS.into()]);
        let _daemon = Daemon::ready(&sandbox, &[]);

        let refuses = |namespace, server: SocketAddr| {
            let error = Connection::open(namespace, server).err().unwrap_or_else(|| panic!("{server} is there"));
            assert_eq!(error.kind(), std::io::ErrorKind::ConnectionRefused, "{shape:?}: {server}");
        };
        for own in [IpAddr::from(web.addresses().v4().unwrap()), Ipv4Addr::LOCALHOST.into()] {
            refuses(web.network(), (own, 80).into());
        }
        refuses(web.network(), LISTEN);
        refuses(sandbox.node(), LISTEN);
        assert!(gets_the_node_role(sandbox.node(), METADATA), "the node itself goes on as ever");
        assert!(sdk_on_node(&sandbox).arn.unwrap().contains("assumed-role/node/"));
        assert_eq!(role(&web), Ok("web".to_owned()));
    }
}

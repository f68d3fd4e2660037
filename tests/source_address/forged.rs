//! Pods with NET_ADMIN and NET_RAW that send with another's address.

use std::net::Ipv4Addr;

use sandbox::{
    network::{NODE_ADDRESS, PodNetwork},
    sandbox::{Pod, Sandbox},
};

use super::{
    LINK_CHANGED, forged, pod, resets_by, role, role_from, sh,
    support::{Daemon, eventually, metric, sandbox_with},
};

/// A pod that means to be another, in its own network namespace with all rights there.
struct Attack {
    sandbox: Sandbox,
    attacker: Pod,
    victim: Pod,
    _daemon: Daemon,
}

impl Attack {
    fn on(shape: PodNetwork) -> Self {
        let sandbox = sandbox_with(shape);
        let (attacker, victim) = (pod(&sandbox, "attacker"), pod(&sandbox, "victim"));
        let daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!((role(&attacker), role(&victim)), (Ok("attacker".to_owned()), Ok("victim".to_owned())));
        Self { sandbox, attacker, victim, _daemon: daemon }
    }

    fn attacker_does(&self, script: &str) -> String {
        sh(self.attacker.network(), script)
    }

    fn node_does(&self, script: &str) -> String {
        sh(self.sandbox.node(), script)
    }

    /// The node's link that leads to the pod.
    fn link_to(&self, pod: &Pod) -> String {
        self.node_does(&format!(
            "ip -o route get {} | sed 's/.* dev \\([^ ]*\\).*/\\1/'",
            pod.addresses().v4().unwrap()
        ))
    }

    fn ask_from(&self, source: Ipv4Addr) -> (Option<Result<String, u16>>, u64) {
        forged(&self.sandbox, self.attacker.network(), source)
    }
}

#[test]
fn on_links_of_their_own_a_pod_that_forges_anothers_address_is_not_heard_or_the_other_gets_the_answer() {
    let attack = Attack::on(PodNetwork::Routed);
    let (victim, link) = (attack.victim.addresses().v4().unwrap(), attack.link_to(&attack.attacker));
    attack.attacker_does(&format!("ip addr add {victim}/32 dev lo"));

    // The kernel drops what does not come by the link that leads to its source.
    let before = resets_by(&attack.victim);
    let (answer, packets) = attack.ask_from(victim);
    assert!(answer.is_none() && packets > 0, "{answer:?}, {packets} packets");
    assert_eq!(resets_by(&attack.victim), before);

    // Without that check, the handshake's answer goes to the victim, who knows nothing of it.
    attack.sandbox.node().set(&[(&format!("ipv4/conf/{link}/rp_filter"), "0")]).unwrap();
    let (answer, packets) = attack.ask_from(victim);
    assert!(answer.is_none() && packets > 0, "{answer:?}, {packets} packets");
    assert!(resets_by(&attack.victim) > before, "or this shows nothing of the answer's way");

    // Were the node to send it to the attacker, there is another link than the victim's.
    let of_victim = attack.link_to(&attack.victim);
    attack.node_does(&format!("ip route replace {victim}/32 dev {link} scope link"));
    let (answer, _) = attack.ask_from(victim);
    assert_eq!(answer, Some(Err(503)));
    assert_eq!(metric(&attack.sandbox, LINK_CHANGED), 1.0);

    attack.node_does(&format!("ip route replace {victim}/32 dev {of_victim} scope link"));
    eventually("the victim is served again", || role(&attack.victim) == Ok("victim".to_owned()));
    assert_eq!(role(&attack.attacker), Ok("attacker".to_owned()));
}

#[test]
fn who_forges_an_address_of_the_nodes_own_is_not_heard() {
    for shape in super::SHAPES {
        let attack = Attack::on(shape);
        // As kube-proxy sets it, and without any check of the reverse path.
        let node = attack.sandbox.node();
        let links = attack.node_does("ls /proc/sys/net/ipv4/conf");
        for link in links.lines() {
            let path = |name| format!("ipv4/conf/{link}/{name}");
            node.set(&[(&path("rp_filter"), "0"), (&path("route_localnet"), "1")]).unwrap();
        }
        attack.attacker.network().set(&[("ipv4/conf/all/route_localnet", "1")]).unwrap();
        attack.attacker_does(&format!("ip addr add {NODE_ADDRESS}/32 dev lo"));
        for source in [NODE_ADDRESS, Ipv4Addr::LOCALHOST] {
            let (answer, packets) = attack.ask_from(source);
            assert!(answer.is_none() && packets > 0, "{shape:?}, {source}: {answer:?}, {packets} packets");
        }
        assert_eq!(role(&attack.attacker), Ok("attacker".to_owned()));
    }
}

#[test]
fn on_a_bridge_who_takes_anothers_address_is_noticed_with_its_own_hardware_address_and_with_the_others() {
    for takes_hardware_address in [false, true] {
        let attack = Attack::on(PodNetwork::Bridge);
        let victim = attack.victim.addresses().v4().unwrap();
        let own = sh(attack.attacker.network(), "cat /sys/class/net/eth0/address");
        let of_victim = sh(attack.victim.network(), "cat /sys/class/net/eth0/address");
        attack.attacker_does(&format!("ip addr add {victim}/24 dev eth0"));

        // Unannounced: the node still knows the victim's hardware address, and answers there.
        let before = resets_by(&attack.victim);
        let (answer, packets) = attack.ask_from(victim);
        assert!(answer.is_none() && packets > 0, "{answer:?}, {packets} packets");
        assert!(resets_by(&attack.victim) > before, "or this shows nothing of the answer's way");

        // Announced, as an address that has moved: to set the hardware address announces all.
        attack.attacker.network().set(&[("ipv4/conf/eth0/arp_notify", "1")]).unwrap();
        let hardware_address = if takes_hardware_address { &of_victim } else { &own };
        attack.attacker_does(&format!("ip link set eth0 address {hardware_address}"));
        let mut first = None;
        eventually("it is noticed", || {
            let answer = role_from(attack.attacker.network(), victim);
            first.get_or_insert_with(|| format!("{answer:?}"));
            answer.is_ok_and(|answer| answer == Err(503))
        });
        println!("takes the hardware address: {takes_hardware_address}; the first answer: {}", first.unwrap());
        assert!(metric(&attack.sandbox, LINK_CHANGED) >= 1.0);
        // And from then on nothing, for as long as the attacker has it.
        for _ in 0..3 {
            let answer = role_from(attack.attacker.network(), victim);
            assert!(matches!(answer, Err(_) | Ok(Err(503))), "{takes_hardware_address}: {answer:?}");
        }
        // The victim speaks up, and the attacker has left.
        attack.attacker_does(&format!("ip addr del {victim}/24 dev eth0; ip link set eth0 address {own}"));
        sh(attack.victim.network(), &format!("ip link set eth0 address {of_victim}"));
        eventually("the victim is served again", || role(&attack.victim) == Ok("victim".to_owned()));
    }
}

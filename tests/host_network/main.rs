//! Pods on the node's own network: told by their cgroup, served as themselves, and kept from the node's role. Each test
//! that says "never the node's" shows first that the pod gets it without us.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

#[path = "../support/mod.rs"]
mod support;

#[allow(unreachable_pub, reason = "a part of one test binary")]
mod agent;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use nix::sys::signal::Signal;
use sandbox::{
    cloud::NODE_ROLE,
    kubernetes::NewPod,
    network::{Families, PodNetwork},
    sandbox::{DAEMON, DAEMON_POD, Folders, HostPod, NODE, Sandbox},
};
use serde_json::{Value, json};

use self::{
    agent::Agent,
    support::{
        Daemon, daemon_binary, eventually, metric,
        node::{kube2irsa, kube2irsa_rules, sh},
        role_status, sandbox, sandbox_binary, sandbox_of, sdk, sdk_on_node, without_but,
    },
};

const KUBELET: &str = "system.slice/kubelet.service";
const FLUSH: &str = "nft flush ruleset";
const POD_LOOKUPS: &str = "kube2irsa_host_network_lookups_total{result=\"pod\"}";

fn is(role: &str) -> (i64, String) {
    (200, role.to_owned())
}

fn none() -> (i64, String) {
    (404, String::new())
}

/// A pod on the node's network with a role of its own, and a process in it, which has got the node's role without us.
fn exposed(sandbox: &Sandbox, namespace: &str, name: &str) -> (HostPod, Agent) {
    sandbox.add_service_account(namespace, name, name).unwrap();
    let pod = sandbox.add_host_pod(namespace, name, name).unwrap();
    let agent = got_the_nodes(sandbox, &pod);
    (pod, agent)
}

fn got_the_nodes(sandbox: &Sandbox, pod: &HostPod) -> Agent {
    let mut agent = Agent::in_pod(sandbox, pod);
    assert_eq!(agent.role(), is(NODE_ROLE), "without us it must get the node's role, or this proves nothing");
    agent
}

fn started(sandbox: &Sandbox, pod: &HostPod, privileged: bool, flags: &[&str]) -> Daemon {
    Daemon::of(sandbox, sandbox.daemon_in(pod, &[daemon_binary()], privileged).unwrap().args(flags))
}

/// The daemon as a privileged pod, which is in the node's own cgroup namespace.
fn ready(sandbox: &Sandbox, flags: &[&str]) -> Daemon {
    let pod = sandbox.daemon_pod(Some("burstable")).unwrap();
    let mut daemon = started(sandbox, &pod, true, flags);
    daemon.wait_until_ready(sandbox);
    daemon
}

/// Runs `tries` and fails if the real service handed out anything meanwhile.
fn nothing_is_handed_out(sandbox: &Sandbox, tries: impl FnOnce()) {
    let before = sandbox.cloud.imds.credential_requests();
    tries();
    assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
}

fn document(role: &str) -> String {
    format!("{}{role}", support::ROLE_NAME)
}

#[test]
fn each_gets_its_own_role_and_the_node_and_other_pods_what_they_got() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let (_, mut other) = exposed(&sandbox, "team-b", "other");
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let mut kubelet = Agent::on_node(&sandbox, KUBELET);
    // By default, where all is there.
    let _daemon = ready(&sandbox, &[]);
    assert_eq!(metric(&sandbox, "kube2irsa_host_network_info{mode=\"serve\"}"), 1.0);
    nothing_is_handed_out(&sandbox, || {
        for _ in 0..3 {
            assert_eq!(one.role(), is("one"));
            assert_eq!(other.role(), is("other"));
            assert!(one.get(&document("one")).1.contains("\"AccessKeyId\""));
            assert_eq!(one.get(&document("other")), none());
            assert_eq!(one.get(&document(NODE_ROLE)), none());
        }
    });
    // At the container endpoint too.
    let container = json!({"what": "get", "to": "169.254.170.2", "path": "/v1/credentials"});
    assert!(one.does(container.clone()).1.contains(":role/one\""));
    assert!(other.does(container).1.contains(":role/other\""));
    // Session tokens are each pod's own, though the address is the same.
    let put = json!({"what": "get", "method": "PUT", "path": "/latest/api/token",
        "headers": ["X-aws-ec2-metadata-token-ttl-seconds: 60"]});
    let (_, token) = one.does(put);
    let with =
        json!({"what": "get", "path": support::ROLE_NAME, "headers": [format!("X-aws-ec2-metadata-token: {token}")]});
    assert_eq!(one.does(with.clone()), is("one"));
    assert_eq!(other.does(with).0, 401);

    assert_eq!(kubelet.role(), is(NODE_ROLE), "the node's own go on as ever");
    assert!(kubelet.get(&document(NODE_ROLE)).1.contains("\"AccessKeyId\""));
    assert!(sdk_on_node(&sandbox).arn.unwrap().contains("assumed-role/node/"));
    let before = metric(&sandbox, POD_LOOKUPS);
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
    assert_eq!(role_status(&web), 200);
    assert_eq!(metric(&sandbox, POD_LOOKUPS), before, "of pods with an address nothing is asked");

    // A connection is asked about once.
    one.does(json!({"what": "open", "name": "kept"}));
    for _ in 0..100 {
        assert_eq!(one.role_on("kept"), is("one"));
    }
    assert_eq!(metric(&sandbox, POD_LOOKUPS), before + 1.0);

    // What is heard of the pod counts on a connection that is kept.
    sandbox.annotate("team-a", "one", &[]);
    eventually("its role is gone", || one.role_on("kept") == none());
    sandbox.cloud.kubernetes.delete_pod("team-b", "other");
    eventually("it is gone", || other.role() == none());
}

/// The first example of such a pod: the agent of the VPC CNI.
#[test]
fn aws_node_gets_its_role_by_an_unmodified_sdk() {
    let sandbox = sandbox();
    let (pod, _) = exposed(&sandbox, "kube-system", "aws-node");
    let sdk = || {
        let output = sandbox.in_host_pod(&pod, sandbox_binary()).unwrap().arg("--client").output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let without = sdk();
    assert!(without.contains("assumed-role/node/"), "{without}");
    let paths = "/latest/meta-data/mac,/latest/meta-data/local-ipv4";
    let _daemon = ready(&sandbox, &["--namespace-policy", "annotated", "--allow-path", paths]);
    let with = sdk();
    assert!(with.contains("assumed-role/aws-node/"), "{with}");
    // What else it reads of the service is there as it is for other pods.
    let mut agent = Agent::in_pod(&sandbox, &pod);
    assert_eq!(agent.get("/latest/meta-data/local-ipv4").0, 200);
    assert_eq!(agent.get("/latest/meta-data/placement/region").0, 200);
    assert_eq!(agent.get("/latest/user-data"), none());
}

#[test]
fn who_is_no_pod_of_the_nodes_network_by_what_the_api_server_knows_gets_nothing() {
    let sandbox = sandbox();
    let (one, _) = exposed(&sandbox, "team-a", "one");
    let in_cgroup_of =
        |uid: &str| sandbox.contain("", "", uid.to_owned(), Folders::Systemd, Some("burstable")).unwrap();
    let unknown = in_cgroup_of("11111111-2222-4333-8444-555555555555");
    // A plain pod's UID: that has an address, and is known by it.
    let web = sandbox.add_pod("team-a", "web-0", "one").unwrap();
    let plain = in_cgroup_of(&web.uid);
    // A static pod: its cgroup has the hash of its file, by which the API server's mirror of it names it.
    let hash = "5f1b4e6b8a2d4c0e9f7a1b2c3d4e5f60";
    let mirror = |name: &str, hash: &str| {
        let pod = NewPod::new("team-a", name).service_account("one").node(NODE).host_network();
        let pod = pod.annotation("kubernetes.io/config.hash", hash).annotation("kubernetes.io/config.mirror", hash);
        sandbox.cloud.kubernetes.create_pod(pod);
    };
    mirror("static", hash);
    let of_file = in_cgroup_of(hash);
    // Nobody becomes another by an annotation.
    mirror("forged", &unknown.uid);
    mirror("forged-too", &one.uid);
    let mut agents = [&unknown, &plain, &of_file].map(|pod| got_the_nodes(&sandbox, pod));
    let mut beside = Agent::on_node(&sandbox, "kubepods.slice/kubepods-burstable.slice/beside.scope");
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    nothing_is_handed_out(&sandbox, || {
        for agent in agents.iter_mut().chain([&mut beside]) {
            assert_eq!(agent.role(), none());
            assert_eq!(agent.get(&document(NODE_ROLE)), none());
            assert_eq!(agent.get(&document("one")), none());
        }
    });
    assert_eq!(Agent::in_pod(&sandbox, &one).role(), is("one"));
    assert!(metric(&sandbox, "kube2irsa_unidentified_requests_total{reason=\"host_process\"}") > 0.0);
}

#[test]
fn with_deny_they_get_no_role_and_with_off_the_nodes() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let daemon = ready(&sandbox, &["--host-network", "deny"]);
    nothing_is_handed_out(&sandbox, || {
        assert_eq!(one.role(), none());
        assert_eq!(one.get(&document(NODE_ROLE)), none());
        assert_eq!(one.get(&document("one")), none());
    });
    assert_eq!(one.get("/latest/meta-data/placement/region").0, 200, "what is no secret is told");
    assert!(daemon.stop().success());
    let _daemon = ready(&sandbox, &["--host-network", "off"]);
    eventually("the rules of the earlier run are out", || one.role() == is(NODE_ROLE));
}

#[test]
fn a_socket_is_its_makers_wherever_it_goes_and_nobodys_once_that_cgroup_is_gone() {
    let sandbox = sandbox();
    let (one_pod, mut one) = exposed(&sandbox, "team-a", "one");
    let (other_pod, mut other) = exposed(&sandbox, "team-b", "other");
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    let path = sandbox.directory().join("hand").to_str().unwrap().to_owned();

    // Handed over before it is connected, and after.
    for (made, open) in [("make", false), ("open", true)] {
        other.does(json!({"what": "listen", "path": path}));
        assert_eq!(one.does(json!({"what": made, "name": "s"})), (0, String::new()));
        assert_eq!(one.does(json!({"what": "hand", "name": "s", "path": path})).0, 0);
        assert_eq!(other.does(json!({"what": "take", "name": "s"})).0, 0);
        if !open {
            assert_eq!(other.does(json!({"what": "connect", "name": "s"})).0, 0);
        }
        assert_eq!(other.role_on("s"), is("one"), "who made it gave away what it could have asked for itself");
        assert_eq!(other.role(), is("other"));
        std::fs::remove_file(&path).unwrap();
    }

    // Who is moved to another cgroup is that one's, but for the sockets that it has.
    let mut moved = Agent::in_pod(&sandbox, &one_pod);
    moved.does(json!({"what": "make", "name": "before"}));
    moved.does(json!({"what": "make", "name": "late"}));
    assert_eq!(moved.does(json!({"what": "move", "path": other_pod.container})), (0, String::new()));
    moved.does(json!({"what": "connect", "name": "before"}));
    assert_eq!(moved.role_on("before"), is("one"));
    assert_eq!(moved.role(), is("other"));

    // The container ends, and with it its cgroup; its socket lives on, and is nobody's.
    drop(one);
    eventually("the container's cgroup is gone", || sandbox.cgroups().unwrap().remove(&one_pod.container).is_ok());
    moved.does(json!({"what": "connect", "name": "late"}));
    assert_eq!(moved.role_on("late"), none());
    // What was known of it before is of no use either: the same with another container of the pod.
    let next = HostPod { container: one_pod.container.replace("4711", "4712"), ..one_pod };
    sandbox.cgroups().unwrap().make(&next.container).unwrap();
    assert_eq!(Agent::in_pod(&sandbox, &next).role(), is("one"));
    moved.does(json!({"what": "close", "name": "late"}));
}

#[test]
fn clients_that_leave_at_once_cost_nobody_anything_and_give_nobody_anything() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let (_, mut other) = exposed(&sandbox, "team-b", "other");
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    nothing_is_handed_out(&sandbox, || {
        for _ in 0..200 {
            one.does(json!({"what": "open", "name": "s"}));
            one.tell(json!({"what": "reset", "name": "s"}));
            assert_eq!(other.role(), is("other"));
            one.told();
        }
        assert_eq!(one.role(), is("one"));
    });
}

#[test]
fn while_rules_are_flushed_they_are_refused_and_then_served_again() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    one.does(json!({"what": "open", "name": "before"}));
    assert_eq!(one.role_on("before"), is(NODE_ROLE));
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    assert_eq!(metric(&sandbox, "kube2irsa_host_network_rules{part=\"guard\"}"), 1.0);
    nothing_is_handed_out(&sandbox, || {
        assert_eq!(one.role_on("before").0, -1, "a connection from before us ends");
        for _ in 0..5 {
            sh(&sandbox, FLUSH);
            let flushed = Instant::now();
            loop {
                let (status, role) = one.role();
                assert_ne!(role, NODE_ROLE);
                if status == 200 {
                    break;
                }
                assert!(flushed.elapsed() < support::PATIENCE, "{status} {role}");
            }
            println!("served again after {:?}", flushed.elapsed());
        }
    });
    assert!(metric(&sandbox, "kube2irsa_rules_restored_total{part=\"host_redirect\"}") >= 1.0);
    assert_eq!(Agent::on_node(&sandbox, KUBELET).role(), is(NODE_ROLE));
}

#[test]
fn killed_they_are_refused_and_the_next_daemon_serves_them_and_a_hand_over_interrupts_nobody() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let first = ready(&sandbox, &["--host-network", "serve"]);
    nothing_is_handed_out(&sandbox, || {
        assert_eq!(one.role(), is("one"));
        first.kill();
        assert_eq!(one.role().0, -1, "refused");
    });
    assert_eq!(Agent::on_node(&sandbox, KUBELET).role(), is(NODE_ROLE));
    let second = ready(&sandbox, &["--host-network", "serve"]);
    assert_eq!(one.role(), is("one"));
    // The next one is a pod of its own, and asks the real service for the region as the one before did.
    let pod = sandbox.add_host_pod(DAEMON, "kube2irsa-next", DAEMON).unwrap();
    let mut third = started(&sandbox, &pod, true, &["--host-network", "serve"]);
    let start = Instant::now();
    nothing_is_handed_out(&sandbox, || {
        while !third.log().contains("took over from the daemon that ran here") {
            assert_eq!(one.role(), is("one"));
            assert!(start.elapsed() < support::PATIENCE, "{}", third.log());
        }
        assert!(second.stop().success());
        third.wait_until_ready(&sandbox);
        for _ in 0..50 {
            assert_eq!(one.role(), is("one"));
        }
    });
    eventually("the guard is the next one's", || {
        metric(&sandbox, "kube2irsa_host_network_rules{part=\"guard\"}") == 1.0
    });
}

#[test]
fn rules_come_with_kubelets_folder_and_go_with_rules_remove() {
    let sandbox = sandbox();
    let cgroups = sandbox.cgroups().unwrap();
    let before = support::node::everything(&sandbox);
    // A daemon of the node's own, before there is kubelet.
    cgroups.make("system.slice/kube2irsa.service").unwrap();
    let unit = HostPod { container: "system.slice/kube2irsa.service".to_owned(), ..pod_without_folder() };
    let mut daemon = started(&sandbox, &unit, true, &["--host-network", "serve"]);
    daemon.wait_until_ready(&sandbox);
    assert_eq!(metric(&sandbox, "kube2irsa_host_network_rules{part=\"redirect\"}"), 0.0);
    sandbox.add_service_account("team-a", "one", "one").unwrap();
    for folders in [Folders::Systemd, Folders::Cgroupfs, Folders::Kind] {
        for (class, name) in
            [(Some("burstable"), "burstable"), (Some("besteffort"), "besteffort"), (None, "guaranteed")]
        {
            let name = format!("{folders:?}-{name}").to_lowercase();
            let pod = sandbox.add_host_pod_in("team-a", &name, "one", folders, class).unwrap();
            let made = Instant::now();
            let mut agent = Agent::in_pod(&sandbox, &pod);
            eventually("it is served", || agent.role() == is("one"));
            println!("{name}: after {:?}", made.elapsed());
        }
    }
    let (_, shown, _) = kube2irsa_rules(&sandbox, &["show"]);
    assert!(shown.contains("table inet kube2irsa_host {"), "{shown}");
    let (code, found, _) = kube2irsa_rules(&sandbox, &["check", "--host-network", "serve"]);
    assert_eq!(code, Some(0), "{found}");
    assert!(found.contains("pods on the node's network: redirected, also through a flush"), "{found}");
    let (code, found, _) = kube2irsa_rules(&sandbox, &["check", "--host-network", "off"]);
    assert_eq!(code, Some(1), "{found}");

    assert!(daemon.stop().success());
    let (_, shown, _) = kube2irsa_rules(&sandbox, &["show"]);
    assert!(shown.contains("table inet kube2irsa_host {"), "the redirect stays: {shown}");
    assert!(!shown.contains("table inet kube2irsa_host_guard"), "a table of a process's goes with it: {shown}");
    let (code, _, error) = kube2irsa_rules(&sandbox, &["remove"]);
    assert_eq!(code, Some(0), "{error}");
    assert_eq!(support::node::everything(&sandbox), before);
}

fn pod_without_folder() -> HostPod {
    HostPod { namespace: String::new(), name: String::new(), uid: String::new(), container: String::new() }
}

#[test]
fn with_a_cgroup_namespace_of_its_own_the_daemon_tells_pods_apart_if_it_is_a_guaranteed_one() {
    let sandbox = sandbox();
    let cgroups = sandbox.cgroups().unwrap();
    let mut pods = Vec::new();
    for (class, name) in [(Some("burstable"), "b"), (Some("besteffort"), "e"), (None, "g")] {
        sandbox.add_service_account("team-a", name, name).unwrap();
        let pod = sandbox.add_host_pod_in("team-a", name, name, Folders::Systemd, class).unwrap();
        pods.push((name, got_the_nodes(&sandbox, &pod)));
    }
    let shallow = ["system.slice/kubelet.service", "user.slice/user-0.slice/session-1.scope", "a/b/c/d/e"];
    let mut node = shallow.map(|cgroup| Agent::on_node(&sandbox, cgroup));

    let pod = sandbox.daemon_pod(Some("burstable")).unwrap();
    let mut refused = started(&sandbox, &pod, false, &["--host-network", "serve"]);
    assert!(!refused.process.wait().unwrap().success());
    assert!(refused.log().contains("QoS class Guaranteed"), "{}", refused.log());
    let mut off = started(&sandbox, &pod, false, &[]);
    off.wait_until_ready(&sandbox);
    assert_eq!(metric(&sandbox, "kube2irsa_host_network_info{mode=\"off\"}"), 1.0, "{}", off.log());
    assert!(off.log().contains("pods on the node's network are left the node's role"), "{}", off.log());
    assert!(off.stop().success());

    let pod = sandbox.daemon_pod(None).unwrap();
    let mut daemon = started(&sandbox, &pod, false, &["--host-network", "serve"]);
    daemon.wait_until_ready(&sandbox);
    nothing_is_handed_out(&sandbox, || {
        for (name, agent) in &mut pods {
            assert_eq!(agent.role(), is(name));
        }
    });
    for agent in &mut node {
        assert_eq!(agent.role(), is(NODE_ROLE));
    }
    // A session that begins later is exempt once it was seen.
    cgroups.make("user.slice/user-0.slice/session-2.scope").unwrap();
    let mut later = Agent::on_node(&sandbox, "user.slice/user-0.slice/session-2.scope");
    eventually("it is seen", || later.role() == is(NODE_ROLE));
    nothing_is_handed_out(&sandbox, || {
        for _ in 0..3 {
            sh(&sandbox, FLUSH);
            for (name, agent) in &mut pods {
                eventually("it is served", || {
                    let (_, role) = agent.role();
                    assert_ne!(role, NODE_ROLE);
                    role == *name
                });
            }
        }
    });
}

#[test]
fn it_needs_net_admin_and_to_see_the_nodes_cgroups_and_nothing_else() {
    let sandbox = sandbox();
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let pod = sandbox.daemon_pod(None).unwrap();
    let bounding = without_but(&["net_admin"]);
    let confined = ["setpriv", &bounding, "--inh-caps=-all", "--ambient-caps=-all", "--no-new-privs"].map(Path::new);
    let program = [&confined[..], &[daemon_binary()]].concat();
    let command = sandbox.daemon_in(&pod, &program, false).unwrap().args(["--host-network", "serve"]);
    let mut daemon = Daemon::of(&sandbox, command);
    daemon.wait_until_ready(&sandbox);
    nothing_is_handed_out(&sandbox, || {
        assert_eq!(one.role(), is("one"));
        sh(&sandbox, FLUSH);
        eventually("it is served again", || {
            let (_, role) = one.role();
            assert_ne!(role, NODE_ROLE);
            role == "one"
        });
    });
}

#[test]
fn explain_and_the_figures_say_what_becomes_of_such_a_pod() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "one", "one").unwrap();
    sandbox.add_host_pod("team-a", "one", "one").unwrap();
    let socket = sandbox.admin_socket();
    let explain = |pod: &str| {
        let words = ["explain", pod, "-o", "json", "--admin-socket", socket.to_str().unwrap()];
        let (code, said, _) = kube2irsa(&sandbox, &words);
        println!("{said}");
        (code.unwrap(), serde_json::from_str::<Value>(&said).unwrap())
    };
    let pod =
        |said: &Value| said["steps"].as_array().unwrap().iter().find(|step| step["step"] == "pod").unwrap().clone();
    for (mode, class, says) in [
        ("serve", "served", "the cgroup of its sockets"),
        ("deny", "no_role", "denied any role (--host-network deny)"),
        ("off", "exempt", "left the node's role (--host-network off): as --host-network says"),
    ] {
        let daemon = ready(&sandbox, &["--host-network", mode]);
        let pods = |class: &str| metric(&sandbox, &format!("kube2irsa_pods{{credentials=\"{class}\"}}"));
        // The daemon's own pod is exempt.
        let expected = if class == "exempt" { (2.0, 2.0) } else { (1.0, 1.0) };
        eventually("each pod is counted as what it is", || (pods(class), pods("exempt")) == expected);
        let (code, said) = explain("team-a/one");
        let step = pod(&said);
        assert_eq!((code == 0, &said["well"]), (mode == "serve", &json!(mode == "serve")), "{said:#}");
        assert_eq!((&step["host_network"], &step["host_network_mode"]), (&json!(true), &json!(mode)), "{said:#}");
        assert!(step["says"].as_str().unwrap().contains(says), "{said:#}");
        let (code, said) = explain(&format!("{DAEMON}/{DAEMON_POD}"));
        assert_eq!(code, 1, "{said:#}");
        let ours = if mode == "off" { "left the node's role" } else { "the daemon's own service account" };
        assert!(pod(&said)["says"].as_str().unwrap().contains(ours), "{said:#}");
        assert!(daemon.stop().success());
    }
}

#[test]
fn over_ipv6_it_is_the_same() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::Dual);
    let (_, mut one) = exposed(&sandbox, "team-a", "one");
    let (_, mut other) = exposed(&sandbox, "team-b", "other");
    let v6 = json!({"what": "get", "to": "fd00:ec2::254", "path": support::ROLE_NAME});
    // A client of both families, as Java's.
    let mapped = json!({"what": "get", "to": "::ffff:169.254.169.254", "path": support::ROLE_NAME});
    assert_eq!(one.does(v6.clone()), is(NODE_ROLE));
    assert_eq!(one.does(mapped.clone()), is(NODE_ROLE));
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    nothing_is_handed_out(&sandbox, || {
        for _ in 0..3 {
            for request in [&v6, &mapped] {
                assert_eq!(one.does(request.clone()), is("one"), "{request}");
                assert_eq!(other.does(request.clone()), is("other"), "{request}");
            }
        }
    });
    let mut kubelet = Agent::on_node(&sandbox, KUBELET);
    assert_eq!(kubelet.does(v6), is(NODE_ROLE));
    assert_eq!(kubelet.does(mapped), is(NODE_ROLE));
}

#[test]
fn what_cannot_be_had_is_said_at_once_and_by_default_left() {
    let sandbox = sandbox();
    // Here no cgroups of version 2 are mounted.
    let mut daemon = Daemon::started(&sandbox, &["--host-network", "serve"]);
    assert!(!daemon.process.wait().unwrap().success());
    assert!(daemon.log().contains("--host-network: no cgroups of version 2 are mounted here"), "{}", daemon.log());
    for intercept in ["observe", "none"] {
        let mut daemon = Daemon::started(&sandbox, &["--intercept", intercept, "--host-network", "deny"]);
        assert!(!daemon.process.wait().unwrap().success());
        assert!(daemon.log().contains("--host-network deny: nothing is redirected"), "{}", daemon.log());
    }
    let mut daemon = ready(&sandbox, &["--intercept", "iptables"]);
    assert!(daemon.log().contains("it needs nftables"), "{}", daemon.log());
    daemon.process.signal(Signal::SIGTERM).unwrap();
}

#[test]
#[ignore = "figures: see docs/host-network.md"]
fn what_a_connection_costs() {
    const CONNECTIONS: u32 = 2000;
    let sandbox = sandbox();
    let (pod, mut one) = exposed(&sandbox, "team-a", "one");
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    for number in 0..250 {
        let uid = format!("{number:08}-2222-4333-8444-555555555555");
        sandbox.contain("", "", uid, Folders::Systemd, Some("burstable")).unwrap();
    }
    let _daemon = ready(&sandbox, &["--host-network", "serve"]);
    let mut plain = Agent::of(sandbox.in_pod(&web, "python3"));
    assert_eq!((one.role(), plain.role()), (is("one"), is("web")));
    let mut times = [Duration::ZERO; 2];
    for _ in 0..CONNECTIONS {
        for (agent, time) in [&mut one, &mut plain].into_iter().zip(&mut times) {
            let start = Instant::now();
            agent.role();
            *time += start.elapsed();
        }
    }
    println!(
        "{}: {:?} a connection; of a pod with an address: {:?}",
        pod.name,
        times[0] / CONNECTIONS,
        times[1] / CONNECTIONS
    );
}

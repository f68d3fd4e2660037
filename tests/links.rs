//! A pod's link: an address that is given away takes no role along, whatever the API server says, or does not.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs,
    net::IpAddr,
    thread,
    time::{Duration, Instant, UNIX_EPOCH},
};

use nix::sys::signal::Signal;
use sandbox::{
    kubernetes::PodStatus,
    network::{Families, PodNetwork},
    sandbox::{Pod, Sandbox},
};
use support::{Daemon, ROLE_NAME, ask, eventually, metric, sandbox_of};

const NETWORKS: [(PodNetwork, Families); 4] = [
    (PodNetwork::Routed, Families::V4),
    (PodNetwork::Bridge, Families::V4),
    (PodNetwork::Routed, Families::V6),
    (PodNetwork::Bridge, Families::V6),
];

/// The role's name, or the status.
fn role(pod: &Pod) -> Result<String, u16> {
    let answer = ask(pod, "GET", ROLE_NAME, &[]).unwrap();
    if answer.status == 200 { Ok(answer.text().to_owned()) } else { Err(answer.status) }
}

fn pod(sandbox: &Sandbox, name: &str) -> Pod {
    sandbox.add_service_account("team-a", name, name).unwrap();
    sandbox.add_pod("team-a", name, name).unwrap()
}

fn pod_at(sandbox: &Sandbox, name: &str, address: IpAddr) -> Pod {
    sandbox.add_service_account("team-a", name, name).unwrap();
    sandbox.add_pod_at("team-a", name, name, address).unwrap()
}

/// Nothing but 503, for two seconds.
fn gets_nothing(pod: &Pod) {
    gets_nothing_for(Duration::from_secs(2), pod);
}

fn gets_nothing_for(time: Duration, pod: &Pod) {
    let start = Instant::now();
    while start.elapsed() < time {
        assert_eq!(role(pod), Err(503), "{}", pod.name);
    }
}

/// The first pod dies and the second gets its address while `tells_nothing` keeps the API server's news back.
fn the_next_pod_gets_its_own_role_or_none(
    network: (PodNetwork, Families),
    first_has_asked: bool,
    silence: Duration,
    tells_nothing: impl Fn(&Sandbox),
    tells: impl Fn(&Sandbox),
) {
    let sandbox = sandbox_of(network.0, network.1);
    let first = pod(&sandbox, "first");
    let _daemon = Daemon::ready(&sandbox, &[]);
    if first_has_asked {
        assert_eq!(role(&first), Ok("first".to_owned()));
    }
    tells_nothing(&sandbox);
    let begun = Instant::now();
    let (address, name) = (first.address(), first.name.clone());
    sandbox.remove_network(first).unwrap();
    let second = pod_at(&sandbox, "second", address);
    gets_nothing(&second);
    sandbox.cloud.kubernetes.delete_pod("team-a", &name);
    gets_nothing_for(silence.saturating_sub(begun.elapsed()), &second);
    let pods = |class: &str| metric(&sandbox, &format!("kube2irsa_pods{{credentials=\"{class}\"}}"));
    if first_has_asked {
        assert_eq!((pods("served"), pods("withheld")), (0.0, 1.0), "its credentials are there: {network:?}");
        assert_eq!(metric(&sandbox, "kube2irsa_suspended_addresses"), 1.0, "{network:?}");
        assert_eq!(metric(&sandbox, "kube2irsa_suspensions_total{reason=\"link_gone\"}"), 1.0, "{network:?}");
    }
    tells(&sandbox);
    eventually("the second pod is served", || role(&second).is_ok());
    assert_eq!(role(&second), Ok("second".to_owned()));
    assert_eq!(metric(&sandbox, "kube2irsa_suspended_addresses"), 0.0);
    assert_eq!((pods("served"), pods("withheld")), (1.0, 0.0), "{network:?}");
}

#[test]
fn while_the_watch_is_silent_the_next_pod_on_an_address_gets_no_role_of_the_one_before() {
    for (network, first_has_asked) in NETWORKS.into_iter().flat_map(|network| [(network, true), (network, false)]) {
        the_next_pod_gets_its_own_role_or_none(
            network,
            first_has_asked,
            Duration::from_secs(4),
            |sandbox| sandbox.cloud.kubernetes.faults().hold_watches(),
            |sandbox| sandbox.cloud.kubernetes.faults().release_watches(),
        );
    }
}

#[test]
fn while_the_api_server_is_away_for_ten_seconds_the_next_pod_on_an_address_gets_no_role_of_the_one_before() {
    thread::scope(|scope| {
        for network in NETWORKS {
            scope.spawn(move || {
                the_next_pod_gets_its_own_role_or_none(
                    network,
                    true,
                    Duration::from_secs(10),
                    |sandbox| sandbox.cloud.stop_api(),
                    |sandbox| sandbox.cloud.start_api().unwrap(),
                );
            });
        }
    });
}

#[test]
fn with_the_api_server_away_pods_whose_link_never_changed_go_on_and_none_gets_anothers_role() {
    for network in NETWORKS {
        let sandbox = sandbox_of(network.0, network.1);
        let stay = ["stay-0", "stay-1"].map(|name| pod(&sandbox, name));
        let mut replaced = ["go-0", "go-1"].map(|name| pod(&sandbox, name));
        let _daemon = Daemon::ready(&sandbox, &[]);
        for pod in stay.iter().chain(&replaced) {
            assert_eq!(role(pod), Ok(pod.name.clone()));
        }
        sandbox.cloud.stop_api();
        for round in 0..3 {
            replaced = replaced.map(|pod| {
                let (name, address) = (format!("{}-{round}", &pod.name[..4]), pod.address());
                sandbox.remove_network(pod).unwrap();
                pod_at(&sandbox, &name, address)
            });
            thread::scope(|scope| {
                for pod in &replaced {
                    scope.spawn(|| assert_eq!(role(pod), Err(503), "{}", pod.name));
                }
            });
            for pod in &stay {
                assert_eq!(role(pod), Ok(pod.name.clone()), "its link never changed");
            }
        }
        for number in 0..2 {
            let of_before = [format!("go-{number}"), format!("go-{number}-0"), format!("go-{number}-1")];
            of_before.iter().for_each(|name| sandbox.cloud.kubernetes.delete_pod("team-a", name));
        }
        sandbox.cloud.start_api().unwrap();
        for pod in stay.iter().chain(&replaced) {
            eventually("all are served once the API server is there", || role(pod).is_ok());
            assert_eq!(role(pod), Ok(pod.name.clone()));
        }
    }
}

#[test]
fn of_a_hundred_pods_replaced_as_fast_as_it_goes_none_gets_anothers_role_and_the_last_are_served() {
    for network in NETWORKS {
        let sandbox = sandbox_of(network.0, network.1);
        let _daemon = Daemon::ready(&sandbox, &[]);
        let served = thread::scope(|scope| {
            let lanes = (0..4).map(|lane| {
                let sandbox = &sandbox;
                scope.spawn(move || replace(sandbox, lane, 25))
            });
            lanes.collect::<Vec<_>>().into_iter().map(|lane| lane.join().unwrap()).collect::<Vec<_>>()
        });
        let count = served.iter().map(|(_, served)| served).sum::<usize>();
        println!("{network:?}: {count} of 100 were served before they were replaced");
        assert_eq!(metric(&sandbox, "kube2irsa_suspended_addresses"), 0.0);
    }
}

/// Pods one after the other on one address; the last one, and how many were served in their short life.
fn replace(sandbox: &Sandbox, lane: usize, pods: usize) -> (Pod, usize) {
    let mut served = 0;
    let mut before: Option<Pod> = None;
    for number in 0..pods {
        let name = format!("pod-{lane}-{number}");
        let now = match before.take() {
            None => pod(sandbox, &name),
            // As the API server tells it, in order; or the kernel long before the API server.
            Some(old) if number % 2 == 0 => {
                let address = old.address();
                sandbox.remove_pod(old).unwrap();
                pod_at(sandbox, &name, address)
            }
            Some(old) => {
                let (address, old_name) = (old.address(), old.name.clone());
                sandbox.remove_network(old).unwrap();
                let new = pod_at(sandbox, &name, address);
                if let Ok(role) = role(&new) {
                    assert_eq!(role, name);
                }
                sandbox.cloud.kubernetes.delete_pod("team-a", &old_name);
                new
            }
        };
        match role(&now) {
            Ok(role) => {
                assert_eq!(role, name);
                served += 1;
            }
            Err(status) => assert!(status == 503 || status == 404, "{name}: {status}"),
        }
        before = Some(now);
    }
    let last = before.unwrap();
    eventually("the last pod is served", || role(&last).is_ok());
    assert_eq!(role(&last), Ok(last.name.clone()));
    (last, served)
}

#[test]
fn a_restarted_daemon_remembers_nothing_and_binds_anew() {
    for network in NETWORKS {
        let sandbox = sandbox_of(network.0, network.1);
        let stays = pod(&sandbox, "stays");
        let first = pod(&sandbox, "first");
        let daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!((role(&stays), role(&first)), (Ok("stays".to_owned()), Ok("first".to_owned())));
        assert!(daemon.stop().success());
        let address = first.address();
        sandbox.remove_pod(first).unwrap();
        let second = pod_at(&sandbox, "second", address);

        let _daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!((role(&stays), role(&second)), (Ok("stays".to_owned()), Ok("second".to_owned())));
        sandbox.cloud.kubernetes.faults().hold_watches();
        sandbox.remove_network(second).unwrap();
        let third = pod_at(&sandbox, "third", address);
        gets_nothing(&third);
        assert_eq!(role(&stays), Ok("stays".to_owned()));
    }
}

/// More news than a socket's buffer holds.
fn storm(sandbox: &Sandbox) {
    let batch = sandbox.directory().join("storm");
    let line = |number: u32| {
        let [_, _, high, low] = number.to_be_bytes();
        format!("neigh replace 10.0.0.200 lladdr 02:00:00:00:{high:02x}:{low:02x} dev eth0\n")
    };
    fs::write(&batch, (0..20_000).map(line).collect::<String>()).unwrap();
    assert!(sandbox.node().command("ip").arg("-batch").arg(&batch).status().unwrap().success());
}

#[test]
fn when_news_of_links_is_lost_all_are_looked_at_again() {
    for network in NETWORKS {
        let sandbox = sandbox_of(network.0, network.1);
        let stays = pod(&sandbox, "stays");
        let first = pod(&sandbox, "first");
        let mut daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!((role(&stays), role(&first)), (Ok("stays".to_owned()), Ok("first".to_owned())));
        sandbox.cloud.kubernetes.faults().hold_watches();
        daemon.process.signal(Signal::SIGSTOP).unwrap();
        storm(&sandbox);
        let address = first.address();
        sandbox.remove_network(first).unwrap();
        let second = pod_at(&sandbox, "second", address);
        storm(&sandbox);
        daemon.process.signal(Signal::SIGCONT).unwrap();
        eventually("it knows that news was lost", || metric(&sandbox, "kube2irsa_link_overruns_total") >= 1.0);
        gets_nothing(&second);
        assert_eq!(role(&stays), Ok("stays".to_owned()), "its link never changed");

        sandbox.cloud.kubernetes.delete_pod("team-a", "first");
        sandbox.cloud.kubernetes.faults().release_watches();
        // Heard of more than a second after its container started, its link is taken for it with the next one.
        let running = PodStatus::running(&[address]);
        sandbox.cloud.kubernetes.set_pod_status("team-a", "second", running);
        eventually("the second pod is served", || role(&second).is_ok());
        assert_eq!(role(&second), Ok("second".to_owned()));
    }
}

#[test]
fn a_pod_whose_network_is_made_anew_is_served_again_once_a_container_of_it_has_started_since() {
    for network in NETWORKS {
        let sandbox = sandbox_of(network.0, network.1);
        let web = pod(&sandbox, "web");
        let _daemon = Daemon::ready(&sandbox, &[]);
        assert_eq!(role(&web), Ok("web".to_owned()));
        let web = sandbox.renew_network(web).unwrap();
        gets_nothing(&web);
        // Kubelet says again what it said before.
        let tell = |started| {
            let status = PodStatus { started_at: started, ..PodStatus::running(&[web.address()]) };
            sandbox.cloud.kubernetes.set_pod_status("team-a", "web", status);
        };
        tell(Some(UNIX_EPOCH + Duration::from_secs(1_700_000_000)));
        gets_nothing(&web);
        tell(None);
        eventually("it is served again", || role(&web).is_ok());
    }
}

//! Two clusters in one AWS with two accounts: whose pods get what, and a role that moves from one cluster to the other.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    collections::BTreeSet,
    io,
    process::Command,
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use sandbox::{
    cloud::ACCOUNT,
    network::PodNetwork,
    sandbox::{AUDIENCE, Pod, Sandbox},
    sts::Role,
};
use support::{Daemon, ROLE_NAME, ask, daemon_binary, eventually, role_status, sandbox, sdk};

/// The second account.
const OTHER: &str = "444455556666";
/// A role that moves.
const MOVING: &str = "arn:aws:iam::444455556666:role/team-a/moving";
/// Renewed within the test, so that a policy that is wrong for one of them is a failure.
const LIFE: Duration = Duration::from_secs(8);

/// Two clusters, each with a daemon.
struct Clusters {
    blue: Sandbox,
    green: Sandbox,
    daemons: [Daemon; 2],
}

fn clusters() -> Clusters {
    let blue = sandbox();
    let green = blue.beside(PodNetwork::Routed, "green").unwrap();
    assert_ne!(blue.cloud.issuer.url(), green.cloud.issuer.url());
    let daemons = [&blue, &green].map(|cluster| Daemon::ready(cluster, &[]));
    Clusters { blue, green, daemons }
}

/// What the command makes of a policy.
fn trust_policy(flags: &[&str]) -> serde_json::Value {
    let output = Command::new(daemon_binary()).arg("trust-policy").args(flags).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The policy as a file, for the next step.
fn file(cluster: &Sandbox, policy: &serde_json::Value) -> String {
    let file = cluster.directory().join("policy.json");
    std::fs::write(&file, policy.to_string()).unwrap();
    file.to_str().unwrap().to_owned()
}

fn put_role(cluster: &Sandbox, role: &str, policy: &serde_json::Value) {
    cluster.cloud.sts.put_role_with(&Role::new(role, policy.clone())).unwrap();
}

fn annotated(role: &str) -> [(&str, &str); 1] {
    [("eks.amazonaws.com/role-arn", role)]
}

fn is_refused(pod: &Pod) -> bool {
    matches!(role_status(pod), 403 | 503)
}

#[test]
fn pods_of_the_same_name_in_two_clusters_get_each_its_own_role_of_its_own_account() {
    let clusters = clusters();
    let (blue, green) = (&clusters.blue, &clusters.green);
    let roles = [ACCOUNT, OTHER].map(|account| format!("arn:aws:iam::{account}:role/web"));
    for (cluster, role) in [(blue, &roles[0]), (green, &roles[1])] {
        let flags = ["team-a/web", "--role", role, "--issuer", cluster.cloud.issuer.url(), "--format", "policy"];
        put_role(cluster, role, &trust_policy(&flags));
        cluster.annotate("team-a", "web", &annotated(role));
    }
    green.cloud.sts.put_oidc_provider(ACCOUNT, green.cloud.issuer.url(), &[AUDIENCE]).unwrap();
    let pods = [blue, green].map(|cluster| cluster.add_pod("team-a", "web-0", "web").unwrap());
    let arn = sdk(blue, &pods[0]).arn.unwrap();
    assert!(arn.starts_with(&format!("arn:aws:sts::{ACCOUNT}:assumed-role/web/team-a.web-0-")), "{arn}");

    // The role trusts green, and its account does not know green; that another one does is no help.
    let refused = "InvalidIdentityToken: No OpenIDConnect provider found in your account for";
    eventually("green is refused", || clusters.daemons[1].log().contains(refused));
    assert!(is_refused(&pods[1]));
    green.cloud.sts.put_oidc_provider(OTHER, green.cloud.issuer.url(), &[AUDIENCE]).unwrap();
    eventually("green is served", || role_status(&pods[1]) == 200);
    let arn = sdk(green, &pods[1]).arn.unwrap();
    assert!(arn.starts_with(&format!("arn:aws:sts::{OTHER}:assumed-role/web/team-a.web-0-")), "{arn}");

    // The same ServiceAccount of the other cluster has no more of a role than a stranger's.
    blue.cloud.sts.put_oidc_provider(OTHER, blue.cloud.issuer.url(), &[AUDIENCE]).unwrap();
    blue.annotate("team-a", "web", &annotated(&roles[1]));
    let denied = "AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity";
    eventually("blue is refused green's role", || clusters.daemons[0].log().contains(denied));
    assert!(is_refused(&pods[0]));
}

/// What a pod's client saw, and whether it is to end.
#[derive(Default)]
struct Load {
    stop: AtomicBool,
    answered: AtomicUsize,
}

impl Load {
    /// Asks for credentials until told to stop; the first answer that is none ends it. Tells how many different keys there were.
    fn run(&self, pod: &Pod) -> io::Result<usize> {
        let mut keys = BTreeSet::new();
        while !self.stop.load(Ordering::Relaxed) {
            let answer = ask(pod, "GET", &format!("{ROLE_NAME}moving"), &[])?;
            if answer.status != 200 {
                return Err(io::Error::other(format!("{}: {}", pod.name, answer.status)));
            }
            keys.insert(answer.json()["AccessKeyId"].to_string());
            self.answered.fetch_add(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(2));
        }
        Ok(keys.len())
    }
}

struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// How often credentials were given to the pods 0 and 1 of this name.
fn given(cluster: &Sandbox, name: &str) -> [usize; 2] {
    let calls = cluster.cloud.sts.calls();
    let calls = calls.iter().filter(|call| call.outcome == "Success").filter_map(|call| call.session_name.as_deref());
    let calls = calls.collect::<Vec<_>>();
    [0, 1].map(|pod| calls.iter().filter(|session| session.starts_with(&format!("team-a.{name}-{pod}-"))).count())
}

/// Both get new credentials.
fn renewed(cluster: &Sandbox, name: &str) {
    let before = given(cluster, name);
    eventually("credentials are renewed", || {
        let now = given(cluster, name);
        now[0] > before[0] && now[1] > before[1]
    });
}

#[test]
fn a_role_moves_from_one_cluster_to_another_and_no_request_fails() {
    let clusters = clusters();
    let (blue, green) = (&clusters.blue, &clusters.green);
    let sts = &blue.cloud.sts;
    sts.set_max_life(Some(LIFE));
    let [of_blue, of_green] = [blue, green].map(|cluster| cluster.cloud.issuer.url());
    let denied = "AccessDenied: Not authorized to perform sts:AssumeRoleWithWebIdentity";
    let has = |pod: &Pod| ask(pod, "GET", &format!("{ROLE_NAME}moving"), &[]).is_ok_and(|it| it.status == 200);

    // Where it begins: the role is blue's alone.
    sts.put_oidc_provider(OTHER, of_blue, &[AUDIENCE]).unwrap();
    let start = trust_policy(&["team-a/web", "--role", MOVING, "--issuer", of_blue, "--format", "policy"]);
    put_role(blue, MOVING, &start);
    for cluster in [blue, green] {
        cluster.annotate("team-a", "web", &annotated(MOVING));
    }
    let of_blue_pods = ["blue-0", "blue-1"].map(|name| blue.add_pod("team-a", name, "web").unwrap());
    eventually("blue is served", || of_blue_pods.iter().all(has));

    let (in_blue, in_green) = (Load::default(), Load::default());
    // Outside of the scope, which waits for its threads.
    let of_green_pods = ["green-0", "green-1"].map(|name| green.add_pod("team-a", name, "web").unwrap());
    thread::scope(|scope| {
        let _stop = [Stop(&in_blue.stop), Stop(&in_green.stop)];
        let load = |load, pod| scope.spawn(move || Load::run(load, pod));
        let blue_clients = of_blue_pods.each_ref().map(|pod| load(&in_blue, pod));

        // 1. The account gets to know green. Pods there are refused still: a test that cannot fail would prove nothing.
        sts.put_oidc_provider(OTHER, of_green, &[AUDIENCE]).unwrap();
        eventually("green is not trusted yet", || clusters.daemons[1].log().contains(denied));
        assert!(of_green_pods.iter().all(is_refused));

        // 2. The role trusts both. Pods that were refused are served, and need no restart.
        let both = trust_policy(&["--add-issuer", of_green, &file(blue, &start)]);
        assert_eq!(both["Statement"][0], start["Statement"][0], "what is there stays");
        put_role(blue, MOVING, &both);
        eventually("green is served", || of_green_pods.iter().all(has));

        // 3. Both live from it.
        let green_clients = of_green_pods.each_ref().map(|pod| load(&in_green, pod));
        renewed(blue, "blue");
        renewed(blue, "green");

        // 4. Nobody asks in blue any more, and the role forgets it.
        in_blue.stop.store(true, Ordering::Relaxed);
        let keys = blue_clients.map(|client| client.join().unwrap().unwrap());
        assert!(keys.iter().all(|keys| *keys >= 2), "renewed under load: {keys:?}");
        let moved = trust_policy(&["--remove-issuer", of_blue, &file(blue, &both)]);
        assert_eq!(moved["Statement"].as_array().unwrap().len(), 1);
        put_role(blue, MOVING, &moved);
        eventually("blue is refused", || clusters.daemons[0].log().contains(denied));
        renewed(blue, "green");
        in_green.stop.store(true, Ordering::Relaxed);
        let keys = green_clients.map(|client| client.join().unwrap().unwrap());
        assert!(keys.iter().all(|keys| *keys >= 2), "renewed under load: {keys:?}");

        // The way back is the same the other way round.
        let back = trust_policy(&["--add-issuer", of_blue, &file(blue, &moved)]);
        assert_eq!(trust_policy(&["--remove-issuer", of_green, &file(blue, &back)]), start);
    });
    let answers = [&in_blue, &in_green].map(|load| load.answered.load(Ordering::Relaxed));
    println!("answers in blue and green: {answers:?}, failures: none");
}

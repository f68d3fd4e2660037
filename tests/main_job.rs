//! Each pod gets the role of its own service account, unmodified, through the real redirect.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::thread;

use sandbox::{client::Report, kubernetes::Grant, network::PodNetwork};
use support::{Daemon, admin_if_up, ask, eventually, metric, role_status, sandbox, sandbox_with, sdk, with_a_pod};

fn exchanges(sandbox: &sandbox::sandbox::Sandbox) -> u64 {
    sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity")
}

fn arn(report: Report) -> String {
    report.arn.unwrap_or_else(|| panic!("{:?}", report.error))
}

#[test]
fn an_unmodified_sdk_in_each_of_two_pods_at_once_gets_its_own_role() {
    for shape in [PodNetwork::Routed, PodNetwork::Bridge] {
        let sandbox = sandbox_with(shape);
        sandbox.add_service_account("team-a", "web", "web").unwrap();
        sandbox.add_service_account("team-b", "worker", "path/to/worker").unwrap();
        let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
        let worker = sandbox.add_pod("team-b", "worker-0", "worker").unwrap();
        let _daemon = Daemon::ready(&sandbox, &[]);
        let (of_web, of_worker) = thread::scope(|scope| {
            let of_web = scope.spawn(|| sdk(&sandbox, &web));
            let of_worker = scope.spawn(|| sdk(&sandbox, &worker));
            (of_web.join().unwrap(), of_worker.join().unwrap())
        });
        let (of_web, of_worker) = (arn(of_web), arn(of_worker));
        assert!(of_web.starts_with("arn:aws:sts::111122223333:assumed-role/web/team-a.web-0-"), "{of_web}");
        assert!(of_worker.starts_with("arn:aws:sts::111122223333:assumed-role/worker/team-b.worker-0-"), "{of_worker}");
        assert_eq!(exchanges(&sandbox), 2, "one for each pod, though each SDK asked several times");
    }
}

#[test]
fn a_pod_without_a_role_gets_none() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "plain", &[]);
    sandbox.annotate("team-a", "empty", &[("eks.amazonaws.com/role-arn", "")]);
    sandbox.annotate("team-a", "wrong", &[("eks.amazonaws.com/role-arn", "web")]);
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    let empty = sandbox.add_pod("team-a", "empty-0", "empty").unwrap();
    let wrong = sandbox.add_pod("team-a", "wrong-0", "wrong").unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    let report = sdk(&sandbox, &plain);
    assert!(report.arn.is_none(), "{report:?}");
    assert_eq!((role_status(&plain), role_status(&empty), role_status(&wrong)), (404, 404, 403));
    let log = daemon.log();
    assert!(log.contains("service account team-a/wrong gets no credentials: annotation"), "{log}");
    assert_eq!(metric(&sandbox, "kube2irsa_pods_with_invalid_role"), 1.0);
    assert_eq!(exchanges(&sandbox), 0);
}

#[test]
fn a_roles_name_means_a_role_of_the_account_that_is_given_or_that_the_node_is_in() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "path/to/web").unwrap();
    sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", "path/to/web")]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let flags = ["--compose-role-arn", "--aws-account", "111122223333", "--aws-partition", "aws"];
    for flags in [&flags[..], &["--compose-role-arn"]] {
        let daemon = Daemon::ready(&sandbox, flags);
        let arn = arn(sdk(&sandbox, &web));
        assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/web/"), "{arn}");
        assert!(daemon.stop().success());
    }
    let permitted = |globs: &str| {
        sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", globs)]);
    };
    permitted("path/to/*");
    let _daemon = Daemon::ready(&sandbox, &["--compose-role-arn"]);
    assert_eq!(role_status(&web), 403, "it is the ARN that a namespace permits");
    permitted("arn:aws:iam::111122223333:role/path/to/*");
    eventually("the ARN is permitted", || role_status(&web) == 200);
}

#[test]
fn until_the_nodes_account_is_known_a_roles_name_is_nobodys_and_other_pods_are_served() {
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-a", "named", "named").unwrap();
    sandbox.annotate("team-a", "named", &[("eks.amazonaws.com/role-arn", "named")]);
    let named = sandbox.add_pod("team-a", "named-0", "named").unwrap();
    sandbox.cloud.imds.stall(true);
    let mut daemon = Daemon::started(&sandbox, &["--compose-role-arn", "--region", "eu-central-1"]);
    eventually("it says what alone it lacks", || {
        let lacks = admin_if_up(&sandbox, "/readyz").unwrap_or_default();
        lacks.starts_with("account: --aws-partition is not given, and http://169.254.169.254/")
            && lacks.lines().count() == 1
    });
    assert_eq!((role_status(&web), role_status(&named)), (200, 503));
    assert_eq!(metric(&sandbox, "kube2irsa_pods_with_invalid_role"), 0.0);
    sandbox.cloud.imds.stall(false);
    daemon.wait_until_ready(&sandbox);
    eventually("its role is known", || role_status(&named) == 200);
    let arn = arn(sdk(&sandbox, &named));
    assert!(arn.contains("assumed-role/named/team-a.named-0-"), "{arn}");
    assert_eq!(sandbox.cloud.imds.credential_requests(), 0);
}

#[test]
fn many_callers_of_one_pod_cause_one_exchange() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.sts.faults().set_latency(std::time::Duration::from_millis(200));
    let path = format!("{}web", support::ROLE_NAME);
    thread::scope(|scope| {
        let callers = (0..40).map(|_| scope.spawn(|| ask(&web, "GET", &path, &[]).unwrap())).collect::<Vec<_>>();
        let keys = callers.into_iter().map(|caller| caller.join().unwrap().json()["AccessKeyId"].to_string());
        let keys = keys.collect::<std::collections::BTreeSet<_>>();
        assert_eq!(keys.len(), 1, "{keys:?}");
    });
    assert_eq!(exchanges(&sandbox), 1);
    assert_eq!(metric(&sandbox, "kube2irsa_token_requests_total{result=\"ok\"}"), 1.0);
}

#[test]
fn a_changed_role_is_in_force_without_a_restart_of_the_pod() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "web", "before").unwrap();
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let before = sdk(&sandbox, &web).arn.unwrap();
    assert!(before.contains("assumed-role/before/"), "{before}");

    sandbox.add_service_account("team-a", "web", "after").unwrap();
    eventually("the new role is named", || ask(&web, "GET", support::ROLE_NAME, &[]).unwrap().text() == "after");
    let old = ask(&web, "GET", &format!("{}before", support::ROLE_NAME), &[]).unwrap();
    assert_eq!(old.status, 404, "the old role's credentials are no longer served");
    let after = sdk(&sandbox, &web).arn.unwrap();
    assert!(after.contains("assumed-role/after/"), "{after}");
}

#[test]
fn a_pod_on_the_address_of_another_gets_its_own_role() {
    let sandbox = sandbox();
    sandbox.add_service_account("team-a", "first", "first").unwrap();
    sandbox.add_service_account("team-b", "second", "second").unwrap();
    let first = sandbox.add_pod("team-a", "first-0", "first").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let token = ask(&first, "PUT", "/latest/api/token", &[("X-aws-ec2-metadata-token-ttl-seconds", "60")]).unwrap();
    let token = token.text().to_owned();
    assert_eq!(ask(&first, "GET", support::ROLE_NAME, &[("X-aws-ec2-metadata-token", &token)]).unwrap().status, 200);

    // A token counts in whole seconds, as a pod's start does.
    thread::sleep(std::time::Duration::from_millis(1100));
    let address = first.address();
    sandbox.remove_pod(first).unwrap();
    let second = sandbox.add_pod_at("team-b", "second-0", "second", address).unwrap();
    let document = format!("{}first", support::ROLE_NAME);
    eventually("the second pod is served", || {
        assert_ne!(ask(&second, "GET", &document, &[]).unwrap().status, 200, "the first pod's credentials");
        let name = ask(&second, "GET", support::ROLE_NAME, &[]).unwrap();
        assert!(name.status != 200 || name.text() == "second", "{name:?}");
        name.status == 200
    });
    let arn = sdk(&sandbox, &second).arn.unwrap();
    assert!(arn.contains("assumed-role/second/team-b.second-0-"), "{arn}");
    let with_old_token = ask(&second, "GET", support::ROLE_NAME, &[("X-aws-ec2-metadata-token", &token)]).unwrap();
    assert_eq!(with_old_token.status, 401, "the first pod's token died with it");
}

#[test]
fn credentials_are_renewed_before_they_end() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.sts.set_max_life(Some(std::time::Duration::from_secs(6)));
    let _daemon = Daemon::ready(&sandbox, &[]);
    let path = format!("{}web", support::ROLE_NAME);
    let key = || {
        let answer = ask(&web, "GET", &path, &[]).unwrap();
        assert_eq!(answer.status, 200);
        answer.json()["AccessKeyId"].to_string()
    };
    let first = key();
    eventually("they are fetched again though nobody asks", || exchanges(&sandbox) >= 2);
    // STS has decided, and its answer is on the way.
    eventually("the pod has the new ones", || key() != first);
}

#[test]
fn a_service_account_says_its_audience_and_how_long_sessions_last() {
    let sandbox = sandbox();
    let arn = sandbox.add_service_account("team-a", "web", "web").unwrap();
    let role = ("eks.amazonaws.com/role-arn", arn.as_str());
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let life = || {
        let document = ask(&web, "GET", &format!("{}web", support::ROLE_NAME), &[]).unwrap().json();
        let date = |field: &str| document[field].as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_second();
        date("Expiration") - date("LastUpdated")
    };
    assert!((3595..=3600).contains(&life()));

    sandbox.annotate("team-a", "web", &[role, ("kube2irsa.io/session-duration", "900")]);
    eventually("a session of 900 s", || life() <= 900);

    // Longer than the role allows: it gets what every role allows.
    sandbox.annotate("team-a", "web", &[role, ("kube2irsa.io/session-duration", "43200")]);
    eventually("a session of an hour again", || life() > 900);
    assert!((3590..=3600).contains(&life()));

    let grant = Grant::new(&["request-serviceaccounts-token-audience"], "another.example");
    sandbox.cloud.kubernetes.grant_group("system:nodes", grant);
    sandbox.annotate("team-a", "web", &[role, ("eks.amazonaws.com/audience", "another.example")]);
    eventually("STS refuses another audience", || role_status(&web) == 403);
}

#[test]
fn a_namespace_limits_the_roles_of_its_pods_at_once() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_eq!(role_status(&web), 200, "without the annotation all roles are permitted");
    let permit = |globs: &str| {
        sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", globs)]);
    };
    permit("arn:aws:iam::111122223333:role/we,arn:aws:iam::*:role/other");
    eventually("it is refused", || role_status(&web) == 403);
    assert!(daemon.log().contains("namespace team-a does not permit arn:aws:iam::111122223333:role/web"));
    permit("arn:aws:iam::111122223333:role/we*");
    eventually("it is permitted", || role_status(&web) == 200);
    assert!(daemon.stop().success());

    let _daemon = Daemon::ready(&sandbox, &["--namespace-policy", "required"]);
    assert_eq!(role_status(&web), 200);
    sandbox.cloud.kubernetes.create_namespace("team-a", &[]);
    eventually("without the annotation none is permitted", || role_status(&web) == 403);
}

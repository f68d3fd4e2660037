//! The metadata service on the wire, as SDKs depend on it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use sandbox::{
    cloud::ACCOUNT,
    sandbox::{METADATA, Pod, Sandbox, get},
};
use support::{Daemon, ROLE_NAME, ask, connect, eventually, metric, pod, with_a_pod, with_an_account};

const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds";
const TOKEN: &str = "X-aws-ec2-metadata-token";

fn cluster() -> (Sandbox, Pod, Daemon) {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    (sandbox, web, daemon)
}

#[test]
fn a_session_token_is_given_at_once_to_whoever_asks_rightly() {
    let (sandbox, web, _daemon) = cluster();
    sandbox.annotate("team-a", "plain", &[]);
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    for pod in [&web, &plain] {
        for ttl in ["1", "60", "21600"] {
            let answer = ask(pod, "PUT", "/latest/api/token", &[(TTL, ttl), ("Content-Length", "0")]).unwrap();
            assert_eq!((answer.status, answer.header(TTL)), (200, Some(ttl)));
            assert_eq!(answer.header("content-type"), Some("text/plain"));
            assert_eq!(answer.header("server"), Some("EC2ws"));
            assert!(answer.header("content-length").is_some() && !answer.text().ends_with('\n'));
        }
    }
    for headers in
        [&[][..], &[(TTL, "0")], &[(TTL, "21601")], &[(TTL, "-1")], &[(TTL, "+60")], &[(TTL, "soon")], &[(TTL, "")]]
    {
        let answer = ask(&web, "PUT", "/latest/api/token", headers).unwrap();
        assert_eq!((answer.status, answer.header(TTL), answer.body.len()), (400, None, 0), "{headers:?}");
    }
    let forwarded = ask(&web, "PUT", "/latest/api/token", &[(TTL, "60"), ("X-Forwarded-For", "10.0.0.1")]).unwrap();
    assert_eq!((forwarded.status, forwarded.header(TTL)), (403, None));
    for method in ["PUT", "GET"] {
        assert_eq!(ask(&web, method, "/2021-07-15/api/token", &[(TTL, "60")]).unwrap().status, 403);
    }
    for method in ["GET", "POST", "DELETE", "HEAD"] {
        let answer = ask(&web, method, "/latest/api/token", &[]);
        // The length of a HEAD's body is that of a GET's, which is empty here too.
        let answer = answer.unwrap();
        assert_eq!((answer.status, answer.header("allow")), (405, Some("OPTIONS, PUT")), "{method}");
    }
}

#[test]
fn a_put_may_come_without_a_length_or_with_an_empty_chunked_body_that_waits_for_leave() {
    let (_sandbox, web, _daemon) = cluster();
    let mut connection = connect(&web).unwrap();
    let head = "PUT /latest/api/token HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n";
    connection.send_bytes(format!("{head}{TTL}: 60\r\n\r\n").as_bytes()).unwrap();
    assert_eq!(connection.answer().unwrap().status, 100);
    connection.send_bytes(b"0\r\n\r\n").unwrap();
    assert_eq!(connection.answer().unwrap().status, 200);
    connection.send("PUT", "/latest/api/token", &[(TTL, "60")]).unwrap();
    assert_eq!(connection.answer().unwrap().status, 200, "the connection is kept");
}

#[test]
fn the_roles_name_and_document_are_served_with_and_without_a_token() {
    let (_sandbox, web, _daemon) = cluster();
    let token = ask(&web, "PUT", "/latest/api/token", &[(TTL, "60")]).unwrap().text().to_owned();
    let v2 = [(TOKEN, token.as_str())];
    let mut documents = Vec::new();
    let mut connection = connect(&web).unwrap();
    for headers in [&[][..], &v2] {
        for path in [ROLE_NAME, ROLE_NAME.trim_end_matches('/'), "/2021-07-15/meta-data/iam/security-credentials"] {
            connection.send("GET", path, headers).unwrap();
            let answer = connection.answer().unwrap();
            assert_eq!((answer.status, answer.text()), (200, "web"), "{path}");
            assert_eq!(answer.header("content-type"), Some("text/plain"));
        }
        for path in [format!("{ROLE_NAME}web"), format!("{ROLE_NAME}web/"), format!("/{ROLE_NAME}/web")] {
            connection.send("GET", &path, headers).unwrap();
            let answer = connection.answer().unwrap();
            assert_eq!(answer.status, 200, "{path}");
            documents.push(answer.json());
        }
    }
    let document = &documents[0];
    assert!(documents.iter().all(|other| other == document));
    assert_eq!((document["Code"].as_str(), document["Type"].as_str()), (Some("Success"), Some("AWS-HMAC")));
    for (field, form) in [("LastUpdated", "0000-00-00T00:00:00Z"), ("Expiration", "0000-00-00T00:00:00Z")] {
        let date = document[field].as_str().unwrap();
        let digits = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
        assert_eq!(digits, form, "{date}");
    }
    connection.send("HEAD", ROLE_NAME, &[]).unwrap();
    let head = connection.answer_to_head().unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some("3")));
    connection.send("GET", ROLE_NAME, &[]).unwrap();
    assert_eq!(connection.answer().unwrap().text(), "web", "no body followed the head");
}

#[test]
fn a_token_that_is_not_the_pods_own_is_refused() {
    let (sandbox, web, _daemon) = cluster();
    sandbox.add_service_account("team-b", "worker", "worker").unwrap();
    let worker = sandbox.add_pod("team-b", "worker-0", "worker").unwrap();
    let token = ask(&web, "PUT", "/latest/api/token", &[(TTL, "1")]).unwrap().text().to_owned();
    let with = |pod: &Pod, token: &str, path: &str| ask(pod, "GET", path, &[(TOKEN, token)]).unwrap().status;
    assert_eq!(with(&web, &token, ROLE_NAME), 200);
    for path in [ROLE_NAME, &format!("{ROLE_NAME}worker"), "/latest/meta-data/"] {
        assert_eq!(with(&worker, &token, path), 401, "{path}");
    }
    assert_eq!(with(&web, "", ROLE_NAME), 401);
    assert_eq!(with(&web, &format!("{token}x"), ROLE_NAME), 401);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    assert_eq!(with(&web, &token, ROLE_NAME), 401, "expired");
    assert!(metric(&sandbox, "kube2irsa_bad_session_tokens_total") >= 5.0);
}

#[test]
fn a_token_dies_with_its_pod_though_the_address_lives_on() {
    let (sandbox, web, _daemon) = cluster();
    let token = ask(&web, "PUT", "/latest/api/token", &[(TTL, "600")]).unwrap().text().to_owned();
    let address = web.address();
    let with_token = |pod: &Pod| ask(pod, "GET", ROLE_NAME, &[(TOKEN, &token)]).unwrap().status;
    assert_eq!(with_token(&web), 200);
    sandbox.remove_pod(web).unwrap();
    // Pods start in whole seconds.
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let next = sandbox.add_pod_at("team-a", "web-1", "web", address).unwrap();
    eventually("the next pod is served", || ask(&next, "GET", ROLE_NAME, &[]).unwrap().status == 200);
    assert_eq!(with_token(&next), 401);
    assert_eq!(ask(&next, "GET", "/latest/meta-data/", &[(TOKEN, &token)]).unwrap().status, 401);
}

const REQUIRE: &str = "kube2irsa.io/require-imdsv2";

#[test]
fn where_session_tokens_are_required_nothing_is_served_without_one() {
    let (sandbox, web) = with_a_pod();
    let hostname = "/latest/meta-data/hostname";
    let of_role = format!("{ROLE_NAME}web");
    let paths = [ROLE_NAME, &of_role, "/latest/meta-data/placement/region", "/latest/", "/nothing", hostname];
    let assert_refused = |pod: &Pod| {
        for path in paths {
            let answer = ask(pod, "GET", path, &[]).unwrap();
            assert_eq!((answer.status, answer.body.len()), (401, 0), "{path}");
        }
        let token = ask(pod, "PUT", "/latest/api/token", &[(TTL, "60")]).unwrap();
        let served = ask(pod, "GET", ROLE_NAME, &[(TOKEN, token.text())]).unwrap();
        assert_eq!((served.status, served.text()), (200, "web"));
    };
    {
        let _daemon = Daemon::ready(&sandbox, &["--require-imdsv2", "--allow-path", hostname]);
        assert_refused(&web);
        assert!(metric(&sandbox, "kube2irsa_requests_without_session_refused_total") >= 5.0);
    }
    let _daemon = Daemon::ready(&sandbox, &["--allow-path", hostname]);
    assert_eq!(ask(&web, "GET", ROLE_NAME, &[]).unwrap().status, 200, "by default they are not");
    assert!(metric(&sandbox, "kube2irsa_requests_without_session_total") >= 1.0);

    let is_required = || ask(&web, "GET", ROLE_NAME, &[]).unwrap().status == 401;
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let with_role = [("eks.amazonaws.com/role-arn", role.as_str()), (REQUIRE, "true")];
    sandbox.annotate("team-a", "web", &with_role);
    eventually("the service account requires them", is_required);
    assert_refused(&web);
    sandbox.annotate("team-a", "web", &with_role[..1]);
    eventually("it does no more", || !is_required());

    sandbox.cloud.kubernetes.create_namespace("team-a", &[(REQUIRE, "true")]);
    eventually("the namespace requires them", is_required);
    assert_refused(&web);
}

const ZONE: &str = "/latest/meta-data/placement/availability-zone";
const ID: &str = "/latest/meta-data/instance-id";
const IDENTITY: &str = "/latest/dynamic/instance-identity/document";

#[test]
fn what_is_said_of_the_node_is_what_the_real_service_says_and_nothing_of_its_role() {
    let (sandbox, web, _daemon) = cluster();
    sandbox.annotate("team-a", "plain", &[]);
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    for pod in [&web, &plain] {
        for path in ["/latest/meta-data/placement/region", ZONE, ID, IDENTITY] {
            let (status, real) = get(sandbox.node(), METADATA, path).unwrap();
            let answer = ask(pod, "GET", &format!("{path}/"), &[]).unwrap();
            assert_eq!((answer.status, answer.text()), (status, real.as_str()), "{path}");
        }
        let answer = ask(pod, "GET", "/latest", &[]).unwrap();
        assert_eq!((answer.text(), answer.header("server")), ("dynamic\nmeta-data", Some("EC2ws")));
    }
    assert_eq!(ask(&web, "GET", "/latest/meta-data/iam/", &[]).unwrap().text(), "info\nsecurity-credentials/");
    let info = ask(&web, "GET", "/latest/meta-data/iam/info", &[]).unwrap().json();
    let of_web = format!("arn:aws:iam::{ACCOUNT}:instance-profile/web");
    assert_eq!(info["InstanceProfileArn"], of_web.as_str());
    let (_, of_node) = get(sandbox.node(), METADATA, "/latest/meta-data/iam/info").unwrap();
    assert!(of_node.contains(":instance-profile/") && !of_node.contains(&of_web), "{of_node}");
    for path in ["/latest/meta-data/iam/", "/latest/meta-data/iam/info"] {
        assert_eq!(ask(&plain, "GET", path, &[]).unwrap().status, 404, "{path}");
    }
    let asked = sandbox.cloud.imds.requests().len();
    for path in [ZONE, ID, IDENTITY] {
        assert_eq!(ask(&web, "GET", path, &[]).unwrap().status, 200);
    }
    // What the test itself asked aside: the service is asked once for all.
    assert_eq!(sandbox.cloud.imds.requests().len(), asked);
}

#[test]
fn off_ec2_the_flags_say_what_is_said_of_the_node() {
    let (sandbox, web) = with_a_pod();
    let flags = ["--imds-endpoint", "off", "--region", "eu-west-1", "--availability-zone", "eu-west-1b"];
    let _daemon = Daemon::ready(&sandbox, &flags);
    assert_eq!(ask(&web, "GET", "/latest/meta-data/placement/region", &[]).unwrap().text(), "eu-west-1");
    assert_eq!(ask(&web, "GET", ZONE, &[]).unwrap().text(), "eu-west-1b");
    assert_eq!(ask(&web, "GET", ID, &[]).unwrap().status, 404);
    let document = ask(&web, "GET", IDENTITY, &[]).unwrap().json();
    assert_eq!((&document["region"], &document["availabilityZone"]), (&"eu-west-1".into(), &"eu-west-1b".into()));
}

#[test]
fn off_ec2_the_nodes_labels_say_what_the_flags_do_not() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--imds-endpoint", "off", "--region", "eu-west-1"]);
    assert_eq!(ask(&web, "GET", "/latest/meta-data/placement/region", &[]).unwrap().text(), "eu-west-1");
    assert_eq!(ask(&web, "GET", ZONE, &[]).unwrap().text(), "eu-central-1a");
    assert_eq!(ask(&web, "GET", IDENTITY, &[]).unwrap().json()["availabilityZone"], "eu-central-1a");
}

#[test]
fn what_the_real_service_has_not_said_yet_is_waited_for_and_then_503() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.imds.set_down(true);
    let _daemon = Daemon::ready(&sandbox, &["--region", "eu-central-1"]);
    assert_eq!(ask(&web, "GET", "/latest/meta-data/placement/region", &[]).unwrap().text(), "eu-central-1");
    assert_eq!(ask(&web, "GET", ZONE, &[]).unwrap().status, 503);
    sandbox.cloud.imds.set_down(false);
    eventually("it is known", || ask(&web, "GET", ZONE, &[]).unwrap().text() == "eu-central-1a");
}

#[test]
fn what_an_operator_allows_is_passed_from_the_real_service_and_nothing_else_of_it() {
    let (sandbox, web) = with_a_pod();
    let allowed = "/latest/meta-data/,/latest/dynamic/,/latest/user-data-not";
    let _daemon = Daemon::ready(&sandbox, &["--allow-path", allowed]);
    for path in ["/latest/meta-data/hostname", "/2021-07-15/meta-data//instance-type/", "/latest/meta-data/services/"] {
        let answer = ask(&web, "GET", path, &[]).unwrap();
        let (status, real) = get(sandbox.node(), METADATA, path.trim_end_matches("pe/")).unwrap();
        assert_eq!((answer.status, answer.header("server")), (200, Some("EC2ws")), "{path}");
        assert!(status != 200 || answer.text() == real, "{path}");
    }
    let folder = ask(&web, "GET", "/latest/meta-data/services", &[]).unwrap();
    assert_eq!((folder.status, folder.text()), (200, "domain\npartition"), "not a redirect");
    assert_eq!(ask(&web, "GET", "/latest/meta-data/no-such", &[]).unwrap().status, 404);

    // The pod's own, as ever.
    assert_eq!(ask(&web, "GET", ROLE_NAME, &[]).unwrap().text(), "web");
    let asked = sandbox.cloud.imds.requests().len();
    for path in [
        "/latest/user-data",
        "/latest/user-data/",
        "/latest/meta-data/iam/security-credentials/node",
        "/latest/meta-data/IAM/security-credentials/node",
        "/latest/meta-data/hostname/../iam/security-credentials/node",
        "/latest/meta-data/hostname/..%2fiam/security-credentials/node",
        "/latest/meta-data\\iam\\security-credentials\\node",
        "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance",
        "/latest/dynamic/instance-identity/pkcs7",
        "/latest/meta-data/%69am/security-credentials/node",
    ] {
        let answer = ask(&web, "GET", path, &[]).unwrap();
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
    }
    assert_eq!(ask(&web, "HEAD", "/latest/meta-data/hostname", &[]).unwrap().status, 404, "only GET is passed");
    assert_eq!(sandbox.cloud.imds.requests().len(), asked, "none of them came to the real service");
    assert_eq!(sandbox.cloud.imds.credential_requests(), 0);

    sandbox.cloud.imds.stall(true);
    assert_eq!(ask(&web, "GET", "/latest/meta-data/mac", &[]).unwrap().status, 503);
    assert_eq!(metric(&sandbox, "kube2irsa_allowed_paths_failed_total{reason=\"failed\"}"), 1.0);
    sandbox.cloud.imds.stall(false);
    assert_eq!(ask(&web, "GET", "/latest/meta-data/mac", &[]).unwrap().status, 200);
    let first = sandbox.cloud.imds.requests().len();
    for _ in 0..10 {
        ask(&web, "GET", "/latest/meta-data/mac", &[]).unwrap();
    }
    let reads = (sandbox.cloud.imds.requests().len() - first) / 2;
    assert!(reads < 10, "what was answered a moment ago is not asked for again: {reads}");
}

#[test]
fn one_pod_cannot_use_up_what_the_real_service_answers_the_node() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--allow-path", "/latest/meta-data/tags/"]);
    let before = sandbox.cloud.imds.requests().len();
    let started = std::time::Instant::now();
    let ask_all = |thread: usize| {
        let mut connection = connect(&web).unwrap();
        for number in 0..20 {
            connection.send("GET", &format!("/latest/meta-data/tags/{thread}-{number}"), &[]).unwrap();
            let status = connection.answer().unwrap().status;
            assert!([404, 503].contains(&status), "{status}");
        }
    };
    std::thread::scope(|scope| (0..40).for_each(|thread| drop(scope.spawn(move || ask_all(thread)))));
    let reads = (sandbox.cloud.imds.requests().len() - before) / 2;
    // A burst of 20 and 20 a second.
    let most = 21.0 + 20.0 * started.elapsed().as_secs_f64();
    assert!((reads as f64) <= most, "{reads} reads of 800 requests, {most} at most");
    assert!(metric(&sandbox, "kube2irsa_allowed_paths_failed_total{reason=\"limited\"}") > 0.0);
}

#[test]
fn what_is_not_listed_is_not_there() {
    let (_sandbox, web, _daemon) = cluster();
    let mut connection = connect(&web).unwrap();
    for path in [
        "/latest/user-data",
        "/latest/meta-data/hostname",
        "/latest/dynamic/instance-identity/signature",
        "/metrics",
        "/healthz",
        "/readyz",
        "/debug",
    ] {
        connection.send("GET", path, &[]).unwrap();
        let answer = connection.answer().unwrap();
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS"] {
        assert_eq!(ask(&web, method, ROLE_NAME, &[]).unwrap().status, 404, "{method}");
    }
}

#[test]
fn the_name_is_given_in_time_though_the_exchange_takes_longer() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.sts.faults().hold();
    let web = pod(&sandbox);
    let start = std::time::Instant::now();
    let name = ask(&web, "GET", ROLE_NAME, &[]).unwrap();
    let took = start.elapsed();
    assert_eq!((name.status, name.text()), (200, "web"));
    assert!(took >= std::time::Duration::from_millis(800), "it is held for those who get both at once: {took:?}");
    sandbox.cloud.sts.faults().release();
    assert_eq!(ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap().status, 200);
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 1);
}

#[test]
fn a_document_that_cannot_be_had_closes_crts_connection() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.sts.faults().stall(true);
    let web = pod(&sandbox);
    let path = format!("{ROLE_NAME}web");
    assert_eq!(ask(&web, "GET", &path, &[("User-Agent", "aws-sdk-rust/1")]).unwrap().status, 503);
    let mut crt = connect(&web).unwrap();
    crt.send("GET", &path, &[("User-Agent", "aws-sdk-crt/aws-c-http")]).unwrap();
    assert!(crt.is_closed());
    eventually("STS is given up on", || {
        metric(&sandbox, "kube2irsa_sts_exchanges_total{action=\"web_identity\",result=\"Timeout\"}") >= 1.0
    });
    let mut other = connect(&web).unwrap();
    other.send("GET", &format!("{ROLE_NAME}other"), &[("User-Agent", "aws-sdk-crt/aws-c-http")]).unwrap();
    assert!(other.is_closed(), "whatever the reason");
}

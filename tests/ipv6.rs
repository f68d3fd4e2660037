//! Pods over IPv6: the same promises, by other addresses.
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
    net::{IpAddr, SocketAddr},
};

use sandbox::{
    network::{CONTAINER_ADDRESS_V6, Families, Namespace, PodNetwork},
    sandbox::{METADATA, METADATA_V6, Pod, Sandbox},
};
use support::{Daemon, ROLE_NAME, eventually, http::Connection, metric, sandbox_of, sdk, sdk_with};

const SHAPES: [PodNetwork; 2] = [PodNetwork::Routed, PodNetwork::Bridge];
/// All that a pod or its SDK is told.
const MODE: [(&str, &str); 1] = [("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", "IPv6")];
const CONTAINER: SocketAddr = SocketAddr::new(IpAddr::V6(CONTAINER_ADDRESS_V6), 80);
const WITH_CONTAINER: [&str; 2] = ["--container-endpoints", "169.254.170.2,fd00:ec2::23"];
const POD_IDENTITY: &str = "pods.eks.amazonaws.com";

fn pod(sandbox: &Sandbox, name: &str) -> Pod {
    sandbox.add_service_account("team-a", name, name).unwrap();
    sandbox.add_pod("team-a", name, name).unwrap()
}

/// The status and the body of a container endpoint's answer.
fn container(pod: &Namespace, host: &str, token: &str) -> std::io::Result<(u16, String)> {
    let mut connection = Connection::open(pod, CONTAINER)?;
    let authorization = if token.is_empty() { String::new() } else { format!("Authorization: {token}\r\n") };
    let request = format!("GET /v1/credentials HTTP/1.1\r\nHost: {host}\r\n{authorization}\r\n");
    connection.send_bytes(request.as_bytes())?;
    let answer = connection.answer()?;
    Ok((answer.status, answer.text().to_owned()))
}

#[test]
fn an_unmodified_sdk_gets_the_pods_own_role_and_without_us_the_nodes() {
    for shape in SHAPES {
        for families in [Families::Dual, Families::V6] {
            let sandbox = sandbox_of(shape, families);
            let (web, worker) = (pod(&sandbox, "web"), pod(&sandbox, "worker"));
            let without = sdk_with(&sandbox, &web, &MODE).arn.unwrap();
            assert_eq!(without, "arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0");

            let daemon = Daemon::ready(&sandbox, &[]);
            let before = sandbox.cloud.imds.credential_requests();
            for (pod, role) in [(&web, "web"), (&worker, "worker")] {
                let report = sdk_with(&sandbox, pod, &MODE);
                let arn = report.arn.as_deref().unwrap_or_default();
                let expected = format!("arn:aws:sts::111122223333:assumed-role/{role}/team-a.{role}-");
                assert!(arn.starts_with(&expected), "{shape:?} {families:?}: {report:?} {}", daemon.log());
            }
            assert_eq!(sandbox.cloud.imds.credential_requests(), before, "the node's credentials were handed out");
        }
    }
}

#[test]
fn both_addresses_of_a_pod_are_the_same_pod() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::Dual);
    let web = pod(&sandbox, "web");
    let _daemon = Daemon::ready(&sandbox, &[]);
    let document = |service: SocketAddr| {
        let mut connection = Connection::open(web.network(), service).unwrap();
        connection.send("GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
        connection.answer().unwrap().json()["AccessKeyId"].clone()
    };
    assert_eq!(document(METADATA), document(METADATA_V6));
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"));
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 1, "the same credentials");
}

#[test]
fn the_container_endpoint_is_served_where_it_is_named_and_left_alone_where_it_is_not() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V6);
    let web = pod(&sandbox, "web");
    let agents = || {
        let mut connection = Connection::open(web.network(), CONTAINER)?;
        connection.send_bytes(b"GET /v1/credentials HTTP/1.1\r\nHost: [fd00:ec2::23]\r\n\r\n")?;
        connection.answer().map(|answer| answer.text().contains("AccessKeyId"))
    };
    assert!(agents().unwrap(), "without us a pod gets the agent's credentials");
    let daemon = Daemon::ready(&sandbox, &[]);
    assert!(agents().unwrap(), "it is EKS Pod Identity's");
    assert!(daemon.stop().success());

    let _daemon = Daemon::ready(&sandbox, &WITH_CONTAINER);
    let before = sandbox.cloud.agent.credential_requests();
    let (status, document) = container(web.network(), "[fd00:ec2::23]", "").unwrap();
    assert!(status == 200 && document.contains("SecretAccessKey"), "{status} {document}");
    assert_eq!(container(web.network(), "[fd00:ec2::23]:80", "").unwrap().0, 200);
    for host in ["169.254.169.254", "[fd00:ec2::254]", "example.com"] {
        assert_eq!(container(web.network(), host, "").unwrap().0, 403, "{host}");
    }
    let mut metadata = Connection::open(web.network(), METADATA_V6).unwrap();
    metadata.send("GET", "/v1/credentials", &[]).unwrap();
    assert_eq!(metadata.answer().unwrap().status, 404, "the one service never answers for the other");

    let flush = "nft flush ruleset";
    assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
    eventually("it is back", || container(web.network(), "[fd00:ec2::23]", "").is_ok_and(|(status, _)| status == 200));
    assert_eq!(sandbox.cloud.agent.credential_requests(), before, "the agent's credentials were handed out");
}

#[test]
fn the_sdk_gets_the_pods_role_by_a_whole_uri_and_the_pods_own_token() {
    let sandbox = sandbox_of(PodNetwork::Routed, Families::V6);
    let web = pod(&sandbox, "web");
    let _daemon = Daemon::ready(&sandbox, &WITH_CONTAINER);
    let file = sandbox.directory().join("token");
    let token = sandbox.cloud.kubernetes.projected_token("team-a", "web", "web", POD_IDENTITY).unwrap();
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://[fd00:ec2::23]/v1/credentials"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
    ];
    fs::write(&file, token).unwrap();
    let report = sdk_with(&sandbox, &web, &variables);
    assert!(report.arn.as_ref().is_some_and(|arn| arn.contains("assumed-role/web/")), "{report:?}");
    assert_eq!(metric(&sandbox, "kube2irsa_requests_total{kind=\"role_document\",status=\"200\"}"), 0.0);
    fs::write(&file, "wrong").unwrap();
    assert!(sdk_with(&sandbox, &web, &variables).arn.is_none());
}

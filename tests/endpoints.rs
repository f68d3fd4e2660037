//! Which STS is called, by which way, and how far its clock is from ours.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    io::{self, BufRead as _, BufReader, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    process::Command,
    sync::{Arc, Mutex},
    thread,
};

use aws_smithy_types::{DateTime, date_time::Format};
use sandbox::{
    network::{Namespace, STS_ADDRESS},
    sandbox::Sandbox,
};
use serde_json::json;
use support::{
    Daemon, ROLE_NAME,
    accounts::{HUB, READER, annotate, put_hub, put_role, put_target},
    ask, daemon_binary, eventually, metric, role_status, sandbox, sdk, with_a_pod,
};

const PORT: u16 = 3128;
const PASSWORD: &str = "proxy-secret";
/// `proxy-user:proxy-secret`.
const AUTHORIZATION: &str = "Basic cHJveHktdXNlcjpwcm94eS1zZWNyZXQ=";
const REGIONAL: &str = "CONNECT sts.eu-central-1.amazonaws.com:443";
const GLOBAL: &str = "CONNECT sts.amazonaws.com:443";

/// A proxy outside of the node: it connects to STS, whichever of its names it is asked for.
struct Proxy(Arc<Mutex<Vec<String>>>);

impl Proxy {
    fn start(sandbox: &Sandbox) -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let listener = sandbox.outside().enter(|| TcpListener::bind((STS_ADDRESS, PORT))).unwrap().unwrap();
        let (outside, log) = (sandbox.outside().clone(), Arc::clone(&asked));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (outside, log) = (outside.clone(), Arc::clone(&log));
                // A client that breaks off is none of the test's business.
                thread::spawn(move || serve(client?, &outside, &log));
            }
        });
        Self(asked)
    }

    /// What was asked of it, once each.
    fn asked(&self) -> Vec<String> {
        let mut asked = self.0.lock().unwrap().clone();
        asked.sort();
        asked.dedup();
        asked
    }
}

fn serve(client: TcpStream, outside: &Namespace, log: &Mutex<Vec<String>>) -> io::Result<()> {
    let mut lines = BufReader::new(client.try_clone()?).lines();
    let request = lines.next().unwrap()?;
    let headers = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect::<Vec<_>>();
    log.lock().unwrap().push(request.trim_end_matches(" HTTP/1.1").to_owned());
    let mut client = client;
    let authorized = headers.iter().any(|line| {
        line.split_once(": ")
            .is_some_and(|(name, value)| name.eq_ignore_ascii_case("proxy-authorization") && value == AUTHORIZATION)
    });
    if !authorized {
        return client.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n");
    }
    let server = outside.enter(|| TcpStream::connect(SocketAddr::from((STS_ADDRESS, 443)))).unwrap()?;
    client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
    let (mut from_client, mut to_server) = (client.try_clone()?, server.try_clone()?);
    thread::spawn(move || {
        let _ = io::copy(&mut from_client, &mut to_server);
        to_server.shutdown(Shutdown::Write)
    });
    let mut server = server;
    io::copy(&mut server, &mut client)?;
    client.shutdown(Shutdown::Write)
}

fn proxy_url(authorization: &str) -> String {
    format!("http://{authorization}{STS_ADDRESS}:{PORT}")
}

fn seconds(time: &serde_json::Value) -> i64 {
    DateTime::from_str(time.as_str().unwrap(), Format::DateTime).unwrap().secs()
}

#[test]
fn calls_of_sts_and_no_others_go_through_the_environments_proxy() {
    let (sandbox, web) = with_a_pod();
    let proxy = Proxy::start(&sandbox);
    let url = proxy_url(&format!("proxy-user:{PASSWORD}@"));
    let environment = ["HTTPS_PROXY", "HTTP_PROXY", "https_proxy"].map(|name| (name, url.as_str()));
    let daemon = Daemon::ready_in(&sandbox, &environment, &[]);
    let arn = sdk(&sandbox, &web).arn.unwrap();
    assert!(arn.contains(":assumed-role/web/"), "{arn}");
    assert_eq!(proxy.asked(), [REGIONAL], "neither the API server nor the metadata service");

    put_role(&sandbox, HUB);
    let regional = "eks.amazonaws.com/sts-regional-endpoints";
    for (value, asked) in [("true", &[REGIONAL][..]), ("false", &[GLOBAL, REGIONAL])] {
        sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", HUB), (regional, value)]);
        eventually("the change is in force", || {
            sdk(&sandbox, &web).arn.is_some_and(|arn| arn.contains("/hub/")) && proxy.asked().len() == asked.len()
        });
        assert_eq!(proxy.asked(), asked, "{value}");
    }
    assert!(!daemon.log().contains(PASSWORD), "{}", daemon.log());
}

#[test]
fn hosts_of_no_proxy_are_reached_directly() {
    let (sandbox, web) = with_a_pod();
    let proxy = Proxy::start(&sandbox);
    let url = proxy_url("");
    let environment = [("HTTPS_PROXY", url.as_str()), ("NO_PROXY", "example.com,.amazonaws.com")];
    let _daemon = Daemon::ready_in(&sandbox, &environment, &[]);
    eventually("it is served", || role_status(&web) == 200);
    assert!(proxy.asked().is_empty());
}

#[test]
fn what_is_not_encrypted_is_given_to_no_proxy() {
    let (sandbox, web) = with_a_pod();
    let proxy = Proxy::start(&sandbox);
    let url = proxy_url(&format!("proxy-user:{PASSWORD}@"));
    let environment = ["HTTP_PROXY", "http_proxy", "ALL_PROXY"].map(|name| (name, url.as_str()));
    let flags = ["--sts-endpoint", "http://127.0.0.1:8000", "--imds-endpoint", "off"];
    let daemon = Daemon::ready_in(&sandbox, &environment, &flags);
    assert_eq!(role_status(&web), 503, "nobody listens there");
    eventually("it is said", || daemon.log().contains("STS could not be reached: "));
    assert!(proxy.asked().is_empty(), "{:?}", proxy.asked());
}

#[test]
fn a_proxy_that_refuses_or_is_not_there_is_named_without_its_password() {
    let (sandbox, web) = with_a_pod();
    let _proxy = Proxy::start(&sandbox);
    let refusing = proxy_url("proxy-user:another-secret@");
    let absent = format!("http://proxy-user:another-secret@{STS_ADDRESS}:3129");
    for (url, why) in [(refusing, "proxy authorization required"), (absent, "Connection refused")] {
        let daemon = Daemon::ready_in(&sandbox, &[("HTTPS_PROXY", url.as_str())], &[]);
        assert_eq!(role_status(&web), 503);
        eventually("it is said", || daemon.log().contains("STS could not be reached through the proxy of HTTPS_PROXY"));
        let log = daemon.log();
        assert!(log.contains(why), "{why}: {log}");
        assert!(!log.contains("another-secret"), "{log}");
        daemon.kill();
    }
    assert_eq!(sandbox.cloud.sts.calls(), [], "it is not gone round");
}

#[test]
fn a_proxy_that_is_none_is_wrong_with_the_flags() {
    for url in ["http://user:proxy-secret@", "socks5://user:proxy-secret@proxy:1080", "http://user:proxy-secret@a b"] {
        let mut daemon = Command::new(daemon_binary());
        let output = daemon.args(["run", "--node-name", "n"]).env_clear().env("HTTPS_PROXY", url).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(64));
        assert!(said.lines().any(|line| line.starts_with("kube2irsa: HTTPS_PROXY: is not")), "{said}");
        assert!(!said.contains(PASSWORD), "{said}");
    }
}

#[test]
fn an_endpoint_that_is_named_is_the_one_that_is_called_and_signed_for() {
    let sandbox = sandbox();
    put_hub(&sandbox, HUB);
    put_target(&sandbox, READER, HUB, &json!({}));
    annotate(&sandbox, HUB, &[("target-role-arn", READER)]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let proxy = Proxy::start(&sandbox);
    let url = proxy_url(&format!("proxy-user:{PASSWORD}@"));
    let flags = ["--sts-endpoint", "https://sts-fips.us-east-2.amazonaws.com", "--imds-endpoint", "off"];
    let daemon = Daemon::ready_in(&sandbox, &[("HTTPS_PROXY", url.as_str())], &flags);
    let report = sdk(&sandbox, &web);
    let arn = report.arn.unwrap_or_else(|| panic!("{:?} {}", report.error, daemon.log()));
    assert!(arn.contains(":assumed-role/reader/"), "{arn}");
    assert_eq!(proxy.asked(), ["CONNECT sts-fips.us-east-2.amazonaws.com:443"]);
}

#[test]
fn a_second_hop_by_way_of_the_global_sts_is_signed_for_its_region() {
    let sandbox = sandbox();
    put_hub(&sandbox, HUB);
    put_target(&sandbox, READER, HUB, &json!({}));
    let [role, target, regional] =
        ["eks.amazonaws.com/role-arn", "kube2irsa.io/target-role-arn", "eks.amazonaws.com/sts-regional-endpoints"];
    sandbox.annotate("team-a", "web", &[(role, HUB), (target, READER), (regional, "false")]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let proxy = Proxy::start(&sandbox);
    let url = proxy_url(&format!("proxy-user:{PASSWORD}@"));
    let daemon = Daemon::ready_in(&sandbox, &[("HTTPS_PROXY", url.as_str())], &[]);
    eventually("it is served", || role_status(&web) == 200);
    assert_eq!(ask(&web, "GET", &format!("{ROLE_NAME}reader"), &[]).unwrap().status, 200, "{}", daemon.log());
    assert_eq!(proxy.asked(), [GLOBAL]);
}

#[test]
fn a_second_hop_needs_a_region_and_says_so() {
    let sandbox = sandbox();
    put_hub(&sandbox, HUB);
    put_target(&sandbox, READER, HUB, &json!({}));
    annotate(&sandbox, HUB, &[("target-role-arn", READER)]);
    let web = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    let endpoint = format!("https://{STS_ADDRESS}");
    let flags = ["--sts-endpoint", &endpoint, "--imds-endpoint", "off"];
    let daemon = Daemon::ready(&sandbox, &flags);
    eventually("it is refused", || role_status(&web) == 403);
    assert!(daemon.log().contains("--sts-endpoint names none: add --region"), "{}", daemon.log());
    daemon.kill();
    let _daemon = Daemon::ready(&sandbox, &[&flags[..], &["--region", "eu-central-1"]].concat());
    eventually("it is served", || role_status(&web) == 200);
}

#[test]
fn a_clock_that_is_not_that_of_sts_is_a_metric_and_one_line_in_the_log() {
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-a", "api", "api").unwrap();
    sandbox.cloud.sts.faults().set_clock_skew(120);
    let daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is served", || role_status(&web) == 200);
    let ahead = || metric(&sandbox, "kube2irsa_clock_skew_seconds");
    assert!((-125.0..=-115.0).contains(&ahead()), "{}", ahead());
    // STS gives an hour by its own clock; by ours that would be two minutes more.
    let document = ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap().json();
    let left = seconds(&document["Expiration"]) - seconds(&document["LastUpdated"]);
    assert!((3590..=3600).contains(&left), "{left}");
    let api = sandbox.add_pod("team-a", "api-0", "api").unwrap();
    eventually("it is served too", || role_status(&api) == 200);
    let told = |what: &str| daemon.log().matches(what).count();
    assert_eq!(told("this node's clock is not that of STS"), 1, "{}", daemon.log());

    sandbox.cloud.sts.faults().set_clock_skew(0);
    let other = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    eventually("it is served as well", || role_status(&other) == 200);
    assert!((-5.0..=5.0).contains(&ahead()), "{}", ahead());
    assert_eq!(told("this node's clock is that of STS again"), 1, "{}", daemon.log());
}

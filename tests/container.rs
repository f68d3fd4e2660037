//! The container credentials endpoint: the same role by another way, and nothing of the node's there either.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{
    fs, io,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use sandbox::{
    cloud::ACCOUNT,
    network::{CONTAINER_ADDRESSES, Namespace},
    sandbox::{AUDIENCE, LISTEN, METADATA, Pod, Sandbox},
    sts::{Fault, Which},
};
use serde_json::{Value, json};
use support::{
    Daemon, ROLE_NAME, admin_if_up, ask, eventually,
    http::{Answer, Connection},
    metric, pod, role_status, rules, sdk, sdk_with, with_a_pod, with_an_account,
};

const PATH: &str = "/v1/credentials";
const POD_IDENTITY: &str = "pods.eks.amazonaws.com";
const BOTH: [&str; 2] = ["--container-endpoints", "169.254.170.2,169.254.170.23"];
/// All that a pod sets.
const VARIABLE: [(&str, &str); 1] = [("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", PATH)];

fn endpoint(address: usize) -> SocketAddr {
    (CONTAINER_ADDRESSES[address], 80).into()
}

/// One request on a connection of its own, with these headers and no others.
fn request(server: SocketAddr, pod: &Pod, line: &str, headers: &[(&str, &str)]) -> io::Result<Answer> {
    let mut connection = Connection::open(pod.network(), server)?;
    let headers = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect::<String>();
    connection.send_bytes(format!("{line} HTTP/1.1\r\n{headers}\r\n").as_bytes())?;
    if line.starts_with("HEAD") { connection.answer_to_head() } else { connection.answer() }
}

fn get(pod: &Pod, path: &str) -> Answer {
    request(endpoint(0), pod, &format!("GET {path}"), &[("Host", "169.254.170.2")]).unwrap()
}

fn with_token(pod: &Pod, token: &str) -> Answer {
    request(endpoint(0), pod, &format!("GET {PATH}"), &[("Host", "169.254.170.2"), ("Authorization", token)]).unwrap()
}

/// The status and the code of an error, which is JSON and says nothing of the role.
fn problem(answer: &Answer) -> (u16, String) {
    assert_eq!(answer.header("content-type"), Some("application/json"), "{answer:?}");
    let Value::Object(problem) = answer.json() else { panic!("{answer:?}") };
    assert_eq!(problem.keys().collect::<Vec<_>>(), ["code", "message"]);
    assert!(problem.values().all(|value| value.as_str().is_some_and(|text| !text.is_empty())), "{problem:?}");
    assert!(!answer.text().contains("arn:") && !answer.text().contains("web"), "{problem:?}");
    (answer.status, problem["code"].as_str().unwrap().to_owned())
}

#[track_caller]
fn assert_problem(answer: &Answer, status: u16, code: &str) {
    assert_eq!(problem(answer), (status, code.to_owned()), "{}", answer.text());
}

fn cluster() -> (Sandbox, Pod, Daemon) {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &[]);
    (sandbox, web, daemon)
}

fn of_token(sandbox: &Sandbox, account: &str, pod: &str, audience: &str) -> String {
    sandbox.cloud.kubernetes.projected_token("team-a", account, pod, audience).unwrap()
}

fn refused(sandbox: &Sandbox, reason: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_refused_container_requests_total{{reason=\"{reason}\"}}"))
}

fn served(sandbox: &Sandbox, kind: &str) -> f64 {
    metric(sandbox, &format!("kube2irsa_requests_total{{kind=\"{kind}\",status=\"200\"}}"))
}

#[test]
fn the_sdk_gets_the_pods_role_and_all_that_the_pod_changes_is_one_variable() {
    let (sandbox, web) = with_a_pod();
    let without = sdk_with(&sandbox, &web, &VARIABLE).arn.unwrap();
    assert_eq!(without, "arn:aws:sts::111122223333:assumed-role/node/i-0123456789abcdef0");

    let _daemon = Daemon::ready(&sandbox, &[]);
    let handed_out = sandbox.cloud.agent.credential_requests();
    let report = sdk_with(&sandbox, &web, &VARIABLE);
    let arn = report.arn.unwrap_or_else(|| panic!("{:?}", report.error));
    assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/web/team-a.web-0-"), "{arn}");
    assert!(served(&sandbox, "container_credentials") >= 1.0);
    assert_eq!(served(&sandbox, "role_document"), 0.0, "it asked nobody else");
    assert!(sdk(&sandbox, &web).arn.unwrap().contains("assumed-role/web/"), "without the variable it goes on as ever");
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 1, "the same credentials");
    assert_eq!(sandbox.cloud.agent.credential_requests(), handed_out);
}

#[test]
fn the_sdk_gets_it_with_a_whole_uri_and_the_pods_own_token_too() {
    let (sandbox, web) = with_a_pod();
    let daemon = Daemon::ready(&sandbox, &BOTH);
    let file = sandbox.directory().join("token");
    fs::write(&file, of_token(&sandbox, "web", "web-0", POD_IDENTITY)).unwrap();
    let variables = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://169.254.170.23/v1/credentials"),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", file.to_str().unwrap()),
    ];
    let report = sdk_with(&sandbox, &web, &variables);
    assert!(report.arn.as_ref().is_some_and(|arn| arn.contains("assumed-role/web/")), "{report:?} {}", daemon.log());
    assert!(served(&sandbox, "container_credentials") >= 1.0);
    fs::write(&file, "wrong").unwrap();
    let report = sdk_with(&sandbox, &web, &variables);
    assert!(report.arn.is_none(), "{report:?}");
    assert!(refused(&sandbox, "form") >= 1.0);
}

#[test]
fn the_document_is_json_that_every_sdk_reads() {
    let (_sandbox, web, _daemon) = cluster();
    let answer = get(&web, PATH);
    assert_eq!((answer.status, answer.header("content-type")), (200, Some("application/json")));
    let document = answer.json();
    let fields = document.as_object().unwrap().keys().map(String::as_str).collect::<Vec<_>>();
    assert_eq!(fields, ["AccessKeyId", "AccountId", "Expiration", "RoleArn", "SecretAccessKey", "Token"]);
    assert_eq!(
        (&document["AccountId"], &document["RoleArn"]),
        (&json!(ACCOUNT), &json!(format!("arn:aws:iam::{ACCOUNT}:role/web")))
    );
    let date = document["Expiration"].as_str().unwrap();
    let digits = date.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect::<String>();
    assert_eq!(digits, "0000-00-00T00:00:00Z", "{date}");
    let of_imds = ask(&web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap().json();
    for field in ["AccessKeyId", "SecretAccessKey", "Token", "Expiration"] {
        assert_eq!(document[field], of_imds[field], "{field}");
    }
    // Also where the path is written otherwise, and on a connection that is kept.
    let mut connection = Connection::open(web.network(), endpoint(0)).unwrap();
    for path in ["/v1/credentials/", "//v1/credentials", "/v1/credentials/web", "/v1/credentials?x=y"] {
        connection.send_bytes(format!("GET {path} HTTP/1.1\r\nHost: 169.254.170.2\r\n\r\n").as_bytes()).unwrap();
        assert_eq!(connection.answer().unwrap().json(), document, "{path}");
    }
    let length = answer.body.len().to_string();
    let head = request(endpoint(0), &web, &format!("HEAD {PATH}"), &[("Host", "169.254.170.2")]).unwrap();
    assert_eq!((head.status, head.header("content-length")), (200, Some(length.as_str())));
}

#[test]
fn additional_roles_are_given_by_path() {
    let (sandbox, web) = with_a_pod();
    let (logs, forbidden) = ("arn:aws:iam::444455556666:role/logs", "arn:aws:iam::444455556666:role/forbidden");
    for role in [logs, forbidden] {
        sandbox.cloud.sts.put_role_with(&sandbox.role(role, "team-a", "web").unwrap()).unwrap();
    }
    let main = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.annotate(
        "team-a",
        "web",
        &[
            ("eks.amazonaws.com/role-arn", &main),
            ("kube2irsa.io/additional-role-arns", &format!("prod={logs},{forbidden}")),
        ],
    );
    let permitted = format!("{main},{logs}");
    sandbox.cloud.kubernetes.create_namespace("team-a", &[("kube2irsa.io/permitted-roles", &permitted)]);
    let _daemon = Daemon::ready(&sandbox, &[]);
    let role = |path: &str| get(&web, path).json()["RoleArn"].clone();
    assert_eq!(role(PATH), json!(main));
    assert_eq!(role("/v1/credentials/web"), json!(main));
    assert_eq!(role("/v1/credentials/prod"), json!(logs));
    assert_eq!(get(&web, "/v1/credentials/prod").json()["AccountId"], "444455556666");
    for name in ["logs", "other", "prod%2fx", "PROD"] {
        assert_problem(&get(&web, &format!("/v1/credentials/{name}")), 404, "NoRole");
    }
    assert_problem(&get(&web, "/v1/credentials/forbidden"), 403, "InvalidRole");
}

#[test]
fn each_service_answers_its_own_paths_alone() {
    let (sandbox, web, _daemon) = cluster();
    for path in [
        "/",
        "/latest/",
        ROLE_NAME,
        &format!("{ROLE_NAME}web"),
        "/latest/api/token",
        "/latest/dynamic/instance-identity/document",
        "/v1",
        "/v2/credentials",
        "/v1/credentials/web/x",
        "/v1/credentials/../credentials",
        "/metrics",
    ] {
        assert_problem(&get(&web, path), 404, "NotFound");
    }
    let token = [("Host", "169.254.170.2"), ("X-aws-ec2-metadata-token-ttl-seconds", "60")];
    let token = request(endpoint(0), &web, "PUT /latest/api/token", &token).unwrap();
    assert_problem(&token, 404, "NotFound");
    for path in [PATH, "/v1/credentials/web"] {
        let answer = ask(&web, "GET", path, &[("Host", "169.254.170.2")]).unwrap();
        assert_eq!((answer.status, answer.body.len()), (404, 0), "{path}");
    }
    for method in ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"] {
        let answer = request(endpoint(0), &web, &format!("{method} {PATH}"), &[("Host", "169.254.170.2")]).unwrap();
        assert_problem(&answer, 405, "MethodNotAllowed");
        assert_eq!(answer.header("allow"), Some("GET, HEAD"));
    }
    assert_eq!(served(&sandbox, "container_credentials"), 0.0);
}

#[test]
fn a_request_for_another_host_is_refused() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &BOTH);
    let with_host = |host: &str| request(endpoint(0), &web, &format!("GET {PATH}"), &[("Host", host)]).unwrap();
    for host in ["169.254.170.2", "169.254.170.2:80", "169.254.170.23", "169.254.170.23:80"] {
        assert_eq!(with_host(host).status, 200, "{host}");
    }
    let others = [
        "evil.example",
        "169.254.170.2.evil.example",
        "169.254.170.2:8080",
        "169.254.169.254",
        "10.0.0.10:9169",
        "localhost",
        "",
    ];
    for host in others {
        assert_problem(&with_host(host), 403, "InvalidHost");
    }
    let line = format!("GET {PATH}");
    assert_problem(&request(endpoint(0), &web, &line, &[]).unwrap(), 400, "InvalidHost");
    let two = [("Host", "169.254.170.2"), ("Host", "evil.example")];
    assert_problem(&request(endpoint(0), &web, &line, &two).unwrap(), 400, "InvalidHost");
    let absolute = format!("GET http://evil.example{PATH}");
    assert_problem(&request(endpoint(0), &web, &absolute, &[("Host", "169.254.170.2")]).unwrap(), 403, "InvalidHost");
    assert_eq!(refused(&sandbox, "host"), f64::from(u8::try_from(others.len() + 3).unwrap()));
}

/// The claims of a token, changed and signed anew by the cluster's own key.
fn resigned(sandbox: &Sandbox, token: &str, change: impl Fn(&mut Value)) -> String {
    let claims = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
    let mut claims = serde_json::from_slice(&claims).unwrap();
    change(&mut claims);
    sandbox.cloud.issuer.sign(&claims).unwrap()
}

#[test]
fn where_session_tokens_are_required_a_path_alone_gets_nothing_here_either() {
    let (sandbox, web) = with_a_pod();
    let assert_needs_a_token = || {
        let answer = request(endpoint(0), &web, &format!("GET {PATH}"), &[("Host", "169.254.170.2")]).unwrap();
        assert_problem(&answer, 401, "TokenRequired");
        assert_eq!(with_token(&web, &of_token(&sandbox, "web", "web-0", POD_IDENTITY)).status, 200);
    };
    {
        let _daemon = Daemon::ready(&sandbox, &["--require-imdsv2"]);
        assert_needs_a_token();
        assert_eq!(refused(&sandbox, "no_token"), 1.0);
    }
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let annotations = [("eks.amazonaws.com/role-arn", role.as_str()), ("kube2irsa.io/require-imdsv2", "true")];
    sandbox.annotate("team-a", "web", &annotations);
    let _daemon = Daemon::ready(&sandbox, &[]);
    assert_needs_a_token();
}

#[test]
fn a_token_that_is_shown_must_be_the_pods_own() {
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-a", "worker", "worker").unwrap();
    let other = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    let _worker = sandbox.add_pod("team-a", "worker-0", "worker").unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    let own = of_token(&sandbox, "web", "web-0", POD_IDENTITY);
    for good in
        [&own, &format!("Bearer {own}"), &format!("bearer  {own}"), &of_token(&sandbox, "web", "web-0", AUDIENCE)]
    {
        assert_eq!(with_token(&web, good).status, 200);
    }
    let invalid = |pod: &Pod, token: &str, reason: &str| {
        let before = refused(&sandbox, reason);
        assert_problem(&with_token(pod, token), 401, "InvalidToken");
        assert_eq!(refused(&sandbox, reason), before + 1.0, "{reason}");
    };
    // Another pod's: of another account, of the same account, and ours shown by that one.
    invalid(&web, &of_token(&sandbox, "worker", "worker-0", POD_IDENTITY), "another_pod");
    invalid(&web, &of_token(&sandbox, "web", "web-1", POD_IDENTITY), "another_pod");
    invalid(&other, &own, "another_pod");
    assert_eq!(with_token(&other, &of_token(&sandbox, "web", "web-1", POD_IDENTITY)).status, 200);
    // What its volumes bring every pod, for the API server.
    invalid(&web, &of_token(&sandbox, "web", "web-0", sandbox.cloud.issuer.url()), "audience");
    invalid(&web, &resigned(&sandbox, &own, |claims| claims["exp"] = json!(1_700_000_000)), "expired");
    invalid(&web, &resigned(&sandbox, &own, |claims| claims["nbf"] = json!(4_102_444_800_u64)), "not_yet_valid");
    let account = "/kubernetes.io/serviceaccount/uid";
    invalid(
        &web,
        &resigned(&sandbox, &own, |claims| *claims.pointer_mut(account).unwrap() = json!("old")),
        "another_pod",
    );
    // Of the account, but of no pod.
    let unbound = sandbox.cloud.kubernetes.service_account_token("team-a", "web", None).unwrap();
    invalid(&web, &unbound, "form");
    // Tampered with.
    let [header, claims, signature] = own.split('.').collect::<Vec<_>>()[..] else { panic!() };
    let of_other = of_token(&sandbox, "worker", "worker-0", POD_IDENTITY);
    invalid(&web, &format!("{header}.{}.{signature}", of_other.split('.').nth(1).unwrap()), "signature");
    invalid(&web, &format!("{header}.{claims}."), "signature");
    let none = URL_SAFE_NO_PAD.encode(r#"{"alg":"none"}"#);
    invalid(&web, &format!("{none}.{claims}."), "form");
    let stranger = sandbox::issuer::Issuer::new(sandbox.cloud.issuer.url()).unwrap();
    let claims = serde_json::from_slice::<Value>(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
    // Its key could be the cluster's newest, until the keys have been asked for since.
    let strangers = stranger.sign(&claims).unwrap();
    assert_problem(&with_token(&web, &strangers), 503, "KeysUnavailable");
    eventually("its key is nobody's", || with_token(&web, &strangers).status == 401);
    assert!(refused(&sandbox, "key") >= 1.0);
    for nonsense in ["", "Bearer", "Bearer ", "Basic dXNlcg==", "x", "a.b.c", "\u{e4}"] {
        invalid(&web, nonsense, "form");
    }
    let two = [("Host", "169.254.170.2"), ("Authorization", own.as_str()), ("Authorization", own.as_str())];
    assert_problem(&request(endpoint(0), &web, &format!("GET {PATH}"), &two).unwrap(), 401, "InvalidToken");

    assert_eq!(get(&web, PATH).status, 200, "without one the address is enough");
    assert!(!daemon.log().contains("eyJ"), "a token is in the log");
}

fn key_requests(sandbox: &Sandbox) -> usize {
    sandbox.cloud.kubernetes.requests().iter().filter(|request| request.path == "/openid/v1/jwks").count()
}

#[test]
fn the_clusters_keys_are_fetched_when_needed_and_outlive_the_api_server() {
    let (sandbox, web, daemon) = cluster();
    let own = of_token(&sandbox, "web", "web-0", POD_IDENTITY);
    assert_eq!(get(&web, PATH).status, 200);
    assert_eq!(key_requests(&sandbox), 0, "nobody has shown a token");
    sandbox.cloud.stop_api();
    let start = Instant::now();
    assert_problem(&with_token(&web, &own), 503, "KeysUnavailable");
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    assert_eq!(get(&web, PATH).status, 200, "who shows none needs no keys");
    sandbox.cloud.start_api().unwrap();
    eventually("they are had", || with_token(&web, &own).status == 200);
    assert!(daemon.log().contains("the keys that pods' tokens are checked with"), "{}", daemon.log());

    let asked = key_requests(&sandbox);
    sandbox.cloud.stop_api();
    for audience in [POD_IDENTITY, AUDIENCE] {
        assert_eq!(with_token(&web, &of_token(&sandbox, "web", "web-0", audience)).status, 200);
    }
    sandbox.cloud.start_api().unwrap();

    // A new key is found by the first token that it signed, however many strangers' are shown.
    sandbox.cloud.issuer.rotate().unwrap();
    let stranger = sandbox::issuer::Issuer::new("https://elsewhere.example").unwrap();
    for number in 0..50 {
        assert_ne!(with_token(&web, &stranger.sign(&json!({"jti": number})).unwrap()).status, 200);
    }
    assert!(key_requests(&sandbox) <= asked + 1, "{asked} {}", key_requests(&sandbox));
    let new = of_token(&sandbox, "web", "web-0", POD_IDENTITY);
    eventually("the new key is known", || with_token(&web, &new).status == 200);
    assert!(key_requests(&sandbox) <= asked + 3, "{asked} {}", key_requests(&sandbox));
    assert_eq!(with_token(&web, &own).status, 200, "the old one is still the cluster's");
}

#[test]
fn what_a_pod_without_credentials_is_told() {
    let (sandbox, web) = with_a_pod();
    sandbox.annotate("team-a", "plain", &[]);
    sandbox.annotate("team-a", "wrong", &[("eks.amazonaws.com/role-arn", "web")]);
    let plain = sandbox.add_pod("team-a", "plain-0", "plain").unwrap();
    let wrong = sandbox.add_pod("team-a", "wrong-0", "wrong").unwrap();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_problem(&get(&plain, PATH), 404, "NoRole");
    assert_problem(&get(&plain, "/v1/credentials/web"), 404, "NoRole");
    assert_problem(&get(&wrong, PATH), 403, "InvalidRole");
    assert_problem(&get(&web, PATH), 403, "CredentialsRefused");
    assert!(daemon.log().contains("AccessDenied"), "{}", daemon.log());

    let unknown = sandbox.start_pod("team-a", "web-1", "web").unwrap();
    assert_problem(&get(&unknown, PATH), 503, "CallerNotKnownYet");
    sandbox.cloud.kubernetes.delete_pod("team-a", "web-1");
    eventually("it is nobody's", || problem(&get(&unknown, PATH)) == (404, "UnknownCaller".to_owned()));
}

#[test]
fn an_exchange_that_fails_in_passing_or_takes_too_long_is_503_in_time() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.sts.faults().fail_action("AssumeRoleWithWebIdentity", Fault::ServiceUnavailable, Which::All);
    let web = pod(&sandbox);
    assert_problem(&get(&web, PATH), 503, "CredentialsUnavailable");
    sandbox.cloud.sts.faults().clear();
    eventually("it is served", || get(&web, PATH).status == 200);

    sandbox.cloud.sts.faults().hold();
    let other = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    let start = Instant::now();
    assert_problem(&get(&other, PATH), 503, "CredentialsPending");
    assert!(
        start.elapsed() >= Duration::from_millis(800),
        "it is held for those who leave at once: {:?}",
        start.elapsed()
    );
    sandbox.cloud.sts.faults().release();
    assert_eq!(get(&other, PATH).status, 200);
}

/// Whether an agent's answer with the node's credentials comes back.
fn gets_the_node_role(namespace: &Namespace, server: SocketAddr) -> bool {
    let got = || -> io::Result<bool> {
        let mut connection = Connection::open(namespace, server)?;
        connection.send_bytes(format!("GET {PATH} HTTP/1.1\r\nHost: {}\r\n\r\n", server.ip()).as_bytes())?;
        Ok(connection.answer()?.text().contains("role/node"))
    };
    got().unwrap_or(false)
}

/// A pod with a role, which has got the node's from both agents without us.
fn exposed_pod() -> (Sandbox, Pod) {
    let (sandbox, web) = with_a_pod();
    for address in [0, 1] {
        assert!(gets_the_node_role(web.network(), endpoint(address)), "without us it must, or this proves nothing");
        assert!(gets_the_node_role(sandbox.node(), endpoint(address)));
    }
    (sandbox, web)
}

#[test]
fn the_addresses_that_are_served_are_guarded_whatever_is_flushed_and_no_others() {
    let (sandbox, web) = exposed_pod();
    for (flags, served) in [(&[][..], &[0][..]), (&BOTH, &[0, 1])] {
        let daemon = Daemon::ready(&sandbox, flags);
        let handed_out = sandbox.cloud.agent.credential_requests();
        let flush = "for t in nat filter mangle raw; do iptables -t $t -F; iptables -t $t -X; done; \
            command -v nft >/dev/null && nft flush ruleset; true";
        for _ in 0..3 {
            for address in served {
                eventually("it is redirected", || {
                    assert!(!gets_the_node_role(web.network(), endpoint(*address)));
                    let line = format!("GET {PATH}");
                    let host = [("Host", &*CONTAINER_ADDRESSES[*address].to_string())];
                    let answer = request(endpoint(*address), &web, &line, &host);
                    answer.is_ok_and(|answer| answer.status == 200)
                });
            }
            assert!(sandbox.node().command("sh").args(["-c", flush]).status().unwrap().success());
            for address in served {
                assert!(!gets_the_node_role(web.network(), endpoint(*address)), "flushed");
            }
        }
        assert_eq!(sandbox.cloud.agent.credential_requests(), handed_out, "the node's credentials were handed out");
        assert!(gets_the_node_role(sandbox.node(), endpoint(0)), "the node itself goes on as ever");
        assert_eq!(gets_the_node_role(web.network(), endpoint(1)), served == [0], "the other agent's pods are its own");
        daemon.kill();
        for address in served {
            assert!(!gets_the_node_role(web.network(), endpoint(*address)), "killed");
        }
    }
}

#[test]
fn what_is_no_longer_served_is_taken_out_and_rules_remove_takes_out_all() {
    let (sandbox, web) = exposed_pod();
    // That makes the table which the rules are listed from.
    assert!(sandbox.node().command("iptables").args(["-P", "INPUT", "ACCEPT"]).status().unwrap().success());
    let before = rules(&sandbox);
    let run = |flags: &[&str]| {
        assert!(Daemon::ready(&sandbox, flags).stop().success());
        rules(&sandbox)
    };
    let first = run(&[]);
    let both = run(&BOTH);
    assert!(!first.contains("169.254.170.23") && both.contains("169.254.170.23"), "{first} {both}");
    assert_eq!(run(&["--container-endpoints", "169.254.170.2"]), first);
    let off = run(&["--container-endpoints", "off"]);
    assert!(!off.contains("169.254.170") && off.contains("to 169.254.169.254 prohibit"), "{off}");
    for address in [0, 1] {
        assert!(gets_the_node_role(web.network(), endpoint(address)), "off: the agents' pods are their own");
    }
    assert!(!off.is_empty() && run(&BOTH) == both);
    for what in ["all is taken out", "and where nothing is, nothing is to be done"] {
        let remove = sandbox.node().command(support::daemon_binary()).args(["rules", "remove"]);
        assert!(remove.status().unwrap().success(), "{what}");
        assert_eq!(rules(&sandbox), before, "{what}");
    }
}

#[test]
fn another_interceptors_rule_for_a_container_address_comes_after_ours() {
    let (sandbox, web) = exposed_pod();
    let mut daemon = Daemon::ready(&sandbox, &[&BOTH[..], &["--intercept", "iptables"]].concat());
    let other = |address: IpAddr| {
        let rule = format!("-d {address}/32 -p tcp -m tcp --dport 80 -j DNAT --to 10.0.0.10:9999");
        let command = format!("iptables -t nat -I PREROUTING {rule}");
        assert!(sandbox.node().command("sh").args(["-c", &command]).status().unwrap().success());
    };
    for address in CONTAINER_ADDRESSES {
        other(address.into());
        let line = format!("GET {PATH}");
        eventually("our jump is before the other's", || {
            let host = [("Host", &*address.to_string())];
            let answer = request((address, 80).into(), &web, &line, &host);
            answer.is_ok_and(|answer| answer.status == 200) && rules(&sandbox).contains("9999")
        });
    }
    daemon.wait_until_ready(&sandbox);
}

#[test]
fn without_a_redirect_the_path_says_which_service_is_meant() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &["--intercept", "none"]);
    let at = |host: &str, path: &str| {
        request(LISTEN, &web, &format!("GET {path}"), &[("Host", host)]).unwrap_or_else(|error| panic!("{error}"))
    };
    eventually("the pod is known", || at("10.0.0.10:9169", PATH).status == 200);
    assert_eq!(at("169.254.170.2", PATH).status, 200);
    assert_eq!(at("10.0.0.10:9169", "/v1/credentials/web").status, 200);
    assert_eq!(at("anything", ROLE_NAME).text(), "web", "the metadata service looks at no host");
    for host in ["10.0.0.10", "10.0.0.10:80", "10.0.0.11:9169", "evil.example"] {
        assert_problem(&at(host, PATH), 403, "InvalidHost");
    }
    assert_problem(&at("10.0.0.10:9169", "/v1/other"), 404, "NotFound");
    assert_eq!(role_status_at(&web), 200, "nothing is redirected: this is the real service");
    assert!(admin_if_up(&sandbox, "/metrics").is_some());
}

fn role_status_at(pod: &Pod) -> u16 {
    let mut connection = Connection::open(pod.network(), METADATA).unwrap();
    connection.send("GET", ROLE_NAME, &[]).unwrap();
    connection.answer().unwrap().status
}

#[test]
fn a_pod_that_is_gone_leaves_nothing_to_the_next_on_its_address() {
    let (sandbox, web) = with_a_pod();
    sandbox.add_service_account("team-a", "worker", "worker").unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let (address, own) = (web.address(), of_token(&sandbox, "web", "web-0", POD_IDENTITY));
    assert_eq!(with_token(&web, &own).status, 200);
    sandbox.remove_pod(web).unwrap();
    let worker = sandbox.add_pod_at("team-a", "worker-0", "worker", address).unwrap();
    eventually("the next one is known", || role_status(&worker) == 200);
    assert!(get(&worker, PATH).json()["RoleArn"].as_str().unwrap().ends_with("role/worker"));
    assert_problem(&with_token(&worker, &own), 401, "InvalidToken");
}

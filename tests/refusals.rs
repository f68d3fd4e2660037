//! What STS refuses: the pod sees a status, the operator sees why.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use http::StatusCode;
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Corruption, Fault, Grant, Target},
    sandbox::{AUDIENCE, Pod, Sandbox},
};
use support::{Daemon, ROLE_NAME, ask, eventually, metric, pod, role_status, with_a_pod, with_an_account};

/// The pod's status is `status`, STS's answer was `code`, and log and metrics say so without a secret.
fn assert_refused(sandbox: &Sandbox, web: &Pod, daemon: &Daemon, status: u16, code: &str, message: &str) {
    let answer = ask(web, "GET", ROLE_NAME, &[]).unwrap();
    assert_eq!((answer.status, answer.body.len()), (status, 0), "{}", daemon.log());
    let document = ask(web, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
    assert_eq!((document.status, document.body.len()), (503, 0));
    let calls = sandbox.cloud.sts.calls();
    assert!(calls.iter().any(|call| call.outcome == code), "{calls:?}");
    assert!(!calls.iter().any(|call| call.outcome == "Success"), "{calls:?}");
    let calls = format!("kube2irsa_sts_exchanges_total{{action=\"web_identity\",result=\"{code}\"}}");
    assert!(metric(sandbox, &calls) >= 1.0);
    let log = daemon.log();
    for part in ["team-a/web", "role/web", code, message] {
        assert!(log.contains(part), "{part}: {log}");
    }
    assert!(!log.contains("eyJ"), "a token is in the log");
}

#[test]
fn a_wrong_audience() {
    let (sandbox, web) = with_a_pod();
    let audience = Grant::new(&["request-serviceaccounts-token-audience"], "another.example");
    sandbox.cloud.kubernetes.grant_group("system:nodes", audience);
    let daemon = Daemon::ready(&sandbox, &["--token-audience", "another.example"]);
    assert_refused(&sandbox, &web, &daemon, 403, "InvalidIdentityToken", "Incorrect token audience");
}

#[test]
fn an_expired_token() {
    let sandbox = with_an_account();
    let daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.kubernetes.faults().corrupt_tokens(Some(Corruption::Expired));
    let web = pod(&sandbox);
    assert_refused(&sandbox, &web, &daemon, 503, "ExpiredTokenException", "Token expired");
    let tries = sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity");
    assert_eq!(tries % 2, 0, "each time once more, with a new token");

    sandbox.cloud.kubernetes.faults().corrupt_tokens(None);
    eventually("it is served once tokens are good", || role_status(&web) == 200);
}

#[test]
fn a_forged_signature() {
    let sandbox = with_an_account();
    let daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.kubernetes.faults().corrupt_tokens(Some(Corruption::Signature));
    let web = pod(&sandbox);
    assert_refused(&sandbox, &web, &daemon, 403, "InvalidIdentityToken", "InvalidIdentityToken");
}

#[test]
fn another_service_account_than_the_role_trusts() {
    let (sandbox, web) = with_a_pod();
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-b:web")).unwrap();
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_refused(&sandbox, &web, &daemon, 403, "AccessDenied", "Not authorized to perform");
    let calls = sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity");
    for _ in 0..50 {
        assert_eq!(role_status(&web), 403);
    }
    let more = sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity") - calls;
    assert!(more <= 3, "a remembered refusal costs no call: {more}");

    sandbox.cloud.sts.put_role(&role, sandbox.trust_policy("system:serviceaccount:team-a:web")).unwrap();
    eventually("it is served once the role is mended", || role_status(&web) == 200);
}

#[test]
fn an_issuer_that_the_account_does_not_know() {
    let (sandbox, web) = with_a_pod();
    sandbox.cloud.sts.delete_oidc_provider(ACCOUNT, sandbox.cloud.issuer.url());
    let daemon = Daemon::ready(&sandbox, &[]);
    assert_refused(&sandbox, &web, &daemon, 403, "InvalidIdentityToken", "No OpenIDConnect provider found");
    sandbox.cloud.sts.put_oidc_provider(ACCOUNT, sandbox.cloud.issuer.url(), &[AUDIENCE]).unwrap();
    eventually("it is served once the provider is there", || role_status(&web) == 200);
}

#[test]
fn a_token_for_another_pod_is_not_used() {
    let sandbox = with_an_account();
    let daemon = Daemon::ready(&sandbox, &[]);
    sandbox.cloud.kubernetes.faults().corrupt_tokens(Some(Corruption::Audience("another.example".to_owned())));
    let web = pod(&sandbox);
    assert_eq!(role_status(&web), 403);
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 0);
    assert!(metric(&sandbox, "kube2irsa_token_requests_total{result=\"mismatch\"}") >= 1.0);
    assert!(daemon.log().contains("its audience differs"), "{}", daemon.log());
}

#[test]
fn an_api_server_that_fails_is_asked_again_by_nobody_but_us() {
    let sandbox = with_an_account();
    let daemon = Daemon::ready(&sandbox, &["--token-access", "node"]);
    let faults = sandbox.cloud.kubernetes.faults();
    let tokens = || Target::any().verb("create").resource("serviceaccounts/token");
    faults.inject(tokens(), Fault::Answer(StatusCode::SERVICE_UNAVAILABLE));
    let web = pod(&sandbox);
    assert_eq!(role_status(&web), 503);
    let asked = || sandbox.cloud.kubernetes.requests().iter().filter(|r| r.resource == "serviceaccounts/token").count();
    eventually("every request is one of ours", || {
        f64::from(u32::try_from(asked()).unwrap()) == metric(&sandbox, "kube2irsa_token_requests_total{result=\"5xx\"}")
    });
    assert!(asked() <= 4, "{}", asked());
    assert!(daemon.log().contains("the API server refused the TokenRequest: 503"), "{}", daemon.log());
    faults.clear();
    eventually("it is served once the API server is well", || role_status(&web) == 200);
}

//! The issuer's documents on a web host: exported, fetched by STS as AWS fetches them, checked, and changed while pods ask.
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
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    thread,
};

use sandbox::{
    network::{OIDC_ADDRESS, PodNetwork},
    sandbox::{Pod, Sandbox},
};
use serde_json::Value;
use support::{Daemon, ROLE_NAME, ask, daemon_binary, eventually, pod, sdk};

const HOST: &str = "oidc.example.com";
const ISSUER: &str = "https://oidc.example.com/prod";

/// A sandbox whose issuer's documents are where they were put, which is nowhere at first.
fn published() -> Sandbox {
    let sandbox = Sandbox::with_issuer(PodNetwork::Routed, ISSUER, &mut |line| println!("{line}"));
    let sandbox = sandbox.unwrap_or_else(|error| panic!("{error}"));
    sandbox.add_service_account("team-a", "web", "web").unwrap();
    sandbox
}

struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {}{}", self.out, self.err))
    }
}

/// `kube2irsa oidc` with these arguments, on a machine outside of the cluster that has no kubeconfig of its own.
fn oidc(sandbox: &Sandbox, arguments: &[&str]) -> Said {
    let command = sandbox.outside().command(daemon_binary()).env_clear().names([(HOST, OIDC_ADDRESS.into())]);
    let command = command.env("HOME", sandbox.directory().join("home")).env("SSL_CERT_FILE", sandbox.ca_file());
    let output = command.current_dir(sandbox.directory()).arg("oidc").args(arguments).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    Said { code: output.status.code().unwrap(), out, err }
}

/// The same with the cluster's kubeconfig.
fn with_cluster(sandbox: &Sandbox, arguments: &[&str]) -> Said {
    let kubeconfig = sandbox.kubeconfig();
    oidc(sandbox, &[arguments, &["--kubeconfig", kubeconfig.to_str().unwrap()]].concat())
}

#[track_caller]
fn export(sandbox: &Sandbox, flags: &[&str]) -> Said {
    // Its root is what the web host serves.
    let said = with_cluster(sandbox, &[&["export", "web"], flags].concat());
    assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    said
}

/// The role's keys that the pod has got, once it has.
fn has_keys(pod: &Pod) -> bool {
    let answer = ask(pod, "GET", &format!("{ROLE_NAME}web"), &[]).unwrap();
    answer.status == 200 && answer.json()["AccessKeyId"].is_string()
}

/// What STS said to each exchange of a token.
fn outcomes(sandbox: &Sandbox) -> Vec<&'static str> {
    sandbox.cloud.sts.calls().into_iter().filter(|call| call.role.is_some()).map(|call| call.outcome).collect()
}

#[test]
fn pods_get_credentials_by_documents_that_were_exported_to_a_web_host_and_none_before() {
    let sandbox = published();
    let web = pod(&sandbox);
    let _daemon = Daemon::ready(&sandbox, &[]);
    eventually("it is refused", || outcomes(&sandbox).contains(&"InvalidIdentityToken"));
    assert!(!has_keys(&web));
    let checked = with_cluster(&sandbox, &["check"]);
    assert_eq!(checked.code, 1, "{}{}", checked.out, checked.err);
    assert!(checked.out.contains("/.well-known/openid-configuration is answered by 404"), "{}", checked.out);

    export(&sandbox, &[]);
    let checked = with_cluster(&sandbox, &["check"]);
    assert_eq!(checked.code, 0, "{}{}", checked.out, checked.err);
    let web = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    let arn = sdk(&sandbox, &web).arn.unwrap();
    assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/web/"), "{arn}");
    assert!(sandbox.cloud.sts.issuer_fetches() > 0);
}

/// A new pod of the service account, again and again, each with a token of its own to be exchanged, by keys that STS has from the
/// web host anew; until it is told to stop. Counts those that got their keys.
fn pods_that_ask(sandbox: &Sandbox, served: &AtomicUsize, stop: &AtomicBool) {
    while !stop.load(Ordering::SeqCst) {
        let number = served.load(Ordering::SeqCst);
        sandbox.cloud.sts.forget_issuer_keys();
        let pod = sandbox.add_pod("team-a", &format!("web-{number}"), "web").unwrap();
        eventually("a pod gets its keys", || has_keys(&pod));
        sandbox.remove_pod(pod).unwrap();
        served.fetch_add(1, Ordering::SeqCst);
    }
}

/// Also where a step before it fails: else the test would wait for the pods for ever.
struct StopAtTheEnd<'a>(&'a AtomicBool);

impl Drop for StopAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

#[test]
fn the_signing_key_is_changed_without_a_failed_exchange_while_pods_ask_all_the_time() {
    let sandbox = published();
    export(&sandbox, &[]);
    let first_daemon = Daemon::ready(&sandbox, &[]);
    let issuer = &sandbox.cloud.issuer;
    let (served, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        let asking = scope.spawn(|| pods_that_ask(&sandbox, &served, &stop));
        let _stop = StopAtTheEnd(&stop);
        let some_more = || {
            let before = served.load(Ordering::SeqCst);
            eventually("pods ask", || asking.is_finished() || served.load(Ordering::SeqCst) >= before + 3);
        };
        some_more();
        let old = issuer.jwks()["keys"][0]["kid"].as_str().unwrap().to_owned();
        let new = issuer.add_key().unwrap();
        some_more();
        let both = export(&sandbox, &["-o", "json"]).json();
        assert_eq!(both["keys"].as_array().unwrap().len(), 2);
        assert_eq!(with_cluster(&sandbox, &["check"]).code, 0);
        some_more();
        issuer.sign_with_newest();
        some_more();
        // By the old key the API server would not know the daemon any more; a pod's own token is renewed by kubelet.
        sandbox.renew_kubeconfig().unwrap();
        let daemon = Daemon::started(&sandbox, &[]);
        for said in ["took over from the daemon that ran here", "handed over to the next daemon"] {
            eventually("one daemon follows the other", || daemon.log().contains(said));
        }
        assert!(first_daemon.stop().success());
        some_more();
        issuer.drop_old_keys();
        let kept = export(&sandbox, &["-o", "json"]).json();
        assert_eq!((&kept["keys"][1]["kid"], &kept["keys"][1]["of_cluster"]), (&old.clone().into(), &false.into()));
        some_more();
        let dropped = export(&sandbox, &["--drop-old-keys", "-o", "json"]).json();
        assert_eq!(dropped["keys"].as_array().unwrap().len(), 1);
        assert!(dropped["dropped"][0].as_str().unwrap().starts_with(&old), "{dropped}");
        some_more();
        stop.store(true, Ordering::SeqCst);
        asking.join().unwrap();
        let published = fs::read_to_string(sandbox.web_root().join("prod/openid/v1/jwks")).unwrap();
        assert!(published.contains(&new) && !published.contains(&old), "{published}");
    });
    let outcomes = outcomes(&sandbox);
    assert!(outcomes.len() >= served.load(Ordering::SeqCst) && served.load(Ordering::SeqCst) >= 21, "{outcomes:?}");
    assert!(outcomes.iter().all(|outcome| *outcome == "Success"), "{outcomes:?}");
    assert!(sandbox.cloud.sts.issuer_fetches() >= 21, "each by documents that were fetched anew");
}

#[test]
fn a_key_that_signs_before_it_is_published_fails_check_says_so_and_an_export_mends_it() {
    let sandbox = published();
    export(&sandbox, &[]);
    let _daemon = Daemon::ready(&sandbox, &[]);
    let first = pod(&sandbox);
    eventually("it gets its role", || has_keys(&first));

    let new = sandbox.cloud.issuer.add_key().unwrap();
    sandbox.cloud.issuer.sign_with_newest();
    let second = sandbox.add_pod("team-a", "web-1", "web").unwrap();
    eventually("it is refused", || outcomes(&sandbox).last() == Some(&"InvalidIdentityToken"));
    assert!(!has_keys(&second) && has_keys(&first), "what was fetched before is served on");
    let checked = with_cluster(&sandbox, &["check", "-o", "json"]);
    assert_eq!(checked.code, 1, "{}", checked.out);
    let told = checked.json();
    assert_eq!((&told["well"], &told["compared"]), (&false.into(), &true.into()));
    let fails = told["findings"].as_array().unwrap().iter().filter(|finding| finding["state"] == "fails");
    let [fails] = fails.collect::<Vec<_>>()[..] else { panic!("{told:#}") };
    assert_eq!(fails["check"], "keys");
    assert!(fails["what"].as_str().unwrap().starts_with(&format!("the cluster's key {new} ")), "{fails}");
    assert!(fails["do"].as_str().unwrap().contains("kube2irsa oidc export"), "{fails}");

    export(&sandbox, &[]);
    assert_eq!(with_cluster(&sandbox, &["check"]).code, 0);
    eventually("it gets its role", || has_keys(&second));
}

#[test]
fn without_a_cluster_the_outside_alone_is_checked_and_with_one_that_is_named_it_must_answer() {
    let sandbox = published();
    export(&sandbox, &[]);
    let alone = oidc(&sandbox, &["check", "--issuer", ISSUER]);
    assert_eq!(alone.code, 0, "{}{}", alone.out, alone.err);
    assert!(alone.out.contains("nothing was compared with a cluster"), "{}", alone.out);
    let neither = oidc(&sandbox, &["check"]);
    assert_eq!(neither.code, 64, "neither a cluster nor an issuer");
    assert!(neither.err.contains("without a cluster: --issuer URL"), "{}", neither.err);

    let checked = with_cluster(&sandbox, &["check", "--issuer", "https://oidc.example.com/other"]);
    assert_eq!(checked.code, 1);
    assert!(checked.out.contains(&format!("its tokens are of another issuer: {ISSUER}")), "{}", checked.out);

    sandbox.cloud.stop_api();
    for command in [&["check", "--issuer", ISSUER][..], &["check"], &["show"], &["export", "elsewhere"]] {
        let said = with_cluster(&sandbox, command);
        assert_eq!(said.code, 69, "{command:?}: {}{}", said.out, said.err);
        assert!(said.err.contains(&sandbox.cloud.api_url()), "{}", said.err);
    }
    assert!(!sandbox.directory().join("elsewhere").exists());
}

#[test]
fn an_authority_of_ones_own_is_named_and_iam_goes_by_its_thumbprint() {
    let sandbox = published();
    export(&sandbox, &[]);
    let untrusted = with_cluster(&sandbox, &["check"]);
    assert_eq!(untrusted.code, 0, "the machine trusts it");
    let ca = sandbox.ca_file();
    let check = |flags: &[&str]| {
        let command = sandbox.outside().command(daemon_binary()).env_clear().names([(HOST, OIDC_ADDRESS.into())]);
        let output = command.args(["oidc", "check", "--issuer", ISSUER]).args(flags).output().unwrap();
        (output.status.code().unwrap(), String::from_utf8(output.stdout).unwrap())
    };
    let (code, said) = check(&[]);
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("no authority that is trusted here signed it"), "{said}");
    let (code, said) = check(&["--ca-file", ca.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("--thumbprint-list"), "{said}");
}

#[test]
fn an_issuer_inside_of_the_cluster_is_shown_with_what_to_do_and_its_successor_can_be_published_first() {
    let sandbox = Sandbox::with_issuer(PodNetwork::Routed, "https://kubernetes.default.svc.cluster.local", &mut |_| {});
    let sandbox = sandbox.unwrap_or_else(|error| panic!("{error}"));
    let shown = with_cluster(&sandbox, &["show"]);
    assert_eq!(shown.code, 1, "{}{}", shown.out, shown.err);
    assert!(shown.out.contains("FAILS  issuer") && shown.out.contains("--service-account-issuer"), "{}", shown.out);
    let told = with_cluster(&sandbox, &["show", "-o", "json"]).json();
    assert_eq!(told["discovery"], sandbox.cloud.issuer.discovery());
    assert_eq!(told["jwks"], sandbox.cloud.issuer.jwks());

    let exported = export(&sandbox, &["--issuer", ISSUER]);
    assert!(exported.out.contains("jwks_uri is below the issuer here"), "{}", exported.out);
    let read = |path: &str| serde_json::from_slice::<Value>(&fs::read(sandbox.web_root().join(path)).unwrap()).unwrap();
    assert_eq!(read("prod/.well-known/openid-configuration")["issuer"], ISSUER);
    assert_eq!(read("prod/openid/v1/jwks"), sandbox.cloud.issuer.jwks());
}

#[test]
fn an_api_server_may_be_named_and_one_that_is_no_url_is_refused() {
    let sandbox = published();
    let url = sandbox.cloud.api_url();
    let shown = with_cluster(&sandbox, &["show", "-o", "json", "--server", &url, "--server", &format!("{url}/")]);
    assert_eq!(shown.code, 0, "{}{}", shown.out, shown.err);
    let told = shown.json();
    assert_eq!(told["servers"].as_array().unwrap().len(), 2);
    assert_eq!(told["jwks"]["keys"].as_array().unwrap().len(), 1, "the same key of both");
    let refused = with_cluster(&sandbox, &["show", "--server", "api.example.com"]);
    assert_eq!((refused.code, refused.out.as_str()), (64, ""));
    assert!(refused.err.contains("--server api.example.com"), "{}", refused.err);
}

/// What differs from run to run, as the page has it.
fn as_on_the_page(sandbox: &Sandbox, ids: &[&str], said: &str) -> String {
    const IDS: [&str; 2] =
        ["3Q1xM0tYb7dXk2vJ5cW9sZr8fHnLgTpE6uAaQyKoIBs", "Vt5cR2mPw8nKx4zLq7bJf1dGy6hSu3aEo9iTkWgNlCM"];
    let mut text = said.replace(&sandbox.cloud.api_url(), "https://api.example.com:6443");
    for (id, on_the_page) in ids.iter().zip(IDS) {
        text = text.replace(id, on_the_page);
    }
    let words = text.split_inclusive(char::is_whitespace).map(|word| {
        let is_hash = |word: &str| word.len() == 40 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        match word.trim_end() {
            hash if is_hash(hash) => word.replace(hash, "dd55b4520291f276588f0dd02fafd83a7368e0fa"),
            time if time.starts_with("4096-") => word.replace(time, "2027-02-24T12:00:00Z"),
            _ => word.to_owned(),
        }
    });
    words.collect()
}

#[test]
fn the_page_shows_what_is_printed() {
    let page = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/oidc.md")).unwrap();
    let sandbox = published();
    let mut ids = vec![sandbox.cloud.issuer.jwks()["keys"][0]["kid"].as_str().unwrap().to_owned()];
    let shows = |ids: &[String], arguments: &[&str]| {
        let ids = ids.iter().map(String::as_str).collect::<Vec<_>>();
        let said = as_on_the_page(&sandbox, &ids, &with_cluster(&sandbox, arguments).out);
        let block = format!("```\n{said}```\n");
        println!("{block}");
        assert!(page.contains(&block), "docs/oidc.md does not show, of oidc {arguments:?}:\n{block}");
    };
    shows(&ids, &["show"]);
    shows(&ids, &["export", "web"]);
    shows(&ids, &["check"]);
    ids.push(sandbox.cloud.issuer.add_key().unwrap());
    shows(&ids, &["check"]);
    shows(&ids, &["export", "web"]);
    sandbox.cloud.issuer.sign_with_newest();
    sandbox.renew_kubeconfig().unwrap();
    sandbox.cloud.issuer.drop_old_keys();
    shows(&ids, &["export", "web"]);
}

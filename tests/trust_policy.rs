//! `kube2irsa trust-policy`: what it writes is taken by IAM and STS and admits whom it is to admit; what it says of a policy is what STS
//! does.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{process::Output, sync::Arc};

use sandbox::{
    clock,
    cloud::ACCOUNT,
    issuer::Issuer,
    network::OIDC_ADDRESS,
    sandbox::{AUDIENCE, Sandbox},
    sts::{IamError, Role},
};
use serde_json::{Value, json};
use support::{Daemon, daemon_binary, exchange, sandbox, sdk};

const WEB: &str = "arn:aws:iam::111122223333:role/team-a/web";
const READER: &str = "arn:aws:iam::444455556666:role/reader";
const SUBJECT: &str = "system:serviceaccount:team-a:web";

/// The command, where the API server is to be reached.
fn run(sandbox: &Sandbox, flags: &[&str]) -> Output {
    let command = sandbox.on_node(daemon_binary().to_str().unwrap()).arg("trust-policy").args(flags);
    command.arg("--kubeconfig").arg(sandbox.kubeconfig()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json_of(sandbox: &Sandbox, flags: &[&str]) -> Value {
    let output = run(sandbox, flags);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Puts what was written into the accounts that it names.
fn apply(sandbox: &Sandbox, written: &Value) -> Result<(), IamError> {
    for provider in written["providers"].as_array().unwrap() {
        let account = provider["arn"].as_str().unwrap().split(':').nth(4).unwrap();
        let audiences = provider["clientIds"].as_array().unwrap().iter().map(|id| id.as_str().unwrap());
        let audiences = audiences.collect::<Vec<_>>();
        sandbox.cloud.sts.put_oidc_provider(account, provider["url"].as_str().unwrap(), &audiences)?;
    }
    written["roles"].as_array().unwrap().iter().try_for_each(|role| {
        let permissions = role.get("permissionsPolicy").cloned();
        let role = Role { permissions, ..Role::new(role["arn"].as_str().unwrap(), role["trustPolicy"].clone()) };
        sandbox.cloud.sts.put_role_with(&role)
    })
}

/// Issuers of other clusters, whose documents AWS finds.
fn other_clusters(sandbox: &Sandbox, count: usize) -> Vec<Arc<Issuer>> {
    let url = |number| format!("https://{OIDC_ADDRESS}/clusters/{number}");
    let issuers = (1..=count).map(|number| Arc::new(Issuer::new(url(number)).unwrap())).collect::<Vec<_>>();
    issuers.iter().for_each(|issuer| sandbox.cloud.publish(Arc::clone(issuer)));
    issuers
}

/// A token as an API server signs it.
fn token(issuer: &Issuer, subject: &str, audience: &str) -> String {
    let now = clock::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let times = json!({ "iat": now - 60, "nbf": now - 60, "exp": now + 600 });
    let mut claims = json!({ "iss": issuer.url(), "sub": subject, "aud": [audience] });
    claims.as_object_mut().unwrap().extend(times.as_object().unwrap().clone());
    issuer.sign(&claims).unwrap()
}

/// What STS says of a token: the role's name, or why not.
fn said(sandbox: &Sandbox, token: &str, role: &str) -> String {
    let report = exchange(sandbox, token, role);
    match (report.arn, report.error) {
        (Some(arn), _) => arn.split('/').nth(1).unwrap().to_owned(),
        (None, Some(error)) => error,
        (None, None) => panic!("neither"),
    }
}

#[track_caller]
fn refuses(sandbox: &Sandbox, token: &str, role: &str, why: &str) {
    let said = said(sandbox, token, role);
    assert!(said.contains(why), "{said}");
}

const DENIED: &str = "Not authorized to perform sts:AssumeRoleWithWebIdentity";

#[test]
fn a_role_admits_the_service_account_that_is_annotated_with_it_and_nobody_else() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "web", &[("eks.amazonaws.com/role-arn", WEB)]);
    let own = &sandbox.cloud.issuer;
    let written = json_of(&sandbox, &["team-a/web"]);
    assert_eq!(written["providers"][0]["url"], own.url(), "the cluster's own");
    apply(&sandbox, &written).unwrap();
    assert_eq!(said(&sandbox, &token(own, SUBJECT, AUDIENCE), WEB), "web");
    refuses(&sandbox, &token(own, "system:serviceaccount:team-a:webb", AUDIENCE), WEB, DENIED);
    refuses(&sandbox, &token(own, "system:serviceaccount:team-b:web", AUDIENCE), WEB, DENIED);
    refuses(&sandbox, &token(own, SUBJECT, "other"), WEB, "Incorrect token audience");
    // Also one that the provider would take.
    sandbox.cloud.sts.put_oidc_provider(ACCOUNT, own.url(), &[AUDIENCE, "other"]).unwrap();
    refuses(&sandbox, &token(own, SUBJECT, "other"), WEB, DENIED);
    let stranger = &other_clusters(&sandbox, 1)[0];
    refuses(&sandbox, &token(stranger, SUBJECT, AUDIENCE), WEB, "No OpenIDConnect provider found");
    sandbox.cloud.sts.put_oidc_provider(ACCOUNT, stranger.url(), &[AUDIENCE]).unwrap();
    refuses(&sandbox, &token(stranger, SUBJECT, AUDIENCE), WEB, DENIED);
}

#[test]
fn four_clusters_fit_into_one_policy() {
    let sandbox = sandbox();
    let issuers = other_clusters(&sandbox, 4);
    let flags = issuers.iter().flat_map(|issuer| ["--issuer", issuer.url()]).collect::<Vec<_>>();
    let written = json_of(&sandbox, &[&["team-a/web", "--role", WEB], &flags[..]].concat());
    apply(&sandbox, &written).unwrap();
    for issuer in &issuers {
        assert_eq!(said(&sandbox, &token(issuer, SUBJECT, AUDIENCE), WEB), "web", "{}", issuer.url());
    }
    refuses(&sandbox, &token(&issuers[3], "system:serviceaccount:team-b:web", AUDIENCE), WEB, DENIED);
    refuses(&sandbox, &token(&sandbox.cloud.issuer, SUBJECT, AUDIENCE), WEB, DENIED);
}

#[test]
fn twelve_clusters_do_not_fit_and_reach_the_role_by_way_of_a_first_role_each() {
    let sandbox = sandbox();
    let issuers = other_clusters(&sandbox, 12);
    let flags = issuers.iter().flat_map(|issuer| ["--issuer", issuer.url()]).collect::<Vec<_>>();
    let direct = run(&sandbox, &[&["team-a/web", "--role", READER], &flags[..]].concat());
    assert_eq!(direct.status.code(), Some(1));
    let advice = text(&direct.stderr);
    for part in ["characters, and IAM takes 2048", "kube2irsa.io/target-role-arn", "--from", "quota"] {
        assert!(advice.contains(part), "{part}: {advice}");
    }
    let written = serde_json::from_slice::<Value>(&direct.stdout).unwrap();
    let refused = apply(&sandbox, &written).unwrap_err();
    assert!(matches!(refused, IamError::LimitExceeded(_)), "IAM says so too: {refused}");

    // The sandbox's cluster is one of the twelve: its pods go the way that the advice is about.
    let first = |number: usize| format!("arn:aws:iam::{ACCOUNT}:role/cluster-{number}");
    let annotations = [
        ("eks.amazonaws.com/role-arn", first(0)),
        ("kube2irsa.io/target-role-arn", READER.to_owned()),
        ("kube2irsa.io/external-id", "team-a".to_owned()),
    ];
    sandbox.annotate("team-a", "web", &annotations.each_ref().map(|(key, value)| (*key, value.as_str())));
    apply(&sandbox, &json_of(&sandbox, &["--all", "--role", &first(0)])).unwrap();
    for (number, issuer) in (1..).zip(&issuers[1..]) {
        let flags = ["team-a/web", "--role", &first(number), "--issuer", issuer.url()];
        apply(&sandbox, &json_of(&sandbox, &flags)).unwrap();
    }
    let from = (0..12).map(first).collect::<Vec<_>>();
    let from = from.iter().flat_map(|role| ["--from", role]).collect::<Vec<_>>();
    let target = ["team-a/web", "--role", READER, "--external-id", "team-a"];
    let target = json_of(&sandbox, &[&target, &from[..]].concat());
    apply(&sandbox, &target).unwrap();
    let pods = [("web-0", "web"), ("other-0", "other")].map(|(pod, account)| {
        sandbox.annotate("team-a", "other", &annotations.each_ref().map(|(key, value)| (*key, value.as_str())));
        sandbox.add_pod("team-a", pod, account).unwrap()
    });
    let _daemon = Daemon::ready(&sandbox, &[]);
    let arn = sdk(&sandbox, &pods[0]).arn.unwrap();
    assert!(arn.starts_with("arn:aws:sts::444455556666:assumed-role/reader/team-a.web-0-"), "{arn}");
    assert_eq!(sdk(&sandbox, &pods[1]).arn, None, "who is not named has none");
}

/// Service accounts as a cluster has them: shared roles, further ones, second hops, an audience, other partitions.
fn cluster() -> Sandbox {
    let sandbox = sandbox();
    let hub = format!("arn:aws:iam::{ACCOUNT}:role/hub");
    let [china, gov] = ["arn:aws-cn:iam::777788889999:role/web", "arn:aws-us-gov:iam::777788889999:role/logs"];
    let role = |role| ("eks.amazonaws.com/role-arn", role);
    for (namespace, name, annotations) in [
        ("team-a", "web", &[role(WEB)][..]),
        ("team-b", "web", &[role(WEB), ("eks.amazonaws.com/audience", "other")]),
        ("team-a", "api", &[role(WEB), ("kube2irsa.io/additional-role-arns", gov)]),
        ("team-c", "china", &[role(china)]),
        (
            "team-a",
            "reader",
            &[role(&hub), ("kube2irsa.io/target-role-arn", READER), ("kube2irsa.io/external-id", "id-1")],
        ),
        ("team-a", "default", &[]),
    ] {
        sandbox.annotate(namespace, name, annotations);
    }
    sandbox
}

/// The policies in Terraform's text: each role's name, as it says it, and its policy.
fn of_terraform(text: &str) -> Vec<(String, Value)> {
    let roles = text.split("resource \"aws_iam_role\" ").skip(1);
    let roles = roles.map(|role| {
        let name = role.split("= \"").nth(1).unwrap().split('"').next().unwrap();
        let policy = role.split("<<-POLICY\n").nth(1).unwrap().split("\n  POLICY\n").next().unwrap();
        (name.to_owned(), serde_json::from_str(policy).unwrap())
    });
    roles.collect()
}

#[test]
fn each_form_holds_the_same_policies_and_iam_takes_them() {
    let sandbox = cluster();
    let written = json_of(&sandbox, &["--all"]);
    apply(&sandbox, &written).unwrap();
    let roles = written["roles"].as_array().unwrap();
    assert_eq!(roles.len(), 5, "{roles:?}");
    let of_json = roles.iter().map(|role| {
        let name = role["arn"].as_str().unwrap().rsplit('/').next().unwrap();
        (name.to_owned(), role["trustPolicy"].clone())
    });
    let of_json = of_json.collect::<Vec<_>>();
    let terraform = run(&sandbox, &["--all", "--format", "terraform"]);
    assert_eq!(of_terraform(&text(&terraform.stdout)), of_json);
    let template = json_of(&sandbox, &["--all", "--format", "cloudformation"]);
    let resources = template["Resources"].as_object().unwrap().values();
    let of_template = resources.filter(|resource| resource["Type"] == "AWS::IAM::Role").map(|resource| {
        let properties = &resource["Properties"];
        (properties["RoleName"].as_str().unwrap().to_owned(), properties["AssumeRolePolicyDocument"].clone())
    });
    let mut of_template = of_template.collect::<Vec<_>>();
    let mut sorted = of_json.clone();
    for policies in [&mut sorted, &mut of_template] {
        policies.sort_by_key(|(name, policy)| (name.clone(), policy.to_string()));
    }
    assert_eq!(of_template, sorted);
    let alone = json_of(&sandbox, &["team-c/china", "--format", "policy"]);
    assert!(of_json.contains(&("web".to_owned(), alone.clone())));
    let issuer = sandbox.cloud.issuer.url().trim_start_matches("https://");
    let provider = format!("arn:aws-cn:iam::777788889999:oidc-provider/{issuer}");
    assert_eq!(alone["Statement"][0]["Principal"]["Federated"], provider.as_str());
    // Of the two who share a role, each with the audience of its own tokens alone.
    let own = &sandbox.cloud.issuer;
    assert_eq!(said(&sandbox, &token(own, "system:serviceaccount:team-b:web", "other"), WEB), "web");
    refuses(&sandbox, &token(own, "system:serviceaccount:team-b:web", AUDIENCE), WEB, DENIED);
}

#[test]
fn a_wildcard_admits_what_it_names_and_the_operator_is_warned() {
    let sandbox = sandbox();
    let flags = ["--service-account", "team-a/*", "--role", WEB];
    let output = run(&sandbox, &flags);
    let warning = text(&output.stderr);
    assert!(
        warning.contains("warning: system:serviceaccount:team-a:* admits every ServiceAccount of namespace team-a"),
        "{warning}"
    );
    apply(&sandbox, &serde_json::from_slice(&output.stdout).unwrap()).unwrap();
    let own = &sandbox.cloud.issuer;
    assert_eq!(said(&sandbox, &token(own, "system:serviceaccount:team-a:anything", AUDIENCE), WEB), "web");
    refuses(&sandbox, &token(own, "system:serviceaccount:team-ab:web", AUDIENCE), WEB, DENIED);
    let wide = run(&sandbox, &["--service-account", "team-*/web", "--role", WEB]);
    assert!(text(&wide.stderr).contains("more than one namespace"), "{}", text(&wide.stderr));
    let exact = run(&sandbox, &["--service-account", "team-a/web", "--role", WEB, "--format", "policy"]);
    assert!(exact.stderr.is_empty() && !text(&exact.stdout).contains("StringLike"), "{}", text(&exact.stderr));
}

#[test]
fn what_is_said_of_a_policy_is_what_sts_does() {
    let sandbox = sandbox();
    let own = &sandbox.cloud.issuer;
    let name = own.url().trim_start_matches("https://");
    let (sub, aud) = (format!("{name}:sub"), format!("{name}:aud"));
    let accounts = ["team-a/web", "team-a/other", "team-b/web"];
    for account in accounts {
        let (namespace, name) = account.split_once('/').unwrap();
        sandbox.annotate(namespace, name, &[("eks.amazonaws.com/role-arn", WEB)]);
    }
    let allow = |condition: Value| {
        json!({ "Effect": "Allow", "Principal": {"Federated": format!("arn:aws:iam::{ACCOUNT}:oidc-provider/{name}")},
            "Action": "sts:AssumeRoleWithWebIdentity", "Condition": condition })
    };
    let with = |mut statement: Value, member: &str, value: Value| {
        statement[member] = value;
        statement
    };
    let exact = allow(json!({ "StringEquals": { sub.as_str(): SUBJECT, aud.as_str(): AUDIENCE } }));
    let glob = allow(json!({ "StringLike": { sub.as_str(): "system:serviceaccount:team-a:*" } }));
    let deny = with(allow(json!({ "StringLike": { sub.as_str(): "*:web" } })), "Effect", json!("Deny"));
    let other_audience =
        allow(json!({ "StringLike": { sub.as_str(): "*" }, "StringEquals": { aud.as_str(): "other" } }));
    let literal = allow(json!({ "StringEquals": { sub.as_str(): "system:serviceaccount:team-a:*" } }));
    let negated = allow(
        json!({ "StringNotEquals": { sub.as_str(): SUBJECT }, "ForAnyValue:StringEquals": { aud.as_str(): [AUDIENCE] } }),
    );
    let action = with(exact.clone(), "Action", json!("sts:AssumeRole"));
    let case = allow(json!({ "StringEquals": { sub.as_str(): "system:serviceaccount:team-a:Web" } }));
    let (mut asked, mut admitted) = (0, 0);
    for (statements, well) in [
        (json!([exact]), false),
        (json!([glob, deny]), false),
        (json!([other_audience]), false),
        (json!([literal, negated]), false),
        (json!([action]), false),
        (json!([case]), false),
        (json!([allow(json!({}))]), false),
    ] {
        let policy = json!({ "Version": "2012-10-17", "Statement": statements });
        sandbox.cloud.sts.put_role_with(&Role::new(WEB, policy.clone())).unwrap();
        let file = sandbox.directory().join("policy.json");
        std::fs::write(&file, policy.to_string()).unwrap();
        let output = run(&sandbox, &["--check", file.to_str().unwrap(), "--role", WEB, "-o", "json"]);
        assert_eq!(output.status.code(), Some(i32::from(!well)), "{policy} {}", text(&output.stderr));
        let report = serde_json::from_slice::<Value>(&output.stdout).unwrap();
        for account in accounts {
            let subject = format!("system:serviceaccount:{}", account.replace('/', ":"));
            let is_in =
                |list: &str| report[list].as_array().unwrap().iter().any(|line| line["serviceAccount"] == account);
            let admits = said(&sandbox, &token(own, &subject, AUDIENCE), WEB) == "web";
            assert_eq!((is_in("may"), is_in("mayNot")), (admits, !admits), "{account}: {policy} {report}");
            asked += 1;
            admitted += usize::from(admits);
        }
    }
    println!("{asked} verdicts are STS's, of which {admitted} admit");
    assert!(asked == 21 && admitted > 3 && admitted < 18);
}

#[test]
fn what_cannot_be_done_is_said_with_its_exit_code() {
    let sandbox = sandbox();
    sandbox.annotate("team-a", "default", &[]);
    sandbox.annotate("team-a", "wrong", &[("eks.amazonaws.com/role-arn", "web")]);
    for (flags, code, why) in [
        (&["team-a"][..], 64, "is not NAMESPACE/NAME"),
        (&["team-a/*"], 64, "is for --service-account"),
        (&["--service-account", "team-a/*"], 64, "of which role? --role"),
        (&[], 64, "whose role?"),
        (&["team-a/web", "--issuer", "http://example.com"], 64, "is no issuer that IAM takes"),
        (&["team-a/web", "--role", "web"], 64, "--account says whose"),
        (&["--check", "/dev/null"], 64, "is no policy document"),
        (&["--check", "/nowhere"], 1, "No such file"),
        (&["team-a/nobody"], 1, "there is no service account team-a/nobody"),
        (&["team-a/default"], 1, "names no role"),
        (&["team-a/wrong"], 1, "is not the ARN of an IAM role"),
    ] {
        let output = run(&sandbox, flags);
        assert_eq!(output.status.code(), Some(code), "{flags:?} {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(why), "{flags:?} {}", text(&output.stderr));
        assert!(output.stdout.is_empty(), "{flags:?}");
    }
    assert_eq!(run(&sandbox, &["team-a/wrong", "--account", ACCOUNT]).status.code(), Some(0), "a name of this account");
    sandbox.cloud.stop_api();
    assert_eq!(run(&sandbox, &["--all"]).status.code(), Some(69));
    // Without the cluster, where all is said.
    let all_said = ["team-a/web", "--role", WEB, "--issuer", "https://oidc.example.com"];
    assert_eq!(run(&sandbox, &all_said).status.code(), Some(0));
}

/// What people read is what they get: the pages' commands are run, and their output compared.
#[test]
fn the_pages_show_what_is_printed() {
    let sandbox = sandbox();
    let web = ("eks.amazonaws.com/role-arn", "arn:aws:iam::111122223333:role/web");
    for (namespace, name, annotations) in
        [("team-a", "web", &[web][..]), ("team-a", "default", &[]), ("team-b", "web", &[web])]
    {
        sandbox.annotate(namespace, name, annotations);
    }
    let by_hand = json!({ "Version": "2012-10-17", "Statement": [{
        "Sid": "Web",
        "Effect": "Allow",
        "Principal": {"Federated": "arn:aws:iam::111122223333:oidc-provider/oidc.example.com/blue"},
        "Action": "sts:AssumeRoleWithWebIdentity",
        "Condition": {"StringLike": {"oidc.example.com/blue:sub": "system:serviceaccount:team-a:*"}},
    }]});
    std::fs::write(sandbox.directory().join("written-by-hand.json"), in_order(&by_hand)).unwrap();
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = daemon_binary().parent().unwrap().to_str().unwrap();
    let mut shown = 0;
    for page in ["docs/trust-policy.md", "docs/multi-cluster.md"] {
        let page = std::fs::read_to_string(root.join(page)).unwrap();
        for block in page.split("```console\n$ ").skip(1).map(|block| block.split("```").next().unwrap()) {
            let (command, output) = block.split_once('\n').unwrap();
            let script = format!("exec 2>&1; cd {}; PATH={folder}:$PATH; {command}", sandbox.directory().display());
            let shell = sandbox.on_node("sh").env("KUBECONFIG", sandbox.kubeconfig()).args(["-c", &script]);
            let printed = text(&shell.output().unwrap().stdout);
            assert!(printed == output, "{command}\n{printed}");
            shown += 1;
        }
    }
    assert_eq!(shown, 7);
}

/// The members of a statement as people write them.
fn in_order(policy: &Value) -> String {
    let statement = &policy["Statement"][0];
    let members =
        ["Sid", "Effect", "Principal", "Action", "Condition"].map(|name| format!("{name:?}: {}", statement[name]));
    format!(r#"{{"Version": "2012-10-17", "Statement": [{{{}}}]}}"#, members.join(", "))
}

/// What else reads such files finds nothing wrong with them.
#[test]
#[ignore = "needs Python and PyPI: make test-trust-policy"]
fn the_forms_are_taken_by_those_who_know_them() {
    let sandbox = cluster();
    let tools = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/trust-policy");
    let install = format!(
        "test -x {0}/bin/cfn-lint || (python3 -m venv {0} && {0}/bin/pip -q install cfn-lint==1.* python-hcl2==8.*)",
        tools.display()
    );
    assert!(std::process::Command::new("sh").args(["-c", &install]).status().unwrap().success());
    let written = |format: &str, name: &str| {
        let file = sandbox.directory().join(name);
        std::fs::write(&file, run(&sandbox, &["--all", "--format", format]).stdout).unwrap();
        file
    };
    let template = written("cloudformation", "template.json");
    let lint = std::process::Command::new(tools.join("bin/cfn-lint")).arg(template).output().unwrap();
    assert!(lint.status.success(), "{}", text(&lint.stdout));
    let terraform = written("terraform", "main.tf");
    let parsed = std::process::Command::new(tools.join("bin/hcl2tojson")).arg(terraform).output().unwrap();
    assert!(parsed.status.success(), "{}", text(&parsed.stderr));
    let parsed = serde_json::from_slice::<Value>(&parsed.stdout).unwrap();
    // Five roles, one that may assume another, and a provider in each account of a role that takes tokens.
    assert_eq!(parsed["resource"].as_array().unwrap().len(), 5 + 1 + 3, "{parsed}");
}

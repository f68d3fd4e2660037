//! A team's day: `aws ec2 describe-instances` of an unmodified command line client, allowed or refused by the role's own
//! permissions, with the policies of `examples/`.
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a test fails by panicking"
)]

mod support;

use std::{fs, path::Path, process::Output};

use sandbox::{
    cloud::{ACCOUNT, INSTANCE_ID},
    packages,
    sandbox::{Pod, Sandbox},
    sts::Role,
};
use serde_json::{Value, json};
use support::{Daemon, with_a_pod, with_an_account};

/// Debian's, whatever else is on the PATH.
const AWS: &str = "/usr/bin/aws";
/// The issuer that the examples name.
const ISSUER: &str = "oidc.eks.eu-central-1.amazonaws.com/id/EXAMPLED539D4633E53DE1B71EXAMPLE";

fn describe_instances(sandbox: &Sandbox, pod: &Pod, environment: &[(&str, &str)]) -> Output {
    let debians = packages::Package { command: AWS, ..packages::AWS_CLI };
    packages::ensure(&[debians], &mut |line| println!("{line}")).unwrap();
    let command = sandbox.in_pod(pod, AWS).args(["ec2", "describe-instances", "--output", "json"]);
    environment.iter().fold(command, |command, (name, value)| command.env(name, value)).output().unwrap()
}

fn error(output: &Output) -> String {
    assert!(!output.status.success());
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn instances(output: &Output) -> Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["Reservations"][0]["Instances"].clone()
}

fn example(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(path)).unwrap()
}

fn permissions() -> Value {
    serde_json::from_str(&example("aws-cli/permissions-policy.json")).unwrap()
}

#[test]
fn each_example_does_what_it_says_with_its_own_policies() {
    let sandbox = with_an_account();
    let _daemon = Daemon::ready(&sandbox, &[]);
    for (folder, namespace, name, manifest) in
        [("aws-cli", "team-a", "web", "pod.yaml"), ("unchanged-pod", "vendor", "inventory", "service-account.yaml")]
    {
        let issuer = sandbox.cloud.issuer.url().trim_start_matches("https://");
        let trust = example(&format!("{folder}/trust-policy.json")).replace(ISSUER, issuer);
        let mut role = Role::new(&format!("arn:aws:iam::{ACCOUNT}:role/{name}"), serde_json::from_str(&trust).unwrap());
        role.permissions = serde_json::from_str(&example(&format!("{folder}/permissions-policy.json"))).unwrap();
        sandbox.cloud.sts.put_role_with(&role).unwrap();
        let manifest = example(&format!("{folder}/{manifest}"));
        let arn = manifest.lines().find_map(|line| line.trim().strip_prefix("eks.amazonaws.com/role-arn: ")).unwrap();
        for line in [format!("name: {name}"), format!("namespace: {namespace}")] {
            assert!(manifest.lines().any(|found| found.trim() == line), "{line}: {manifest}");
        }
        sandbox.annotate(namespace, name, &[("eks.amazonaws.com/role-arn", arn)]);
        let pod = sandbox.add_pod(namespace, &format!("{name}-0"), name).unwrap();

        let instances = instances(&describe_instances(&sandbox, &pod, &[]));
        assert_eq!(instances[0]["InstanceId"], INSTANCE_ID);
        assert_eq!(instances[0]["Tags"], json!([{"Key": "Name", "Value": "node-1"}]));
        let call = sandbox.cloud.ec2.calls().pop().unwrap();
        let caller = call.caller.unwrap();
        assert!(caller.contains(&format!("assumed-role/{name}/{namespace}.{name}-0-")), "{caller}");
    }
}

#[test]
fn a_role_without_the_right_is_refused_until_its_own_policy_gives_it() {
    let (sandbox, web) = with_a_pod();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let refused = error(&describe_instances(&sandbox, &web, &[]));
    for part in [
        "(UnauthorizedOperation) when calling the DescribeInstances operation",
        "assumed-role/web/team-a.web-0-",
        "because no identity-based policy allows the ec2:DescribeInstances action",
        "Encoded authorization failure message: ",
    ] {
        assert!(refused.contains(part), "{part}: {refused}");
    }
    sandbox.permit("web", permissions()).unwrap();
    assert_eq!(instances(&describe_instances(&sandbox, &web, &[]))[0]["InstanceId"], INSTANCE_ID);
    assert_eq!(sandbox.cloud.sts.call_count("AssumeRoleWithWebIdentity"), 1, "with the keys that it had");

    let statement = |effect: &str| json!({"Effect": effect, "Action": "ec2:*", "Resource": "*"});
    let denies = json!({"Version": "2012-10-17", "Statement": [statement("Allow"), statement("Deny")]});
    sandbox.permit("web", denies).unwrap();
    let refused = error(&describe_instances(&sandbox, &web, &[]));
    assert!(refused.contains("with an explicit deny in an identity-based policy"), "{refused}");
}

#[test]
fn keys_that_sts_did_not_give_or_no_longer_knows_are_no_ones() {
    let (sandbox, web) = with_a_pod();
    sandbox.permit("web", permissions()).unwrap();
    let _daemon = Daemon::ready(&sandbox, &[]);
    let made_up =
        [("AWS_ACCESS_KEY_ID", "ASIAAAAAAAAAAAAAAAAA"), ("AWS_SECRET_ACCESS_KEY", "x"), ("AWS_SESSION_TOKEN", "y")];
    let refused = error(&describe_instances(&sandbox, &web, &made_up));
    assert!(refused.contains("(AuthFailure)"), "{refused}");

    let answer = support::ask(&web, "GET", &format!("{}web", support::ROLE_NAME), &[]).unwrap().json();
    let text = |field: &str| answer[field].as_str().unwrap().to_owned();
    let [id, secret, token] = ["AccessKeyId", "SecretAccessKey", "Token"].map(text);
    let with = |secret: &str, token: &str| {
        let keys = [("AWS_ACCESS_KEY_ID", &*id), ("AWS_SECRET_ACCESS_KEY", secret), ("AWS_SESSION_TOKEN", token)];
        describe_instances(&sandbox, &web, &keys)
    };
    assert!(with(&secret, &token).status.success());
    for refused in [with("another", &token), with(&secret, "another")].map(|output| error(&output)) {
        assert!(refused.contains("(AuthFailure)"), "{refused}");
    }
    sandbox.cloud.sts.revoke_all_keys();
    let refused = error(&with(&secret, &token));
    assert!(refused.contains("(AuthFailure)"), "{refused}");
}

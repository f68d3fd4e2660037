//! Roles of several accounts, and who may assume which.

use sandbox::{
    sandbox::Sandbox,
    sts::{Call, Role},
};
use serde_json::{Value, json};

/// The role that the pods' tokens are exchanged for.
pub const HUB: &str = "arn:aws:iam::111122223333:role/hub";
/// A role of another account.
pub const READER: &str = "arn:aws:iam::444455556666:role/team/reader";

/// A role for pods of `team-a/web`, which may assume and tag all roles of its partition.
pub fn put_hub(sandbox: &Sandbox, arn: &str) {
    let resource = format!("{}:iam::*:role/*", arn.split(":iam").next().unwrap());
    let allow = json!({ "Effect": "Allow", "Action": ["sts:AssumeRole", "sts:TagSession"], "Resource": resource });
    let permissions = Some(json!({ "Version": "2012-10-17", "Statement": allow }));
    let hub = Role { permissions, ..sandbox.role(arn, "team-a", "web").unwrap() };
    sandbox.cloud.sts.put_role_with(&hub).unwrap();
}

/// A role for pods of `team-a/web`.
pub fn put_role(sandbox: &Sandbox, arn: &str) {
    sandbox.cloud.sts.put_role_with(&sandbox.role(arn, "team-a", "web").unwrap()).unwrap();
}

/// A role that the hub may assume under this condition.
pub fn put_target(sandbox: &Sandbox, arn: &str, hub: &str, condition: &Value) {
    let statement = json!({
        "Effect": "Allow",
        "Principal": {"AWS": hub},
        "Action": ["sts:AssumeRole", "sts:TagSession"],
        "Condition": condition,
    });
    sandbox.cloud.sts.put_role(arn, json!({ "Version": "2012-10-17", "Statement": statement })).unwrap();
}

/// `team-a/web` asks for `hub`, and for the rest.
pub fn annotate(sandbox: &Sandbox, hub: &str, rest: &[(&str, &str)]) {
    let rest = rest.iter().map(|(key, value)| (format!("kube2irsa.io/{key}"), *value)).collect::<Vec<_>>();
    let rest = rest.iter().map(|(key, value)| (key.as_str(), *value));
    let annotations = [("eks.amazonaws.com/role-arn", hub)].into_iter().chain(rest).collect::<Vec<_>>();
    sandbox.annotate("team-a", "web", &annotations);
}

/// The calls of STS for one role.
pub fn calls_for(sandbox: &Sandbox, role: &str) -> Vec<Call> {
    sandbox.cloud.sts.calls().into_iter().filter(|call| call.role.as_deref() == Some(role)).collect()
}

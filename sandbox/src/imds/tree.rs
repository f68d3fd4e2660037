//! What the metadata service holds, and where: the paths, the listings, the documents.

use std::collections::{BTreeMap, BTreeSet};

use crate::sts::{InstanceCredentials, timestamp, unique_id};

/// A string in the node's user data that no pod may ever see.
pub const USER_DATA_SECRET: &str = "kube2irsa-sandbox-node-bootstrap-secret";

/// The versions that the real one lists and knows, oldest first.
const VERSIONS: &[&str] = &[
    "1.0",
    "2007-01-19",
    "2007-03-01",
    "2007-08-29",
    "2007-10-10",
    "2007-12-15",
    "2008-02-01",
    "2008-09-01",
    "2009-04-04",
    "2011-01-01",
    "2011-05-01",
    "2012-01-12",
    "2014-02-25",
    "2014-11-05",
    "2015-10-20",
    "2016-04-19",
    "2016-06-30",
    "2016-09-02",
    "2018-03-28",
    "2018-08-17",
    "2018-09-24",
    "2019-10-01",
    "2020-10-27",
    "2021-01-03",
    "2021-03-23",
    "2021-07-15",
    "2022-09-24",
    "2024-04-11",
    "latest",
];

/// Whether a path's first segment names a version.
pub(super) fn is_version(segment: &str) -> bool {
    VERSIONS.contains(&segment)
}

/// Everything below a version, by path.
pub(super) struct Tree {
    leaves: BTreeMap<String, Leaf>,
}

/// One document.
#[derive(Debug)]
pub(super) enum Leaf {
    Text(String),
    InstanceId,
    Credentials,
    Info,
    IdentityInfo,
    IdentityDocument { region: String },
    UserData,
}

/// What is at a path.
pub(super) enum Found<'a> {
    Nothing,
    /// A directory that was asked for without its slash.
    Directory,
    Listing(String),
    Leaf(&'a Leaf),
}

impl Tree {
    pub(super) fn new(role_name: &str, region: &str) -> Self {
        let text = |text: &str| Leaf::Text(text.to_owned());
        let hostname = format!("ip-10-0-0-1.{region}.compute.internal");
        let leaves = [
            ("dynamic/instance-identity/document", Leaf::IdentityDocument { region: region.to_owned() }),
            ("meta-data/ami-id", text("ami-0abcdef1234567890")),
            ("meta-data/ami-launch-index", text("0")),
            ("meta-data/hostname", text(&hostname)),
            ("meta-data/iam/info", Leaf::Info),
            (&format!("meta-data/iam/security-credentials/{role_name}"), Leaf::Credentials),
            ("meta-data/identity-credentials/ec2/info", Leaf::IdentityInfo),
            ("meta-data/identity-credentials/ec2/security-credentials/ec2-instance", Leaf::Credentials),
            ("meta-data/instance-id", Leaf::InstanceId),
            ("meta-data/instance-type", text("m5.large")),
            ("meta-data/local-hostname", text(&hostname)),
            ("meta-data/local-ipv4", text("10.0.0.1")),
            ("meta-data/mac", text("0a:00:00:00:00:01")),
            ("meta-data/placement/availability-zone", text(&format!("{region}a"))),
            ("meta-data/placement/region", text(region)),
            ("meta-data/services/domain", text("amazonaws.com")),
            ("meta-data/services/partition", text("aws")),
            ("user-data", Leaf::UserData),
        ];
        Self { leaves: leaves.into_iter().map(|(path, leaf)| (path.to_owned(), leaf)).collect() }
    }

    /// Looks a path up, of which the empty segments are gone already.
    pub(super) fn find(&self, path: &[&str], ends_in_slash: bool) -> Found<'_> {
        let [version, rest @ ..] = path else { return Found::Listing(VERSIONS.join("\n")) };
        if !is_version(version) {
            return Found::Nothing;
        }
        let path = rest.join("/");
        if let Some(leaf) = self.leaves.get(&path) {
            return Found::Leaf(leaf);
        }
        let below = if path.is_empty() { String::new() } else { format!("{path}/") };
        let entries: BTreeSet<_> = self
            .leaves
            .keys()
            .filter_map(|leaf| leaf.strip_prefix(&below))
            .map(|rest| match rest.split_once('/') {
                // The top has its directories without a slash, all others with one.
                Some((directory, _)) if path.is_empty() => directory.to_owned(),
                Some((directory, _)) => format!("{directory}/"),
                None => rest.to_owned(),
            })
            .collect();
        if entries.is_empty() {
            Found::Nothing
        } else if ends_in_slash || path.is_empty() {
            Found::Listing(entries.into_iter().collect::<Vec<_>>().join("\n"))
        } else {
            Found::Directory
        }
    }
}

impl Leaf {
    /// Whether keys are in it.
    pub(super) fn is_secret(&self) -> bool {
        matches!(self, Self::Credentials)
    }

    pub(super) fn content_type(&self) -> &'static str {
        match self {
            Self::UserData => "application/octet-stream",
            _ => "text/plain",
        }
    }

    pub(super) fn text(&self, node: &InstanceCredentials) -> String {
        let account = node.role_arn.split(':').nth(4).unwrap_or_default();
        let updated = timestamp(node.last_updated);
        match self {
            Self::Text(text) => text.clone(),
            Self::InstanceId => node.instance_id.clone(),
            Self::Credentials => document(&[
                ("Code", "Success"),
                ("LastUpdated", &updated),
                ("Type", "AWS-HMAC"),
                ("AccessKeyId", &node.access_key_id),
                ("SecretAccessKey", &node.secret_access_key),
                ("Token", &node.session_token),
                ("Expiration", &timestamp(node.expiration)),
            ]),
            Self::Info => {
                let profile = node.role_arn.replacen(":role/", ":instance-profile/", 1);
                document(&[
                    ("Code", "Success"),
                    ("LastUpdated", &updated),
                    ("InstanceProfileArn", &profile),
                    ("InstanceProfileId", &unique_id("AIPA", &profile)),
                ])
            }
            Self::IdentityInfo => document(&[("Code", "Success"), ("LastUpdated", &updated), ("AccountId", account)]),
            Self::IdentityDocument { region } => document(&[
                ("accountId", account),
                ("architecture", "x86_64"),
                ("availabilityZone", &format!("{region}a")),
                ("imageId", "ami-0abcdef1234567890"),
                ("instanceId", &node.instance_id),
                ("instanceType", "m5.large"),
                ("pendingTime", &updated),
                ("privateIp", "10.0.0.1"),
                ("region", region),
                ("version", "2017-09-30"),
            ]),
            Self::UserData => format!("#!/bin/bash\n/etc/eks/bootstrap.sh sandbox --token {USER_DATA_SECRET}\n"),
        }
    }
}

/// A JSON object of strings, with the real one's white space.
fn document(members: &[(&str, &str)]) -> String {
    let quote = |text: &str| serde_json::Value::from(text).to_string();
    let members: Vec<_> = members.iter().map(|(name, value)| format!("  {} : {}", quote(name), quote(value))).collect();
    format!("{{\n{}\n}}", members.join(",\n"))
}

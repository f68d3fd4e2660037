//! What the daemons of a cluster are told, read from their DaemonSet by the daemon's own command line.

use std::net::IpAddr;

use clap::{ArgAction, CommandFactory as _, Parser as _};

use super::inventory::{DaemonSet, Read};
use crate::{
    cli::{Cli, Command, RunArgs},
    identity::{
        annotations::{Keys, PlainNames},
        policy::NamespacePolicy,
    },
};

/// The words that the environment has for no.
const NO: [&str; 6] = ["n", "no", "f", "false", "off", "0"];

/// What the daemons are told, as far as a command judges by it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The annotations, and how they are read.
    pub keys: Keys,
    /// The annotations' prefix.
    pub prefix: String,
    /// How namespaces limit roles.
    pub policy: NamespacePolicy,
    /// The audience of tokens where a service account names none.
    pub audience: String,
    /// `auto`, `node` or `direct`.
    pub token_access: String,
    /// `auto`, `nft`, `iptables`, `observe` or `none`.
    pub intercept: String,
    /// `auto`, `off`, `deny` or `serve`.
    pub host_network: String,
    /// The addresses of the container endpoint.
    pub container_endpoints: Vec<IpAddr>,
    /// The region whose STS is called, where it is named.
    pub region: Option<String>,
    /// Where STS is, where that is named.
    pub sts_endpoint: Option<String>,
    /// Pods may name their roles themselves.
    pub legacy_annotations: bool,
    /// They take the rules out, and serve nobody.
    pub removes: bool,
}

impl Settings {
    /// What a DaemonSet tells them.
    ///
    /// # Errors
    /// When this version would not understand it.
    pub fn of(set: &DaemonSet) -> Read<Self> {
        let Some(container) = set.spec.template.spec.containers().last() else {
            return Err("the DaemonSet has no container".to_owned());
        };
        let command = Cli::command();
        let flags = command.find_subcommand("run").into_iter().flat_map(clap::Command::get_arguments);
        let mut given = Vec::new();
        for flag in flags {
            let (Some(name), Some(variable)) = (flag.get_long(), flag.get_env().and_then(|name| name.to_str())) else {
                continue;
            };
            let Some(value) = container.env.iter().rfind(|set| set.name == variable).and_then(|set| set.value.as_ref())
            else {
                continue;
            };
            if !matches!(flag.get_action(), ArgAction::SetTrue) {
                given.push(format!("--{name}={value}"));
            } else if !NO.contains(&value.to_lowercase().as_str()) {
                given.push(format!("--{name}"));
            }
        }
        match container.args.split_first() {
            Some((first, flags)) if first == "run" => Self::read(given.into_iter().chain(flags.iter().cloned())),
            Some((first, flags)) if first == "rules" && flags.first().is_some_and(|what| what == "remove") => {
                Ok(Self { removes: true, ..Self::read(std::iter::empty())? })
            }
            _ => Err(format!("the DaemonSet runs what is not understood: {}", container.args.join(" "))),
        }
    }

    /// What these flags of `run` tell a daemon.
    fn read(flags: impl Iterator<Item = String>) -> Read<Self> {
        let words = ["kube2irsa", "run"].map(str::to_owned).into_iter().chain(flags);
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Run(args)) => Ok(Self::new(&args)),
            Ok(_) => Err("the DaemonSet does not run the daemon".to_owned()),
            Err(error) => Err(error.to_string().lines().next().unwrap_or_default().to_owned()),
        }
    }

    fn new(args: &RunArgs) -> Self {
        let mut keys = Keys::new(&args.annotation_prefix);
        if args.compose_role_arn {
            keys.take_plain_names_for(match &args.aws_account {
                Some(account) => PlainNames::Of {
                    partition: args.aws_partition.clone().unwrap_or_else(|| "aws".to_owned()),
                    account: account.clone(),
                },
                None => PlainNames::NotKnownYet,
            });
        }
        Self {
            keys,
            prefix: args.annotation_prefix.clone(),
            policy: match args.namespace_policy.as_str() {
                "off" => NamespacePolicy::Off,
                "required" => NamespacePolicy::Required,
                _ => NamespacePolicy::Annotated,
            },
            audience: args.token_audience.clone(),
            token_access: args.token_access.clone(),
            intercept: args.intercept.clone(),
            host_network: args.host_network.clone(),
            container_endpoints: args.container_endpoints.split(',').filter_map(|at| at.trim().parse().ok()).collect(),
            region: args.region.clone(),
            sts_endpoint: args.sts_endpoint.clone(),
            legacy_annotations: args.legacy_annotations,
            removes: false,
        }
    }

    /// Those that no DaemonSet tells otherwise.
    ///
    /// # Errors
    /// Never: the daemon's flags have defaults.
    pub fn defaults() -> Read<Self> {
        Self::read(std::iter::empty())
    }

    /// The values that the annotations may have been meant with, by their keys.
    #[must_use]
    pub fn skip_containers(&self) -> String {
        format!("{}/skip-containers", self.prefix)
    }

    /// Whether pods are served at all.
    #[must_use]
    pub fn serves(&self) -> bool {
        !self.removes && self.intercept != "observe"
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn settings(args: Value, env: Value) -> Read<Settings> {
        let container = json!({"name": "kube2irsa", "args": args, "env": env});
        let set = json!({"spec": {"template": {"spec": {"containers": [container]}}}});
        Settings::of(&serde_json::from_value(set).unwrap())
    }

    #[test]
    fn what_the_environment_and_the_flags_say_is_read_as_the_daemon_reads_it() {
        let env = json!([
            {"name": "KUBE2IRSA_NODE_NAME", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
            {"name": "KUBE2IRSA_ANNOTATION_PREFIX", "value": "example.com"},
            {"name": "KUBE2IRSA_NAMESPACE_POLICY", "value": "required"},
            {"name": "KUBE2IRSA_COMPOSE_ROLE_ARN", "value": "true"},
            {"name": "KUBE2IRSA_AWS_ACCOUNT", "value": "111122223333"},
            {"name": "KUBE2IRSA_REGION", "value": "eu-west-1"},
        ]);
        let read = settings(json!(["run", "--region", "eu-central-1"]), env).unwrap();
        assert_eq!(read.region.as_deref(), Some("eu-central-1"), "a flag comes before a variable");
        assert_eq!((read.keys.role_arn(), read.policy), ("example.com/role-arn", NamespacePolicy::Required));
        let annotations = [("example.com/role-arn".to_owned(), "web".to_owned())].into();
        let role = read.keys.read(&annotations).unwrap().unwrap().main.role;
        assert_eq!(role.as_str(), "arn:aws:iam::111122223333:role/web");
        assert!(read.serves());
    }

    #[test]
    fn a_flag_that_is_off_in_the_environment_is_off() {
        let read = |value: &str| {
            let env = json!([{"name": "KUBE2IRSA_COMPOSE_ROLE_ARN", "value": value}]);
            let annotations = [("eks.amazonaws.com/role-arn".to_owned(), "web".to_owned())].into();
            settings(json!(["run"]), env).unwrap().keys.read(&annotations).unwrap_err().to_string()
        };
        assert!(read("false").contains("is not the ARN"), "{}", read("false"));
        assert!(read("true").contains("not known yet"), "{}", read("true"));
    }

    #[test]
    fn who_removes_or_observes_serves_nobody() {
        assert!(!settings(json!(["rules", "remove", "--stay"]), json!([])).unwrap().serves());
        let observe = json!([{"name": "KUBE2IRSA_INTERCEPT", "value": "observe"}]);
        assert!(!settings(json!(["run"]), observe).unwrap().serves());
    }

    #[test]
    fn what_another_version_understands_is_an_error() {
        assert!(settings(json!(["run", "--of-tomorrow"]), json!([])).unwrap_err().contains("--of-tomorrow"));
        assert!(settings(json!(["walk"]), json!([])).is_err());
        assert!(Settings::defaults().is_ok());
    }
}

//! Roles' trust policies and the providers that they need, as something that can be applied. Pure.
//!
//! The policies are the same in each form. A role or a provider has one owner; where the account has it already, its block is
//! left out (`--no-provider`), or imported.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use super::{builder::RoleTrust, issuer::Issuer, json::Json, policy::TrustPolicy};

/// The name of the policy by which a role may assume others.
const TARGETS: &str = "kube2irsa-target-roles";

/// What is to be written.
#[derive(Clone, Debug)]
pub struct Plan<'a> {
    roles: Vec<Role<'a>>,
    providers: Vec<Provider<'a>>,
}

#[derive(Clone, Debug)]
struct Role<'a> {
    arn: &'a str,
    account: Account<'a>,
    /// With a slash at its beginning and at its end.
    path: String,
    name: &'a str,
    trust: TrustPolicy,
    permissions: Option<TrustPolicy>,
}

#[derive(Clone, Debug)]
struct Provider<'a> {
    arn: String,
    account: Account<'a>,
    url: &'a str,
    audiences: Vec<&'a str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Account<'a> {
    partition: &'a str,
    id: &'a str,
}

impl Account<'_> {
    /// A name: that of the partition is in it unless it is the usual one.
    fn named(self, what: &str, between: &str) -> String {
        let partition = match self.partition {
            "aws" => String::new(),
            partition => partition.split('-').map(|word| format!("{between}{word}")).collect(),
        };
        format!("{what}{partition}{between}{}", self.id)
    }
}

impl<'a> Plan<'a> {
    /// These roles' policies for tokens of these issuers, and perhaps the issuers' providers in the roles' accounts.
    pub fn new(roles: impl Iterator<Item = &'a RoleTrust>, issuers: &'a [Issuer], with_providers: bool) -> Self {
        let (mut planned, mut providers) = (Vec::new(), BTreeMap::<String, Provider<'a>>::new());
        for trust in roles {
            let Some(policy) = trust.policy(issuers) else { continue };
            let account = Account { partition: trust.role.partition(), id: trust.role.account() };
            let path = trust.role.as_str().split_once(":role").map_or("", |(_, path)| path);
            planned.push(Role {
                arn: trust.role.as_str(),
                account,
                path: path[..path.len() - trust.role.name().len()].to_owned(),
                name: trust.role.name(),
                trust: policy,
                permissions: trust.permissions(),
            });
            for issuer in issuers.iter().filter(|_| with_providers && !trust.subjects.is_empty()) {
                let arn = issuer.provider_arn(&trust.role);
                let new = Provider { arn: arn.clone(), account, url: issuer.url(), audiences: Vec::new() };
                let audiences = &mut providers.entry(arn).or_insert(new).audiences;
                for audience in trust.subjects.keys().map(String::as_str) {
                    if let Err(at) = audiences.binary_search(&audience) {
                        audiences.insert(at, audience);
                    }
                }
            }
        }
        Self { roles: planned, providers: providers.into_values().collect() }
    }

    /// Each role's ARN and trust policy.
    pub fn policies(&self) -> impl Iterator<Item = (&str, &TrustPolicy)> {
        self.roles.iter().map(|role| (role.arn, &role.trust))
    }

    /// One object with all of it.
    #[must_use]
    pub fn json(&self) -> Json {
        let providers = self.providers.iter().map(|provider| {
            Json::object([
                ("arn", Json::from(provider.arn.as_str())),
                ("url", provider.url.into()),
                ("clientIds", texts(&provider.audiences)),
            ])
        });
        let roles = self.roles.iter().map(|role| {
            let permissions = role.permissions.as_ref().map(|it| ("permissionsPolicy", it.document().clone()));
            let always = [
                ("arn", Json::from(role.arn)),
                ("characters", Json::Number(role.trust.characters().into())),
                ("trustPolicy", role.trust.document().clone()),
            ];
            Json::object(always.into_iter().chain(permissions))
        });
        Json::object([("providers", Json::Array(providers.collect())), ("roles", Json::Array(roles.collect()))])
    }

    /// Resources of Terraform's provider for AWS; of several accounts, each with a configuration of its own.
    #[must_use]
    pub fn terraform(&self) -> String {
        let (accounts, mut names, mut text) = (self.accounts(), Names::default(), String::new());
        let several = accounts.len() > 1;
        if several {
            text += "# Resources of several accounts: each needs a configuration of the provider.\n";
            for account in &accounts {
                let _ = writeln!(text, "#   provider \"aws\" {{ alias = \"{}\" … }}", alias(*account));
            }
            text += "\n";
        }
        let of_account = |text: &mut String, account| {
            if several {
                let _ = writeln!(text, "  provider = aws.{}\n", alias(account));
            }
        };
        for provider in &self.providers {
            let name = names.free(provider.url.trim_start_matches("https://"), '_');
            let _ = writeln!(text, "resource \"aws_iam_openid_connect_provider\" \"{name}\" {{");
            of_account(&mut text, provider.account);
            let audiences = provider.audiences.iter().map(|it| quoted(it)).collect::<Vec<_>>().join(", ");
            let _ =
                writeln!(text, "  url            = {}\n  client_id_list = [{audiences}]\n}}\n", quoted(provider.url));
        }
        for role in &self.roles {
            let name = names.free(role.name, '_');
            let _ = writeln!(text, "resource \"aws_iam_role\" \"{name}\" {{");
            of_account(&mut text, role.account);
            let _ = writeln!(text, "  name               = {}", quoted(role.name));
            if role.path != "/" {
                let _ = writeln!(text, "  path               = {}", quoted(&role.path));
            }
            let _ = writeln!(text, "  assume_role_policy = {}\n}}\n", heredoc(&role.trust));
            if let Some(permissions) = &role.permissions {
                let _ = writeln!(text, "resource \"aws_iam_role_policy\" \"{name}\" {{");
                of_account(&mut text, role.account);
                let _ = writeln!(text, "  name   = \"{TARGETS}\"\n  role   = aws_iam_role.{name}.name");
                let _ = writeln!(text, "  policy = {}\n}}\n", heredoc(permissions));
            }
        }
        text.truncate(text.trim_end().len());
        text
    }

    /// A template of CloudFormation; of several accounts, one that makes in each what is of that account.
    #[must_use]
    pub fn cloudformation(&self) -> Json {
        let (accounts, mut names) = (self.accounts(), Names::default());
        let condition = |account: Account<'_>| account.named("Account", "");
        let resource = |kind: &str, account, properties| {
            let of_account = (accounts.len() > 1).then(|| ("Condition", Json::from(condition(account))));
            let members = [("Type", Json::from(kind))].into_iter().chain(of_account);
            Json::object(members.chain([("Properties", properties)]))
        };
        let mut resources = Vec::new();
        for provider in &self.providers {
            let properties = Json::object([("Url", provider.url.into()), ("ClientIdList", texts(&provider.audiences))]);
            let name = names.free(&format!("Provider {}", provider.url.trim_start_matches("https://")), ' ');
            resources.push((name, resource("AWS::IAM::OIDCProvider", provider.account, properties)));
        }
        for role in &self.roles {
            let path = (role.path != "/").then(|| ("Path", Json::from(role.path.as_str())));
            let permissions = role.permissions.as_ref().map(|permissions| {
                let policy =
                    Json::object([("PolicyName", TARGETS.into()), ("PolicyDocument", permissions.document().clone())]);
                ("Policies", Json::Array(vec![policy]))
            });
            let members = [("RoleName", Json::from(role.name))].into_iter().chain(path);
            let trust = [("AssumeRolePolicyDocument", role.trust.document().clone())];
            let properties = Json::object(members.chain(trust).chain(permissions));
            let name = names.free(&format!("Role {}", role.name), ' ');
            resources.push((name, resource("AWS::IAM::Role", role.account, properties)));
        }
        let conditions = (accounts.len() > 1).then(|| {
            let is = |account: &Account<'_>| {
                let this = Json::object([("Fn::Sub", "${AWS::Partition}:${AWS::AccountId}".into())]);
                let that = format!("{}:{}", account.partition, account.id).into();
                let equals = Json::object([("Fn::Equals", Json::Array(vec![this, that]))]);
                (condition(*account), equals)
            };
            ("Conditions", Json::object(accounts.iter().map(is)))
        });
        let version = [("AWSTemplateFormatVersion", Json::from("2010-09-09"))];
        Json::object(version.into_iter().chain(conditions).chain([("Resources", Json::object(resources))]))
    }

    fn accounts(&self) -> Vec<Account<'a>> {
        let mut accounts = self.roles.iter().map(|role| role.account).collect::<Vec<_>>();
        accounts.sort_unstable();
        accounts.dedup();
        accounts
    }
}

/// Names that were given.
#[derive(Default)]
struct Names(BTreeSet<String>);

impl Names {
    /// A name like `text`, of letters and digits, that no other has: joined by underscores, or for a space as one word.
    fn free(&mut self, text: &str, between: char) -> String {
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        let mut name = match between {
            ' ' => words.map(capitalised).collect::<String>(),
            between => words.collect::<Vec<_>>().join(&between.to_string()),
        };
        if !name.starts_with(|c: char| c.is_ascii_alphabetic()) {
            name.insert(0, '_');
        }
        let others = (2..).map(|number| match between {
            ' ' => format!("{name}N{number}"),
            between => format!("{name}{between}{number}"),
        });
        let free = std::iter::once(name.clone()).chain(others).find(|name| !self.0.contains(name)).unwrap_or_default();
        self.0.insert(free.clone());
        free
    }
}

fn capitalised(word: &str) -> String {
    word.chars().take(1).map(|c| c.to_ascii_uppercase()).chain(word.chars().skip(1)).collect()
}

fn texts(texts: &[&str]) -> Json {
    Json::Array(texts.iter().map(|text| Json::from(*text)).collect())
}

fn alias(account: Account<'_>) -> String {
    account.named("account", "_")
}

/// A string of HCL.
fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(&text.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// A policy as a string of HCL over several lines.
fn heredoc(policy: &TrustPolicy) -> String {
    let lines = escaped(&policy.to_string()).lines().map(|line| format!("    {line}\n")).collect::<String>();
    format!("<<-POLICY\n{lines}  POLICY")
}

/// Without what HCL would put values in the place of.
fn escaped(text: &str) -> String {
    text.replace("${", "$${").replace("%{", "%%{")
}

#[cfg(test)]
#[path = "formats_tests.rs"]
mod tests;

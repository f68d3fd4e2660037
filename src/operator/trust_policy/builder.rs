//! The trust policy of a role, made from who is to have it. Pure.
//!
//! Each issuer and audience has a statement of its own, with both in its conditions: a condition on two issuers' keys at once never
//! holds, and two audiences side by side would let each service account use the other's. `StringLike` stands only where a
//! wildcard was asked for. A role that other roles assume names each, and whose session tags it must come with: the first role alone
//! is had by all of its service accounts.
//!
//! Sources: IAM user guide, "Available keys for AWS OIDC federation", "Pass session tags in AWS STS", "IAM and AWS STS quotas".

use std::collections::{BTreeMap, BTreeSet};

use super::{
    issuer::{Issuer, Subject},
    json::Json,
    policy::TrustPolicy,
};
use crate::identity::{
    annotations::{Wish, Wishes},
    names::{Namespace, RoleArn, ServiceAccountName},
};

/// The operation by which a token is exchanged.
pub(super) const WEB_IDENTITY: &str = "sts:AssumeRoleWithWebIdentity";
/// That of a second hop.
pub(super) const ASSUME_ROLE: &str = "sts:AssumeRole";
/// What a second hop needs besides, for its tags.
pub(super) const TAG_SESSION: &str = "sts:TagSession";
/// The condition keys of a second hop.
pub(super) const EXTERNAL_ID: &str = "sts:ExternalId";
pub(super) const NAMESPACE_TAG: &str = "aws:RequestTag/kubernetes-namespace";
pub(super) const SERVICE_ACCOUNT_TAG: &str = "aws:RequestTag/kubernetes-service-account";

/// A role, and who is to be able to assume it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RoleTrust {
    /// The role.
    pub role: RoleArn,
    /// Whose tokens are taken from these issuers, by the tokens' audience.
    pub subjects: BTreeMap<String, BTreeSet<Subject>>,
    /// Who comes by way of another role.
    pub hops: BTreeMap<Hop, BTreeSet<ServiceAccountName>>,
    /// Which roles are assumed from this one.
    pub targets: BTreeSet<RoleArn>,
}

/// A way from a first role to this one, for service accounts of one namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Hop {
    /// The first role.
    pub from: RoleArn,
    /// The external id.
    pub external_id: Option<String>,
    /// The namespace.
    pub namespace: Namespace,
}

impl RoleTrust {
    /// A role that nobody may assume yet.
    #[must_use]
    pub fn new(role: RoleArn) -> Self {
        Self { role, subjects: BTreeMap::new(), hops: BTreeMap::new(), targets: BTreeSet::new() }
    }

    /// Tokens of these service accounts and this audience are to be taken.
    pub fn admit(&mut self, subject: Subject, audience: &str) {
        self.subjects.entry(audience.to_owned()).or_default().insert(subject);
    }

    /// A service account is to come by way of a first role.
    pub fn admit_by_way_of(&mut self, hop: Hop, service_account: ServiceAccountName) {
        self.hops.entry(hop).or_default().insert(service_account);
    }

    /// Its trust policy where these issuers' tokens are taken; `None` if nobody may assume it.
    #[must_use]
    pub fn policy(&self, issuers: &[Issuer]) -> Option<TrustPolicy> {
        let tokens = issuers.iter().flat_map(|issuer| {
            self.subjects.iter().map(move |(audience, subjects)| self.of_tokens(issuer, audience, subjects))
        });
        // First roles of which the same is said stand side by side.
        let mut hops = BTreeMap::<_, BTreeSet<&RoleArn>>::new();
        for (hop, accounts) in &self.hops {
            hops.entry((&hop.external_id, &hop.namespace, accounts)).or_default().insert(&hop.from);
        }
        let first_roles = self.hops.keys().map(|hop| &hop.from).collect::<BTreeSet<_>>();
        let hops = hops.into_iter().map(|((external_id, namespace, accounts), roles)| {
            allow("AWS", arns(&roles), ASSUME_ROLE, Some(of_hop(external_id.as_deref(), namespace, accounts)))
        });
        // Apart: whether the right to tag knows of an external id is not documented.
        let tags = (!first_roles.is_empty()).then(|| allow("AWS", arns(&first_roles), TAG_SESSION, None));
        let statements = tokens.chain(hops).chain(tags).collect::<Vec<_>>();
        (!statements.is_empty()).then(|| TrustPolicy::of(statements))
    }

    /// What the role must be permitted, for the roles that are assumed from it.
    #[must_use]
    pub fn permissions(&self) -> Option<TrustPolicy> {
        (!self.targets.is_empty()).then(|| {
            TrustPolicy::of(vec![Json::object([
                ("Effect", "Allow".into()),
                ("Action", Json::one_or_many([ASSUME_ROLE, TAG_SESSION])),
                ("Resource", Json::one_or_many(self.targets.iter().map(RoleArn::as_str))),
            ])])
        })
    }

    fn of_tokens(&self, issuer: &Issuer, audience: &str, subjects: &BTreeSet<Subject>) -> Json {
        let subject = (issuer.key("sub"), Json::one_or_many(subjects.iter().map(Subject::as_str)));
        let audience = (issuer.key("aud"), Json::from(audience));
        let condition = match subjects.iter().any(Subject::is_glob) {
            false => Json::object([("StringEquals", Json::object([subject, audience]))]),
            true => Json::object([("StringLike", Json::object([subject])), ("StringEquals", Json::object([audience]))]),
        };
        allow("Federated", issuer.provider_arn(&self.role).into(), WEB_IDENTITY, Some(condition))
    }
}

/// The condition of a second hop.
fn of_hop(external_id: Option<&str>, namespace: &Namespace, accounts: &BTreeSet<ServiceAccountName>) -> Json {
    let tags = [
        (NAMESPACE_TAG, namespace.as_str().into()),
        (SERVICE_ACCOUNT_TAG, Json::one_or_many(accounts.iter().map(ServiceAccountName::as_str))),
    ];
    let external_id = external_id.map(|id| (EXTERNAL_ID, id.into()));
    Json::object([("StringEquals", Json::object(external_id.into_iter().chain(tags)))])
}

fn arns(roles: &BTreeSet<&RoleArn>) -> Json {
    Json::one_or_many(roles.iter().map(|role| role.as_str()))
}

fn allow(kind: &str, principals: Json, action: &str, condition: Option<Json>) -> Json {
    let statement =
        [("Effect", "Allow".into()), ("Principal", Json::object([(kind, principals)])), ("Action", action.into())];
    Json::object(statement.into_iter().chain(condition.map(|condition| ("Condition", condition))))
}

/// The roles that service accounts ask for, each once, with all who ask for it.
#[derive(Clone, Debug, Default)]
pub struct Roles(BTreeMap<RoleArn, RoleTrust>);

impl Roles {
    /// Adds all roles that a service account asks for. `audience` is that of tokens of which nothing else is said.
    pub fn add(&mut self, namespace: &Namespace, name: &ServiceAccountName, wishes: &Wishes, audience: &str) {
        for wish in wishes.all() {
            self.add_wish(namespace, name, wish, audience);
        }
    }

    fn add_wish(&mut self, namespace: &Namespace, name: &ServiceAccountName, wish: &Wish, audience: &str) {
        let first = self.of(&wish.role);
        first.admit(Subject::of(namespace, name), wish.audience.as_deref().unwrap_or(audience));
        if let Some(target) = &wish.target {
            first.targets.insert(target.role.clone());
            let external_id = target.external_id.clone();
            let hop = Hop { from: wish.role.clone(), external_id, namespace: namespace.clone() };
            self.of(&target.role).admit_by_way_of(hop, name.clone());
        }
    }

    /// The trust of a role; nobody's until somebody is admitted.
    pub fn of(&mut self, role: &RoleArn) -> &mut RoleTrust {
        self.0.entry(role.clone()).or_insert_with(|| RoleTrust::new(role.clone()))
    }

    /// Each role, in the order of ARNs.
    pub fn iter(&self) -> impl Iterator<Item = &RoleTrust> {
        self.0.values()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
#[path = "builder_tests.rs"]
mod tests;

//! New service accounts: their names, and the bindings that give them what the old ones may do. Pure.

use std::collections::BTreeSet;

use super::{
    decide::{Grant, ROLE_ARN},
    objects::{AccountName, Cluster},
    plan::BindingCopy,
};

/// As long as a label of DNS, which some take a service account's name for.
const LONGEST_NAME: usize = 63;
/// What a binding may be named.
const LONGEST_BINDING: usize = 253;

/// Names that are taken.
pub(super) struct Names<'a> {
    cluster: &'a Cluster,
    accounts: BTreeSet<AccountName>,
    bindings: BTreeSet<(String, String)>,
}

impl<'a> Names<'a> {
    pub(super) fn of(cluster: &'a Cluster) -> Self {
        let workloads = cluster.workloads.iter().map(super::objects::Workload::account_name);
        let accounts = cluster.accounts.keys().cloned().chain(workloads).collect();
        let bindings =
            cluster.bindings.iter().map(|binding| (binding.namespace.clone(), binding.name.clone())).collect();
        Self { cluster, accounts, bindings }
    }

    /// A name for a service account that takes an old one's place for pods of one role: the same one when asked again of a
    /// cluster where it has been made.
    pub(super) fn new_account(&mut self, old: &AccountName, grant: &Grant) -> String {
        let role = dns(grant.role.name());
        let is_told = old.name == "default" || role == old.name || role.starts_with(&format!("{}-", old.name));
        let wanted = if is_told { role } else { format!("{}-{role}", old.name) };
        let name = free(&wanted, LONGEST_NAME, |name| {
            let name = AccountName { namespace: old.namespace.clone(), name: name.to_owned() };
            let there = self.cluster.accounts.get(&name);
            // Another's may have the same role: its bindings would be these pods', and the way back would delete it.
            let is_ours = there.is_some_and(|account| {
                let wanted = grant.annotations();
                account.is_ours
                    && account.annotations.get(ROLE_ARN) == wanted.get(ROLE_ARN)
                    && wanted.iter().all(|(key, value)| account.annotations.get(key) == Some(value))
            });
            is_ours && name != *old || !self.accounts.contains(&name)
        });
        self.accounts.insert(AccountName { namespace: old.namespace.clone(), name: name.clone() });
        name
    }

    fn new_binding(&mut self, namespace: &str, wanted: &str) -> String {
        let is_free = |name: &str| !self.bindings.contains(&(namespace.to_owned(), name.to_owned()));
        let name = free(wanted, LONGEST_BINDING, is_free);
        self.bindings.insert((namespace.to_owned(), name.clone()));
        name
    }
}

/// What binds `old`, for `new`.
pub(super) fn binding_copies(cluster: &Cluster, names: &mut Names, old: &AccountName, new: &str) -> Vec<BindingCopy> {
    let bound = |name: &str| AccountName { namespace: old.namespace.clone(), name: name.to_owned() };
    let of_old = cluster.bindings.iter().filter(|binding| binding.accounts.contains(old));
    let missing = of_old.filter(|binding| {
        let has = |other: &&super::objects::Binding| {
            (&other.namespace, &other.role) == (&binding.namespace, &binding.role)
                && other.accounts.contains(&bound(new))
        };
        !cluster.bindings.iter().any(|other| has(&other))
    });
    let copy = |binding: &super::objects::Binding| BindingCopy {
        namespace: binding.namespace.clone(),
        name: names.new_binding(&binding.namespace, &format!("{}-{new}", binding.name)),
        copied_from: binding.name.clone(),
        role_ref: binding.role.clone(),
        account_namespace: old.namespace.clone(),
        account: new.to_owned(),
    };
    missing.map(copy).collect()
}

/// `wanted`, or with the first number behind it that makes it free.
fn free(wanted: &str, longest: usize, is_free: impl Fn(&str) -> bool) -> String {
    let mut number = 1_u32;
    loop {
        let end = if number == 1 { String::new() } else { format!("-{number}") };
        let start = wanted.chars().take(longest - end.len()).collect::<String>();
        let name = format!("{}{end}", start.trim_end_matches(['-', '.']));
        if is_free(&name) {
            return name;
        }
        number += 1;
    }
}

/// What Kubernetes takes for a name.
fn dns(role: &str) -> String {
    let letter = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let name = role.chars().map(letter).collect::<String>();
    let name = name.trim_matches('-');
    if name.is_empty() { "role".to_owned() } else { name.to_owned() }
}

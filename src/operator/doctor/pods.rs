//! Service accounts and pods: annotations that cannot be meant, and what keeps pods from asking us. Pure.

use std::net::IpAddr;

use super::{checks, checks::Check, report::Report};
use crate::{
    events,
    identity::{
        annotations::{AnnotationError, Wishes},
        policy::{Forbids, PERMITTED_ROLES, PermittedRoles},
    },
    intercept::rivals,
    operator::{
        inventory::{Container, Inventory, Object, Pod},
        settings::Settings,
    },
};

/// The metadata service's.
const METADATA: &str = "169.254.169.254";
/// Variables by which a container names a proxy for plain HTTP.
const PROXIES: [&str; 4] = ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"];
const NO_PROXY: [&str; 2] = ["NO_PROXY", "no_proxy"];
/// Variables that come before the metadata service with every SDK.
const KEYS: [&str; 5] =
    ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"];
/// That of the webhook, and that of Pod Identity.
pub(crate) const OWN_TOKEN: &str = "AWS_WEB_IDENTITY_TOKEN_FILE";
const OTHER_ENDPOINT: &str = "AWS_CONTAINER_CREDENTIALS_FULL_URI";

/// What follows from the pods and their service accounts.
pub(super) fn look(inventory: &Inventory, settings: &Settings, report: &mut Report) {
    for account in inventory.accounts.iter().flatten() {
        of_account(account, inventory, settings, report);
    }
    let accounts = inventory.accounts_by_name();
    for pod in inventory.pods.iter().flatten().filter(|pod| !pod.is_over() && !pod.is_terminating()) {
        match accounts.get(&pod.account()) {
            Some(account) if has_role(account, settings) => of_pod(pod, settings, report),
            Some(_) => {}
            None if inventory.accounts.is_ok() && !pod.spec.service_account_name.is_empty() => report.find(
                &checks::POD_ACCOUNT,
                format!("{}: there is no ServiceAccount {}", name(pod), pod.spec.service_account_name),
                format!(
                    "kubectl -n {} create serviceaccount {}",
                    pod.metadata.namespace, pod.spec.service_account_name
                ),
            ),
            None => {}
        }
    }
    for (address, pods) in inventory.disputed_addresses() {
        let names = pods.iter().map(|pod| pod.metadata.full_name()).collect::<Vec<_>>();
        report.find(
            &checks::POD_ADDRESS,
            format!("{address} is that of {}", names.join(" and ")),
            format!("kubectl -n {} delete pod {}", pods[0].metadata.namespace, pods[0].metadata.name),
        );
    }
}

fn has_role(account: &Object, settings: &Settings) -> bool {
    account.metadata.annotations.get(settings.keys.role_arn()).is_some_and(|role| !role.is_empty())
}

fn name(pod: &Pod) -> String {
    format!("Pod {}", pod.metadata.full_name())
}

/// What an account asks for, and what is wrong with it: the first that forbids a role is named.
pub(crate) fn wishes(
    account: &Object,
    namespace: Option<&Object>,
    settings: &Settings,
) -> Result<Option<Wishes>, AnnotationError> {
    let wishes = settings.keys.read(&account.metadata.annotations)?;
    let Some(wishes) = wishes else { return Ok(None) };
    match not_permitted(&wishes, &account.metadata.namespace, namespace, settings).into_iter().next() {
        // Only the pod's main role keeps it from its credentials.
        Some((true, error)) => Err(error),
        _ => Ok(Some(wishes)),
    }
}

/// The roles that the namespace does not permit, the main one first; whether it is that one.
fn not_permitted(
    wishes: &Wishes,
    namespace: &str,
    object: Option<&Object>,
    settings: &Settings,
) -> Vec<(bool, AnnotationError)> {
    let Some(object) = object else { return Vec::new() };
    let permitted = object.metadata.annotations.get(PERMITTED_ROLES).map(|globs| PermittedRoles::new(globs));
    let additional = wishes.additional.iter().map(|(_, wish)| (false, wish));
    let refused = std::iter::once((true, &wishes.main)).chain(additional).flat_map(|(is_main, wish)| {
        let refused = wish.hops().filter(|role| !settings.policy.permits(permitted.as_ref(), role.as_str()));
        refused.map(move |role| (is_main, role.clone())).collect::<Vec<_>>()
    });
    refused
        .map(|(is_main, role)| {
            let (namespace, by) = (namespace.into(), Forbids::PermittedRoles);
            (is_main, AnnotationError::NotPermitted { namespace, role, by })
        })
        .collect()
}

fn of_account(account: &Object, inventory: &Inventory, settings: &Settings, report: &mut Report) {
    let (namespace, name) = account.metadata.key();
    let says = |error: &AnnotationError| events::words_of_invalid_account(namespace, name, error);
    match settings.keys.read(&account.metadata.annotations) {
        // By the daemon's own account, which a laptop does not know.
        Ok(None) | Err(AnnotationError::AccountNotKnown { .. }) => {}
        Err(error) => {
            // Each begins with the annotation that it is of.
            let text = error.to_string();
            let key = text.strip_prefix("annotation ").and_then(|rest| rest.split(':').next()).unwrap_or("KEY");
            report.find(
                &checks::ACCOUNT_ANNOTATION,
                says(&error),
                format!("kubectl -n {namespace} annotate --overwrite serviceaccount {name} {key}=VALUE"),
            );
        }
        Ok(Some(wishes)) => {
            let namespaces = inventory.namespaces_by_name();
            let object = namespaces.get(namespace).copied();
            for (_, error) in not_permitted(&wishes, namespace, object, settings) {
                report.find(
                    &checks::ACCOUNT_NOT_PERMITTED,
                    says(&error),
                    format!("kubectl annotate --overwrite namespace {namespace} {PERMITTED_ROLES}=GLOB,…"),
                );
            }
        }
    }
}

fn of_pod(pod: &Pod, settings: &Settings, report: &mut Report) {
    let pod_name = name(pod);
    if pod.spec.host_network {
        if matches!(settings.host_network.as_str(), "off" | "deny") {
            report.find(
                &checks::POD_HOST_NETWORK,
                format!("{pod_name} is on the node's network (host-network: {})", settings.host_network),
                "set flags.host-network: serve in the chart's values (docs/host-network.md)",
            );
        }
        // What else would keep it from asking matters where it is served.
        if settings.host_network != "serve" {
            return;
        }
    }
    let skips = pod.metadata.annotations.get(&settings.skip_containers()).filter(|names| !names.is_empty());
    if let Some(names) = skips {
        report.find(
            &checks::POD_SKIP,
            format!("{pod_name} skips {names}"),
            format!(
                "take the annotation {} away, or give those containers a pod of their own",
                settings.skip_containers()
            ),
        );
    }
    for container in pod.containers() {
        for (check, what, mend) in of_container(container) {
            report.find(check, format!("{pod_name}, container {}: {what}", container.name), mend);
        }
    }
}

fn of_container(container: &Container) -> Vec<(&'static Check, String, &'static str)> {
    let is_set = |name: &&str| container.variable(name).is_some();
    let mut found = Vec::new();
    if is_set(&OWN_TOKEN) {
        let mend = "nothing is to be done; to be served by us, remove the webhook and restart the pod";
        return vec![(&checks::POD_TOKEN, OWN_TOKEN.to_owned(), mend)];
    }
    let keys = KEYS.into_iter().filter(is_set).collect::<Vec<_>>();
    if !keys.is_empty() {
        found.push((&checks::POD_KEYS, keys.join(", "), "take the variables away, and restart the pod"));
    }
    if is_set(&OTHER_ENDPOINT) {
        let mend = "nothing is to be done where Pod Identity is wanted: aws eks list-pod-identity-associations";
        found.push((&checks::POD_AGENT, OTHER_ENDPOINT.to_owned(), mend));
    }
    let disabled = container.variable("AWS_EC2_METADATA_DISABLED").and_then(|variable| variable.value.as_deref());
    if disabled.is_some_and(|value| value.eq_ignore_ascii_case("true")) {
        let mend = "take the variable away, and restart the pod";
        found.push((&checks::POD_DISABLED, "AWS_EC2_METADATA_DISABLED=true".to_owned(), mend));
    }
    let proxies = PROXIES.into_iter().filter(is_set).collect::<Vec<_>>();
    if !proxies.is_empty() && !NO_PROXY.into_iter().any(|name| goes_past(container, name)) {
        let mend = "add 169.254.169.254 to NO_PROXY, and restart the pod";
        found.push((&checks::POD_PROXY, format!("{} without NO_PROXY={METADATA}", proxies.join(", ")), mend));
    }
    found
}

/// Whether the variable keeps requests to the metadata service from the proxy; one that is not to be seen may.
fn goes_past(container: &Container, name: &str) -> bool {
    let Some(variable) = container.variable(name) else { return false };
    let Some(value) = &variable.value else { return true };
    let Ok(address) = METADATA.parse::<IpAddr>() else { return false };
    value.split([',', ' ']).map(str::trim).any(|entry| {
        let host = entry.strip_suffix(":80").unwrap_or(entry);
        entry == "*" || rivals::covers(host, address) && !entry.is_empty()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn of(env: Value) -> Vec<&'static str> {
        let container = serde_json::from_value::<Container>(json!({"name": "main", "env": env})).unwrap();
        of_container(&container).into_iter().map(|(check, ..)| check.id).collect()
    }

    #[test]
    fn a_proxy_is_no_matter_where_the_metadata_service_goes_past_it() {
        let with = |no_proxy: &str| {
            of(json!([
                {"name": "HTTP_PROXY", "value": "http://user:pass@proxy.example.com"},
                {"name": "no_proxy", "value": no_proxy},
            ]))
        };
        for past in [
            "169.254.169.254",
            "localhost, 169.254.169.254",
            "169.254.0.0/16",
            "*",
            "169.254.169.254:80",
            "a 169.254.169.254",
        ] {
            assert_eq!(with(past), Vec::<&str>::new(), "{past}");
        }
        for not in ["", "localhost", "169.254.169.253", "10.0.0.0/8", "169.254.170.2"] {
            assert_eq!(with(not), ["pod-proxy"], "{not}");
        }
        assert_eq!(of(json!([{"name": "HTTPS_PROXY", "value": "http://p"}])), Vec::<&str>::new(), "it is plain HTTP");
        assert_eq!(of(json!([{"name": "http_proxy", "value": ""}])), Vec::<&str>::new(), "an empty one is none");
        let from =
            json!([{"name": "HTTP_PROXY", "value": "p"}, {"name": "NO_PROXY", "valueFrom": {"configMapKeyRef": {}}}]);
        assert_eq!(of(from), Vec::<&str>::new(), "what is not to be seen may be right");
    }

    #[test]
    fn what_comes_before_the_metadata_service_is_named_without_its_value() {
        for name in KEYS {
            assert_eq!(of(json!([{"name": name, "value": "x"}])), ["pod-static-keys"], "{name}");
        }
        assert_eq!(of(json!([{"name": "AWS_EC2_METADATA_DISABLED", "value": "TRUE"}])), ["pod-metadata-disabled"]);
        assert_eq!(of(json!([{"name": "AWS_EC2_METADATA_DISABLED", "value": "false"}])), Vec::<&str>::new());
        assert_eq!(of(json!([{"name": OTHER_ENDPOINT, "value": "http://169.254.170.23/v1"}])), ["pod-other-endpoint"]);
        let webhook = json!([{"name": OWN_TOKEN, "value": "/var/run"}, {"name": "HTTP_PROXY", "value": "p"}]);
        assert_eq!(of(webhook), ["pod-own-token"], "it asks no metadata service");
    }
}

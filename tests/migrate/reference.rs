//! Which role a pod has by kube2iam and by kiam: a small rule of our own, written from their documentation and apart from what
//! is tested.

use std::collections::BTreeMap;

use regex_automata::meta::Regex;
use serde_json::Value;

pub(crate) type Annotations = BTreeMap<String, String>;

/// How a daemon is set up.
pub(crate) struct Setup {
    pub(crate) base: &'static str,
    pub(crate) default: Option<&'static str>,
    pub(crate) role_key: &'static str,
    pub(crate) limits: Limits,
}

pub(crate) enum Limits {
    Globs,
    Regexps(&'static str),
    Names,
}

/// The role of a pod with these annotations, in a namespace with those.
pub(crate) fn role(setup: &Setup, pod: &Annotations, namespace: &Annotations) -> Option<String> {
    let full = |name: &str| {
        if name.starts_with("arn:") {
            name.to_owned()
        } else {
            format!("{}{}", setup.base, name.trim_start_matches('/'))
        }
    };
    let default = setup.default.map(full);
    let asked = pod.get(setup.role_key).map(|name| full(name)).or_else(|| default.clone())?;
    let said = pod.get(setup.role_key).map_or("", String::as_str);
    let list = |key: &str| {
        namespace.get(key).and_then(|text| serde_json::from_str::<Vec<String>>(text).ok()).unwrap_or_default()
    };
    let permitted = match setup.limits {
        Limits::Globs => list("iam.amazonaws.com/allowed-roles").iter().any(|glob| globbed(&full(glob), &asked)),
        Limits::Regexps(key) => list(key).iter().any(|text| Regex::new(&full(text)).unwrap().is_match(&asked)),
        Limits::Names => {
            namespace.get("iam.amazonaws.com/permitted").filter(|text| !text.is_empty()).is_some_and(|text| {
                let whole = Regex::new(&format!("^{text}$")).unwrap();
                whole.is_match(&asked)
                    || whole.is_match(said.rsplit_once(":role/").map_or(said, |(_, name)| name).trim_start_matches('/'))
            })
        }
    };
    // What AWS takes for a role.
    let name = asked.split_once(":role/").map_or("", |(_, name)| name);
    let is_role = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "_+=,.@/-".contains(c));
    ((permitted || Some(&asked) == default.as_ref()) && is_role).then_some(asked)
}

fn globbed(glob: &str, text: &str) -> bool {
    match glob.split_once('*') {
        None => glob == text,
        Some((start, rest)) => text
            .strip_prefix(start)
            .is_some_and(|text| (0..=text.len()).any(|at| text.is_char_boundary(at) && globbed(rest, &text[at..]))),
    }
}

/// The annotations of an object.
pub(crate) fn annotations(object: &Value) -> Annotations {
    serde_json::from_value(object["metadata"]["annotations"].clone()).unwrap_or_default()
}

//! The daemon that is left: where it is, and the flags that it runs with. Pure.

use std::{borrow::Borrow, collections::BTreeMap};

use super::{
    objects::{Cluster, Container},
    plan::Remark,
};

/// Flags by their names without dashes. One without a value is `true`, as with Go's libraries.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags(BTreeMap<String, String>);

/// A daemon in the cluster.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    /// What runs it: `DaemonSet kube-system/kube2iam`.
    pub(super) workload: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) kind: String,
    pub(super) image: String,
    pub(super) flags: Flags,
    /// Its words besides flags, such as kiam's `server`.
    pub(super) words: Vec<String>,
}

impl Daemon {
    /// Whether it is kiam's server, which was a program of its own before 3.0.
    pub(super) fn is_server(&self) -> bool {
        self.words.iter().any(|word| word == "server" || word == "/server")
    }
}

/// The daemons whose images have this name.
pub(super) fn find(cluster: &Cluster, image: &str) -> Vec<Daemon> {
    let mut found = Vec::new();
    for workload in &cluster.workloads {
        for container in workload.containers.iter().filter(|container| image_name(&container.image) == image) {
            let (flags, words) = Flags::read(&arguments(container));
            found.push(Daemon {
                workload: workload.to_string(),
                namespace: workload.namespace.clone(),
                name: workload.name.clone(),
                kind: workload.kind.clone(),
                image: container.image.clone(),
                flags,
                words,
            });
        }
    }
    found
}

/// Those that are not told what the first is.
pub(super) fn told_otherwise<D: Borrow<Daemon>>(first: &Daemon, others: &[D]) -> Vec<Remark> {
    let others = others.iter().map(Borrow::borrow).filter(|other| other.flags != first.flags);
    let remark = |other: &Daemon| {
        Remark::new(
            &other.workload,
            format!("its flags are not those of {}, which are taken", first.workload),
            "run this for each of them, with --daemon-flags",
        )
    };
    others.map(remark).collect()
}

/// What a shell between them is given counts as its words.
fn arguments(container: &Container) -> Vec<String> {
    let all = container.command.iter().chain(&container.args);
    all.flat_map(|argument| argument.split_whitespace()).map(str::to_owned).collect()
}

fn image_name(image: &str) -> &str {
    let last = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    last.split(':').next().unwrap_or_default()
}

/// An image's tag without a `v` before it; empty if it has none.
pub(super) fn version(image: &str) -> &str {
    let last = image.split('@').next().unwrap_or_default().rsplit('/').next().unwrap_or_default();
    last.split_once(':').map_or("", |(_, tag)| tag.trim_start_matches('v'))
}

impl Flags {
    /// Of an argument vector, and what is no flag in it.
    pub(super) fn read(arguments: &[String]) -> (Self, Vec<String>) {
        let (mut flags, mut words) = (BTreeMap::new(), Vec::new());
        let mut rest = arguments.iter().peekable();
        while let Some(argument) = rest.next() {
            let Some(flag) = argument.strip_prefix("--") else {
                words.push(argument.clone());
                continue;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, value.trim_matches(['"', '\'']).to_owned()),
                None if TAKE_A_VALUE.contains(&flag) => (flag, rest.next().cloned().unwrap_or_default()),
                None => (flag, "true".to_owned()),
            };
            flags.insert(name.to_owned(), value);
        }
        (Self(flags), words)
    }

    /// What a person types in one piece.
    pub(super) fn typed(text: &str) -> Self {
        Self::read(&text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()).0
    }

    /// A flag's value; an empty one is none.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    pub(super) fn is_set(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| ["1", "t", "T", "true", "TRUE", "True"].contains(&value))
    }

    /// A duration of Go's (`1h30m`), in seconds.
    pub(super) fn seconds(&self, name: &str) -> Option<u32> {
        self.get(name).and_then(seconds)
    }
}

/// Those of both daemons that matter here and take what follows them.
const TAKE_A_VALUE: [&str; 14] = [
    "base-role-arn",
    "default-role",
    "iam-role-key",
    "iam-external-id",
    "iam-role-session-name-key",
    "iam-role-session-ttl",
    "namespace-key",
    "namespace-restriction-format",
    "assume-role-arn",
    "role-base-arn",
    "session",
    "session-duration",
    "host-interface",
    "server-address",
];

fn seconds(text: &str) -> Option<u32> {
    let (mut sum, mut digits) = (0_u32, String::new());
    let mut rest = text.chars().peekable();
    while let Some(char) = rest.next() {
        let unit = match char {
            '0'..='9' => {
                digits.push(char);
                continue;
            }
            'h' => 3600,
            'm' if rest.peek() != Some(&'s') => 60,
            's' => 1,
            _ => return None,
        };
        sum = sum.checked_add(digits.parse::<u32>().ok()?.checked_mul(unit)?)?;
        digits.clear();
    }
    (digits.is_empty() && sum > 0).then_some(sum)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_read_as_go_reads_them() {
        let arguments = [
            "/server",
            "--role-base-arn",
            "arn:aws:iam::1:role/",
            "--json-log",
            "--sync=1m",
            "--x=\"y\"",
            "--off=false",
        ];
        let (flags, words) = Flags::read(&arguments.map(str::to_owned));
        assert_eq!(words, ["/server"]);
        assert_eq!(flags.get("role-base-arn"), Some("arn:aws:iam::1:role/"));
        assert_eq!((flags.is_set("json-log"), flags.is_set("off"), flags.is_set("other")), (true, false, false));
        assert_eq!((flags.get("x"), flags.seconds("sync")), (Some("y"), Some(60)));
    }

    #[test]
    fn durations_are_gos() {
        for (text, expected) in [
            ("15m", Some(900)),
            ("1h30m", Some(5400)),
            ("900s", Some(900)),
            ("10", None),
            ("5ms", None),
            ("", None),
            ("0s", None),
        ] {
            assert_eq!(seconds(text), expected, "{text}");
        }
    }

    #[test]
    fn an_image_is_known_by_its_name_wherever_it_comes_from() {
        for (image, name, tag) in [
            ("jtblin/kube2iam:0.11.1", "kube2iam", "0.11.1"),
            ("registry.example.com:5000/mirror/kiam:v3.6", "kiam", "3.6"),
            ("kube2iam", "kube2iam", ""),
            ("quay.io/uswitch/kiam:v4.0@sha256:00", "kiam", "4.0"),
        ] {
            assert_eq!((image_name(image), version(image)), (name, tag), "{image}");
        }
    }
}

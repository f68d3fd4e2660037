//! The options of a list or a watch: decoded, defaulted and judged as a real server does it.
//!
//! Source: `ListOptions` of `k8s.io/apimachinery/pkg/apis/meta/internalversion`, its defaults (with
//! `WatchList`, on since 1.34) and its validation.

use super::{
    resource::Resource,
    selector::{FieldSelector, LabelSelector},
    status::{FieldError, Status},
};

/// A request's query, decoded.
#[derive(Clone, Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Self {
        Self(form_urlencoded::parse(query.unwrap_or_default().as_bytes()).into_owned().collect())
    }

    /// The first value of a parameter.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// A flag: everything but absence, `false` and `0` is true.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name).is_some_and(|value| !matches!(value.to_lowercase().as_str(), "false" | "0"))
    }

    fn number(&self, name: &str) -> Result<Option<i64>, Status> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let number = value.parse();
        let error = || format!("strconv.ParseInt: parsing {value:?}: invalid syntax");
        number.map(Some).map_err(|_| Status::bad_request(error()))
    }
}

/// How `resourceVersion` is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// The options of a list or a watch.
#[derive(Clone, Debug)]
pub(super) struct ListOptions {
    pub(super) watch: bool,
    pub(super) bookmarks: bool,
    pub(super) fields: FieldSelector,
    pub(super) labels: LabelSelector,
    /// As given; empty if absent.
    pub(super) version: String,
    pub(super) version_match: Option<VersionMatch>,
    pub(super) send_initial_events: Option<bool>,
    /// Zero or less: no limit.
    pub(super) limit: i64,
    pub(super) continuation: String,
    pub(super) timeout_seconds: Option<u64>,
}

impl ListOptions {
    pub(super) fn decode(resource: Resource, query: &Query) -> Result<Self, Status> {
        let text = |name| query.get(name).unwrap_or_default();
        let labels = LabelSelector::parse(text("labelSelector")).map_err(Status::bad_request)?;
        let fields = FieldSelector::parse(text("fieldSelector")).map_err(Status::bad_request)?;
        let timeout_seconds = query.number("timeoutSeconds")?;
        let limit = query.number("limit")?.unwrap_or_default();

        let watch = query.flag("watch");
        let mut send_initial_events = query.get("sendInitialEvents").map(|_| query.flag("sendInitialEvents"));
        let mut version_match = text("resourceVersionMatch");
        let version = text("resourceVersion");
        let legacy = send_initial_events.is_none() && version_match.is_empty() && matches!(version, "" | "0");
        if watch && legacy {
            (send_initial_events, version_match) = (Some(true), "NotOlderThan");
        }

        let continuation = text("continue");
        let errors = if watch {
            watch_errors(version_match, send_initial_events, continuation)
        } else {
            list_errors(version_match, send_initial_events, version, continuation)
        };
        if !errors.is_empty() {
            return Err(Status::invalid("meta.k8s.io", "ListOptions", "", &errors));
        }

        Ok(Self {
            watch,
            bookmarks: query.flag("allowWatchBookmarks"),
            fields: fields.for_resource(resource).map_err(Status::bad_request)?,
            labels,
            version: version.to_owned(),
            version_match: match version_match {
                "Exact" => Some(VersionMatch::Exact),
                "NotOlderThan" => Some(VersionMatch::NotOlderThan),
                _ => None,
            },
            send_initial_events,
            limit,
            continuation: continuation.to_owned(),
            timeout_seconds: timeout_seconds.and_then(|seconds| seconds.try_into().ok()),
        })
    }
}

/// A resource version, empty being zero; the text is what the server says of one that is none.
pub(super) fn parse_version(version: &str) -> Result<u64, String> {
    if version.is_empty() {
        return Ok(0);
    }
    version.parse().map_err(|_| {
        format!("resourceVersion: Invalid value: {version:?}: strconv.ParseUint: parsing {version:?}: invalid syntax")
    })
}

fn list_errors(version_match: &str, initial: Option<bool>, version: &str, continuation: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut forbid = |detail: &str| errors.push(FieldError::forbidden("resourceVersionMatch", detail));
    if !version_match.is_empty() {
        if version.is_empty() {
            forbid("resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if !continuation.is_empty() {
            forbid("resourceVersionMatch is forbidden when continue is provided");
        }
        if version_match == "Exact" && version == "0" {
            forbid("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
        if !matches!(version_match, "Exact" | "NotOlderThan") {
            let supported = ["Exact", "NotOlderThan", ""];
            errors.push(FieldError::unsupported("resourceVersionMatch", version_match, &supported));
        }
    }
    if initial.is_some() {
        errors.push(FieldError::forbidden("sendInitialEvents", "sendInitialEvents is forbidden for list"));
    }
    errors
}

fn watch_errors(version_match: &str, initial: Option<bool>, continuation: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let forbidden = |detail: &str| FieldError::forbidden("resourceVersionMatch", detail);
    if initial.is_some() && version_match != "NotOlderThan" {
        errors.push(forbidden("sendInitialEvents requires setting resourceVersionMatch to NotOlderThan"));
    }
    if !version_match.is_empty() {
        if initial.is_none() {
            errors.push(forbidden("resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided"));
        }
        if version_match != "NotOlderThan" {
            errors.push(FieldError::unsupported("resourceVersionMatch", version_match, &["NotOlderThan"]));
        }
        if !continuation.is_empty() {
            errors.push(forbidden("resourceVersionMatch is forbidden when continue is provided"));
        }
    }
    errors
}

//! Lists: which state they show, in pages.

use base64::{
    DecodeError, Engine as _, alphabet,
    engine::general_purpose::{GeneralPurpose, NO_PAD},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    accept::Form,
    options::{ListOptions, VersionMatch, parse_version},
    resource::Resource,
    status::Status,
    store::{Snapshot, Store},
};

/// As Go's `RawURLEncoding`, which overlooks bits that are left over.
const BASE64: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, NO_PAD.with_decode_allow_trailing_bits(true));

/// Which state a list shows.
enum State {
    At(u64),
    Now,
    /// The server's cache, which may lag.
    Cache,
}

/// Where the next page begins (`k8s.io/apiserver/pkg/storage/continue.go`). Opaque to clients.
#[derive(Serialize, Deserialize)]
struct Continuation {
    #[serde(rename = "v", default)]
    api_version: String,
    #[serde(rename = "rv", default)]
    revision: i64,
    #[serde(default)]
    start: String,
}

impl Continuation {
    fn encode(revision: i64, start: String) -> String {
        let continuation = Self { api_version: "meta.k8s.io/v1".to_owned(), revision, start };
        BASE64.encode(serde_json::to_vec(&continuation).unwrap_or_default())
    }

    fn decode(token: &str) -> Result<Self, Status> {
        let refuse = |why: &str| Status::bad_request(format!("invalid continue token: continue key is not valid{why}"));
        let bytes = BASE64.decode(token).map_err(|error| {
            let at = match error {
                DecodeError::InvalidByte(at, _) | DecodeError::InvalidLastSymbol(at, _) => at,
                DecodeError::InvalidLength(_) | DecodeError::InvalidPadding => token.len(),
            };
            refuse(&format!(": illegal base64 data at input byte {at}"))
        })?;
        let continuation = serde_json::from_slice::<Self>(&bytes).map_err(|error| refuse(&format!(": {error}")))?;
        if continuation.api_version != "meta.k8s.io/v1" {
            let version = &continuation.api_version;
            return Err(refuse(&format!(": server does not recognize this encoded version {version}")));
        }
        if continuation.revision == 0 {
            return Err(refuse(": incorrect encoded start resourceVersion (version meta.k8s.io/v1)"));
        }
        if continuation.start.is_empty() {
            return Err(refuse(": encoded start key empty (version meta.k8s.io/v1)"));
        }
        Ok(continuation)
    }
}

/// Answers a list; `lagging` is the revision at which the server's cache stands still, if it does.
pub(super) async fn list(
    store: &Store,
    resource: Resource,
    namespace: &str,
    options: &ListOptions,
    lagging: Option<u64>,
    form: Form,
) -> Result<Value, Status> {
    let (state, start) = state(options)?;
    let revision = match state {
        State::Now => None,
        State::Cache => lagging,
        State::At(revision) => {
            store.reached(revision).await.map_err(|now| Status::too_large_resource_version(revision, now))?;
            // Older than asked for is never shown; newer is, unless exactly that was asked for.
            exact(options).then_some(revision)
        }
    };
    let snapshot = store.snapshot(resource, namespace, revision).map_err(|_| match &start {
        Some(start) => Status::expired_continue(Continuation::encode(-1, start.clone())),
        None => Status::expired("The resourceVersion for the provided list is too old."),
    })?;
    // The cache ignores a limit when any state will do.
    let limit = if matches!(state, State::Cache) { 0 } else { options.limit };
    page(resource, namespace, options, &snapshot, start.as_deref(), limit, form)
}

fn exact(options: &ListOptions) -> bool {
    match options.version_match {
        Some(VersionMatch::Exact) => true,
        Some(VersionMatch::NotOlderThan) => false,
        None => !options.continuation.is_empty() || options.limit > 0,
    }
}

fn state(options: &ListOptions) -> Result<(State, Option<String>), Status> {
    if !options.continuation.is_empty() {
        let continuation = Continuation::decode(&options.continuation)?;
        if !matches!(options.version.as_str(), "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let state = u64::try_from(continuation.revision).map_or(State::Now, State::At);
        return Ok((state, Some(continuation.start)));
    }
    let version = parse_version(&options.version)
        .map_err(|error| Status::bad_request(format!("invalid resource version: {error}")))?;
    Ok(match (options.version.as_str(), version) {
        ("", _) => (State::Now, None),
        (_, 0) => (State::Cache, None),
        (_, version) => (State::At(version), None),
    })
}

fn page(
    resource: Resource,
    namespace: &str,
    options: &ListOptions,
    snapshot: &Snapshot,
    start: Option<&str>,
    limit: i64,
    form: Form,
) -> Result<Value, Status> {
    // A page begins after a key of the prefix that is listed, as etcd orders them.
    let path = |key: &super::store::Key| match (resource.namespaced(), namespace) {
        (true, "") => format!("/{}/{}", key.namespace, key.name),
        _ => format!("/{}", key.name),
    };
    let mut in_scope = snapshot
        .objects
        .iter()
        .map(|(key, object)| (path(key), object))
        .filter(|(path, _)| start.is_none_or(|start| path.as_str() >= start))
        .collect::<Vec<_>>();
    in_scope.sort_by(|(a, _), (b, _)| a.cmp(b));

    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
    let mut items = Vec::new();
    let mut last = None;
    for (at, (path, object)) in in_scope.iter().enumerate() {
        if limit.is_some_and(|limit| items.len() >= limit) {
            break;
        }
        last = Some((at, path));
        if options.fields.matches(resource, object) && options.labels.matches(object) {
            items.push(object.as_ref());
        }
    }

    let mut metadata = json!({ "resourceVersion": snapshot.revision.to_string() });
    if let Some((at, path)) = last.filter(|(at, _)| at + 1 < in_scope.len()) {
        let revision = i64::try_from(snapshot.revision).unwrap_or(i64::MAX);
        metadata["continue"] = Continuation::encode(revision, format!("{path}\0")).into();
        // Only what is not selected from can be counted without being read.
        if options.fields.is_empty() && options.labels.is_empty() {
            metadata["remainingItemCount"] = (in_scope.len() - at - 1).into();
        }
    }
    form.list(resource, metadata, items.into_iter())
}

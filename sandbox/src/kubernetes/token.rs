//! TokenRequest: a token of a service account, for an audience, bound to an object.
//!
//! The order of the checks and their refusals are those of
//! `pkg/registry/core/serviceaccount/storage/token.go`; the claims, those of `pkg/serviceaccount/claims.go`.
//! There are no secrets in this cluster: a token bound to one is refused as bound to one that is absent.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::{
    decode::{self, Fields},
    faults::Corruption,
    objects,
    resource::Resource,
    status::{FieldError, Status},
    store::{Key, Store},
    uuid,
};
use crate::{clock, issuer::Issuer};

const GROUP: &str = "authentication.k8s.io";
const KIND: &str = "TokenRequest";
/// What Go calls its parts.
const STRUCTS: [(&str, &str); 3] =
    [("/metadata", "ObjectMeta"), ("/spec", "TokenRequestSpec"), ("/spec/boundObjectRef", "BoundObjectReference")];

/// Kubelet asks for this life for the tokens that it projects by default; they live for a year instead.
pub(super) const KUBELET_SECONDS: i64 = 3607;
const EXTENDED_SECONDS: i64 = 365 * 24 * 3600;

/// A request's body, decoded.
pub(super) struct TokenRequest {
    name: String,
    namespace: String,
    uid: String,
    pub(super) audiences: Vec<String>,
    expiration_seconds: i64,
    pub(super) bound: Option<BoundObject>,
}

pub(super) struct BoundObject {
    kind: String,
    api_version: String,
    pub(super) name: String,
    pub(super) uid: String,
}

/// What a token says of the objects that it is bound to.
#[derive(Default)]
struct Binding {
    pod: Option<Value>,
    node: Option<Value>,
}

/// Answers a TokenRequest for the service account `name`, which `admit` may refuse.
pub(super) fn create(
    store: &Store,
    issuer: &Issuer,
    corruption: Option<Corruption>,
    (namespace, name): (&str, &str),
    body: &[u8],
    admit: impl FnOnce(&TokenRequest) -> Result<(), Status>,
) -> Result<Value, Status> {
    let mut request = TokenRequest::decode(body)?;
    if !request.namespace.is_empty() && request.namespace != namespace {
        let why = "the namespace of the provided object does not match the namespace sent on the request";
        return Err(Status::bad_request(why));
    }
    // Admission looks at the namespace before the account is looked up.
    get(store, Resource::Namespaces, "", namespace)?;
    admit(&request)?;
    if !request.name.is_empty() && request.name != name {
        let detail = "must match the service account name if specified";
        let error = FieldError::invalid("metadata.name", format!("{:?}", request.name), detail);
        return Err(Status::invalid(GROUP, KIND, name, &[error]));
    }
    let account = get(store, Resource::ServiceAccounts, namespace, name)?;
    let account_uid = uid(&account);
    if !request.uid.is_empty() && request.uid != account_uid {
        let why = format!(
            "the UID in the token request ({}) does not match the UID of the service account ({account_uid})",
            request.uid
        );
        return Err(Status::conflict(GROUP, KIND, name, &why));
    }
    if request.audiences.is_empty() {
        request.audiences = vec![issuer.url().to_owned()];
    }
    request.validate()?;
    let binding = match &request.bound {
        Some(bound) => bound.resolve(store, namespace, name)?,
        None => Binding::default(),
    };

    let now = clock::now();
    let extended = binding.pod.is_some()
        && request.expiration_seconds == KUBELET_SECONDS
        && request.audiences.iter().all(|audience| audience == issuer.url());
    let issued = seconds(now);
    let life = if extended { EXTENDED_SECONDS } else { request.expiration_seconds };
    let mut kubernetes = json!({ "namespace": namespace, "serviceaccount": { "name": name, "uid": account_uid } });
    for (field, value) in [("pod", binding.pod), ("node", binding.node)] {
        if let Some(value) = value {
            kubernetes[field] = value;
        }
    }
    if extended {
        kubernetes["warnafter"] = (issued + KUBELET_SECONDS).into();
    }
    let claims = json!({
        "aud": request.audiences,
        "exp": issued + life,
        "iat": issued,
        "iss": issuer.url(),
        "jti": uuid(),
        "kubernetes.io": kubernetes,
        "nbf": issued,
        "sub": format!("system:serviceaccount:{namespace}:{name}"),
    });
    let token = sign(issuer, claims, corruption)?;
    let expires = now + Duration::from_secs(request.expiration_seconds.unsigned_abs());
    Ok(json!({
        "kind": KIND,
        "apiVersion": format!("{GROUP}/v1"),
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": account_uid,
            "creationTimestamp": objects::timestamp(now),
        },
        "spec": {
            "audiences": request.audiences,
            "expirationSeconds": request.expiration_seconds,
            "boundObjectRef": request.bound.as_ref().map(BoundObject::object),
        },
        "status": { "token": token, "expirationTimestamp": objects::timestamp(expires) },
    }))
}

fn sign(issuer: &Issuer, mut claims: Value, corruption: Option<Corruption>) -> Result<String, Status> {
    let forged = corruption == Some(Corruption::Signature);
    match corruption {
        None | Some(Corruption::Signature) => {}
        Some(Corruption::Audience(audience)) => claims["aud"] = json!([audience]),
        Some(Corruption::Subject(subject)) => claims["sub"] = subject.into(),
        Some(Corruption::Issuer(url)) => claims["iss"] = url.into(),
        Some(Corruption::Expired) => {
            let now = claims["iat"].as_i64().unwrap_or_default();
            for (claim, ago) in [("iat", 7200), ("nbf", 7200), ("exp", 3600)] {
                claims[claim] = (now - ago).into();
            }
        }
    }
    let token =
        issuer.sign(&claims).map_err(|error| Status::internal(&format!("failed to generate token: {error}")))?;
    Ok(if forged { forge(&token) } else { token })
}

/// The same token with another signature of the same length.
fn forge(token: &str) -> String {
    let (content, signature) = token.rsplit_once('.').unwrap_or((token, ""));
    let signature = signature.char_indices().map(|(at, c)| match (at % 7, c) {
        (3, 'A') => 'B',
        (3, _) => 'A',
        (_, c) => c,
    });
    format!("{content}.{}", signature.collect::<String>())
}

// === impl TokenRequest ===

impl TokenRequest {
    fn decode(body: &[u8]) -> Result<Self, Status> {
        let value = decode::object(body, KIND)?;
        let fields = Fields::new(&value, KIND, &STRUCTS);
        for (pointer, kind) in [
            ("/metadata", "v1.ObjectMeta"),
            ("/spec", "v1.TokenRequestSpec"),
            ("/spec/boundObjectRef", "v1.BoundObjectReference"),
        ] {
            fields.field(pointer, kind, |value| value.is_object().then_some(()))?;
        }
        let (kind, api_version) = (fields.text("/kind")?, fields.text("/apiVersion")?);
        let kind = if kind.is_empty() { KIND.to_owned() } else { kind };
        let api_version = if api_version.is_empty() { format!("{GROUP}/v1") } else { api_version };
        if (kind.as_str(), api_version.as_str()) != (KIND, "authentication.k8s.io/v1") {
            let version = api_version.rsplit('/').next().unwrap_or_default();
            // Two of those that a server knows and cannot take for this one.
            let known = matches!(
                (kind.as_str(), api_version.as_str()),
                ("Pod", "v1") | ("TokenReview", "authentication.k8s.io/v1")
            );
            let why = match known {
                true => format!("converting (v1.{kind}) to (authentication.TokenRequest): unknown conversion"),
                false => format!(
                    "no kind {kind:?} is registered for version {api_version:?} in scheme \"pkg/runtime/scheme.go:111\""
                ),
            };
            return Err(Status::bad_request(format!(
                "{kind} in version {version:?} cannot be handled as a {KIND}: {why}"
            )));
        }
        let bound = value.pointer("/spec/boundObjectRef").filter(|bound| !bound.is_null());
        let bound = bound.map(|_| {
            Ok::<_, Status>(BoundObject {
                kind: fields.text("/spec/boundObjectRef/kind")?,
                api_version: fields.text("/spec/boundObjectRef/apiVersion")?,
                name: fields.text("/spec/boundObjectRef/name")?,
                uid: fields.text("/spec/boundObjectRef/uid")?,
            })
        });
        Ok(Self {
            name: fields.text("/metadata/name")?,
            namespace: fields.text("/metadata/namespace")?,
            uid: fields.text("/metadata/uid")?,
            audiences: fields.texts("/spec/audiences")?,
            expiration_seconds: fields.number("/spec/expirationSeconds")?.unwrap_or(3600),
            bound: bound.transpose()?,
        })
    }

    fn validate(&self) -> Result<(), Status> {
        let field = "spec.expirationSeconds";
        let detail = match self.expiration_seconds {
            ..600 => "may not specify a duration less than 10 minutes",
            600..=4_294_967_296 => return Ok(()),
            _ => "may not specify a duration larger than 2^32 seconds",
        };
        Err(Status::invalid(GROUP, KIND, "", &[FieldError::invalid(field, self.expiration_seconds, detail)]))
    }
}

// === impl BoundObject ===

impl BoundObject {
    fn resolve(&self, store: &Store, namespace: &str, account: &str) -> Result<Binding, Status> {
        let (group, version) = match self.api_version.split_once('/') {
            // What is no group and version is neither.
            Some((_, version)) if version.contains('/') => ("", ""),
            Some((group, version)) => (group, version),
            None => ("", self.api_version.as_str()),
        };
        let named = |resource: &str| match self.name.as_str() {
            "" => Err(Status::bad_request("Name parameter required.")),
            name => Ok(Status::not_found(resource, name)),
        };
        let mut binding = Binding::default();
        let bound_uid = match (group, self.kind.as_str()) {
            ("", "Pod") => {
                named("pods")?;
                let pod = get(store, Resource::Pods, namespace, &self.name)?;
                if pod.pointer("/spec/serviceAccountName").and_then(Value::as_str) != Some(account) {
                    return Err(Status::bad_request(format!(
                        "cannot bind token for serviceaccount {account:?} to pod running with different serviceaccount name."
                    )));
                }
                if let Some(node) = pod.pointer("/spec/nodeName").and_then(Value::as_str) {
                    // A node that is not registered is known by its name alone.
                    binding.node = Some(match store.get(&Key::new(Resource::Nodes, "", node)) {
                        Some(object) => json!({ "name": node, "uid": uid(&object) }),
                        None => json!({ "name": node }),
                    });
                }
                binding.pod = Some(json!({ "name": self.name, "uid": uid(&pod) }));
                uid(&pod)
            }
            ("", "Node") => {
                named("nodes")?;
                let node = get(store, Resource::Nodes, "", &self.name)?;
                binding.node = Some(json!({ "name": self.name, "uid": uid(&node) }));
                uid(&node)
            }
            ("", "Secret") => return Err(named("secrets")?),
            (group, kind) => {
                let message = format!("cannot bind token to object of type {group}/{version}, Kind={kind}");
                return Err(Status::bad_request(message));
            }
        };
        if !self.uid.is_empty() && self.uid != bound_uid {
            return Err(Status::conflict(group, &self.kind, &self.name, &self.uid_differs()));
        }
        Ok(binding)
    }

    pub(super) fn is_pod(&self) -> bool {
        (self.api_version.as_str(), self.kind.as_str()) == ("v1", "Pod")
    }

    pub(super) fn uid_differs(&self) -> String {
        format!(
            "the UID in the bound object reference ({}) does not match the UID in record. The object might have been deleted and then recreated",
            self.uid
        )
    }

    fn object(&self) -> Value {
        let fields =
            [("kind", &self.kind), ("apiVersion", &self.api_version), ("name", &self.name), ("uid", &self.uid)];
        let fields = fields.into_iter().filter(|(_, value)| !value.is_empty());
        fields
            .map(|(key, value)| (key.to_owned(), Value::from(value.as_str())))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

fn get(store: &Store, resource: Resource, namespace: &str, name: &str) -> Result<std::sync::Arc<Value>, Status> {
    store.get(&Key::new(resource, namespace, name)).ok_or_else(|| Status::not_found(resource.name(), name))
}

fn uid(object: &Value) -> String {
    object.pointer("/metadata/uid").and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn seconds(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_secs().try_into().unwrap_or(i64::MAX)
}

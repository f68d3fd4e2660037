//! From a request to its answer: who asks, what went wrong on purpose, who may, what is served.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use serde_json::json;

use super::{
    Inner, Kubernetes, RecordedRequest,
    accept::Form,
    auth::User,
    event, impersonation, list,
    options::{ListOptions, Query, parse_version},
    patch,
    request::RequestInfo,
    resource::Resource,
    review,
    status::{FieldError, Status, json_response, typed_response},
    store::Key,
    watch,
};
use crate::{
    http::Body,
    issuer::{DISCOVERY_PATH, JWKS_PATH},
};

/// The API server's own limit of a request's body.
const MAX_BODY: usize = 3 * 1024 * 1024;

/// What a path leads to.
enum Endpoint {
    Collection(Resource),
    Object(Resource, String),
    Token(String),
    /// What the caller may do.
    AccessReview,
}

impl Kubernetes {
    /// Answers one request. To be called from within a tokio runtime.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let query = Query::parse(request.uri().query());
        let info = RequestInfo::new(request.method(), request.uri().path(), &query);
        let response = self.answer(request, &query, &info).await;
        self.inner.traffic.count(&info.verb, &info.qualified(), response)
    }

    async fn answer(&self, request: Request<Incoming>, query: &Query, info: &RequestInfo) -> Response<Body> {
        let mut record = RecordedRequest {
            verb: info.verb.clone(),
            resource: info.qualified(),
            path: info.path.clone(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            user: String::new(),
            impersonated: String::new(),
        };
        let Inner { users, access, issuer, store, .. } = &*self.inner;
        let user = users.authenticate(request.headers(), issuer, store);
        let user = user.and_then(|user| {
            record.user.clone_from(&user.name);
            let impersonated = impersonation::impersonated(request.headers(), &user, info, access)?;
            Ok(impersonated.inspect(|node| record.impersonated.clone_from(&node.name)).unwrap_or(user))
        });
        self.record(&record);
        let user = match user {
            Ok(user) => user,
            Err(status) => return status.response(),
        };
        if let Some(response) = self.inner.faults.strike(&record.verb, &record.resource).await {
            return response;
        }
        if let Err(status) = access.authorize(&user, info, query, store) {
            return status.response();
        }
        let served = match info.is_resource {
            true => self.resource(request, info, query, record, &user).await,
            false => Ok(self.path(request.method(), &info.path, request.headers())),
        };
        served.unwrap_or_else(|status| status.response())
    }

    fn path(&self, method: &Method, path: &str, headers: &HeaderMap) -> Response<Body> {
        let document = |content_type, document: serde_json::Value| {
            let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or("*/*");
            let accepted = accept.split(',').map(|clause| clause.split(';').next().unwrap_or_default().trim());
            if path == JWKS_PATH && !accepted.into_iter().any(|one| one == "*/*" || one == content_type) {
                let text = format!("406: Not Acceptable\n\nAvailable representations: {content_type}");
                return Status::not_acceptable(text, Some(json!({}))).response();
            }
            typed_response(StatusCode::OK, content_type, document.to_string())
        };
        match (method, path) {
            (&Method::GET, DISCOVERY_PATH) => document("application/json", self.inner.issuer.discovery()),
            (&Method::GET, JWKS_PATH) => document("application/jwk-set+json", self.inner.issuer.jwks()),
            (&Method::GET, "/version") => {
                document("application/json", version(self.inner.minor.load(Ordering::Relaxed)))
            }
            (&Method::GET, "/healthz" | "/livez" | "/readyz") => {
                typed_response(StatusCode::OK, "text/plain; charset=utf-8", "ok".to_owned())
            }
            (_, DISCOVERY_PATH | JWKS_PATH) => Status::method_not_allowed().response(),
            _ => not_found(),
        }
    }

    async fn resource(
        &self,
        request: Request<Incoming>,
        info: &RequestInfo,
        query: &Query,
        record: RecordedRequest,
        user: &User,
    ) -> Result<Response<Body>, Status> {
        let version_1 = match info.group.as_str() {
            "" => "/api/v1/",
            "apps" => "/apis/apps/v1/",
            "authorization.k8s.io" => "/apis/authorization.k8s.io/v1/",
            "events.k8s.io" => "/apis/events.k8s.io/v1/",
            _ => return Ok(not_found()),
        };
        if !info.path.starts_with(version_1) {
            return Err(Status::no_such_resource());
        }
        let endpoint = Endpoint::of(info)?;
        let write = match (&endpoint, request.method()) {
            (Endpoint::Collection(_) | Endpoint::Object(..), &Method::GET) => false,
            (Endpoint::Token(_) | Endpoint::AccessReview, &Method::POST) => true,
            (Endpoint::Collection(Resource::Events), &Method::POST) if info.in_namespace => true,
            (Endpoint::Object(Resource::Events | Resource::Nodes, _), &Method::PATCH) => true,
            _ => return Err(Status::method_not_allowed()),
        };
        let form = Form::negotiate(request.headers(), matches!(endpoint, Endpoint::Collection(_)))?;
        match endpoint {
            Endpoint::Collection(Resource::Events) if write => {
                let body = json_body(request).await?;
                let event = event::create(&self.inner.store, &info.namespace, &body)?;
                Ok(json_response(StatusCode::CREATED, &form.object(Resource::Events, &event)?))
            }
            Endpoint::Object(Resource::Events, name) if write => {
                if !has_type(request.headers(), "application/merge-patch+json") {
                    return Err(Status::unsupported_patch());
                }
                let patch = body(request).await?;
                let event = event::patch(&self.inner.store, &info.namespace, &name, &patch)?;
                Ok(json_response(StatusCode::OK, &form.object(Resource::Events, &event)?))
            }
            Endpoint::Object(Resource::Nodes, name) if write => {
                if !has_type(request.headers(), "application/json-patch+json") {
                    return Err(Status::unsupported_patch());
                }
                let node = patch::node(&self.inner.store, &name, &body(request).await?)?;
                Ok(json_response(StatusCode::OK, &form.object(Resource::Nodes, &node)?))
            }
            Endpoint::Collection(resource) => {
                let namespace = if info.in_namespace { info.namespace.as_str() } else { "" };
                self.collection(resource, namespace, query, form, record).await
            }
            Endpoint::Object(resource, name) => {
                let key = Key::new(resource, &info.namespace, &name);
                self.object(&key, query.get("resourceVersion").unwrap_or_default(), form).await
            }
            Endpoint::Token(name) => self.token((&info.namespace, &name), query, form, request, user).await,
            Endpoint::AccessReview => {
                dry_run(query)?;
                let answer = review::create(&self.inner.access, user, &json_body(request).await?)?;
                let answer = form.typed(answer, "authorization.SelfSubjectAccessReview")?;
                Ok(json_response(StatusCode::CREATED, &answer))
            }
        }
    }

    async fn collection(
        &self,
        resource: Resource,
        namespace: &str,
        query: &Query,
        form: Form,
        record: RecordedRequest,
    ) -> Result<Response<Body>, Status> {
        let options = ListOptions::decode(resource, query)?;
        let (store, faults) = (&self.inner.store, &self.inner.faults);
        if options.watch {
            let guard = self.open_watch(record);
            return watch::watch(store.clone(), faults, resource, namespace.to_owned(), options, form, guard).await;
        }
        let list = list::list(store, resource, namespace, &options, faults.lagging(), form).await?;
        Ok(json_response(StatusCode::OK, &list))
    }

    async fn object(&self, key: &Key, version: &str, form: Form) -> Result<Response<Body>, Status> {
        let store = &self.inner.store;
        let wanted = parse_version(version).map_err(Status::unclassified)?;
        store.reached(wanted).await.map_err(|now| Status::too_large_resource_version(wanted, now))?;
        // Any state will do at version 0, also that of a cache that lags.
        let lagging = self.inner.faults.lagging().filter(|_| version == "0");
        let snapshot = lagging.and_then(|revision| store.snapshot(key.resource, &key.namespace, Some(revision)).ok());
        let object = match snapshot {
            Some(snapshot) => snapshot.objects.get(key).cloned(),
            None => store.get(key),
        };
        let object =
            object.ok_or_else(|| Status::not_found_in(key.resource.group(), key.resource.name(), &key.name))?;
        Ok(json_response(StatusCode::OK, &form.object(key.resource, &object)?))
    }

    async fn token(
        &self,
        (namespace, name): (&str, &str),
        query: &Query,
        form: Form,
        request: Request<Incoming>,
        user: &User,
    ) -> Result<Response<Body>, Status> {
        let body = json_body(request).await?;
        // A dry run of a TokenRequest does what a real one does: nothing is stored either way.
        dry_run(query)?;
        let answer = self.create_token(namespace, name, &body, Some(user))?;
        Ok(json_response(StatusCode::CREATED, &form.typed(answer, "authentication.TokenRequest")?))
    }
}

// === impl Endpoint ===

impl Endpoint {
    fn of(info: &RequestInfo) -> Result<Self, Status> {
        if (info.group.as_str(), info.resource.as_str()) == (review::GROUP, review::RESOURCE)
            && info.parts.len() == 1
            && !info.in_namespace
        {
            return Ok(Self::AccessReview);
        }
        let resource = Resource::from_name(&info.group, &info.resource).ok_or_else(Status::no_such_resource)?;
        if info.in_namespace && !resource.namespaced() {
            return Err(Status::no_such_resource());
        }
        let parts = info.parts.iter().map(String::as_str).collect::<Vec<_>>();
        match (parts.as_slice(), resource) {
            ([_], resource) => Ok(Self::Collection(resource)),
            ([_, name], resource) if info.in_namespace || !resource.namespaced() => {
                Ok(Self::Object(resource, (*name).to_owned()))
            }
            ([_, name, "token"], Resource::ServiceAccounts) if info.in_namespace => Ok(Self::Token((*name).to_owned())),
            _ => Err(Status::no_such_resource()),
        }
    }
}

fn dry_run(query: &Query) -> Result<(), Status> {
    match query.get("dryRun").filter(|value| *value != "All") {
        None => Ok(()),
        Some(other) => {
            let error = FieldError::unsupported("dryRun", [other], &["All"]);
            Err(Status::invalid("meta.k8s.io", "CreateOptions", "", &[error]))
        }
    }
}

async fn json_body(request: Request<Incoming>) -> Result<Bytes, Status> {
    // Absent means JSON.
    let json = !request.headers().contains_key(header::CONTENT_TYPE) || has_type(request.headers(), "application/json");
    if json { body(request).await } else { Err(Status::unsupported_media_type()) }
}

async fn body(request: Request<Incoming>) -> Result<Bytes, Status> {
    let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
    Ok(body.map_err(|error| Status::bad_request(error.to_string()))?.to_bytes())
}

fn has_type(headers: &HeaderMap, media_type: &str) -> bool {
    let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    given.split(';').next().unwrap_or_default().trim().eq_ignore_ascii_case(media_type)
}

/// A path that no API is at.
fn not_found() -> Response<Body> {
    typed_response(StatusCode::NOT_FOUND, "text/plain; charset=utf-8", "404 page not found\n".to_owned())
}

fn version(minor: u64) -> serde_json::Value {
    json!({
        "major": "1",
        "minor": minor.to_string(),
        "gitVersion": format!("v1.{minor}.0-sandbox"),
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": "",
    })
}

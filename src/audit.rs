//! The audit log: which pod got which keys of which role, and which it was refused, one JSON object a line.
//!
//! Owns what a line says and the way to its writer (`writer`), a thread of its own. To record never waits and never
//! fails. Invariants: a line holds ids and names, and never a secret; it is under way before its credentials can be served,
//! and in the file too unless writing takes longer than [`PATIENCE`]; what is lost is counted and said.
//!
//! The fields that CloudTrail has too have its names, so that the two can be joined:
//! [CloudTrail record contents](https://docs.aws.amazon.com/awscloudtrail/latest/userguide/cloudtrail-event-reference-record-contents.html).

mod writer;

use std::{path::PathBuf, sync::Arc, time::Duration};

use serde::Serialize;

use self::writer::Writer;
use crate::{
    clock,
    identity::{Grant, NodeName, Pod, PodUid, RoleArn},
    metrics::Metrics,
    sts::{Action, Call, Class, Issued},
};

/// How long credentials wait for their line to be written.
const PATIENCE: Duration = Duration::from_millis(100);

/// Where the audit log goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Standard output.
    StandardOutput,
    /// This file, which is made if it is not there, and appended to.
    File(PathBuf),
}

/// Where it is told who got what.
#[derive(Debug)]
pub struct Audit(Option<Open>);

#[derive(Debug)]
struct Open {
    node: NodeName,
    writer: Writer,
}

/// What happened.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Event {
    /// STS gave keys, which the pod can have from now on.
    Issued,
    /// STS gave the first of two roles' keys: they sign the second call, and no pod sees them.
    Chained,
    /// A session that was issued for another pod of the service account is this one's too.
    Shared,
    /// STS refused, and will until somebody mends something.
    Refused,
    /// The namespace does not permit the role: STS was not asked.
    NotPermitted,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    time: String,
    event: Event,
    node: &'a str,
    namespace: &'a str,
    pod: &'a str,
    pod_uid: &'a str,
    service_account: &'a str,
    role_arn: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    role_session_name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_key_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expiration: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    event_name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error_code: Option<&'a str>,
    #[serde(rename = "requestID", skip_serializing_if = "Option::is_none")]
    request_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    aws_region: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<&'a str>,
}

/// A session that pods share, as far as it is told of each of them.
#[derive(Clone, Debug)]
pub struct SharedSession {
    issued: Issued,
    session_name: String,
    /// Whose token it was issued for.
    pod: PodUid,
}

// === impl Audit ===

impl Audit {
    /// No audit log.
    #[must_use]
    pub fn none() -> Self {
        Self(None)
    }

    /// One at this destination. That it cannot be written is said in the log and tried again: pods are served all the same.
    ///
    /// # Errors
    /// When standard output is closed, or there can be no thread.
    pub fn to(destination: Destination, node: NodeName, metrics: Arc<Metrics>) -> std::io::Result<Self> {
        Ok(Self(Some(Open { node, writer: Writer::start(destination, metrics)? })))
    }

    /// STS was called for this grant.
    pub fn called(&self, grant: &Grant, session_name: &str, call: &Call<'_>) {
        let event = match call.result {
            Ok(_) if grant.wish.target.is_some() && call.action == Action::WebIdentity => Event::Chained,
            Ok(_) => Event::Issued,
            Err(error) if error.class == Class::Permanent => Event::Refused,
            // Nothing was decided.
            Err(_) => return,
        };
        self.record(event, &grant.pod, call.role, |line| Line {
            role_session_name: Some(session_name),
            event_name: Some(call.action.to_string()),
            request_id: call.request_id,
            aws_region: call.region,
            endpoint: call.endpoint,
            error_code: call.result.err().map(|error| error.code.as_str()),
            ..match call.result {
                Ok(issued) => of_keys(line, issued),
                Err(_) => line,
            }
        });
    }

    /// The session is this grant's pod's too.
    pub fn shared(&self, grant: &Grant, session: &SharedSession) {
        if grant.pod.uid == session.pod || session.issued.expiration <= clock::now().wall {
            return;
        }
        self.record(Event::Shared, &grant.pod, grant.role(), |line| Line {
            role_session_name: Some(&session.session_name),
            ..of_keys(line, &session.issued)
        });
    }

    /// The namespace does not permit the role.
    pub fn not_permitted(&self, pod: &Pod, role: &RoleArn) {
        self.record(Event::NotPermitted, pod, role, |line| line);
    }

    /// Waits until all that was recorded so far is written, a moment at most; not at all while that is known to take longer.
    pub async fn written(&self) {
        if let Some(open) = &self.0 {
            open.writer.written(PATIENCE).await;
        }
    }

    /// Waits until all is written, so long at most; what is not then is lost.
    pub async fn end(&self, limit: Duration) {
        if let Some(open) = &self.0 {
            open.writer.end(limit).await;
        }
    }

    fn record<'a>(&'a self, event: Event, pod: &'a Pod, role: &'a RoleArn, with: impl FnOnce(Line<'a>) -> Line<'a>) {
        let Some(open) = &self.0 else { return };
        let line = with(Line {
            time: clock::rfc3339(clock::now().wall).unwrap_or_default(),
            event,
            node: open.node.as_str(),
            namespace: pod.namespace.as_str(),
            pod: &pod.name,
            pod_uid: pod.uid.as_str(),
            service_account: pod.service_account.as_str(),
            role_arn: role.as_str(),
            role_session_name: None,
            access_key_id: None,
            expiration: None,
            event_name: None,
            error_code: None,
            request_id: None,
            aws_region: None,
            endpoint: None,
        });
        // Only a map with keys that are no strings could not be serialised.
        if let Ok(mut line) = serde_json::to_vec(&line) {
            line.push(b'\n');
            open.writer.push(line);
        }
    }
}

impl SharedSession {
    /// What was issued with the token of this pod.
    #[must_use]
    pub fn new(issued: Issued, session_name: String, pod: PodUid) -> Self {
        Self { issued, session_name, pod }
    }
}

fn of_keys<'a>(line: Line<'a>, issued: &'a Issued) -> Line<'a> {
    let expiration = clock::rfc3339(issued.expiration);
    Line { access_key_id: Some(&issued.access_key_id), expiration, ..line }
}

#[cfg(test)]
mod tests;

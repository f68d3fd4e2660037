//! What STS says: the query protocol's XML, its errors, and the headers around them.
//!
//! Shapes: [STS API reference, "Common errors"][errors] and its sample responses; white space, name
//! spaces and redirects as the real service sends them.
//!
//! [errors]: https://docs.aws.amazon.com/STS/latest/APIReference/CommonErrors.html

use std::{borrow::Cow, fmt::Write as _, time::SystemTime};

use aws_smithy_types::{DateTime, date_time::Format};
use http::{HeaderValue, Response, StatusCode, header};

use crate::http::{Body, full};

/// The name space of STS's own answers and errors.
pub(super) const STS_NAMESPACE: &str = "https://sts.amazonaws.com/doc/2011-06-15/";
/// The name space of errors that come from the layer before STS: no such operation.
const FAULT_NAMESPACE: &str = "http://webservices.amazon.com/AWSFault/2005-15-09";

/// A refusal, with AWS's own status, code and text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) status: StatusCode,
    pub(crate) code: &'static str,
    pub(crate) message: Option<Cow<'static, str>>,
    namespace: &'static str,
}

impl Refusal {
    /// A refusal that is the caller's fault.
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self { status, code, message: Some(message.into()), namespace: STS_NAMESPACE }
    }

    /// 400 with this code and text.
    pub(crate) fn bad(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, code, message)
    }

    /// 403 with this code and text.
    pub(crate) fn forbidden(code: &'static str, message: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::FORBIDDEN, code, message)
    }

    /// The token is not acceptable.
    pub(crate) fn identity_token(message: impl Into<Cow<'static, str>>) -> Self {
        Self::bad("InvalidIdentityToken", message)
    }

    /// A number that is none: STS gives a code, and a text only for the empty one.
    pub(crate) fn malformed_number(value: &str) -> Self {
        let message = value.is_empty().then_some(Cow::Borrowed("missing value for decimal type"));
        Self { status: StatusCode::BAD_REQUEST, code: "MalformedInput", message, namespace: STS_NAMESPACE }
    }

    /// The API has no such operation, or not in this version.
    pub(crate) fn invalid_action(action: &str, version: Option<&str>) -> Self {
        let version = version.unwrap_or("NO_VERSION_SPECIFIED");
        let message = format!("Could not find operation {action} for version {version}");
        Self { namespace: FAULT_NAMESPACE, ..Self::bad("InvalidAction", message) }
    }

    fn kind(&self) -> &'static str {
        if self.status.is_server_error() { "Receiver" } else { "Sender" }
    }

    fn xml(&self, request_id: &str) -> String {
        let message = self
            .message
            .as_ref()
            .map(|message| format!("    <Message>{}</Message>\n", escape(message)))
            .unwrap_or_default();
        format!(
            "<ErrorResponse xmlns=\"{}\">\n  <Error>\n    <Type>{}</Type>\n    <Code>{}</Code>\n{message}  </Error>\n  \
             <RequestId>{request_id}</RequestId>\n</ErrorResponse>\n",
            self.namespace,
            self.kind(),
            self.code,
        )
    }
}

/// What one request came to.
#[derive(Debug)]
pub(super) enum Answer {
    /// The operation's result.
    Result { action: &'static str, result: Element },
    /// A refusal.
    Refused(Refusal),
    /// No operation was asked for: AWS sends a browser to its product page.
    Elsewhere { query: Option<String> },
    /// A path that belongs to no operation.
    UnknownOperation,
}

impl Answer {
    /// What the call log says of it.
    pub(super) fn outcome(&self) -> &'static str {
        match self {
            Self::Result { .. } => "Success",
            Self::Refused(refusal) => refusal.code,
            Self::Elsewhere { .. } => "Redirect",
            Self::UnknownOperation => "UnknownOperationException",
        }
    }

    /// What the element of this name says in the result.
    pub(super) fn text(&self, name: &str) -> Option<&str> {
        match self {
            Self::Result { result, .. } => result.find(name),
            Self::Refused(_) | Self::Elsewhere { .. } | Self::UnknownOperation => None,
        }
    }

    /// The HTTP response, dated `now`, to the request of this id.
    pub(super) fn response(&self, now: SystemTime, request_id: &str) -> Response<Body> {
        let (status, body) = match self {
            Self::Result { action, result } => (StatusCode::OK, envelope(action, result, request_id)),
            Self::Refused(refusal) => (refusal.status, refusal.xml(request_id)),
            Self::Elsewhere { .. } => (StatusCode::FOUND, String::new()),
            Self::UnknownOperation => (StatusCode::NOT_FOUND, "<UnknownOperationException/>\n".to_owned()),
        };
        let mut response = Response::new(full(body));
        *response.status_mut() = status;
        let headers = response.headers_mut();
        if let Ok(id) = HeaderValue::from_str(request_id) {
            headers.insert("x-amzn-requestid", id);
        }
        if let Ok(date) = HeaderValue::from_str(&http_date(now)) {
            headers.insert(header::DATE, date);
        }
        match self {
            Self::Result { .. } | Self::Refused(_) => {
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml"));
            }
            Self::Elsewhere { query } => {
                let query = query.as_ref().map(|query| format!("?{query}")).unwrap_or_default();
                if let Ok(to) = HeaderValue::from_str(&format!("https://aws.amazon.com/iam{query}")) {
                    headers.insert(header::LOCATION, to);
                }
            }
            Self::UnknownOperation => {}
        }
        response
    }
}

/// An XML element of an answer.
#[derive(Debug)]
pub(super) enum Element {
    /// An element that holds text.
    Text(&'static str, String),
    /// An element that holds others.
    Parent(&'static str, Vec<Element>),
}

impl Element {
    /// An element that holds `text`.
    pub(super) fn text(name: &'static str, text: impl Into<String>) -> Self {
        Self::Text(name, text.into())
    }

    fn find(&self, wanted: &str) -> Option<&str> {
        match self {
            Self::Text(name, text) => (*name == wanted).then_some(text),
            Self::Parent(_, children) => children.iter().find_map(|child| child.find(wanted)),
        }
    }

    fn write(&self, xml: &mut String, depth: usize) {
        let indent = "  ".repeat(depth);
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Text(name, text) => writeln!(xml, "{indent}<{name}>{}</{name}>", escape(text)),
            Self::Parent(name, children) => {
                let _ = writeln!(xml, "{indent}<{name}>");
                for child in children {
                    child.write(xml, depth + 1);
                }
                writeln!(xml, "{indent}</{name}>")
            }
        };
    }
}

fn envelope(action: &str, result: &Element, request_id: &str) -> String {
    let mut xml = format!("<{action}Response xmlns=\"{STS_NAMESPACE}\">\n");
    result.write(&mut xml, 1);
    let metadata = Element::Parent("ResponseMetadata", vec![Element::text("RequestId", request_id)]);
    metadata.write(&mut xml, 1);
    let _ = writeln!(xml, "</{action}Response>");
    xml
}

pub(crate) fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(['&', '<', '>', '"']) {
        return Cow::Borrowed(text);
    }
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").into()
}

/// AWS's form of a time in an answer: `2026-11-25T12:00:00Z`, whole seconds.
pub(crate) fn timestamp(time: SystemTime) -> String {
    // Years after 9999 are the only ones that it cannot write.
    DateTime::from_secs(DateTime::from(time).secs()).fmt(Format::DateTime).unwrap_or_default()
}

/// A time in an HTTP header.
pub(crate) fn http_date(time: SystemTime) -> String {
    DateTime::from_secs(DateTime::from(time).secs()).fmt(Format::HttpDate).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_error_has_awss_white_space_and_escapes_what_the_caller_sent() {
        let xml = Refusal::bad("ValidationError", "Value '<a&b>' is wrong").xml("id-1");
        assert_eq!(
            xml,
            "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\n  <Error>\n    <Type>Sender</Type>\n    \
             <Code>ValidationError</Code>\n    <Message>Value '&lt;a&amp;b&gt;' is wrong</Message>\n  </Error>\n  \
             <RequestId>id-1</RequestId>\n</ErrorResponse>\n"
        );
    }

    #[test]
    fn times_have_whole_seconds_and_end_in_z() {
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(1_795_608_000_987);
        assert_eq!(timestamp(time), "2026-11-25T12:00:00Z");
        assert_eq!(http_date(time), "Wed, 25 Nov 2026 12:00:00 GMT");
    }
}

//! The Simple Storage Service, as far as reading goes: who asks, and with whose keys, is what it is here for.
//!
//! It verifies each request's signature with the keys that the sandbox's STS handed out, session token included, and keeps
//! who called. Any of its callers may read everything; nobody may write. Buckets are of one region; they are addressed by
//! path or by host. Answers and errors are shaped as in the [S3 API reference][api].
//!
//! What the real one does and this one does not: pages of lists, versions, conditions, anonymous readers.
//!
//! [api]: https://docs.aws.amazon.com/AmazonS3/latest/API/Welcome.html

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Instant, SystemTime},
};

use aws_lc_rs::digest;
use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

use crate::{
    clock,
    http::{Body, full},
    sts::{Refusal, Sts, escape, hex, http_date, timestamp},
};

const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";
const LARGEST_BODY: usize = 10_000_000;

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The bucket that was named.
    pub bucket: Option<String>,
    /// The object that was named, or what the names of those that were listed begin with.
    pub key: Option<String>,
    /// The ARN of who signed it with keys that STS gave, if somebody did.
    pub caller: Option<String>,
    /// `Success`, or AWS's error code.
    pub outcome: &'static str,
    /// When it was answered.
    pub at: Instant,
}

/// A Simple Storage Service of one region. Clones are the same service.
#[derive(Clone, Debug)]
pub struct S3(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    region: &'static str,
    sts: Sts,
    buckets: Mutex<BTreeMap<String, BTreeMap<String, Object>>>,
    calls: Mutex<Vec<Call>>,
}

#[derive(Clone, Debug)]
struct Object {
    contents: Bytes,
    modified: SystemTime,
}

/// What a request is about.
#[derive(Debug, Default)]
struct Target {
    bucket: Option<String>,
    key: Option<String>,
}

type Answer = Result<Response<Body>, Refusal>;

impl S3 {
    /// A service without buckets, for callers whom `sts` gave keys.
    #[must_use]
    pub fn new(region: &'static str, sts: Sts) -> Self {
        Self(Arc::new(Inner { region, sts, buckets: Mutex::default(), calls: Mutex::default() }))
    }

    /// Puts an object into a bucket, which is made if there is none of that name.
    pub fn put_object(&self, bucket: &str, key: &str, contents: impl Into<Bytes>) {
        let object = Object { contents: contents.into(), modified: clock::now() };
        locked(&self.0.buckets).entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
    }

    /// All calls so far.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        locked(&self.0.calls).clone()
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Incoming>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let body = Limited::new(body, LARGEST_BODY).collect().await.map(http_body_util::Collected::to_bytes);
        let target = Target::of(&parts);
        let caller = match &body {
            Ok(body) => self.0.sts.s3_caller(self.0.region, &parts, body).map_err(s3_words),
            Err(_) => Err(Refusal::bad("EntityTooLarge", "Your proposed upload exceeds the maximum allowed size.")),
        };
        let answer = caller.clone().and_then(|caller| self.0.answer(&parts, &target, &caller));
        let outcome = answer.as_ref().map_or_else(|refusal| refusal.code, |_| "Success");
        let mut response = answer.unwrap_or_else(|refusal| error(&refusal));
        self.0.dress(&mut response);
        if parts.method == Method::HEAD {
            *response.body_mut() = full(Bytes::new());
        }
        tracing::debug!(method = %parts.method, uri = %parts.uri, ?caller, outcome, "s3");
        let key = target.key.or_else(|| Query::of(&parts).get("prefix").map(str::to_owned));
        let call =
            Call { method: parts.method, bucket: target.bucket, key, caller: caller.ok(), outcome, at: Instant::now() };
        locked(&self.0.calls).push(call);
        response
    }
}

impl Inner {
    fn answer(&self, parts: &Parts, target: &Target, caller: &str) -> Answer {
        if !matches!(parts.method, Method::GET | Method::HEAD) {
            let message = format!("User: {caller} is not authorized to perform this action");
            return Err(Refusal::forbidden("AccessDenied", message));
        }
        let buckets = locked(&self.buckets);
        let Some(bucket) = &target.bucket else { return Ok(xml(&list_buckets(&buckets, caller))) };
        let objects = buckets.get(bucket).ok_or_else(|| {
            Refusal::new(StatusCode::NOT_FOUND, "NoSuchBucket", "The specified bucket does not exist")
        })?;
        let Some(key) = &target.key else { return self.bucket(parts, bucket, objects) };
        let object = objects
            .get(key)
            .ok_or_else(|| Refusal::new(StatusCode::NOT_FOUND, "NoSuchKey", "The specified key does not exist."))?;
        object.answer(parts)
    }

    fn bucket(&self, parts: &Parts, bucket: &str, objects: &BTreeMap<String, Object>) -> Answer {
        let query = Query::of(parts);
        if query.get("location").is_some() {
            let region = self.region;
            return Ok(xml(&format!(r#"<LocationConstraint xmlns="{NAMESPACE}">{region}</LocationConstraint>"#)));
        }
        if parts.method == Method::HEAD {
            return Ok(Response::new(full(Bytes::new())));
        }
        if query.get("uploads").is_some() {
            return Ok(xml(&list_uploads(&query, bucket)));
        }
        const LISTS: [&str; 11] = [
            "continuation-token",
            "delimiter",
            "encoding-type",
            "fetch-owner",
            "list-type",
            "marker",
            "max-keys",
            "prefix",
            "start-after",
            "x-id",
            "X-Amz-Signature",
        ];
        match query.0.iter().find(|(name, _)| !LISTS.contains(&name.as_str()) && !name.starts_with("X-Amz-")) {
            None => Ok(xml(&list_objects(&query, bucket, objects))),
            Some((name, _)) => {
                let message =
                    format!("A header or query you provided implies functionality that is not implemented: {name}");
                Err(Refusal::new(StatusCode::NOT_IMPLEMENTED, "NotImplemented", message))
            }
        }
    }

    /// The headers of every answer.
    fn dress(&self, response: &mut Response<Body>) {
        let headers = response.headers_mut();
        headers.insert("x-amz-bucket-region", HeaderValue::from_static(self.region));
        headers.insert("x-amz-request-id", HeaderValue::from_static("4442587FB7D0A2F9"));
        headers.insert(header::SERVER, HeaderValue::from_static("AmazonS3"));
        if let Ok(date) = HeaderValue::from_str(&http_date(clock::now())) {
            headers.insert(header::DATE, date);
        }
    }
}

impl Object {
    /// As that of an object that came in one part, several times: no hash of the contents.
    fn etag(&self) -> String {
        let digest = digest::digest(&digest::SHA256, &self.contents);
        format!("\"{}-1\"", hex(&digest.as_ref()[..16]))
    }

    fn answer(&self, parts: &Parts) -> Answer {
        let length = self.contents.len();
        let headers = [
            (header::ETAG, self.etag()),
            (header::LAST_MODIFIED, http_date(self.modified)),
            (header::ACCEPT_RANGES, "bytes".to_owned()),
            (header::CONTENT_TYPE, "binary/octet-stream".to_owned()),
        ];
        let (mut response, part) = match parts.headers.get(header::RANGE).and_then(|range| range.to_str().ok()) {
            None => (Response::new(()), 0..length),
            Some(range) => {
                let part = part(range, length).ok_or_else(|| {
                    let message = "The requested range is not satisfiable";
                    Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, "InvalidRange", message)
                })?;
                let mut response = Response::new(());
                *response.status_mut() = StatusCode::PARTIAL_CONTENT;
                let range = format!("bytes {}-{}/{length}", part.start, part.end - 1);
                set(&mut response, header::CONTENT_RANGE, &range);
                (response, part)
            }
        };
        for (name, value) in headers {
            set(&mut response, name, &value);
        }
        set(&mut response, header::CONTENT_LENGTH, &part.len().to_string());
        Ok(response.map(|()| full(self.contents.slice(part))))
    }
}

impl Target {
    fn of(parts: &Parts) -> Self {
        let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
        let some = |text: String| (!text.is_empty()).then_some(text);
        let path = parts.uri.path().trim_start_matches('/');
        let host = parts.headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        // `<bucket>.s3.…`, or `s3.…` and the bucket in the path.
        let (bucket, key) = match host.split_once(".s3.") {
            Some((bucket, _)) => (bucket.to_owned(), decode(path)),
            None => {
                let (bucket, key) = path.split_once('/').unwrap_or((path, ""));
                (decode(bucket), decode(key))
            }
        };
        Self { bucket: some(bucket), key: some(key) }
    }
}

/// A request's query.
struct Query(Vec<(String, String)>);

impl Query {
    fn of(parts: &Parts) -> Self {
        let query = parts.uri.query().unwrap_or_default();
        Self(form_urlencoded::parse(query.as_bytes()).into_owned().collect())
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_str())
    }
}

/// What `bytes=…` means of so many: one part of them, or `None`.
fn part(range: &str, length: usize) -> Option<Range<usize>> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let part = match (first, last) {
        ("", last) => length.saturating_sub(last.parse().ok()?)..length,
        (first, "") => first.parse().ok()?..length,
        (first, last) => first.parse().ok()?..last.parse::<usize>().ok()?.checked_add(1)?.min(length),
    };
    (!part.is_empty()).then_some(part)
}

fn list_buckets(buckets: &BTreeMap<String, BTreeMap<String, Object>>, caller: &str) -> String {
    let created = timestamp(SystemTime::UNIX_EPOCH);
    let bucket = |name| format!("<Bucket><Name>{}</Name><CreationDate>{created}</CreationDate></Bucket>", escape(name));
    let buckets = buckets.keys().map(|name| bucket(name)).collect::<String>();
    format!(
        "<ListAllMyBucketsResult xmlns=\"{NAMESPACE}\"><Owner><ID>{}</ID></Owner><Buckets>{buckets}</Buckets>\
         </ListAllMyBucketsResult>",
        escape(caller)
    )
}

/// Both versions of the list; all on one page.
fn list_objects(query: &Query, bucket: &str, objects: &BTreeMap<String, Object>) -> String {
    let (prefix, delimiter) = (query.get("prefix").unwrap_or_default(), query.get("delimiter").unwrap_or_default());
    let after = query.get("start-after").or_else(|| query.get("marker")).unwrap_or_default();
    let (mut contents, mut folders) = (String::new(), BTreeSet::new());
    let mut count = 0;
    for (key, object) in objects.iter().filter(|(key, _)| key.starts_with(prefix) && key.as_str() > after) {
        let rest = &key[prefix.len()..];
        if let Some(end) = (!delimiter.is_empty()).then(|| rest.find(delimiter)).flatten() {
            folders.insert(&key[..prefix.len() + end + delimiter.len()]);
            continue;
        }
        count += 1;
        contents += &format!(
            "<Contents><Key>{}</Key><LastModified>{}</LastModified><ETag>{}</ETag><Size>{}</Size>\
             <StorageClass>STANDARD</StorageClass></Contents>",
            escape(key),
            timestamp(object.modified),
            escape(&object.etag()),
            object.contents.len(),
        );
    }
    count += folders.len();
    let folder = |name| format!("<CommonPrefixes><Prefix>{}</Prefix></CommonPrefixes>", escape(name));
    let folders = folders.into_iter().map(folder).collect::<String>();
    let version = match query.get("list-type") {
        Some("2") => format!("<KeyCount>{count}</KeyCount>"),
        _ => format!("<Marker>{}</Marker>", escape(after)),
    };
    format!(
        "<ListBucketResult xmlns=\"{NAMESPACE}\"><Name>{}</Name><Prefix>{}</Prefix><Delimiter>{}</Delimiter>{version}\
         <MaxKeys>1000</MaxKeys><IsTruncated>false</IsTruncated>{contents}{folders}</ListBucketResult>",
        escape(bucket),
        escape(prefix),
        escape(delimiter),
    )
}

/// Nobody may write, so none is begun.
fn list_uploads(query: &Query, bucket: &str) -> String {
    let prefix = query.get("prefix").unwrap_or_default();
    format!(
        "<ListMultipartUploadsResult xmlns=\"{NAMESPACE}\"><Bucket>{}</Bucket><Prefix>{}</Prefix>\
         <MaxUploads>1000</MaxUploads><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>",
        escape(bucket),
        escape(prefix),
    )
}

/// S3's own status and code for what STS would say of a signature.
fn s3_words(refusal: Refusal) -> Refusal {
    let message = refusal.message.clone().unwrap_or_default();
    match refusal.code {
        "MissingAuthenticationToken" => Refusal::forbidden("AccessDenied", "Access Denied"),
        "IncompleteSignature" => Refusal::bad("AuthorizationHeaderMalformed", message),
        "InvalidClientTokenId" => Refusal::forbidden(
            "InvalidAccessKeyId",
            "The AWS Access Key Id you provided does not exist in our records.",
        ),
        "ExpiredToken" => Refusal::bad("ExpiredToken", "The provided token has expired."),
        _ => refusal,
    }
}

fn error(refusal: &Refusal) -> Response<Body> {
    let message = escape(refusal.message.as_deref().unwrap_or_default());
    let mut response = xml(&format!("<Error><Code>{}</Code><Message>{message}</Message></Error>", refusal.code));
    *response.status_mut() = refusal.status;
    response
}

fn xml(document: &str) -> Response<Body> {
    let mut response = Response::new(full(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/xml"));
    response
}

fn set(response: &mut Response<()>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_of_what_is_there() {
        assert_eq!(part("bytes=0-3", 10), Some(0..4));
        assert_eq!(part("bytes=4-", 10), Some(4..10));
        assert_eq!(part("bytes=-3", 10), Some(7..10));
        assert_eq!(part("bytes=4-99", 10), Some(4..10));
        for wrong in ["bytes=10-", "bytes=5-4", "4-5", "bytes=-0"] {
            assert_eq!(part(wrong, 10), None, "{wrong}");
        }
    }

    #[test]
    fn a_list_has_folders_where_a_delimiter_is_given() {
        let object = Object { contents: Bytes::from_static(b"x"), modified: SystemTime::UNIX_EPOCH };
        let objects = ["a/1", "a/2", "b", "c&"].map(|key| (key.to_owned(), object.clone())).into();
        let query = |text: &str| Query(form_urlencoded::parse(text.as_bytes()).into_owned().collect());
        let list = list_objects(&query("list-type=2&delimiter=/"), "bucket", &objects);
        assert!(list.contains("<KeyCount>3</KeyCount>") && list.contains("<Prefix>a/</Prefix>"), "{list}");
        assert!(list.contains("<Key>c&amp;</Key>") && !list.contains("<Key>a/"), "{list}");
        let list = list_objects(&query("prefix=a/"), "bucket", &objects);
        assert!(list.contains("<Key>a/1</Key>") && !list.contains("<Key>b"), "{list}");
    }
}

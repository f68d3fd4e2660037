//! Against the example of AWS's documentation and `get-vanilla` of its published test suite.

use http::Request;

use super::*;

const SECRET: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

fn at(text: &str) -> SystemTime {
    parse_basic(text).unwrap()
}

fn parts(uri: &str, headers: &[(&str, &str)]) -> Parts {
    let mut request = Request::get(uri);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    request.body(()).unwrap().into_parts().0
}

fn signature(service: &str, signed_headers: &str, sent: &str) -> Signature {
    Signature::new(
        Service::Sts,
        &format!("AKIDEXAMPLE/20150830/us-east-1/{service}/aws4_request"),
        sent.to_owned(),
        signed_headers,
        "20150830T123600Z".to_owned(),
        None,
    )
    .unwrap()
}

#[test]
fn the_documentations_example_is_verified() {
    let parts = parts(
        "/?Action=ListUsers&Version=2010-05-08",
        &[
            ("content-type", "application/x-www-form-urlencoded; charset=utf-8"),
            ("host", "iam.amazonaws.com"),
            ("x-amz-date", "20150830T123600Z"),
        ],
    );
    let sent = "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7";
    let signature = signature("iam", "content-type;host;x-amz-date", sent);
    assert_eq!(
        sha256(signature.canonical_request(&parts, b"").as_bytes()),
        "f536975d06c0309214f805bb90ccff089219ecd68b2577efef23edd43b7e1a59"
    );
    assert_eq!(signature.verify(&parts, b"", SECRET), Ok(()));
    assert_eq!(signature.verify(&parts, b"x", SECRET).unwrap_err().code, "SignatureDoesNotMatch");
    assert_eq!(signature.verify(&parts, b"", &SECRET.to_lowercase()).unwrap_err().message.unwrap(), MISMATCH);
}

#[test]
fn get_vanilla_of_the_test_suite_is_verified() {
    let parts = parts("/", &[("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]);
    let sent = "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31";
    assert_eq!(signature("service", "host;x-amz-date", sent).verify(&parts, b"", SECRET), Ok(()));
}

#[test]
fn a_query_is_sorted_and_encoded_anew_and_header_values_are_folded() {
    let parts = parts(
        "/?b=2&a=x%20y&a=%2B+&c",
        &[("host", "h"), ("x-amz-date", "20150830T123600Z"), ("my-header", "  a   b "), ("my-header", "c")],
    );
    let canonical = signature("sts", "host;my-header;x-amz-date", "").canonical_request(&parts, b"");
    assert!(canonical.starts_with("GET\n/\na=%2B%2B&a=x%20y&b=2&c=\nhost:h\nmy-header:a b,c\n"), "{canonical}");
}

fn refused(authorization: Option<&str>, headers: &[(&str, &str)]) -> Refusal {
    let mut all = vec![("host", "sts.eu-west-1.amazonaws.com"), ("x-amz-date", "20150830T123600Z")];
    all.extend(authorization.map(|value| ("authorization", value)));
    all.extend(headers);
    Signature::read(&parts("/", &all), Service::Sts, at("20150830T123600Z")).unwrap_err()
}

fn authorization(scope: &str, signed: &str) -> String {
    format!("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/{scope}, SignedHeaders={signed}, Signature=0")
}

#[test]
fn what_can_be_refused_without_a_secret_is_refused_in_awss_words() {
    let good = "20150830/eu-west-1/sts/aws4_request";
    for (authorization, code, text) in [
        (None, "MissingAuthenticationToken", "Request is missing Authentication Token"),
        (Some("Bearer x".to_owned()), "MissingAuthenticationToken", "Request is missing Authentication Token"),
        (Some("AWS4-HMAC-SHA1 x".to_owned()), "IncompleteSignature", "Unsupported AWS 'algorithm': 'AWS4-HMAC-SHA1'"),
        (
            Some("AWS4-HMAC-SHA256 Signature=0".to_owned()),
            "IncompleteSignature",
            "Authorization header requires 'Credential' parameter. Authorization header requires 'SignedHeaders' parameter. ",
        ),
        (Some(authorization("a/b", "host;x-amz-date")), "IncompleteSignature", "Credential must have exactly 5"),
        (Some(authorization(good, "x-amz-date")), "SignatureDoesNotMatch", "'Host' must be a 'SignedHeader'"),
        (Some(authorization(good, "host")), "SignatureDoesNotMatch", "'x-amz-date' must be a 'SignedHeader'"),
        (
            Some(authorization("20150830/us-east-1/s3/aws4_request", "host;x-amz-date")),
            "SignatureDoesNotMatch",
            "Credential should be scoped to a valid region. Credential should be scoped to correct service: 'sts'. ",
        ),
        (
            Some(authorization("20150829/eu-west-1/sts/aws4", "host;x-amz-date")),
            "SignatureDoesNotMatch",
            "Credential should be scoped with a valid terminator: 'aws4_request', not 'aws4'. Date in Credential scope \
             does not match YYYYMMDD from ISO-8601 version of date from HTTP: '20150829' != '20150830', from \
             '20150830T123600Z'. ",
        ),
    ] {
        let refusal = refused(authorization.as_deref(), &[]);
        assert_eq!(refusal.code, code, "{authorization:?}");
        let message = refusal.message.unwrap();
        assert!(message.starts_with(text), "{authorization:?}: {message}");
    }
    let token = refused(Some(&authorization(good, "host;x-amz-date")), &[("x-amz-security-token", "t")]);
    assert!(token.message.unwrap().starts_with("'x-amz-security-token' must be"));
}

#[test]
fn a_signature_is_good_for_a_quarter_of_an_hour_both_ways() {
    let signature = signature("sts", "host", "");
    assert!(signature.check_time(at("20150830T125100Z")).is_ok());
    assert!(signature.check_time(at("20150830T122100Z")).is_ok());
    assert_eq!(
        signature.check_time(at("20150830T125101Z")).unwrap_err().message.unwrap(),
        "Signature expired: 20150830T123600Z is now earlier than 20150830T123601Z (20150830T125101Z - 15 min.)"
    );
    assert_eq!(
        signature.check_time(at("20150830T122059Z")).unwrap_err().message.unwrap(),
        "Signature not yet current: 20150830T123600Z is still later than 20150830T123559Z (20150830T122059Z + 15 min.)"
    );
}

#[test]
fn a_hosts_name_binds_the_region() {
    for (host, region) in [
        ("sts.amazonaws.com", Some("us-east-1")),
        ("sts.eu-west-1.amazonaws.com:443", Some("eu-west-1")),
        ("sts.cn-north-1.amazonaws.com.cn", Some("cn-north-1")),
        ("127.0.0.1:8443", None),
        ("localhost", None),
        ("stsx.amazonaws.com", None),
    ] {
        assert_eq!(region_of(host), region, "{host}");
    }
}

#[test]
fn only_the_basic_form_is_a_time() {
    for text in
        ["2015-08-30T12:36:00Z", "20150830T123600", "20150830 123600Z", "20151330T123600Z", "", "20150830T1236é0Z"]
    {
        assert_eq!(parse_basic(text), None, "{text}");
    }
}

//! What is seen of a host over real sockets and TLS.

use std::{
    io::Write as _,
    sync::atomic::{AtomicUsize, Ordering},
};

use http::{Response, StatusCode};
use sandbox::{
    ca::Ca,
    http::{Body, Server, full},
};
use tempfile::NamedTempFile;
use tokio::net::TcpListener;

use super::*;

struct Host {
    server: Server,
    ca: Ca,
    file: NamedTempFile,
    asked: Arc<AtomicUsize>,
}

impl Host {
    /// Known as `names`; answers each path with what `answer` says.
    async fn new(names: &[&str], answer: fn(&str) -> Response<Body>) -> Self {
        let ca = Ca::new().unwrap();
        let tls = ca.server(names).unwrap();
        Self::with(ca, tls, answer).await
    }

    async fn with(ca: Ca, tls: Arc<rustls::ServerConfig>, answer: fn(&str) -> Response<Body>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&asked);
        let server = Server::start(listener, Some(tls), move |request, _| {
            count.fetch_add(1, Ordering::SeqCst);
            let response = answer(request.uri().path());
            async move {
                if request.uri().path() == "/slow" {
                    std::future::pending::<()>().await;
                }
                response
            }
        });
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(ca.pem().as_bytes()).unwrap();
        Self { server: server.unwrap(), ca, file, asked }
    }

    fn url(&self, path: &str) -> String {
        format!("https://localhost:{}{path}", self.server.address().port())
    }

    async fn fetch(&self, path: &str) -> Fetched {
        fetch(&self.url(path), &Authorities::load(Some(self.file.path())).unwrap()).await
    }
}

fn answer(path: &str) -> Response<Body> {
    let (status, headers, body) = match path {
        "/moved" => (301, vec![("location", "/document"), ("content-type", "text/html")], Vec::new()),
        "/large" => (200, vec![], vec![b' '; LARGEST + 1]),
        "/largest" => (200, vec![], vec![b' '; LARGEST]),
        "/document" => {
            (200, vec![("content-type", "application/json"), ("cache-control", "public, max-age=300")], b"{}".to_vec())
        }
        _ => (404, vec![], Vec::new()),
    };
    let mut response = Response::new(full(body));
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    for (name, value) in headers {
        response.headers_mut().insert(name, value.parse().unwrap());
    }
    response
}

#[tokio::test]
async fn a_document_is_fetched_with_all_that_is_judged() {
    let host = Host::new(&["localhost"], answer).await;
    let fetched = host.fetch("/document").await;
    let expected = Answer {
        status: 200,
        content_type: Some("application/json".to_owned()),
        location: None,
        cache_control: Some("public, max-age=300".to_owned()),
        body: b"{}".to_vec(),
    };
    assert_eq!(fetched.answer, Ok(expected));
    assert!(fetched.addresses.iter().all(IpAddr::is_loopback) && !fetched.addresses.is_empty());
    let shown = fetched.shown.unwrap();
    assert_eq!((shown.chain.len(), shown.trust, shown.only_tls13), (2, Trust::Own, false));
    let root = CertificateDer::from_pem_slice(host.ca.pem().as_bytes()).unwrap();
    assert_eq!(shown.chain[1], root, "as the host sent them");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let host = Host::new(&["localhost"], answer).await;
    let answer = host.fetch("/moved").await.answer.unwrap();
    assert_eq!((answer.status, answer.location.as_deref()), (301, Some("/document")));
    assert_eq!(host.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn what_is_larger_than_any_document_is_not_read_to_its_end() {
    let host = Host::new(&["localhost"], answer).await;
    assert_eq!(host.fetch("/large").await.answer, Err(FetchError::Large));
    assert_eq!(host.fetch("/largest").await.answer.unwrap().body.len(), LARGEST);
}

#[tokio::test]
async fn a_host_that_does_not_answer_is_given_up_as_aws_gives_it_up() {
    let host = Host::new(&["localhost"], answer).await;
    let fetched = host.fetch("/slow").await;
    assert_eq!(fetched.answer, Err(FetchError::Slow));
    assert!(fetched.shown.is_some(), "what it showed before is known");
}

#[tokio::test]
async fn a_certificate_of_another_name_or_authority_is_told_and_the_document_is_read_all_the_same() {
    let host = Host::new(&["elsewhere.example"], answer).await;
    let fetched = host.fetch("/document").await;
    assert!(fetched.answer.is_ok());
    let Trust::None(why) = fetched.shown.unwrap().trust else { panic!("it is trusted") };
    assert!(why == "it is not for this name", "{why}");

    let [host, other] = [Host::new(&["localhost"], answer).await, Host::new(&["localhost"], answer).await];
    let fetched = fetch(&host.url("/document"), &Authorities::load(Some(other.file.path())).unwrap()).await;
    assert!(matches!(fetched.shown.unwrap().trust, Trust::None(why) if why.starts_with("no authority")));
    assert!(fetched.answer.is_ok());
}

#[tokio::test]
async fn a_host_that_refuses_tls_1_2_is_known() {
    let ca = Ca::new().unwrap();
    let (chain, key) = ca.server_pem(&["localhost"]).unwrap();
    let tls = rustls::ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().unwrap(),
            rustls::pki_types::PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
        )
        .unwrap();
    let host = Host::with(ca, Arc::new(tls), answer).await;
    let shown = host.fetch("/document").await.shown.unwrap();
    assert_eq!((shown.trust, shown.only_tls13), (Trust::Own, true));
}

#[tokio::test]
async fn a_host_that_is_not_there_is_said_to_be_so() {
    let authorities = Authorities::load(None).unwrap();
    let host = Host::new(&["localhost"], answer).await;
    let url = host.url("/document");
    drop(host);
    let answer_of = async |url: &str| fetch(url, &authorities).await.answer.unwrap_err();
    assert!(matches!(answer_of(&url).await, FetchError::Connect(_)));
    assert!(matches!(answer_of("https://no-such-name.invalid/").await, FetchError::Name(_)));
    for url in ["http://localhost/", "/document", "https://", "https://a b/"] {
        assert_eq!(answer_of(url).await, FetchError::Url, "{url}");
    }
}

#[tokio::test]
async fn a_host_without_tls_or_http_is_said_to_be_so() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let plain = Server::start(listener, None, |_, _| std::future::ready(answer("/document"))).unwrap();
    let fetched = fetch(&format!("https://localhost:{port}/document"), &Authorities::load(None).unwrap()).await;
    assert!(matches!(fetched.answer, Err(FetchError::Tls(_))), "{:?}", fetched.answer);
    assert_eq!(fetched.shown, None);
    drop(plain);
}

#[test]
fn a_file_that_holds_no_certificate_is_refused_by_name() {
    let file = NamedTempFile::new().unwrap();
    let said = Authorities::load(Some(file.path())).unwrap_err();
    assert!(said.contains(&file.path().display().to_string()) && said.contains("no certificate"), "{said}");
    assert!(Authorities::load(Some(Path::new("/nowhere"))).unwrap_err().contains("/nowhere"));
}

//! Clients of the API server, and how long they wait.

use std::time::Duration;

use anyhow::Context as _;
use kube::{client::ClientBuilder, config::KubeConfigOptions};
use secrecy::SecretString;
use tower::timeout::TimeoutLayer;

use crate::{config::ApiServer, identity::NodeName};

const CONNECT_TIME_LIMIT: Duration = Duration::from_secs(5);
/// From a request to the head of its answer; of a list or a watch, the body comes later.
const ANSWER_TIME_LIMIT: Duration = Duration::from_secs(10);
/// Silence on a connection; an API server sends bookmarks on a watch about once a minute.
const SILENCE_LIMIT: Duration = Duration::from_secs(100);

/// The way to the API server.
///
/// # Errors
/// When there is none that can be used.
pub async fn configuration(api_server: &ApiServer) -> anyhow::Result<kube::Config> {
    let mut config = match api_server {
        ApiServer::InCluster => {
            kube::Config::incluster().context("--kubeconfig: is missing, and the pod's own access cannot be used")?
        }
        ApiServer::Kubeconfig(kubeconfig) => {
            let options = KubeConfigOptions::default();
            let config = kube::Config::from_custom_kubeconfig(kubeconfig.as_ref().clone(), &options).await;
            let mut config = config.map_err(|_| anyhow::anyhow!("--kubeconfig: the current context cannot be used"))?;
            // That of the environment, which is for STS alone, as it is in a pod.
            config.proxy_url = None;
            config
        }
    };
    set_limits(&mut config);
    Ok(config)
}

/// How long is waited for the API server; and that nothing is repeated unasked.
pub fn set_limits(config: &mut kube::Config) {
    // Retries are ours: the client's own go on for minutes, and would repeat a TokenRequest.
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIME_LIMIT);
    config.read_timeout = Some(SILENCE_LIMIT);
}

/// A client that waits so long.
///
/// # Errors
/// When its keys or certificates cannot be used.
pub fn client(config: kube::Config) -> anyhow::Result<kube::Client> {
    let builder = ClientBuilder::try_from(config)
        .map_err(|_| anyhow::anyhow!("--kubeconfig: its keys or certificates cannot be used"))?;
    Ok(builder.with_layer(&TimeoutLayer::new(ANSWER_TIME_LIMIT)).build())
}

/// A client whose calls are made as this node.
///
/// # Errors
/// As [`client`].
pub fn client_as(mut config: kube::Config, node: &NodeName) -> anyhow::Result<kube::Client> {
    config.auth_info.impersonate = Some(format!("system:node:{node}"));
    client(config)
}

/// The token by which the API server knows us, if there is one.
#[must_use]
pub fn own_token(config: &kube::Config) -> Option<SecretString> {
    let from_file = || {
        let file = config.auth_info.token_file.as_ref()?;
        std::fs::read_to_string(file).ok().map(SecretString::from)
    };
    config.auth_info.token.clone().or_else(from_file)
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use tokio::{
        io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        identity::{Directory, binding::Binding, watch},
        metrics::Metrics,
    };

    /// Answers lists, and opens watches in which it says nothing.
    async fn silent_api_server(listener: TcpListener, lists: Arc<AtomicUsize>, watches: Arc<AtomicUsize>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (lists, watches) = (Arc::clone(&lists), Arc::clone(&watches));
            tokio::spawn(async move {
                let mut lines = BufReader::new(stream);
                loop {
                    let (mut head, mut line) = (String::new(), String::new());
                    while line != "\r\n" {
                        line.clear();
                        if lines.read_line(&mut line).await.unwrap_or_default() == 0 {
                            return;
                        }
                        head.push_str(&line);
                    }
                    let answer = if head.contains("watch=true") {
                        watches.fetch_add(1, Ordering::SeqCst);
                        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned()
                    } else {
                        lists.fetch_add(1, Ordering::SeqCst);
                        let list =
                            r#"{"kind":"PodList","apiVersion":"v1","metadata":{"resourceVersion":"1"},"items":[]}"#;
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{list}", list.len())
                    };
                    lines.get_mut().write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    }

    /// With the limit that is in force this takes longer than a test may.
    #[tokio::test]
    async fn a_watch_that_says_nothing_at_all_is_broken_off_and_begun_anew_by_a_list() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (lists, watches) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        tokio::spawn(silent_api_server(listener, Arc::clone(&lists), Arc::clone(&watches)));
        let mut config = kube::Config::new(url.parse().unwrap());
        set_limits(&mut config);
        assert_eq!(config.read_timeout, Some(SILENCE_LIMIT));
        config.read_timeout = Some(Duration::from_millis(200));

        let metrics = Arc::new(Metrics::new().unwrap());
        let (directory, _) = Directory::new(Binding::Required, Default::default(), |_, _| {}, |_, _| {});
        let pods = watch::pods(client(config).unwrap(), "node".into(), Arc::new(directory), Arc::clone(&metrics));
        let broken = metrics.watch_errors.with_label_values(&["pods"]);
        let seen = async {
            while broken.get() < 1 || watches.load(Ordering::SeqCst) < 2 || lists.load(Ordering::SeqCst) < 2 {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = pods => panic!("it never ends"),
            seen = tokio::time::timeout(Duration::from_secs(20), seen) => seen.unwrap(),
        }
    }
}

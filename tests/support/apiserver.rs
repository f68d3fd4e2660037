//! A real API server, built once from `tests/apiserver/` and started outside of a sandbox's node.

#![allow(unreachable_pub, reason = "a module of one test binary")]

use std::{
    fmt::Write as _,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::OnceLock,
};

use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::Body, config::Kubeconfig};
use sandbox::{
    network::{KUBERNETES_ADDRESS, Process},
    sandbox::{AUDIENCE, DAEMON, DAEMON_POD, NODE, Sandbox},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// The token of a user who may do everything.
const ADMINISTRATOR: &str = "administrator";

pub struct ApiServer {
    /// Also the issuer's URL: AWS takes none with a port of its own.
    pub url: String,
    ca_pem: String,
    _process: Process,
    _lines: BufReader<ChildStdout>,
    runtime: Runtime,
}

/// Who makes a request.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub token: &'a str,
    pub impersonates: Option<&'a str>,
}

pub const ADMIN_CALLER: Caller<'_> = Caller { token: ADMINISTRATOR, impersonates: None };

/// An answer: its status and its object.
#[derive(Debug)]
pub struct Answer(pub u16, pub Value);

impl Answer {
    /// That it is a refusal with this status, whose message ends like this.
    #[track_caller]
    pub fn refuses(&self, code: u16, end: &str) {
        let Self(found, status) = self;
        let message = status["message"].as_str().unwrap_or_default();
        assert!(*found == code && message.ends_with(end), "not {code} {end}: {found} {message}");
    }

    #[track_caller]
    pub fn accepted(self) -> Value {
        let Self(code, object) = self;
        assert!((200..300).contains(&code), "{code} {object}");
        object
    }
}

fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let binary = Path::new(env!("CARGO_TARGET_TMPDIR")).join("apiserver");
        // Go builds what has changed; the first time takes minutes.
        let built = Command::new("go")
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/apiserver"))
            .args(["build", "-buildvcs=false", "-ldflags=-s -w", "-o"])
            .arg(&binary)
            .arg(".")
            .status();
        match built {
            Ok(status) => assert!(status.success(), "tests/apiserver cannot be built: {status}"),
            Err(error) => panic!("these tests need Go 1.26 or later on the PATH: {error}"),
        }
        binary
    })
}

impl ApiServer {
    pub fn start(sandbox: &Sandbox) -> Self {
        let folder = sandbox.directory().join("apiserver");
        fs::create_dir(&folder).unwrap();
        let file = |name: &str, text: &str| {
            fs::write(folder.join(name), text).unwrap();
            folder.join(name)
        };
        let address = KUBERNETES_ADDRESS.to_string();
        let (cert, key) = sandbox.cloud.server_pem(&[&address]).unwrap();
        let log = fs::File::create(folder.join("log")).unwrap();
        let mut process = sandbox
            .outside()
            .command(binary())
            .arg("-data-dir")
            .arg(&folder)
            .args(["-address", &address, "-port", "443", "-issuer", &format!("https://{address}")])
            .arg("-tls-cert")
            .arg(file("server.pem", &cert))
            .arg("-tls-key")
            .arg(file("server.key", &key))
            .arg("-ca")
            .arg(file("ca.pem", sandbox.cloud.ca_pem()))
            .arg("-token-file")
            .arg(file("users", &format!("{ADMINISTRATOR},{ADMINISTRATOR},1,\"system:masters\"\n")))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap());
        let mut line = String::new();
        lines.read_line(&mut line).unwrap();
        assert!(line.contains("\"url\""), "{}", fs::read_to_string(folder.join("log")).unwrap());
        // The client's threads live where the server can be reached.
        let builder = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = sandbox.outside().enter(builder).unwrap().unwrap();
        drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
        let (url, ca_pem) = (format!("https://{address}"), sandbox.cloud.ca_pem().to_owned());
        Self { url, ca_pem, _process: process, _lines: lines, runtime }
    }

    /// A kubeconfig with this token.
    pub fn kubeconfig(&self, sandbox: &Sandbox, token: &str) -> String {
        sandbox.cloud.kubernetes.kubeconfig(&self.url, &self.ca_pem, token)
    }

    /// A request with a JSON body; a null body is none.
    pub fn call(&self, sandbox: &Sandbox, caller: Caller<'_>, method: &str, path: &str, body: &Value) -> Answer {
        let content_type = if method == "PATCH" { "application/merge-patch+json" } else { "application/json" };
        let body = if body.is_null() { String::new() } else { body.to_string() };
        self.send(sandbox, caller, method, path, content_type, body)
    }

    fn send(
        &self,
        sandbox: &Sandbox,
        caller: Caller<'_>,
        method: &str,
        path: &str,
        content_type: &str,
        body: String,
    ) -> Answer {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig(sandbox, caller.token)).unwrap();
        let impersonates = caller.impersonates.map(str::to_owned);
        let request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        let request = request.header(CONTENT_TYPE, content_type).body(Body::from(body.into_bytes())).unwrap();
        let answer = self.runtime.spawn(async move {
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
            config.default_retry = false;
            config.auth_info.impersonate = impersonates;
            let response = Client::try_from(config).unwrap().send(request).await.unwrap();
            let (parts, body) = response.into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            Answer(parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::String(text)))
        });
        self.runtime.block_on(answer).unwrap()
    }

    /// Creates an object, as an administrator.
    pub fn create(&self, sandbox: &Sandbox, path: &str, object: &Value) -> Value {
        self.call(sandbox, ADMIN_CALLER, "POST", path, object).accepted()
    }

    /// Applies a file of `daemonset/`, as `kubectl apply --server-side` does.
    pub fn apply(&self, sandbox: &Sandbox, file: &str) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("daemonset").join(file);
        for document in fs::read_to_string(file).unwrap().split("\n---\n") {
            // Kind and name are all that is needed to know its place; they come first in each.
            let field = |name: &str| document.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            let mut path = match field("kind: ") {
                "Namespace" => "/api/v1/namespaces".to_owned(),
                "ServiceAccount" => format!("/api/v1/namespaces/{}/serviceaccounts", field("  namespace: ")),
                "ClusterRole" => "/apis/rbac.authorization.k8s.io/v1/clusterroles".to_owned(),
                "ClusterRoleBinding" => "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings".to_owned(),
                "ValidatingAdmissionPolicy" => {
                    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies".to_owned()
                }
                "ValidatingAdmissionPolicyBinding" => {
                    "/apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings".to_owned()
                }
                kind => panic!("a kind that is not known here: {kind}"),
            };
            write!(path, "/{}?fieldManager=test&force=true&fieldValidation=Strict", field("  name: ")).unwrap();
            let yaml = "application/apply-patch+yaml";
            self.send(sandbox, ADMIN_CALLER, "PATCH", &path, yaml, document.to_owned()).accepted();
        }
    }

    /// A namespace with these service accounts.
    pub fn add_namespace(&self, sandbox: &Sandbox, namespace: &str, accounts: &[(&str, Value)]) {
        let path = format!("/api/v1/namespaces/{namespace}");
        if self.call(sandbox, ADMIN_CALLER, "GET", &path, &Value::Null).0 == 404 {
            self.create(sandbox, "/api/v1/namespaces", &json!({"metadata": {"name": namespace}}));
        }
        for (name, annotations) in accounts {
            let account = json!({"metadata": {"name": name, "annotations": annotations}});
            self.create(sandbox, &format!("{path}/serviceaccounts"), &account);
        }
    }

    /// A pod on a node, running if it has an address; its UID.
    pub fn add_pod(
        &self,
        sandbox: &Sandbox,
        (namespace, name): (&str, &str),
        account: &str,
        node: &str,
        address: Option<&str>,
    ) -> String {
        let path = format!("/api/v1/namespaces/{namespace}/pods");
        let pod = json!({
            "metadata": {"name": name},
            "spec": {
                "serviceAccountName": account,
                "nodeName": node,
                "hostNetwork": address.is_none(),
                "containers": [{"name": "main", "image": "example.com/main"}],
            },
        });
        let pod = self.create(sandbox, &path, &pod);
        if let Some(address) = address {
            let status = json!({"status": {
                "phase": "Running",
                "startTime": pod["metadata"]["creationTimestamp"],
                "podIP": address,
                "podIPs": [{"ip": address}],
            }});
            self.call(sandbox, ADMIN_CALLER, "PATCH", &format!("{path}/{name}/status"), &status).accepted();
        }
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    pub fn add_node(&self, sandbox: &Sandbox, name: &str) {
        self.create(sandbox, "/api/v1/nodes", &json!({"metadata": {"name": name}}));
    }

    /// The daemon's account and its pod on [`NODE`]; the token that its kubelet would mount.
    pub fn add_daemon(&self, sandbox: &Sandbox) -> String {
        self.apply(sandbox, "service-account.yaml");
        self.add_node(sandbox, NODE);
        let uid = self.add_pod(sandbox, (DAEMON, DAEMON_POD), DAEMON, NODE, None);
        let request = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": bound(DAEMON_POD, &uid)}});
        self.issued(self.token(sandbox, ADMIN_CALLER, (DAEMON, DAEMON), &request))
    }

    /// A TokenRequest.
    pub fn token(
        &self,
        sandbox: &Sandbox,
        caller: Caller<'_>,
        (namespace, account): (&str, &str),
        request: &Value,
    ) -> Answer {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        self.call(sandbox, caller, "POST", &path, request)
    }

    #[track_caller]
    pub fn issued(&self, answer: Answer) -> String {
        answer.accepted()["status"]["token"].as_str().unwrap().to_owned()
    }
}

/// A reference to a pod.
pub fn bound(pod: &str, uid: &str) -> Value {
    json!({"kind": "Pod", "apiVersion": "v1", "name": pod, "uid": uid})
}

/// What the daemon asks for.
pub fn for_sts(pod: &str, uid: &str) -> Value {
    json!({"spec": {"audiences": [AUDIENCE], "expirationSeconds": 600, "boundObjectRef": bound(pod, uid)}})
}

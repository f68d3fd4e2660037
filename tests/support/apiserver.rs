//! API servers outside of a sandbox's node: a real one, built once from `tests/apiserver/`, and the sandbox's
//! own, behind one face.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{ChildStdout, Command, Stdio},
    sync::{Mutex, OnceLock},
    time::Duration,
};

use http::{Method, Request, header::CONTENT_TYPE};
use http_body_util::BodyExt as _;
use kube::{Client, Config, client::Body, config::Kubeconfig};
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Kubernetes, NewPod},
    network::{KUBERNETES_ADDRESS, Process},
    sandbox::{AUDIENCE, DAEMON, DAEMON_POD, NODE, Pod, Sandbox},
};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::support::{Daemon, PATIENCE, chart::manifest, sdk};

/// A user who may do everything, and that user's token on the real server.
const ADMINISTRATOR: &str = "administrator";

pub struct ApiServer {
    /// Also the issuer's URL: AWS takes none with a port of its own.
    pub url: String,
    pub ca_pem: String,
    administrator: String,
    kind: Kind,
    runtime: Runtime,
}

enum Kind {
    Real(Mutex<(Process, BufReader<ChildStdout>)>),
    Sandbox(Kubernetes),
}

/// Who makes a request.
#[derive(Clone, Copy)]
pub struct Caller<'a> {
    pub token: &'a str,
    pub impersonates: Option<&'a str>,
}

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

/// Starts the program on what is in the folder, and waits until it serves.
fn spawn(sandbox: &Sandbox, folder: &Path) -> (Process, BufReader<ChildStdout>) {
    let address = KUBERNETES_ADDRESS.to_string();
    let mut process = sandbox
        .outside()
        .command(binary())
        .arg("-data-dir")
        .arg(folder)
        .args(["-address", &address, "-port", "443", "-issuer", &format!("https://{address}")])
        .arg("-tls-cert")
        .arg(folder.join("server.pem"))
        .arg("-tls-key")
        .arg(folder.join("server.key"))
        .arg("-ca")
        .arg(folder.join("ca.pem"))
        .arg("-token-file")
        .arg(folder.join("users"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(fs::File::create(folder.join("log")).unwrap())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap());
    let mut line = String::new();
    lines.read_line(&mut line).unwrap();
    assert!(line.contains("\"url\""), "{}", fs::read_to_string(folder.join("log")).unwrap());
    (process, lines)
}

/// Whose threads live where the servers can be reached.
fn runtime(sandbox: &Sandbox) -> Runtime {
    drop(rustls::crypto::aws_lc_rs::default_provider().install_default());
    let build = || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    sandbox.outside().enter(build).unwrap().unwrap()
}

impl ApiServer {
    pub fn start(sandbox: &Sandbox) -> Self {
        let folder = sandbox.directory().join("apiserver");
        fs::create_dir(&folder).unwrap();
        let file = |name: &str, text: &str| fs::write(folder.join(name), text).unwrap();
        let address = KUBERNETES_ADDRESS.to_string();
        let (cert, key) = sandbox.cloud.server_pem(&[&address]).unwrap();
        file("server.pem", &cert);
        file("server.key", &key);
        file("ca.pem", sandbox.cloud.ca_pem());
        file("users", &format!("{ADMINISTRATOR},{ADMINISTRATOR},1,\"system:masters\"\n"));
        let (process, lines) = spawn(sandbox, &folder);
        let runtime = runtime(sandbox);
        let (url, ca_pem) = (format!("https://{address}"), sandbox.cloud.ca_pem().to_owned());
        let kind = Kind::Real(Mutex::new((process, lines)));
        Self { url, ca_pem, administrator: ADMINISTRATOR.to_owned(), kind, runtime }
    }

    /// The sandbox's own.
    pub fn of_sandbox(sandbox: &Sandbox) -> Self {
        let kubernetes = sandbox.cloud.kubernetes.clone();
        Self {
            url: sandbox.cloud.api_url(),
            ca_pem: sandbox.cloud.ca_pem().to_owned(),
            administrator: kubernetes.user_token(ADMINISTRATOR),
            kind: Kind::Sandbox(kubernetes),
            runtime: runtime(sandbox),
        }
    }

    /// Who may do everything.
    pub fn admin(&self) -> Caller<'_> {
        Caller { token: &self.administrator, impersonates: None }
    }

    /// History is forgotten. A real server keeps what it has seen itself, so it is started anew.
    pub fn compact(&self, sandbox: &Sandbox) {
        match &self.kind {
            Kind::Real(process) => {
                let mut running = process.lock().unwrap();
                let (process, lines) = &mut *running;
                writeln!(process.stdin.as_mut().unwrap(), "compact").unwrap();
                let mut line = String::new();
                lines.read_line(&mut line).unwrap();
                assert!(line.contains("compacted"), "{line}");
                drop(process.stdin.take());
                process.wait().unwrap();
                *running = spawn(sandbox, &sandbox.directory().join("apiserver"));
            }
            Kind::Sandbox(kubernetes) => kubernetes.compact(),
        }
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
        let request = Request::builder().method(Method::from_bytes(method.as_bytes()).unwrap()).uri(path);
        let request = request.header(CONTENT_TYPE, content_type).body(Body::from(body.into_bytes())).unwrap();
        self.answer(sandbox, caller, request)
    }

    /// Any request.
    pub fn answer(&self, sandbox: &Sandbox, caller: Caller<'_>, request: Request<Body>) -> Answer {
        let client = self.client(sandbox, caller);
        let answer = self.runtime.spawn(async move {
            let (parts, body) = client.await.send(request).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let text = String::from_utf8_lossy(&body).into_owned();
            Answer(parts.status.as_u16(), serde_json::from_slice(&body).unwrap_or(Value::String(text)))
        });
        self.runtime.block_on(answer).unwrap()
    }

    /// The first events of a watch, while `meanwhile` is done after it was accepted; fewer if it ends before.
    pub fn watch(&self, sandbox: &Sandbox, path: &str, count: usize, meanwhile: impl FnOnce()) -> Vec<Value> {
        let client = self.client(sandbox, self.admin());
        let request = Request::get(path).body(Body::empty()).unwrap();
        let accepted = self.runtime.spawn(async move { client.await.send(request).await.unwrap().into_body() });
        let mut body = self.runtime.block_on(accepted).unwrap();
        meanwhile();
        let events = self.runtime.spawn(async move {
            let mut bytes = Vec::new();
            let whole = |bytes: &[u8]| bytes.iter().filter(|byte| **byte == b'\n').count();
            while whole(&bytes) < count {
                match body.frame().await {
                    Some(frame) => bytes.extend(frame.unwrap().into_data().unwrap()),
                    None => break,
                }
            }
            let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
            lines.take(count).map(|line| serde_json::from_slice(line).unwrap()).collect()
        });
        let limited = async { tokio::time::timeout(PATIENCE, events).await };
        self.runtime.block_on(limited).expect("the watch is silent").unwrap()
    }

    fn client(&self, sandbox: &Sandbox, caller: Caller<'_>) -> impl Future<Output = Client> + Send + 'static {
        let kubeconfig = Kubeconfig::from_yaml(&self.kubeconfig(sandbox, caller.token)).unwrap();
        let impersonates = caller.impersonates.map(str::to_owned);
        async move {
            let mut config = Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
            config.default_retry = false;
            config.auth_info.impersonate = impersonates;
            Client::try_from(config).unwrap()
        }
    }

    /// Creates an object, as an administrator.
    pub fn create(&self, sandbox: &Sandbox, path: &str, object: &Value) -> Value {
        self.call(sandbox, self.admin(), "POST", path, object).accepted()
    }

    /// Applies a file of `daemonset/manifests/`, as `kubectl apply --server-side` does.
    pub fn apply(&self, sandbox: &Sandbox, file: &str) {
        self.apply_all(sandbox, &manifest(file));
    }

    /// Only its objects of these kinds.
    pub fn apply_kinds(&self, sandbox: &Sandbox, file: &str, kinds: &[&str]) {
        let objects = manifest(file).into_iter().filter(|object| kinds.contains(&object["kind"].as_str().unwrap()));
        self.apply_all(sandbox, &objects.collect::<Vec<_>>());
    }

    /// Applies objects in their order.
    pub fn apply_all(&self, sandbox: &Sandbox, objects: &[Value]) {
        for object in objects {
            self.try_apply(sandbox, object, "").accepted();
        }
    }

    /// What the server says of an object with this added to the query.
    pub fn try_apply(&self, sandbox: &Sandbox, object: &Value, query: &str) -> Answer {
        let path = format!("{}?fieldManager=test&force=true&fieldValidation=Strict{query}", place(object));
        self.send(sandbox, self.admin(), "PATCH", &path, "application/apply-patch+yaml", object.to_string())
    }

    /// Applies an object, as `kubectl apply --server-side` does.
    pub fn apply_as(&self, sandbox: &Sandbox, caller: Caller<'_>, path: &str, object: &Value) -> Answer {
        let path = format!("{path}?fieldManager=test&force=true");
        self.send(sandbox, caller, "PATCH", &path, "application/apply-patch+yaml", object.to_string())
    }

    /// A namespace with these service accounts.
    pub fn add_namespace(&self, sandbox: &Sandbox, namespace: &str, accounts: &[(&str, Value)]) {
        if let Kind::Sandbox(kubernetes) = &self.kind {
            kubernetes.create_namespace(namespace, &[]);
            for (name, _) in accounts.iter().filter(|(name, _)| *name != "default") {
                kubernetes.apply_service_account(namespace, name, &[]);
            }
            return;
        }
        let path = format!("/api/v1/namespaces/{namespace}");
        if self.call(sandbox, self.admin(), "GET", &path, &Value::Null).0 == 404 {
            self.create(sandbox, "/api/v1/namespaces", &json!({"metadata": {"name": namespace}}));
        }
        for (name, annotations) in accounts {
            let account = json!({"metadata": {"name": name, "annotations": annotations}});
            self.create(sandbox, &format!("{path}/serviceaccounts"), &account);
        }
    }

    /// A role that trusts a service account of this server's cluster.
    pub fn put_role(&self, sandbox: &Sandbox, role: &str, subject: &str) {
        let policy = sandbox.trust_policy(subject).to_string();
        let host = |url: &str| url.trim_start_matches("https://").to_owned();
        let policy = policy.replace(&host(sandbox.cloud.issuer.url()), &host(&self.url));
        sandbox.cloud.sts.put_role(role, serde_json::from_str(&policy).unwrap()).unwrap();
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
        if let Kind::Sandbox(kubernetes) = &self.kind {
            let pod = NewPod::new(namespace, name).service_account(account).node(node);
            let uid = kubernetes.create_pod(if address.is_none() { pod.host_network() } else { pod });
            if let Some(address) = address {
                kubernetes.run_pod(namespace, name, &[address.parse().unwrap()]);
            }
            return uid;
        }
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
            let started = &pod["metadata"]["creationTimestamp"];
            let status = json!({"status": {
                "phase": "Running",
                "startTime": started,
                "podIP": address,
                "podIPs": [{"ip": address}],
                "containerStatuses": [{
                    "name": "main",
                    "image": "example.com/main",
                    "imageID": "",
                    "ready": true,
                    "restartCount": 0,
                    "started": true,
                    "state": {"running": {"startedAt": started}},
                }],
            }});
            self.call(sandbox, self.admin(), "PATCH", &format!("{path}/{name}/status"), &status).accepted();
        }
        pod["metadata"]["uid"].as_str().unwrap().to_owned()
    }

    /// The pod is gone at once.
    pub fn delete_pod(&self, sandbox: &Sandbox, namespace: &str, name: &str) {
        match &self.kind {
            Kind::Sandbox(kubernetes) => {
                kubernetes.start_deleting_pod(namespace, name, Duration::ZERO);
                kubernetes.delete_pod(namespace, name);
            }
            Kind::Real(_) => {
                let path = format!("/api/v1/namespaces/{namespace}/pods/{name}?gracePeriodSeconds=0");
                self.call(sandbox, self.admin(), "DELETE", &path, &Value::Null).accepted();
            }
        }
    }

    pub fn add_node(&self, sandbox: &Sandbox, name: &str) {
        if let Kind::Sandbox(kubernetes) = &self.kind {
            return kubernetes.create_node(name);
        }
        self.create(sandbox, "/api/v1/nodes", &json!({"metadata": {"name": name}}));
    }

    /// Gives a node these taints instead of those that it has.
    pub fn taint_node(&self, sandbox: &Sandbox, name: &str, taints: &Value) {
        match &self.kind {
            Kind::Sandbox(kubernetes) => kubernetes.taint_node(name, taints),
            Kind::Real(_) => {
                let patch = json!({"spec": {"taints": taints}});
                self.call(sandbox, self.admin(), "PATCH", &format!("/api/v1/nodes/{name}"), &patch).accepted();
            }
        }
    }

    /// What `kubectl patch` sends.
    pub fn strategic_patch(&self, sandbox: &Sandbox, path: &str, patch: &Value) -> Answer {
        self.send(sandbox, self.admin(), "PATCH", path, "application/strategic-merge-patch+json", patch.to_string())
    }

    /// What `kubectl apply --server-side` sends, to this path with its query.
    pub fn apply_patch(&self, sandbox: &Sandbox, path: &str, object: &Value) -> Answer {
        self.send(sandbox, self.admin(), "PATCH", path, "application/apply-patch+yaml", object.to_string())
    }

    /// A JSON Patch.
    pub fn json_patch(&self, sandbox: &Sandbox, caller: Caller<'_>, path: &str, patch: &Value) -> Answer {
        self.send(sandbox, caller, "PATCH", path, "application/json-patch+json", patch.to_string())
    }

    /// The daemon's account and its pod on [`NODE`]; the token that its kubelet would mount.
    pub fn add_daemon(&self, sandbox: &Sandbox) -> String {
        if let Kind::Sandbox(kubernetes) = &self.kind {
            // It is there, with the rights of node mode.
            return kubernetes.service_account_token(DAEMON, DAEMON, Some(DAEMON_POD)).unwrap();
        }
        self.apply_kinds(sandbox, "node.yaml", &["Namespace", "ServiceAccount"]);
        self.add_node(sandbox, NODE);
        let uid = self.add_pod(sandbox, (DAEMON, DAEMON_POD), DAEMON, NODE, None);
        let request = json!({"spec": {"expirationSeconds": 3607, "boundObjectRef": bound(DAEMON_POD, &uid)}});
        self.issued(self.token(sandbox, self.admin(), (DAEMON, DAEMON), &request))
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

/// The real API server with a pod `team-a/web-0` on the sandbox's node, and a role `web` whose account trusts that issuer.
/// The node is not known to it yet, nor is there a daemon.
pub fn with_a_pod() -> (Sandbox, ApiServer, Pod) {
    let sandbox = crate::support::sandbox();
    let api = ApiServer::start(&sandbox);
    // What whoever runs IRSA off EKS does, so that AWS can read the issuer's documents.
    let reader = json!({
        "metadata": {"name": "issuer-discovery"},
        "roleRef": {
            "apiGroup": "rbac.authorization.k8s.io",
            "kind": "ClusterRole",
            "name": "system:service-account-issuer-discovery",
        },
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "system:unauthenticated"}],
    });
    api.create(&sandbox, "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings", &reader);
    let role = format!("arn:aws:iam::{ACCOUNT}:role/web");
    sandbox.cloud.sts.put_oidc_provider(ACCOUNT, &api.url, &[AUDIENCE]).unwrap();
    api.put_role(&sandbox, &role, "system:serviceaccount:team-a:web");
    api.add_namespace(&sandbox, "team-a", &[("web", json!({"eks.amazonaws.com/role-arn": role}))]);
    // Its network, and its object in the API that the daemon does not read.
    let pod = sandbox.add_pod("team-a", "web-0", "web").unwrap();
    api.add_pod(&sandbox, ("team-a", "web-0"), "web", NODE, Some(&pod.address().to_string()));
    (sandbox, api, pod)
}

#[track_caller]
pub fn assert_gets_its_role(sandbox: &Sandbox, pod: &Pod, daemon: &Daemon) {
    let report = sdk(sandbox, pod);
    let arn = report.arn.unwrap_or_else(|| panic!("{:?}\n{}", report.error, daemon.log()));
    assert!(arn.starts_with("arn:aws:sts::111122223333:assumed-role/web/team-a.web-0-"), "{arn}");
}

/// The path of an object of those that the chart makes.
fn place(object: &Value) -> String {
    let (group, resource) = match object["kind"].as_str().unwrap() {
        "Namespace" => ("/api/v1", "namespaces"),
        "ServiceAccount" => ("/api/v1", "serviceaccounts"),
        "ConfigMap" => ("/api/v1", "configmaps"),
        "DaemonSet" => ("/apis/apps/v1", "daemonsets"),
        "ClusterRole" => ("/apis/rbac.authorization.k8s.io/v1", "clusterroles"),
        "ClusterRoleBinding" => ("/apis/rbac.authorization.k8s.io/v1", "clusterrolebindings"),
        "ValidatingAdmissionPolicy" => ("/apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicies"),
        "ValidatingAdmissionPolicyBinding" => {
            ("/apis/admissionregistration.k8s.io/v1", "validatingadmissionpolicybindings")
        }
        kind => panic!("a kind that is not known here: {kind}"),
    };
    let name = object["metadata"]["name"].as_str().unwrap();
    match object["metadata"]["namespace"].as_str() {
        Some(namespace) => format!("{group}/namespaces/{namespace}/{resource}/{name}"),
        None => format!("{group}/{resource}/{name}"),
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

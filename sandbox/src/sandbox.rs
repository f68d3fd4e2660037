//! The whole: a network, a cloud outside of it, pods with service accounts, and the real daemon on the node.

mod host;
mod pods;

use std::{
    fs, io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::Stdio,
    sync::{OnceLock, atomic::AtomicU8},
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    cgroups::Cgroups,
    cloud::{ACCOUNT, Cloud, CloudError, EC2_NAMES, REGION, S3_NAMES, STS_NAMES},
    kubernetes::{Grant, NewPod, Resource},
    network::{
        Command, EC2_ADDRESS, EC2_ADDRESS_V6, Families, METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS, Namespace,
        Network, NetworkError, PodNetwork, Process, S3_ADDRESS, S3_ADDRESS_V6, STS_ADDRESS, STS_ADDRESS_V6,
    },
    packages::{self, PackageError},
    sts::{IamError, Role},
    web::Web,
};

pub use host::{Folders, HostPod};
pub use pods::Pod;

/// The node's name.
pub const NODE: &str = "node-1";
/// The daemon's Kubernetes namespace and service account.
pub const DAEMON: &str = "kube2irsa";
/// The user that the API server takes it for.
pub const DAEMON_USER: &str = "system:serviceaccount:kube2irsa:kube2irsa";
/// The daemon's pod.
pub const DAEMON_POD: &str = "kube2irsa-node-1";
/// The label by which the daemon's pods are known.
const DAEMON_LABEL: &str = "app.kubernetes.io/name";
/// The audience of tokens for STS.
pub const AUDIENCE: &str = "sts.amazonaws.com";
/// Where the daemon listens for pods by default.
pub const LISTEN: SocketAddr = SocketAddr::new(IpAddr::V4(NODE_ADDRESS), 9169);
/// Where the daemon listens for operators by default, seen from the node.
pub const ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9170);

/// The metadata service, as clients know it.
pub const METADATA: SocketAddr = SocketAddr::new(IpAddr::V4(METADATA_ADDRESS), 80);
/// The same over IPv6.
pub const METADATA_V6: SocketAddr = SocketAddr::new(IpAddr::V6(METADATA_ADDRESS_V6), 80);

/// Where STS, S3 and EC2 are.
const AWS: [IpAddr; 3] = [IpAddr::V4(STS_ADDRESS), IpAddr::V4(S3_ADDRESS), IpAddr::V4(EC2_ADDRESS)];
const AWS_V6: [IpAddr; 3] = [IpAddr::V6(STS_ADDRESS_V6), IpAddr::V6(S3_ADDRESS_V6), IpAddr::V6(EC2_ADDRESS_V6)];

/// The folder of the issuer's web host.
const WEB: &str = "web";

/// What the system's programs trust, on Debian and Ubuntu.
const TRUSTED: &str = "/etc/ssl/certs/ca-certificates.crt";

/// The sandbox could not be made, or something in it failed.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// Root or a package is missing.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The servers outside.
    #[error(transparent)]
    Cloud(#[from] CloudError),
    /// IAM.
    #[error(transparent)]
    Iam(#[from] IamError),
    /// A file or a connection.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// All addresses for pods have been used.
    #[error("no address is left for another pod")]
    NoAddress,
}

/// A cluster of one node, with an AWS outside. Dropped, all of it is gone.
#[derive(Debug)]
pub struct Sandbox {
    /// What is outside of the node.
    pub cloud: Cloud,
    network: Network,
    directory: TempDir,
    next_address: AtomicU8,
    daemon_uid: String,
    cgroups: OnceLock<Cgroups>,
}

impl Sandbox {
    /// Makes a node without pods, and starts everything outside of it; IPv4 only. Installs the packages that
    /// are missing, where it may; `progress` is told.
    ///
    /// # Errors
    /// In one line, what is missing or failed.
    pub fn new(shape: PodNetwork, progress: &mut dyn FnMut(&str)) -> Result<Self, SandboxError> {
        Self::with_families(shape, Families::V4, progress)
    }

    /// The same with these families. The daemon reaches all that it needs by IPv4 in each of them.
    ///
    /// # Errors
    /// In one line, what is missing or failed.
    pub fn with_families(
        shape: PodNetwork,
        families: Families,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, SandboxError> {
        Self::with(shape, families, None, progress)
    }

    /// The same with an issuer of this URL, whose documents are where everybody reads them once they are put into
    /// [`Sandbox::web_root`].
    ///
    /// # Errors
    /// In one line, what is missing or failed.
    pub fn with_issuer(shape: PodNetwork, issuer: &str, progress: &mut dyn FnMut(&str)) -> Result<Self, SandboxError> {
        Self::with(shape, Families::V4, Some(issuer), progress)
    }

    fn with(
        shape: PodNetwork,
        families: Families,
        issuer: Option<&str>,
        progress: &mut dyn FnMut(&str),
    ) -> Result<Self, SandboxError> {
        packages::require_root()?;
        packages::ensure(&packages::NETWORK, progress)?;
        let network = Network::with_families(shape, families)?;
        let directory = tempfile::Builder::new().prefix("kube2irsa-sandbox-").tempdir()?;
        let published = issuer.map(|issuer| (issuer, Web::new(directory.path().join(WEB))));
        let cloud = Cloud::start_with(network.outside(), families, published)?;
        cloud.sts.put_oidc_provider(ACCOUNT, cloud.issuer.url(), &[AUDIENCE])?;
        Self::of(network, cloud, directory)
    }

    /// Another cluster of one node in the same AWS, IPv4 only, whose issuer ends with `path`: its own network, Kubernetes API,
    /// keys and daemon. No account knows its issuer yet.
    ///
    /// # Errors
    /// As [`Sandbox::new`].
    pub fn beside(&self, shape: PodNetwork, path: &str) -> Result<Self, SandboxError> {
        let network = Network::with_families(shape, Families::V4)?;
        let cloud = Cloud::start_beside(&self.cloud, network.outside(), Families::V4, path)?;
        Self::of(network, cloud, tempfile::Builder::new().prefix("kube2irsa-sandbox-").tempdir()?)
    }

    fn of(network: Network, cloud: Cloud, directory: TempDir) -> Result<Self, SandboxError> {
        fs::create_dir(directory.path().join("home"))?;
        let (daemon_uid, cgroups) = (String::new(), OnceLock::new());
        let mut sandbox = Self { cloud, network, directory, next_address: AtomicU8::new(10), daemon_uid, cgroups };
        sandbox.daemon_uid = sandbox.install_daemon()?;
        fs::write(sandbox.ca_file(), sandbox.cloud.ca_pem())?;
        Ok(sandbox)
    }

    /// The daemon's own pod, with what `daemonset/manifests/node.yaml` grants, and a kubeconfig that is its.
    fn install_daemon(&self) -> Result<String, SandboxError> {
        let kubernetes = &self.cloud.kubernetes;
        kubernetes.apply_service_account(DAEMON, DAEMON, &[]);
        let pod = NewPod::new(DAEMON, DAEMON_POD).service_account(DAEMON).node(NODE).host_network();
        let pod = pod.label(DAEMON_LABEL, DAEMON);
        kubernetes.restore(Resource::DaemonSets, daemon_set());
        let uid = kubernetes.create_pod(pod);
        kubernetes.run_pod(DAEMON, DAEMON_POD, &self.families().node());
        let labels =
            [("topology.kubernetes.io/region", "eu-central-1"), ("topology.kubernetes.io/zone", "eu-central-1a")];
        kubernetes.label_node(NODE, &labels);
        for grant in daemon_rights() {
            kubernetes.grant(DAEMON_USER, grant);
        }
        kubernetes.grant_group("system:nodes", Grant::new(&["request-serviceaccounts-token-audience"], AUDIENCE));
        self.renew_kubeconfig()?;
        Ok(uid)
    }

    /// Writes the daemon's kubeconfig, with a token that is signed by the key of now.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn renew_kubeconfig(&self) -> Result<(), SandboxError> {
        let kubernetes = &self.cloud.kubernetes;
        let token = kubernetes.service_account_token(DAEMON, DAEMON, Some(DAEMON_POD)).unwrap_or_default();
        let kubeconfig = kubernetes.kubeconfig(&self.cloud.api_url(), self.cloud.ca_pem(), &token);
        Ok(fs::write(self.kubeconfig(), kubeconfig)?)
    }

    /// The namespace of what is outside of the node.
    #[must_use]
    pub fn outside(&self) -> &Namespace {
        self.network.outside()
    }

    /// The node's namespace.
    #[must_use]
    pub fn node(&self) -> &Namespace {
        self.network.node()
    }

    /// Which addresses pods have.
    #[must_use]
    pub fn families(&self) -> Families {
        self.network.families()
    }

    /// A directory that is the sandbox's own.
    #[must_use]
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// What the issuer's web host has at its root, where it has one ([`Sandbox::with_issuer`]).
    #[must_use]
    pub fn web_root(&self) -> PathBuf {
        self.directory.path().join(WEB)
    }

    /// The daemon's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.directory.path().join("kubeconfig")
    }

    /// The certificate that signed every server's.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.directory.path().join("ca.pem")
    }

    /// The daemon's state directory.
    #[must_use]
    pub fn state_dir(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// The daemon's admin socket.
    #[must_use]
    pub fn admin_socket(&self) -> PathBuf {
        self.state_dir().join("admin.sock")
    }

    /// A role that trusts one service account of the cluster, and the account's annotation for it.
    ///
    /// # Errors
    /// When IAM refuses the role.
    pub fn add_service_account(&self, namespace: &str, name: &str, role: &str) -> Result<String, SandboxError> {
        let arn = format!("arn:aws:iam::{ACCOUNT}:role/{role}");
        self.cloud.sts.put_role(&arn, self.trust_policy(&format!("system:serviceaccount:{namespace}:{name}")))?;
        self.annotate(namespace, name, &[("eks.amazonaws.com/role-arn", &arn)]);
        Ok(arn)
    }

    /// Gives a role that [`Self::add_service_account`] made a permissions policy, in place of the one it had.
    ///
    /// # Errors
    /// When IAM refuses the policy, or there is no such role.
    pub fn permit(&self, role: &str, permissions: Value) -> Result<(), SandboxError> {
        Ok(self.cloud.sts.put_permissions(&format!("arn:aws:iam::{ACCOUNT}:role/{role}"), &permissions)?)
    }

    /// A service account with these annotations; no role is made.
    pub fn annotate(&self, namespace: &str, name: &str, annotations: &[(&str, &str)]) {
        self.cloud.kubernetes.apply_service_account(namespace, name, annotations);
    }

    /// The trust policy that the documentation of IRSA gives.
    #[must_use]
    pub fn trust_policy(&self, subject: &str) -> Value {
        self.trust_policy_in("aws", ACCOUNT, subject)
    }

    /// A role of any account and partition that trusts a service account of the cluster, to be put into IAM. Its
    /// account gets to know the cluster's issuer.
    ///
    /// # Errors
    /// When IAM refuses the issuer.
    pub fn role(&self, arn: &str, namespace: &str, service_account: &str) -> Result<Role, SandboxError> {
        let mut parts = arn.split(':').skip(1).step_by(3);
        let (partition, account) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
        self.cloud.sts.put_oidc_provider(account, self.cloud.issuer.url(), &[AUDIENCE])?;
        let subject = format!("system:serviceaccount:{namespace}:{service_account}");
        Ok(Role::new(arn, self.trust_policy_in(partition, account, &subject)))
    }

    fn trust_policy_in(&self, partition: &str, account: &str, subject: &str) -> Value {
        let issuer = self.cloud.issuer.url().trim_start_matches("https://");
        json!({
            "Version": "2012-10-17",
            "Statement": [{
                "Effect": "Allow",
                "Principal": {"Federated": format!("arn:{partition}:iam::{account}:oidc-provider/{issuer}")},
                "Action": "sts:AssumeRoleWithWebIdentity",
                "Condition": {"StringEquals": {
                    format!("{issuer}:sub"): subject,
                    format!("{issuer}:aud"): AUDIENCE,
                }},
            }],
        })
    }

    /// A program in a pod, as an unmodified client finds itself: an empty home, no AWS setting but the
    /// region, AWS's names resolved to the sandbox and its certificates trusted.
    pub fn in_pod(&self, pod: &Pod, program: &str) -> Command {
        let aws = if pod.address().is_ipv4() { AWS } else { AWS_V6 };
        self.client(pod.network().command(program), aws)
    }

    /// The same on the node itself.
    pub fn on_node(&self, program: &str) -> Command {
        self.client(self.node().command(program), AWS)
    }

    /// A program on the node's network with an empty environment, AWS's names resolved to the sandbox: what a container
    /// there starts from.
    #[must_use]
    pub fn on_host_network(&self, program: &str) -> Command {
        with_names(self.node().command(program).env_clear(), AWS)
    }

    fn client(&self, command: Command, aws: [IpAddr; 3]) -> Command {
        let mut command = with_names(command.env_clear(), aws);
        if Path::new(TRUSTED).exists() {
            command = command.file(TRUSTED, self.cloud.ca_pem());
        }
        command
            .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()))
            .env("HOME", self.directory.path().join("home"))
            .env("TERM", std::env::var_os("TERM").unwrap_or_else(|| "dumb".into()))
            .env("AWS_REGION", REGION)
            // The command line client and boto3 read the one, the SDK for Rust the other.
            .env("AWS_CA_BUNDLE", self.ca_file())
            .env("SSL_CERT_FILE", self.ca_file())
    }

    /// The daemon's binary on the node with `run` and the flags that this sandbox needs; later flags win.
    pub fn daemon(&self, binary: &Path) -> Command {
        self.run_flags(self.node().command(binary))
    }

    /// The same under another program (a profiler, say), whose arguments end with the daemon's binary.
    pub fn daemon_under(&self, program: &str, arguments: &[&str]) -> Command {
        self.run_flags(self.node().command(program).args(arguments))
    }

    fn run_flags(&self, command: Command) -> Command {
        with_names(command, AWS)
            .arg("run")
            .args(["--node-name", NODE])
            .arg("--kubeconfig")
            .arg(self.kubeconfig())
            .arg("--state-dir")
            .arg(self.state_dir())
            .arg("--admin-socket")
            .arg(self.admin_socket())
            .arg("--ca-bundle")
            .arg(self.ca_file())
            .stdin(Stdio::null())
    }
}

/// What the daemon is granted: the rights of node mode.
#[must_use]
pub fn daemon_rights() -> [Grant; 7] {
    [
        Grant::new(&["impersonate:associated-node"], "nodes").group("authentication.k8s.io"),
        Grant::new(&["impersonate-on:associated-node:list", "impersonate-on:associated-node:watch"], "pods"),
        Grant::new(&["impersonate-on:associated-node:create"], "serviceaccounts/token"),
        Grant::new(&["impersonate-on:associated-node:get"], "nodes"),
        Grant::new(&["get", "list", "watch"], "serviceaccounts"),
        Grant::new(&["get", "list", "watch"], "namespaces"),
        Grant::new(&["create", "patch"], "events").group("events.k8s.io"),
    ]
}

/// As the chart has it, as far as it says whose pods the daemon's are and what they run.
#[must_use]
pub fn daemon_set() -> Value {
    json!({
        "metadata": { "name": DAEMON, "namespace": DAEMON, "uid": "d0000000-0000-4000-8000-000000000001", "labels": { DAEMON_LABEL: DAEMON } },
        "spec": {
            "selector": { "matchLabels": { DAEMON_LABEL: DAEMON } },
            "template": {
                "metadata": { "labels": { DAEMON_LABEL: DAEMON } },
                "spec": {
                    "serviceAccountName": DAEMON,
                    "hostNetwork": true,
                    "nodeSelector": { "kubernetes.io/os": "linux" },
                    "containers": [{
                        "name": DAEMON,
                        "image": "example.com/main",
                        "args": ["run"],
                        "env": [{ "name": "KUBE2IRSA_REGION", "value": REGION }],
                    }],
                },
            },
        },
        "status": {},
    })
}

/// AWS's names, resolved to these addresses of STS, S3 and EC2.
fn with_names(command: Command, [sts, s3, ec2]: [IpAddr; 3]) -> Command {
    let names = STS_NAMES.map(|name| (name, sts)).into_iter();
    command.names(names.chain(S3_NAMES.map(|name| (name, s3))).chain(EC2_NAMES.map(|name| (name, ec2))))
}

/// Asks a server in a namespace for a page over HTTP/1.0, and returns the status and the body.
///
/// # Errors
/// When nobody answers.
pub fn get(namespace: &Namespace, server: SocketAddr, path: &str) -> Result<(u16, String), SandboxError> {
    use std::io::{Read as _, Write as _};
    let answer = namespace.enter(|| {
        let mut stream = std::net::TcpStream::connect_timeout(&server, Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {server}\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        io::Result::Ok(answer)
    })??;
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

/// Waits until the daemon is ready; what it lacks otherwise.
///
/// # Errors
/// What it still lacks after `limit`, or that it has ended.
pub fn wait_until_ready(namespace: &Namespace, daemon: &mut Process, limit: Duration) -> Result<(), String> {
    let start = Instant::now();
    loop {
        let lacks = match get(namespace, ADMIN, "/readyz") {
            Ok((200, _)) => return Ok(()),
            Ok((_, lacks)) => lacks,
            Err(error) => error.to_string(),
        };
        if let Ok(Some(status)) = daemon.try_wait() {
            return Err(format!("the daemon ended: {status}"));
        }
        if start.elapsed() > limit {
            return Err(lacks);
        }
        thread::sleep(Duration::from_millis(10));
    }
}

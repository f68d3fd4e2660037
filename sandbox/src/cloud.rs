//! What is outside of the node: the Kubernetes API, the token issuer, STS, S3, EC2, the metadata service and a container
//! credentials endpoint, each at its own address and over real sockets.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
};

use http::{Request, Response, StatusCode, Uri, header::CONTENT_TYPE};
use hyper::body::Incoming;
use rustls::ServerConfig;
use tokio::{net::TcpListener, runtime::Runtime};

use crate::{
    agent::Agent,
    ca::{Ca, CaError},
    ec2::{Ec2, Instance},
    http::{Body, Server, full},
    imds::Imds,
    issuer::{DISCOVERY_PATH, Issuer, IssuerError, JWKS_PATH},
    kubernetes::Kubernetes,
    network::{
        CONTAINER_ADDRESS_V6, CONTAINER_ADDRESSES, EC2_ADDRESS, EC2_ADDRESS_V6, Families, KUBERNETES_ADDRESS,
        METADATA_ADDRESS, METADATA_ADDRESS_V6, NODE_ADDRESS, Namespace, NetworkError, OIDC_ADDRESS, S3_ADDRESS,
        S3_ADDRESS_V6, STS_ADDRESS, STS_ADDRESS_V6,
    },
    s3::S3,
    sts::Sts,
    web::Web,
};

/// The region that the sandbox plays.
pub const REGION: &str = "eu-central-1";
/// The account that the node belongs to.
pub const ACCOUNT: &str = "111122223333";
/// The name of the node's own role, which no pod may ever get.
pub const NODE_ROLE: &str = "node";
/// The node's instance id.
pub const INSTANCE_ID: &str = "i-0123456789abcdef0";
/// Where the Kubernetes API listens.
pub const KUBERNETES_PORT: u16 = 6443;

/// The names by which unmodified clients know STS.
pub const STS_NAMES: [&str; 5] = [
    "sts.eu-central-1.amazonaws.com",
    "sts.amazonaws.com",
    "sts-fips.us-east-2.amazonaws.com",
    "sts.cn-north-1.amazonaws.com.cn",
    "sts.us-gov-west-1.amazonaws.com",
];

/// A bucket that there is from the start.
pub const BUCKET: &str = "sandbox-bucket";

/// The names by which unmodified clients know S3 and [`BUCKET`].
pub const S3_NAMES: [&str; 6] = [
    "s3.eu-central-1.amazonaws.com",
    "sandbox-bucket.s3.eu-central-1.amazonaws.com",
    "s3.dualstack.eu-central-1.amazonaws.com",
    "sandbox-bucket.s3.dualstack.eu-central-1.amazonaws.com",
    "s3.amazonaws.com",
    "sandbox-bucket.s3.amazonaws.com",
];

/// The names by which unmodified clients know EC2.
pub const EC2_NAMES: [&str; 2] = ["ec2.eu-central-1.amazonaws.com", "ec2.eu-central-1.api.aws"];

/// The cloud could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CloudError {
    /// A certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The issuer's key.
    #[error(transparent)]
    Issuer(#[from] IssuerError),
    /// The namespace.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// A socket.
    #[error("a server of the sandbox cannot listen: {0}")]
    Listen(#[from] io::Error),
}

/// The servers outside of the node. Dropped, they stop.
#[derive(Debug)]
pub struct Cloud {
    /// The Kubernetes API.
    pub kubernetes: Kubernetes,
    /// The Security Token Service, with IAM's roles.
    pub sts: Sts,
    /// The Simple Storage Service.
    pub s3: S3,
    /// The Elastic Compute Cloud, which knows the node.
    pub ec2: Ec2,
    /// The metadata service.
    pub imds: Imds,
    /// The container credentials endpoint that an agent has behind the node.
    pub agent: Agent,
    /// Who signs service account tokens.
    pub issuer: Arc<Issuer>,
    /// All issuers whose documents AWS finds, on one host.
    published: Published,
    ca: Arc<Ca>,
    outside: Namespace,
    api_tls: Arc<ServerConfig>,
    api: Mutex<Option<Server>>,
    servers: Vec<Server>,
    /// Its threads live in the outside's namespace, so that STS reaches the issuer from there.
    runtime: Option<Runtime>,
}

impl Cloud {
    /// Starts all servers in the namespace `outside`; what pods call listens with IPv6 too where they have it.
    ///
    /// # Errors
    /// When a key cannot be made or a server cannot listen.
    pub fn start(outside: &Namespace, families: Families) -> Result<Self, CloudError> {
        Self::start_with(outside, families, None)
    }

    /// The same with an issuer of this URL, whose documents are not there until they are put on the web host that its name
    /// stands for.
    ///
    /// # Errors
    /// As [`Cloud::start`].
    pub fn start_with(
        outside: &Namespace,
        families: Families,
        elsewhere: Option<(&str, Web)>,
    ) -> Result<Self, CloudError> {
        let ca = Arc::new(Ca::new()?);
        let own = format!("https://{OIDC_ADDRESS}");
        let issuer = Issuer::new(elsewhere.as_ref().map_or(own.as_str(), |(url, _)| url))?;
        let web =
            elsewhere.map(|(url, web)| (url.parse::<Uri>().ok().and_then(|url| url.host().map(str::to_owned)), web));
        let sts = match &web {
            Some((Some(host), _)) => Sts::resolving(ca.client()?, [(host.clone(), OIDC_ADDRESS.into())]),
            _ => Sts::new(ca.client()?),
        };
        let s3 = S3::new(REGION, sts.clone());
        s3.put_object(BUCKET, "greeting", "Hello from the sandbox.\n");
        Self::with(outside, families, (ca, sts, s3, Published::default()), issuer, web)
    }

    /// The same AWS as that of `first`, seen from another node's outside, and another Kubernetes, whose issuer is known by `path` on
    /// the same host. What AWS knows and does is one; of this issuer its accounts know nothing yet.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_beside(first: &Self, outside: &Namespace, families: Families, path: &str) -> Result<Self, CloudError> {
        let aws = (Arc::clone(&first.ca), first.sts.clone(), first.s3.clone(), first.published.clone());
        Self::with(outside, families, aws, Issuer::new(format!("https://{OIDC_ADDRESS}/{path}"))?, None)
    }

    fn with(
        outside: &Namespace,
        families: Families,
        (ca, sts, s3, published): (Arc<Ca>, Sts, S3, Published),
        issuer: Issuer,
        web: Option<(Option<String>, Web)>,
    ) -> Result<Self, CloudError> {
        let issuer = Arc::new(issuer);
        published.add(Arc::clone(&issuer));
        let kubernetes = Kubernetes::new(Arc::clone(&issuer));
        let ec2 = Ec2::new(REGION, ACCOUNT, sts.clone());
        ec2.put_instance(Instance {
            id: INSTANCE_ID.to_owned(),
            kind: "m6i.large".to_owned(),
            address: NODE_ADDRESS.to_string(),
            name: "node-1".to_owned(),
            profile: format!("arn:aws:iam::{ACCOUNT}:instance-profile/{NODE_ROLE}"),
        });
        let node_role = format!("arn:aws:iam::{ACCOUNT}:role/{NODE_ROLE}");
        let of_node = {
            let sts = sts.clone();
            move || sts.instance_credentials(&node_role, INSTANCE_ID)
        };
        let (imds, agent) = (Imds::new(NODE_ROLE, REGION, of_node.clone()), Agent::new(of_node));
        let runtime =
            outside.enter(|| tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build())??;
        let mut cloud = Self {
            api_tls: ca.server(&[&KUBERNETES_ADDRESS.to_string()])?,
            kubernetes,
            sts,
            s3,
            ec2,
            imds,
            agent,
            issuer,
            published,
            ca,
            outside: outside.clone(),
            api: Mutex::default(),
            servers: Vec::new(),
            runtime: Some(runtime),
        };
        cloud.start_servers(families)?;
        cloud.start_issuer(web)?;
        cloud.start_api()?;
        Ok(cloud)
    }

    /// The certificate (PEM) that signed every server's.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        self.ca.pem()
    }

    /// A certificate chain of the same authority and its key, both PEM, for a server of another program.
    ///
    /// # Errors
    /// When the certificate cannot be made.
    pub fn server_pem(&self, names: &[&str]) -> Result<(String, String), CloudError> {
        Ok(self.ca.server_pem(names)?)
    }

    /// The documents of one more issuer (no slash at the end of its URL, which is of this host) are found from now on.
    pub fn publish(&self, issuer: Arc<Issuer>) {
        self.published.add(issuer);
    }

    /// The Kubernetes API's URL.
    #[must_use]
    pub fn api_url(&self) -> String {
        format!("https://{KUBERNETES_ADDRESS}:{KUBERNETES_PORT}")
    }

    /// The Kubernetes API goes away: its connections are cut and new ones are refused.
    pub fn stop_api(&self) {
        self.api.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The Kubernetes API's connections are reset in the middle of whatever they do; new ones are accepted.
    pub fn reset_api_connections(&self) {
        if let Some(server) = &*self.api.lock().unwrap_or_else(PoisonError::into_inner) {
            server.cut_connections();
        }
    }

    /// The connections of all other servers are reset in the same way.
    pub fn reset_other_connections(&self) {
        self.servers.iter().for_each(Server::cut_connections);
    }

    /// The Kubernetes API is there (again), with all that it knew.
    ///
    /// # Errors
    /// When it cannot listen.
    pub fn start_api(&self) -> Result<(), CloudError> {
        let kubernetes = self.kubernetes.clone();
        let server = self.serve(
            KUBERNETES_ADDRESS.into(),
            KUBERNETES_PORT,
            Some(Arc::clone(&self.api_tls)),
            move |request, _| {
                let kubernetes = kubernetes.clone();
                async move { kubernetes.handle(request).await }
            },
        )?;
        *self.api.lock().unwrap_or_else(PoisonError::into_inner) = Some(server);
        Ok(())
    }

    fn start_servers(&mut self, families: Families) -> Result<(), CloudError> {
        let with_v6 = |v4: &[IpAddr], v6: IpAddr| [v4, families.has_v6().then_some(v6).as_slice()].concat();
        let addresses = with_v6(&[STS_ADDRESS.into()], STS_ADDRESS_V6.into());
        let own_names = addresses.iter().map(ToString::to_string).collect::<Vec<_>>();
        let names = STS_NAMES.into_iter().chain(own_names.iter().map(String::as_str)).collect::<Vec<_>>();
        let sts = self.sts.clone();
        let tls = Some(self.ca.server(&names)?);
        self.serve_all(&addresses, 443, tls.as_ref(), move |request, _| {
            let sts = sts.clone();
            async move { sts.handle(request).await }
        })?;
        let s3 = self.s3.clone();
        let tls = Some(self.ca.server(&S3_NAMES)?);
        self.serve_all(&with_v6(&[S3_ADDRESS.into()], S3_ADDRESS_V6.into()), 443, tls.as_ref(), move |request, _| {
            let s3 = s3.clone();
            async move { s3.handle(request).await }
        })?;
        let ec2 = self.ec2.clone();
        let tls = Some(self.ca.server(&EC2_NAMES)?);
        self.serve_all(
            &with_v6(&[EC2_ADDRESS.into()], EC2_ADDRESS_V6.into()),
            443,
            tls.as_ref(),
            move |request, _| {
                let ec2 = ec2.clone();
                async move { ec2.handle(request).await }
            },
        )?;
        let imds = self.imds.clone();
        let addresses = with_v6(&[METADATA_ADDRESS.into()], METADATA_ADDRESS_V6.into());
        self.serve_all(&addresses, 80, None, move |request, peer| {
            let imds = imds.clone();
            async move { imds.handle_from(request, peer).await }
        })?;
        let agent = self.agent.clone();
        let addresses = with_v6(&CONTAINER_ADDRESSES.map(IpAddr::from), CONTAINER_ADDRESS_V6.into());
        self.serve_all(&addresses, 80, None, move |request, _| std::future::ready(agent.handle::<Incoming>(&request)))
    }

    /// The issuers' documents: as they have them, or as they were put on a web host.
    fn start_issuer(&mut self, web: Option<(Option<String>, Web)>) -> Result<(), CloudError> {
        if let Some((host, web)) = web {
            let tls = Some(self.ca.server(&[&host.unwrap_or_else(|| OIDC_ADDRESS.to_string())])?);
            return self.serve_all(&[OIDC_ADDRESS.into()], 443, tls.as_ref(), move |request, _| {
                std::future::ready(web.handle(&request))
            });
        }
        let published = self.published.clone();
        let tls = Some(self.ca.server(&[&OIDC_ADDRESS.to_string()])?);
        self.serve_all(&[OIDC_ADDRESS.into()], 443, tls.as_ref(), move |request, _| {
            std::future::ready(published.document(request.uri().path()))
        })
    }

    /// One service at several addresses.
    fn serve_all<H, F>(
        &mut self,
        addresses: &[IpAddr],
        port: u16,
        tls: Option<&Arc<ServerConfig>>,
        handler: H,
    ) -> Result<(), CloudError>
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        for address in addresses {
            let server = self.serve(*address, port, tls.cloned(), handler.clone())?;
            self.servers.push(server);
        }
        Ok(())
    }

    fn serve<H, F>(
        &self,
        address: IpAddr,
        port: u16,
        tls: Option<Arc<ServerConfig>>,
        handler: H,
    ) -> Result<Server, CloudError>
    where
        H: Fn(Request<Incoming>, SocketAddr) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let Some(runtime) = &self.runtime else { return Err(io::Error::from(io::ErrorKind::NotConnected).into()) };
        let listener = self.outside.enter(|| std::net::TcpListener::bind((address, port)))??;
        listener.set_nonblocking(true)?;
        let _runtime = runtime.enter();
        Ok(Server::start(TcpListener::from_std(listener)?, tls, handler)?)
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The documents of issuers, as anybody on the Internet may read them. Clones are the same.
#[derive(Clone, Debug, Default)]
struct Published(Arc<Mutex<Vec<Arc<Issuer>>>>);

impl Published {
    fn add(&self, issuer: Arc<Issuer>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(issuer);
    }

    /// One of an issuer's two documents, below the path of its URL.
    fn document(&self, path: &str) -> Response<Body> {
        let host = format!("https://{OIDC_ADDRESS}");
        let issuers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let document =
            issuers.iter().find_map(|issuer| match path.strip_prefix(issuer.url().strip_prefix(&host)?)? {
                DISCOVERY_PATH => Some(issuer.discovery()),
                JWKS_PATH => Some(issuer.jwks()),
                _ => None,
            });
        let mut response = Response::new(full(document.as_ref().map(ToString::to_string).unwrap_or_default()));
        response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
        if document.is_none() {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    }
}

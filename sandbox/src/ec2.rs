//! The Elastic Compute Cloud, as far as `DescribeInstances` goes: what a role may do, and not only whose it is, is what it
//! is here for.
//!
//! It verifies each request's signature with the keys that the sandbox's STS handed out, session token included, and asks the
//! permissions policy of the caller's role. Shapes and errors are those of the [EC2 API reference][api].
//!
//! What the real one does and this one does not: all other operations, filters, pages (refused, not passed over).
//!
//! [api]: https://docs.aws.amazon.com/AWSEC2/latest/APIReference/Welcome.html

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::SystemTime,
};

use http::{HeaderValue, Request, Response, StatusCode, header, request::Parts};
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;

use crate::{
    clock,
    http::{Body, full},
    sts::{Parameters, Permission, Refusal, Service, Sts, escape, opaque_token, request_id, timestamp, unique_id},
};

/// The version of the API that today's clients name.
const VERSION: &str = "2016-11-15";
const LARGEST_BODY: usize = 1_000_000;
const DESCRIBE_INSTANCES: &str = "DescribeInstances";

/// An instance that runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// `i-` and 17 digits.
    pub id: String,
    /// Its type, such as `m6i.large`.
    pub kind: String,
    /// Its address in the VPC.
    pub address: String,
    /// Its tag `Name`.
    pub name: String,
    /// The ARN of its instance profile.
    pub profile: String,
}

/// One request that was answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Call {
    /// The operation; empty if none was named.
    pub action: String,
    /// The ARN of who signed it with keys that STS gave, if somebody did.
    pub caller: Option<String>,
    /// `Success`, or AWS's error code.
    pub outcome: &'static str,
}

/// An Elastic Compute Cloud of one region. Clones are the same service.
#[derive(Clone, Debug)]
pub struct Ec2(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    region: &'static str,
    account: &'static str,
    sts: Sts,
    launched: SystemTime,
    instances: Mutex<Vec<Instance>>,
    calls: Mutex<Vec<Call>>,
}

impl Ec2 {
    /// A service without instances, for callers whom `sts` gave keys; all is `account`'s.
    #[must_use]
    pub fn new(region: &'static str, account: &'static str, sts: Sts) -> Self {
        let (instances, calls) = (Mutex::default(), Mutex::default());
        Self(Arc::new(Inner { region, account, sts, launched: clock::now(), instances, calls }))
    }

    /// Adds an instance.
    pub fn put_instance(&self, instance: Instance) {
        locked(&self.0.instances).push(instance);
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
        let body = body.unwrap_or_default();
        let parameters = Parameters::of(&parts, &body);
        let (caller, answer) = self.0.answer(&parts, &body, &parameters);
        let outcome = answer.as_ref().map_or_else(|refusal| refusal.code, |_| "Success");
        let action = parameters.get("Action").unwrap_or_default().to_owned();
        tracing::debug!(action, ?caller, outcome, "ec2");
        locked(&self.0.calls).push(Call { action, caller, outcome });
        response(answer, &request_id())
    }
}

impl Inner {
    fn answer(&self, parts: &Parts, body: &[u8], parameters: &Parameters) -> (Option<String>, Result<String, Refusal>) {
        let service = Service::Ec2 { region: self.region };
        // That an operation is not there is said to nobody who is not known.
        let action = format!("ec2:{}", parameters.get("Action").unwrap_or_default());
        let (caller, permission) = match self.sts.permission(service, parts, body, &action, "*") {
            Ok(answer) => answer,
            Err(refusal) => return (None, Err(ec2_words(refusal))),
        };
        let answer = match parameters.get("Action") {
            Some(DESCRIBE_INSTANCES) => match permission {
                Permission::Allowed => self.describe_instances(parameters),
                Permission::Denied { explicitly } => Err(unauthorized(&caller, &action, explicitly)),
            },
            Some(action) => {
                Err(Refusal::bad("InvalidAction", format!("The action {action} is not valid for this web service.")))
            }
            None => Err(Refusal::bad("MissingAction", "The request is missing an action or a required parameter.")),
        };
        (Some(caller), answer)
    }

    fn describe_instances(&self, parameters: &Parameters) -> Result<String, Refusal> {
        let known = |name: &str| {
            matches!(name, "Action" | "Version" | "MaxResults")
                || name.strip_prefix("InstanceId.").is_some_and(|rest| rest.parse::<u16>().is_ok())
                || name.starts_with("X-Amz-")
        };
        if let Some(name) = parameters.names().find(|name| !known(name)) {
            return Err(Refusal::bad("UnknownParameter", format!("The parameter {name} is not known to this sandbox")));
        }
        if parameters.get("Version") != Some(VERSION) {
            return Err(Refusal::bad("NoSuchVersion", format!("This sandbox knows the version {VERSION} alone")));
        }
        let wanted = (1..).map_while(|number| parameters.get(&format!("InstanceId.{number}"))).collect::<Vec<_>>();
        let instances = locked(&self.instances);
        if let Some(unknown) = wanted.iter().find(|wanted| !instances.iter().any(|there| there.id == **wanted)) {
            let message = format!("The instance ID '{unknown}' does not exist");
            return Err(Refusal::bad("InvalidInstanceID.NotFound", message));
        }
        let of = instances.iter().filter(|there| wanted.is_empty() || wanted.contains(&there.id.as_str()));
        Ok(of.map(|instance| self.reservation(instance)).collect())
    }

    fn reservation(&self, instance: &Instance) -> String {
        let Instance { id, kind, address, name, profile } = instance;
        let number = id.trim_start_matches("i-");
        let (region, account, launched) = (self.region, self.account, timestamp(self.launched));
        let private = format!("ip-{}.{region}.compute.internal", address.replace('.', "-"));
        let profile_id = unique_id("AIPA", profile);
        format!(
            "<item><reservationId>r-{number}</reservationId><ownerId>{account}</ownerId><groupSet/><instancesSet><item>\
             <instanceId>{id}</instanceId><imageId>ami-{number}</imageId>\
             <instanceState><code>16</code><name>running</name></instanceState>\
             <privateDnsName>{private}</privateDnsName><dnsName/><reason/><amiLaunchIndex>0</amiLaunchIndex>\
             <productCodes/><instanceType>{}</instanceType><launchTime>{launched}</launchTime>\
             <placement><availabilityZone>{region}a</availabilityZone><groupName/><tenancy>default</tenancy></placement>\
             <monitoring><state>disabled</state></monitoring><subnetId>subnet-{number}</subnetId><vpcId>vpc-{number}</vpcId>\
             <privateIpAddress>{address}</privateIpAddress><sourceDestCheck>true</sourceDestCheck><groupSet/>\
             <architecture>x86_64</architecture><rootDeviceType>ebs</rootDeviceType>\
             <rootDeviceName>/dev/xvda</rootDeviceName><blockDeviceMapping/><virtualizationType>hvm</virtualizationType>\
             <tagSet><item><key>Name</key><value>{}</value></item></tagSet><hypervisor>xen</hypervisor>\
             <networkInterfaceSet/><iamInstanceProfile><arn>{}</arn><id>{profile_id}</id></iamInstanceProfile>\
             <ebsOptimized>true</ebsOptimized></item></instancesSet></item>",
            escape(kind),
            escape(name),
            escape(profile),
        )
    }
}

/// What the role's policies do not allow. What could be decoded from the message, with another right, is nothing here.
fn unauthorized(caller: &str, action: &str, explicitly: bool) -> Refusal {
    let why = if explicitly {
        "with an explicit deny in an identity-based policy".to_owned()
    } else {
        format!("because no identity-based policy allows the {action} action")
    };
    let encoded = opaque_token();
    let message = format!(
        "You are not authorized to perform this operation. User: {caller} is not authorized to perform: {action} {why}. \
         Encoded authorization failure message: {encoded}"
    );
    Refusal::forbidden("UnauthorizedOperation", message)
}

/// EC2's own status and code for what STS would say of a signature.
fn ec2_words(refusal: Refusal) -> Refusal {
    const NOT_VALIDATED: &str = "AWS was not able to validate the provided access credentials";
    match refusal.code {
        "MissingAuthenticationToken" => {
            Refusal::bad("MissingParameter", "The request must contain the parameter AWSAccessKeyId")
        }
        "InvalidClientTokenId" | "SignatureDoesNotMatch" => {
            Refusal::new(StatusCode::UNAUTHORIZED, "AuthFailure", NOT_VALIDATED)
        }
        "ExpiredToken" => Refusal::bad("RequestExpired", "Request has expired."),
        _ => refusal,
    }
}

fn response(answer: Result<String, Refusal>, request_id: &str) -> Response<Body> {
    let (status, document) = match answer {
        Ok(reservations) => (
            StatusCode::OK,
            format!(
                "<DescribeInstancesResponse xmlns=\"http://ec2.amazonaws.com/doc/{VERSION}/\">\
                 <requestId>{request_id}</requestId><reservationSet>{reservations}</reservationSet>\
                 </DescribeInstancesResponse>"
            ),
        ),
        Err(refusal) => (
            refusal.status,
            format!(
                "<Response><Errors><Error><Code>{}</Code><Message>{}</Message></Error></Errors>\
                 <RequestID>{request_id}</RequestID></Response>",
                refusal.code,
                escape(refusal.message.as_deref().unwrap_or_default()),
            ),
        ),
    };
    let mut response = Response::new(full(format!("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n{document}")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/xml;charset=UTF-8"));
    headers.insert(header::SERVER, HeaderValue::from_static("AmazonEC2"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert("x-amzn-requestid", id);
    }
    response
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

//! The first credentials of a pod: fetched before it asks, and not.

use std::time::{Duration, Instant};

use anyhow::ensure;
use http::Method;
use sandbox::{
    cloud::ACCOUNT,
    kubernetes::{Fault, Target},
    sandbox::{Pod, Sandbox},
};

use crate::{
    place::Place,
    report::{Report, milliseconds, percentile},
    support::{ROLE_NAME, connect, total},
};

const PODS: usize = 100;
/// How long the API server takes for a token, and STS for its exchange.
const TOKEN: Duration = Duration::from_millis(20);
const EXCHANGE: Duration = Duration::from_millis(50);
/// A role that is fetched when somebody asks for it.
const ADDITIONAL: &str = "additional";
const NO_BUDGET: [&str; 4] = ["--sts-rate", "1000", "--sts-burst", "1000"];

pub(crate) fn measure(report: &mut Report) -> anyhow::Result<()> {
    let place = Place::new()?;
    let sandbox = &place.sandbox;
    let additional = sandbox.add_service_account("team-a", "web", ADDITIONAL)?;
    let main = format!("arn:aws:iam::{ACCOUNT}:role/web");
    let roles = [("eks.amazonaws.com/role-arn", &*main), ("kube2irsa.io/additional-role-arns", &*additional)];
    sandbox.annotate("team-a", "web", &roles);
    sandbox.cloud.sts.faults().set_latency(EXCHANGE);
    let tokens = Target::any().verb("create").resource("serviceaccounts/token");
    sandbox.cloud.kubernetes.faults().inject(tokens, Fault::Delay(TOKEN));
    let _daemon = place.daemon(&NO_BUDGET, &[])?;
    let (mut prefetched, mut others) = (Vec::new(), Vec::new());
    for number in 0..PODS {
        let pod = place.prefetched(&format!("first-{number}"))?;
        prefetched.push(milliseconds(as_an_sdk(&pod)?));
        let before = (sandbox.cloud.sts.calls().len(), round_trips(sandbox));
        let took = document(&pod, ADDITIONAL)?;
        others.push(milliseconds(took) - (round_trips(sandbox) - before.1));
        ensure!(sandbox.cloud.sts.calls().len() == before.0 + 1, "it was not fetched when it was asked for");
        sandbox.remove_pod(pod)?;
    }
    report.noted("prefetched pod, an SDK's three requests, p50 of 100 pods, ms", percentile(&prefetched, 50));
    report.at_most("the same, p99", percentile(&prefetched, 99), 5.0);
    report.noted("not prefetched, over its TokenRequest and its exchange, p50, ms", percentile(&others, 50));
    report.at_most("the same, p99", percentile(&others, 99), 5.0);
    Ok(())
}

/// What the daemon has waited for the API server's tokens and for STS so far, in milliseconds.
fn round_trips(sandbox: &Sandbox) -> f64 {
    let seconds =
        ["token_request", "sts_exchange"].map(|what| total(sandbox, &format!("kube2irsa_{what}_duration_seconds_sum")));
    seconds.iter().sum::<f64>() * 1e3
}

/// Token, name and document, on one new connection.
fn as_an_sdk(pod: &Pod) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut connection = connect(pod)?;
    connection.0.set_nodelay(true)?;
    let mut ask = |method: Method, path: &str, header: (&str, &str)| {
        connection.send(method.as_str(), path, &[header, ("Content-Length", "0")])?;
        let answer = connection.answer()?;
        ensure!(answer.status == 200, "{path}: {}", answer.status);
        Ok(answer.text().to_owned())
    };
    let token = ask(Method::PUT, "/latest/api/token", ("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "21600"))?;
    let session = ("X-Aws-Ec2-Metadata-Token", token.as_str());
    let name = ask(Method::GET, ROLE_NAME, session)?;
    ask(Method::GET, &format!("{ROLE_NAME}{name}"), session)?;
    Ok(start.elapsed())
}

/// A role's document, on a new connection.
fn document(pod: &Pod, role: &str) -> anyhow::Result<Duration> {
    let start = Instant::now();
    let mut connection = connect(pod)?;
    connection.send("GET", &format!("{ROLE_NAME}{role}"), &[])?;
    let status = connection.answer()?.status;
    ensure!(status == 200, "{role}: {status}");
    Ok(start.elapsed())
}

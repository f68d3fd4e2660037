//! What the flags say of the limits of the pods' listener.

use std::{fmt::Display, ops::RangeInclusive, str::FromStr, time::Duration};

use super::Errors;
use crate::{cli::RunArgs, imds::limits::Limits};

const CONNECTIONS: (RangeInclusive<usize>, &str) = (1..=1_000_000, "a number of connections from 1 to 1000000");
const REQUESTS: (RangeInclusive<u32>, &str) = (1..=1_000_000, "a number of requests from 1 to 1000000");
const HEAD: (RangeInclusive<usize>, &str) = (1024..=65_536, "a number of bytes from 1024 to 65536");
const BODY: (RangeInclusive<usize>, &str) = (0..=65_536, "a number of bytes from 0 to 65536");
const TIMEOUT: (RangeInclusive<f64>, &str) = (0.1..=3600.0, "a number of seconds from 0.1 to 3600");

pub(super) fn read(args: &RunArgs, errors: &mut Errors) -> Limits {
    let connections_per_pod = within(errors, "--max-connections-per-pod", &args.max_connections_per_pod, CONNECTIONS);
    let connections = within(errors, "--max-connections", &args.max_connections, CONNECTIONS);
    let requests_per_second = within(errors, "--requests-per-pod", &args.requests_per_pod, REQUESTS);
    let request_burst = within(errors, "--request-burst-per-pod", &args.request_burst_per_pod, REQUESTS);
    let request_head = within(errors, "--max-request-head", &args.max_request_head, HEAD);
    let request_body = within(errors, "--max-request-body", &args.max_request_body, BODY);
    let [request_timeout, idle_timeout] =
        [("--request-timeout", &args.request_timeout), ("--idle-timeout", &args.idle_timeout)]
            .map(|(flag, text)| Duration::from_secs_f64(within(errors, flag, text, TIMEOUT)));
    Limits {
        connections_per_pod,
        connections,
        requests_per_second,
        request_burst,
        request_head,
        request_body,
        request_timeout,
        idle_timeout,
    }
}

fn within<T: FromStr + PartialOrd + Display + Copy>(
    errors: &mut Errors,
    flag: &str,
    text: &str,
    (range, what): (RangeInclusive<T>, &str),
) -> T {
    let instead = *range.end();
    match text.parse() {
        Ok(value) if range.contains(&value) => value,
        _ => errors.add(format!("{flag} {text:?}: is not {what}"), instead),
    }
}

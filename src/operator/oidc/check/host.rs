//! The host: whether AWS can know it for the one that it says it is.

use std::{net::IpAddr, time::SystemTime};

use http::Uri;

use crate::{
    clock::rfc3339,
    operator::oidc::{
        certificate::{Certificate, Disorder, disorder, thumbprint as thumbprint_of},
        fetch::{Fetched, Trust},
        finding::{Check, Finding},
        issuer::{is_of_aws, is_private},
    },
};

const DISTRUST: &str = "STS then refuses every token: InvalidIdentityToken, \"OpenIDConnect provider's HTTPS certificate doesn't \
                        match configured thumbprint\".";

/// Whether the host's certificates are good, and stay so for long enough.
pub(super) fn certificate(fetched: &Fetched, now: SystemTime) -> Vec<Finding> {
    let check = Check::Certificate;
    let host = host(fetched);
    let mut found = Vec::new();
    if !fetched.addresses.is_empty() && fetched.addresses.iter().all(|address| is_private(*address)) {
        let addresses = fetched.addresses.iter().map(IpAddr::to_string).collect::<Vec<_>>();
        found.push(check.note(
            format!("{host} is {} here, where nobody on the Internet gets", addresses.join(", ")),
            "STS resolves the name on the Internet. If it gets the same there, it refuses every token.",
            "Check from outside of this network: kube2irsa oidc check --issuer URL",
        ));
    }
    let Some(shown) = &fetched.shown else { return found };
    match disorder(&shown.chain) {
        Some(Disorder::Twice) => found.push(check.fails(
            format!("{host} sends a certificate twice"),
            "STS fails on a chain with duplicates.",
            "Let the host send its own certificate, then each one that signed the one before, once.",
        )),
        Some(Disorder::Order) => found.push(check.fails(
            format!("{host} sends its certificates in another order than they were signed, or others between them"),
            "STS fails on such a chain, though browsers do not.",
            "Let the host send its own certificate, then each one that signed the one before, once.",
        )),
        None => {}
    }
    let read = shown.chain.first().and_then(|der| Certificate::read(der));
    let until = read.as_ref().and_then(|read| rfc3339(read.not_after)).unwrap_or_default();
    match &shown.trust {
        Trust::None(why) => {
            let mend = match shown.chain.len() {
                1 => {
                    "Let the host send the certificates of the authorities between its own and the root, too. If the authority \
                      is your own: --ca-file FILE"
                }
                _ => {
                    "Take a certificate of a public authority, for this name. If the authority is your own: --ca-file FILE"
                }
            };
            found.push(check.fails(format!("{host}: its certificate is not good: {why}"), DISTRUST, mend));
        }
        Trust::Unknown => found.push(check.note(
            format!("{host}: this machine knows no authorities by which its certificate could be checked"),
            "Whether AWS trusts it is not known.",
            "Run it where there are some (ca-certificates), or name a file of them: SSL_CERT_FILE",
        )),
        Trust::Public | Trust::Own => match read.filter(|read| read.ends_soon(now)) {
            Some(_) => found.push(check.fails(
                format!("{host}: its certificate ends at {until}, and should have been renewed by now"),
                "From then on STS refuses every token.",
                "Renew it, and see why nothing did.",
            )),
            None => found.push(check.ok(format!("{host}: its certificate is good until {until}"))),
        },
    }
    found
}

/// Whether IAM goes by the thumbprint, and which it is.
pub(super) fn thumbprint(fetched: &Fetched, issuer: &str) -> Option<Finding> {
    let check = Check::Thumbprint;
    let shown = fetched.shown.as_ref()?;
    let thumbprint = thumbprint_of(&shown.chain)?;
    let host = host(fetched);
    if let Some(service) = is_of_aws(&host) {
        return Some(check.ok(format!("IAM looks at none for {service}; it would be {thumbprint}")));
    }
    let mend = format!(
        "aws iam create-open-id-connect-provider --url {issuer} --client-id-list sts.amazonaws.com --thumbprint-list \
         {thumbprint}\nor, where there is one: aws iam update-open-id-connect-provider-thumbprint \
         --open-id-connect-provider-arn ARN --thumbprint-list {thumbprint}"
    );
    let alone = match shown.chain.len() {
        1 => " It is that of the host's own certificate, since the host sends no other: it changes with each renewal.",
        _ => "",
    };
    match &shown.trust {
        _ if shown.only_tls13 => Some(check.note(
            format!("IAM goes by it, and it must be {thumbprint}: {host} refuses TLS 1.2"),
            format!("Where TLS 1.3 is required AWS does not go by its own list of authorities.{alone}"),
            format!("Let the host take TLS 1.2 as well, or\n{mend}"),
        )),
        Trust::Public => Some(check.ok(format!(
            "IAM does not go by it where AWS trusts the certificate's authority, as this machine does; it would be {thumbprint}"
        ))),
        Trust::Own => Some(check.note(
            format!("IAM goes by it, and it must be {thumbprint}"),
            format!("The authority is none that AWS trusts: only the thumbprint in IAM makes it take the host's word.{alone}"),
            mend,
        )),
        // What the certificate lacks is said already; with another one the thumbprint is another.
        Trust::None(_) | Trust::Unknown => None,
    }
}

fn host(fetched: &Fetched) -> String {
    fetched.url.parse::<Uri>().ok().and_then(|uri| uri.host().map(str::to_owned)).unwrap_or_default()
}

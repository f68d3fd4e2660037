//! AssumeRoleWithWebIdentity: a token for a role's keys.
//!
//! Shape: [STS API reference][reference]. Order of the checks: parameters, token, provider, signature,
//! audience, times, then the role. A role that is not there and one that does not trust the token's
//! subject look the same.
//!
//! [reference]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRoleWithWebIdentity.html

use std::time::Duration;

use super::{
    Inner,
    account::RoleArn,
    answers::{Element, Refusal},
    opened,
    policy::{Caller, Context, TrustPolicy, Verdict},
    query::{ARN, Constraints, Parameters, SESSION_NAME},
    token::Token,
};

const ACTION: &str = "sts:AssumeRoleWithWebIdentity";
const DEFAULT_DURATION: i32 = 3600;

/// What was asked, its form checked.
struct Ask<'a> {
    role: RoleArn,
    role_arn: &'a str,
    session_name: &'a str,
    token: &'a str,
    duration: Duration,
}

pub(super) async fn assume_role(sts: &Inner, parameters: &Parameters) -> Result<Element, Refusal> {
    let ask = Ask::read(parameters)?;
    let token = Token::parse(ask.token)?;
    let audiences = sts.accounts().provider(&ask.role.account, &token.issuer).ok_or_else(|| {
        Refusal::identity_token(format!("No OpenIDConnect provider found in your account for {}", token.issuer))
    })?;
    token.verify(&sts.issuers.key(&token).await?)?;
    let audience = token
        .audiences
        .iter()
        .find(|audience| audiences.contains(audience))
        .ok_or_else(|| Refusal::identity_token("Incorrect token audience"))?;
    token.check_times(sts.faults.now())?;

    let provider = ask.role.provider(&token.issuer);
    let name = token.issuer.strip_prefix("https://").unwrap_or(&token.issuer);
    let context = Context::default()
        .with(&format!("{name}:sub"), [token.subject.clone()])
        .with(&format!("{name}:aud"), token.audiences.iter().cloned());
    let caller = Caller::WebIdentity(&provider);
    let trusts = |trust: &TrustPolicy| trust.verdict(ACTION, caller, &context) == Verdict::Allows;
    let role = sts.accounts().role(ask.role_arn).filter(|role| trusts(&role.trust));
    let role = role.ok_or_else(|| Refusal::forbidden("AccessDenied", format!("Not authorized to perform {ACTION}")))?;
    if ask.duration > role.max_session {
        return Err(Refusal::bad(
            "ValidationError",
            "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
        ));
    }

    let expires = sts.faults.now() + sts.max_life().map_or(ask.duration, |most| most.min(ask.duration));
    let (access_key_id, session) = sts.accounts().open(&ask.role, ask.session_name, Vec::new(), expires);
    let [user, credentials] = opened(access_key_id, &session);
    Ok(Element::Parent(
        "AssumeRoleWithWebIdentityResult",
        vec![
            Element::text("SubjectFromWebIdentityToken", &token.subject),
            Element::text("Audience", audience),
            user,
            credentials,
            Element::text("Provider", provider),
        ],
    ))
}

impl<'a> Ask<'a> {
    fn read(parameters: &'a Parameters) -> Result<Self, Refusal> {
        let mut constraints = Constraints::default();
        let duration = constraints.number("durationSeconds", parameters.get("DurationSeconds"), (900, 43200))?;
        let role_arn = constraints.string("roleArn", parameters.get("RoleArn"), (20, 2048), Some(ARN));
        let name = parameters.get("RoleSessionName");
        let session_name = constraints.string("roleSessionName", name, (2, 64), Some(SESSION_NAME));
        let token = constraints.secret("webIdentityToken", parameters.get("WebIdentityToken"), (4, 20000));
        constraints.verdict()?;
        // Not known here, so not passed over: a session policy that is ignored would give too much.
        for name in ["Policy", "PolicyArns", "ProviderId"] {
            if parameters.has_member(name) {
                return Err(Refusal::bad("ValidationError", format!("{name} is not known to this sandbox")));
            }
        }
        let role = RoleArn::parse(role_arn).ok_or_else(|| Refusal::bad("ValidationError", "Request ARN is invalid"))?;
        let duration = u64::try_from(duration.unwrap_or(DEFAULT_DURATION)).unwrap_or_default();
        Ok(Self { role, role_arn, session_name, token, duration: Duration::from_secs(duration) })
    }
}

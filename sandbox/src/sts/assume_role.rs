//! AssumeRole: a role's keys for those of another role.
//!
//! Shape: [STS API reference][reference]; who may: [IAM user guide, "Cross-account policy evaluation logic"][logic];
//! tags: ["Pass session tags in AWS STS"][tags]. A role that is not there and one that does not trust the caller look
//! the same.
//!
//! [reference]: https://docs.aws.amazon.com/STS/latest/APIReference/API_AssumeRole.html
//! [logic]: https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_policies_evaluation-logic-cross-account.html
//! [tags]: https://docs.aws.amazon.com/IAM/latest/UserGuide/id_session-tags.html

use std::{collections::BTreeSet, time::Duration};

use super::{
    Inner,
    account::{KnownRole, RoleArn, Session, Tag},
    answers::{Element, Refusal},
    denied, opened,
    policy::{Caller, Context, Verdict},
    query::{ARN, Constraints, EXTERNAL_ID, Parameters, SESSION_NAME, TAG_KEY, TAG_VALUE},
};

const ACTION: &str = "sts:AssumeRole";
const TAG_ACTION: &str = "sts:TagSession";
const DEFAULT_DURATION: i32 = 3600;
/// The longest session of a role that is assumed with another role's keys.
const LONGEST_CHAINED: Duration = Duration::from_secs(3600);
const MOST_TAGS: usize = 50;

/// What was asked, its form checked.
struct Ask<'a> {
    role: RoleArn,
    session_name: &'a str,
    external_id: Option<&'a str>,
    duration: Duration,
    tags: Vec<Tag>,
}

pub(super) fn assume_role(sts: &Inner, caller: &Session, parameters: &Parameters) -> Result<Element, Refusal> {
    let mut ask = Ask::read(parameters)?;
    let context = ask.context(caller);
    let inherited = caller.tags.iter().filter(|tag| tag.transitive);
    if inherited.clone().any(|old| ask.tags.iter().any(|tag| tag.key.eq_ignore_ascii_case(&old.key))) {
        return Err(invalid(
            "One of the specified transitive tag keys can't be set because it conflicts with a transitive tag key from \
             the calling session.",
        ));
    }
    ask.tags.extend(inherited.cloned());

    let (source, target) = {
        let accounts = sts.accounts();
        (accounts.role(caller.role.as_str()), accounts.role(ask.role.as_str()))
    };
    let actions = if ask.tags.is_empty() { &[ACTION][..] } else { &[ACTION, TAG_ACTION] };
    for action in actions {
        let may = |target: &&KnownRole| ask.permitted(action, caller, source.as_deref(), target, &context);
        if target.as_deref().filter(may).is_none() {
            return Err(denied(caller, action, Some(ask.role.as_str())));
        }
    }
    let longest = target.map_or(Duration::ZERO, |target| target.max_session);
    let exceeds =
        |limit| Refusal::bad("ValidationError", format!("The requested DurationSeconds exceeds the {limit}."));
    if ask.duration > LONGEST_CHAINED && !caller.of_instance {
        return Err(exceeds("1 hour session limit for roles assumed by role chaining"));
    }
    if ask.duration > longest {
        return Err(exceeds("MaxSessionDuration set for this role"));
    }

    let expires = sts.faults.now() + sts.max_life().map_or(ask.duration, |most| most.min(ask.duration));
    let (access_key_id, session) = sts.accounts().open(&ask.role, ask.session_name, ask.tags, expires);
    Ok(Element::Parent("AssumeRoleResult", opened(access_key_id, &session).into()))
}

impl<'a> Ask<'a> {
    fn read(parameters: &'a Parameters) -> Result<Self, Refusal> {
        let mut constraints = Constraints::default();
        let duration = constraints.number("durationSeconds", parameters.get("DurationSeconds"), (900, 43200))?;
        let role_arn = constraints.string("roleArn", parameters.get("RoleArn"), (20, 2048), Some(ARN));
        let name = parameters.get("RoleSessionName");
        let session_name = constraints.string("roleSessionName", name, (2, 64), Some(SESSION_NAME));
        let external_id = constraints.optional("externalId", parameters.get("ExternalId"), (2, 1224), EXTERNAL_ID);
        let transitive = parameters.members("TransitiveTagKeys", "");
        constraints.at_most("transitiveTagKeys", &transitive, MOST_TAGS);
        let tags = parameters.members("Tags", "Key");
        constraints.at_most("tags", &tags, MOST_TAGS);
        let tags = (1..)
            .zip(tags)
            .map(|(number, key)| {
                let value = parameters.get(&format!("Tags.member.{number}.Value"));
                let at = |field| format!("tags.{number}.member.{field}");
                Tag {
                    key: constraints.string(&at("key"), Some(key), (1, 128), Some(TAG_KEY)).to_owned(),
                    value: constraints.string(&at("value"), value, (0, 256), Some(TAG_VALUE)).to_owned(),
                    transitive: transitive.iter().any(|wanted| wanted.eq_ignore_ascii_case(key)),
                }
            })
            .collect::<Vec<_>>();
        constraints.verdict()?;
        // Not known here, so not passed over.
        for name in ["Policy", "PolicyArns", "SerialNumber", "TokenCode", "SourceIdentity", "ProvidedContexts"] {
            if parameters.has_member(name) {
                return Err(Refusal::bad("ValidationError", format!("{name} is not known to this sandbox")));
            }
        }
        let keys = tags.iter().map(|tag| tag.key.to_lowercase()).collect::<BTreeSet<_>>();
        if keys.len() < tags.len() {
            return Err(invalid("Duplicate tag keys found. Please note that Tag keys are case insensitive."));
        }
        if transitive.iter().any(|key| !keys.contains(&key.to_lowercase())) {
            return Err(invalid("The specified transitive tag key must be included in the requested tags."));
        }
        let role = RoleArn::parse(role_arn).ok_or_else(|| Refusal::bad("ValidationError", "Request ARN is invalid"))?;
        let duration = u64::try_from(duration.unwrap_or(DEFAULT_DURATION)).unwrap_or_default();
        Ok(Self { role, session_name, external_id, duration: Duration::from_secs(duration), tags })
    }

    /// What policies can ask about.
    fn context(&self, caller: &Session) -> Context {
        let text = str::to_owned;
        let context = Context::default()
            .with("sts:RoleSessionName", [text(self.session_name)])
            .with("sts:ExternalId", self.external_id.map(text))
            .with("aws:TagKeys", self.tags.iter().map(|tag| tag.key.clone()))
            .with("sts:TransitiveTagKeys", self.tags.iter().filter(|tag| tag.transitive).map(|tag| tag.key.clone()));
        self.tags.iter().fold(caller.context(context), |context, tag| {
            context.with(&format!("aws:RequestTag/{}", tag.key), [tag.value.clone()])
        })
    }

    /// The role's trust must allow it, and, where that leaves it to the caller's account or is in another one, the
    /// caller's own policies too.
    fn permitted(
        &self,
        action: &str,
        caller: &Session,
        source: Option<&KnownRole>,
        target: &KnownRole,
        context: &Context,
    ) -> bool {
        let trust = target.trust.verdict(action, Caller::Session(&caller.role, &caller.arn), context);
        let own = source.map_or(Verdict::Silent, |role| role.permissions.verdict(action, self.role.as_str(), context));
        let same_account = caller.role.account == self.role.account;
        caller.role.partition == self.role.partition
            && match trust {
                Verdict::Allows if same_account => own != Verdict::Denies,
                Verdict::Allows | Verdict::Delegates => own == Verdict::Allows,
                Verdict::Silent | Verdict::Denies => false,
            }
    }
}

fn invalid(message: &'static str) -> Refusal {
    Refusal::bad("InvalidParameterValue", message)
}

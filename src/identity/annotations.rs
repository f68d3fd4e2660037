//! What a service account's annotations say, with the semantics of the EKS pod identity webhook. Pure.
//!
//! Owns the keys, the empty values, the words for true and false, and the limits. A value that is an error
//! is an error of that service account: its pods get nothing, rather than something that nobody asked for.
//!
//! Source: [amazon-eks-pod-identity-webhook](https://github.com/aws/amazon-eks-pod-identity-webhook).

use std::{borrow::Cow, collections::BTreeMap};

use super::{
    legacy,
    names::{Namespace, NotARoleArn, RoleArn},
    policy::Forbids,
};

/// The webhook's own prefix.
pub const EKS_PREFIX: &str = "eks.amazonaws.com";

/// The annotation that says how long sessions last.
pub const SESSION_DURATION: &str = "kube2irsa.io/session-duration";
/// The annotation that names the role of a second hop.
pub const TARGET_ROLE_ARN: &str = "kube2irsa.io/target-role-arn";
/// The annotation that says which external id a second hop is made with.
pub const EXTERNAL_ID: &str = "kube2irsa.io/external-id";
const ADDITIONAL_ROLE_ARNS: &str = "kube2irsa.io/additional-role-arns";
/// The annotation, of a namespace too, by which pods must bring a session token (IMDSv2).
const REQUIRE_IMDSV2: &str = "kube2irsa.io/require-imdsv2";

/// What AWS allows a session to last, in seconds; the longest of a role that another role assumes.
const SESSION_LIMITS: std::ops::RangeInclusive<u32> = 900..=43_200;
const LONGEST_CHAINED: u32 = 3600;
/// How long they last where nothing is said.
pub(super) const SESSION_DEFAULT: u32 = 3600;
/// What AWS takes for an external id: so many characters.
const EXTERNAL_ID_LENGTHS: std::ops::RangeInclusive<usize> = 2..=1224;
/// As long as a role's name may be.
const LONGEST_NAME: usize = 64;
/// Each is a grant of every pod of the service account, and an annotation has room for thousands.
const MOST_ADDITIONAL: usize = 32;

/// What a service account asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wishes {
    /// The role of its pods.
    pub main: Wish,
    /// Further roles, by the names that pods ask for them by.
    pub additional: Vec<(String, Wish)>,
}

impl Wishes {
    /// All of them: that of its pods, and the further ones.
    pub fn all(&self) -> impl Iterator<Item = &Wish> {
        std::iter::once(&self.main).chain(self.additional.iter().map(|(_, wish)| wish))
    }
}

/// One role that a service account asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wish {
    /// The role that a token is exchanged for.
    pub role: RoleArn,
    /// The role that is assumed from there, where there is a second hop.
    pub target: Option<Target>,
    /// The audience of its tokens, where it is not the daemon's.
    pub audience: Option<String>,
    /// How long its sessions last, in seconds.
    pub session_seconds: u32,
    /// Whether the region's STS is called, where it says so.
    pub regional_sts: Option<bool>,
    /// What else the pod says, where it names the role and its service account does not.
    pub of_pod: Option<Box<legacy::OfPod>>,
}

/// The role of a second hop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The role.
    pub role: RoleArn,
    /// The external id, where there is one.
    pub external_id: Option<String>,
}

impl Wish {
    /// The role that a pod ends up with.
    #[must_use]
    pub fn last_role(&self) -> &RoleArn {
        self.target.as_ref().map_or(&self.role, |target| &target.role)
    }

    /// All roles on the way there, and that one.
    pub fn hops(&self) -> impl Iterator<Item = &RoleArn> {
        std::iter::once(&self.role).chain(self.target.as_ref().map(|target| &target.role))
    }

    /// Whether it takes a token of the pod's service account; otherwise the daemon's own identity.
    #[must_use]
    pub fn takes_token(&self) -> bool {
        self.of_pod.as_ref().is_none_or(|of_pod| of_pod.source == legacy::Source::WebIdentity)
    }
}

/// What is wrong with the annotations of a service account, or what its namespace's forbid.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AnnotationError {
    /// The role is none.
    #[error("annotation {key}: {error}")]
    Role {
        /// The annotation.
        key: String,
        /// Why.
        error: NotARoleArn,
    },
    /// The role is a name of an account that is not known yet.
    #[error("annotation {key}: the account of role {name:?} is not known yet")]
    AccountNotKnown {
        /// The annotation.
        key: String,
        /// The name.
        name: String,
    },
    /// The session's duration is none that AWS allows.
    #[error("annotation {SESSION_DURATION}: {text:?} is not a number of seconds from 900 to {longest}")]
    SessionDuration {
        /// What it says.
        text: String,
        /// The longest: an hour with a target role, whatever that allows.
        longest: u32,
    },
    /// The external id is none that AWS takes.
    #[error("annotation {0}: is not 2 to 1224 characters, each a letter, a digit or one of _+=,.@:/-")]
    ExternalId(&'static str),
    /// The name of a session is none that AWS takes.
    #[error("annotation {}: has less than 2 characters", legacy::SESSION_NAME)]
    SessionName,
    /// There is an external id, and no role that it is for.
    #[error("annotation {EXTERNAL_ID}: is for a second hop, and {TARGET_ROLE_ARN} names none")]
    ExternalIdAlone,
    /// An additional role has a name that cannot be asked for.
    #[error("annotation {ADDITIONAL_ROLE_ARNS}: {0:?} is no name: 1 to 64 letters, digits or _+=,.@- (name=ARN)")]
    RoleName(String),
    /// There are more additional roles than that.
    #[error("annotation {ADDITIONAL_ROLE_ARNS}: names more than {MOST_ADDITIONAL} roles")]
    TooManyRoles,
    /// Two roles have one name.
    #[error("annotation {ADDITIONAL_ROLE_ARNS}: two roles are named {0:?}; give one of them another (name=ARN)")]
    SameName(String),
    /// The namespace does not permit the role.
    #[error("namespace {namespace} does not permit {role} ({by})")]
    NotPermitted {
        /// The namespace.
        namespace: Namespace,
        /// The role.
        role: RoleArn,
        /// By what.
        by: Forbids,
    },
}

impl AnnotationError {
    /// What the service account's pods have of it. One role that is not permitted is no other's end.
    #[must_use]
    pub fn consequence(&self) -> &'static str {
        if matches!(self, Self::NotPermitted { .. }) { "is refused a role" } else { "gets no credentials" }
    }

    /// Whether it is of what the pod's own annotations say, and not of its service account's.
    #[must_use]
    pub fn is_of_pod(&self) -> bool {
        match self {
            Self::Role { key, .. } | Self::AccountNotKnown { key, .. } => key == legacy::ROLE,
            Self::ExternalId(key) => *key == legacy::EXTERNAL_ID,
            Self::SessionName => true,
            Self::NotPermitted { by, .. } => *by != Forbids::PermittedRoles,
            Self::SessionDuration { .. }
            | Self::ExternalIdAlone
            | Self::RoleName(_)
            | Self::TooManyRoles
            | Self::SameName(_) => false,
        }
    }
}

/// What a role that is no ARN (has no `arn:` in it) is taken for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PlainNames {
    /// An error.
    #[default]
    Refused,
    /// The name, with its path, of a role of an account that is not known yet.
    NotKnownYet,
    /// The name, with its path, of a role of this account.
    Of {
        /// The account's partition.
        partition: String,
        /// The account's number.
        account: String,
    },
}

/// The keys with the prefix in force, and how they are read.
#[derive(Clone, Debug)]
pub struct Keys {
    plain_names: PlainNames,
    role_arn: String,
    audience: String,
    regional: String,
}

impl Keys {
    /// The keys under `prefix`, such as [`EKS_PREFIX`].
    #[must_use]
    pub fn new(prefix: &str) -> Self {
        Self {
            plain_names: PlainNames::default(),
            role_arn: format!("{prefix}/role-arn"),
            audience: format!("{prefix}/audience"),
            regional: format!("{prefix}/sts-regional-endpoints"),
        }
    }

    /// The annotation that names the role.
    #[must_use]
    pub fn role_arn(&self) -> &str {
        &self.role_arn
    }

    /// From now on roles that are no ARN are taken for this.
    pub fn take_plain_names_for(&mut self, plain_names: PlainNames) {
        self.plain_names = plain_names;
    }

    /// What the annotations of a service account say; `None` if they name no role.
    ///
    /// # Errors
    /// When a value cannot be meant.
    pub fn read(&self, annotations: &BTreeMap<String, String>) -> Result<Option<Wishes>, AnnotationError> {
        // The webhook takes an empty value for none.
        let get = |key: &str| annotations.get(key).map(String::as_str).filter(|value| !value.is_empty());
        let Some(role) = get(&self.role_arn) else { return Ok(None) };
        let target = target(get(TARGET_ROLE_ARN), get(EXTERNAL_ID))?;
        let longest = if target.is_some() { LONGEST_CHAINED } else { *SESSION_LIMITS.end() };
        let main = Wish {
            role: self.role(role)?,
            target,
            audience: get(&self.audience).map(str::to_owned),
            session_seconds: session_seconds(get(SESSION_DURATION), longest)?,
            regional_sts: get(&self.regional).and_then(parse_bool),
            of_pod: None,
        };
        let mut additional = Vec::<(String, Wish)>::new();
        for entry in get(ADDITIONAL_ROLE_ARNS).unwrap_or_default().split(',').map(str::trim) {
            if entry.is_empty() {
                continue;
            }
            if additional.len() == MOST_ADDITIONAL {
                return Err(AnnotationError::TooManyRoles);
            }
            let (name, role) = named_role(entry)?;
            if name == main.last_role().name() || additional.iter().any(|(other, _)| *other == name) {
                return Err(AnnotationError::SameName(name));
            }
            additional.push((name, Wish { role, target: None, ..main.clone() }));
        }
        Ok(Some(Wishes { main, additional }))
    }

    fn role(&self, text: &str) -> Result<RoleArn, AnnotationError> {
        let arn = match &self.plain_names {
            PlainNames::NotKnownYet if !text.contains("arn:") => {
                return Err(AnnotationError::AccountNotKnown { key: self.role_arn.clone(), name: text.to_owned() });
            }
            // As the webhook does it: what stands there is appended, a slash at its beginning too.
            PlainNames::Of { partition, account } if !text.contains("arn:") => {
                Cow::from(format!("arn:{partition}:iam::{account}:role/{text}"))
            }
            PlainNames::Refused | PlainNames::NotKnownYet | PlainNames::Of { .. } => Cow::from(text),
        };
        parse_role(&self.role_arn, &arn)
    }
}

fn parse_role(key: &str, text: &str) -> Result<RoleArn, AnnotationError> {
    text.parse().map_err(|error| AnnotationError::Role { key: key.to_owned(), error })
}

fn target(role: Option<&str>, id: Option<&str>) -> Result<Option<Target>, AnnotationError> {
    match (role, id) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(AnnotationError::ExternalIdAlone),
        (Some(role), id) => {
            let external_id = id.map(|id| external_id(EXTERNAL_ID, id)).transpose()?;
            Ok(Some(Target { role: parse_role(TARGET_ROLE_ARN, role)?, external_id }))
        }
    }
}

/// The external id that an annotation names, as AWS takes it.
pub(super) fn external_id(key: &'static str, id: &str) -> Result<String, AnnotationError> {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@:/-".contains(&b);
    if EXTERNAL_ID_LENGTHS.contains(&id.len()) && id.bytes().all(allowed) {
        Ok(id.to_owned())
    } else {
        Err(AnnotationError::ExternalId(key))
    }
}

/// `ARN`, which goes by the role's name, or `name=ARN`.
fn named_role(entry: &str) -> Result<(String, RoleArn), AnnotationError> {
    // A role's name may hold an equals sign; what comes before the ARN's first colon is ours.
    let named = entry.split_once(':').and_then(|(start, _)| start.rsplit_once('='));
    let (name, arn) = named.map_or((None, entry), |(name, _)| (Some(name), entry[name.len() + 1..].trim()));
    let role = parse_role(ADDITIONAL_ROLE_ARNS, arn)?;
    let name = name.map_or_else(|| role.name(), str::trim).to_owned();
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"_+=,.@-".contains(&b);
    let is_name =
        (1..=LONGEST_NAME).contains(&name.len()) && name.bytes().all(allowed) && !matches!(&*name, "." | "..");
    if is_name { Ok((name, role)) } else { Err(AnnotationError::RoleName(name.chars().take(LONGEST_NAME).collect())) }
}

fn session_seconds(text: Option<&str>, longest: u32) -> Result<u32, AnnotationError> {
    let Some(text) = text else { return Ok(SESSION_DEFAULT) };
    let seconds = text.parse().ok().filter(|seconds| (*SESSION_LIMITS.start()..=longest).contains(seconds));
    seconds.ok_or_else(|| AnnotationError::SessionDuration { text: text.chars().take(40).collect(), longest })
}

/// Whether these annotations, of a service account or of a namespace, ask that its pods bring a session token. A word
/// that is neither true nor false is taken for true: a slip must not open what was to be closed.
#[must_use]
pub fn require_imdsv2(annotations: &BTreeMap<String, String>) -> bool {
    annotations.get(REQUIRE_IMDSV2).is_some_and(|text| !text.is_empty() && parse_bool(text) != Some(false))
}

/// The words of Go's `strconv.ParseBool`, and no others.
fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLE: &str = "arn:aws:iam::123456789012:role/web";

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Wishes>, AnnotationError> {
        let annotations = pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        Keys::new(EKS_PREFIX).read(&annotations)
    }

    fn read_with_role(pairs: &[(&str, &str)]) -> Result<Wishes, AnnotationError> {
        read(&[&[("eks.amazonaws.com/role-arn", ROLE)], pairs].concat()).map(Option::unwrap)
    }

    fn wish(pairs: &[(&str, &str)]) -> Wish {
        read_with_role(pairs).unwrap().main
    }

    #[test]
    fn no_role_or_an_empty_one_is_none_whatever_else_is_said() {
        assert_eq!(read(&[]), Ok(None));
        assert_eq!(read(&[("eks.amazonaws.com/role-arn", ""), (SESSION_DURATION, "x")]), Ok(None));
        assert_eq!(read(&[("eks.amazonaws.com/audience", "a")]), Ok(None));
    }

    #[test]
    fn a_value_that_is_no_role_is_an_error_that_names_the_annotation() {
        let error = read(&[("eks.amazonaws.com/role-arn", "web")]).unwrap_err().to_string();
        assert!(error.starts_with("annotation eks.amazonaws.com/role-arn: \"web\" is not"), "{error}");
    }

    #[test]
    fn the_audience_is_as_said_and_an_empty_one_is_the_daemons() {
        assert_eq!(wish(&[]).audience, None);
        assert_eq!(wish(&[("eks.amazonaws.com/audience", "")]).audience, None);
        assert_eq!(wish(&[("eks.amazonaws.com/audience", "a")]).audience.as_deref(), Some("a"));
    }

    #[test]
    fn regional_sts_is_true_or_false_by_gos_words_alone() {
        for (text, value) in [
            ("true", Some(true)),
            ("T", Some(true)),
            ("1", Some(true)),
            ("False", Some(false)),
            ("0", Some(false)),
            ("tRUE", None),
            ("yes", None),
            ("", None),
        ] {
            assert_eq!(wish(&[("eks.amazonaws.com/sts-regional-endpoints", text)]).regional_sts, value, "{text:?}");
        }
    }

    #[test]
    fn a_session_token_is_required_unless_nothing_or_false_is_said() {
        let required = |text: &str| require_imdsv2(&BTreeMap::from([(REQUIRE_IMDSV2.to_owned(), text.to_owned())]));
        assert!(!require_imdsv2(&BTreeMap::new()));
        assert!(["true", "1", "T", "yes", "ture"].into_iter().all(required));
        assert!(!["", "false", "0", "F"].into_iter().any(required));
    }

    #[test]
    fn a_sessions_duration_is_one_that_aws_allows_or_an_error() {
        assert_eq!(wish(&[]).session_seconds, 3600);
        assert_eq!(wish(&[(SESSION_DURATION, "900")]).session_seconds, 900);
        assert_eq!(wish(&[(SESSION_DURATION, "43200")]).session_seconds, 43_200);
        for text in ["899", "43201", "1h", "-1"] {
            let error = read_with_role(&[(SESSION_DURATION, text)]).unwrap_err();
            assert_eq!(error, AnnotationError::SessionDuration { text: text.to_owned(), longest: 43_200 });
        }
    }

    #[test]
    fn a_second_hop_has_a_role_perhaps_an_external_id_and_an_hour_at_most() {
        const TARGET: &str = "arn:aws:iam::444455556666:role/team/reader";
        let target = |pairs: &[(&str, &str)]| read_with_role(&[&[(TARGET_ROLE_ARN, TARGET)], pairs].concat());
        assert_eq!(wish(&[]).last_role().as_str(), ROLE);
        let main = target(&[]).unwrap().main;
        assert_eq!((main.role.as_str(), main.last_role().as_str()), (ROLE, TARGET));
        assert_eq!(main.hops().map(RoleArn::as_str).collect::<Vec<_>>(), [ROLE, TARGET]);
        assert_eq!(main.target.unwrap().external_id, None);
        let with_id = target(&[(EXTERNAL_ID, "team-a:1/x=,.@+_")]).unwrap().main.target.unwrap();
        assert_eq!(with_id.external_id.as_deref(), Some("team-a:1/x=,.@+_"));
        assert_eq!(target(&[(EXTERNAL_ID, "")]).unwrap().main.target.unwrap().external_id, None);
        for id in ["a", "a b", "é!", &"a".repeat(1225)] {
            assert_eq!(target(&[(EXTERNAL_ID, id)]), Err(AnnotationError::ExternalId(EXTERNAL_ID)), "{id}");
        }
        assert_eq!(read_with_role(&[(EXTERNAL_ID, "team-a")]), Err(AnnotationError::ExternalIdAlone));
        assert!(matches!(read_with_role(&[(TARGET_ROLE_ARN, "x")]), Err(AnnotationError::Role { .. })));

        assert_eq!(target(&[(SESSION_DURATION, "3600")]).unwrap().main.session_seconds, 3600);
        let error = target(&[(SESSION_DURATION, "3601")]).unwrap_err().to_string();
        assert!(error.ends_with("\"3601\" is not a number of seconds from 900 to 3600"), "{error}");
    }

    fn additional(text: &str) -> Result<Vec<(String, String)>, AnnotationError> {
        let additional = read_with_role(&[(ADDITIONAL_ROLE_ARNS, text)])?.additional;
        Ok(additional.into_iter().map(|(name, wish)| (name, wish.last_role().to_string())).collect())
    }

    #[test]
    fn additional_roles_go_by_their_own_name_or_by_the_one_they_are_given() {
        let [one, two] = ["arn:aws:iam::1:role/x/logs", "arn:aws-cn:iam::2:role/web"]
            .map(|arn| arn.replace(":1:", ":111122223333:").replace(":2:", ":444455556666:"));
        let pair = |name: &str, arn: &str| (name.to_owned(), arn.to_owned());
        assert_eq!(additional(""), Ok(vec![]));
        let both = additional(&format!(" {one} ,, prod-web = {two}"));
        assert_eq!(both, Ok(vec![pair("logs", &one), pair("prod-web", &two)]));
        let odd = "arn:aws:iam::111122223333:role/a=b";
        assert_eq!(additional(odd), Ok(vec![pair("a=b", odd)]), "an equals sign of the role's own");
        assert_eq!(additional(&format!("c={odd}")), Ok(vec![pair("c", odd)]));

        let many = |count| (0..count).map(|n| format!("n{n}={one}")).collect::<Vec<_>>().join(",");
        assert_eq!(additional(&many(MOST_ADDITIONAL)).map(|roles| roles.len()), Ok(MOST_ADDITIONAL));
        assert_eq!(additional(&many(MOST_ADDITIONAL + 1)), Err(AnnotationError::TooManyRoles));

        for (text, name) in [(two.clone(), "web"), (format!("{one},logs={two}"), "logs")] {
            assert_eq!(additional(&text), Err(AnnotationError::SameName(name.to_owned())), "{text}");
        }
        for name in ["", "a/b", "a b", ".", "..", "é", &"a".repeat(65)] {
            let error = additional(&format!("{name}={one}")).unwrap_err();
            assert!(matches!(error, AnnotationError::RoleName(_)), "{name}: {error}");
        }
        for text in ["web2", "name=web2", "name="] {
            assert!(matches!(additional(text), Err(AnnotationError::Role { .. })), "{text}");
        }
        let target = [(TARGET_ROLE_ARN, "arn:aws:iam::444455556666:role/logs"), (ADDITIONAL_ROLE_ARNS, &one)];
        let error = read_with_role(&target).unwrap_err();
        assert_eq!(error, AnnotationError::SameName("logs".to_owned()), "that of the role which the pod ends up with");
    }

    #[test]
    fn a_name_is_a_role_of_the_account_where_that_is_wanted_and_known() {
        let read = |names: &PlainNames, role: &str| {
            let mut keys = Keys::new(EKS_PREFIX);
            keys.take_plain_names_for(names.clone());
            keys.read(&BTreeMap::from([("eks.amazonaws.com/role-arn".to_owned(), role.to_owned())]))
        };
        let of = PlainNames::Of { partition: "aws-cn".to_owned(), account: "111122223333".to_owned() };
        for (value, arn) in [
            ("web", "arn:aws-cn:iam::111122223333:role/web"),
            ("team/a/web", "arn:aws-cn:iam::111122223333:role/team/a/web"),
            ("/web", "arn:aws-cn:iam::111122223333:role//web"),
            (ROLE, ROLE),
        ] {
            assert_eq!(read(&of, value).unwrap().unwrap().main.role.as_str(), arn, "{value}");
        }
        assert_eq!(read(&of, ""), Ok(None), "no role, and not one without a name");
        for value in ["team/", "a b", "x:role/web", "*", "arn:web", "my-arn:web"] {
            assert!(matches!(read(&of, value), Err(AnnotationError::Role { .. })), "{value}");
        }
        let error = |names: &PlainNames, value: &str| read(names, value).unwrap_err();
        assert!(matches!(error(&PlainNames::NotKnownYet, "web"), AnnotationError::AccountNotKnown { .. }));
        assert!(matches!(error(&PlainNames::NotKnownYet, "arn:web"), AnnotationError::Role { .. }));
        assert_eq!(read(&PlainNames::NotKnownYet, ROLE).unwrap().unwrap().main.role.as_str(), ROLE);
        assert!(matches!(error(&PlainNames::Refused, "web"), AnnotationError::Role { .. }));
    }

    #[test]
    fn another_prefix_is_read_instead() {
        let annotations = BTreeMap::from([("example.com/role-arn".to_owned(), ROLE.to_owned())]);
        assert!(Keys::new("example.com").read(&annotations).unwrap().is_some());
        assert_eq!(Keys::new(EKS_PREFIX).read(&annotations), Ok(None));
    }
}

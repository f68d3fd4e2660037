//! With which power tokens are asked for and pods are watched.
//!
//! Owns the two clients, one as ourselves and one as our node, and the choice between them. As our node
//! (constrained impersonation, [KEP-5284](https://kep.k8s.io/5284)) the API server itself keeps us to this
//! node's pods. Invariant: only a refusal selects the other mode, never a time-out or a failure.

use std::{sync::Arc, time::Duration};

use kube::{Client, api::ListParams, core::Request};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;

use super::{Bound, Claims, TokenError, Wanted, ask};
use crate::{
    config::TokenAccess,
    identity::NodeName,
    metrics::Metrics,
    readiness::{Condition, Readiness},
};

const TIME_LIMIT: Duration = Duration::from_secs(2);
/// Pauses between attempts double from the first to the longest.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// The mode in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// As our node: the API server allows what concerns this node's pods.
    Node,
    /// As ourselves: an admission policy is all that limits us.
    Direct,
}

impl Mode {
    /// As a metric's label.
    #[must_use]
    pub fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Direct => "direct",
        }
    }
}

/// The clients of both modes, and which is in force.
pub struct Access {
    own: Client,
    as_node: Client,
    mode: watch::Sender<Option<Mode>>,
}

impl std::fmt::Debug for Access {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Access").field("mode", &*self.mode.borrow()).finish_non_exhaustive()
    }
}

/// What is needed to decide.
pub struct Decision {
    /// The clients to decide about.
    pub access: Arc<Access>,
    /// This node.
    pub node: NodeName,
    /// The audience of tokens.
    pub audience: String,
    /// The token that we are known by; it says which pod we are, if we are one.
    pub own_token: Option<SecretString>,
    /// Told why it is not decided yet.
    pub readiness: Arc<Readiness>,
    /// Told what was decided.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Decision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decision").field("access", &self.access).finish_non_exhaustive()
    }
}

/// What came of a request that was made to see whether it is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Trial {
    /// There is nothing to ask for.
    NotMade,
    Allowed,
    /// 403, with the API server's words.
    Forbidden(String),
    /// Neither: no answer, or one that is about something else.
    Unclear(String),
}

#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Use(Mode, String),
    AskAgain(String),
}

/// What both modes' trials say together: of a list of this node's pods and a token for our own pod as our
/// node, and of the same list as ourselves.
fn verdict(node_list: &Trial, node_token: &Trial, direct_list: &Trial) -> Verdict {
    let why = match (node_list, node_token) {
        (Trial::Unclear(why), _) | (Trial::Allowed, Trial::Unclear(why)) => {
            return Verdict::AskAgain(format!("whether node mode is allowed is not known: {why}"));
        }
        (Trial::Allowed, Trial::Allowed) => {
            return Verdict::Use(Mode::Node, "a list and a token were given to us as our node".to_owned());
        }
        (Trial::Allowed, Trial::NotMade) => {
            return Verdict::Use(Mode::Node, "a list was given to us as our node".to_owned());
        }
        (Trial::NotMade, _) => return Verdict::AskAgain("nothing was asked yet".to_owned()),
        (Trial::Forbidden(why), _) | (Trial::Allowed, Trial::Forbidden(why)) => why,
    };
    match direct_list {
        Trial::Allowed => Verdict::Use(Mode::Direct, format!("node mode was refused: {why}")),
        // Rights that are still being put in place look the same as rights that are missing.
        Trial::Forbidden(direct) => Verdict::AskAgain(format!("neither mode is allowed: {why}; {direct}")),
        Trial::Unclear(direct) => Verdict::AskAgain(format!("node mode was refused: {why}; direct mode: {direct}")),
        Trial::NotMade => Verdict::AskAgain(format!("node mode was refused: {why}")),
    }
}

// === impl Access ===

impl Access {
    /// Undecided between `own` and `as_node`, which impersonates our node.
    #[must_use]
    pub fn new(own: Client, as_node: Client) -> Self {
        Self { own, as_node, mode: watch::Sender::new(None) }
    }

    /// The mode in force, if that is decided.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        *self.mode.borrow()
    }

    /// The mode in force and its client, once that is decided.
    pub async fn client(&self) -> (Mode, Client) {
        let mut decided = self.mode.subscribe();
        // The sender is ours, so it is there.
        let mode = decided.wait_for(Option::is_some).await.ok().and_then(|mode| *mode).unwrap_or(Mode::Node);
        (mode, self.of(mode))
    }

    fn of(&self, mode: Mode) -> Client {
        match mode {
            Mode::Node => self.as_node.clone(),
            Mode::Direct => self.own.clone(),
        }
    }
}

// === impl Decision ===

impl Decision {
    /// Puts a mode in force, at once or as soon as the API server lets us know; never ends.
    pub async fn make(self, wanted: TokenAccess) {
        let (mode, why) = match wanted {
            TokenAccess::Node => (Mode::Node, "--token-access".to_owned()),
            TokenAccess::Direct => (Mode::Direct, "--token-access".to_owned()),
            TokenAccess::Auto => self.tried().await,
        };
        tracing::info!(mode = mode.label(), why, "token access is decided");
        self.metrics.token_access.with_label_values(&[mode.label()]).set(1);
        self.access.mode.send_replace(Some(mode));
        self.readiness.holds(Condition::TokenAccess);
        if mode == Mode::Node && self.list(Mode::Direct).await == Trial::Allowed {
            self.metrics.excess_rights.set(1);
            tracing::warn!("our own ServiceAccount may list all pods, which node mode does not need: take it away");
        }
        std::future::pending().await
    }

    async fn tried(&self) -> (Mode, String) {
        self.readiness.lacks(Condition::TokenAccess, "not decided yet");
        let (mut pause, mut told) = (FIRST_PAUSE, String::new());
        loop {
            let list = self.list(Mode::Node).await;
            let token = if list == Trial::Allowed { self.token().await } else { Trial::NotMade };
            let refused = matches!((&list, &token), (Trial::Forbidden(_), _) | (_, Trial::Forbidden(_)));
            let direct = if refused { self.list(Mode::Direct).await } else { Trial::NotMade };
            match verdict(&list, &token, &direct) {
                Verdict::Use(mode, why) => return (mode, why),
                Verdict::AskAgain(why) => {
                    if told != why {
                        tracing::warn!("token access is not decided, and tried again: {why}");
                        told.clone_from(&why);
                    }
                    self.readiness.lacks(Condition::TokenAccess, why);
                }
            }
            tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn list(&self, mode: Mode) -> Trial {
        let params = ListParams::default().fields(&format!("spec.nodeName={}", self.node)).limit(1);
        let Ok(request) = Request::new("/api/v1/pods").list_metadata(&params) else { return Trial::NotMade };
        // Whether there is a list is all that matters, and not whether its one pod can be read.
        match tokio::time::timeout(TIME_LIMIT, self.access.of(mode).request_text(request)).await {
            Ok(Ok(_)) => Trial::Allowed,
            Ok(Err(kube::Error::Api(status))) if status.code == 403 => Trial::Forbidden(status.message.clone()),
            Ok(Err(kube::Error::Api(status))) => Trial::Unclear(format!("{} {}", status.code, status.message)),
            Ok(Err(_)) => Trial::Unclear("the API server cannot be reached".to_owned()),
            Err(_elapsed) => Trial::Unclear("the API server did not answer in time".to_owned()),
        }
    }

    /// A token for our own pod, as our node.
    async fn token(&self) -> Trial {
        let claims = self.own_token.as_ref().and_then(|token| Claims::read(token.expose_secret()));
        let Some(Bound { namespace, pod, serviceaccount, .. }) = claims.map(|claims| claims.kubernetes) else {
            return Trial::NotMade;
        };
        let wanted = Wanted {
            namespace: &namespace,
            account: (&serviceaccount.name, &serviceaccount.uid),
            pod: (&pod.name, &pod.uid),
            audience: &self.audience,
        };
        match ask(&self.access.as_node, &wanted).await {
            Ok(_token) => Trial::Allowed,
            Err(TokenError::Refused { code: 403, message, .. }) => Trial::Forbidden(message),
            Err(error) => Trial::Unclear(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_refusal_selects_the_direct_mode() {
        let forbidden = || Trial::Forbidden("no".to_owned());
        let unclear = || Trial::Unclear("503".to_owned());
        let (node, direct, again) = (Some(Mode::Node), Some(Mode::Direct), None);
        for (list, token, of_direct, expected) in [
            (Trial::Allowed, Trial::Allowed, Trial::NotMade, node),
            (Trial::Allowed, Trial::NotMade, Trial::NotMade, node),
            (Trial::Allowed, forbidden(), Trial::Allowed, direct),
            (forbidden(), Trial::NotMade, Trial::Allowed, direct),
            // What is not known is asked again.
            (unclear(), Trial::NotMade, Trial::Allowed, again),
            (Trial::Allowed, unclear(), Trial::Allowed, again),
            (forbidden(), Trial::NotMade, unclear(), again),
            // Nor is a mode chosen that would not work.
            (forbidden(), Trial::NotMade, forbidden(), again),
            (Trial::Allowed, forbidden(), forbidden(), again),
            (Trial::NotMade, Trial::NotMade, Trial::NotMade, again),
        ] {
            let found = match verdict(&list, &token, &of_direct) {
                Verdict::Use(mode, _) => Some(mode),
                Verdict::AskAgain(_) => None,
            };
            assert_eq!(found, expected, "{list:?} {token:?} {of_direct:?}");
        }
    }
}

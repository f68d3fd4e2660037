//! The guard: policy routing that lets only the node itself reach the metadata service and the container endpoint.
//!
//! For each address that is served, before every rule but `local`'s:
//!
//! ```text
//! 1:  iif lo to ADDR  lookup main
//! 2:          to ADDR  prohibit
//! ```
//!
//! Survives every flush of NAT rules, stops connections from before it, and leaves redirected packets
//! alone, whose destination is the node's own address by then. What is marked as ours and is for another address is
//! an earlier run's, and is taken out.

use std::{net::IpAddr, sync::Arc};

use futures::{TryStreamExt as _, future::BoxFuture};
use netlink_packet_route::{
    route::RouteProtocol,
    rule::{RuleAction, RuleAttribute, RuleMessage},
};
use rtnetlink::{Handle, IpVersion};

use super::{Family, Firewall, FirewallError};

/// Below the preferences that CNI plugins use.
const ALLOW_PREFERENCE: u32 = 1;
const PROHIBIT_PREFERENCE: u32 = 2;
/// Marks the rules as ours (`proto 169` in `ip rule`).
const PROTOCOL: RouteProtocol = RouteProtocol::Other(169);
pub(super) const MAIN_TABLE: u32 = 254;
pub(super) const LOOPBACK: &str = "lo";

const EEXIST: i32 = 17;
const EAFNOSUPPORT: i32 = 97;

/// Routing rules that refuse pods the real services at these addresses.
#[derive(Clone, Debug)]
pub struct Guard(Arc<[IpAddr]>);

#[derive(Clone, Copy, PartialEq, Eq)]
enum Rule {
    /// The node itself goes on as ever.
    Allow,
    /// All others are refused.
    Prohibit,
}

impl Guard {
    /// The guard of these addresses.
    #[must_use]
    pub fn new(addresses: Arc<[IpAddr]>) -> Self {
        Self(addresses)
    }

    async fn present(&self) -> Result<bool, FirewallError> {
        let handle = connect()?;
        for family in [IpVersion::V4, IpVersion::V6] {
            let Some(rules) = list(&handle, &family).await? else { continue };
            let wanted = self.wanted().filter(|(address, _)| version(*address) == family);
            for (address, rule) in wanted {
                if !rules.iter().any(|message| is(message, rule, address)) {
                    return Ok(false);
                }
            }
            if rules.iter().any(|message| self.is_left_over(message)) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    async fn install(&self) -> Result<(), FirewallError> {
        let handle = connect()?;
        for (address, rule) in self.wanted() {
            match add(&handle, rule, address).await {
                Ok(()) => {}
                Err(error) if is_errno(&error, EEXIST) => {}
                // No IPv6 on this node: nothing to guard.
                Err(error) if is_errno(&error, EAFNOSUPPORT) && address.is_ipv6() => {}
                Err(error) => return Err(netlink("added")(error)),
            }
        }
        delete(&handle, |message| self.is_left_over(message)).await
    }

    async fn remove(&self) -> Result<(), FirewallError> {
        delete(&connect()?, is_ours).await
    }

    /// The node's own way first: it is never cut off, not even between the two.
    fn wanted(&self) -> impl Iterator<Item = (IpAddr, Rule)> {
        self.0.iter().flat_map(|address| [Rule::Allow, Rule::Prohibit].map(|rule| (*address, rule)))
    }

    fn is_left_over(&self, message: &RuleMessage) -> bool {
        is_ours(message) && !self.wanted().any(|(address, rule)| is(message, rule, address))
    }
}

impl Firewall for Guard {
    fn present(&self) -> BoxFuture<'_, Result<bool, FirewallError>> {
        Box::pin(Self::present(self))
    }

    fn install(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::install(self))
    }

    fn remove(&self) -> BoxFuture<'_, Result<(), FirewallError>> {
        Box::pin(Self::remove(self))
    }
}

/// The family's routing rules, whosever they are; `None` where the node does not have the family.
pub(super) async fn rules(family: Family) -> Result<Option<Vec<RuleMessage>>, FirewallError> {
    let version = if family == Family::V4 { IpVersion::V4 } else { IpVersion::V6 };
    list(&connect()?, &version).await
}

/// What these rules lack of the guard of an address, in words.
pub(super) fn lacks(rules: &[RuleMessage], address: IpAddr) -> Option<&'static str> {
    let has = |rule| rules.iter().any(|message| is(message, rule, address));
    match (has(Rule::Allow), has(Rule::Prohibit)) {
        (true, true) => None,
        (true, false) => {
            Some("the rule is missing that refuses it to pods: they reach the real service, and the node's role")
        }
        (false, true) => Some("the rule is missing that lets the node itself go on: its own processes are refused"),
        (false, false) => Some("both rules are missing: pods reach the real service, and the node's role"),
    }
}

/// Whether any rule of ours is there, an earlier run's: then so may be the redirect, which goes first.
///
/// # Errors
/// When rules cannot be listed.
pub async fn stands() -> Result<bool, FirewallError> {
    for family in Family::ALL {
        if rules(family).await?.unwrap_or_default().iter().any(is_ours) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A socket of its own each time: rules are looked at once a second, and an old socket may have lost its peer.
fn connect() -> Result<Handle, FirewallError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|error| FirewallError::Netlink { what: "looked at", error: error.to_string() })?;
    tokio::spawn(connection);
    Ok(handle)
}

/// The family's rules; `None` where the node does not have the family.
async fn list(handle: &Handle, family: &IpVersion) -> Result<Option<Vec<RuleMessage>>, FirewallError> {
    match handle.rule().get(family.clone()).execute().try_collect().await {
        Ok(rules) => Ok(Some(rules)),
        Err(error) if is_errno(&error, EAFNOSUPPORT) && *family == IpVersion::V6 => Ok(None),
        Err(error) => Err(netlink("listed")(error)),
    }
}

async fn add(handle: &Handle, rule: Rule, address: IpAddr) -> Result<(), rtnetlink::Error> {
    let request = handle.rule().add();
    let request = match rule {
        Rule::Allow => request
            .priority(ALLOW_PREFERENCE)
            .input_interface(LOOPBACK)
            .table_id(MAIN_TABLE)
            .action(RuleAction::ToTable),
        Rule::Prohibit => request.priority(PROHIBIT_PREFERENCE).table_id(0).action(RuleAction::Prohibit),
    };
    match address {
        IpAddr::V4(address) => {
            let mut request = request.v4().destination_prefix(address, 32);
            request.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
            request.execute().await
        }
        IpAddr::V6(address) => {
            let mut request = request.v6().destination_prefix(address, 128);
            request.message_mut().attributes.push(RuleAttribute::Protocol(PROTOCOL));
            request.execute().await
        }
    }
}

/// Takes out all rules that are `unwanted`.
async fn delete(handle: &Handle, unwanted: impl Fn(&RuleMessage) -> bool) -> Result<(), FirewallError> {
    for family in [IpVersion::V4, IpVersion::V6] {
        let mut rules = list(handle, &family).await?.unwrap_or_default();
        rules.retain(&unwanted);
        // The refusal first, so that the node is never refused.
        rules.sort_by_key(|message| message.header.action != RuleAction::Prohibit);
        for message in rules {
            handle.rule().del(message).execute().await.map_err(netlink("removed"))?;
        }
    }
    Ok(())
}

pub(super) fn is_ours(message: &RuleMessage) -> bool {
    message.attributes.contains(&RuleAttribute::Protocol(PROTOCOL))
}

fn is(message: &RuleMessage, rule: Rule, address: IpAddr) -> bool {
    let has = |attribute: RuleAttribute| message.attributes.contains(&attribute);
    let whole = if address.is_ipv4() { 32 } else { 128 };
    let (action, preference) = match rule {
        Rule::Allow => (RuleAction::ToTable, ALLOW_PREFERENCE),
        Rule::Prohibit => (RuleAction::Prohibit, PROHIBIT_PREFERENCE),
    };
    message.header.action == action
        && message.header.dst_len == whole
        && has(RuleAttribute::Priority(preference))
        && has(RuleAttribute::Destination(address))
        && is_ours(message)
        && (rule == Rule::Prohibit || has(RuleAttribute::Iifname(LOOPBACK.to_owned())))
}

fn version(address: IpAddr) -> IpVersion {
    if address.is_ipv4() { IpVersion::V4 } else { IpVersion::V6 }
}

fn is_errno(error: &rtnetlink::Error, errno: i32) -> bool {
    matches!(error, rtnetlink::Error::NetlinkError(message) if message.raw_code() == -errno)
}

fn netlink(what: &'static str) -> impl Fn(rtnetlink::Error) -> FirewallError {
    move |error| FirewallError::Netlink { what, error: error.to_string() }
}

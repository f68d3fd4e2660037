//! What the flags of `rules` mean.

use std::{net::SocketAddr, path::PathBuf};

use super::{ConfigErrors, Errors, Intercept, LogFormat, LogLevel};
use crate::{
    cli::{CheckArgs, RemoveArgs},
    intercept::check::Expected,
};

/// How rules are taken out.
#[derive(Debug)]
pub struct Removal {
    /// Whether to stay, and keep them out.
    pub stay: bool,
    /// Where metrics and health are served meanwhile.
    pub admin_listen: SocketAddr,
    /// Where the admin socket is meanwhile.
    pub admin_socket: PathBuf,
    /// The daemon's directory.
    pub state_dir: PathBuf,
    /// Form of the log lines.
    pub log_format: LogFormat,
    /// How much is logged.
    pub log_level: LogLevel,
}

impl Removal {
    /// What the flags mean.
    ///
    /// # Errors
    /// All that is wrong with them.
    pub fn new(args: &RemoveArgs) -> Result<Self, ConfigErrors> {
        let mut errors = Errors::default();
        let admin_listen = super::admin_listen(&args.admin_listen, &mut errors);
        let admin_socket = super::admin_socket(&args.admin_socket, &mut errors);
        if args.state_dir.is_empty() {
            errors.add("--state-dir: must not be empty".to_owned(), ());
        }
        let (log_format, log_level) = super::log(&args.log_format, &args.log_level, &mut errors);
        let state_dir = PathBuf::from(&args.state_dir);
        errors.or(Self { stay: args.stay, admin_listen, admin_socket, state_dir, log_format, log_level })
    }
}

/// What `rules check` expects of the node.
///
/// # Errors
/// All that is wrong with the flags.
pub fn expected(args: &CheckArgs) -> Result<Expected, ConfigErrors> {
    let mut errors = Errors::default();
    let intercept = super::intercept(&args.intercept, &mut errors);
    let host_network = super::host_network(&args.host_network, intercept, &mut errors);
    let wanted = match intercept {
        Intercept::Redirect(wanted) => Some(wanted),
        Intercept::Observe | Intercept::None => None,
    };
    let listen = super::listen(&args.listen, &mut errors);
    let admin = super::admin_listen(&args.admin_listen, &mut errors);
    let addresses =
        crate::intercept::addresses(&super::container_endpoints(&args.container_endpoints, &mut errors)).to_vec();
    errors.or(Expected { wanted, host_network, listen, addresses, admin })
}

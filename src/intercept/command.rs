//! The system's commands that read and write rules.

use std::process::Stdio;

use tokio::{io::AsyncWriteExt as _, process::Command};

use super::FirewallError;

/// What a command said.
pub(super) struct Done {
    pub(super) success: bool,
    pub(super) code: Option<i32>,
    /// Of standard output, or, where it failed, of standard error.
    pub(super) output: String,
}

impl Done {
    pub(super) fn or_error(self, command: &str, arguments: &[&str]) -> Result<String, FirewallError> {
        if self.success {
            return Ok(self.output);
        }
        let output = self.output.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ");
        Err(FirewallError::Command { command: format!("{command} {}", arguments.join(" ")), output })
    }
}

/// Runs a command to its end; who gives up the wait for it kills it.
pub(super) async fn run(command: &str, arguments: &[&str], input: &str) -> Result<Done, FirewallError> {
    let failed = |error| FirewallError::Missing { command: command.to_owned(), error };
    let mut child = Command::new(command)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A child that does not read says why by its status.
        let _ = stdin.write_all(input.as_bytes()).await;
    }
    let output = child.wait_with_output().await.map_err(failed)?;
    let text = if output.status.success() { &output.stdout } else { &output.stderr };
    Ok(Done {
        success: output.status.success(),
        code: output.status.code(),
        output: String::from_utf8_lossy(text).into_owned(),
    })
}

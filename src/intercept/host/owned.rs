//! A table that belongs to a process: nobody else can change it, a flush of all rules passes it over, and it ends with the
//! process (`flags owner`, Linux since 5.12). The process is an interactive `nft` that has nothing more to read.

use std::{process::Stdio, time::Duration};

use tokio::{
    io::AsyncWriteExt as _,
    process::{Child, ChildStdin, Command},
};

use super::tables::{GUARD_TABLE, list};

/// How long it may take to be there.
const TRIES: u32 = 40;
const BETWEEN_TRIES: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(super) struct Owned {
    /// With the end of its input the process ends, also when we are killed.
    process: Option<(Child, ChildStdin)>,
    script: String,
    listed: Option<String>,
}

impl Owned {
    /// Sees to it that the table is there, and is this one.
    ///
    /// # Errors
    /// Why it cannot be had.
    pub(super) async fn keep(&mut self, script: &str, look: bool) -> Result<(), String> {
        if self.lives() && self.listed.is_some() {
            if self.script != script {
                // In one step, for whoever flushes meanwhile.
                if self.write(&format!("delete table inet {GUARD_TABLE}; {script}")).await.is_ok() {
                    script.clone_into(&mut self.script);
                    return Ok(());
                }
            } else if !look || listed().await? == self.listed {
                return Ok(());
            }
        }
        self.end().await;
        let started = Command::new("nft")
            .arg("--interactive")
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn();
        let mut process = started.map_err(|error| format!("nft: {error}"))?;
        let input = process.stdin.take().ok_or("nft has no input")?;
        self.process = Some((process, input));
        script.clone_into(&mut self.script);
        let written = self.write(script).await;
        if written.is_err() {
            self.end().await;
        }
        written
    }

    /// Gives the process a line to read, and waits until the table is another than it was.
    async fn write(&mut self, line: &str) -> Result<(), String> {
        // That of another daemon, which is about to end, is not to be taken for ours.
        let before = listed().await?;
        if let Some((_, input)) = &mut self.process {
            input.write_all(line.as_bytes()).await.map_err(|error| format!("nft --interactive: {error}"))?;
        }
        for _ in 0..TRIES {
            let now = listed().await?;
            if now.is_some() && now != before && self.lives() {
                self.listed = now;
                return Ok(());
            }
            if !self.lives() {
                break;
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        Err("nft --interactive makes no table that is its own (flags owner)".to_owned())
    }

    fn lives(&mut self) -> bool {
        self.process.as_mut().is_some_and(|(process, _)| matches!(process.try_wait(), Ok(None)))
    }

    async fn end(&mut self) {
        self.listed = None;
        if let Some((mut process, input)) = self.process.take() {
            drop(input);
            // Its end takes the table along.
            let _: std::io::Result<()> = process.kill().await;
        }
    }
}

async fn listed() -> Result<Option<String>, String> {
    list(GUARD_TABLE).await.map_err(|error| error.to_string())
}

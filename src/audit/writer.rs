//! The audit log's lines on their way: a bounded queue, and the thread that writes them.
//!
//! Nothing that serves pods waits for a disk or a pipe. What cannot be written stays in the queue and is tried again; what
//! no longer fits there is lost, counted, and said once. A line is one write that appends: two daemons can share a file.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    os::{
        fd::AsFd as _,
        unix::fs::{FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _},
    },
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::Duration,
};

use nix::{errno::Errno, fcntl::OFlag, unistd::geteuid};
use tokio::{sync::watch, time::timeout};

use super::Destination;
use crate::metrics::Metrics;

/// Lines that may wait.
const WAITING: usize = 4096;
/// After a line could not be written.
const AGAIN: Duration = Duration::from_secs(1);

/// The way to the thread.
#[derive(Debug)]
pub(super) struct Writer {
    lines: SyncSender<Vec<u8>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    metrics: Arc<Metrics>,
    progress: Mutex<Progress>,
    done: watch::Sender<Done>,
}

/// What the thread has done.
#[derive(Clone, Copy, Debug, Default)]
struct Done {
    /// How many lines are written.
    written: u64,
    /// The last try to write failed.
    fails: bool,
}

#[derive(Debug, Default)]
struct Progress {
    /// Lines that came into the queue.
    queued: u64,
    /// Somebody waited in vain, and not all is written since.
    late: bool,
    /// Lines that were lost since all was well.
    lost: u64,
}

// === impl Writer ===

impl Writer {
    pub(super) fn start(destination: Destination, metrics: Arc<Metrics>) -> io::Result<Self> {
        let (name, target) = match destination {
            Destination::StandardOutput => {
                let file = File::from(io::stdout().as_fd().try_clone_to_owned()?);
                ("standard output".to_owned(), Target { open: Some(file), ..Target::default() })
            }
            Destination::File(path) => (path.display().to_string(), Target { path: Some(path), ..Target::default() }),
        };
        let (lines, queue) = sync_channel(WAITING);
        let shared = Arc::new(Shared { name, metrics, progress: Mutex::default(), done: watch::Sender::default() });
        let with = Arc::clone(&shared);
        thread::Builder::new().name("audit-log".to_owned()).spawn(move || with.write(target, &queue))?;
        Ok(Self { lines, shared })
    }

    /// Puts a line into the queue, or loses it.
    pub(super) fn push(&self, line: Vec<u8>) {
        let shared = &self.shared;
        let mut progress = shared.progress();
        if self.lines.try_send(line).is_ok() {
            progress.queued += 1;
            shared.show(shared.waiting(&progress));
        } else {
            shared.loses(&mut progress);
        }
    }

    pub(super) async fn written(&self, limit: Duration) {
        let shared = &self.shared;
        let queued = {
            let progress = shared.progress();
            if progress.late {
                return;
            }
            progress.queued
        };
        let mut done = shared.done.subscribe();
        if timeout(limit, done.wait_for(|done| done.fails || done.written >= queued)).await.is_err() {
            shared.is_late();
        }
    }

    pub(super) async fn end(&self, limit: Duration) {
        let shared = &self.shared;
        let queued = shared.progress().queued;
        let mut done = shared.done.subscribe();
        if timeout(limit, done.wait_for(|done| done.written >= queued)).await.is_err() {
            let left = shared.waiting(&shared.progress());
            tracing::error!("{left} lines of the audit log are not written to {}, and are lost", shared.name);
        }
    }
}

// === impl Shared ===

impl Shared {
    /// Writes to the end of the process.
    fn write(&self, mut target: Target, queue: &Receiver<Vec<u8>>) {
        // That it cannot be is known before the first line.
        if let Err(error) = target.open() {
            self.fails(&error);
        }
        while let Ok(line) = queue.recv() {
            while let Err(error) = target.append(&line) {
                self.fails(&error);
                thread::sleep(AGAIN);
            }
            self.wrote();
        }
    }

    fn wrote(&self) {
        self.metrics.audit_lines.with_label_values(&["written"]).inc();
        let mut progress = self.progress();
        let waiting = self.waiting(&progress).saturating_sub(1);
        let ill = self.done.borrow().fails || progress.late || progress.lost > 0;
        if waiting == 0 && ill {
            tracing::info!("the audit log is written to {} again; {} lines were lost", self.name, progress.lost);
            *progress = Progress { queued: progress.queued, ..Progress::default() };
        }
        self.show(waiting);
        self.done.send_modify(|done| *done = Done { written: done.written + 1, fails: done.fails && waiting > 0 });
    }

    fn fails(&self, error: &io::Error) {
        let begins = self.done.send_if_modified(|done| !std::mem::replace(&mut done.fails, true));
        if begins {
            let name = &self.name;
            tracing::error!(
                "the audit log cannot be written to {name}; {WAITING} lines can wait, and it is tried again: {error}"
            );
        }
    }

    fn is_late(&self) {
        if !std::mem::replace(&mut self.progress().late, true) {
            tracing::warn!(
                "{} takes the audit log slowly: credentials are served before their lines are there",
                self.name
            );
        }
    }

    fn loses(&self, progress: &mut Progress) {
        let result = if self.done.borrow().fails { "failed" } else { "dropped" };
        self.metrics.audit_lines.with_label_values(&[result]).inc();
        if progress.lost == 0 {
            tracing::error!("lines of the audit log are lost: {WAITING} wait to be written to {}", self.name);
        }
        progress.lost += 1;
    }

    fn waiting(&self, progress: &Progress) -> u64 {
        progress.queued.saturating_sub(self.done.borrow().written)
    }

    fn show(&self, waiting: u64) {
        self.metrics.audit_lines_waiting.set(i64::try_from(waiting).unwrap_or(i64::MAX));
    }

    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is written to.
#[derive(Default)]
struct Target {
    /// Of a file: what is there now may be another one than what is open.
    path: Option<PathBuf>,
    open: Option<File>,
    /// It ends within a line.
    torn: bool,
    /// It was said that it is not ours alone.
    warned: bool,
}

impl Target {
    /// Appends the line, whole. Of one that a full disk cut off, a part stays there, on a line of its own.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        self.open()?;
        let torn = self.torn;
        let Some(file) = &mut self.open else { return Err(io::ErrorKind::NotFound.into()) };
        let whole = if torn { [b"\n", line].concat() } else { line.to_vec() };
        let mut rest = whole.as_slice();
        while !rest.is_empty() {
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    rest = rest.get(written..).unwrap_or_default();
                    self.torn = !rest.is_empty();
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Opens what is at the path, unless that is open already: logs are rotated by renaming them.
    fn open(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.open.as_ref().is_none_or(|file| !is_at(file, path)) {
            // It may have been left without its end by a daemon before.
            let mut options = OpenOptions::new();
            options.create(true).append(true).read(true).mode(0o600).custom_flags(OFlag::O_NOFOLLOW.bits());
            let mut file = options.open(path).map_err(|error| match error.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ELOOP) => io::Error::other("it is a link, which is not followed: name the file itself"),
                _ => error,
            })?;
            self.torn = ends_within_a_line(&mut file)?;
            if let Some(whose) = whose(&file.metadata()?)
                && !std::mem::replace(&mut self.warned, true)
            {
                tracing::warn!("{}, where the audit log is written, {whose}", path.display());
            }
            self.open = Some(file);
        }
        Ok(())
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let at = |metadata: io::Result<fs::Metadata>| metadata.map(identity).ok();
    at(file.metadata()).is_some_and(|open| at(fs::symlink_metadata(path)) == Some(open))
}

/// Why the file is not ours alone. A device is nobody's.
fn whose(file: &fs::Metadata) -> Option<String> {
    let (mode, owner) = (file.mode() & 0o777, file.uid());
    if file.file_type().is_char_device() {
        None
    } else if owner != geteuid().as_raw() {
        Some(format!("is owned by the user {owner}"))
    } else {
        (mode & 0o066 != 0).then(|| format!("can be read or written by others (mode {mode:04o})"))
    }
}

fn ends_within_a_line(file: &mut File) -> io::Result<bool> {
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() == 0 {
        return Ok(false);
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    Ok(last != *b"\n")
}

#[cfg(test)]
mod tests;

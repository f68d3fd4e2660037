//! What the commands ask a daemon's admin socket with. It blocks, and needs no runtime: a probe is run every few seconds.

use std::{
    io::{self, Read as _, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use socket2::{Domain, SockAddr, Socket, Type};

/// For all of it: a daemon that hangs takes connections and says nothing.
pub const TIME_LIMIT: Duration = Duration::from_secs(5);
/// More than any answer has.
const MOST_BYTES: u64 = 4 << 20;

/// Nothing was said.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens there.
    #[error("no daemon answers at {path}: {error}")]
    Nobody {
        /// The admin socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// Somebody does, and does not answer.
    #[error("the daemon at {path} does not answer: {error}")]
    Silent {
        /// The admin socket.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
}

/// Asks the daemon at `path`, and returns the status and the body.
///
/// # Errors
/// When there is no answer within the limit.
pub fn get(path: &Path, target: &str) -> Result<(u16, String), ClientError> {
    let until = Instant::now() + TIME_LIMIT;
    let socket = connect(path, until).map_err(|error| ClientError::Nobody { path: path.to_owned(), error })?;
    ask(socket, target, until).map_err(|error| ClientError::Silent { path: path.to_owned(), error })
}

fn connect(path: &Path, until: Instant) -> io::Result<Socket> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // So long it also waits for room in the queue of a daemon that hangs.
    socket.set_write_timeout(Some(left(until)?))?;
    socket.connect(&SockAddr::unix(path)?).map_err(in_words)?;
    Ok(socket)
}

fn ask(mut socket: Socket, target: &str, until: Instant) -> io::Result<(u16, String)> {
    socket.write_all(format!("GET {target} HTTP/1.0\r\nHost: kube2irsa\r\n\r\n").as_bytes()).map_err(in_words)?;
    let (mut answer, mut piece) = (Vec::new(), [0; 16 * 1024]);
    loop {
        socket.set_read_timeout(Some(left(until)?))?;
        match socket.read(&mut piece) {
            Ok(0) => break,
            Ok(length) => answer.extend(piece.iter().take(length)),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(in_words(error)),
        }
        if answer.len() as u64 > MOST_BYTES {
            return Err(io::ErrorKind::FileTooLarge.into());
        }
    }
    let cut = || io::Error::new(io::ErrorKind::UnexpectedEof, "the answer is cut short");
    read(&String::from_utf8_lossy(&answer)).ok_or_else(cut)
}

/// Status and body, if the body is whole.
fn read(answer: &str) -> Option<(u16, String)> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let mut fields = head.lines().skip(1).filter_map(|line| line.split_once(':'));
    let (_, length) = fields.find(|(name, _)| name.eq_ignore_ascii_case("content-length"))?;
    (length.trim().parse() == Ok(body.len())).then(|| (status, body.to_owned()))
}

fn left(until: Instant) -> io::Result<Duration> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(timed_out()) } else { Ok(left) }
}

/// The kernel calls a socket's time limit "Resource temporarily unavailable".
fn in_words(error: io::Error) -> io::Error {
    if error.kind() == io::ErrorKind::WouldBlock { timed_out() } else { error }
}

fn timed_out() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("nothing within {} s", TIME_LIMIT.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_if_it_is_whole() {
        let answer =
            |length: usize| format!("HTTP/1.0 503 Service Unavailable\r\ncontent-length: {length}\r\n\r\nrules: no\n");
        assert_eq!(read(&answer(10)), Some((503, "rules: no\n".to_owned())));
        assert_eq!(read(&answer(11)), None);
        assert_eq!(read("HTTP/1.0 200 OK\r\n"), None);
        assert_eq!(read(""), None);
    }
}

//! The hand-over of the listening sockets from one daemon of a node to the next, so that no connection is refused.
//!
//! A daemon offers its sockets on `handover.sock` in the state directory. The next one asks for them there; the first
//! accepts until the next is about to. What is said, a line each, in version 1:
//!
//! ```text
//! next                        first
//! kube2irsa 1       ──►
//!                   ◄──       kube2irsa 1   and the sockets (SCM_RIGHTS)
//! take              ──►                     gives up the rules' lock, goes on serving
//! serving           ──►                     accepts no more, lets what is in flight end
//!                   ◄──       out           instead, if that took too long: goes on, with the rules
//! ```
//!
//! The lower of both versions is spoken. An end of the connection before `serving` means that the next one died: the
//! first takes the rules back and goes on. So it does after `out`, and the next has to end. If the first dies, the next takes
//! all at once.

use std::{
    fs::{self, File},
    io::{self, IoSlice, IoSliceMut},
    mem::MaybeUninit,
    net::SocketAddr,
    os::fd::{AsFd as _, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
};
use tokio::{
    io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader, Interest},
    net::{TcpListener, UnixListener, UnixStream},
    sync::watch,
};

use crate::local_socket::{self, Name, identity, is_answered, is_nobody};

/// What daemons have in the state directory to follow one another.
pub const SOCKET: &str = "handover.sock";
const HELLO: &str = "kube2irsa 1\n";
const TAKE: &str = "take\n";
const SERVING: &str = "serving\n";
const OUT: &str = "out\n";
/// A living daemon answers within milliseconds.
const PATIENCE: Duration = Duration::from_secs(1);
/// From the moment that the next one takes the rules until it serves: some rules are written.
const TAKING_LIMIT: Duration = Duration::from_secs(15);
/// Between two looks whether the offer can still be found.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Between two looks whether anybody serves.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const LONGEST_LINE: u64 = 1024;
/// How often a lock is tried for.
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// The most sockets that are passed on.
const MOST_SOCKETS: usize = 8;

/// The daemon that ran here before, and still does.
#[derive(Debug)]
pub struct Predecessor {
    stream: BufReader<UnixStream>,
    listeners: Vec<std::net::TcpListener>,
}

/// What is found at the place of the hand-over.
#[derive(Debug)]
pub enum Found {
    /// Nobody.
    Nobody,
    /// A daemon that hands over.
    Predecessor(Predecessor),
    /// One that does not answer, and may be about to die.
    Silent,
}

// === impl Predecessor ===

impl Predecessor {
    /// Asks whoever offers its sockets in `state_dir`.
    pub async fn ask(state_dir: &Path) -> Found {
        let stream = match UnixStream::connect(state_dir.join(SOCKET)).await {
            Ok(stream) => stream,
            Err(error) if is_nobody(&error) => return Found::Nobody,
            Err(error) => {
                tracing::debug!(%error, "no hand-over");
                return Found::Silent;
            }
        };
        match tokio::time::timeout(PATIENCE, Self::greet(stream)).await {
            Ok(Ok(predecessor)) => Found::Predecessor(predecessor),
            Ok(Err(error)) => {
                tracing::debug!(%error, "no hand-over");
                Found::Silent
            }
            Err(_elapsed) => Found::Silent,
        }
    }

    async fn greet(mut stream: UnixStream) -> io::Result<Self> {
        stream.write_all(HELLO.as_bytes()).await?;
        let sockets = stream.async_io(Interest::READABLE, || receive(stream.as_fd())).await?;
        let listeners = sockets.into_iter().map(std::net::TcpListener::from).collect();
        Ok(Self { stream: BufReader::new(stream), listeners })
    }

    /// Its socket that listens on `address`, if it has one.
    pub fn listener(&mut self, address: SocketAddr) -> Option<TcpListener> {
        let listens = |listener: &std::net::TcpListener| listener.local_addr().is_ok_and(|at| at == address);
        let at = self.listeners.iter().position(listens)?;
        let listener = self.listeners.swap_remove(at);
        listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)).ok()
    }

    /// Closes its sockets that were not asked for: while they are open here, the kernel takes connections that nobody serves,
    /// also once it has ended.
    pub fn close_other_listeners(&mut self) {
        self.listeners.clear();
    }

    /// Returns when it has ended, or waits no longer for us to serve.
    pub async fn ended(&mut self) -> End {
        until_closed(&mut self.stream).await
    }

    /// Asks it to give up the rules.
    pub async fn take(&mut self) {
        self.say(TAKE).await;
    }

    /// Tells it that it may stop. Sockets of its that were not asked for end with it.
    pub async fn stop(&mut self) {
        self.listeners.clear();
        self.say(SERVING).await;
    }

    async fn say(&mut self, what: &str) {
        // If it has died, that is as well.
        let _ = self.stream.write_all(what.as_bytes()).await;
    }
}

/// How a daemon ended its part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It has died.
    Died,
    /// It took the rules back, and goes on.
    WentOn,
}

/// The daemon that took over.
#[derive(Debug)]
pub struct Successor {
    stream: BufReader<UnixStream>,
    place: PathBuf,
}

impl Successor {
    /// Returns when it has ended, and nobody has followed it.
    pub async fn ended(self) {
        until_closed(self.stream).await;
        while is_answered(&self.place).await {
            tokio::time::sleep(ASK_AGAIN).await;
        }
    }
}

/// What the other still says; what is not understood does not matter.
async fn until_closed(mut stream: impl AsyncBufRead + Unpin) -> End {
    let mut line = Vec::new();
    while (&mut stream).take(LONGEST_LINE).read_until(b'\n', &mut line).await.is_ok_and(|length| length > 0) {
        if line == OUT.as_bytes() {
            return End::WentOn;
        }
        line.clear();
    }
    End::Died
}

/// Whether a daemon offers its sockets in `state_dir`.
pub async fn is_offered(state_dir: &Path) -> bool {
    is_answered(&state_dir.join(SOCKET)).await
}

/// The offer of a daemon's sockets to the next one.
#[derive(Debug)]
pub struct Offer {
    path: PathBuf,
    sockets: Vec<OwnedFd>,
    /// Whether the next daemon is here, and has not served yet.
    is_asked: AtomicBool,
}

/// Where the next daemon finds an offer.
#[derive(Debug)]
pub struct Place {
    listener: UnixListener,
    name: Name,
}

/// What became of an offer.
#[derive(Debug)]
pub enum Made {
    /// The next daemon serves.
    Taken(Successor),
    /// It cannot be found any more: the file is gone, or another's.
    Lost,
}

// === impl Offer ===

impl Offer {
    /// An offer of these.
    ///
    /// # Errors
    /// When the system has no descriptors left.
    pub fn new<'a>(state_dir: &Path, listeners: impl IntoIterator<Item = &'a TcpListener>) -> io::Result<Self> {
        let sockets = listeners.into_iter().map(|listener| listener.as_fd().try_clone_to_owned());
        let sockets = sockets.collect::<Result<_, _>>()?;
        Ok(Self { path: state_dir.join(SOCKET), sockets, is_asked: AtomicBool::new(false) })
    }

    /// Takes the place where the next daemon looks for the offer.
    ///
    /// # Errors
    /// When it cannot be had, yet.
    pub async fn open(&self) -> io::Result<Place> {
        if is_answered(&self.path).await {
            return Err(io::Error::other("another daemon, on other addresses, offers its own"));
        }
        self.take_place()
    }

    /// Takes the place of the daemon before, in one step: whoever comes is found by the one or the other.
    ///
    /// # Errors
    /// When it cannot be had, yet.
    pub fn take_place(&self) -> io::Result<Place> {
        let (listener, name) = local_socket::take(&self.path)?;
        Ok(Place { listener, name })
    }

    /// Makes the offer there until the next daemon serves. `owns` says whether the rules are ours meanwhile.
    pub async fn make(&self, place: &Place, owns: &watch::Sender<bool>) -> Made {
        loop {
            let accepted = tokio::select! {
                accepted = place.listener.accept() => accepted,
                () = tokio::time::sleep(LOOK_AGAIN) => {
                    if !place.name.is_ours() {
                        return Made::Lost;
                    }
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the next daemon could not be heard; it is tried again");
                    tokio::time::sleep(PATIENCE).await;
                    continue;
                }
            };
            let Some(stream) = self.greet(stream).await else { continue };
            self.is_asked.store(true, Ordering::Relaxed);
            let handed_over = self.hand_over(stream, owns).await;
            self.is_asked.store(false, Ordering::Relaxed);
            match handed_over {
                Ok(successor) => return Made::Taken(successor),
                Err(error) => tracing::warn!(%error, "the next daemon did not take over; this one goes on"),
            }
            owns.send_replace(true);
        }
    }

    /// Whether the next daemon is here, and has not served yet.
    pub fn is_asked(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }

    /// Hears what the next daemon says first. Who says nothing only wanted to know whether we are here.
    async fn greet(&self, stream: UnixStream) -> Option<BufReader<UnixStream>> {
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        let mut start = (&mut stream).take(LONGEST_LINE);
        let hello = tokio::time::timeout(PATIENCE, start.read_line(&mut line)).await;
        tracing::debug!(?hello, "somebody is at the place of the hand-over");
        // Whatever its version is, ours is the lower.
        line.starts_with("kube2irsa ").then_some(stream)
    }

    async fn hand_over(&self, mut stream: BufReader<UnixStream>, owns: &watch::Sender<bool>) -> io::Result<Successor> {
        let sockets = self.sockets.iter().map(OwnedFd::as_fd).collect::<Vec<_>>();
        let unix = stream.get_ref();
        unix.async_io(Interest::WRITABLE, || send(unix.as_fd(), &sockets)).await?;
        match self.give(&mut stream, owns).await {
            Ok(()) => Ok(Successor { stream, place: self.path.clone() }),
            Err(error) => {
                // If it lives, it must not take our end for our death.
                let _ = stream.write_all(OUT.as_bytes()).await;
                Err(error)
            }
        }
    }

    async fn give(&self, stream: &mut BufReader<UnixStream>, owns: &watch::Sender<bool>) -> io::Result<()> {
        let (mut line, mut limit) = (String::new(), None);
        loop {
            line.clear();
            // It prepares for as long as it needs; once it takes the rules nobody else cares for them.
            let read = stream.read_line(&mut line);
            let read = match limit {
                Some(limit) => tokio::time::timeout_at(limit, read).await.map_err(|_| io::ErrorKind::TimedOut)?,
                None => read.await,
            };
            if read? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.as_str() {
                TAKE => {
                    owns.send_replace(false);
                    limit = Some(tokio::time::Instant::now() + TAKING_LIMIT);
                }
                SERVING => return Ok(()),
                // A later version may say more.
                _ => {}
            }
        }
    }
}

fn send(to: BorrowedFd<'_>, sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !control.push(SendAncillaryMessage::ScmRights(sockets)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(to, &[IoSlice::new(HELLO.as_bytes())], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The sockets that come with the other's hello.
fn receive(from: BorrowedFd<'_>) -> io::Result<Vec<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MOST_SOCKETS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut hello = [0; 64];
    let received =
        rustix::net::recvmsg(from, &mut [IoSliceMut::new(&mut hello)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    if !hello.get(..received.bytes).is_some_and(|hello| hello.starts_with(b"kube2irsa ")) {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let sockets = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    Ok(sockets.flatten().collect())
}

/// The right to write rules on the node: one daemon's at a time. It is a lock on the state directory itself, for which
/// nothing must be written there.
#[derive(Debug)]
pub struct RulesLock(File);

impl RulesLock {
    /// Waits until it can be had.
    ///
    /// # Errors
    /// When there is no state directory.
    pub async fn acquire(state_dir: &Path) -> io::Result<Self> {
        let directory = File::open(state_dir)?;
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Self(directory)),
                Err(fs::TryLockError::WouldBlock) => tokio::time::sleep(TRY_AGAIN).await,
                Err(fs::TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Whether it is that of the directory that is there now.
    #[must_use]
    pub fn is_of(&self, state_dir: &Path) -> bool {
        identity(self.0.metadata()) == identity(fs::metadata(state_dir))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn listener() -> TcpListener {
        TcpListener::bind("127.0.0.1:0").await.unwrap()
    }

    async fn predecessor(directory: &Path) -> Predecessor {
        loop {
            match Predecessor::ask(directory).await {
                Found::Predecessor(predecessor) => return predecessor,
                Found::Nobody => tokio::time::sleep(Duration::from_millis(1)).await,
                Found::Silent => panic!("silent"),
            }
        }
    }

    #[tokio::test]
    async fn sockets_are_handed_over_and_the_first_goes_on_if_the_next_dies() {
        let directory = tempfile::tempdir().unwrap();
        let (pods, admin) = (listener().await, listener().await);
        assert!(matches!(Predecessor::ask(directory.path()).await, Found::Nobody));
        let offer = Offer::new(directory.path(), [&pods, &admin]).unwrap();
        let (owns, mut owned) = watch::channel(true);
        let made = tokio::spawn(async move { offer.make(&offer.open().await.unwrap(), &owns).await });

        let mut dies = predecessor(directory.path()).await;
        dies.take().await;
        owned.wait_for(|owns| !owns).await.unwrap();
        drop(dies);
        owned.wait_for(|owns| *owns).await.unwrap();

        let mut takes = predecessor(directory.path()).await;
        let address = pods.local_addr().unwrap();
        let handed_over = takes.listener(address).unwrap();
        assert!(takes.listener(address).is_none() && takes.listener(admin.local_addr().unwrap()).is_some());
        drop(pods);
        let client = tokio::net::TcpStream::connect(address);
        let (accepted, connected) = tokio::join!(handed_over.accept(), client);
        assert_eq!(accepted.unwrap().1, connected.unwrap().local_addr().unwrap());
        takes.take().await;
        takes.stop().await;
        let Made::Taken(successor) = made.await.unwrap() else { panic!("nobody took it away") };
        assert!(!*owned.borrow());
        let ended = successor.ended();
        let mut ended = std::pin::pin!(ended);
        assert!(tokio::time::timeout(Duration::from_millis(20), ended.as_mut()).await.is_err());
        drop(takes);
        tokio::time::timeout(Duration::from_secs(20), ended).await.unwrap();
    }

    #[tokio::test]
    async fn one_that_does_not_answer_is_told_from_none_and_its_end_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join(SOCKET);
        let silent = UnixListener::bind(&path).unwrap();
        assert!(matches!(Predecessor::ask(directory.path()).await, Found::Silent));
        let offer = Offer::new(directory.path(), [&listener().await]).unwrap();
        assert!(offer.open().await.is_err(), "nobody's place is taken");
        drop(silent);
        assert!(matches!(Predecessor::ask(directory.path()).await, Found::Nobody), "a dead one's socket is left");

        let offer = Offer::new(directory.path(), [&listener().await]).unwrap();
        let owns = watch::Sender::new(true);
        let made = tokio::spawn(async move { offer.make(&offer.open().await.unwrap(), &owns).await });
        let mut first = predecessor(directory.path()).await;
        made.abort();
        assert_eq!(tokio::time::timeout(Duration::from_secs(20), first.ended()).await, Ok(End::Died));
    }

    #[tokio::test]
    async fn one_that_takes_and_does_not_serve_is_told_that_the_first_goes_on() {
        let directory = tempfile::tempdir().unwrap();
        let offer = Offer::new(directory.path(), [&listener().await]).unwrap();
        let (owns, mut owned) = watch::channel(true);
        let _made = tokio::spawn(async move { offer.make(&offer.open().await.unwrap(), &owns).await });
        let mut hangs = predecessor(directory.path()).await;
        hangs.take().await;
        owned.wait_for(|owns| !owns).await.unwrap();
        assert_eq!(hangs.ended().await, End::WentOn);
        tokio::time::timeout(Duration::from_secs(20), owned.wait_for(|owns| *owns)).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn an_offer_that_was_taken_away_is_noticed_and_made_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let offer = Offer::new(&path, [&listener().await]).unwrap();
        let owns = watch::Sender::new(true);
        let place = offer.open().await.unwrap();
        let lock = RulesLock::acquire(&path).await.unwrap();
        assert!(lock.is_of(&path));
        fs::remove_dir_all(&path).unwrap();
        assert!(matches!(offer.make(&place, &owns).await, Made::Lost));
        let place = offer.open().await.unwrap();
        assert!(!lock.is_of(&path));
        let _made = tokio::spawn(async move { offer.make(&place, &owns).await });
        predecessor(&path).await;
    }

    #[tokio::test]
    async fn rules_are_one_daemons_at_a_time() {
        let directory = tempfile::tempdir().unwrap();
        let first = RulesLock::acquire(directory.path()).await.unwrap();
        let waits = tokio::time::timeout(TRY_AGAIN * 3, RulesLock::acquire(directory.path()));
        assert!(waits.await.is_err());
        drop(first);
        RulesLock::acquire(directory.path()).await.unwrap();
    }
}

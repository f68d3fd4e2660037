//! The sandbox's servers: what is cut or stopped has ended by then, however busy the server's threads are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

use std::{
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
    thread,
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt as _, channel::mpsc};
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use sandbox::http::Server;
use tokio::{net::TcpListener, runtime};

const ROUNDS: usize = 200;

/// A server whose answers go on with what is said to all who asked, as a watch's do.
struct World {
    runtime: runtime::Runtime,
    answers: Arc<Mutex<Vec<mpsc::UnboundedSender<&'static str>>>>,
    server: Option<Server>,
    address: SocketAddr,
}

impl World {
    fn new() -> Self {
        let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let mut world = Self { runtime, answers: Arc::default(), server: None, address: ([127, 0, 0, 1], 0).into() };
        world.start();
        world
    }

    fn start(&mut self) {
        let listener = std::net::TcpListener::bind(self.address).unwrap();
        listener.set_nonblocking(true).unwrap();
        let _runtime = self.runtime.enter();
        let answers = Arc::clone(&self.answers);
        let server = Server::start(TcpListener::from_std(listener).unwrap(), None, move |_, _| {
            let (say, said) = mpsc::unbounded();
            answers.lock().unwrap().push(say);
            let body = StreamBody::new(said.map(|said| io::Result::Ok(Frame::data(Bytes::from(said)))));
            std::future::ready(Response::new(BodyExt::boxed(body)))
        });
        let server = server.unwrap();
        self.address = server.address();
        self.server = Some(server);
    }

    /// A client that has begun to hear an answer.
    fn client(&self) -> TcpStream {
        let mut client = self.connect().unwrap();
        client.write_all(b"GET / HTTP/1.1\r\nHost: server\r\n\r\n").unwrap();
        while self.answers.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        self.say("before");
        let mut heard = Vec::new();
        while !heard.ends_with(b"before\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte).unwrap();
            heard.extend(byte);
        }
        client
    }

    fn connect(&self) -> io::Result<TcpStream> {
        let client = TcpStream::connect(self.address)?;
        client.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(client)
    }

    fn say(&self, what: &'static str) {
        self.answers.lock().unwrap().iter().for_each(|answer| _ = answer.unbounded_send(what));
    }

    /// The server's one thread does something else for a while.
    fn keep_busy(&self) {
        let (begun, begins) = std::sync::mpsc::channel();
        self.runtime.spawn(async move {
            begun.send(()).unwrap();
            thread::sleep(Duration::from_millis(2));
        });
        begins.recv().unwrap();
    }

    /// `client` hears no more of what is said from now on.
    fn is_cut(&self, mut client: TcpStream) {
        self.say("after");
        let mut heard = Vec::new();
        let end = client.read_to_end(&mut heard).unwrap_err();
        assert_eq!((heard.as_slice(), end.kind()), (&b""[..], io::ErrorKind::ConnectionReset));
        self.answers.lock().unwrap().clear();
    }
}

#[test]
fn a_server_that_was_stopped_says_nothing_more_and_takes_nobody_and_can_be_started_again() {
    let mut world = World::new();
    for _ in 0..ROUNDS {
        let client = world.client();
        world.keep_busy();
        let waits = world.connect().unwrap();
        drop(world.server.take());
        assert_eq!(world.connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        world.is_cut(client);
        world.is_cut(waits);
        world.start();
    }
}

#[test]
fn a_connection_that_was_cut_says_nothing_more_and_a_new_one_is_served() {
    let world = World::new();
    for _ in 0..ROUNDS {
        let client = world.client();
        world.keep_busy();
        let waits = world.connect().unwrap();
        world.server.as_ref().unwrap().cut_connections();
        world.is_cut(client);
        world.is_cut(waits);
    }
}

#[test]
fn a_server_can_be_stopped_on_its_own_thread() {
    let mut world = World::new();
    let client = world.client();
    let server = world.server.take();
    world.runtime.block_on(world.runtime.spawn(async { drop(server) })).unwrap();
    assert_eq!(world.connect().unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    world.is_cut(client);
}

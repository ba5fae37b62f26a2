//! Transfers that stand still in their middle, and steps that wait: what is to be given up is surely
//! under way then.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};

use super::PATIENCE;

/// Where connections lead.
#[derive(Clone, Debug)]
pub enum Upstream {
    Port(u16),
    Socket(PathBuf),
}

/// Which direction is held up, as who connects sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Up,
    Down,
}

#[derive(Debug)]
struct State {
    way: Way,
    /// How many bytes may still pass that way, all connections together; `None`: all.
    left: Option<usize>,
    /// Whether something waits.
    waits: bool,
    /// How often what waited was cut off.
    cuts: u64,
}

/// A port that leads elsewhere, and lets no more than so many bytes pass one way while it is armed.
#[derive(Debug)]
pub struct Toll {
    listener: TcpListener,
    shared: Arc<(Mutex<State>, Condvar)>,
}

impl Toll {
    /// Its port is known at once; connections wait for [`Toll::lead_to`].
    pub fn new() -> Toll {
        let state = State {
            way: Way::Up,
            left: None,
            waits: false,
            cuts: 0,
        };
        Toll {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            shared: Arc::new((Mutex::new(state), Condvar::new())),
        }
    }

    /// One that leads there.
    pub fn before(upstream: Upstream) -> Toll {
        let toll = Toll::new();
        toll.lead_to(upstream);
        toll
    }

    pub fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    /// From now on, until the test ends.
    pub fn lead_to(&self, upstream: Upstream) {
        let (listener, shared) = (self.listener.try_clone().unwrap(), self.shared.clone());
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                connect(&client, &upstream, &shared);
            }
        });
    }

    /// Lets only so many bytes pass that way.
    pub fn arm(&self, way: Way, bytes: usize) {
        let mut state = self.state();
        (state.way, state.left, state.waits) = (way, Some(bytes), false);
    }

    /// Returns when something waits to pass.
    pub fn wait_until_it_holds(&self) {
        let waits = |state: &mut State| !state.waits;
        let (state, limit) = self
            .shared
            .1
            .wait_timeout_while(self.state(), PATIENCE, waits)
            .unwrap();
        drop(state);
        assert!(!limit.timed_out(), "nothing is being transferred");
    }

    /// Lets everything pass.
    pub fn open(&self) {
        self.state().left = None;
        self.shared.1.notify_all();
    }

    /// Lets everything pass but what waits: that is lost, and its connections end. Much of what was
    /// given up may have been on its way, and would arrive after all.
    pub fn cut(&self) {
        self.state().cuts += 1;
        self.open();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap()
    }
}

type Ends = (
    Box<dyn Read + Send>,
    Box<dyn Write + Send>,
    Box<dyn Fn() + Send>,
);

fn connect(client: &TcpStream, upstream: &Upstream, shared: &Arc<(Mutex<State>, Condvar)>) {
    let of_client = || tcp_ends(client);
    let (up, down): (Ends, Ends) = match upstream {
        Upstream::Port(port) => {
            let Ok(server) = TcpStream::connect(("127.0.0.1", *port)) else {
                return;
            };
            let (client, server) = (of_client(), tcp_ends(&server));
            (
                (client.0, server.1, server.2),
                (server.0, client.1, client.2),
            )
        }
        Upstream::Socket(path) => {
            let Ok(server) = UnixStream::connect(path) else {
                return;
            };
            let end = server.try_clone().unwrap();
            let (client, server): (Ends, Ends) = (
                of_client(),
                (
                    Box::new(server.try_clone().unwrap()),
                    Box::new(server),
                    Box::new(move || drop(end.shutdown(Shutdown::Write))),
                ),
            );
            (
                (client.0, server.1, server.2),
                (server.0, client.1, client.2),
            )
        }
    };
    for (way, ends) in [(Way::Up, up), (Way::Down, down)] {
        let shared = shared.clone();
        std::thread::spawn(move || carry(way, ends, &shared));
    }
}

fn tcp_ends(stream: &TcpStream) -> Ends {
    let end = stream.try_clone().unwrap();
    (
        Box::new(stream.try_clone().unwrap()),
        Box::new(stream.try_clone().unwrap()),
        Box::new(move || drop(end.shutdown(Shutdown::Write))),
    )
}

/// Copies one direction; its end is handed on.
fn carry(way: Way, (mut from, mut to, end): Ends, shared: &(Mutex<State>, Condvar)) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if !pay(way, count, shared) || to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    end();
}

/// Waits until so many bytes may pass; false if they are cut off.
fn pay(way: Way, count: usize, (state, changed): &(Mutex<State>, Condvar)) -> bool {
    let mut state = state.lock().unwrap();
    let cuts = state.cuts;
    loop {
        match state.left {
            Some(left) if state.way == way && left < count => {
                // Said once: those who wait would wake each other without end.
                if !std::mem::replace(&mut state.waits, true) {
                    changed.notify_all();
                }
                state = changed.wait(state).unwrap();
                if state.cuts != cuts {
                    return false;
                }
            }
            Some(left) if state.way == way => {
                state.left = Some(left - count);
                return true;
            }
            _ => return true,
        }
    }
}

/// What steps wait at: each connects, which says that it runs, and goes on when that ends.
pub struct Gate(TcpListener);

/// A step that waits; dropping it lets it go on.
pub struct Waiting(#[expect(dead_code, reason = "open as long as the step waits")] TcpStream);

impl Gate {
    pub fn new() -> Gate {
        Gate(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The command that waits.
    pub fn command(&self) -> String {
        format!("nc 127.0.0.1 {}", self.0.local_addr().unwrap().port())
    }

    /// Returns when a step waits.
    pub fn wait_for_step(&self) -> Waiting {
        self.0.set_nonblocking(true).unwrap();
        let mut waiting = None;
        testkit::wait_for("a step at the gate", PATIENCE, || {
            waiting = self.0.accept().ok();
            waiting.is_some()
        });
        Waiting(waiting.unwrap().0)
    }
}

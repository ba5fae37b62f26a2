//! A name server that knows one name.

use std::net::{Ipv4Addr, UdpSocket};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Length of the header of a message, in bytes.
const HEADER: usize = 12;
const TYPE_A: [u8; 2] = [0, 1];

/// Answers questions for the IPv4 address of `name` on port 53 of `address`, in the network
/// namespace that the file `namespace` is; other names do not exist there. It answers from when this
/// returns to the end of the test process, or of what holds the namespace.
pub fn serve_names(namespace: &Path, address: Ipv4Addr, name: &str, is_at: Ipv4Addr) {
    let namespace = std::fs::File::open(namespace).expect("open a network namespace");
    let wanted = encode(name);
    let (ready, bound) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        use std::os::fd::AsFd;
        // Only this thread goes there.
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .expect("enter a network namespace (needs root)");
        let socket = UdpSocket::bind((address, 53)).expect("bind the name server's address");
        ready.send(()).expect("the test waits");
        let mut question = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut question) {
            if let Some(answer) = answer(&question[..length], &wanted, is_at) {
                let _ = socket.send_to(&answer, from);
            }
        }
    });
    bound.recv().expect("the name server listens");
}

/// A name as messages have it: each label after its length, and an empty one.
fn encode(name: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    for label in name.split('.') {
        bytes.push(u8::try_from(label.len()).expect("a short label"));
        bytes.extend_from_slice(label.as_bytes());
    }
    bytes.push(0);
    bytes
}

/// The answer to a question (RFC 1035, section 4); nothing for what is none.
fn answer(question: &[u8], wanted: &[u8], is_at: Ipv4Addr) -> Option<Vec<u8>> {
    let rest = question.get(HEADER..)?;
    let length = rest.iter().position(|byte| *byte == 0)? + 1;
    let (name, kind) = (&rest[..length], rest.get(length..length + 2)?);
    let known = name.eq_ignore_ascii_case(wanted);
    let answers = known && kind == TYPE_A;
    let mut out = question[..2].to_vec();
    // An authoritative answer; 3 is "no such name".
    out.extend_from_slice(&[0x84, if known { 0 } else { 3 }]);
    out.extend_from_slice(&[0, 1, 0, u8::from(answers), 0, 0, 0, 0]);
    out.extend_from_slice(rest.get(..length + 4)?);
    if answers {
        // The name is that of the question; class IN, no time to live, four bytes.
        out.extend_from_slice(&[0xc0, HEADER as u8, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        out.extend_from_slice(&is_at.octets());
    }
    Some(out)
}

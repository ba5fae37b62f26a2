//! DiffCopy's packets from anywhere: none makes a receiver panic, hang, or write outside its
//! directory.

use std::fs;

use bytes::Bytes;
use futures::StreamExt;
use session::diffcopy::{ReceiveOptions, receive};
use session::packet::Packet;
use testkit::{CountingAllocator, Fuzz};
use tokio::sync::mpsc;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus/packets");

/// The messages of an input: each after its length in two bytes, little end first.
fn messages(mut input: &[u8]) -> Vec<Bytes> {
    let mut messages = Vec::new();
    while let Some((length, rest)) = input.split_first_chunk::<2>() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        messages.push(Bytes::copy_from_slice(&rest[..length]));
        input = &rest[length..];
    }
    messages
}

#[test]
fn any_bytes_are_a_packet_or_an_error() {
    Fuzz::new(CORPUS, 20_000).run(|input| {
        for message in messages(input) {
            let Ok(packet) = Packet::decode(message) else {
                continue;
            };
            let again = Packet::decode(packet.encode()).unwrap();
            assert_eq!(again, packet);
        }
    });
}

#[test]
fn a_receiver_writes_inside_its_directory_whatever_it_is_sent() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let lab = tempfile::tempdir().unwrap();
    let (canary, dest) = (lab.path().join("canary"), lab.path().join("dest"));
    fs::write(&canary, "alive").unwrap();
    Fuzz::new(CORPUS, 600).run(|input| {
        fs::create_dir(&dest).unwrap();
        let packets: Vec<_> = messages(input).into_iter().map(Ok).collect();
        let inbound = futures::stream::iter(packets).boxed();
        let (requests, _requested) = mpsc::unbounded_channel();
        // An error is as good as an outcome.
        let _ = runtime.block_on(receive(
            dest.clone(),
            ReceiveOptions::default(),
            inbound,
            requests,
        ));
        fs::remove_dir_all(&dest).unwrap();
        assert_eq!(fs::read_to_string(&canary).unwrap(), "alive");
        assert_eq!(fs::read_dir(lab.path()).unwrap().count(), 1);
    });
}

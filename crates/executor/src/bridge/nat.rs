//! Masquerading: what steps send elsewhere has the server's own address.
//!
//! One nftables table for each bridge, with a name that says whose it is. Source of the format:
//! `linux/netfilter/nf_tables.h`.

use std::io;

use super::netlink::{Message, Socket, put, text};
use super::subnet::Subnet;

/// `NETLINK_NETFILTER`.
const NETFILTER: u32 = 12;
const ACK: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const GET_TABLE: u16 = NFTABLES << 8 | 1;
const DELETE_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const NEW_RULE: u16 = NFTABLES << 8 | 6;
const NESTED: u16 = 0x8000;
const CHAIN: &str = "postrouting";
/// After routing, where source addresses are changed.
const HOOK: u32 = 4;
const PRIORITY: u32 = 100;
/// The register that values go through.
const REGISTER: u32 = 1;

/// Makes what comes from the subnet and leaves by another interface than the bridge come from here.
pub(super) fn masquerade(bridge: &str, subnet: &Subnet) -> io::Result<()> {
    let table = text(&table(bridge));
    let mut hook = Vec::new();
    put(&mut hook, 1, &HOOK.to_be_bytes());
    put(&mut hook, 2, &PRIORITY.to_be_bytes());
    let mut rule = Vec::new();
    from_subnet(&mut rule, subnet);
    not_to(&mut rule, bridge);
    expression(&mut rule, "masq", &[]);
    let messages = [
        Message::new(NEW_TABLE, ACK | CREATE, &head())
            .attribute(1, &table)
            .finish(),
        Message::new(NEW_CHAIN, ACK | CREATE, &head())
            .attribute(1, &table)
            .attribute(3, &text(CHAIN))
            .nested(4, &hook)
            .attribute(7, &text("nat"))
            .finish(),
        Message::new(NEW_RULE, ACK | CREATE | APPEND, &head())
            .attribute(1, &table)
            .attribute(2, &text(CHAIN))
            .nested(4, &rule)
            .finish(),
    ];
    batch(&messages)
}

/// Whether there are rules of a bridge.
pub(super) fn is_there(bridge: &str) -> bool {
    let message = Message::new(GET_TABLE, ACK, &head())
        .attribute(1, &text(&table(bridge)))
        .finish();
    Socket::of(NETFILTER).is_ok_and(|socket| socket.ask(&message, 1).is_ok())
}

/// Removes the rules of a bridge; answers whether there were any.
pub(super) fn forget(bridge: &str) -> bool {
    let message = Message::new(DELETE_TABLE, ACK, &head())
        .attribute(1, &text(&table(bridge)))
        .finish();
    // Not there is what is wanted; a kernel without nftables is told of when rules are made.
    batch(&[message]).is_ok()
}

fn table(bridge: &str) -> String {
    format!("cooperage-{bridge}")
}

/// Changes take effect all together or not at all.
fn batch(messages: &[Vec<u8>]) -> io::Result<()> {
    // Of no family, for the subsystem that it names in network byte order.
    let mut head = vec![0, 0];
    head.extend_from_slice(&NFTABLES.to_be_bytes());
    let mut all = Message::new(BATCH_BEGIN, 0, &head).finish();
    for message in messages {
        all.extend_from_slice(message);
    }
    all.extend_from_slice(&Message::new(BATCH_END, 0, &head).finish());
    Socket::of(NETFILTER)?.ask(&all, messages.len())
}

/// IPv4, version 0.
fn head() -> [u8; 4] {
    [libc::NFPROTO_IPV4 as u8, 0, 0, 0]
}

fn from_subnet(rule: &mut Vec<u8>, subnet: &Subnet) {
    let mut source = Vec::new();
    // Four bytes at 12 of the network header: the source address.
    for (kind, value) in [(1, REGISTER), (2, 1), (3, 12), (4, 4)] {
        put(&mut source, kind, &u32::to_be_bytes(value));
    }
    expression(rule, "payload", &source);
    let mut mask = Vec::new();
    for (kind, value) in [(1, REGISTER), (2, REGISTER), (3, 4)] {
        put(&mut mask, kind, &u32::to_be_bytes(value));
    }
    put(&mut mask, 4 | NESTED, &value(&subnet.mask().to_be_bytes()));
    put(&mut mask, 5 | NESTED, &value(&[0; 4]));
    expression(rule, "bitwise", &mask);
    compare(rule, 0, &subnet.address(0).octets());
}

fn not_to(rule: &mut Vec<u8>, bridge: &str) {
    let mut name = Vec::new();
    // The name of the interface it leaves by.
    for (kind, value) in [(1, REGISTER), (2, 7)] {
        put(&mut name, kind, &u32::to_be_bytes(value));
    }
    expression(rule, "meta", &name);
    let mut padded = [0; 16];
    padded[..bridge.len()].copy_from_slice(bridge.as_bytes());
    compare(rule, 1, &padded);
}

/// Goes on only if what is in the register is (0) or is not (1) that.
fn compare(rule: &mut Vec<u8>, operation: u32, data: &[u8]) {
    let mut parts = Vec::new();
    put(&mut parts, 1, &REGISTER.to_be_bytes());
    put(&mut parts, 2, &operation.to_be_bytes());
    put(&mut parts, 3 | NESTED, &value(data));
    expression(rule, "cmp", &parts);
}

fn value(data: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    put(&mut out, 1, data);
    out
}

fn expression(rule: &mut Vec<u8>, name: &str, data: &[u8]) {
    let mut parts = Vec::new();
    put(&mut parts, 1, &text(name));
    put(&mut parts, 2 | NESTED, data);
    put(rule, 1 | NESTED, &parts);
}

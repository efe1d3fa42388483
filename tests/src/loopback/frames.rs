//! HTTP/2 frames by hand (RFC 9113 §4.1), for what no library would send.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

const STEP: Duration = Duration::from_secs(20);

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// A received frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// A frame's bytes.
///
/// # Panics
/// When the payload is longer than a length can say.
#[must_use]
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).expect("a frame's payload");
    let [_, a, b, c] = len.to_be_bytes();
    let mut bytes = vec![a, b, c, kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// Fields in HPACK's plainest form: literal, not indexed, not compressed (RFC 7541 §6.2.2).
#[must_use]
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (name, value) in fields {
        bytes.push(0);
        string(&mut bytes, name);
        string(&mut bytes, value);
    }
    bytes
}

/// Its length is an integer with a prefix of seven bits (RFC 7541 §5.1).
fn string(bytes: &mut Vec<u8>, text: &str) {
    match u8::try_from(text.len()) {
        Ok(short) if short < 127 => bytes.push(short),
        _ => {
            bytes.push(127);
            let mut rest = text.len() - 127;
            while rest >= 128 {
                bytes.push(rest.to_le_bytes()[0] | 128);
                rest /= 128;
            }
            bytes.push(rest.to_le_bytes()[0]);
        }
    }
    bytes.extend(text.as_bytes());
}

/// Begins a connection in the client's role.
pub async fn greet(stream: &mut TcpStream) {
    let mut hello = PREFACE.to_vec();
    hello.extend(frame(SETTINGS, 0, 0, &[]));
    send(stream, &hello).await;
}

/// Begins a connection in the server's role: reads the preface, sends its settings.
///
/// # Panics
/// When there is no preface.
pub async fn welcome(stream: &mut TcpStream, settings: &[u8]) {
    let mut preface = vec![0; PREFACE.len()];
    let read = timeout(STEP, stream.read_exact(&mut preface)).await;
    read.expect("in time").expect("a preface");
    assert_eq!(preface, PREFACE);
    send(stream, &frame(SETTINGS, 0, 0, settings)).await;
}

/// Writes; a peer that is gone is for the test to notice.
pub async fn send(stream: &mut TcpStream, bytes: &[u8]) {
    let _gone = timeout(STEP, stream.write_all(bytes)).await;
}

/// The next frame; `None` at the end of the connection, however it ends. SETTINGS and PING are
/// acknowledged on the way.
///
/// # Panics
/// When nothing comes.
pub async fn next(stream: &mut TcpStream) -> Option<Frame> {
    let mut head = [0; 9];
    let read = timeout(STEP, stream.read_exact(&mut head)).await;
    read.expect("a frame or an end").ok()?;
    let [a, b, c, kind, flags, s, t, u, v] = head;
    let len = usize::try_from(u32::from_be_bytes([0, a, b, c])).expect("24 bits");
    let mut payload = vec![0; len];
    let read = timeout(STEP, stream.read_exact(&mut payload)).await;
    read.expect("a whole frame").ok()?;
    if matches!(kind, SETTINGS | PING) && flags & ACK == 0 {
        let echo: &[u8] = if kind == PING { &payload } else { &[] };
        send(stream, &frame(kind, ACK, 0, echo)).await;
    }
    Some(Frame {
        kind,
        flags,
        stream: u32::from_be_bytes([s & 0x7f, t, u, v]),
        payload,
    })
}

/// Reads on until a frame of this kind comes; `None` when the connection ends before.
pub async fn until(stream: &mut TcpStream, kind: u8) -> Option<Frame> {
    loop {
        let frame = next(stream).await?;
        if frame.kind == kind {
            return Some(frame);
        }
    }
}

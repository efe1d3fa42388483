//! Server name and ALPN out of a TLS `ClientHello` (RFC 8446 §4.1.2), without a TLS library, so
//! that connections can be passed on untouched.

use super::{Protocol, Verdict};

/// Record type `handshake`.
pub(super) const HANDSHAKE: u8 = 22;
const CLIENT_HELLO: u8 = 1;
const EXT_SERVER_NAME: u16 = 0;
const EXT_ALPN: u16 = 16;
/// More offers than any client makes; the rest is not looked at.
const MAX_ALPN: usize = 32;

/// What a client asks for in clear text before TLS begins.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// Lower case. `None` when absent or not a host name.
    pub server_name: Option<String>,
    /// In the client's order.
    pub alpn: Vec<Vec<u8>>,
}

/// Reads big-endian fields from a slice; `None` at its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn number(&mut self, bytes: usize) -> Option<usize> {
        let taken = self.take(bytes)?;
        Some(taken.iter().fold(0, |n, b| n << 8 | usize::from(*b)))
    }

    /// A vector with a length of `bytes` bytes before it.
    fn vector(&mut self, bytes: usize) -> Option<Self> {
        let length = self.number(bytes)?;
        self.take(length).map(Reader)
    }
}

pub(super) fn parse(bytes: &[u8]) -> Verdict {
    // The hello may be cut into several records (RFC 8446 §5.1); join their payloads.
    let mut records = Reader(bytes);
    let mut message = Vec::new();
    loop {
        match hello_of(&message) {
            Some(Ok(hello)) => return Verdict::Is(Protocol::Tls(hello)),
            Some(Err(NotHello)) => return Verdict::Is(Protocol::Opaque),
            None => {}
        }
        match records.number(1) {
            None => return Verdict::More,
            Some(kind) if kind != usize::from(HANDSHAKE) => return Verdict::Is(Protocol::Opaque),
            Some(_) => {}
        }
        match records.number(2) {
            None => return Verdict::More,
            // SSL 3.0 to TLS 1.2 as the record version; 1.3 says 1.0 or 1.2 here.
            Some(version) if version >> 8 != 3 => return Verdict::Is(Protocol::Opaque),
            Some(_) => {}
        }
        let Some(length) = records.number(2) else {
            return Verdict::More;
        };
        if length == 0 || length > 1 << 14 {
            return Verdict::Is(Protocol::Opaque);
        }
        let Some(payload) = records.take(length) else {
            // A wrong first byte shows even before the record is whole.
            let wrong = message.is_empty() && records.0.first().is_some_and(|b| *b != CLIENT_HELLO);
            return if wrong {
                Verdict::Is(Protocol::Opaque)
            } else {
                Verdict::More
            };
        };
        message.extend_from_slice(payload);
    }
}

struct NotHello;

/// `None` while the message is not whole.
fn hello_of(message: &[u8]) -> Option<Result<ClientHello, NotHello>> {
    let mut reader = Reader(message);
    if reader.number(1)? != usize::from(CLIENT_HELLO) {
        return Some(Err(NotHello));
    }
    let body = reader.vector(3)?;
    Some(fields(body).ok_or(NotHello))
}

fn fields(mut body: Reader<'_>) -> Option<ClientHello> {
    body.take(2 + 32)?; // version, random
    body.vector(1)?; // session id
    body.vector(2)?; // cipher suites
    body.vector(1)?; // compression methods
    let mut hello = ClientHello::default();
    if body.0.is_empty() {
        return Some(hello); // TLS 1.0 had no extensions
    }
    let mut extensions = body.vector(2)?;
    while !extensions.0.is_empty() {
        let kind = extensions.number(2)?;
        let data = extensions.vector(2)?;
        match u16::try_from(kind).ok()? {
            EXT_SERVER_NAME => hello.server_name = server_name(data),
            EXT_ALPN => hello.alpn = alpn(data)?,
            _ => {}
        }
    }
    Some(hello)
}

fn server_name(mut data: Reader<'_>) -> Option<String> {
    let mut list = data.vector(2)?;
    let host_name = list.number(1)? == 0;
    let name = std::str::from_utf8(list.vector(2)?.0).ok()?;
    let plain = |c: u8| c.is_ascii_alphanumeric() || b"-._".contains(&c);
    (host_name && !name.is_empty() && name.bytes().all(plain)).then(|| name.to_ascii_lowercase())
}

fn alpn(mut data: Reader<'_>) -> Option<Vec<Vec<u8>>> {
    let mut list = data.vector(2)?;
    let mut names = Vec::new();
    while !list.0.is_empty() && names.len() < MAX_ALPN {
        names.push(list.vector(1)?.0.to_vec());
    }
    Some(names)
}

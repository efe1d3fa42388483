//! Endpoints and clients that say exactly what a test tells them to, byte by byte.

use std::{io, net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

/// No step of a test waits longer than this.
const STEP: Duration = Duration::from_secs(20);

/// An endpoint: `script` plays each connection, told how many came before it.
///
/// # Panics
/// When there is no port.
pub async fn serve<F, Fut>(script: F) -> SocketAddr
where
    F: Fn(TcpStream, usize) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    tokio::spawn(async move {
        for nth in 0.. {
            let Ok((stream, _)) = listener.accept().await else {
                return;
            };
            let _later = stream.set_nodelay(true);
            tokio::spawn(script(stream, nth));
        }
    });
    address
}

/// An address where nobody listens, as long as the value lives.
///
/// # Panics
/// When there is no port.
#[must_use]
pub fn nobody() -> (SocketAddr, socket2::Socket) {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None);
    let socket = socket.expect("a socket");
    let any = SocketAddr::from(([127, 0, 0, 1], 0));
    socket.bind(&any.into()).expect("a port");
    let address = socket.local_addr().expect("an address");
    (address.as_socket().expect("an address"), socket)
}

/// Writes all of it; a peer that is gone is for the test to notice by what it reads.
pub async fn write(stream: &mut TcpStream, bytes: &[u8]) {
    let _gone = timeout(STEP, stream.write_all(bytes)).await;
}

/// Reads a message head, up to and with its empty line.
///
/// # Panics
/// When the peer ends before, or says nothing.
pub async fn read_head<R: AsyncRead + Unpin>(stream: &mut R) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let byte = timeout(STEP, stream.read_u8()).await;
        let byte = byte.unwrap_or_else(|_| panic!("no whole head: {}", head.escape_ascii()));
        head.push(byte.unwrap_or_else(|e| panic!("{e} after {:?}", head.escape_ascii())));
    }
    String::from_utf8_lossy(&head).into_owned()
}

/// Reads a message head, or `None` when the peer ends instead.
pub async fn try_read_head<R: AsyncRead + Unpin>(stream: &mut R) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(STEP, stream.read_u8()).await.ok()?.ok()?);
    }
    Some(String::from_utf8_lossy(&head).into_owned())
}

/// Reads exactly `n` bytes.
///
/// # Panics
/// When there are fewer.
pub async fn read_exact<R: AsyncRead + Unpin>(stream: &mut R, n: usize) -> Vec<u8> {
    let mut bytes = vec![0; n];
    let read = timeout(STEP, stream.read_exact(&mut bytes)).await;
    read.expect("in time").expect("all of it");
    bytes
}

/// Reads to the end of the stream: what came, and how it ended.
///
/// # Panics
/// When it does not end.
pub async fn read_to_end<R: AsyncRead + Unpin>(stream: &mut R) -> (Vec<u8>, io::Result<()>) {
    let mut bytes = Vec::new();
    let read = timeout(STEP, stream.read_to_end(&mut bytes)).await;
    let end = read.unwrap_or_else(|_| panic!("no end after {:?}", tail(&bytes)));
    (bytes, end.map(|_| ()))
}

/// Reads a response: its head, and as much body as its `content-length` says.
///
/// # Panics
/// When it is not whole.
pub async fn read_response<R: AsyncRead + Unpin>(stream: &mut R) -> (String, Vec<u8>) {
    let head = read_head(stream).await;
    let length = field(&head, "content-length").and_then(|n| n.parse().ok());
    let body = read_exact(stream, length.unwrap_or(0)).await;
    (head, body)
}

/// The value of a field of a head.
#[must_use]
pub fn field<'h>(head: &'h str, name: &str) -> Option<&'h str> {
    head.lines().find_map(|line| {
        let (key, value) = line.split_once(':')?;
        key.eq_ignore_ascii_case(name).then(|| value.trim())
    })
}

/// The status of a response head.
#[must_use]
pub fn status(head: &str) -> u16 {
    let code = head.split(' ').nth(1);
    code.and_then(|code| code.parse().ok()).unwrap_or(0)
}

/// Ends a connection by a reset.
pub fn reset(stream: TcpStream) {
    let _gone = stream.set_zero_linger();
    drop(stream);
}

fn tail(bytes: &[u8]) -> String {
    let from = bytes.len().saturating_sub(200);
    bytes
        .get(from..)
        .unwrap_or_default()
        .escape_ascii()
        .to_string()
}

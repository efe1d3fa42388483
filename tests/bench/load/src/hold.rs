//! Connections that are kept open and do nothing.

use std::{net::SocketAddr, time::Duration};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{Args, Result, client::dial};

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: server.bench\r\n\r\n";
/// Every answer is longer: it has a body of 1,024 bytes.
const ANSWER_BYTES: usize = 1024;

pub(crate) async fn run(args: &Args) -> Result<()> {
    let to: SocketAddr = args.text("to")?.parse()?;
    let seconds = args.number("seconds")?.unwrap_or(60.0);
    let count = args.count("connections", 1000)?;
    let mut held = Vec::with_capacity(count);
    for n in 0..count {
        let mut stream = dial(to).await?;
        if !args.has("silent") {
            stream.write_all(REQUEST).await?;
            let (mut buffer, mut got) = ([0; 4096], 0);
            while got < ANSWER_BYTES {
                match stream.read(&mut buffer).await? {
                    0 => return Err(format!("connection {n} was closed").into()),
                    more => got += more,
                }
            }
        }
        held.push(stream);
    }
    println!("held");
    tokio::time::sleep(Duration::from_secs_f64(seconds)).await;
    // One that was closed meanwhile was not held.
    for (n, stream) in held.iter().enumerate() {
        match stream.try_read(&mut [0; 1]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            other => return Err(format!("connection {n}: {other:?}").into()),
        }
    }
    Ok(())
}

//! A client for these examples: each request has a connection of its own.

use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

pub(crate) type Fallible<T> = Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Sends a request such as `GET /reports`, and prints the status. Returns an error if the status is not
/// `expected`.
pub(crate) async fn ask(
    server: SocketAddr,
    line: &str,
    headers: &[(&str, &str)],
    expected: u16,
) -> Fallible<()> {
    let mut request = format!("{line} HTTP/1.1\r\nhost: {server}\r\nconnection: close\r\n");
    for (name, value) in headers {
        request += &format!("{name}: {value}\r\n");
    }
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all((request + "\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let status: u16 = answer.split(' ').nth(1).ok_or("no status")?.parse()?;
    let names: Vec<_> = headers.iter().map(|(name, _)| *name).collect();
    println!("{line} with {names:?}: {status}");
    match status == expected {
        true => Ok(()),
        false => Err(format!("{status} where {expected} was expected: {answer}").into()),
    }
}

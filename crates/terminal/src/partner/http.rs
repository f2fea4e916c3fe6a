//! The little of HTTP/1.1 that talking with a server on this machine or a trusted network needs: one request on
//! one connection, the answer read as it comes, given up at once when the user wants that.
//!
//! There is no TLS: whoever needs it puts a proxy or a tunnel in between.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

/// How often a silent connection looks whether the user gave up.
const TICK: Duration = Duration::from_millis(100);
const CONNECT: Duration = Duration::from_secs(10);
/// Longest head of an answer.
const MAX_HEAD: usize = 64 << 10;

/// A server's address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// Host and port, as in the URL.
    authority: String,
    host: String,
    port: u16,
    /// The path before that of an API, without a slash at its end.
    base: String,
}

impl Address {
    /// The address in a URL such as `http://127.0.0.1:8080`.
    pub fn parse(url: &str) -> anyhow::Result<Self> {
        let Some(rest) = url.strip_prefix("http://") else {
            bail!(
                "{url:?} must begin with http://\nhint: there is no TLS here; use a tunnel or a local proxy"
            );
        };
        let (authority, base) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let unsound = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '@' | '?' | '#');
        if authority.is_empty() || rest.contains(unsound) {
            bail!("{url:?} is not a URL like http://127.0.0.1:8080");
        }
        // The brackets of an IPv6 address may hold colons.
        let colon = authority.rfind(':').filter(|&at| !authority[at..].contains(']'));
        let (host, port) = match colon {
            Some(at) => {
                let port =
                    authority[at + 1..].parse().with_context(|| format!("the port in {url:?}"))?;
                (&authority[..at], port)
            }
            None => (authority, 80),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        Ok(Self { authority: authority.to_owned(), host, port, base })
    }
}

/// An answer whose body is still coming.
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The body: reading it gives what comes, and [`ErrorKind::Interrupted`] never.
    pub body: Body,
}

/// Sends a request and reads the head of the answer.
pub fn send(
    address: &Address,
    method: &str,
    path: &str,
    key: Option<&str>,
    json: Option<&str>,
    cancel: &Arc<AtomicBool>,
) -> anyhow::Result<Response> {
    let server = format!("the server at http://{}", address.authority);
    let mut stream = connect(address, &server, cancel)?;
    stream.set_read_timeout(Some(TICK))?;
    stream.set_nodelay(true)?;
    let mut head = format!(
        "{method} {}{path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nAccept: application/json, text/event-stream\r\n",
        address.base, address.authority,
    );
    if let Some(key) = key {
        if key.contains(char::is_control) {
            bail!("the key has control characters");
        }
        head += &format!("Authorization: Bearer {key}\r\n");
    }
    let json = json.unwrap_or_default();
    if !json.is_empty() {
        head += "Content-Type: application/json\r\n";
    }
    head += &format!("Content-Length: {}\r\n\r\n", json.len());
    stream
        .write_all(&[head.as_bytes(), json.as_bytes()].concat())
        .with_context(|| format!("asking {server}"))?;
    let mut wire = Wire { stream, buf: Vec::new(), cancel: Arc::clone(cancel) };
    let (status, framing) =
        read_head(&mut wire).with_context(|| format!("the answer of {server}"))?;
    Ok(Response { status, body: Body { wire, framing } })
}

/// A connection to the first of the server's addresses that takes one: a name often has one of IPv6 where only
/// the one of IPv4 is listened on.
fn connect(address: &Address, server: &str, cancel: &AtomicBool) -> anyhow::Result<TcpStream> {
    let sockets = (address.host.as_str(), address.port)
        .to_socket_addrs()
        .with_context(|| format!("finding {server}"))?;
    let mut trouble = None;
    for socket in sockets {
        if cancel.load(Ordering::Relaxed) {
            bail!(GivenUp);
        }
        match TcpStream::connect_timeout(&socket, CONNECT) {
            Ok(stream) => return Ok(stream),
            Err(error) => trouble = Some(error),
        }
    }
    let error = trouble.map_or_else(|| anyhow!("its name has no address"), Into::into);
    Err(error.context(format!(
        "connecting to {server}\nhint: is it running? flash-moe serve starts one"
    )))
}

fn read_head(wire: &mut Wire) -> anyhow::Result<(u16, Framing)> {
    let mut head = String::new();
    loop {
        let line = wire.line(MAX_HEAD)?;
        if line.is_empty() {
            // Answers like "100 Continue" come before the one that is meant.
            if status_of(&head)? >= 200 {
                break;
            }
            head.clear();
            continue;
        }
        head += &line;
        head.push('\n');
        if head.len() > MAX_HEAD {
            bail!("its head is longer than {MAX_HEAD} bytes");
        }
    }
    let mut framing = Framing::UntilClose;
    for line in head.lines().skip(1) {
        let Some((name, value)) = line.split_once(':') else {
            bail!("a line of its head is unsound")
        };
        let value = value.trim();
        if name.eq_ignore_ascii_case("transfer-encoding") {
            if !value.eq_ignore_ascii_case("chunked") {
                bail!("it is encoded as {value:?}");
            }
            framing = Framing::Chunk { left: 0, begun: false };
        } else if name.eq_ignore_ascii_case("content-length") && framing == Framing::UntilClose {
            framing = Framing::Length(value.parse().context("its length")?);
        }
    }
    Ok((status_of(&head)?, framing))
}

fn status_of(head: &str) -> anyhow::Result<u16> {
    let line = head.lines().next().unwrap_or_default();
    let status = line.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1));
    status.and_then(|status| status.parse().ok()).context("it is not HTTP")
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    UntilClose,
    Length(u64),
    Chunk { left: u64, begun: bool },
    Ended,
}

/// A body that is read as it comes.
pub struct Body {
    wire: Wire,
    framing: Framing,
}

impl Read for Body {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let unsound = || io::Error::new(ErrorKind::InvalidData, "the answer's chunks are unsound");
        if let Framing::Chunk { left: 0, begun } = self.framing {
            if begun && !self.wire.line(2)?.is_empty() {
                return Err(unsound());
            }
            let line = self.wire.line(1024)?;
            let size = line.split(';').next().unwrap_or_default().trim();
            let left = u64::from_str_radix(size, 16).map_err(|_| unsound())?;
            self.framing =
                if left == 0 { Framing::Ended } else { Framing::Chunk { left, begun: true } };
        }
        let left = match self.framing {
            Framing::Ended | Framing::Length(0) => return Ok(0),
            Framing::UntilClose => u64::MAX,
            Framing::Length(left) | Framing::Chunk { left, .. } => left,
        };
        let limit = usize::try_from(left).unwrap_or(usize::MAX).min(buf.len());
        let n = self.wire.read(&mut buf[..limit])?;
        if n == 0 && limit > 0 && self.framing != Framing::UntilClose {
            return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server broke off"));
        }
        match &mut self.framing {
            Framing::Length(left) | Framing::Chunk { left, .. } => *left -= n as u64,
            Framing::UntilClose | Framing::Ended => {}
        }
        Ok(n)
    }
}

/// A connection with what was read too much.
struct Wire {
    stream: TcpStream,
    buf: Vec<u8>,
    cancel: Arc<AtomicBool>,
}

impl Wire {
    /// What comes next; waits until something does or the user gives up.
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if !self.buf.is_empty() {
            let n = buf.len().min(self.buf.len());
            buf[..n].copy_from_slice(&self.buf[..n]);
            self.buf.drain(..n);
            return Ok(n);
        }
        loop {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(io::Error::other(GivenUp));
            }
            match self.stream.read(buf) {
                Err(error) if is_pause(&error) => {}
                result => return result,
            }
        }
    }

    /// A line without its end.
    fn line(&mut self, limit: usize) -> io::Result<String> {
        let mut line = Vec::new();
        loop {
            if let Some(at) = self.buf.iter().position(|&byte| byte == b'\n') {
                line.extend(self.buf.drain(..=at));
                let text = String::from_utf8_lossy(&line);
                return Ok(text.trim_end_matches(['\r', '\n']).to_owned());
            }
            line.append(&mut self.buf);
            if line.len() > limit {
                return Err(io::Error::new(
                    ErrorKind::InvalidData,
                    "a line of the answer is too long",
                ));
            }
            let mut more = [0; 4096];
            let n = self.read(&mut more)?;
            if n == 0 {
                return Err(io::Error::new(ErrorKind::UnexpectedEof, "the server broke off"));
            }
            self.buf.extend_from_slice(&more[..n]);
        }
    }
}

fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

/// The user does not want the answer any more.
#[derive(Debug, thiserror::Error)]
#[error("stopped by the user")]
pub struct GivenUp;

/// Whether an error only says that the user gave up.
pub fn is_given_up(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|inner| inner.is::<GivenUp>())
}

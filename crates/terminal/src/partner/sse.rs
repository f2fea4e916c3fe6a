//! Server-sent events: the data of each, as it comes.

use std::io::{self, ErrorKind, Read};

/// A longer event than any server sends.
const MAX_EVENT: usize = 64 << 20;

/// Reads events from a body.
pub struct Events<R> {
    body: R,
    buf: Vec<u8>,
}

impl<R: Read> Events<R> {
    /// Events of a body.
    pub fn new(body: R) -> Self {
        Self { body, buf: Vec::new() }
    }

    /// The data of the next event; `None` at the end.
    pub fn next(&mut self) -> io::Result<Option<String>> {
        let mut data: Option<String> = None;
        loop {
            let Some(line) = self.line()? else { return Ok(data) };
            if line.is_empty() {
                if data.is_some() {
                    return Ok(data);
                }
            } else if let Some(value) = line.strip_prefix("data:") {
                let value = value.strip_prefix(' ').unwrap_or(value);
                match &mut data {
                    Some(data) if data.len() + value.len() > MAX_EVENT => {
                        return Err(io::Error::new(ErrorKind::InvalidData, "an event is too long"));
                    }
                    Some(data) => {
                        data.push('\n');
                        data.push_str(value);
                    }
                    None => data = Some(value.to_owned()),
                }
            }
        }
    }

    fn line(&mut self) -> io::Result<Option<String>> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buf[searched..].iter().position(|&byte| byte == b'\n') {
                let line: Vec<u8> = self.buf.drain(..=searched + at).collect();
                let line = String::from_utf8_lossy(&line);
                return Ok(Some(line.trim_end_matches(['\r', '\n']).to_owned()));
            }
            searched = self.buf.len();
            if searched > MAX_EVENT {
                return Err(io::Error::new(ErrorKind::InvalidData, "an event is too long"));
            }
            let mut more = [0; 4096];
            match self.body.read(&mut more)? {
                0 => return Ok(None),
                n => self.buf.extend_from_slice(&more[..n]),
            }
        }
    }
}

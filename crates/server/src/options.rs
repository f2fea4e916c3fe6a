//! What whoever starts a server decides.

use std::net::SocketAddr;
use std::time::Duration;

/// Later times need not have a place on the system's clock.
const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// How a server works.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Where to listen.
    pub address: SocketAddr,
    /// Names by which clients may ask for the model; the first is the one that is told.
    pub model_names: Vec<String>,
    /// Keys of which a client needs one; empty asks for none.
    pub api_keys: Vec<String>,
    /// Listen on an address that others reach without asking for a key.
    pub insecure: bool,
    /// Names of this machine that requests may be addressed to, beside `localhost` and addresses.
    pub hosts: Vec<String>,
    /// Origins of web pages that may use the server, such as `https://example.org`.
    pub cors_origins: Vec<String>,
    /// Requests that may wait for their turn.
    pub queue: usize,
    /// Longest body of a request.
    pub body_bytes: usize,
    /// Longest time in which the head of a request has to arrive, from the connection's beginning or the end of the
    /// answer before it.
    pub head_time: Duration,
    /// Longest time from a request to the end of its answer.
    pub deadline: Duration,
    /// How long a shutdown waits for answers under way.
    pub grace: Duration,
    /// What the log says goes to standard error, a line a request.
    pub log: bool,
}

impl Default for ServerOptions {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8080)),
            model_names: vec!["flash-moe".to_owned()],
            api_keys: Vec::new(),
            insecure: false,
            hosts: Vec::new(),
            cors_origins: Vec::new(),
            queue: 128,
            body_bytes: 16 << 20,
            head_time: Duration::from_secs(30),
            deadline: Duration::from_secs(3600),
            grace: Duration::from_secs(10),
            log: true,
        }
    }
}

/// Why a server does not start, or ends.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An address that others reach, without a key.
    #[error(
        "{0} can be reached by other machines, and no key is asked for\n\
         hint: give --api-key, or --insecure if everybody may use this server"
    )]
    Open(SocketAddr),
    /// No name for the model, or an empty key.
    #[error("{0}")]
    Options(&'static str),
    /// The model cannot be served.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The address cannot be had.
    #[error("listening on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// The server's threads cannot be had, or its socket fails.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The thread that computes has ended.
    #[error("the engine's thread has ended by itself; its last words are above")]
    EngineGone,
}

impl ServerOptions {
    /// Refuses what is unsafe or has no meaning.
    pub(crate) fn check(&self) -> Result<(), Error> {
        if self.model_names.is_empty() {
            return Err(Error::Options("the model has no name to be asked for by"));
        }
        if self.queue == 0 {
            return Err(Error::Options("a queue for nobody lets nobody in"));
        }
        if self.deadline > YEAR {
            return Err(Error::Options("a deadline is at most a year"));
        }
        if self.api_keys.iter().any(String::is_empty) {
            return Err(Error::Options("an empty key keeps nobody out"));
        }
        let is_open = !self.address.ip().is_loopback() && self.api_keys.is_empty();
        if is_open && !self.insecure { Err(Error::Open(self.address)) } else { Ok(()) }
    }
}

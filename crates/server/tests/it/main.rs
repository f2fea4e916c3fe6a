//! The server through its front door: real requests over sockets, answered by the demo model.

mod cancellation;
mod errors;
mod lossy;
mod page;
mod queue;
mod security;
mod streams;
mod support;
mod tools;

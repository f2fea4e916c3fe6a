//! Integration tests of the backends: every operation of the CPU backend, for all instructions that
//! this machine has and several numbers of threads, against the reference; and bit for bit against
//! itself when work is cut differently.

mod codes;
mod layers;
mod products;
mod support;

//! The blocks that architectures are made of. Each lives once and is shared by all of them.

mod attention;
mod delta_net;
mod moe;

pub(crate) use attention::{Attention, AttentionScratch};
pub(crate) use delta_net::{DeltaNet, DeltaNetScratch};
pub(crate) use moe::{MOST_ROWS_AHEAD, Moe, MoeScratch, load_swiglu};

//! Text for a terminal: what may be printed, how it looks, and where it breaks.

mod clean;
mod line;
mod wrap;

pub use clean::{clean, one_line};
pub use line::{Colour, Line, Span, Style};
pub use wrap::{wrap, wrap_hard};

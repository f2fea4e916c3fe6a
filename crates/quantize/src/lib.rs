//! From any readable checkpoint to MLX affine codes, expert by expert, with a known loss.
//!
//! [`quantize`] streams a checkpoint tensor by tensor into a new one: safetensors as MLX names and stores
//! them, in which every routed expert is one aligned range, and so one read. [`pack`] does the layout alone and
//! changes no bit of a weight. Both can be killed at any moment and go on where they were; the result has
//! its name only when it is complete and was read back.
//!
//! Codes are found by plain rounding, or by choices that minimise the error of what experts put out on
//! inputs recorded while the model reads some text ([`Method`], [`CalibrationText`]); under a budget of bytes each
//! expert gets the width at which the model loses least ([`Budget`]). `docs/quantize.md` is the reference.
//!
//! ```no_run
//! use quantize::{Options, Recipe};
//!
//! # fn main() -> Result<(), quantize::Error> {
//! let options = Options::new(Recipe::named("experts-4bit")?);
//! let (model, out) = ("models/bf16".as_ref(), "models/4bit".as_ref());
//! let report = quantize::quantize(model, out, &options, &mut |_| {})?;
//! println!("{} bytes", report.bytes);
//! # Ok(())
//! # }
//! ```

#![forbid(unsafe_code)]

mod affine;
mod allocate;
mod arrange;
mod calibrate;
mod check;
mod config;
mod error;
mod expert;
mod feedback;
mod identity;
mod layout;
mod loader;
mod lock;
mod moments;
mod options;
mod output;
mod plan;
mod recipe;
mod rows;
mod run;
mod sample;
mod source;
mod text;
mod walk;
mod write;

pub use affine::Codes;
pub use allocate::Budget;
pub use error::Error;
pub use expert::{Expert, Inputs, Method};
pub use options::{Options, Progress, Report, Stage};
pub use plan::Placement;
pub use recipe::{Changes, Recipe, WIDTHS, Width};
pub use run::{pack, quantize};
pub use text::CalibrationText;

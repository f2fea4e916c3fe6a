//! The built-in demo model, so that the first command needs no download.
//!
//! Its files are part of the program. Experts stream from files, so they are written once to the
//! user's cache directory and used from there.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::cache;

/// The name by which commands know the demo model.
pub const NAME: &str = "demo";
/// Default memory for its routed experts: less than the 14 MB that they take, so that they stream.
pub const EXPERT_CACHE_BYTES: u64 = 6 << 20;

/// Every file with its contents.
const FILES: [(&str, &[u8]); 7] = [
    ("config.json", include_bytes!("../../../models/demo/config.json")),
    ("generation_config.json", include_bytes!("../../../models/demo/generation_config.json")),
    ("tokenizer.json", include_bytes!("../../../models/demo/tokenizer.json")),
    ("tokenizer_config.json", include_bytes!("../../../models/demo/tokenizer_config.json")),
    ("chat_template.jinja", include_bytes!("../../../models/demo/chat_template.jinja")),
    (
        "model.safetensors.index.json",
        include_bytes!("../../../models/demo/model.safetensors.index.json"),
    ),
    ("model.safetensors", include_bytes!("../../../models/demo/model.safetensors")),
];

/// The directory of a model that was named on the command line.
pub fn resolve(model: &str) -> anyhow::Result<PathBuf> {
    if model == NAME { directory() } else { Ok(PathBuf::from(model)) }
}

/// The directory of the demo model, written first if need be.
pub fn directory() -> anyhow::Result<PathBuf> {
    let name = format!("demo-{:016x}", fingerprint());
    let mut problems = String::new();
    for base in candidates() {
        let directory = base.join(&name);
        match write_once(&directory) {
            Ok(()) => return Ok(directory),
            Err(error) => problems += &format!("\n  {}: {error:#}", directory.display()),
        }
    }
    bail!(
        "the demo model could not be written anywhere:{problems}\n\
         hint: set FLASH_MOE_CACHE to a directory with 20 MB of space"
    );
}

/// Directories to keep it in, best first.
fn candidates() -> Vec<PathBuf> {
    // Who has said where it is to be does not want it elsewhere.
    let elsewhere = (!cache::is_chosen()).then(|| std::env::temp_dir().join("flash-moe"));
    cache::directory().into_iter().chain(elsewhere).collect()
}

/// Writes files that are missing or have another length: each under another name first, so that a
/// reader never sees half a file. The contents are named in the directory's own name.
fn write_once(directory: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory)?;
    for (name, contents) in FILES {
        let path = directory.join(name);
        if fs::metadata(&path).is_ok_and(|meta| meta.len() == contents.len() as u64) {
            continue;
        }
        let partial = directory.join(format!("{name}.{}.tmp", std::process::id()));
        fs::write(&partial, contents).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, &path).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

/// FNV-1a over names, lengths and the small files: tells versions of the demo model apart without
/// touching the pages of its weights.
fn fingerprint() -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut add = |bytes: &[u8]| {
        for &byte in bytes {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    };
    for (name, contents) in FILES {
        add(name.as_bytes());
        add(&(contents.len() as u64).to_le_bytes());
        add(&contents[..contents.len().min(1 << 16)]);
    }
    hash
}

//! What entries are found by: a hash of everything that their bytes depend on.

use std::fs::{self, File};
use std::io;
use std::sync::OnceLock;
use std::time::SystemTime;

use compute::STATE_BLOCK;

use crate::inventory::Inventory;

/// The version of the files' layout and of what the bytes in them mean.
pub(crate) const VERSION: u32 = 1;

/// A hash: of a model and build, or of a prefix of tokens under them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Key(pub(crate) [u8; 32]);

impl Key {
    /// The key of a prefix that a further block of tokens makes out of this one.
    fn after(&self, block: &[u32]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.0);
        for token in block {
            hasher.update(&token.to_le_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Appends the keys of the whole blocks of `tokens` that are not among `keys` yet.
    pub(crate) fn extend_chain(&self, tokens: &[u32], keys: &mut Vec<Self>) {
        let blocks = tokens.as_chunks::<STATE_BLOCK>().0;
        for block in blocks.iter().skip(keys.len()) {
            keys.push(keys.last().unwrap_or(self).after(block));
        }
    }

    /// 64 hexadecimal digits.
    pub(crate) fn to_hex(self) -> String {
        blake3::Hash::from_bytes(self.0).to_hex().to_string()
    }
}

/// What decides the bytes of every state beside the tokens: the checkpoint's files with their lengths,
/// times of change and tensors, hashes of samples of its weights, its configuration, how the device computes, and
/// if the cache `is_shared` with other processes, the program. One that cannot read itself agrees with
/// no other.
pub(crate) fn identity(
    inventory: &Inventory,
    weights: &[blake3::Hash],
    numerics: &str,
    is_shared: bool,
) -> Key {
    let mut hasher = blake3::Hasher::new();
    let mut add = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    add(&VERSION.to_le_bytes());
    add(env!("CARGO_PKG_VERSION").as_bytes());
    if is_shared {
        add(program());
    }
    add(numerics.as_bytes());
    let checkpoint = &inventory.checkpoint;
    for file in checkpoint.files() {
        let changed = fs::metadata(&file.path).and_then(|it| it.modified()).ok();
        let changed = changed.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        add(&file.len.to_le_bytes());
        add(&changed.map_or(0, |time| time.as_nanos()).to_le_bytes());
    }
    add(format!("{:?}", checkpoint.config()).as_bytes());
    for tensor in checkpoint.tensors() {
        add(format!("{tensor:?}").as_bytes());
    }
    for tensor in &inventory.trunk {
        add(format!("{tensor:?}").as_bytes());
    }
    for table in &inventory.experts {
        // The extents of all of them are among the tensors.
        let first = (!table.is_empty()).then(|| table.get(0));
        add(format!("{first:?}").as_bytes());
    }
    weights.iter().for_each(|hash| add(hash.as_bytes()));
    Key(*hasher.finalize().as_bytes())
}

/// A hash of the running program, or something that no other process has.
fn program() -> &'static [u8] {
    static PROGRAM: OnceLock<Vec<u8>> = OnceLock::new();
    let hash = || -> io::Result<Vec<u8>> {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(std::env::current_exe()?)?)?;
        Ok(hasher.finalize().as_bytes().to_vec())
    };
    let unique = |_| format!("{} {:?}", std::process::id(), SystemTime::now()).into_bytes();
    PROGRAM.get_or_init(|| hash().unwrap_or_else(unique))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_of_the_whole_prefix_and_of_whole_blocks() {
        let root = Key([7; 32]);
        let tokens: Vec<u32> = (0..200).collect();
        let chain = |root: &Key, tokens: &[u32]| {
            let mut keys = Vec::new();
            root.extend_chain(tokens, &mut keys);
            keys
        };
        let keys = chain(&root, &tokens);
        assert_eq!(keys.len(), 3, "200 tokens are three blocks and some");
        assert_eq!(chain(&root, &tokens[..191]), keys[..2]);
        let mut grown = chain(&root, &tokens[..100]);
        root.extend_chain(&tokens, &mut grown);
        assert_eq!(grown, keys, "the chain does not depend on how it grew");

        let mut other = tokens.clone();
        other[0] += 1;
        let others = chain(&root, &other);
        assert!(keys.iter().all(|key| !others.contains(key)), "the first token is in every key");
        let others = chain(&Key([8; 32]), &tokens);
        assert!(keys.iter().all(|key| !others.contains(key)), "the model is in every key");
    }
}

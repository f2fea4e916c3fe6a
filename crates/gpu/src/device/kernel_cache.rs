//! Compiled kernels that are kept on disk for the next start.
//!
//! What a driver compiled is its own affair: it is read only by the same driver for the same adapter, and the
//! driver checks its header. A file that is not as it was written is left unread, and made anew.

#![expect(unsafe_code, reason = "what is below wgpu leaves it to the caller to use it rightly")]

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::{fs, io, process};

use wgpu::hal;

use crate::device::{Device, Shared, lock};

/// What a file begins with; then the BLAKE3 hash of the key, the hash of the contents, the contents.
const MAGIC: &[u8; 8] = b"FMKERN1\n";
/// Bytes before the contents.
const HEADER_BYTES: usize = MAGIC.len() + 32 + 32;
/// Most bytes that are read or written.
const MOST_BYTES: u64 = 64 << 20;

/// Compiled kernels of a device.
pub(super) struct KernelCache {
    raw: Box<dyn hal::DynPipelineCache>,
    path: PathBuf,
    key: blake3::Hash,
    /// The hash of what is in the file.
    stored: Mutex<Option<blake3::Hash>>,
}

/// The contents of a file, if they are those that were written for this key.
fn contents(file: &[u8], key: blake3::Hash) -> Option<&[u8]> {
    let (header, contents) = file.split_at_checked(HEADER_BYTES)?;
    let mut expected = Vec::from(MAGIC);
    expected.extend(key.as_bytes());
    expected.extend(blake3::hash(contents).as_bytes());
    (header == expected).then_some(contents)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    use io::Read;
    let mut file = Vec::new();
    fs::File::open(path)?.take(MOST_BYTES + 1).read_to_end(&mut file)?;
    Ok(file)
}

fn write(path: &Path, key: blake3::Hash, contents: &[u8]) -> io::Result<()> {
    let mut file = Vec::from(MAGIC);
    file.extend(key.as_bytes());
    file.extend(blake3::hash(contents).as_bytes());
    file.extend(contents);
    replace_file(path, &file)
}

/// Writes a file that is there as a whole or as it was before; its directory is made.
pub(crate) fn replace_file(path: &Path, file: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let partial = path.with_extension(format!("{}.tmp", process::id()));
    let result = fs::write(&partial, file).and_then(|()| fs::rename(&partial, path));
    if result.is_err() {
        drop(fs::remove_file(&partial));
    }
    result
}

impl Device {
    /// Keeps compiled kernels in a directory for the next start, and takes those of the last. To be called
    /// before kernels are compiled; where the interface has no such thing, nothing happens.
    pub fn keep_kernels(&self, directory: &Path) {
        let shared = &*self.shared;
        let Some(driver_key) = shared.device.pipeline_cache_validation_key() else { return };
        if shared.kernel_cache.get().is_some() {
            return;
        }
        let mut hasher = blake3::Hasher::new();
        let key = hasher.update(self.identity().as_bytes()).update(&driver_key).finalize();
        let path = directory.join(format!("gpu-{}.kernels", &key.to_hex()[..16]));
        let file = read(&path).unwrap_or_default();
        let known = contents(&file, key);
        let stored = Mutex::new(known.map(blake3::hash));
        let create = |data| {
            let descriptor = hal::PipelineCacheDescriptor { label: None, data };
            // SAFETY: the data is what the same driver gave for the same adapter, and unchanged.
            unsafe { shared.device.create_pipeline_cache(&descriptor) }.ok()
        };
        let Some(raw) = create(known).or_else(|| create(None)) else { return };
        let cache = KernelCache { raw, path, key, stored };
        if let Err(KernelCache { raw, .. }) = shared.kernel_cache.set(cache) {
            // SAFETY: nothing uses it.
            unsafe { shared.device.destroy_pipeline_cache(raw) };
        }
    }

    /// Writes compiled kernels to where they are kept, if there are new ones.
    pub fn save_kernels(&self) -> io::Result<()> {
        self.shared.save_kernels()
    }
}

impl Shared {
    /// What new kernels are looked up in and added to.
    pub(super) fn known_kernels(&self) -> Option<&dyn hal::DynPipelineCache> {
        self.kernel_cache.get().map(|cache| &*cache.raw)
    }

    pub(super) fn save_kernels(&self) -> io::Result<()> {
        let Some(cache) = self.kernel_cache.get() else { return Ok(()) };
        // SAFETY: the cache is this device's.
        let contents = unsafe { self.device.pipeline_cache_get_data(&*cache.raw) };
        let mut stored = lock(&cache.stored);
        let Some(contents) = contents.filter(|contents| contents.len() as u64 <= MOST_BYTES / 2)
        else {
            return Ok(());
        };
        let hash = blake3::hash(&contents);
        if *stored != Some(hash) {
            write(&cache.path, cache.key, &contents)?;
            *stored = Some(hash);
        }
        Ok(())
    }

    /// Writes what is new, and lets go of it.
    pub(super) fn end_kernel_cache(&mut self) {
        // Kernels can be compiled again: a full drive is no reason to fail.
        drop(self.save_kernels());
        if let Some(KernelCache { raw, .. }) = self.kernel_cache.take() {
            // SAFETY: no kernel is compiled any more.
            unsafe { self.device.destroy_pipeline_cache(raw) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::KernelSource;
    use crate::testing::devices;

    fn compile(device: &Device) {
        device.kernel(&KernelSource {
            name: "gated",
            parts: &[include_str!("../kernels/gated.wgsl")],
            constants: &[],
            flags: &[],
            writes: &[false, true],
            teams: None,
        });
    }

    #[test]
    fn files_that_changed_are_left_unread() {
        let key = blake3::hash(b"this driver");
        let directory = std::env::temp_dir().join(format!("flash-moe-kernels-{}", process::id()));
        let path = directory.join("a.kernels");
        write(&path, key, b"compiled").expect("the directory can be made");
        let file = read(&path).expect("it was written");
        assert_eq!(contents(&file, key), Some(&b"compiled"[..]));
        assert_eq!(contents(&file, blake3::hash(b"another")), None, "another driver's");
        for len in 0..file.len() {
            assert_eq!(contents(&file[..len], key), None, "{len} bytes of it");
        }
        for at in 0..file.len() {
            let mut changed = file.clone();
            changed[at] ^= 4;
            assert_eq!(contents(&changed, key), None, "a bit of byte {at}");
        }
        fs::remove_dir_all(directory).expect("it is there");
    }

    #[test]
    fn kernels_are_kept_and_broken_files_replaced() {
        let name = format!("flash-moe-kept-{}", process::id());
        let directory = std::env::temp_dir().join(name);
        let files = || {
            let files = fs::read_dir(&directory).into_iter().flatten();
            let paths = files.map(|file| file.expect("it can be listed").path());
            paths.collect::<Vec<_>>()
        };
        // Written when the device goes; left alone by one that adds nothing; replaced when it is broken.
        let mut written = None;
        for round in 0..3 {
            let device = devices().into_iter().next();
            let Some(device) = device else { return };
            device.keep_kernels(&directory);
            compile(&device);
            device.check().expect("it compiles");
            if round == 2 {
                device.save_kernels().expect("the directory can be written to");
            }
            drop(device);
            let [path] = &files()[..] else {
                // A driver that keeps nothing leaves nothing.
                return;
            };
            let file = fs::read(path).expect("it is there");
            if let Some(written) = &written {
                assert_eq!(file.len(), Vec::len(written), "round {round}");
            }
            written = Some(file.clone());
            if round == 1 {
                fs::write(path, &file[..file.len() / 2]).expect("it can be broken");
            }
        }
        fs::remove_dir_all(directory).expect("it is there");
    }
}

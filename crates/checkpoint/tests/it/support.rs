//! Fixtures and temporary directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A fixture by its name.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A copy of a fixture's directory that is removed at the end of the test.
pub struct Copy(PathBuf);

impl Copy {
    pub fn of(fixture_name: &str) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name =
            format!("checkpoint-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let copy = Self(Path::new(env!("CARGO_TARGET_TMPDIR")).join(name));
        fs::create_dir_all(&copy.0).expect("a directory can be made");
        for entry in fs::read_dir(fixture(fixture_name)).expect("the fixture is there") {
            let entry = entry.expect("the fixture can be listed");
            fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("a file can be copied");
        }
        copy
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    pub fn edit(&self, file: &str, edit: impl FnOnce(String) -> String) {
        let path = self.0.join(file);
        let text = fs::read_to_string(&path).expect("the file is text");
        fs::write(&path, edit(text)).expect("the copy can be written");
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        // A directory that stays behind lies in the target directory and harms nobody.
        drop(fs::remove_dir_all(&self.0));
    }
}

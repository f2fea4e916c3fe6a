//! Running the program, fixtures, and temporary directories.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::Value;

/// The program, ready for arguments; its demo model goes to a directory of the test run.
pub fn flash_moe() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flash-moe"));
    command.env("FLASH_MOE_CACHE", concat!(env!("CARGO_TARGET_TMPDIR"), "/cache"));
    command.stdin(Stdio::null());
    command
}

/// Runs the program to its end.
pub fn output(args: &[&str]) -> Output {
    flash_moe().args(args).output().expect("the program starts")
}

/// Runs the program, which must succeed, and gives what it printed.
#[track_caller]
pub fn stdout(args: &[&str]) -> String {
    let output = output(args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{args:?} failed:\n{stderr}");
    String::from_utf8(output.stdout).expect("the output is UTF-8")
}

/// Runs the program with `--json`, which must succeed.
#[track_caller]
pub fn json(args: &[&str]) -> Value {
    let text = stdout(&[args, &["--json"]].concat());
    serde_json::from_str(&text).expect("the output is one JSON value")
}

/// Runs the program, which must refuse with an error and not a panic, and gives the message.
#[track_caller]
pub fn error(args: &[&str]) -> String {
    let output = output(args);
    let message = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{args:?} must fail with an error:\n{message}");
    assert!(message.contains("error: "), "{args:?} explains itself:\n{message}");
    assert!(!message.contains("panicked"), "{args:?} does not panic:\n{message}");
    message
}

/// A fixture by its name.
pub fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures").join(name)
}

/// A path as an argument.
pub fn text(path: &Path) -> &str {
    path.to_str().expect("test paths are UTF-8")
}

/// An empty directory that is removed at the end of the test.
pub struct TempDir(PathBuf);

impl TempDir {
    pub fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("it-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        fs::create_dir_all(&path).expect("a directory can be made");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A copy of a fixture's directory.
    pub fn copy_of(fixture_name: &str) -> Self {
        let copy = Self::new();
        for entry in fs::read_dir(fixture(fixture_name)).expect("the fixture is there") {
            let entry = entry.expect("the fixture can be listed");
            fs::copy(entry.path(), copy.0.join(entry.file_name())).expect("a file can be copied");
        }
        copy
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // A directory that stays behind lies in the target directory and harms nobody.
        drop(fs::remove_dir_all(&self.0));
    }
}

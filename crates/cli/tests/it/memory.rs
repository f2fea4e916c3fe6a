//! The memory budget, measured from outside by a cgroup.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{TempDir, flash_moe, stdout, text};

/// Little more than the model needs, so that every few tokens bring more experts than fit.
const BUDGET: u64 = 128 << 20;

/// A memory cgroup of version 1 or 2, removed at the end.
struct MemoryGroup {
    path: PathBuf,
    version_1: bool,
}

impl MemoryGroup {
    fn new(limit: u64) -> std::io::Result<Self> {
        let version_1 = Path::new("/sys/fs/cgroup/memory").is_dir();
        let base = if version_1 { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" };
        let path = Path::new(base).join(format!("flash-moe-test-{}", std::process::id()));
        fs::create_dir(&path)?;
        let group = Self { path, version_1 };
        let file = if version_1 { "memory.limit_in_bytes" } else { "memory.max" };
        fs::write(group.path.join(file), limit.to_string())?;
        Ok(group)
    }

    fn peak(&self) -> u64 {
        let file = if self.version_1 { "memory.max_usage_in_bytes" } else { "memory.peak" };
        let text = fs::read_to_string(self.path.join(file)).expect("the peak can be read");
        text.trim().parse().expect("the peak is a number")
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        drop(fs::remove_dir(&self.path));
    }
}

#[test]
fn a_model_four_times_the_budget_runs_inside_it() {
    let group = match MemoryGroup::new(BUDGET + BUDGET / 20) {
        Ok(group) => group,
        Err(error) => {
            println!("skipped: no memory cgroup can be made here: {error}");
            return;
        }
    };
    let parent = TempDir::new();
    let out = parent.path().join("model");
    let shape = ["--preset", "35b", "--layers", "4", "--experts", "128", "--bits", "2"];
    stdout(&[&["synth"], &shape[..], &[text(&out)]].concat());
    let bytes: u64 = fs::read_dir(&out)
        .expect("the model was written")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
        .sum();
    assert!(bytes > 4 * BUDGET, "the model has {bytes} bytes");

    // The shell moves itself into the group, and then becomes the program.
    let procs = group.path.join("cgroup.procs");
    let budget = BUDGET.to_string();
    let program = flash_moe();
    let output = Command::new("sh")
        .args(["-c", "echo $$ > \"$0\" && exec \"$@\"", text(&procs)])
        .arg(program.get_program())
        .envs(program.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .args(["run", text(&out), "hello there", "--tokens", "24", "--json"])
        // The files of a GPU's driver would be charged to the group.
        .args(["--device", "cpu", "--memory", &budget])
        .output()
        .expect("the shell starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the group killed or refused it: {message}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(24));
    let read: u64 = ["prompt", "decode"]
        .iter()
        .filter_map(|phase| answer["timing"][phase]["bytes_read"].as_u64())
        .sum();
    assert!(read > 2 * BUDGET, "{read} bytes of experts were read: {answer:#}");
    let peak = group.peak();
    println!("budget {BUDGET}, model {bytes}, peak of the group {peak}");
    // The limit of the group is a little higher, so that a small excess is a number and not a kill.
    assert!(peak <= BUDGET, "the peak is {peak}, the budget {BUDGET}");
}

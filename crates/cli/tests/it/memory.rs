//! The memory budget, measured from outside by a cgroup.

#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{TempDir, flash_moe, stdout, text};

const BUDGET: u64 = 384 << 20;

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
    stdout(&["synth", "--preset", "35b", "--layers", "4", "--experts", "224", text(&out)]);
    let bytes: u64 = fs::read_dir(&out)
        .expect("the model was written")
        .map(|entry| entry.and_then(|entry| entry.metadata()).expect("a file").len())
        .sum();
    assert!(bytes > 4 * BUDGET, "the model has {bytes} bytes");

    // The shell moves itself into the group, and then becomes the program.
    let procs = group.path.join("cgroup.procs");
    let budget = BUDGET.to_string();
    let output = Command::new("sh")
        .args(["-c", "echo $$ > \"$0\" && exec \"$@\"", text(&procs)])
        .arg(flash_moe().get_program())
        .args(["run", text(&out), "hello there", "--tokens", "24", "--json"])
        .args(["--memory", &budget])
        .output()
        .expect("the shell starts");
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the group killed or refused it: {message}");
    let answer: Value = serde_json::from_slice(&output.stdout).expect("the output is JSON");
    assert_eq!(answer["tokens"].as_array().map(Vec::len), Some(24));
    assert!(answer["timing"]["decode"]["expert_misses"].as_u64() > Some(0), "{answer:#}");
    let peak = group.peak();
    println!("budget {BUDGET}, model {bytes}, peak of the group {peak}");
    // The limit of the group allows 5 % more than the budget; the kernel would also reclaim page
    // cache to stay there, so the peak alone is compared with the budget itself.
    assert!(peak <= BUDGET + BUDGET / 20, "the peak is {peak}, the budget {BUDGET}");
}

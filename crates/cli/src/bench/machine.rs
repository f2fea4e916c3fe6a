//! Facts of the machine, the program and the day, so that a result can be judged later.
//!
//! Linux tells most of them in files, macOS a few by `sysctl`. Other systems than Linux are type-checked and
//! not verified: what is not known there stays out of the report.

use std::fs;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

/// The machine.
#[derive(Clone, Debug)]
pub struct Machine {
    /// Name of the CPU.
    pub cpu: Option<String>,
    /// Threads that the system lets this process run at once.
    pub cores: usize,
    /// Instruction sets that matter here.
    pub features: Vec<&'static str>,
    /// Bytes of memory.
    pub memory: Option<u64>,
    /// Bytes of the last level of cache that a core sees.
    pub cache: Option<u64>,
    /// Operating system with its version.
    pub system: String,
    /// The drive that the model lies on, in words.
    pub drive: Option<String>,
}

impl Machine {
    /// Asks the system; `model` is a file on the drive in question.
    pub fn detect(model: Option<&Path>) -> Self {
        let release = fs::read_to_string("/proc/sys/kernel/osrelease").ok();
        let release = release.or_else(|| sysctl("kern.osproductversion")).unwrap_or_default();
        let system = format!("{} {}", std::env::consts::OS, release.trim());
        let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let memory = field(&meminfo, "MemTotal").and_then(|value| {
            let kilobytes: u64 = value.trim_end_matches("kB").trim().parse().ok()?;
            kilobytes.checked_mul(1024)
        });
        let memory = memory.or_else(|| sysctl("hw.memsize")?.parse().ok());
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = field(&cpuinfo, "model name").or_else(|| field(&cpuinfo, "CPU implementer"));
        Self {
            cpu: cpu.map(str::to_owned).or_else(|| sysctl("machdep.cpu.brand_string")),
            cores: std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            features: features(),
            memory,
            cache: last_level_cache(),
            system: system.trim().to_owned(),
            drive: model.and_then(drive),
        }
    }

    /// One line: what stands in titles.
    pub fn name(&self) -> String {
        let cpu = self.cpu.as_deref().unwrap_or(std::env::consts::ARCH);
        format!("{cpu}, {} cores", self.cores)
    }

    /// Names and values for people.
    pub fn facts(&self) -> Vec<(&'static str, String)> {
        let unknown = || "not known on this system".to_owned();
        let bytes = |value: Option<u64>| value.map_or_else(unknown, engine::format_bytes);
        vec![
            ("CPU", self.cpu.clone().unwrap_or_else(unknown)),
            ("architecture", std::env::consts::ARCH.to_owned()),
            ("cores", self.cores.to_string()),
            ("instruction sets", self.features.join(" ")),
            ("last-level cache", bytes(self.cache)),
            ("memory", bytes(self.memory)),
            ("system", self.system.clone()),
            ("drive", self.drive.clone().unwrap_or_else(unknown)),
        ]
    }

    /// The same for machines.
    pub fn to_json(&self) -> Value {
        json!({
            "cpu": self.cpu,
            "architecture": std::env::consts::ARCH,
            "cores": self.cores,
            "features": self.features,
            "last_level_cache_bytes": self.cache,
            "memory_bytes": self.memory,
            "system": self.system,
            "drive": self.drive,
        })
    }
}

/// The program's version and the commit that it was built from.
pub fn version() -> String {
    format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("FLASH_MOE_COMMIT"))
}

/// The command line, with quotes where a shell needs them.
pub fn command_line() -> String {
    let quoted = |argument: String| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_./,=%:+@".contains(c);
        if !argument.is_empty() && argument.chars().all(plain) {
            argument
        } else {
            format!("'{}'", argument.replace('\'', "'\\''"))
        }
    };
    let arguments = std::env::args_os().skip(1).map(|a| quoted(a.to_string_lossy().into_owned()));
    ["flash-moe".to_owned()].into_iter().chain(arguments).collect::<Vec<_>>().join(" ")
}

/// The time in UTC: `2026-11-24 18:36:13`.
pub fn utc_now() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs());
    format_utc(seconds)
}

fn format_utc(seconds: u64) -> String {
    let (days, time) = (seconds / 86_400, seconds % 86_400);
    let (mut year, mut day) = (1970, days);
    let is_leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    while day >= 365 + u64::from(is_leap(year)) {
        day -= 365 + u64::from(is_leap(year));
        year += 1;
    }
    let lengths = [31, 28 + u64::from(is_leap(year)), 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
    let mut month = 0;
    while day >= lengths[month] {
        day -= lengths[month];
        month += 1;
    }
    let (hours, minutes, seconds) = (time / 3600, time / 60 % 60, time % 60);
    format!("{year}-{:02}-{:02} {hours:02}:{minutes:02}:{seconds:02}", month + 1, day + 1)
}

/// What macOS says of itself under a name.
#[cfg(target_os = "macos")]
fn sysctl(name: &str) -> Option<String> {
    let output = std::process::Command::new("/usr/sbin/sysctl").args(["-n", name]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    Some(text.trim().to_owned()).filter(|text| !text.is_empty())
}

#[cfg(not(target_os = "macos"))]
fn sysctl(_: &str) -> Option<String> {
    None
}

/// How busy the machine is: tasks that ran or wanted to, on average over the last minute.
pub fn load_average() -> Option<f64> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().next()?.parse().ok()
}

/// A value of a file of lines `name : value`.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let line = text.lines().find(|line| line.starts_with(name))?;
    Some(line.split_once(':')?.1.trim())
}

/// Instruction sets that kernels use or could use.
fn features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    for (name, has) in [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("f16c", is_x86_feature_detected!("f16c")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bw", is_x86_feature_detected!("avx512bw")),
        ("avx512vnni", is_x86_feature_detected!("avx512vnni")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avxvnni", is_x86_feature_detected!("avxvnni")),
    ] {
        if has {
            found.push(name);
        }
    }
    #[cfg(target_arch = "aarch64")]
    for (name, has) in [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("dotprod", std::arch::is_aarch64_feature_detected!("dotprod")),
        ("i8mm", std::arch::is_aarch64_feature_detected!("i8mm")),
        ("fp16", std::arch::is_aarch64_feature_detected!("fp16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ] {
        if has {
            found.push(name);
        }
    }
    found
}

/// The largest cache of the first core.
fn last_level_cache() -> Option<u64> {
    let caches = fs::read_dir("/sys/devices/system/cpu/cpu0/cache").ok()?;
    let sizes = caches.flatten().filter_map(|cache| {
        let size = fs::read_to_string(cache.path().join("size")).ok()?;
        engine::parse_size(size.trim()).ok()
    });
    sizes.max()
}

/// The block device and file system of a file.
#[cfg(target_os = "linux")]
fn drive(path: &Path) -> Option<String> {
    use std::os::linux::fs::MetadataExt;

    let device = fs::metadata(path).ok()?.st_dev();
    // The parts of a device number, as glibc's `makedev` puts them together.
    let major = (device >> 8) & 0xfff | (device >> 32) & !0xfff;
    let minor = device & 0xff | (device >> 12) & !0xff;
    let number = format!("{major}:{minor}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mount = mounts.lines().find(|line| line.split(' ').nth(2) == Some(&number));
    let file_system = mount.and_then(|line| line.split_once(" - ")?.1.split(' ').next());
    let file_system = file_system.unwrap_or("an unknown file system");
    let Ok(mut block) = fs::canonicalize(format!("/sys/dev/block/{number}")) else {
        return Some(format!("no block device, {file_system}"));
    };
    if block.join("partition").exists() {
        block.pop();
    }
    let read = |file: &str| fs::read_to_string(block.join(file)).ok().map(|s| s.trim().to_owned());
    let name = block.file_name()?.to_string_lossy().into_owned();
    let mut text = name;
    if let Some(model) = read("device/model") {
        text += &format!(" ({model})");
    }
    if let Some(sectors) = read("size").and_then(|sectors| sectors.parse::<u64>().ok()) {
        text += &format!(", {}", engine::format_bytes(sectors.saturating_mul(512)));
    }
    if read("queue/rotational").as_deref() == Some("1") {
        text += ", said to be rotating";
    }
    if let Some(read_ahead) = read("queue/read_ahead_kb") {
        text += &format!(", read-ahead {read_ahead} KiB");
    }
    Some(format!("{text}, {file_system}"))
}

#[cfg(not(target_os = "linux"))]
fn drive(_: &Path) -> Option<String> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_dates() {
        assert_eq!(format_utc(0), "1970-01-01 00:00:00");
        assert_eq!(format_utc(951_782_399), "2000-02-28 23:59:59");
        assert_eq!(format_utc(951_782_400), "2000-02-29 00:00:00");
        assert_eq!(format_utc(1_767_225_599), "2025-12-31 23:59:59");
        assert_eq!(format_utc(1_795_545_373), "2026-11-24 18:36:13");
    }

    #[test]
    fn fields_of_system_files_are_found() {
        let text = "processor\t: 0\nmodel name\t: AMD EPYC\nMemTotal:  100 kB\n";
        assert_eq!(field(text, "model name"), Some("AMD EPYC"));
        assert_eq!(field(text, "MemTotal"), Some("100 kB"));
        assert_eq!(field(text, "flags"), None);
    }
}

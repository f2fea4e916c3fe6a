//! How much memory there is, and how much this process may use.

use std::fs;
use std::path::{Path, PathBuf};

/// What the machine and its control groups allow.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryLimits {
    /// What the system says can be had without swapping.
    pub available: u64,
    /// For each limited control group around this process: its limit and what it uses.
    pub groups: Vec<GroupLimit>,
}

/// The limit of a control group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GroupLimit {
    /// Most bytes that its processes may use together.
    pub limit: u64,
    /// What they use that cannot be taken back: without the page cache of files not in use.
    pub used: u64,
}

/// Memory cannot be found out on this system.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct UnknownMemory(String);

impl MemoryLimits {
    /// Asks the system.
    pub fn detect() -> Result<Self, UnknownMemory> {
        let unknown = |what: &str| UnknownMemory(what.to_owned());
        if cfg!(target_os = "linux") {
            let meminfo = fs::read_to_string("/proc/meminfo");
            let meminfo =
                meminfo.map_err(|error| UnknownMemory(format!("/proc/meminfo: {error}")))?;
            let available = meminfo_bytes(&meminfo, "MemAvailable:")
                .ok_or_else(|| unknown("/proc/meminfo has no MemAvailable"))?;
            let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
            let groups = group_directories(&membership);
            Ok(Self { available, groups: groups.iter().filter_map(|g| group_limit(g)).collect() })
        } else {
            Err(unknown("this system does not tell how much memory is free"))
        }
    }

    /// What this process can still take.
    pub fn available_bytes(&self) -> u64 {
        let groups = self.groups.iter().map(|group| group.limit.saturating_sub(group.used));
        groups.fold(self.available, u64::min)
    }
}

/// Bytes of this process that are resident, where the system tells.
pub fn process_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    meminfo_bytes(&status, "VmRSS:")
}

/// Most bytes of this process that were resident at once, where the system tells: since
/// [`reset_peak_resident`], or else since its start.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    meminfo_bytes(&status, "VmHWM:")
}

/// Forgets the peak so far; gives whether the system could.
pub fn reset_peak_resident() -> bool {
    cfg!(target_os = "linux") && fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// A value of `/proc/meminfo` or `/proc/self/status`.
fn meminfo_bytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// The directories of the memory groups around this process, innermost first, from
/// `/proc/self/cgroup`: `0::/path` for version 2, `N:controllers:/path` for version 1.
fn group_directories(membership: &str) -> Vec<PathBuf> {
    let mut directories = Vec::new();
    for line in membership.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let root = match controllers {
            "" => "/sys/fs/cgroup",
            controllers if controllers.split(',').any(|c| c == "memory") => "/sys/fs/cgroup/memory",
            _ => continue,
        };
        let root = Path::new(root);
        let inner = root.join(path.trim_start_matches('/'));
        directories
            .extend(inner.ancestors().take_while(|dir| dir.starts_with(root)).map(Path::to_owned));
    }
    directories
}

/// The limit of a group, if it has one.
fn group_limit(directory: &Path) -> Option<GroupLimit> {
    let read = |file: &str| fs::read_to_string(directory.join(file)).ok();
    let number = |text: String| text.trim().parse::<u64>().ok();
    let (limit, used) = match read("memory.max") {
        Some(limit) => (number(limit)?, number(read("memory.current")?)?),
        None => (number(read("memory.limit_in_bytes")?)?, number(read("memory.usage_in_bytes")?)?),
    };
    // Version 1 writes "no limit" as a number near 2^63.
    if limit >= 1 << 60 {
        return None;
    }
    let reclaimable = read("memory.stat").map_or(0, |stat| {
        let value = |key: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or(0)
        };
        let hierarchical: u64 = value("total_inactive_file");
        if hierarchical > 0 { hierarchical } else { value("inactive_file") }
    });
    Some(GroupLimit { limit, used: used.saturating_sub(reclaimable) })
}

/// A size that cannot be read.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a size; sizes are like 8G, 512M, 1.5GiB or a number of bytes")]
pub struct BadSize(String);

/// Reads a size such as `8G`, `512M` or `1.5GiB`; units are powers of 1024.
pub fn parse_size(text: &str) -> Result<u64, BadSize> {
    let bad = || BadSize(text.to_owned());
    let trimmed = text.trim();
    let digits = trimmed.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = trimmed[digits.len()..].to_ascii_lowercase();
    let shift = match unit.strip_suffix("ib").or(unit.strip_suffix('b')).unwrap_or(&unit) {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(bad()),
    };
    let number: f64 = digits.trim_end().parse().map_err(|_| bad())?;
    let bytes = number * (1_u64 << shift) as f64;
    if (0.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(bad()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_powers_of_1024() {
        for (text, bytes) in [
            ("8G", 8 << 30),
            ("512M", 512 << 20),
            ("1.5GiB", 3 << 29),
            ("64kb", 64 << 10),
            (" 1000000 ", 1_000_000),
            ("2 T", 2 << 40),
            ("0", 0),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "G", "8X", "-1", "1e30", "8GG", "nan", "1 2", "inf"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn system_files_are_read() {
        let meminfo = "MemTotal:       24614432 kB\nMemAvailable:   100 kB\n";
        assert_eq!(meminfo_bytes(meminfo, "MemAvailable:"), Some(102_400));
        assert_eq!(meminfo_bytes(meminfo, "MemFree:"), None);
        let groups = group_directories("12:cpu,cpuacct:/x\n4:memory:/a/b\n0::/c\nbroken\n");
        let expected = [
            "/sys/fs/cgroup/memory/a/b",
            "/sys/fs/cgroup/memory/a",
            "/sys/fs/cgroup/memory",
            "/sys/fs/cgroup/c",
            "/sys/fs/cgroup",
        ];
        assert_eq!(groups, expected.map(PathBuf::from));
    }

    #[test]
    fn the_tightest_limit_counts() {
        let group = |limit, used| GroupLimit { limit, used };
        let limits = MemoryLimits { available: 100, groups: vec![group(90, 20), group(30, 40)] };
        assert_eq!(limits.available_bytes(), 0);
        assert_eq!(MemoryLimits { groups: vec![group(90, 20)], ..limits }.available_bytes(), 70);
    }

    #[test]
    fn this_machine_can_be_asked() {
        if cfg!(target_os = "linux") {
            let limits = MemoryLimits::detect().expect("Linux tells");
            assert!(limits.available > 0);
            assert!(process_resident_bytes() > Some(100 << 10));
        }
    }
}

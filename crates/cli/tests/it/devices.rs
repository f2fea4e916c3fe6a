//! `flash-moe devices`, and the choice of one.

use crate::support::{error, fixture, json, output, stdout, text};

#[test]
fn devices_are_listed_with_their_speeds() {
    let list = json(&["devices"]);
    assert!(list["cpu"]["read_bytes_per_second"].as_f64() > Some(0.0), "{list:#}");
    let gpus = list["gpus"].as_array().expect("a list");
    let printed = stdout(&["devices"]);
    assert!(printed.starts_with("cpu "), "{printed}");
    for (index, gpu) in gpus.iter().enumerate() {
        assert_eq!(gpu["device"], format!("gpu:{index}"));
        assert!(printed.contains(gpu["name"].as_str().expect("a name")), "{printed}");
        let speed = gpu["read_bytes_per_second"].as_f64();
        assert_eq!(speed > Some(0.0), gpu["problem"].is_null(), "{gpu:#}");
        let imports = gpu["imports_host_memory"].as_bool().expect("it is told");
        assert_eq!(imports, gpu["import_problem"].is_null(), "{gpu:#}");
    }
    let shared = gpus.iter().filter(|gpu| gpu["shares_memory"] == true).count();
    assert_eq!(printed.matches("shares the host's memory").count(), shared, "{printed}");
    let software = gpus.iter().filter(|gpu| gpu["software"] == true).count();
    assert_eq!(printed.matches("this is the CPU").count(), software, "{printed}");
    if gpus.is_empty() {
        assert!(printed.contains("no GPU was found") || printed.contains("without its GPU"));
    }
}

#[test]
fn gpus_that_are_software_are_not_tuned() {
    let gpus = json(&["devices"])["gpus"].as_array().expect("a list").clone();
    let Some(gpu) = gpus.first() else { return };
    // A real one would be measured for seconds, and a file be left.
    if gpus.iter().all(|gpu| gpu["software"] == true) {
        let printed = stdout(&["devices", "--tune"]);
        assert!(printed.contains(gpu["name"].as_str().expect("a name")), "{printed}");
        assert!(printed.contains("left as it is"), "{printed}");
    }
}

#[test]
fn a_choice_that_is_left_open_is_explained() {
    let model = fixture("qwen35moe-tiny");
    let plan = json(&["inspect", text(&model)]);
    let reason = plan["device_reason"].as_str().expect("a reason");
    assert!(!reason.is_empty());
    let printed = stdout(&["inspect", text(&model)]);
    assert!(printed.contains("\ndevice: the "), "{printed}");
    let plan = json(&["inspect", text(&model), "--device", "cpu"]);
    assert!(plan["device_reason"].is_null(), "{plan:#}");
}

#[test]
fn devices_that_are_not_there_are_refused() {
    let message = error(&["run", "demo", "Hello", "--device", "gpu:99"]);
    assert!(message.contains("GPU"), "{message}");
    let refused = output(&["run", "demo", "Hello", "--device", "gpu:first"]);
    let message = String::from_utf8_lossy(&refused.stderr);
    assert!(message.contains("`flash-moe devices`"), "{message}");
}

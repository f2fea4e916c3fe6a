//! Every fixture agrees with the reference implementation, on every device, however it is run.

use crate::support::{TempDir, fixture, json, output, text};

const FIXTURES: [&str; 10] = [
    "qwen35moe-tiny",
    "qwen35moe-tiny-mlx-4bit",
    "qwen35moe-mini-mlx-8bit",
    "qwen3next-tiny",
    "qwen3moe-tiny",
    "gguf/qwen35moe-mini-bf16.gguf",
    "gguf/qwen35moe-mini-q8_0.gguf",
    "gguf/qwen35moe-k256-q4_k_m.gguf",
    "gguf/qwen3next-tiny-q8_0.gguf",
    "gguf/qwen3moe-tiny-bf16.gguf",
];

#[test]
fn fixtures_agree_with_their_goldens() {
    for name in FIXTURES {
        let directory = fixture(name);
        for args in [
            &[][..],
            &["--device", "reference"],
            &["--device", "cpu-scalar", "--threads", "2"],
            &["--prompt-chunk", "7", "--threads", "1", "--expert-cache", "1"],
        ] {
            let report = json(&[&["verify", text(&directory)], args].concat());
            assert_eq!(report["passes"], true, "{name} {args:?}: {report:#}");
            let checks = report["checks"].as_array().expect("checks are listed");
            let least = if name == "qwen35moe-tiny" { 9 } else { 6 };
            assert!(checks.len() >= least, "{name}: all sequences were compared: {report:#}");
        }
    }
}

/// On a GPU, or Mesa's software Vulkan; keys and values are in 16 bits there, and the tolerance allows for that.
#[cfg(feature = "gpu")]
#[test]
fn fixtures_agree_with_their_goldens_on_a_gpu() {
    if std::env::var_os("FLASH_MOE_NO_GPU_TESTS").is_some() {
        return;
    }
    for name in FIXTURES {
        let directory = fixture(name);
        for args in [&[][..], &["--prompt-chunk", "7"]] {
            let report = json(&[&["verify", text(&directory), "--device", "gpu"], args].concat());
            assert_eq!(report["passes"], true, "{name} {args:?}: {report:#}");
            assert_eq!(report["tolerance"].as_f64().map(|x| x as f32), Some(1e-2));
            let device = report["device"].as_str().expect("a name");
            assert!(device.starts_with("gpu "), "{device}");
        }
    }
}

/// Wherever experts are, outputs are the same bits.
#[cfg(feature = "gpu")]
#[test]
fn outputs_on_a_gpu_do_not_depend_on_what_it_holds() {
    if std::env::var_os("FLASH_MOE_NO_GPU_TESTS").is_some() {
        return;
    }
    let directory = fixture("qwen35moe-tiny-mlx-4bit");
    let scratch = TempDir::new();
    let dumps = ["0", "20K", "1G"].map(|room| {
        let dump = scratch.path().join(room);
        let args = ["--device", "gpu", "--expert-vram", room, "--dump", text(&dump)];
        let report = json(&[&["verify", text(&directory)], &args[..]].concat());
        assert_eq!(report["passes"], true, "{room}: {report:#}");
        std::fs::read(&dump).expect("the outputs")
    });
    assert!(dumps.iter().all(|dump| *dump == dumps[0]));
}

/// A greedy choice is made on the GPU, and on the host where probabilities are asked for.
#[cfg(feature = "gpu")]
#[test]
fn greedy_tokens_of_a_gpu_are_those_of_its_logits() {
    if std::env::var_os("FLASH_MOE_NO_GPU_TESTS").is_some() {
        return;
    }
    let tokens = |more: &[&str]| {
        let args = ["run", "demo", "Hello", "--tokens", "8", "--device", "gpu"];
        let greedy = ["--temperature", "0", "--repetition-penalty", "1"];
        json(&[&args, &greedy[..], more].concat())["tokens"].clone()
    };
    let chosen = tokens(&[]);
    assert!(chosen.as_array().is_some_and(|tokens| !tokens.is_empty()), "{chosen}");
    assert_eq!(chosen, tokens(&["--logprobs", "1"]));
}

/// A GPU that shares the host's memory reads experts there, and nothing is in memory twice.
#[cfg(feature = "gpu")]
#[test]
fn a_gpu_that_shares_memory_reads_experts_where_they_are() {
    let list = json(&["devices"]);
    if list["gpus"][0]["shares_memory"] != true || list["gpus"][0]["imports_host_memory"] != true {
        println!("skipped: no GPU here reads the host's memory");
        return;
    }
    // As experts lie in the built-in model a kernel cannot read their codes four words at a time.
    let scratch = TempDir::new();
    let packed = scratch.path().join("packed");
    assert!(output(&["pack", "demo", text(&packed)]).status.success(), "it can be packed");
    let run = |more: &[&str]| {
        let model = text(&packed);
        let args =
            ["run", model, "Hello", "--tokens", "8", "--device", "gpu", "--temperature", "0"];
        let answer = json(&[&args, more].concat());
        let sum = |what: &str| {
            let timing = &answer["timing"];
            timing["prompt"][what].as_u64().unwrap() + timing["decode"][what].as_u64().unwrap()
        };
        let bytes = [sum("in_place_expert_bytes"), sum("moved_expert_bytes")];
        (answer["tokens"].clone(), bytes)
    };
    let (in_place, [read, _]) = run(&["--expert-vram", "0"]);
    let (copied, [none, moved]) = run(&["--expert-vram", "0", "--copy-experts"]);
    let (held, _) = run(&[]);
    assert!(read > 0 && none == 0 && moved > 0, "{read} read, {none}, {moved} moved");
    assert!(in_place == copied && copied == held, "the same tokens");

    let plan = |more: &[&str]| {
        let args = ["inspect", text(&packed), "--device", "gpu", "--memory", "600M"];
        json(&[&args, more].concat())["memory"].clone()
    };
    for more in [&[][..], &["--expert-vram", "1M"], &["--expert-vram", "0", "--copy-experts"]] {
        let plan = plan(more);
        let device = &plan["device"];
        assert_eq!(device["shares_host_memory"], true, "{plan:#}");
        let sum = |of: &serde_json::Value, parts: &[&str]| -> u64 {
            parts.iter().map(|part| of[format!("{part}_bytes")].as_u64().unwrap()).sum()
        };
        let host = ["process", "reserve", "workspace", "sampling", "expert_slot"];
        let of_device = ["trunk", "state", "workspace", "expert"];
        let all = sum(&plan, &host) + sum(device, &of_device);
        assert!(all <= 600 << 20, "all of it is in one budget: {plan:#}");
    }
}

#[test]
fn a_difference_fails() {
    let directory = fixture("qwen35moe-mini-mlx-8bit");
    let golden = fixture("qwen35moe-tiny-mlx-4bit").join("golden.safetensors");
    let output = output(&["verify", text(&directory), "--golden", text(&golden)]);
    assert_eq!(output.status.code(), Some(1), "another model's goldens are not met");
    let strict = fixture("qwen35moe-tiny");
    let output = crate::support::output(&["verify", text(&strict), "--tolerance", "1e-9"]);
    assert_eq!(output.status.code(), Some(1), "no tolerance is met exactly");
}

//! The prefix cache: the same bits with and without, in memory and after a restart, within its bounds,
//! and whatever happens to its files.

use std::fs;
use std::path::{Path, PathBuf};

use engine::{
    Device, Engine, EngineOptions, Error, GenerateOptions, Ignored, KvType, PrefixCacheOptions,
    PrefixCacheStats, Session,
};

use crate::{demo, held_out, repository, scratch, streaming, tiny_copy};

/// Tokens of a block.
const BLOCK: usize = 64;

fn in_memory(memory_bytes: u64) -> Option<PrefixCacheOptions> {
    Some(PrefixCacheOptions { memory_bytes, directory: None, disk_bytes: 0 })
}

fn on_disk(directory: &Path, disk_bytes: u64) -> Option<PrefixCacheOptions> {
    let directory = Some(directory.to_owned());
    Some(PrefixCacheOptions { memory_bytes: 8 << 20, directory, disk_bytes })
}

fn stats(engine: &Engine) -> PrefixCacheStats {
    engine.prefix_cache_stats().expect("there is a prefix cache")
}

/// A fixture's model.
fn tiny(name: &str, options: EngineOptions) -> Engine {
    let path = repository("tests/fixtures").join(name);
    Engine::open(&path, &options).expect("the fixture opens")
}

/// Tokens that look random, of the tiny models' vocabulary.
fn noise(seed: u32, n_tokens: usize) -> Vec<u32> {
    let mut x = seed;
    let next = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 16) % 320
    });
    next.take(n_tokens).collect()
}

/// Takes in what of `tokens` a session does not hold; gives the logits of the last `n_rows`.
fn go_on(engine: &mut Engine, session: &mut Session, tokens: &[u32], n_rows: usize) -> Vec<f32> {
    let rest = &tokens[session.tokens().len()..];
    let first = rest.len() - n_rows;
    let mut logits = Vec::new();
    let result =
        engine.evaluate(session, rest, |row| row >= first, |_, row| logits.extend_from_slice(row));
    result.expect("it goes well");
    logits
}

/// Computes a sequence from what is known of it, and remembers it; gives how much was known, and the
/// last logits.
fn visit(engine: &mut Engine, tokens: &[u32]) -> (usize, Vec<f32>) {
    let (mut session, n_known) = engine.session_for(tokens).expect("a session");
    assert_eq!(session.tokens(), &tokens[..n_known]);
    let logits = go_on(engine, &mut session, tokens, 1);
    engine.remember(&session);
    (n_known, logits)
}

/// The last logits of a sequence that is computed from its beginning.
fn compute(engine: &mut Engine, tokens: &[u32]) -> Vec<f32> {
    let mut session = engine.session().expect("a session");
    go_on(engine, &mut session, tokens, 1)
}

/// Names and bytes of the entries in a directory, sorted.
fn entries(directory: &Path) -> Vec<(PathBuf, u64)> {
    let files = fs::read_dir(directory).expect("it is there").map(|entry| {
        let entry = entry.expect("it can be read");
        (entry.path(), entry.metadata().expect("it can be read").len())
    });
    let mut files: Vec<_> =
        files.filter(|(path, _)| path.extension().is_some_and(|it| it != "tmp")).collect();
    files.sort();
    files
}

#[test]
fn a_hit_gives_the_same_bits_in_memory_and_after_a_restart() {
    let directory = scratch("hit");
    let tokens = noise(1, 700);
    let cpu = EngineOptions::default;
    for (index, (name, mode)) in [
        ("qwen35moe-tiny", cpu()),
        ("qwen35moe-tiny", EngineOptions { precise: true, ..cpu() }),
        ("qwen35moe-tiny", EngineOptions { kv_type: Some(KvType::Q8_0), ..cpu() }),
        ("qwen35moe-tiny-mlx-4bit", cpu()),
        ("qwen3next-tiny", cpu()),
        ("qwen3moe-tiny", cpu()),
        ("qwen35moe-tiny", EngineOptions { device: Device::Reference, ..cpu() }),
    ]
    .into_iter()
    .enumerate()
    {
        let plain = EngineOptions { sessions: 2, ..mode };
        let options =
            EngineOptions { prefix_cache: on_disk(&directory, 64 << 20), ..plain.clone() };
        let mut without = tiny(name, plain);
        let mut all = without.session().expect("a session");
        let expected = go_on(&mut without, &mut all, &tokens, 200);

        // A first turn of 450 tokens ends with single ones, across the ends of blocks.
        let mut engine = tiny(name, options.clone());
        let (mut session, n_known) = engine.session_for(&tokens[..300]).expect("a session");
        assert_eq!(n_known, 0, "{name}, {index}: other models and modes are not taken for this");
        go_on(&mut engine, &mut session, &tokens[..300], 1);
        for end in 301..=450 {
            go_on(&mut engine, &mut session, &tokens[..end], 1);
        }
        engine.remember(&session);
        drop(session);

        for restarts in 0..2 {
            let (mut session, n_known) = engine.session_for(&tokens).expect("a session");
            assert_eq!(n_known, 448, "{name}, {index}: the last block of the first turn");
            let values = engine.state_values(&session);
            assert_eq!(values.len(), engine.config().mixers.len());
            let logits = go_on(&mut engine, &mut session, &tokens, 200);
            assert!(logits == expected, "{name}, {index}, {restarts} restarts");
            let (ours, theirs) = (engine.state_values(&session), without.state_values(&all));
            assert!(ours == theirs, "{name}, {index}, {restarts} restarts");
            assert_eq!(stats(&engine).ignored.total(), 0);
            drop(session);
            engine = tiny(name, options.clone());
        }
    }
    fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn the_demo_model_says_the_same_with_a_hit() {
    let mut without = demo(streaming());
    let mut engine = demo(EngineOptions { prefix_cache: in_memory(64 << 20), ..streaming() });
    let tokens = held_out(&engine, 0, 1000);
    let (n_known, _) = visit(&mut engine, &tokens[..600]);
    assert_eq!(n_known, 0);
    let (n_known, logits) = visit(&mut engine, &tokens);
    assert_eq!(n_known, 576);
    assert!(logits == compute(&mut without, &tokens));
    assert_eq!(stats(&engine).cached_tokens, 576);
    assert_eq!((stats(&engine).lookups, stats(&engine).hits, stats(&engine).tokens), (2, 1, 1600));
}

#[test]
fn an_answer_that_comes_back_otherwise_leaves_its_prompt() {
    let mut engine = demo(EngineOptions { prefix_cache: in_memory(64 << 20), ..streaming() });
    let prompt = held_out(&engine, 0, 300);
    let options = GenerateOptions { max_tokens: Some(200), ..GenerateOptions::default() };
    let (mut session, _) = engine.session_for(&prompt).expect("a session");
    let steps = engine.generate(&mut session, &prompt, options).expect("it is sound");
    let said: Vec<u32> = steps.filter_map(|step| step.expect("it goes well").token).collect();
    assert_eq!(said.len(), 200);
    engine.remember(&session);
    drop(session);
    let mut as_said = [&prompt[..], &said, &[5]].concat();
    let known = |engine: &mut Engine, tokens: &[u32]| engine.session_for(tokens).expect("one").1;
    assert_eq!(known(&mut engine, &as_said), 448);
    as_said[300] ^= 1;
    assert_eq!(known(&mut engine, &as_said), 256);
}

#[test]
fn a_prompt_that_was_computed_to_its_end_leaves_a_token_to_compute() {
    let mut engine = tiny(
        "qwen35moe-tiny",
        EngineOptions { prefix_cache: in_memory(8 << 20), ..EngineOptions::default() },
    );
    for n_tokens in [1, 63, 64, 65, 128, 129] {
        let tokens = noise(n_tokens as u32, n_tokens);
        let (n_known, first) = visit(&mut engine, &tokens);
        assert_eq!(n_known, 0, "{n_tokens}");
        let (n_known, second) = visit(&mut engine, &tokens);
        assert_eq!(n_known, (n_tokens - 1) / BLOCK * BLOCK, "{n_tokens}");
        assert!(first == second);
    }
}

#[test]
fn where_two_conversations_part_a_third_begins() {
    let options = EngineOptions {
        prefix_cache: in_memory(32 << 20),
        sessions: 2,
        ..EngineOptions::default()
    };
    let mut engine = tiny("qwen35moe-tiny", options);
    let mut without = tiny("qwen35moe-tiny", EngineOptions::default());
    let instructions = noise(1, 400);
    let mut known = Vec::new();
    for seed in 2..5 {
        let tokens = [instructions.clone(), noise(seed, 300)].concat();
        let (n_known, logits) = visit(&mut engine, &tokens);
        assert!(logits == compute(&mut without, &tokens));
        known.push(n_known);
    }
    // The second finds keys and values alone, and leaves a state there.
    assert_eq!(known, [0, 0, 384]);

    // Two sessions at a time go on from the same place.
    let both = [5, 6].map(|seed| [instructions.clone(), noise(seed, 100)].concat());
    let mut sessions = both.each_ref().map(|tokens| engine.session_for(tokens).expect("a session"));
    for ((session, n_known), tokens) in sessions.iter_mut().zip(&both) {
        assert_eq!(*n_known, 384);
        assert!(go_on(&mut engine, session, tokens, 1) == compute(&mut without, tokens));
    }
}

#[test]
fn memory_is_bounded_and_the_longest_unused_leaves() {
    let bound = 600_000;
    let options = EngineOptions { prefix_cache: in_memory(bound), ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", options);
    let mut without = tiny("qwen35moe-tiny", EngineOptions::default());
    let texts: Vec<_> = (0..6).map(|seed| noise(seed, 500)).collect();
    for tokens in &texts {
        visit(&mut engine, tokens);
        assert!(stats(&engine).memory_bytes <= bound, "{:?}", stats(&engine));
    }
    assert!(stats(&engine).evictions > 0);
    let (n_known, logits) = visit(&mut engine, &texts[5]);
    assert_eq!(n_known, 448, "the last one is there");
    assert!(logits == compute(&mut without, &texts[5]));
    assert_eq!(visit(&mut engine, &texts[0]).0, 0, "the first one is not");

    // A sequence that is longer than all of memory, and whose states are more than it holds: it is
    // computed again, and what begins as it does is taken up nevertheless.
    let long = noise(9, 4000);
    let (_, logits) = visit(&mut engine, &long);
    assert!(stats(&engine).memory_bytes <= bound);
    let (n_known, again) = visit(&mut engine, &long);
    assert_eq!(n_known, 0);
    assert!(again == logits && logits == compute(&mut without, &long));
    let known = [0, 1].map(|_| visit(&mut engine, &long[..300]));
    assert_eq!(known[1].0, 256);
    assert!(known.iter().all(|(_, logits)| *logits == compute(&mut without, &long[..300])));
}

#[test]
fn the_memory_of_the_cache_is_part_of_the_plan() {
    let options = EngineOptions { prefix_cache: in_memory(1000), ..EngineOptions::default() };
    let open = |options: &EngineOptions| {
        Engine::open(&repository("tests/fixtures/qwen35moe-tiny"), options).err()
    };
    let Some(error @ Error::PrefixCacheTooSmall { asked: 1000, least }) = open(&options) else {
        panic!("it is of no use");
    };
    assert!(error.to_string().contains("prefix cache of 1000 B"), "{error}");
    let least = EngineOptions { prefix_cache: in_memory(least), ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", least);
    assert_eq!(visit(&mut engine, &noise(1, 100)).0, 0);
    assert_eq!(visit(&mut engine, &noise(1, 100)).0, 64, "a block and a state have room");

    let options = EngineOptions {
        prefix_cache: in_memory(1 << 40),
        memory: Some(1 << 30),
        ..EngineOptions::default()
    };
    let message = open(&options).expect("it does not fit").to_string();
    assert!(message.contains("1.0 TiB  prefix cache"), "{message}");
    let file = scratch("plan").join("file");
    fs::write(&file, "text").expect("it can be written");
    let options = EngineOptions { prefix_cache: on_disk(&file, 1), ..EngineOptions::default() };
    let message = open(&options).expect("it is no directory").to_string();
    assert!(message.contains("engine-plan"), "{message}");
    fs::remove_dir_all(file.parent().expect("a directory")).expect("it can be removed");
}

#[test]
fn the_directory_is_bounded_and_shared() {
    let directory = scratch("bound");
    let bound = 400_000;
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, bound), ..EngineOptions::default() };
    let total = || entries(&directory).iter().map(|(_, bytes)| bytes).sum::<u64>();
    fs::write(directory.join("notes.txt"), vec![0; 500_000]).expect("it can be written");
    let left = directory.join(format!("{}.kv.tmp", "0".repeat(64)));
    fs::write(&left, "half").expect("it can be written");
    let mut engines = [0, 1].map(|_| tiny("qwen35moe-tiny", options.clone()));
    assert!(!left.exists(), "what a crash left is removed");
    let texts: Vec<_> = (0..8).map(|seed| noise(seed, 200)).collect();
    for (index, tokens) in texts.iter().enumerate() {
        visit(&mut engines[index % 2], tokens);
        assert!(total() - 500_000 <= bound, "two processes keep to it: {}", total());
    }
    assert!(total() - 500_000 > bound / 2, "it is used");
    assert!(stats(&engines[1]).disk_bytes <= bound);
    assert_eq!(stats(&engines[0]).disk_skips, 0);
    // What one wrote the other reads, without having been opened again.
    let (n_known, logits) = visit(&mut engines[0], &texts[7]);
    assert_eq!((n_known, stats(&engines[0]).disk_reads), (192, 4));
    assert!(logits == visit(&mut engines[1], &texts[7]).1);

    // A sequence that is longer than all of it, and a smaller bound, which holds at once.
    visit(&mut engines[0], &noise(9, 4000));
    assert!(total() - 500_000 <= bound);
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 200_000), ..EngineOptions::default() };
    let mut smaller = tiny("qwen35moe-tiny", options);
    assert!(total() - 500_000 <= 200_000);
    visit(&mut smaller, &texts[0]);
    assert!(total() - 500_000 <= 200_000);
    assert!(directory.join("notes.txt").exists(), "other files are left alone");
    fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn a_sequence_longer_than_memory_is_whole_on_the_drive() {
    let directory = scratch("long");
    let memory_bytes = 300_000;
    let prefix_cache = Some(PrefixCacheOptions {
        memory_bytes,
        directory: Some(directory.clone()),
        disk_bytes: 8 << 20,
    });
    let options = EngineOptions { prefix_cache, ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", options.clone());
    let tokens = noise(1, 3500);
    let (_, expected) = visit(&mut engine, &tokens);
    assert!(entries(&directory).iter().map(|(_, bytes)| bytes).sum::<u64>() > 2 * memory_bytes);
    for mut engine in [engine, tiny("qwen35moe-tiny", options)] {
        let (n_known, logits) = visit(&mut engine, &tokens);
        assert_eq!(n_known, 3456);
        assert!(logits == expected);
        assert!(stats(&engine).memory_bytes <= memory_bytes);
    }
    fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn who_writes_makes_nobody_wait() {
    let directory = scratch("lock");
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 8 << 20), ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", options);
    let lock = fs::File::open(directory.join("lock")).expect("it is there");
    lock.lock().expect("nobody has it");
    let tokens = noise(1, 200);
    visit(&mut engine, &tokens);
    assert_eq!((stats(&engine).disk_skips, stats(&engine).disk_writes), (1, 0));
    lock.unlock().expect("it was ours");
    visit(&mut engine, &tokens);
    assert_eq!((stats(&engine).disk_skips, stats(&engine).disk_writes), (1, 4), "later");
    fs::remove_dir_all(&directory).expect("it can be removed");
}

/// Files are damaged in one way each, and what becomes of it is looked at: the reason that is counted.
fn after_damage(original: &Path, damage: impl Fn(&Path)) -> Ignored {
    let directory = scratch("damaged");
    for (path, _) in entries(original) {
        let copy = directory.join(path.file_name().expect("it has a name"));
        fs::copy(&path, copy).expect("it can be copied");
    }
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 8 << 20), ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", options.clone());
    damage(&directory);
    let tokens = noise(1, 200);
    let (n_known, logits) = visit(&mut engine, &tokens);
    assert!(n_known < 192, "the damaged entry is not used");
    let ignored = stats(&engine).ignored;
    assert_eq!(ignored.total(), 1);
    let (n_known, again) = visit(&mut tiny("qwen35moe-tiny", options), &tokens);
    assert_eq!(n_known, 192, "it was deleted and written again");
    assert!(logits == again);
    fs::remove_dir_all(&directory).expect("it can be removed");
    ignored
}

#[test]
fn damaged_files_are_counted_deleted_and_never_used() {
    let original = scratch("original");
    let options =
        EngineOptions { prefix_cache: on_disk(&original, 8 << 20), ..EngineOptions::default() };
    let (n_known, _) = visit(&mut tiny("qwen35moe-tiny", options), &noise(1, 200));
    assert_eq!(n_known, 0);
    let files = entries(&original);
    let names: Vec<_> = files.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
    let of = |extension| {
        let mut fitting = names.iter().filter(|name| name.ends_with(extension));
        *fitting.next().expect("there is one")
    };
    let one = Ignored::default();
    for name in [of(".kv"), of(".state")] {
        let len = fs::metadata(original.join(name)).expect("it is there").len() as usize;
        let edit = |change: &dyn Fn(&mut Vec<u8>)| {
            after_damage(&original, |directory| {
                let path = directory.join(name);
                let mut bytes = fs::read(&path).expect("it can be read");
                change(&mut bytes);
                fs::write(&path, bytes).expect("it can be written");
            })
        };
        let inner = (0..10).map(|step| 96 + step * (len - 96) / 10);
        for place in
            [0, 7, 8, 11, 12, 15, 16, 47, 48, 79, 80, 87, 88, 95, len - 33, len - 32, len - 1]
                .into_iter()
                .chain(inner)
        {
            let expected = match place {
                0..8 => Ignored { not_one: 1, ..one },
                8..12 => Ignored { version: 1, ..one },
                12..16 | 48..80 => Ignored { misnamed: 1, ..one },
                16..48 => Ignored { other_model: 1, ..one },
                80..96 => Ignored { length: 1, ..one },
                _ => Ignored { damaged: 1, ..one },
            };
            let flipped = edit(&|bytes| bytes[place] ^= 1 << (place % 8));
            assert_eq!(flipped, expected, "{name}: a bit at {place} of {len}");
        }
        for kept in [0, 1, 8, 95, 96, 97, len / 2, len - 33, len - 32, len - 1] {
            let cut = edit(&|bytes| bytes.truncate(kept));
            assert_eq!(cut, Ignored { length: 1, ..one }, "{name}: {kept} of {len}");
        }
        let longer = edit(&|bytes| bytes.push(0));
        assert_eq!(longer, Ignored { length: 1, ..one });
        let zeros = edit(&|bytes| bytes[200..].fill(0));
        assert_eq!(zeros, Ignored { damaged: 1, ..one }, "what a crash of the machine leaves");
    }
    // A whole entry under the name of another.
    let mut states = names.iter().filter(|name| name.ends_with(".kv"));
    let (first, second) = (states.next().expect("one"), states.next().expect("two"));
    let swapped = after_damage(&original, |directory| {
        fs::copy(directory.join(first), directory.join(second)).expect("a copy");
    });
    assert_eq!(swapped, Ignored { misnamed: 1, ..one });
    // Something that is no file at all.
    #[cfg(unix)]
    {
        let linked = after_damage(&original, |directory| {
            fs::remove_file(directory.join(first)).expect("it is there");
            std::os::unix::fs::symlink("/dev/zero", directory.join(first)).expect("a link");
        });
        assert_eq!(linked, Ignored { not_one: 1, ..one });
    }
    fs::remove_dir_all(&original).expect("it can be removed");
}

#[test]
fn a_changed_checkpoint_is_another_model() {
    let (directory, model) = (scratch("changed"), tiny_copy("changed-model"));
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 8 << 20), ..EngineOptions::default() };
    let tokens = noise(1, 200);
    let know = || {
        let mut engine = Engine::open(&model, &options).expect("the model opens");
        let known = visit(&mut engine, &tokens).0;
        assert_eq!(stats(&engine).ignored.total(), 0, "files of others have other names");
        known
    };
    assert_eq!([know(), know()], [0, 192]);
    // The same lengths and tensors, another weight.
    let path = model.join("model.safetensors");
    let mut bytes = fs::read(&path).expect("it can be read");
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&path, &bytes).expect("it can be written");
    assert_eq!([know(), know()], [0, 192]);
    // Even the same time of change, and another routed expert.
    let changed = fs::metadata(&path).and_then(|it| it.modified()).expect("it has a time");
    let (len, rest) = bytes.split_first_chunk().expect("a length");
    let header_bytes = u64::from_le_bytes(*len) as usize;
    let header: serde_json::Value =
        serde_json::from_slice(&rest[..header_bytes]).expect("a header");
    let tensors = header.as_object().expect("tensors by name");
    let (_, experts) = tensors
        .iter()
        .find(|(name, _)| name.ends_with("experts.gate_up_proj"))
        .expect("experts are stacked");
    let begin = experts["data_offsets"][0].as_u64().expect("it") as usize;
    bytes[8 + header_bytes + begin] ^= 1;
    fs::write(&path, bytes).expect("it can be written");
    let file = fs::File::options().write(true).open(&path).expect("it can be opened");
    file.set_modified(changed).expect("it can be set");
    assert_eq!([know(), know()], [0, 192]);
    for path in [directory, model] {
        fs::remove_dir_all(path).expect("it can be removed");
    }
}

#[test]
fn pieces_that_end_with_a_block_leave_its_state() {
    let mut without = tiny("qwen35moe-tiny", EngineOptions::default());
    for chunk in [32, 64, 100, 512] {
        let options = EngineOptions {
            prefix_cache: in_memory(8 << 20),
            prompt_chunk: Some(chunk),
            ..EngineOptions::default()
        };
        for n_tokens in [100, 128, 129, 570] {
            let mut engine = tiny("qwen35moe-tiny", options.clone());
            let tokens = noise(chunk as u32, n_tokens);
            visit(&mut engine, &tokens);
            let (n_known, logits) = visit(&mut engine, &tokens);
            assert_eq!(n_known, (n_tokens - 1) / BLOCK * BLOCK, "{n_tokens} by {chunk}");
            assert!(logits == compute(&mut without, &tokens));
        }
    }
}

#[test]
fn of_few_states_that_of_the_end_is_kept() {
    let directory = scratch("few-states");
    let open = |memory_bytes| {
        let directory = Some(directory.clone());
        let prefix_cache =
            Some(PrefixCacheOptions { memory_bytes, directory, disk_bytes: 8 << 20 });
        let prompt_chunk = Some(4096);
        let options = EngineOptions { prefix_cache, prompt_chunk, ..EngineOptions::default() };
        Engine::open(&repository("tests/fixtures/qwen35moe-tiny"), &options)
    };
    let Err(Error::PrefixCacheTooSmall { least, .. }) = open(1) else { panic!("it is of no use") };
    let mut engine = open(least).expect("it opens");
    let tokens = noise(1, 2200);
    // The pass goes by a state at 2,048 tokens, and memory holds one.
    let (_, expected) = visit(&mut engine, &tokens);
    let (n_known, logits) = visit(&mut engine, &tokens);
    assert_eq!(n_known, 2176);
    assert!(logits == expected);
    fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn what_is_added_pushes_out_no_state_of_its_own() {
    let open = |memory_bytes| {
        let options =
            EngineOptions { prefix_cache: in_memory(memory_bytes), ..EngineOptions::default() };
        tiny("qwen35moe-tiny", EngineOptions { sessions: 2, ..options })
    };
    let [one, two] = [65, 129].map(|n_tokens| {
        let mut engine = open(8 << 20);
        visit(&mut engine, &noise(1, n_tokens));
        stats(&engine).memory_bytes
    });
    let block = two - one;
    let state = one - block;
    // Five blocks and a state, then three and a state of another, then the state and four blocks that
    // follow the five, of which memory has no room for three.
    let mut engine = open(9 * block + 3 * state);
    let tokens = noise(1, 600);
    let mut session = engine.session().expect("a session");
    go_on(&mut engine, &mut session, &tokens[..330], 1);
    engine.remember(&session);
    visit(&mut engine, &noise(2, 200));
    go_on(&mut engine, &mut session, &tokens, 1);
    engine.remember(&session);
    let known = |engine: &mut Engine, tokens: &[u32]| engine.session_for(tokens).expect("one").1;
    assert_eq!(known(&mut engine, &tokens), 576);
    assert_eq!(known(&mut engine, &tokens[..400]), 320, "its prompt with another answer");
}

/// The files of recurrent states.
fn state_files(directory: &Path) -> Vec<PathBuf> {
    let files = entries(directory).into_iter().map(|(path, _)| path);
    files.filter(|path| path.extension().is_some_and(|it| it == "state")).collect()
}

#[test]
fn a_state_that_cannot_be_deleted_stops_nothing_behind_it() {
    let directory = scratch("undeletable");
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 8 << 20), ..EngineOptions::default() };
    let tokens = noise(1, 400);
    visit(&mut tiny("qwen35moe-tiny", options.clone()), &tokens[..200]);
    let [state] = &state_files(&directory)[..] else { panic!("one") };
    // A directory is no entry, and no file to be deleted.
    fs::remove_file(state).expect("it is there");
    fs::create_dir(state).expect("it can be made");
    let mut engine = tiny("qwen35moe-tiny", options.clone());
    let (n_known, expected) = visit(&mut engine, &tokens);
    assert_eq!((n_known, stats(&engine).ignored.not_one), (0, 1));
    assert_eq!(stats(&engine).disk_skips, 0);
    let (n_known, logits) = visit(&mut tiny("qwen35moe-tiny", options.clone()), &tokens);
    assert_eq!(n_known, 384);
    assert!(logits == expected);

    // One that gave way is written again.
    fs::remove_dir(state).expect("it is there");
    visit(&mut engine, &tokens[..200]);
    assert!(state.is_file());
    fs::remove_dir_all(&directory).expect("it can be removed");
}

#[test]
fn a_directory_that_was_deleted_is_made_again() {
    let directory = scratch("deleted");
    let options =
        EngineOptions { prefix_cache: on_disk(&directory, 8 << 20), ..EngineOptions::default() };
    let mut engine = tiny("qwen35moe-tiny", options);
    visit(&mut engine, &noise(1, 200));
    fs::remove_dir_all(&directory).expect("it can be removed");
    visit(&mut engine, &noise(2, 200));
    assert_eq!(stats(&engine).disk_skips, 0);
    assert_eq!(entries(&directory).len(), 4, "three blocks and a state");
    fs::remove_dir_all(&directory).expect("it can be removed");
}

//! What the prefix cache saves and what requests together gain: `cargo bench -p flash-moe-engine --bench
//! sessions -- [MODEL] [MEMORY]`, by default the demo model in the checkout and 1 GiB. Seconds to the first
//! token of two turns of a conversation of 2,000 tokens, cold, from memory, and from the drive after a
//! restart; then tokens a second of 1, 2, 4 and 8 requests at once. Medians of three.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use engine::{
    Engine, EngineOptions, Event, GenerateOptions, PrefixCacheOptions, Request, Scheduler,
    parse_size,
};

/// Tokens of the first turn's prompt, of its answer, and of what the second turn adds.
const TURNS: [usize; 3] = [2000, 100, 50];
/// Tokens of a prompt and of an answer when requests are served at once.
const TOGETHER: [usize; 2] = [64, 64];
const REPEATS: u32 = 3;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let demo = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    let model = arguments.next().map_or_else(demo, PathBuf::from);
    let memory = arguments.next().map_or(1 << 30, |text| parse_size(&text).expect("a size"));
    let directory = std::env::temp_dir().join(format!("flash-moe-sessions-{}", std::process::id()));
    let cached = EngineOptions {
        memory: Some(memory),
        context: Some(4096),
        sessions: 8,
        prefix_cache: Some(PrefixCacheOptions {
            memory_bytes: memory / 4,
            directory: Some(directory.clone()),
            disk_bytes: 4 << 30,
        }),
        ..EngineOptions::default()
    };
    // The first prompt reads experts that are in memory for the later ones.
    let open = |options: &EngineOptions| {
        let engine = Engine::open(&model, options).expect("the model opens");
        let mut scheduler = Scheduler::new(engine);
        let prompt = tokens(&scheduler, 77, 500);
        answer(&mut scheduler, &prompt, 8);
        scheduler
    };
    let in_memory = EngineOptions {
        prefix_cache: cached
            .prefix_cache
            .clone()
            .map(|options| PrefixCacheOptions { directory: None, ..options }),
        ..cached.clone()
    };
    let without = EngineOptions { prefix_cache: None, ..cached.clone() };
    let mut rows: [Vec<Duration>; 5] = Default::default();
    for seed in 0..REPEATS {
        let first = tokens(&open(&without), seed + 1, TURNS[0]);
        let added = tokens(&open(&without), seed + 100, TURNS[2]);
        // The first turn, the second of the same process, and the second of another.
        let mut scheduler = open(&cached);
        let turn = answer(&mut scheduler, &first, TURNS[1]);
        rows[0].push(turn.first);
        rows[1].push(turn.last);
        let second = [first.clone(), turn.said, added].concat();
        let mut scheduler = open(&cached);
        let from_disk = answer(&mut scheduler, &second, 8);
        rows[3].push(from_disk.first);
        let mut scheduler = open(&in_memory);
        answer(&mut scheduler, &first, TURNS[1]);
        let from_memory = answer(&mut scheduler, &second, 8);
        rows[2].push(from_memory.first);
        let computed = answer(&mut open(&without), &second, 8);
        rows[4].push(computed.first);
        let same = computed.said == from_memory.said && computed.said == from_disk.said;
        assert!(same, "the same tokens");
    }
    let [first, last, from_memory, from_disk, computed] = rows.map(median);
    let all: usize = TURNS.iter().sum();
    println!("seconds to the first token, of prompts of {} and {all} tokens", TURNS[0]);
    println!("  turn 1                         {first:8.3}");
    println!("  turn 2, from memory            {from_memory:8.3}");
    println!("  turn 2, from the drive         {from_disk:8.3}");
    println!("  turn 2, without a prefix cache {computed:8.3}");
    println!("seconds of the last pass of turn 1, which writes it to the drive: {last:.3}");
    std::fs::remove_dir_all(&directory).expect("it can be removed");

    let mut scheduler = open(&without);
    println!(
        "tokens a second of answers of {} tokens after prompts of {}",
        TOGETHER[1], TOGETHER[0]
    );
    for n in [1, 2, 4, 8] {
        let times = (0..REPEATS).map(|seed| together(&mut scheduler, n, 1000 * seed)).collect();
        println!("  {n} at once  {:8.1}", (n as usize * TOGETHER[1]) as f64 / median(times));
    }
}

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64()
}

/// Tokens without meaning, never those that end a turn.
fn tokens(scheduler: &Scheduler, seed: u32, n: usize) -> Vec<u32> {
    let vocab = scheduler.engine().config().vocab_size as u32;
    let mut x = seed;
    let next = std::iter::repeat_with(|| {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 8) % vocab
    });
    next.take(n).collect()
}

fn request(prompt: &[u32], n_tokens: usize) -> Request {
    let options = GenerateOptions { max_tokens: Some(n_tokens), ..GenerateOptions::default() };
    Request { prompt: prompt.to_vec(), options, constraint: None }
}

/// An answer: time to its first token, time of its last pass, and its tokens.
struct Answer {
    first: Duration,
    last: Duration,
    said: Vec<u32>,
}

fn answer(scheduler: &mut Scheduler, prompt: &[u32], n_tokens: usize) -> Answer {
    let begin = Instant::now();
    scheduler.start(request(prompt, n_tokens)).expect("it is sound");
    let (mut first, mut last, mut said) = (None, Duration::ZERO, Vec::new());
    while scheduler.running() > 0 {
        let pass = Instant::now();
        scheduler.step(&mut |_, event| {
            if let Event::Step(step) = event.expect("it goes well") {
                first.get_or_insert_with(|| begin.elapsed());
                said.extend(step.token);
            }
        });
        last = pass.elapsed();
    }
    Answer { first: first.expect("there is a token"), last, said }
}

/// Time of so many answers at once, without that of their prompts.
fn together(scheduler: &mut Scheduler, n: u32, seed: u32) -> Duration {
    for index in 0..n {
        let prompt = tokens(scheduler, seed + index, TOGETHER[0]);
        scheduler.start(request(&prompt, TOGETHER[1] + 1)).expect("it is sound");
    }
    while scheduler.stats().reading > 0 {
        scheduler.step(&mut |_, event| drop(event.expect("it goes well")));
    }
    let begin = Instant::now();
    while scheduler.running() > 0 {
        scheduler.step(&mut |_, event| drop(event.expect("it goes well")));
    }
    begin.elapsed()
}

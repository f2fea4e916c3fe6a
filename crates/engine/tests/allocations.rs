//! Decoding allocates nothing once it is warm.

#![expect(unsafe_code, reason = "an allocator that counts")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use engine::{Engine, EngineOptions, KvType, LookAhead};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn decoding_allocates_nothing_once_it_is_warm() {
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/demo");
    for (expert_cache, look_ahead, precise, kv_type) in [
        (None, LookAhead::Auto, false, None),
        (Some(6 << 20), LookAhead::Off, false, None),
        (Some(6 << 20), LookAhead::On, false, None),
        (None, LookAhead::Auto, true, None),
        (None, LookAhead::Auto, false, Some(KvType::Q8_0)),
    ] {
        let options = EngineOptions {
            memory: Some(1 << 30),
            // A second thread may do its first work, and get its working memory, at any step.
            threads: Some(1),
            expert_cache,
            look_ahead,
            precise,
            kv_type,
            ..EngineOptions::default()
        };
        let mut engine = Engine::open(&model, &options).expect("the demo model opens");
        let prompt: Vec<u32> = (0..65).map(|i| 300 + 7 * i).collect();
        let mut session = engine.session().expect("a session");
        engine.evaluate(&mut session, &prompt, |_| false, |_, _| {}).expect("it runs");
        let mut counts = Vec::new();
        // A page of the key-value cache begins at position 64 and the next at 128.
        for step in 0..60 {
            let token = 300 + 13 * (step % 29);
            let before = ALLOCATIONS.load(Ordering::Relaxed);
            let mut sum = 0.0;
            engine
                .evaluate(&mut session, &[token], |_| true, |_, logits| sum += logits[0])
                .expect("it runs");
            assert!(sum.is_finite(), "there are logits");
            counts.push(ALLOCATIONS.load(Ordering::Relaxed) - before);
        }
        let warm: usize = counts[20..].iter().sum();
        assert_eq!(warm, 0, "{look_ahead:?}, precise {precise}, {kv_type:?}: {counts:?}");
    }
}

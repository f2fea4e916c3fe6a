//! What happened when: a bounded record of spans, and its form for trace viewers.
//!
//! A [`Recorder`] is a handle that the forward pass, the computing threads and the expert store may be given. Without one they
//! pay a test for `None`. With one, each span is 48 bytes in memory that was taken before the first;
//! when that is full, further spans are counted and dropped. [`Recorder::write_chrome`] writes what
//! Chrome's and Perfetto's trace viewers open.

#![forbid(unsafe_code)]

mod chrome;
mod kernels;

use std::collections::BTreeSet;
use std::fmt;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use kernels::{KernelReport, KernelTotal};

/// Spans that a recorder holds when nothing else is said: 24 MiB, some 140 tokens of a model with 40
/// layers on two threads, whose shares of operations are three quarters of all spans; on a GPU every kernel is a span.
pub const DEFAULT_SPANS: usize = 1 << 19;

/// What kind of work a span was; viewers show the kinds apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A forward pass; its amount is tokens.
    Pass,
    /// A phase of a layer, or of a pass outside the layers, on the thread that runs the pass.
    Phase,
    /// A read from the drive; its amount is bytes.
    Read {
        /// Which reading thread or queue did it.
        reader: u8,
    },
    /// The share of a parallel operation that one computing thread did; its amount is tasks.
    Work {
        /// Which thread; 0 is the one that runs the pass.
        thread: u8,
    },
    /// A kernel on a GPU, by the GPU's clock; its amount is by how many nanoseconds that may be off the host's.
    Kernel {
        /// Whether it is the first of those that were handed over together.
        is_first: bool,
    },
}

/// A piece of work with its beginning and end.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// What kind of work it was.
    pub kind: Kind,
    /// A short name for people.
    pub name: &'static str,
    /// When it began.
    pub begin: Instant,
    /// When it ended.
    pub end: Instant,
    /// The layer it was for.
    pub layer: Option<usize>,
    /// The routed expert it was for.
    pub expert: Option<u32>,
    /// Tokens, bytes, tasks or nanoseconds, as its kind says.
    pub amount: u64,
}

/// A bounded record of spans; clones share it.
#[derive(Clone)]
pub struct Recorder(Arc<Shared>);

struct Shared {
    epoch: Instant,
    recording: AtomicBool,
    capacity: usize,
    log: Mutex<Log>,
}

struct Log {
    events: Vec<Event>,
    dropped: u64,
    notes: Vec<String>,
}

/// A span as it is kept.
#[derive(Clone, Copy, Debug)]
struct Event {
    begin_ns: u64,
    end_ns: u64,
    amount: u64,
    name: &'static str,
    /// [`NO_EXPERT`] if it was for none.
    expert: u32,
    /// [`NO_LAYER`] if it was for none.
    layer: u16,
    kind: Kind,
}

const NO_EXPERT: u32 = u32::MAX;
const NO_LAYER: u16 = u16::MAX;

impl Recorder {
    /// A recorder of at most `capacity` spans that is recording.
    pub fn new(capacity: usize) -> Self {
        Self(Arc::new(Shared {
            epoch: Instant::now(),
            recording: AtomicBool::new(true),
            capacity,
            log: Mutex::new(Log {
                events: Vec::with_capacity(capacity),
                dropped: 0,
                notes: Vec::new(),
            }),
        }))
    }

    /// Bytes that the record takes when it is full.
    pub fn bytes(&self) -> u64 {
        (self.0.capacity * size_of::<Event>()) as u64
    }

    /// Starts or stops recording; spans that end meanwhile are not counted either.
    pub fn set_recording(&self, recording: bool) {
        self.0.recording.store(recording, Ordering::Relaxed);
    }

    /// Whether it is recording.
    pub fn is_recording(&self) -> bool {
        self.0.recording.load(Ordering::Relaxed)
    }

    /// Notes what a reader of the record has to know, such as what it lacks and why.
    pub fn note(&self, note: String) {
        self.lock().notes.push(note);
    }

    /// What was noted.
    pub fn notes(&self) -> Vec<String> {
        self.lock().notes.clone()
    }

    /// Where the time of a GPU went while single tokens were decoded; `None` if no kernel was recorded then.
    pub fn kernels(&self) -> Option<KernelReport> {
        KernelReport::of(&self.sorted().events)
    }

    /// The spans that are kept, by time.
    pub fn spans(&self) -> Vec<Span> {
        let log = self.sorted();
        let time = |ns| self.0.epoch + Duration::from_nanos(ns);
        let spans = log.events.iter().map(|event| Span {
            kind: event.kind,
            name: event.name,
            begin: time(event.begin_ns),
            end: time(event.end_ns),
            layer: (event.layer != NO_LAYER).then_some(usize::from(event.layer)),
            expert: (event.expert != NO_EXPERT).then_some(event.expert),
            amount: event.amount,
        });
        spans.collect()
    }

    /// Keeps a span, or counts it as dropped when the record is full.
    pub fn record(&self, span: &Span) {
        if !self.is_recording() {
            return;
        }
        let since_epoch = |time: Instant| {
            u64::try_from(time.saturating_duration_since(self.0.epoch).as_nanos())
                .unwrap_or(u64::MAX)
        };
        let event = Event {
            begin_ns: since_epoch(span.begin),
            end_ns: since_epoch(span.end),
            amount: span.amount,
            name: span.name,
            expert: span.expert.unwrap_or(NO_EXPERT),
            layer: span.layer.and_then(|layer| u16::try_from(layer).ok()).unwrap_or(NO_LAYER),
            kind: span.kind,
        };
        let mut log = self.lock();
        if log.events.len() < self.0.capacity {
            log.events.push(event);
        } else {
            log.dropped += 1;
        }
    }

    /// Spans that are kept, and spans that were dropped.
    pub fn counts(&self) -> (usize, u64) {
        let log = self.lock();
        (log.events.len(), log.dropped)
    }

    /// Writes the record as JSON in Chrome's trace format. Nothing can be recorded meanwhile.
    pub fn write_chrome(&self, out: &mut dyn Write) -> io::Result<()> {
        let log = self.sorted();
        chrome::write(&log.events, log.dropped, out)
    }

    /// The log, its events by time.
    fn sorted(&self) -> MutexGuard<'_, Log> {
        let mut log = self.lock();
        log.events.sort_unstable_by_key(chrome::order);
        log
    }

    fn lock(&self) -> MutexGuard<'_, Log> {
        self.0.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that lives as long as the program. Each is kept once and for ever: for names of which there are few.
pub fn intern(name: &str) -> &'static str {
    static NAMES: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    let mut names = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = names.get(name) {
        return known;
    }
    let kept: &'static str = Box::leak(name.into());
    names.insert(kept);
    kept
}

impl fmt::Debug for Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kept, dropped) = self.counts();
        let capacity = self.0.capacity;
        f.debug_struct("Recorder")
            .field("kept", &kept)
            .field("dropped", &dropped)
            .field("capacity", &capacity)
            .finish()
    }
}

/// Handles are equal when they share a record.
impl PartialEq for Recorder {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Recorder {}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use std::collections::HashMap;

    use super::*;

    /// Writes the record and reads it back.
    fn written(recorder: &Recorder) -> Value {
        let mut json = Vec::new();
        recorder.write_chrome(&mut json).expect("a Vec takes all");
        serde_json::from_slice(&json).expect("the trace is JSON")
    }

    fn recorder_with(spans: &[(Kind, &'static str, u64, u64, Option<usize>)]) -> Recorder {
        let recorder = Recorder::new(64);
        let at = |us| recorder.0.epoch + Duration::from_micros(us);
        for &(kind, name, begin, end, layer) in spans {
            let (begin, end) = (at(begin), at(end));
            recorder.record(&Span { kind, name, begin, end, layer, expert: None, amount: 7 });
        }
        recorder
    }

    /// The complete spans: name, track, begin and end in microseconds.
    fn spans(trace: &Value) -> Vec<(String, u64, f64, f64)> {
        let events = trace["traceEvents"].as_array().expect("a list of events");
        let spans = events.iter().filter(|event| event["ph"] == "X").map(|event| {
            let begin = event["ts"].as_f64().expect("a time");
            let name = event["name"].as_str().expect("a name").to_owned();
            let end = begin + event["dur"].as_f64().expect("a duration");
            (name, event["tid"].as_u64().expect("a track"), begin, end)
        });
        spans.collect()
    }

    #[test]
    fn phases_nest_in_layers_and_layers_in_passes() {
        let recorder = recorder_with(&[
            (Kind::Phase, "embedding", 1, 2, None),
            (Kind::Phase, "router", 2, 4, Some(0)),
            (Kind::Phase, "experts", 4, 6, Some(0)),
            (Kind::Phase, "router", 6, 7, Some(1)),
            (Kind::Phase, "head", 7, 9, None),
            (Kind::Pass, "pass", 0, 10, None),
        ]);
        let trace = written(&recorder);
        let spans = spans(&trace);
        let names: Vec<&str> = spans.iter().map(|span| span.0.as_str()).collect();
        let expected =
            ["pass", "embedding", "layer 0", "router", "experts", "layer 1", "router", "head"];
        assert_eq!(names, expected);
        let mut open: Vec<f64> = Vec::new();
        for (name, _, begin, end) in &spans {
            open.retain(|outer| outer > begin);
            assert!(open.iter().all(|outer| end <= outer), "{name} lies in what holds it");
            open.push(*end);
        }
    }

    #[test]
    fn reads_of_a_reader_that_overlap_get_lanes_of_their_own() {
        let read = |reader, begin, end| (Kind::Read { reader }, "expert", begin, end, Some(3));
        let trace = written(&recorder_with(&[
            read(0, 0, 5),
            read(0, 2, 4),
            read(0, 4, 8),
            read(1, 0, 9),
            read(0, 5, 6),
        ]));
        let mut last_end: HashMap<u64, f64> = HashMap::new();
        for (name, track, begin, end) in spans(&trace) {
            let last = last_end.insert(track, end).unwrap_or(0.0);
            assert!(last <= begin, "{name} of track {track} begins after the one before");
        }
        assert_eq!(last_end.len(), 3, "two lanes and another reader");
        let events = trace["traceEvents"].as_array().expect("a list of events");
        let counters: Vec<u64> = events
            .iter()
            .filter(|event| event["ph"] == "C")
            .map(|event| event["args"]["bytes"].as_u64().expect("never negative"))
            .collect();
        assert_eq!(counters.last(), Some(&0), "in the end nothing is in flight");
        assert_eq!(counters.iter().max(), Some(&21), "three reads at once");
    }

    #[test]
    fn computing_threads_have_tracks_and_their_work_has_its_phases_layer() {
        let work = |thread, begin, end| (Kind::Work { thread }, "project", begin, end, None);
        let trace = written(&recorder_with(&[
            work(0, 1, 3),
            work(1, 1, 4),
            (Kind::Phase, "router", 1, 5, Some(2)),
            work(1, 6, 8),
            (Kind::Read { reader: 0 }, "expert", 2, 7, Some(2)),
        ]));
        let tracks: Vec<u64> =
            spans(&trace).iter().filter(|span| span.0 == "project").map(|span| span.1).collect();
        assert_eq!(tracks, [1, 2, 2]);
        let events = trace["traceEvents"].as_array().expect("a list of events");
        let layers: Vec<&Value> = events
            .iter()
            .filter(|event| event["cat"] == "work")
            .inspect(|event| assert_eq!(event["args"]["tasks"], 7))
            .map(|event| &event["args"]["layer"])
            .collect();
        assert_eq!(layers, [&Value::from(2), &Value::from(2), &Value::Null]);
        let names: Vec<&str> = events
            .iter()
            .filter(|event| event["name"] == "thread_name")
            .filter_map(|event| event["args"]["name"].as_str())
            .collect();
        assert_eq!(names, ["passes", "compute 0", "compute 1", "reader 0, lane 1"]);
    }

    #[test]
    fn kernels_have_a_track_and_are_summed_up_over_single_tokens() {
        let kernel =
            |name, begin, end, is_first| (Kind::Kernel { is_first }, name, begin, end, None);
        let recorder = recorder_with(&[
            kernel("product", 1, 5, true),
            kernel("product", 12, 15, true),
            kernel("norm", 16, 17, false),
            kernel("product", 20, 25, true),
            kernel("product", 31, 32, true),
        ]);
        assert_eq!(recorder.kernels(), None, "no token was decoded");
        let at = |us| recorder.0.epoch + Duration::from_micros(us);
        for (begin, end, amount) in [(0, 9, 8), (10, 18, 1), (19, 30, 1)] {
            let (kind, name, begin, end) = (Kind::Pass, "pass", at(begin), at(end));
            recorder.record(&Span { kind, name, begin, end, layer: None, expert: None, amount });
        }
        let us = Duration::from_micros;
        let total = |name, count, time| KernelTotal { name, count, time: us(time) };
        let expected = KernelReport {
            tokens: 2,
            wall: us(20),
            between_kernels: us(1),
            between_submissions: us(2 + 2 + 1 + 5),
            uncertainty: Duration::from_nanos(7),
            kernels: vec![total("product", 2, 8), total("norm", 1, 1)],
        };
        assert_eq!(recorder.kernels(), Some(expected), "neither the prompt's nor later ones");

        let trace = written(&recorder);
        let names: Vec<&Value> = trace["traceEvents"]
            .as_array()
            .expect("a list of events")
            .iter()
            .filter(|event| event["ph"] == "M")
            .map(|event| &event["args"]["name"])
            .collect();
        assert_eq!(names, ["flash-moe", "passes", "GPU"]);
        let on_gpu = spans(&trace).into_iter().filter(|span| span.1 == 1).count();
        assert_eq!(on_gpu, 5);
    }

    #[test]
    fn names_are_kept_once() {
        let name = intern(&format!("pro{}", "duct"));
        assert_eq!(name, "product");
        assert!(std::ptr::eq(name, intern("product")));
    }

    #[test]
    fn a_full_record_counts_what_it_drops() {
        let recorder = Recorder::new(3);
        let now = Instant::now();
        let span = Span {
            kind: Kind::Phase,
            name: "router",
            begin: now,
            end: now,
            layer: Some(1),
            expert: None,
            amount: 0,
        };
        for _ in 0..5 {
            recorder.record(&span);
        }
        recorder.set_recording(false);
        recorder.record(&span);
        assert_eq!(recorder.counts(), (3, 2));
        assert_eq!(recorder.bytes(), 3 * 48);
        assert_eq!(written(&recorder)["otherData"]["dropped_spans"], "2");
    }
}

//! The record as JSON for trace viewers: one track for the thread that runs the passes, one for each
//! reader.
//!
//! Viewers want the spans of a track nested or apart. On the main track they are: a pass holds layers,
//! a layer holds phases. Reads of one reader may overlap, when it is a queue and not a thread; they
//! are laid out in as many lanes as it takes. Layers and the bytes in flight are derived here, so that
//! recording stays cheap.

use std::collections::BTreeMap;
use std::io::{self, Write};

use crate::{Event, Kind, NO_EXPERT, NO_LAYER};

/// The track of passes, layers and phases.
const MAIN_TRACK: u32 = 0;

/// Writes all events.
pub(crate) fn write(mut events: Vec<Event>, dropped: u64, out: &mut dyn Write) -> io::Result<()> {
    // Of two spans that begin together the longer holds the shorter.
    events.sort_by_key(|event| (event.begin_ns, std::cmp::Reverse(event.end_ns)));
    let (reads, main): (Vec<Event>, Vec<Event>) =
        events.into_iter().partition(|event| matches!(event.kind, Kind::Read { .. }));
    let mut spans: Vec<(u32, String, Event)> = Vec::with_capacity(main.len() + reads.len());
    spans.extend(layers_of(&main).into_iter().map(|layer| {
        let name = format!("layer {}", layer.layer);
        (MAIN_TRACK, name, layer)
    }));
    spans.extend(main.into_iter().map(|event| (MAIN_TRACK, event.name.to_owned(), event)));
    let mut tracks = vec!["passes".to_owned()];
    for (event, track) in reads.iter().zip(lanes(&reads, &mut tracks)) {
        let name = match event.expert {
            NO_EXPERT => event.name.to_owned(),
            expert => format!("{} {expert}", event.name),
        };
        spans.push((track, name, *event));
    }
    // Passes come before their layers, and layers before their phases, when they begin together.
    let depth = |event: &Event, name: &str| match event.kind {
        Kind::Pass => 0,
        _ if name.starts_with("layer ") => 1,
        _ => 2,
    };
    spans.sort_by_key(|(track, name, event)| {
        (event.begin_ns, *track, depth(event, name), std::cmp::Reverse(event.end_ns))
    });

    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"dropped_spans\":\"{dropped}\"}},")?;
    write!(out, "\"traceEvents\":[")?;
    write!(out, "{{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",")?;
    write!(out, "\"args\":{{\"name\":\"flash-moe\"}}}}")?;
    for (track, name) in tracks.iter().enumerate() {
        write!(out, ",\n{{\"ph\":\"M\",\"pid\":1,\"tid\":{track},\"name\":\"thread_name\",")?;
        write!(out, "\"args\":{{\"name\":\"{name}\"}}}}")?;
    }
    for (track, name, event) in &spans {
        write_span(out, *track, name, event)?;
    }
    write_in_flight(out, &reads)?;
    writeln!(out, "]}}")
}

fn write_span(out: &mut dyn Write, track: u32, name: &str, event: &Event) -> io::Result<()> {
    let category = match event.kind {
        Kind::Pass => "pass",
        Kind::Phase => "compute",
        Kind::Read { .. } => "read",
    };
    let duration = event.end_ns.saturating_sub(event.begin_ns);
    write!(out, ",\n{{\"ph\":\"X\",\"pid\":1,\"tid\":{track},\"name\":\"{name}\",")?;
    write!(out, "\"cat\":\"{category}\",\"ts\":{},", Microseconds(event.begin_ns))?;
    write!(out, "\"dur\":{},\"args\":{{", Microseconds(duration))?;
    let mut comma = "";
    let mut argument = |name: &str, value: u64| {
        let written = write!(out, "{comma}\"{name}\":{value}");
        comma = ",";
        written
    };
    if event.layer != NO_LAYER {
        argument("layer", u64::from(event.layer))?;
    }
    if event.expert != NO_EXPERT {
        argument("expert", u64::from(event.expert))?;
    }
    match event.kind {
        Kind::Pass => argument("tokens", event.amount)?,
        Kind::Read { .. } => argument("bytes", event.amount)?,
        Kind::Phase => {}
    }
    write!(out, "}}}}")
}

/// A counter of the bytes that are being read.
fn write_in_flight(out: &mut dyn Write, reads: &[Event]) -> io::Result<()> {
    let mut changes: Vec<(u64, i64)> = Vec::with_capacity(2 * reads.len());
    for read in reads {
        let bytes = i64::try_from(read.amount).unwrap_or(i64::MAX);
        changes.extend([(read.begin_ns, bytes), (read.end_ns, -bytes)]);
    }
    changes.sort_unstable();
    let mut bytes: i64 = 0;
    for (time, change) in changes {
        bytes = bytes.saturating_add(change);
        let time = Microseconds(time);
        write!(out, ",\n{{\"ph\":\"C\",\"pid\":1,\"name\":\"bytes in flight\",\"ts\":{time},")?;
        write!(out, "\"args\":{{\"bytes\":{bytes}}}}}")?;
    }
    Ok(())
}

/// A span for each run of phases of the same layer; `main` is in order of time.
fn layers_of(main: &[Event]) -> Vec<Event> {
    let mut layers: Vec<Event> = Vec::new();
    let mut open = false;
    for event in main {
        let is_phase = event.kind == Kind::Phase && event.layer != NO_LAYER;
        match layers.last_mut() {
            Some(layer) if open && is_phase && layer.layer == event.layer => {
                layer.end_ns = layer.end_ns.max(event.end_ns);
            }
            _ if is_phase => layers.push(Event { name: "layer", ..*event }),
            _ => {}
        }
        open = is_phase;
    }
    layers
}

/// A track for each read, so that no two reads of a track overlap; names of new tracks are appended.
fn lanes(reads: &[Event], tracks: &mut Vec<String>) -> Vec<u32> {
    // For each reader its lanes: the track, and when its last read ends.
    let mut readers: BTreeMap<u8, Vec<(u32, u64)>> = BTreeMap::new();
    let place = |event: &Event| {
        let Kind::Read { reader } = event.kind else { return MAIN_TRACK };
        let lanes = readers.entry(reader).or_default();
        if let Some(lane) = lanes.iter_mut().find(|lane| lane.1 <= event.begin_ns) {
            lane.1 = event.end_ns;
            return lane.0;
        }
        let track = tracks.len() as u32;
        tracks.push(match lanes.len() {
            0 => format!("reader {reader}"),
            n => format!("reader {reader}, lane {}", n + 1),
        });
        lanes.push((track, event.end_ns));
        track
    };
    reads.iter().map(place).collect()
}

/// Nanoseconds, written as microseconds.
struct Microseconds(u64);

impl std::fmt::Display for Microseconds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

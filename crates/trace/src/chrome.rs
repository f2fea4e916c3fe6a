//! The record as JSON for trace viewers: one track for passes and their phases, one for each thread that
//! computes, one for a GPU, one for each reader.
//!
//! Viewers want the spans of a track nested or apart. On the main track they are: a pass holds layers,
//! a layer holds phases. Reads of one reader may overlap, when it is a queue and not a thread; they
//! are laid out in as many lanes as it takes. Layers and the bytes in flight are derived here, so that
//! recording stays cheap, and on the way, so that writing takes no memory to speak of.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::fmt;
use std::io::{self, Write};

use crate::{Event, Kind, NO_EXPERT, NO_LAYER};

/// The track of passes, layers and phases.
const MAIN_TRACK: u32 = 0;

/// The order in which [`write`] wants events: by time, what holds others before those.
pub(crate) fn order(event: &Event) -> (u64, u8, u64) {
    let rank = match event.kind {
        Kind::Pass => 0,
        Kind::Phase => 1,
        Kind::Read { .. } | Kind::Work { .. } | Kind::Kernel { .. } => 2,
    };
    (event.begin_ns, rank, event.end_ns)
}

/// Writes all events, which are in order.
pub(crate) fn write(events: &[Event], dropped: u64, out: &mut dyn Write) -> io::Result<()> {
    write!(out, "{{\"displayTimeUnit\":\"ms\",\"otherData\":{{\"dropped_spans\":\"{dropped}\"}},")?;
    write!(out, "\"traceEvents\":[\n{{\"ph\":\"M\",\"pid\":1,\"name\":\"process_name\",")?;
    write!(out, "\"args\":{{\"name\":\"flash-moe\"}}}}")?;
    write_track_name(out, MAIN_TRACK, format_args!("passes"))?;
    write_main(out, events)?;
    let mut next_track = MAIN_TRACK + 1;
    write_work(out, events, &mut next_track)?;
    write_kernels(out, events, &mut next_track)?;
    write_reads(out, events, &mut next_track)?;
    writeln!(out, "]}}")
}

/// Passes and phases, and around each run of phases of a layer that layer.
fn write_main(out: &mut dyn Write, events: &[Event]) -> io::Result<()> {
    let is_main = |event: &&Event| matches!(event.kind, Kind::Pass | Kind::Phase);
    let mut main = events.iter().filter(is_main);
    let mut open_layer = NO_LAYER;
    while let Some(event) = main.next() {
        let layer = if event.kind == Kind::Phase { event.layer } else { NO_LAYER };
        if layer != open_layer && layer != NO_LAYER {
            let same = |next: &&Event| next.kind == Kind::Phase && next.layer == layer;
            let end = main.clone().take_while(same).map(|next| next.end_ns).max();
            let end_ns = end.map_or(event.end_ns, |end| end.max(event.end_ns));
            let whole = Event { end_ns, ..*event };
            write_span(out, MAIN_TRACK, format_args!("layer {layer}"), &whole)?;
        }
        open_layer = layer;
        write_span(out, MAIN_TRACK, format_args!("{}", event.name), event)?;
    }
    Ok(())
}

/// What computing threads did, a track each, with the layer of the phase that it was for.
fn write_work(out: &mut dyn Write, events: &[Event], next_track: &mut u32) -> io::Result<()> {
    let mut tracks: BTreeMap<u8, u32> = BTreeMap::new();
    for event in events {
        if let Kind::Work { thread } = event.kind {
            tracks.entry(thread).or_default();
        }
    }
    for (thread, track) in &mut tracks {
        *track = *next_track;
        *next_track += 1;
        write_track_name(out, *track, format_args!("compute {thread}"))?;
    }
    // Phases do not overlap, and begin before their work.
    let (mut layer, mut phase_end) = (NO_LAYER, 0);
    for event in events {
        match event.kind {
            Kind::Phase => (layer, phase_end) = (event.layer, event.end_ns),
            Kind::Work { thread } => {
                let layer = if event.begin_ns < phase_end { layer } else { NO_LAYER };
                let track = tracks[&thread];
                write_span(out, track, format_args!("{}", event.name), &Event { layer, ..*event })?;
            }
            Kind::Pass | Kind::Read { .. } | Kind::Kernel { .. } => {}
        }
    }
    Ok(())
}

/// What a GPU did, if it told.
fn write_kernels(out: &mut dyn Write, events: &[Event], next_track: &mut u32) -> io::Result<()> {
    let is_kernel = |event: &&Event| matches!(event.kind, Kind::Kernel { .. });
    let mut kernels = events.iter().filter(is_kernel).peekable();
    if kernels.peek().is_none() {
        return Ok(());
    }
    let track = *next_track;
    *next_track += 1;
    write_track_name(out, track, format_args!("GPU"))?;
    kernels.try_for_each(|event| write_span(out, track, format_args!("{}", event.name), event))
}

/// Reads, each on a track where it overlaps no other, and a counter of the bytes in flight.
fn write_reads(out: &mut dyn Write, events: &[Event], next_track: &mut u32) -> io::Result<()> {
    // For each reader its lanes: the track, and when its last read ends.
    let mut readers: BTreeMap<u8, Vec<(u32, u64)>> = BTreeMap::new();
    let mut in_flight: BinaryHeap<Reverse<(u64, u64)>> = BinaryHeap::new();
    let mut bytes: u64 = 0;
    for event in events {
        let Kind::Read { reader } = event.kind else { continue };
        while let Some(&Reverse((end, amount))) = in_flight.peek()
            && end <= event.begin_ns
        {
            in_flight.pop();
            bytes = bytes.saturating_sub(amount);
            write_in_flight(out, end, bytes)?;
        }
        bytes = bytes.saturating_add(event.amount);
        in_flight.push(Reverse((event.end_ns, event.amount)));
        write_in_flight(out, event.begin_ns, bytes)?;

        let lanes = readers.entry(reader).or_default();
        let track = match lanes.iter_mut().find(|lane| lane.1 <= event.begin_ns) {
            Some(lane) => {
                lane.1 = event.end_ns;
                lane.0
            }
            None => {
                let track = *next_track;
                *next_track += 1;
                lanes.push((track, event.end_ns));
                let lane = lanes.len();
                write_track_name(out, track, format_args!("reader {reader}, lane {lane}"))?;
                track
            }
        };
        match event.expert {
            NO_EXPERT => write_span(out, track, format_args!("{}", event.name), event)?,
            expert => write_span(out, track, format_args!("{} {expert}", event.name), event)?,
        }
    }
    while let Some(Reverse((end, amount))) = in_flight.pop() {
        bytes = bytes.saturating_sub(amount);
        write_in_flight(out, end, bytes)?;
    }
    Ok(())
}

fn write_span(
    out: &mut dyn Write,
    track: u32,
    name: fmt::Arguments<'_>,
    event: &Event,
) -> io::Result<()> {
    let category = match event.kind {
        Kind::Pass => "pass",
        Kind::Phase => "compute",
        Kind::Read { .. } => "read",
        Kind::Work { .. } => "work",
        Kind::Kernel { .. } => "kernel",
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
        Kind::Work { .. } => argument("tasks", event.amount)?,
        Kind::Kernel { .. } => argument("uncertainty_ns", event.amount)?,
        Kind::Phase => {}
    }
    write!(out, "}}}}")
}

fn write_track_name(out: &mut dyn Write, track: u32, name: fmt::Arguments<'_>) -> io::Result<()> {
    write!(out, ",\n{{\"ph\":\"M\",\"pid\":1,\"tid\":{track},\"name\":\"thread_name\",")?;
    write!(out, "\"args\":{{\"name\":\"{name}\"}}}}")
}

fn write_in_flight(out: &mut dyn Write, time_ns: u64, bytes: u64) -> io::Result<()> {
    let time = Microseconds(time_ns);
    write!(out, ",\n{{\"ph\":\"C\",\"pid\":1,\"name\":\"bytes in flight\",\"ts\":{time},")?;
    write!(out, "\"args\":{{\"bytes\":{bytes}}}}}")
}

/// Nanoseconds, written as microseconds.
struct Microseconds(u64);

impl fmt::Display for Microseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}", self.0 / 1000, self.0 % 1000)
    }
}

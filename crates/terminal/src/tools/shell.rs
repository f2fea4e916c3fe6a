//! Running a command with bounds on its time and output.

use std::io::{self, PipeReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

/// Bounds of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The longest that it may run.
    pub time: Duration,
    /// The most of its output that is kept: half from the beginning, half from the end.
    pub output_bytes: usize,
}

/// What came of a command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ran {
    /// What it printed, on both outputs in turn, within the bounds.
    pub output: String,
    /// How it ended, if not with success.
    pub trouble: Option<String>,
}

impl Ran {
    /// What the model is told.
    pub fn for_model(&self) -> String {
        let mut text = self.output.clone();
        if let Some(trouble) = &self.trouble {
            if !text.is_empty() && !text.ends_with('\n') {
                text.push('\n');
            }
            text += &format!("[{trouble}]");
        } else if text.is_empty() {
            text.push_str("[no output]");
        }
        text
    }
}

/// How often a running command looks whether it must end.
const TICK: Duration = Duration::from_millis(50);
/// How long a killed command's output is waited for; its descendants may hold it open for ever.
const GRACE: Duration = Duration::from_millis(500);

/// Runs a command in the user's shell; what it leaves in the background ends with it. Its output is given to `show` as it comes; `stop` is asked all the while
/// whether the user wants it ended.
pub fn run(
    command: &str,
    directory: &Path,
    limits: Limits,
    show: &mut dyn FnMut(&[u8]),
    stop: &mut dyn FnMut() -> bool,
) -> io::Result<Ran> {
    let (reader, mut child) = start(command, directory)?;
    let pieces = read(reader);
    let begin = Instant::now();
    let mut output = Output::new(limits.output_bytes);
    let mut trouble = None;
    // The end of the output, and then that of the command.
    let mut ended = false;
    loop {
        if !ended {
            match pieces.recv_timeout(TICK) {
                Ok(piece) => {
                    show(&piece);
                    output.add(&piece);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => ended = true,
            }
        } else {
            thread::sleep(TICK.min(Duration::from_millis(5)));
        }
        if has_ended(&mut child)? {
            break;
        }
        if begin.elapsed() >= limits.time {
            trouble = Some(format!("stopped after {} seconds", limits.time.as_secs_f32()));
        } else if stop() {
            trouble = Some("stopped by the user".to_owned());
        }
        if trouble.is_some() {
            break;
        }
    }
    // What it left in the background would outlive its bounds.
    kill(&mut child);
    let status = child.wait()?;
    let end = Instant::now();
    while !ended && end.elapsed() < GRACE {
        match pieces.recv_timeout(TICK) {
            Ok(piece) => {
                show(&piece);
                output.add(&piece);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => ended = true,
        }
    }
    let trouble = trouble.or_else(|| (!status.success()).then(|| ending(status)));
    Ok(Ran { output: output.finish(), trouble })
}

/// The command with one pipe for both of its outputs, so that they stay in order.
fn start(command: &str, directory: &Path) -> io::Result<(PipeReader, Child)> {
    let (reader, writer) = io::pipe()?;
    let mut shell = if cfg!(windows) { Command::new("cmd") } else { Command::new("sh") };
    shell.args([if cfg!(windows) { "/C" } else { "-c" }, command]);
    shell.current_dir(directory).stdin(Stdio::null());
    shell.stdout(writer.try_clone()?).stderr(writer);
    own_group(&mut shell);
    let child = shell.spawn()?;
    Ok((reader, child))
}

/// A thread's pieces of what comes out of a pipe. It ends with the pipe, and nobody waits for it.
fn read(mut reader: PipeReader) -> Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::sync_channel(16);
    thread::spawn(move || {
        let mut buf = [0; 8192];
        while let Ok(n @ 1..) = reader.read(&mut buf) {
            if sender.send(buf[..n].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

fn ending(status: ExitStatus) -> String {
    match status.code() {
        Some(code) => format!("exit status {code}"),
        None => status.to_string(),
    }
}

/// Puts the command into a group of its own, so that all that it starts can be ended with it, and Ctrl-C
/// reaches it through the program alone.
#[cfg(unix)]
pub(crate) fn own_group(command: &mut Command) {
    use std::os::unix::process::CommandExt;
    command.process_group(0);
}

#[cfg(not(unix))]
pub(crate) fn own_group(_: &mut Command) {}

/// Whether a command has ended. Its status is left for later, so that its group's number is nobody else's yet.
#[cfg(unix)]
fn has_ended(child: &mut Child) -> io::Result<bool> {
    use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    Ok(waitid(WaitId::Pid(Pid::from_child(child)), options)?.is_some())
}

#[cfg(not(unix))]
fn has_ended(child: &mut Child) -> io::Result<bool> {
    Ok(child.try_wait()?.is_some())
}

/// Ends a command and all that it started, as far as the system knows it.
#[cfg(unix)]
pub(crate) fn kill(child: &mut Child) {
    use rustix::process::{Pid, Signal, kill_process_group};
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        // A group that has ended already needs no signal.
        let _ = kill_process_group(group, Signal::KILL);
    }
    drop(child.kill());
}

/// Ends a command.
#[cfg(not(unix))]
pub(crate) fn kill(child: &mut Child) {
    // One that has ended already cannot be killed.
    drop(child.kill());
}

/// The beginning and the end of an output.
struct Output {
    half: usize,
    head: Vec<u8>,
    tail: std::collections::VecDeque<u8>,
    dropped: usize,
}

impl Output {
    fn new(limit: usize) -> Self {
        Self { half: limit.div_ceil(2), head: Vec::new(), tail: Default::default(), dropped: 0 }
    }

    fn add(&mut self, piece: &[u8]) {
        let (head, tail) = piece.split_at(piece.len().min(self.half - self.head.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(tail);
        let over = self.tail.len().saturating_sub(self.half);
        self.tail.drain(..over);
        self.dropped += over;
    }

    fn finish(self) -> String {
        let mut bytes = self.head;
        if self.dropped > 0 {
            let note = format!("\n[{} bytes left out]\n", self.dropped);
            bytes.extend_from_slice(note.as_bytes());
        }
        bytes.extend(self.tail);
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

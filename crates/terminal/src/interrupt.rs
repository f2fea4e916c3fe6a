//! Ctrl-C and signals that end the program, while the model speaks or a tool runs, and a terminal that does
//! not show what is typed meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use signal_hook::consts::SIGINT;
#[cfg(unix)]
use signal_hook::consts::{SIGHUP, SIGTERM};

/// The exit status of a program that Ctrl-C ended.
pub const INTERRUPTED: i32 = 130;

/// Signals that end the program, by their default action, as soon as the terminal is as it was.
#[cfg(unix)]
const ENDING: [i32; 2] = [SIGTERM, SIGHUP];
#[cfg(not(unix))]
const ENDING: [i32; 0] = [];

/// Tells whether Ctrl-C was pressed.
#[derive(Clone)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// While nothing is under way that could be stopped, Ctrl-C ends the program.
    idle: Arc<AtomicBool>,
    ended: Ended,
}

/// Which of [`ENDING`] came while something was under way.
type Ended = [Arc<AtomicBool>; ENDING.len()];

impl Interrupt {
    /// Takes the signals over for the rest of the program.
    pub fn install() -> anyhow::Result<Self> {
        let (pressed, idle) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&idle))
            .and_then(|_| signal_hook::flag::register(SIGINT, Arc::clone(&pressed)))
            .context("taking over Ctrl-C")?;
        let ended = Ended::default();
        for (signal, came) in ENDING.into_iter().zip(&ended) {
            // The second one ends the program at once, whatever it is at.
            signal_hook::flag::register_conditional_default(signal, Arc::clone(&idle))
                .and_then(|_| {
                    signal_hook::flag::register_conditional_default(signal, Arc::clone(came))
                })
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(came)))
                .context("taking over the signals that end the program")?;
        }
        Ok(Self { pressed, idle, ended })
    }

    /// Something begins that Ctrl-C stops; with a person at the terminal, what is typed meanwhile is not shown.
    pub fn busy(&self, person: bool) -> Busy {
        self.pressed.store(false, Ordering::Relaxed);
        self.idle.store(false, Ordering::Relaxed);
        Busy {
            idle: Arc::clone(&self.idle),
            ended: self.ended.clone(),
            quiet: person.then(Quiet::new),
        }
    }

    /// Whether it was pressed since this was asked last, or the program is to end.
    pub fn take(&self) -> bool {
        self.pressed.swap(false, Ordering::Relaxed)
            || self.ended.iter().any(|came| came.load(Ordering::Relaxed))
    }
}

/// While it lives, neither Ctrl-C nor a first signal ends the program; with it, such a signal takes effect.
pub struct Busy {
    idle: Arc<AtomicBool>,
    ended: Ended,
    quiet: Option<Quiet>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.quiet = None;
        self.idle.store(true, Ordering::Relaxed);
        for (signal, came) in ENDING.into_iter().zip(&self.ended) {
            if came.load(Ordering::Relaxed) {
                // Only a signal that is none fails.
                let _ = signal_hook::low_level::emulate_default_handler(signal);
            }
        }
    }
}

/// While it lives, the terminal does not show what is typed; the next prompt does.
struct Quiet {
    #[cfg(unix)]
    before: Option<rustix::termios::Termios>,
}

impl Quiet {
    /// Begins.
    #[cfg(unix)]
    fn new() -> Self {
        use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
        let stdin = std::io::stdin();
        let before = tcgetattr(&stdin).ok();
        if let Some(mut quiet) = before.clone() {
            quiet.local_modes.remove(LocalModes::ECHO);
            // Where it cannot be had, what is typed shows.
            let _ = tcsetattr(&stdin, OptionalActions::Now, &quiet);
        }
        Self { before }
    }

    /// Begins; nothing is done on this system.
    #[cfg(not(unix))]
    fn new() -> Self {
        Self {}
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        #[cfg(unix)]
        if let Some(before) = &self.before {
            use rustix::termios::{OptionalActions, tcsetattr};
            let _ = tcsetattr(std::io::stdin(), OptionalActions::Now, before);
        }
    }
}

//! Ctrl-C while the model speaks or a tool runs, and a terminal that does not show what is typed meanwhile.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::Context;
use signal_hook::consts::SIGINT;

/// The exit status of a program that Ctrl-C ended.
pub const INTERRUPTED: i32 = 130;

/// Tells whether Ctrl-C was pressed.
#[derive(Clone)]
pub struct Interrupt {
    pressed: Arc<AtomicBool>,
    /// While nothing is under way that could be stopped, Ctrl-C ends the program.
    idle: Arc<AtomicBool>,
}

impl Interrupt {
    /// Takes the signal over for the rest of the program.
    pub fn install() -> anyhow::Result<Self> {
        let (pressed, idle) = (Arc::default(), Arc::new(AtomicBool::new(true)));
        signal_hook::flag::register_conditional_shutdown(SIGINT, INTERRUPTED, Arc::clone(&idle))
            .and_then(|_| signal_hook::flag::register(SIGINT, Arc::clone(&pressed)))
            .context("taking over Ctrl-C")?;
        Ok(Self { pressed, idle })
    }

    /// Something begins that Ctrl-C stops; with a person at the terminal, what is typed meanwhile is not shown.
    pub fn busy(&self, person: bool) -> Busy {
        self.pressed.store(false, Ordering::Relaxed);
        self.idle.store(false, Ordering::Relaxed);
        Busy { idle: Arc::clone(&self.idle), _quiet: person.then(Quiet::new) }
    }

    /// Whether it was pressed since this was asked last.
    pub fn take(&self) -> bool {
        self.pressed.swap(false, Ordering::Relaxed)
    }
}

/// While it lives, Ctrl-C does not end the program.
pub struct Busy {
    idle: Arc<AtomicBool>,
    _quiet: Option<Quiet>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.idle.store(true, Ordering::Relaxed);
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

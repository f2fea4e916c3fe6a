//! Having the talk answered: replies as they come, calls of tools in between.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use chat::{Message, ReplyEvent};

use crate::interrupt::INTERRUPTED;
use crate::partner::{End, Event, Outcome, Reading, Turn};
use crate::talk::Talk;
use crate::talk::numbers::Numbers;
use crate::view::View;

/// How often the user is listened to while nothing comes.
const TICK: Duration = Duration::from_millis(100);

impl Talk<'_> {
    /// Has the talk answered, which ends with a message of the user. `attempt` makes another answer of the
    /// same talk.
    pub(super) fn answer(&mut self, attempt: u64) -> anyhow::Result<()> {
        for _ in 0..self.config.tools.rounds {
            let outcome = match self.turn(attempt) {
                Ok(outcome) => outcome,
                Err(error) => {
                    self.take_back_question();
                    return Err(error);
                }
            };
            self.numbers.add(outcome.cost);
            let whole = outcome.end == End::Whole;
            if !whole && outcome.reply.content.trim().is_empty() {
                // Thoughts that were cut off, or nothing at all, are no answer.
                let old = self.take_back_question();
                self.explain(&outcome)?;
                if old {
                    self.screen.aside("The answer before stays.")?;
                }
                return Ok(());
            }
            let mut message = outcome.reply.to_message();
            if !whole {
                // Calls in a reply that was cut off are not made, so that nothing answers them.
                message.other.shift_remove("tool_calls");
            }
            self.journal.push(message);
            self.screen.aside(&Numbers::footer(&outcome.cost))?;
            self.explain(&outcome)?;
            if !whole || outcome.reply.calls.is_empty() {
                return Ok(());
            }
            let mut stopped = false;
            for call in &outcome.reply.calls {
                let result = if stopped {
                    "The user stopped before this call.".to_owned()
                } else {
                    let called = self.tools.call(
                        call,
                        &mut self.screen,
                        &mut self.input,
                        &self.interrupt,
                    )?;
                    stopped = called.stopped;
                    called.text
                };
                let mut message = Message::new("tool", &result);
                message.other.insert("tool_call_id".to_owned(), call.id.clone().into());
                message.other.insert("name".to_owned(), call.name.clone().into());
                self.journal.push(message);
            }
            if stopped {
                return Ok(());
            }
        }
        let rounds = self.config.tools.rounds;
        Ok(self.screen.warn(&format!(
            "the model has called tools {rounds} times in a row without an answer; say something to go on"
        ))?)
    }

    /// Removes a message that got no answer, so that the talk can go on otherwise; tells whether it goes on with
    /// what was said before instead.
    fn take_back_question(&mut self) -> bool {
        if self.journal.give_back() {
            return true;
        }
        let messages = &self.journal.talk().messages;
        if messages.last().is_some_and(|message| message.role == "user") {
            let n = messages.len() - 1;
            self.journal.keep(n);
        }
        false
    }

    /// Says why a reply is not whole.
    fn explain(&mut self, outcome: &Outcome) -> anyhow::Result<()> {
        match outcome.end {
            End::Whole => {}
            // Who stops a pipe's reply means the whole of it.
            End::Stopped if !self.input.is_person() => return Err(anyhow!("stopped by the user")),
            End::Stopped => self.screen.aside("[stopped]")?,
            End::Limit => self.screen.warn("[the reply reached the limit of tokens]")?,
            End::ContextFull => {
                let context = outcome.cost.context.unwrap_or_default();
                let needed = outcome.cost.prompt_tokens;
                self.screen.warn(&format!(
                    "the context is full: the talk has {needed} tokens and more to come, and {context} is all it can have.\n\
                     hint: /new begins a new talk, /edit shortens the last message, and the option --context gives more where memory allows",
                ))?;
                if !self.input.is_person() {
                    return Err(anyhow!("the context of {context} tokens is full"));
                }
            }
        }
        if !outcome.reply.malformed.is_empty() {
            self.screen.warn("[the model began to call a tool and did not finish]")?;
        }
        Ok(())
    }

    /// One reply, shown as it comes.
    fn turn(&mut self, attempt: u64) -> anyhow::Result<Outcome> {
        let turn = Turn {
            messages: self.journal.messages(),
            tools: self.tools.definitions(),
            thinking: self.think,
            attempt,
        };
        let partner = self
            .partner
            .as_mut()
            .ok_or_else(|| anyhow!("there is no model; /model NAME loads one"))?;
        let cancel = Arc::new(AtomicBool::new(false));
        let (sender, events) = mpsc::channel();
        let mut busy = Some(self.interrupt.busy(self.input.is_person()));
        let mut shown = Shown {
            view: View::new(&self.screen, self.show_thinking),
            reading: None,
            begin: Instant::now(),
            ticked: Instant::now(),
            presses: 0,
        };
        let mut trouble: Option<io::Error> = None;
        let outcome = thread::scope(|scope| {
            let worker_cancel = Arc::clone(&cancel);
            let worker = scope.spawn(move || {
                // Nobody listens only if the screen is gone, and then the reply is cancelled.
                partner.turn(&turn, &worker_cancel, &mut |event| drop(sender.send(event)))
            });
            loop {
                let event = events.recv_timeout(TICK);
                if self.interrupt.take() {
                    cancel.store(true, Ordering::Relaxed);
                    shown.presses += 1;
                    if shown.presses > 2 {
                        // Whoever insists gets out at once; the talk is written down.
                        busy.take();
                        std::process::exit(INTERRUPTED);
                    }
                }
                let mut result = match event {
                    Ok(event) => shown.take(&mut self.screen, event),
                    Err(RecvTimeoutError::Timeout) => Ok(()),
                    Err(RecvTimeoutError::Disconnected) => break,
                };
                if result.is_ok() && shown.ticked.elapsed() >= TICK {
                    shown.ticked = Instant::now();
                    result = shown.tick(&mut self.screen, &self.numbers);
                }
                if let Err(error) = result
                    && trouble.is_none()
                {
                    cancel.store(true, Ordering::Relaxed);
                    trouble = Some(error);
                }
            }
            worker.join()
        });
        if let Some(error) = trouble {
            return Err(error.into());
        }
        shown.view.pause(&mut self.screen)?;
        self.screen.progress("")?;
        drop(busy);
        outcome.unwrap_or_else(|_| Err(anyhow!("the thread of the model has ended; this is a bug")))
    }
}

/// What is on the screen of a reply.
struct Shown {
    view: View,
    reading: Option<Reading>,
    begin: Instant,
    /// When it was last looked at without an event.
    ticked: Instant,
    /// How often Ctrl-C was pressed.
    presses: usize,
}

impl Shown {
    fn take(&mut self, screen: &mut crate::screen::Screen, event: Event) -> io::Result<()> {
        if let Event::Reading(reading) = event {
            self.reading = Some(reading);
            return Ok(());
        }
        if self.reading.take().is_some() {
            screen.progress("")?;
        }
        match event {
            Event::Reply(ReplyEvent::Reasoning(text)) => self.view.thinking(screen, &text),
            Event::Reply(ReplyEvent::Content(text)) => self.view.answer(screen, &text),
            Event::Reply(ReplyEvent::CallBegin { name, .. }) => self.view.call(screen, &name),
            Event::Reply(ReplyEvent::Malformed { text }) => self.view.answer(screen, &text),
            Event::Reply(ReplyEvent::CallArguments { .. } | ReplyEvent::CallEnd { .. })
            | Event::Reading(_) => Ok(()),
        }
    }

    fn tick(&mut self, screen: &mut crate::screen::Screen, numbers: &Numbers) -> io::Result<()> {
        if self.presses > 0 {
            let text = "stopping after the pass that is being computed; Ctrl-C twice more ends the program";
            return if self.reading.is_some() { screen.progress(text) } else { Ok(()) };
        }
        match &self.reading {
            Some(reading) => {
                screen.progress(&numbers.progress(reading, self.begin.elapsed().as_secs_f64()))
            }
            None => self.view.tick(screen),
        }
    }
}

//! The talk: reads what the user types, has it answered, keeps it.

mod calls;
mod commands;
mod journal;
mod numbers;
mod turn;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use chat::{ChatModel, Message};
use engine::Engine;

use crate::command::{self, Command, Typed};
use crate::config::{Config, SamplingConfig};
use crate::input::{Entered, Input};
use crate::interrupt::Interrupt;
use crate::partner::{Local, Partner, Remote};
use crate::screen::{Screen, When};
use crate::sessions::Store;
use crate::talk::calls::Toolbox;
use crate::talk::journal::Journal;
use crate::talk::numbers::Numbers;
use crate::text::{Style, one_line};

/// What the user has chosen, by options and configuration.
pub struct Options {
    /// The configuration, changed by options of the command line.
    pub config: Config,
    /// A session to go on with.
    pub resume: Option<String>,
    /// The model to talk with where none is configured and no session names one.
    pub default_model: String,
    /// Whether styles are used.
    pub colour: When,
    /// Whether Markdown is rendered.
    pub render: When,
}

/// Loads models by the names that users give them.
pub trait Models {
    /// Loads one.
    fn open(&mut self, name: &str) -> anyhow::Result<(Engine, ChatModel)>;
}

/// Talks until the user has had enough.
pub fn talk(options: Options, models: &mut dyn Models) -> anyhow::Result<()> {
    let resumed = options.resume.is_some();
    let mut talk = Talk::begin(options, models)?;
    talk.greet()?;
    if resumed {
        talk.show_resumed()?;
    }
    while talk.line()? {}
    Ok(())
}

struct Talk<'a> {
    config: Config,
    models: &'a mut dyn Models,
    screen: Screen,
    input: Input,
    interrupt: Interrupt,
    store: Option<Arc<Store>>,
    journal: Journal,
    partner: Option<Box<dyn Partner>>,
    think: Option<bool>,
    show_thinking: bool,
    tools: Toolbox,
    numbers: Numbers,
    /// How often an answer was asked for again, so that it is another one each time.
    attempt: u64,
}

impl<'a> Talk<'a> {
    fn begin(options: Options, models: &'a mut dyn Models) -> anyhow::Result<Self> {
        let Options { config, resume, default_model, colour, render } = options;
        let screen = Screen::new(colour, render);
        let interrupt = Interrupt::install()?;
        let data = crate::paths::data_directory();
        let keep = config.save != Some(false);
        let history = data.as_ref().map(|data| data.join("history.txt")).filter(|_| keep);
        let input = Input::new(history, screen.colour())?;
        let store = data.map(|data| Arc::new(Store::new(data.join("sessions"))));
        let mut journal = Journal::new(store.clone().filter(|_| keep));
        if let Some(key) = &resume {
            journal.resume(store.as_deref(), key)?;
        } else {
            journal.set_system(config.system.clone());
        }
        let model = config.model.clone().or_else(|| match config.url {
            Some(_) => None,
            None => Some(journal.talk().model.clone().unwrap_or(default_model)),
        });
        let tools = Toolbox::new(&config)?;
        let mut talk = Self {
            think: config.think,
            show_thinking: config.show_thinking.unwrap_or(screen.is_live()),
            config,
            models,
            screen,
            input,
            interrupt,
            store,
            journal,
            partner: None,
            tools,
            numbers: Numbers::default(),
            attempt: 0,
        };
        talk.open(model.as_deref())?;
        Ok(talk)
    }

    /// Begins to talk with a model.
    fn open(&mut self, model: Option<&str>) -> anyhow::Result<()> {
        // The memory of the one before is needed.
        self.partner = None;
        let SamplingConfig { max_tokens, .. } = self.config.sampling;
        let partner: Box<dyn Partner> = match (&self.config.url, model) {
            (Some(url), model) => {
                let key = key_of(&self.config)?;
                Box::new(Remote::new(url, key, model, self.config.sampling.clone())?)
            }
            (None, Some(name)) => {
                self.screen.progress(&format!("loading {} ...", one_line(name)))?;
                let opened = self.models.open(name);
                self.screen.progress("")?;
                let (engine, chat) = opened?;
                let sampling = self.config.sampling.apply(engine.default_sampling());
                Box::new(Local::new(name, engine, chat, sampling, max_tokens))
            }
            (None, None) => anyhow::bail!("there is no model"),
        };
        self.journal.set_model(partner.name());
        self.partner = Some(partner);
        Ok(())
    }

    fn greet(&mut self) -> anyhow::Result<()> {
        if !self.input.is_person() {
            return Ok(());
        }
        let name =
            self.partner.as_ref().map(|partner| one_line(partner.name())).unwrap_or_default();
        self.screen.aside(&format!(
            "Talking with {name}. Enter sends, Alt-Enter begins a line, Ctrl-C stops a reply, Ctrl-D ends. /help lists commands."
        ))?;
        Ok(())
    }

    /// Reads and does one thing; tells whether there may be more.
    fn line(&mut self) -> anyhow::Result<bool> {
        let line = match self.input.message("> ", "")? {
            Entered::Line(line) => line,
            Entered::Interrupted => {
                self.screen.aside("Ctrl-D or /quit ends the talk.")?;
                return Ok(true);
            }
            Entered::End => return Ok(false),
        };
        let done = match command::parse(&line) {
            Ok(Typed::Empty) => Ok(()),
            Ok(Typed::Command(Command::Quit)) => return Ok(false),
            Ok(Typed::Command(command)) => self.command(command),
            Ok(Typed::Message(message)) => self.message(&message),
            Err(explanation) => self.refuse(&explanation),
        };
        if let Some(error) = self.journal.take_trouble() {
            let error = anyhow::Error::from(error);
            self.screen.warn(&format!("warning: the talk is not kept from here on: {error:#}"))?;
        }
        match done {
            // A person sees what went wrong and goes on; a pipe's next lines would make no sense.
            Err(error) if self.input.is_person() && !is_output_gone(&error) => {
                self.screen.progress("")?;
                self.screen.warn(&format!("error: {error:#}"))?;
            }
            done => done?,
        }
        Ok(true)
    }

    /// Says what is wrong with a command.
    fn refuse(&mut self, explanation: &str) -> anyhow::Result<()> {
        if self.input.is_person() {
            Ok(self.screen.warn(explanation)?)
        } else {
            anyhow::bail!("{}", one_line(explanation))
        }
    }

    fn message(&mut self, text: &str) -> anyhow::Result<()> {
        self.journal.push(Message::user(text));
        self.answer(0)
    }

    /// Shows the end of a talk that goes on.
    fn show_resumed(&mut self) -> anyhow::Result<()> {
        if !self.input.is_person() {
            return Ok(());
        }
        let messages = self.journal.talk().messages.clone();
        let last = messages.iter().rposition(|message| message.role == "user").unwrap_or(0);
        if last > 0 {
            self.screen.aside(&format!("... {last} messages before ..."))?;
        }
        for message in &messages[last..] {
            let text = message.content.as_str().unwrap_or_default();
            match message.role.as_str() {
                "user" => self.screen.say_in(&format!("> {text}"), Style::BOLD)?,
                "assistant" if !text.is_empty() => {
                    let mut view = crate::view::View::new(&self.screen, false);
                    view.answer(&mut self.screen, text)?;
                    view.pause(&mut self.screen)?;
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Whether nobody reads what is written any more.
fn is_output_gone(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == std::io::ErrorKind::BrokenPipe)
}

/// The key that a server asks for, from the environment, where other users do not see it.
fn key_of(config: &Config) -> anyhow::Result<Option<String>> {
    match &config.api_key_variable {
        Some(name) => {
            let key = std::env::var(name);
            key.map(Some).with_context(|| format!("the key in the environment variable {name}"))
        }
        None => Ok(std::env::var("FLASH_MOE_API_KEY").ok().filter(|key| !key.is_empty())),
    }
}

/// A path for people.
fn shown(path: &std::path::Path) -> String {
    one_line(&path.display().to_string())
}

/// Where commands of the shell tool run.
fn directory_of(config: &Config) -> anyhow::Result<PathBuf> {
    match &config.tools.directory {
        Some(directory) if directory.is_dir() => Ok(directory.clone()),
        Some(directory) => anyhow::bail!("{} is no directory for tools", directory.display()),
        None => std::env::current_dir().context("the working directory"),
    }
}
